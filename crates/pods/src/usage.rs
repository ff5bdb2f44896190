//! The resource usage of containers and pods, as numbers. They are read from the kernel on request, and so this blocks,
//! except for what was measured before.

use std::collections::HashMap;
use std::path::Path;

use wharf_cgroup::{Cgroups, Extent, Meter, Stats};
use wharf_cri_api::v1::ContainerConfig;
use wharf_host::Unready;
use wharf_network::InterfaceStats;
use wharf_snapshots::tree::Usage;
use wharf_types::PodId;

use crate::container::Container;
use crate::engine::{Engine, pod_cgroup};
use crate::pod::Pod;

/// A pod's usage.
#[derive(Debug)]
pub struct PodUsage {
    /// The statistics of its cgroup.
    pub stats: Stats,
    /// Nanoseconds of CPU time per second; `None` before there are two readings.
    pub cpu_rate: Option<u64>,
}

impl Container {
    /// The statistics of its cgroup; `None` once it has exited.
    #[must_use]
    pub fn usage(&self, extent: Extent) -> Option<Stats> {
        if self.is_exited() {
            return None;
        }
        self.cgroup().map(|cgroup| cgroup.metered_stats(extent, &mut self.meter()))
    }

    /// Nanoseconds of CPU time per second, once there are two readings; `cpu_ns` is this one's total.
    pub fn cpu_rate(&self, now_ns: i64, cpu_ns: Option<u64>) -> Option<u64> {
        self.meter().rate(now_ns, cpu_ns)
    }

    /// The pids of its processes.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.cgroup().and_then(|cgroup| cgroup.pids().ok()).unwrap_or_default()
    }
}

/// The network traffic of pods that can be read without entering their networks.
#[derive(Debug, Default)]
pub struct Traffic(HashMap<PodId, InterfaceStats>);

impl Traffic {
    /// The counters of a pod's network interfaces; empty on the host's network, or if they cannot be read.
    #[must_use]
    pub fn of(&self, pod: &Pod) -> Vec<InterfaceStats> {
        match &*pod.network_stats() {
            Some(socket) => socket.read().unwrap_or_default(),
            None => self.0.get(pod.id()).cloned().into_iter().collect(),
        }
    }
}

/// Whether a container can make network interfaces of its own in its pod.
pub(crate) fn can_make_interfaces(config: &ContainerConfig) -> bool {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let added = context.and_then(|context| context.capabilities.as_ref());
    let is_enough = |name: &String| {
        let name = name.to_ascii_uppercase();
        matches!(name.strip_prefix("CAP_").unwrap_or(&name), "NET_ADMIN" | "ALL")
    };
    context.is_some_and(|context| context.privileged)
        || added.is_some_and(|added| {
            added.add_capabilities.iter().chain(&added.add_ambient_capabilities).any(is_enough)
        })
}

impl Engine {
    /// The traffic of all pods, in one reading.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        Traffic(self.parts.network.traffic())
    }

    /// The traffic of one pod.
    #[must_use]
    pub fn traffic_of(&self, pod: &Pod) -> Traffic {
        let stats = self.parts.network.traffic_of(pod.id());
        Traffic(stats.map(|stats| (pod.id().clone(), stats)).into_iter().collect())
    }

    /// A pod's usage, which is that of its cgroup: everything its containers used, those that are gone included.
    pub fn pod_usage(&self, pod: &Pod, now_ns: i64) -> PodUsage {
        let mut meter = pod.meter();
        let mut stats = self.read_pod(pod, &mut meter).unwrap_or_else(unused);
        meter.steady(&mut stats);
        let cpu_rate = meter.rate(now_ns, stats.cpu.usage_ns);
        PodUsage { stats, cpu_rate }
    }

    /// Reads a pod's cgroup now; `None` if it does not exist. A kubelet makes and removes its pods' cgroups itself.
    fn read_pod(&self, pod: &Pod, meter: &mut Meter) -> Option<Stats> {
        let path = pod_cgroup(&self.options.cgroup_parent, pod).ok()?;
        let stats = self.parts.cgroups.at(&path).metered_stats(Extent::Tasks, meter);
        Some(stats).filter(|stats| *stats != Stats::default())
    }

    /// Asks for measurements of what containers have written. While they are asked for, none is older than about ten
    /// seconds, unless there is very much to measure; after a pause this waits for the first, a second at most.
    pub async fn want_written(&self) {
        self.measurements.ask().await;
    }

    /// What a container has written, as last measured.
    #[must_use]
    pub fn written(&self, container: &Container) -> Option<Usage> {
        self.parts.snapshots.known_usage(container.id())
    }

    /// Why no pod can be made now, if so.
    #[must_use]
    pub fn unready(&self) -> Option<Unready> {
        wharf_host::unready(self.parts.layout.state())
    }

    /// The directory with all writable layers.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.parts.layout.root()
    }

    /// The cgroup hierarchies.
    #[must_use]
    pub fn cgroups(&self) -> &Cgroups {
        &self.parts.cgroups
    }
}

/// A pod without a cgroup, for example before its first container, has used nothing and uses nothing.
fn unused() -> Stats {
    let mut stats = Stats::default();
    stats.cpu.usage_ns = Some(0);
    stats.memory.usage_bytes = Some(0);
    stats.memory.working_set_bytes = Some(0);
    stats.memory.rss_bytes = Some(0);
    stats.memory.page_faults = Some(0);
    stats.memory.major_page_faults = Some(0);
    stats.pids.current = Some(0);
    stats
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{Capability, LinuxContainerConfig, LinuxContainerSecurityContext};

    #[test]
    fn who_may_administer_the_network_may_make_interfaces() {
        let with = |change: &dyn Fn(&mut LinuxContainerSecurityContext, &mut Capability)| {
            let (mut context, mut capabilities) = Default::default();
            change(&mut context, &mut capabilities);
            context.capabilities = Some(capabilities);
            let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
            can_make_interfaces(&ContainerConfig { linux: Some(linux), ..Default::default() })
        };
        assert!(!can_make_interfaces(&ContainerConfig::default()));
        assert!(with(&|context, _| context.privileged = true));
        for (name, can) in [("NET_ADMIN", true), ("cap_net_admin", true), ("all", true), ("NET_RAW", false)] {
            assert_eq!(with(&|_, added| added.add_capabilities = vec!["CHOWN".into(), name.into()]), can);
            assert_eq!(with(&|_, added| added.add_ambient_capabilities = vec![name.into()]), can);
        }
    }
}
