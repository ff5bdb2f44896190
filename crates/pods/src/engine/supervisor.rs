//! A pod's supervisor as a process: whether it answers, and its end.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use wharf_cgroup::{Cgroup, CgroupPath};
use wharf_wire::v1::{self, reply, request};

use super::{Engine, KILL_PATIENCE};
use crate::client::Client;
use crate::error::{Error, Stage, blocking};
use crate::pod::Pod;

/// How long a supervisor may take for what it does at once: to greet, or to kill. When a daemon starts, all pods wait for
/// the slowest.
pub(super) const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// The name of the supervisors' cgroup below the configured parent.
const CGROUP: &str = "supervisors";

impl Engine {
    /// The directory of the cgroup (v2) of all supervisors, made if it is not there; `None` on v1. In that of the daemon they
    /// would end with it wherever a unit is ended with all of its processes, and in their pods' they would be killed for
    /// want of memory.
    pub(super) fn supervisors_cgroup(&self) -> Result<Option<File>, Error> {
        const STAGE: &str = "making the supervisors' cgroup";
        let parent = CgroupPath::new(&self.options.cgroup_parent);
        let path = parent.and_then(|parent| parent.child(CGROUP)).stage(STAGE)?;
        let cgroups = &self.parts.cgroups;
        let open = |cgroup: Cgroup| cgroup.entry().directory.map(File::open).transpose();
        // Another pod may be making it right now: then it is whole once this one has made it, too.
        if let Ok(Ok(directory)) = cgroups.open(&path).map(open) {
            return Ok(directory);
        }
        open(cgroups.create(&path).stage(STAGE)?).stage(STAGE)
    }

    /// What a supervisor says of itself and its containers; `None` if it does not answer soon.
    pub(crate) async fn greet(&self, client: &Client) -> Option<v1::State> {
        let hello = request::Body::Hello(v1::Hello { version: wharf_wire::VERSION });
        let answer = client.call("greeting the pod's supervisor", hello, &[]);
        match tokio::time::timeout(HELLO_PATIENCE, answer).await {
            Ok(Ok(reply::Result::State(state))) => Some(state),
            _ => None,
        }
    }

    /// Asks the supervisor to end, and makes sure that it has.
    pub(crate) async fn end_supervisor(&self, pod: &Arc<Pod>) {
        if let Ok(client) = pod.client() {
            let body = request::Body::Shutdown(v1::Shutdown {});
            drop(tokio::time::timeout(KILL_PATIENCE, client.call("ending the supervisor", body, &[])).await);
        }
        let process = pod.supervisor().take();
        if let Some(process) = process {
            // It has answered its end, or it must be ended: either way the wait is short.
            if let Err(error) = blocking(move || process.end()).await {
                tracing::warn!(pod = pod.id.short(), %error, "the supervisor may be left");
            }
        }
        pod.write_state().client = None;
    }
}

pub(crate) fn kill_supervisor(pod: &Pod) {
    tracing::warn!(pod = pod.id.short(), "a supervisor that does not answer is killed");
    if let Some(process) = &*pod.supervisor() {
        process.kill();
    }
}
