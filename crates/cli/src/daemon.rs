//! The connection to wharfd, and the calls that several commands make.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use wharf_cri_api::admin::admin_client::AdminClient;
use wharf_cri_api::admin::{PodRequest, RequestsRequest};
use wharf_cri_api::v1::image_service_client::ImageServiceClient;
use wharf_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use wharf_cri_api::v1::{
    Container, ContainerConfig, ContainerStatus, ContainerStatusRequest, Image, ImageSpec,
    ImageStatusRequest, ListContainersRequest, ListPodSandboxRequest, PodSandboxStatusRequest,
    RemovePodSandboxRequest, StopContainerRequest, VersionRequest,
};
use wharf_types::limits::MESSAGE_LIMIT_BYTES;

use crate::args::Socket;
use crate::error::{Error, is_zombie};
use crate::find::Listing;
use crate::listener;
use crate::output::report;

/// How long wharfd may take to respond to Version, which waits for nothing but wharfd itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a call that makes or removes something may take until that is said.
const SLOW: Duration = Duration::from_secs(10);

/// Waits for a call that makes or removes something. If it takes long, that is said once.
pub(crate) async fn patiently<T>(call: impl Future<Output = T>) -> T {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    let tell = || {
        if !IS_TOLD.swap(true, Ordering::Relaxed) {
            report("wharfd is still working on it\n  check whether a disk has stalled: wharf doctor");
        }
    };
    within(SLOW, tell, call).await
}

async fn within<T>(patience: Duration, tell: impl FnOnce(), call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    match tokio::time::timeout(patience, &mut call).await {
        Ok(ended) => ended,
        Err(_elapsed) => {
            tell();
            call.await
        }
    }
}

/// What was asked for; `None` if it has been removed since it was listed.
pub(crate) fn still_there<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(Error::Call { status, .. }) if status.code() == Code::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Connects without waiting: for a place in a full queue, it would wait as long as nobody takes from it.
fn dial(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let own = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(own.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(own)
}

/// A connected wharfd.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    pub(crate) admin: AdminClient<Channel>,
    /// The process that listens, if it is known: in another PID namespace it has no number here.
    pub(crate) pid: Option<i32>,
}

impl Daemon {
    /// Connects, and waits until wharfd responds. If that takes long, it says so.
    pub(crate) async fn connect(socket: &Socket) -> Result<Self, Error> {
        let mut daemon = Self::reach(socket).await?;
        if let Err(silence) = daemon.greet().await {
            report(&format!("{silence}\n  waiting until it does"));
            // What is wrong with the answer, if anything, the command itself will find.
            drop(daemon.runtime.version(VersionRequest::default()).await);
        }
        Ok(daemon)
    }

    /// Connects to a wharfd that responds.
    pub(crate) async fn connect_now(socket: &Socket) -> Result<Self, Error> {
        let mut daemon = Self::reach(socket).await?;
        daemon.greet().await?;
        Ok(daemon)
    }

    async fn greet(&mut self) -> Result<(), Error> {
        let pid = self.pid;
        let answer = self.runtime.version(VersionRequest::default());
        let answered = tokio::time::timeout(PATIENCE, answer).await;
        answered.map(drop).map_err(|_elapsed| Error::Unresponsive { pid })
    }

