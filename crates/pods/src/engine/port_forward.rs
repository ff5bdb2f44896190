//! Connections to ports of a pod, made with sockets that belong to the pod's network.
//!
//! No process enters the pod: a socket stays in the network namespace in which it was made, whoever uses it. So the
//! address is the pod's own localhost, and the host's only for a pod on the host's network.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use wharf_network::{TcpSockets, Unreachable};

use super::Engine;
use crate::error::{Error, Stage, blocking};
use crate::pod::Pod;

const STAGE: &str = "port-forward";
/// A listener on the same machine accepts at once, or its queue is full.
const PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// A pod that is ready.
    ///
    /// # Errors
    /// NotFound; FailedPrecondition if it is not ready; a pod whose runtime keeps its ports to itself.
    pub fn ready_pod(&self, id: &str) -> Result<Arc<Pod>, Error> {
        let pod = self.pod(id)?;
        if pod.is_ready() {
            self.options.handlers.check_reach(pod.handler(), "forward to the pod's localhost")?;
            return Ok(pod);
        }
        Err(pod.wrong_state("not ready"))
    }

    /// Waits for the end of a pod; returns at once if the pod does not exist.
    pub async fn pod_ended(&self, id: &str) {
        if let Ok(pod) = self.pod(id) {
            pod.contact().gone().await;
        }
    }

    /// Connects to a port of localhost in the pod, over IPv4 and then over IPv6.
    ///
    /// # Errors
    /// NotFound, FailedPrecondition if the pod is not ready, Unavailable if nothing listens.
    pub async fn connect_port(&self, pod: &str, port: u16) -> Result<TcpStream, Error> {
        let pod = self.ready_pod(pod)?;
        let netns = match pod.is_host_network() {
            true => None,
            false => Some(self.network_namespace(&pod).await?),
        };
        let sockets = blocking(move || TcpSockets::open(netns.as_ref().map(AsFd::as_fd)).stage(STAGE));
        let TcpSockets { v4, v6 } = sockets.await?;
        let refused = match connect(v4, (Ipv4Addr::LOCALHOST, port).into()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let by_v6 = match v6 {
            Some(v6) => connect(v6, (Ipv6Addr::LOCALHOST, port).into()).await.ok(),
            None => None,
        };
        by_v6.ok_or_else(|| Error::at(STAGE, Unreachable { port, pod: pod.id().clone(), source: refused }))
    }
}

async fn connect(socket: OwnedFd, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    tokio::time::timeout(PATIENCE, socket.connect(address)).await?
}
