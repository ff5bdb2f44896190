//! Statistics of containers and pods, read from open files of their cgroups and sockets of their networks.

use std::sync::PoisonError;

use wharf_cgroup::{Bound, Pressure, PressureLine, Stats};
use wharf_cri_api::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};

use crate::container::Container;
use crate::engine::Engine;
use crate::pod::Pod;

fn value(value: Option<u64>) -> Option<UInt64Value> {
    value.map(|value| UInt64Value { value })
}

/// Statistics of one container; what cannot be read is left out.
#[must_use]
pub fn container_stats(engine: &Engine, container: &Container) -> ContainerStats {
    let record = container.record();
    let now = wharf_sys::clock::now_ns();
    let stats = read(container);
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: container.id.to_string(),
            metadata: record.config.metadata,
            labels: record.config.labels,
            annotations: record.config.annotations,
        }),
        cpu: stats.as_ref().map(|stats| cpu(stats, now, rate(container, stats, now))),
        memory: stats.as_ref().map(|stats| memory(stats, now)),
        writable_layer: writable_layer(engine, container, now),
        swap: stats.as_ref().map(|stats| swap(stats, now)),
        io: stats.as_ref().map(|stats| IoUsage { timestamp: now, psi: stats.io_pressure.as_ref().map(psi) }),
    }
}

pub(crate) fn read(container: &Container) -> Option<Stats> {
    if container.is_exited() {
        return None;
    }
    container
        .stats
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(wharf_cgroup::StatsReader::read)
}

/// Nanoseconds of processor time a second since the figure before, once there is one.
fn rate(container: &Container, stats: &Stats, now: i64) -> Option<u64> {
    let usage = stats.cpu.usage_ns?;
    let mut last = container.last_cpu.lock().unwrap_or_else(PoisonError::into_inner);
    let before = last.replace((now, usage));
    let (then, old) = before?;
    let elapsed = u128::try_from(now - then).ok().filter(|&elapsed| elapsed > 0)?;
    u64::try_from(u128::from(usage.saturating_sub(old)) * 1_000_000_000 / elapsed).ok()
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

/// Statistics of a pod: the sum of its containers, and its network.
#[must_use]
pub fn pod_stats(engine: &Engine, pod: &Pod) -> PodSandboxStats {
    let now = wharf_sys::clock::now_ns();
    let containers: Vec<_> = pod.containers();
    let read: Vec<Stats> = containers.iter().filter_map(|container| read(container)).collect();
    let sum = |of: &dyn Fn(&Stats) -> Option<u64>| value(read.iter().map(of).sum::<Option<u64>>());
    let cpu = CpuUsage {
        timestamp: now,
        usage_core_nano_seconds: sum(&|stats| stats.cpu.usage_ns),
        usage_nano_cores: None,
        psi: None,
    };
    let memory = MemoryUsage {
        timestamp: now,
        working_set_bytes: sum(&|stats| stats.memory.working_set_bytes),
        available_bytes: None,
        usage_bytes: sum(&|stats| stats.memory.usage_bytes),
        rss_bytes: sum(&|stats| stats.memory.rss_bytes),
        page_faults: sum(&|stats| stats.memory.page_faults),
        major_page_faults: sum(&|stats| stats.memory.major_page_faults),
        psi: None,
    };
    let process = ProcessUsage { timestamp: now, process_count: sum(&|stats| stats.pids.current) };
    let linux = LinuxPodSandboxStats {
        cpu: Some(cpu),
        memory: Some(memory),
        network: network(pod, now),
        process: Some(process),
        containers: containers.iter().map(|container| container_stats(engine, container)).collect(),
        io: None,
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

fn network(pod: &Pod, timestamp: i64) -> Option<NetworkUsage> {
    let interfaces = pod.network_stats().as_ref()?.read().ok()?;
    let mut usages = interfaces.into_iter().map(|interface| NetworkInterfaceUsage {
        name: interface.name,
        rx_bytes: value(Some(interface.rx_bytes)),
        rx_errors: value(Some(interface.rx_errors)),
        tx_bytes: value(Some(interface.tx_bytes)),
        tx_errors: value(Some(interface.tx_errors)),
    });
    let default_interface = usages.next();
    Some(NetworkUsage { timestamp, default_interface, interfaces: usages.collect() })
}