    /// Connects to whoever listens.
    async fn reach(socket: &Socket) -> Result<Self, Error> {
        let path = socket.path().to_owned();
        // The transport's errors do not distinguish these from all others.
        let pid = match dial(&path) {
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => {
                return Err(match (listener::at(&path), listener::running()) {
                    (Some(pid), _) => Error::SocketRemoved { socket: path, pid },
                    (None, Some(pid)) if is_zombie(pid) => Error::Unresponsive { pid: Some(pid) },
                    (None, Some(pid)) => Error::NotListening { socket: path, pid },
                    (None, None) => Error::NotRunning { socket: path },
                });
            }
            Err(Errno::EACCES | Errno::EPERM) => return Err(Error::Denied { socket: path }),
            // Its queue is full.
            Err(Errno::EAGAIN) => return Err(Error::Unresponsive { pid: listener::at(&path) }),
            Ok(stream) => getsockopt(&stream, PeerCredentials).map(|peer| peer.pid()).ok(),
            Err(_) => None,
        };
        let pid = pid.filter(|&pid| pid > 0);
        let unreachable = |source| Error::Unreachable { socket: path.clone(), source };
        let endpoint = Endpoint::try_from(format!("unix://{}", path.display())).map_err(unreachable)?;
        let channel = match endpoint.connect().await {
            // The connection above may have taken the last place.
            Err(_full) if dial(&path).err() == Some(Errno::EAGAIN) => {
                return Err(Error::Unresponsive { pid });
            }
            connected => connected.map_err(unreachable)?,
        };
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
                .max_encoding_message_size(MESSAGE_LIMIT_BYTES),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT_BYTES),
            admin: AdminClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT_BYTES),
            pid,
        })
    }

    /// Every pod and container.
    pub(crate) async fn listing(&mut self) -> Result<Listing, Error> {
        let pods = self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
        let pods = pods.map_err(Error::call("listing the pods"))?.into_inner().items;
        let containers = self.runtime.list_containers(ListContainersRequest::default()).await;
        let containers = containers.map_err(Error::call("listing the containers"))?.into_inner().containers;
        Ok(Listing { pods, containers })
    }

    /// The requests that the pods and their containers were created with; of one pod, if an id is given.
    pub(crate) async fn requests(&mut self, pod_id: &str) -> Result<Vec<PodRequest>, Error> {
        let answer = self.admin.requests(RequestsRequest { pod_id: pod_id.to_owned() }).await;
        let asking = || Error::call("asking what the pods are made of");
        let all = answer.map_err(asking())?.into_inner().try_collect().await;
        all.map_err(asking())
    }

    /// The request that a container was created with.
    pub(crate) async fn container_request(
        &mut self,
        container: &Container,
    ) -> Result<ContainerConfig, Error> {
        let pods = self.requests(&container.pod_sandbox_id).await?;
        let mut all = pods.into_iter().flat_map(|pod| pod.containers);
        let found = all.find(|request| request.container_id == container.id);
        found
            .and_then(|request| request.config)
            .ok_or(Error::Incomplete { what: "the container's description" })
    }

    pub(crate) async fn container_status(&mut self, id: &str) -> Result<ContainerStatus, Error> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.container_status(request).await;
        let answer = answer.map_err(Error::call("asking for the container"))?.into_inner();
        answer.status.ok_or(Error::Incomplete { what: "the container's status" })
    }

    /// The addresses of a pod; none if it is on this machine's network.
    pub(crate) async fn addresses(&mut self, pod_id: &str) -> Result<Vec<String>, Error> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod_id.to_owned(), verbose: false };
        let answer = self.runtime.pod_sandbox_status(request).await;
        let answer = answer.map_err(Error::call("asking for the pod"))?.into_inner();
        let network = answer.status.and_then(|status| status.network).unwrap_or_default();
        let others = network.additional_ips.into_iter().map(|address| address.ip);
        Ok(std::iter::once(network.ip).chain(others).filter(|ip| !ip.is_empty()).collect())
    }

    /// The image with a name or id, if it is on this machine.
    pub(crate) async fn image(&mut self, name: &str) -> Result<Option<Image>, Error> {
        let image = Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() });
        let answer = self.images.image_status(ImageStatusRequest { image, verbose: false }).await;
        Ok(answer.map_err(Error::call(format!("looking for the image {name}")))?.into_inner().image)
    }

    /// Stops a container: asks its program to exit, and kills it after the grace period.
    pub(crate) async fn stop_container(&mut self, id: &str, grace_s: u32) -> Result<(), Error> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: grace_s.into() };
        let stopped = self.runtime.stop_container(request).await;
        stopped.map(drop).map_err(Error::call("stopping the container"))
    }

    /// Removes a pod and everything in it.
    pub(crate) async fn remove_pod(&mut self, id: &str) -> Result<(), Error> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let removed = patiently(self.runtime.remove_pod_sandbox(request)).await;
        removed.map(drop).map_err(Error::call("removing the pod"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A wharfd that responds to nothing, as long as its socket exists.
    pub(crate) async fn silent() -> (Daemon, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wharf.sock");
        let listener = UnixListener::bind(&path).unwrap();
        (Daemon::reach(&path.to_str().unwrap().parse().unwrap()).await.unwrap(), listener)
    }

    #[tokio::test]
    async fn a_call_that_takes_long_is_waited_for_and_told() {
        for (patience_ms, is_slow) in [(60_000, false), (1, true)] {
            let mut is_told = false;
            let call = async {
                if is_slow {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                7
            };
            assert_eq!(within(Duration::from_millis(patience_ms), || is_told = true, call).await, 7);
            assert_eq!(is_told, is_slow);
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_removed_is_told_from_a_wharfd_that_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wharf.sock");
        let socket: Socket = path.to_str().unwrap().parse().unwrap();
        let refused = async || Daemon::connect_now(&socket).await.unwrap_err().to_string();
        assert!(refused().await.starts_with("wharfd is not running"));
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let told = refused().await;
        let words = format!("wharfd (pid {}) is running, but its socket", std::process::id());
        assert!(told.starts_with(&words) && told.contains("systemctl restart wharfd"), "{told}");
        drop(listener);
        assert!(refused().await.starts_with("wharfd is not running"));
    }

    #[tokio::test]
    async fn a_wharfd_whose_queue_is_full_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wharf.sock");
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let queue: Vec<_> = std::iter::from_fn(|| dial(&path).ok()).collect();
        assert!(!queue.is_empty());
        let socket: Socket = path.to_str().unwrap().parse().unwrap();
        let silent = Daemon::connect_now(&socket).await.unwrap_err();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(silent, Error::Unresponsive { pid: Some(pid) } if pid == own), "{silent}");
    }
}
