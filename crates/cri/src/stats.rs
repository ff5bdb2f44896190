//! Statistics of containers and pods for the CRI. What cannot be read is left out, never reported as 0.
//!
//! The numbers are the kernel's; here they get the CRI's names and units. A pod's are those of its own cgroup, not the
//! sum of its containers'.

use wharf_cgroup::{Bound, Extent, Pressure, PressureLine, Stats};
use wharf_cri_api::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use wharf_network::InterfaceStats;
use wharf_pods::{Container, Engine, Pod, PodUsage, Traffic};

fn value(value: Option<u64>) -> Option<UInt64Value> {
    value.map(|value| UInt64Value { value })
}

/// Statistics of one container; what cannot be read is left out. Blocking: it reads the kernel's files.
pub(crate) fn container_stats(engine: &Engine, container: &Container) -> ContainerStats {
    let attributes = container.with_config(|config| ContainerAttributes {
        id: container.id().to_string(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    });
    let now = wharf_sys::clock::now_ns();
    let stats = container.usage(Extent::Usage);
    let rate = stats.as_ref().and_then(|stats| container.cpu_rate(now, stats.cpu.usage_ns));
    ContainerStats {
        attributes: Some(attributes),
        cpu: stats.as_ref().map(|stats| cpu(stats, now, rate)),
        memory: stats.as_ref().map(|stats| memory(stats, now)),
        writable_layer: writable_layer(engine, container, now),
        swap: stats.as_ref().map(|stats| swap(stats, now)),
        io: stats.as_ref().map(|stats| io(stats, now)),
    }
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
    let usage = engine.written(container)?;
    let mountpoint = engine.root().to_string_lossy().into_owned();
    Some(FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier { mountpoint }),
        used_bytes: value(Some(usage.bytes)),
        inodes_used: value(Some(usage.inodes)),
    })
}

/// Statistics of a pod: of its cgroup, which has counted everything that its containers used, those that are gone
/// included, and of its network, which may be read for many pods at once. Blocking: it reads the kernel's files.
pub(crate) fn pod_stats(engine: &Engine, pod: &Pod, traffic: &Traffic) -> PodSandboxStats {
    let now = wharf_sys::clock::now_ns();
    let PodUsage { stats, cpu_rate } = engine.pod_usage(pod, now);
    let containers = pod.containers();
    let live = containers.iter().filter(|container| !container.is_exited());
    let config = pod.config();
    PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: pod.id().to_string(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        linux: Some(LinuxPodSandboxStats {
            cpu: Some(cpu(&stats, now, cpu_rate)),
            memory: Some(memory(&stats, now)),
            network: network(traffic.of(pod), now),
            process: Some(ProcessUsage { timestamp: now, process_count: value(stats.pids.current) }),
            containers: live.map(|container| container_stats(engine, container)).collect(),
            io: Some(io(&stats, now)),
        }),
        windows: None,
    }
}

fn network(interfaces: Vec<InterfaceStats>, timestamp: i64) -> Option<NetworkUsage> {
    let mut usages = interfaces.into_iter().map(|interface| NetworkInterfaceUsage {
        name: interface.name,
        rx_bytes: value(Some(interface.rx_bytes)),
        rx_errors: value(Some(interface.rx_errors)),
        tx_bytes: value(Some(interface.tx_bytes)),
        tx_errors: value(Some(interface.tx_errors)),
    });
    // Without a default interface there is no message: the kubelet assumes that it has one.
    let default_interface = Some(usages.next()?);
    Some(NetworkUsage { timestamp, default_interface, interfaces: usages.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 77;

    fn some(value: u64) -> Option<UInt64Value> {
        Some(UInt64Value { value })
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let stats = Stats::default();
        assert_eq!(cpu(&stats, NOW, None), CpuUsage { timestamp: NOW, ..CpuUsage::default() });
        assert_eq!(memory(&stats, NOW), MemoryUsage { timestamp: NOW, ..MemoryUsage::default() });
        assert_eq!(swap(&stats, NOW), SwapUsage { timestamp: NOW, ..SwapUsage::default() });
        assert_eq!(io(&stats, NOW), IoUsage { timestamp: NOW, psi: None });
        assert_eq!(network(Vec::new(), NOW), None, "a message without an interface would be a fault");
    }

    #[test]
    fn available_memory_is_reported_only_with_a_limit() {
        let table = [
            (Some(Bound::At(100)), Some(30), some(70)),
            (Some(Bound::At(100)), Some(130), some(0)),
            (Some(Bound::Unlimited), Some(30), None),
            (None, Some(30), None),
            (Some(Bound::At(100)), None, None),
        ];
        for (limit, working_set, available) in table {
            let mut stats = Stats::default();
            stats.memory.limit = limit;
            stats.memory.working_set_bytes = working_set;
            assert_eq!(memory(&stats, NOW).available_bytes, available, "{limit:?} {working_set:?}");
        }
    }

    #[test]
    fn available_swap_is_reported_only_with_a_limit() {
        let table = [
            (Some(Bound::At(10)), Some(4), some(6)),
            (Some(Bound::At(10)), Some(14), some(0)),
            (Some(Bound::Unlimited), Some(4), None),
            (Some(Bound::At(10)), None, None),
        ];
        for (limit, usage, available) in table {
            let mut stats = Stats::default();
            stats.swap.limit = limit;
            stats.swap.usage_bytes = usage;
            let swap = swap(&stats, NOW);
            assert_eq!(
                (swap.swap_available_bytes, swap.swap_usage_bytes),
                (available, value(usage)),
                "{limit:?}"
            );
        }
    }

    #[test]
    fn figures_are_where_the_kubelet_looks_for_them() {
        let line = |total_ns| PressureLine { avg10: 1.0, avg60: 2.0, avg300: 3.0, total_ns };
        let mut stats = Stats::default();
        stats.cpu.usage_ns = Some(5);
        stats.cpu.pressure = Some(Pressure { some: line(8), full: Some(line(9)) });
        stats.memory.page_faults = Some(6);
        stats.memory.major_page_faults = Some(7);
        let used = cpu(&stats, NOW, Some(4));
        assert_eq!((used.usage_core_nano_seconds, used.usage_nano_cores), (some(5), some(4)));
        let pressure = used.psi.unwrap();
        assert_eq!((pressure.some.unwrap().total, pressure.full.unwrap().total), (8, 9));
        let memory = memory(&stats, NOW);
        assert_eq!((memory.page_faults, memory.major_page_faults), (some(6), some(7)));
    }

    #[test]
    fn the_first_interface_is_the_default_one_and_reported_once() {
        let interface = |name: &str, rx_bytes| InterfaceStats {
            name: name.to_owned(),
            rx_bytes,
            ..InterfaceStats::default()
        };
        let usage = network(vec![interface("eth0", 1), interface("net1", 2)], NOW).unwrap();
        let default = usage.default_interface.unwrap();
        assert_eq!((default.name.as_str(), default.rx_bytes), ("eth0", some(1)));
        let others: Vec<_> = usage.interfaces.iter().map(|other| other.name.as_str()).collect();
        assert_eq!(others, ["net1"]);
    }
}
