//! A pod's supervisor as a process: its cgroup, and its end.

use std::fs::File;
use std::sync::Arc;

use wharf_cgroup::{Cgroup, CgroupPath};
use wharf_wire::v1::{self, request};

use super::supervision::Reached;
use super::{Engine, KILL_PATIENCE};
use crate::error::{Error, Stage};
use crate::link::Link;
use crate::pod::Pod;
use crate::supervisor::SupervisorError;

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

    /// Ends a pod's supervisor: by request, else by force.
    ///
    /// # Errors
    /// DeadlineExceeded if the kernel does not let it die; the next call goes on waiting.
    pub(crate) async fn end_supervisor(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        if let Link::Up(client) = pod.link.now()
            && !client.is_silent()
        {
            let shutdown = request::Body::Shutdown(v1::Shutdown {});
            drop(client.within(KILL_PATIENCE, "ending the supervisor", shutdown, &[]).await);
        }
        // One that never answered may not be known as a process yet.
        if pod.supervisor().is_none() && !pod.link.is_gone() {
            let _nobody_or_known: Reached = self.reach(pod).await;
        }
        pod.link.set(Link::Gone);
        let process = pod.supervisor().clone();
        if let Some(process) = process {
            process.kill();
            let ended = tokio::time::timeout(KILL_PATIENCE, process.ended()).await;
            let ended = ended.map_err(|_elapsed| SupervisorError::Undead { patience: KILL_PATIENCE });
            ended.stage("ending the supervisor")?;
            *pod.supervisor() = None;
        }
        Ok(())
    }
}
