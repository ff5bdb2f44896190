//! Statistics of containers and pods, read from the files of their cgroups and from sockets in their networks.

mod meter;

use wharf_cgroup::{Bound, Extent, Pressure, PressureLine, Stats, StatsReader};
use wharf_cri_api::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};

use crate::container::Container;
use crate::engine::{Engine, pod_cgroup};
use crate::pod::Pod;

pub(crate) use meter::Meter;

fn value(value: Option<u64>) -> Option<UInt64Value> {
    value.map(|value| UInt64Value { value })
}

/// Statistics of one container; what cannot be read is left out. Blocking: the kernel's files are read.
#[must_use]
pub fn container_stats(engine: &Engine, container: &Container) -> ContainerStats {
    let attributes = container.with_record(|record| ContainerAttributes {
        id: container.id.to_string(),
        metadata: record.config.metadata.clone(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    });
    let now = wharf_sys::clock::now_ns();
    let stats = read(container, Extent::Usage);
    let rate = stats.as_ref().and_then(|stats| {
        let mut meter = container.meter.lock();
        meter.rate(now, stats.cpu.usage_ns)
    });
    ContainerStats {
        attributes: Some(attributes),
        cpu: stats.as_ref().map(|stats| cpu(stats, now, rate)),
        memory: stats.as_ref().map(|stats| memory(stats, now)),
        writable_layer: writable_layer(engine, container, now),
        swap: stats.as_ref().map(|stats| swap(stats, now)),
        io: stats.as_ref().map(|stats| io(stats, now)),
    }
}

pub(crate) fn read(container: &Container, extent: Extent) -> Option<Stats> {
    if container.is_exited() {
        return None;
    }
    container.stats.as_ref().map(|reader| reader.read(extent))
}

fn cpu(stats: &Stats, timestamp: i64, rate: Option<u64>) -> CpuUsage {
    CpuUsage {
        timestamp,
        usage_core_nano_seconds: value(stats.cpu.usage_ns),
        usage_nano_cores: value(rate),
        psi: stats.cpu.pressure.as_ref().map(psi),
    }
}

fn memory(stats: &Stats, timestamp: i64) -> MemoryUsage {
    let memory = &stats.memory;
    let limit = match memory.limit {
        Some(Bound::At(limit)) => Some(limit),
        _ => None,
    };
    let available = limit.and_then(|limit| Some(limit.saturating_sub(memory.working_set_bytes?)));
    MemoryUsage {
        timestamp,
        working_set_bytes: value(memory.working_set_bytes),
        available_bytes: value(available),
        usage_bytes: value(memory.usage_bytes),
        rss_bytes: value(memory.rss_bytes),
        page_faults: value(memory.page_faults),
        major_page_faults: value(memory.major_page_faults),
        psi: memory.pressure.as_ref().map(psi),
    }
}

fn swap(stats: &Stats, timestamp: i64) -> SwapUsage {
    let available = match (&stats.swap.limit, stats.swap.usage_bytes) {
        (Some(Bound::At(limit)), Some(usage)) => Some(limit.saturating_sub(usage)),
        _ => None,
    };
    SwapUsage {
        timestamp,
        swap_available_bytes: value(available),
        swap_usage_bytes: value(stats.swap.usage_bytes),
    }
}

fn io(stats: &Stats, timestamp: i64) -> IoUsage {
    IoUsage { timestamp, psi: stats.io_pressure.as_ref().map(psi) }
}

fn psi(pressure: &Pressure) -> PsiStats {
    let data = |line: &PressureLine| PsiData {
        total: line.total_ns,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    PsiStats { full: pressure.full.as_ref().map(data), some: Some(data(&pressure.some)) }
}

fn writable_layer(engine: &Engine, container: &Container, timestamp: i64) -> Option<FilesystemUsage> {
    let usage = engine.parts.snapshots.known_usage(&container.id)?;
    let mountpoint = engine.parts.layout.root().to_string_lossy().into_owned();
    Some(FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: value(Some(usage.bytes)),
        inodes_used: value(Some(usage.inodes)),
    })
}

/// Statistics of a pod: those of its cgroup, which has all that its containers used, also those that are gone, and of its
/// network. Blocking: the kernel's files are read.
#[must_use]
pub fn pod_stats(engine: &Engine, pod: &Pod) -> PodSandboxStats {
    let now = wharf_sys::clock::now_ns();
    let (stats, rate) = {
        let mut meter = pod.meter.lock();
        let mut stats = read_pod(engine, pod).unwrap_or_else(unused);
        meter.steady(&mut stats);
        let rate = meter.rate(now, stats.cpu.usage_ns);
        (stats, rate)
    };
    let containers = pod.containers();
    let live = containers.iter().filter(|container| !container.is_exited());
    let linux = LinuxPodSandboxStats {
        cpu: Some(cpu(&stats, now, rate)),
        memory: Some(memory(&stats, now)),
        network: network(pod, now),
        process: Some(ProcessUsage { timestamp: now, process_count: value(stats.pids.current) }),
        containers: live.map(|container| container_stats(engine, container)).collect(),
        io: Some(io(&stats, now)),
    };
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.id.to_string(),
            metadata: pod.config.metadata.clone(),
            labels: pod.config.labels.clone(),
            annotations: pod.config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

/// A pod's cgroup now; `None` where it is not there. A kubelet makes and removes those of its own.
fn read_pod(engine: &Engine, pod: &Pod) -> Option<Stats> {
    let reader = pod.stats.get_or_init(|| {
        let path = pod_cgroup(&engine.options.cgroup_parent, pod).ok()?;
        StatsReader::at(&engine.parts.cgroups, &path).ok()
    });
    reader.as_ref().map(|reader| reader.read(Extent::Tasks)).filter(|stats| *stats != Stats::default())
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

fn network(pod: &Pod, timestamp: i64) -> Option<NetworkUsage> {
    let interfaces = pod.network_stats().as_ref()?.read().ok()?;
    let mut usages = interfaces.into_iter().map(|interface| NetworkInterfaceUsage {
        name: interface.name,
        rx_bytes: value(Some(interface.rx_bytes)),
        rx_errors: value(Some(interface.rx_errors)),
        tx_bytes: value(Some(interface.tx_bytes)),
        tx_errors: value(Some(interface.tx_errors)),
    });
    // Without one there is no message: the kubelet takes it for granted that it is there.
    let default_interface = Some(usages.next()?);
    Some(NetworkUsage { timestamp, default_interface, interfaces: usages.collect() })
}
