//! The resource usage of containers and pods, as numbers. They are read from the kernel on request, and so this blocks,
//! except for what was measured before.

use std::collections::HashMap;
use std::path::Path;

use wharf_cgroup::{Cgroups, Extent, Meter, Stats};
use wharf_host::Unready;
use wharf_network::InterfaceStats;
use wharf_snapshots::tree::Usage;
use wharf_types::PodId;

use super::Engine;
use crate::container::Container;
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

    /// The pids of its processes; `None` if they cannot be read.
    #[must_use]
    pub fn pids(&self) -> Option<Vec<i32>> {
        self.cgroup()?.pids().ok()
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
        let mut stats = self.read_pod(pod, &mut meter).unwrap_or_else(Stats::unused);
        meter.steady(&mut stats);
        let cpu_rate = meter.rate(now_ns, stats.cpu.usage_ns);
        PodUsage { stats, cpu_rate }
    }

    /// Reads a pod's cgroup now; `None` if it does not exist. A kubelet makes and removes its pods' cgroups itself.
    fn read_pod(&self, pod: &Pod, meter: &mut Meter) -> Option<Stats> {
        let path = self.pod_cgroup(pod).ok()?;
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
        wharf_host::unready(&self.parts.layout)
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
