//! Exec for a client that holds the streams: how long one takes, and how fast its output comes. Over WebSocket, which all
//! runtimes speak.

use anyhow::Context;
use futures_util::StreamExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use wharf_cri_api::v1::ExecRequest;

use crate::Options;
use crate::client::Runtime;
use crate::results::{Results, Stopwatch, Unit};

const STDOUT: u8 = 1;
const ERROR: u8 = 3;

/// Short execs, and execs that write much, in a pod of each runtime.
pub(crate) async fn measure(
    options: &Options,
    runtimes: &[Runtime],
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut pods = Vec::new();
    for runtime in runtimes {
        pods.push(runtime.up().await?);
    }
    for _ in 0..options.execs {
        for (runtime, pod) in runtimes.iter().zip(&pods) {
            let mut watch = Stopwatch::start();
            exec(runtime, &pod.container, &["true"]).await?;
            results.time("interactive exec of true", &runtime.name, watch.lap());
        }
    }
    let bytes = options.output << 20;
    for _ in 0..options.floods {
        for (runtime, pod) in runtimes.iter().zip(&pods) {
            let mut watch = Stopwatch::start();
            let read =
                exec(runtime, &pod.container, &["head", "-c", &bytes.to_string(), "/dev/zero"]).await?;
            anyhow::ensure!(read == bytes, "{} of {bytes} bytes came", read);
            let rate = bytes as f64 / 1e6 / watch.lap().as_secs_f64();
            results.add("interactive exec, output", Unit::MBs, &runtime.name, rate);
        }
    }
    for (runtime, pod) in runtimes.iter().zip(&pods) {
        runtime.down(pod).await?;
    }
    Ok(())
}

/// Runs a command to its end, and counts its output; an error if it did not succeed.
async fn exec(runtime: &Runtime, container: &str, command: &[&str]) -> anyhow::Result<u64> {
    let request = ExecRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(|&word| word.to_owned()).collect(),
        stdout: true,
        ..ExecRequest::default()
    };
    let url = runtime.calls.clone().exec(request).await.context("Exec")?.into_inner().url;
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not http"))?;
    let mut request = format!("ws://{rest}").into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v4.channel.k8s.io"));
    let tcp = TcpStream::connect(rest.split('/').next().unwrap_or(rest)).await?;
    let (mut socket, _response) = tokio_tungstenite::client_async(request, tcp).await?;
    let (mut count, mut status) = (0, Vec::new());
    while let Some(message) = socket.next().await {
        match message? {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((&STDOUT, output)) => count += output.len() as u64,
                Some((&ERROR, text)) => status.extend_from_slice(text),
                _ => {}
            },
            Message::Close(_) => break,
            _ => {}
        }
    }
    let status: serde_json::Value = serde_json::from_slice(&status).context("read the status")?;
    anyhow::ensure!(status["status"] == "Success", "{command:?}: {status}");
    Ok(count)
}
