//! Connecting to a runtime's socket.

use std::path::Path;

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Uri};

/// Lists of a hundred pods fit the default of 4 MiB only by luck.
pub const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// Connects to the runtime that listens at a path.
///
/// # Errors
/// Nobody listens there.
pub async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let path = socket.to_owned();
    // The address is not used by the connector, but a request must have one.
    Channel::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .with_context(|| format!("connect to {}", socket.display()))
}
