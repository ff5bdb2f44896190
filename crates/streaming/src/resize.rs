//! The sizes of a client's terminal: a stream of JSON objects that may be split anywhere.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::backend::Size;
use crate::channel::Inbound;

/// The most that an unfinished object may have, in bytes.
const OBJECT_LIMIT: usize = 1024;

/// The latest size, once there is one.
pub(crate) type Sizes = watch::Receiver<Option<Size>>;

/// Waits for the first size, but not longer than this.
pub(crate) async fn first(mut sizes: Sizes, patience: Duration) -> Option<Size> {
    let told = timeout(patience, sizes.wait_for(Option::is_some)).await;
    *told.ok()?.ok()?
}

/// Notes each size as it comes. A stream that makes no sense is not followed further, which ends nothing else.
pub(crate) async fn follow(stream: Option<Inbound>, latest: watch::Sender<Option<Size>>) -> Infallible {
    if let Some(mut stream) = stream {
        let mut text = Vec::new();
        while let Some(bytes) = stream.recv().await {
            text.extend_from_slice(&bytes);
            match last_size(&mut text) {
                Ok(None) => {}
                Ok(size) => drop(latest.send_replace(size)),
                Err(error) => {
                    tracing::debug!(%error, "a client's terminal sizes make no sense");
                    break;
                }
            }
            if text.len() > OBJECT_LIMIT {
                break;
            }
        }
    }
    // Nobody has to wait for a size any more.
    drop(latest);
    std::future::pending().await
}

/// Takes all whole objects from the front and returns the last one.
fn last_size(text: &mut Vec<u8>) -> Result<Option<Size>, serde_json::Error> {
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut last = None;
    let whole = loop {
        let whole = objects.byte_offset();
        match objects.next() {
            None => break text.len(),
            Some(Ok(size)) => last = Some(size),
            Some(Err(error)) if error.is_eof() => break whole,
            Some(Err(error)) => return Err(error),
        }
    };
    text.drain(..whole);
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_may_be_split_anywhere() {
        let stream =
            b"{\"Width\":80,\"Height\":24}\n{\"height\":43,\"width\":132}{\"Width\":1,\"Height\":65535}\n";
        let mut sizes = Vec::new();
        let mut text = Vec::new();
        for byte in stream {
            text.push(*byte);
            sizes.extend(last_size(&mut text).unwrap());
        }
        assert_eq!(sizes, [(80, 24), (132, 43), (1, 65535)].map(|(width, height)| Size { width, height }));
        let mut whole = stream.to_vec();
        assert_eq!(last_size(&mut whole).unwrap(), sizes.pop());
        assert!(whole.is_empty());
    }

    #[test]
    fn nonsense_is_an_error() {
        for bad in ["{\"Width\":65536,\"Height\":1}", "{\"Width\":-1,\"Height\":1}", "x", "[1,2]x"] {
            assert!(last_size(&mut bad.as_bytes().to_vec()).is_err(), "{bad}");
        }
    }
}
