//! Metrics: all that a kubelet expects, with the labels that their descriptors announce.

use std::collections::{BTreeMap, BTreeSet};

use wharf_cri_api::v1::*;

use crate::client::Client;
use crate::world::run;

/// What a kubelet expects, without `container_` in front.
const EXPECTED: &str = "
    blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total \
    cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total \
    file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total \
    fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen \
    memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file \
    memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes \
    network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total \
    network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total \
    network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total \
    pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total \
    pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total \
    pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares \
    spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds \
    threads threads_max ulimits_soft";

/// What needs something that a kernel need not have: pressure, and v1's counters of huge pages.
const OF_THE_KERNEL: [&str; 2] = ["pressure_", "hugetlb_"];
/// What a container that has not used a disk need not have.
const OF_DISKS: [&str; 3] = ["blkio_", "fs_reads_", "fs_writes_"];

fn expected(except: &[&str]) -> BTreeSet<String> {
    let names = EXPECTED.split_ascii_whitespace();
    let names = names.filter(|name| !except.iter().any(|prefix| name.starts_with(prefix)));
    names.map(|name| format!("container_{name}")).collect()
}

async fn descriptors(client: &Client) -> BTreeMap<String, Vec<String>> {
    let asked = client.runtime.clone().list_metric_descriptors(ListMetricDescriptorsRequest {}).await;
    let all = asked.unwrap().into_inner().descriptors;
    assert!(all.iter().all(|one| !one.help.is_empty()));
    all.into_iter().map(|one| (one.name, one.label_keys)).collect()
}

/// Checks samples against the descriptors, and returns their names.
fn checked<'a>(
    samples: &'a [Metric],
    keys: &BTreeMap<String, Vec<String>>,
    (container, id): (&str, &str),
) -> BTreeSet<&'a str> {
    for sample in samples {
        let keys = &keys[&sample.name];
        assert_eq!(keys.len(), sample.label_values.len(), "{sample:?}");
        let label = |key: &str| &sample.label_values[keys.iter().position(|one| one == key).unwrap()];
        assert_eq!((label("pod").as_str(), label("namespace").as_str()), ("measured", "e2e"));
        assert_eq!((label("container").as_str(), label("id").as_str()), (container, id));
        let whole = sample.value.unwrap().value;
        match sample.double_value {
            Some(exact) => {
                assert_eq!(exact.value.floor(), f64::from(u32::try_from(whole).unwrap()), "{sample:?}")
            }
            None => assert!(!sample.name.ends_with("_seconds_total"), "{sample:?}"),
        }
    }
    samples.iter().map(|sample| sample.name.as_str()).collect()
}

#[test]
fn every_metric_that_a_kubelet_expects_is_there() {
    run(async |world| {
        let client = &world.client;
        let keys = descriptors(client).await;
        let missing: Vec<_> =
            expected(&OF_THE_KERNEL).into_iter().filter(|name| !keys.contains_key(name)).collect();
        assert_eq!(missing, Vec::<String>::new());
        let pod = client.run(&client.pod("measured")).await.unwrap();
        let mut config = client.container("main", "exec sleep 1000");
        let resources = config.linux.as_mut().unwrap().resources.as_mut().unwrap();
        (resources.cpu_quota, resources.cpu_period) = (20_000, 100_000);
        let id = client.launch(&pod, &config).await.unwrap();
        let asked = client.runtime.clone().list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await;
        let pods = asked.unwrap().into_inner().pod_metrics;
        let [measured] = pods.as_slice() else { panic!("{} pods", pods.len()) };
        let [own] = measured.container_metrics.as_slice() else { panic!("one container") };
        assert_eq!(
            (measured.pod_sandbox_id.as_str(), own.container_id.as_str()),
            (pod.as_str(), id.as_str())
        );
        let mut told = checked(&measured.metrics, &keys, ("", &pod));
        assert!(told.iter().all(|name| name.starts_with("container_network_")), "{told:?}");
        told.extend(checked(&own.metrics, &keys, ("main", &id)));
        let except = [OF_THE_KERNEL.as_slice(), &OF_DISKS].concat();
        let missing: Vec<_> =
            expected(&except).into_iter().filter(|name| !told.contains(name.as_str())).collect();
        assert_eq!(missing, Vec::<String>::new());
        assert_eq!(descriptors(client).await, keys, "they are the same for as long as wharfd runs");
    });
}
