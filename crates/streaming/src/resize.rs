//! The sizes of a client's terminal: a stream of JSON objects, which may be split anywhere.
//!
//! Only the latest size counts, so nothing is queued. A client that sends nonsense loses its sizes, and not its
//! session. Who changes the terminal is the backend.

use std::convert::Infallible;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::timeout;

use wharf_types::TerminalSize;

use crate::channel::Inbound;

/// The longest unfinished object, in bytes.
const OBJECT_LIMIT: usize = 1024;

/// A size as clients write it: the reference client with capitals, others without.
#[derive(Deserialize)]
struct Written {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// The latest size, once one has arrived.
pub(crate) type Sizes = watch::Receiver<Option<TerminalSize>>;

/// Waits for the first size, for at most this long.
pub(crate) async fn first(mut sizes: Sizes, patience: Duration) -> Option<TerminalSize> {
    let told = timeout(patience, sizes.wait_for(Option::is_some)).await;
    *told.ok()?.ok()?
}

/// Takes each size as it arrives. After an invalid one the stream is ignored, and the session continues.
pub(crate) async fn follow(
    stream: Option<Inbound>,
    latest: watch::Sender<Option<TerminalSize>>,
) -> Infallible {
    if let Some(mut stream) = stream {
        let mut text = Vec::new();
        while let Some(bytes) = stream.recv().await {
            text.extend_from_slice(&bytes);
            match last_size(&mut text) {
                Ok(None) => {}
                Ok(size) => drop(latest.send_replace(size)),
                Err(error) => {
                    tracing::debug!(%error, "a client sent an invalid terminal size");
                    break;
                }
            }
            if text.len() > OBJECT_LIMIT {
                break;
            }
        }
    }
    // Nobody needs to wait for a size any longer.
    drop(latest);
    std::future::pending().await
}

/// Removes all complete objects from the front, and returns the last one.
fn last_size(text: &mut Vec<u8>) -> Result<Option<TerminalSize>, serde_json::Error> {
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Written>();
    let mut last = None;
    let whole = loop {
        let whole = objects.byte_offset();
        match objects.next() {
            None => break text.len(),
            Some(Ok(Written { width, height })) => last = Some(TerminalSize { width, height }),
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
        let expected = [(80, 24), (132, 43), (1, 65535)];
        assert_eq!(sizes, expected.map(|(width, height)| TerminalSize { width, height }));
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
