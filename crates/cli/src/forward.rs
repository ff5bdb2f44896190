//! `wharf forward`: forwards connections from ports of this machine to a pod.

use std::net::Ipv4Addr;

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{self, Message};
use wharf_cri_api::v1::PortForwardRequest;

use crate::args::{Forward, Ports};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::{output, stream};

const PROTOCOL: &str = "v5.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Each channel begins with its port in two bytes.
const PORT_BYTES: usize = 2;

/// Forwards until interrupted.
pub(crate) async fn forward(daemon: &mut Daemon, forward: Forward) -> Result<(), Error> {
    let pod = daemon.listing().await?.pod(&forward.name)?.id.clone();
    for ports in forward.ports {
        let here = (Ipv4Addr::LOCALHOST, ports.here);
        let listener = TcpListener::bind(here).await;
        let listener = listener.map_err(|source| Error::Listen { port: ports.here, source })?;
        let bound = listener.local_addr().map_err(|source| Error::Listen { port: ports.here, source })?;
        output::report(&format!("forwarding {bound} to port {} of {}", ports.pod, forward.name));
        tokio::spawn(accept(daemon.clone(), listener, pod.clone(), ports));
    }
    tokio::signal::ctrl_c().await.map_err(|source| Error::Runtime { source })
}

async fn accept(daemon: Daemon, listener: TcpListener, pod: String, ports: Ports) {
    while let Ok((connection, _from)) = listener.accept().await {
        let (daemon, pod) = (daemon.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = carry(daemon, connection, pod, ports.pod).await {
                output::report(&wharf_types::chain(&error));
            }
        });
    }
}

/// One connection, in a session of its own. It lasts until the pod has closed it or the client has gone.
async fn carry(mut daemon: Daemon, connection: TcpStream, pod: String, port: u16) -> Result<(), Error> {
    let request = PortForwardRequest { pod_sandbox_id: pod, port: vec![port.into()] };
    let url = daemon.runtime.port_forward(request).await.map_err(Error::call("forwarding"))?.into_inner().url;
    let (sink, source) = stream::open(&url, PROTOCOL).await?.split();
    let (reader, writer) = connection.into_split();
    // Side by side, so that neither direction waits for the other.
    tokio::select! {
        done = from_pod(source, writer) => done,
        Err(error) = to_pod(reader, sink) => Err(error),
    }
}

/// Sends what the client writes, and its end. It never returns successfully, because the pod may still have something
/// to send.
async fn to_pod(
    mut reader: OwnedReadHalf,
    mut sink: impl Sink<Message, Error = tungstenite::Error> + Unpin,
) -> Result<std::convert::Infallible, Error> {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        sink.send(stream::channel(DATA, &buffer[..count])).await?;
    }
    sink.send(stream::channel(stream::END, &[DATA])).await?;
    std::future::pending().await
}

/// Passes on what the pod sends.
async fn from_pod(
    mut source: impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin,
    mut writer: OwnedWriteHalf,
) -> Result<(), Error> {
    let mut begun = [false; 2];
    while let Some(message) = source.next().await.transpose()? {
        let Message::Binary(bytes) = message else { continue };
        let Some((&channel @ (DATA | ERROR), bytes)) = bytes.split_first() else { continue };
        let Some(begun) = begun.get_mut(usize::from(channel)) else { continue };
        let skipped = if std::mem::replace(begun, true) { 0 } else { PORT_BYTES.min(bytes.len()) };
        let bytes = &bytes[skipped..];
        if channel == ERROR && !bytes.is_empty() {
            return Err(Error::Refused { message: String::from_utf8_lossy(bytes).into_owned() });
        }
        // The client may leave at any time.
        if writer.write_all(bytes).await.is_err() {
            break;
        }
    }
    Ok(())
}
