//! Pulls of a large image.

use std::fs;

use anyhow::Context;
use wharf_cri_api::v1::{ImageSpec, RemoveImageRequest};

use crate::client::Runtime;
use crate::results::{Results, Stopwatch, Unit};

/// The image that the pods run.
pub(crate) const SMALL: &str = "docker.io/library/busybox:latest";

/// The largest of the test images: a base, 95 MB of packages, an entry point.
const LARGE: &str = "docker.io/library/postgres:latest";

/// Pulls the image that the pods run.
pub(crate) async fn prepare(runtimes: &[Runtime]) -> anyhow::Result<()> {
    for runtime in runtimes {
        pull(runtime, SMALL).await?;
    }
    Ok(())
}

/// Pulls and removes the large image `count` times. The bytes that went over the network are reported beside the time,
/// because a runtime that kept layers of a removed image would only seem fast.
pub(crate) async fn pulls(count: usize, runtimes: &[Runtime], results: &mut Results) -> anyhow::Result<()> {
    for _ in 0..count {
        for runtime in runtimes {
            let before = received_bytes()?;
            let mut watch = Stopwatch::start();
            pull(runtime, LARGE).await?;
            results.time("pull + unpack of postgres", &runtime.name, watch.lap());
            let megabytes = (received_bytes()? - before) / 1e6;
            results.add("  fetched for that", Unit::Megabytes, &runtime.name, megabytes);
            remove(runtime, LARGE).await?;
        }
    }
    Ok(())
}

async fn pull(runtime: &Runtime, image: &str) -> anyhow::Result<()> {
    let pulled = runtime.calls.pull(image).await;
    pulled.map(drop).with_context(|| format!("pull {image} by {}", runtime.name))
}

async fn remove(runtime: &Runtime, image: &str) -> anyhow::Result<()> {
    let request = RemoveImageRequest { image: Some(spec(image)) };
    runtime.calls.images.clone().remove_image(request).await.with_context(|| format!("remove {image}"))?;
    Ok(())
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// Bytes received on the loopback interface, which only the rig uses; the registry listens there.
fn received_bytes() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/self/net/dev").context("read /proc/self/net/dev")?;
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("lo:"))
        .context("no loopback interface")?;
    let count = line.split_whitespace().next().context("no count of bytes")?;
    count.parse().with_context(|| format!("{count} is no count of bytes"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::received_bytes;

    #[test]
    fn what_passes_the_loopback_is_counted() {
        let before = received_bytes().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(&[7; 5000]).unwrap();
        listener.accept().unwrap().0.read_exact(&mut [0; 5000]).unwrap();
        assert!(received_bytes().unwrap() - before >= 5000.0);
    }
}
