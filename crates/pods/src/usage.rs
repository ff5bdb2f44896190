//! What containers and pods use, as numbers: read off the kernel for whoever asks, and so blocking, but for what was
//! measured before.

use std::path::Path;

use wharf_cgroup::{Cgroups, Extent, Stats};
use wharf_host::Unready;
use wharf_network::InterfaceStats;
use wharf_snapshots::tree::Usage;

use crate::container::Container;
use crate::engine::{Engine, pod_cgroup};
use crate::pod::Pod;

/// What a pod uses.
#[derive(Debug)]
pub struct PodUsage {
    /// Of its cgroup.
    pub stats: Stats,
    /// Nanoseconds of processor time a second, once there were two readings.
    pub cpu_rate: Option<u64>,
}

impl Container {
    /// The figures of its cgroup; none once it has ended.
    #[must_use]
    pub fn usage(&self, extent: Extent) -> Option<Stats> {
        if self.is_exited() {
            return None;
        }
        self.cgroup().map(|cgroup| cgroup.stats(extent))
    }

    /// Nanoseconds of processor time a second, once there were two readings; this is one, of all the time it used.
    pub fn cpu_rate(&self, now_ns: i64, cpu_ns: Option<u64>) -> Option<u64> {
        self.meter().rate(now_ns, cpu_ns)
    }

    /// The numbers of its processes.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.cgroup().and_then(|cgroup| cgroup.pids().ok()).unwrap_or_default()
    }
}

impl Pod {
    /// The counters of its network interfaces; none on the host's network, or where they cannot be read.
    #[must_use]
    pub fn interfaces(&self) -> Vec<InterfaceStats> {
        let socket = self.network_stats();
        socket.as_ref().and_then(|socket| socket.read().ok()).unwrap_or_default()
    }
}

impl Engine {
    /// What a pod uses, which is what its cgroup has: all that its containers used, also those that are gone.
    pub fn pod_usage(&self, pod: &Pod, now_ns: i64) -> PodUsage {
        let mut meter = pod.meter();
        let mut stats = self.read_pod(pod).unwrap_or_else(unused);
        meter.steady(&mut stats);
        let cpu_rate = meter.rate(now_ns, stats.cpu.usage_ns);
        PodUsage { stats, cpu_rate }
    }

    /// A pod's cgroup now; `None` where it is not there. A kubelet makes and removes those of its own.
    fn read_pod(&self, pod: &Pod) -> Option<Stats> {
        let path = pod_cgroup(&self.options.cgroup_parent, pod).ok()?;
        let stats = self.parts.cgroups.at(&path).stats(Extent::Tasks);
        Some(stats).filter(|stats| *stats != Stats::default())
    }

    /// What a container has written, as it was measured last.
    #[must_use]
    pub fn written(&self, container: &Container) -> Option<Usage> {
        self.parts.snapshots.known_usage(container.id())
    }

    /// Why no pod can be made now, if so.
    #[must_use]
    pub fn unready(&self) -> Option<Unready> {
        wharf_host::unready(self.parts.layout.state())
    }

    /// The directory that writable layers are below.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.parts.layout.root()
    }

    /// The hierarchies of cgroups.
    #[must_use]
    pub fn cgroups(&self) -> &Cgroups {
        &self.parts.cgroups
    }
}

/// A pod whose cgroup is not there, as before its first container: nothing was used, and nothing is.
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
