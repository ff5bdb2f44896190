//! The resource usage of containers and pods, as numbers. They are read from the kernel on request, and so this blocks,
//! except for what was measured before.

use std::path::Path;

use wharf_cgroup::{Cgroups, Extent, Stats};
use wharf_host::Unready;
use wharf_network::InterfaceStats;
use wharf_snapshots::tree::Usage;

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
        self.cgroup().map(|cgroup| cgroup.stats(extent))
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

impl Pod {
    /// The counters of its network interfaces; empty on the host's network, or if they cannot be read.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceStats> {
        let socket = self.network_stats();
        socket.as_ref().and_then(|socket| socket.read().ok()).unwrap_or_default()
    }
}

impl Engine {
    /// A pod's usage, which is that of its cgroup: everything its containers used, those that are gone included.
    pub fn pod_usage(&self, pod: &Pod, now_ns: i64) -> PodUsage {
        let mut meter = pod.meter();
        let mut stats = self.read_pod(pod).unwrap_or_else(unused);
        meter.steady(&mut stats);
        let cpu_rate = meter.rate(now_ns, stats.cpu.usage_ns);
        PodUsage { stats, cpu_rate }
    }

    /// Reads a pod's cgroup now; `None` if it does not exist. A kubelet makes and removes its pods' cgroups itself.
    fn read_pod(&self, pod: &Pod) -> Option<Stats> {
        let path = pod_cgroup(&self.options.cgroup_parent, pod).ok()?;
        let stats = self.parts.cgroups.at(&path).stats(Extent::Tasks);
        Some(stats).filter(|stats| *stats != Stats::default())
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
