//! Pods as the streaming server sees them: processes and ports, through descriptors.
//!
//! Nothing is started when a URL is issued; a container that does not run is refused already then. The command runs,
//! or the client is attached, when the URL is used.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tonic::Status;
use wharf_cri_api::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use wharf_pods::{Engine, Interactive};
use wharf_streaming::{
    AttachGrant, Backend, BackendError, ExecGrant, PortForwardGrant, Resize, Session, Urls,
};
use wharf_types::{PodId, StreamOptions, TerminalSize, chain};

use crate::status::{self, Fault};

/// The backend of the streaming server.
#[derive(Debug, Clone)]
pub struct Streams(Arc<Engine>);

impl Streams {
    /// The backend over an engine of pods.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        Self(engine)
    }
}

impl Backend for Streams {
    async fn exec(&self, grant: ExecGrant, size: Option<TerminalSize>) -> Result<Session, BackendError> {
        let started = self.0.exec(grant.container.as_str(), grant.command, grant.wanted, size).await?;
        Ok(session(started))
    }

    async fn attach(&self, grant: AttachGrant) -> Result<Session, BackendError> {
        let attached = self.0.attach(grant.container.as_str(), grant.wanted).await?;
        Ok(session(attached))
    }

    async fn connect(&self, pod: &PodId, port: u16) -> Result<OwnedFd, BackendError> {
        let connected = self.0.connect_port(pod.as_str(), port).await?;
        Ok(connected.into_std()?.into())
    }

    async fn ended(&self, pod: &PodId) {
        self.0.pod_ended(pod.as_str()).await;
    }
}

fn session(process: Interactive) -> Session {
    let Interactive { stdin, stdout, stderr, terminal, exit } = process;
    let resize = terminal.map(|terminal| -> Resize {
        Box::new(move |TerminalSize { width, height }| {
            if let Err(error) = wharf_sys::terminal::resize(terminal.as_fd(), width, height) {
                tracing::debug!(%error, "a terminal kept its size");
            }
        })
    });
    let exit = Box::pin(async move { exit.await.map_err(|error| chain(&error)) });
    Session { stdin, stdout, stderr, resize, exit }
}

/// The URL for a command, if its container runs.
pub(crate) fn exec_url(engine: &Engine, urls: &Urls, request: ExecRequest) -> Result<String, Status> {
    if request.cmd.is_empty() {
        return Err(status::of(Fault::empty("cmd")));
    }
    let ExecRequest { stdin, stdout, stderr, tty: terminal, .. } = request;
    let container = engine.running_container(&request.container_id).map_err(status::of)?;
    let wanted = StreamOptions { stdin, stdout, stderr, terminal };
    let url = urls.exec(ExecGrant { container, command: request.cmd, wanted });
    url.map_err(status::of)
}

/// The URL for a container's own streams, if it has not exited.
pub(crate) fn attach_url(engine: &Engine, urls: &Urls, request: &AttachRequest) -> Result<String, Status> {
    let &AttachRequest { stdin, stdout, stderr, tty: terminal, .. } = request;
    let container = engine.live_container(&request.container_id).map_err(status::of)?;
    let wanted = StreamOptions { stdin, stdout, stderr, terminal };
    urls.attach(AttachGrant { container, wanted }).map_err(status::of)
}

/// The URL for connections into a pod, if the pod is ready.
pub(crate) fn port_forward_url(
    engine: &Engine,
    urls: &Urls,
    request: &PortForwardRequest,
) -> Result<String, Status> {
    let pod = engine.ready_pod(&request.pod_sandbox_id).map_err(status::of)?;
    let port = |&port| match u16::try_from(port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(status::of(out_of_range(port))),
    };
    let ports = request.port.iter().map(port).collect::<Result<_, _>>()?;
    let url = urls.port_forward(PortForwardGrant { pod: pod.id().clone(), ports });
    url.map_err(status::of)
}

fn out_of_range(port: i32) -> Fault {
    Fault::Invalid { field: "port", problem: format!("{port} is not between 1 and 65535") }
}
