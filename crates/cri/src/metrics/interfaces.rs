//! The families of a pod's network interfaces.
//!
//! Each is a counter of the kernel's since the interface was made, seen from inside the pod: received is what the pod
//! received. Rows are as in `table`.

use wharf_cri_api::v1::MetricType;
use wharf_network::InterfaceStats;

use super::{Family, Needs, Sample, Value};

const fn counter(
    name: &'static str,
    help: &'static str,
    samples: fn(&InterfaceStats) -> Vec<Sample>,
) -> Family<InterfaceStats> {
    Family { name, help, kind: MetricType::Counter, keys: &["interface"], needs: Needs::Nothing, samples }
}

fn of(interface: &InterfaceStats, value: u64) -> Vec<Sample> {
    vec![Sample { labels: vec![interface.name.clone()], value: Value::Whole(value) }]
}

/// Every family of an interface.
pub(super) const FAMILIES: &[Family<InterfaceStats>] = &[
    counter("container_network_receive_bytes_total", "Bytes received by the pod", |i| of(i, i.rx_bytes)),
    counter("container_network_receive_packets_total", "Packets received by the pod", |i| {
        of(i, i.rx_packets)
    }),
    counter(
        "container_network_receive_packets_dropped_total",
        "Packets for the pod that found no room",
        |i| of(i, i.rx_dropped),
    ),
    counter("container_network_receive_errors_total", "Packets that reached the pod damaged", |i| {
        of(i, i.rx_errors)
    }),
    counter("container_network_transmit_bytes_total", "Bytes sent by the pod", |i| of(i, i.tx_bytes)),
    counter("container_network_transmit_packets_total", "Packets sent by the pod", |i| of(i, i.tx_packets)),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets of the pod that were dropped",
        |i| of(i, i.tx_dropped),
    ),
    counter("container_network_transmit_errors_total", "Packets that the pod could not send", |i| {
        of(i, i.tx_errors)
    }),
];
