//! The figures of the table, in its order, and the target of each.

use crate::grow::step;

/// One line of the table, and the lines that relate it to something else.
#[derive(Debug)]
pub(crate) struct Figure {
    /// The name of the row that has its samples.
    pub(crate) row: &'static str,
    pub(crate) unit: &'static str,
    /// The factor that converts a sample to that unit.
    pub(crate) scale: f64,
    pub(crate) quantile: f64,
    pub(crate) wanted: &'static str,
    /// Whether the figure should stay the same however many pods run.
    pub(crate) flat: bool,
    /// What the floor program calls it, and the target as a multiple of the floor.
    pub(crate) floor: Option<(&'static str, &'static str)>,
}

/// The target of a figure that should not grow.
pub(crate) const FLAT: &str = "≤ 1.2";

const MS_PER_S: f64 = 1000.0;
const KIB_PER_MIB: f64 = 1024.0;
const BYTES_PER_KIB: f64 = 1024.0;

pub(crate) const FIGURES: [Figure; 23] = [
    Figure { floor: Some(("pod up", "≤ 2")), ..flat("pod up") },
    time("RunPodSandbox", 0.5, ""),
    time("CreateContainer", 0.5, ""),
    time("StartContainer", 0.5, ""),
    Figure { floor: Some(("exec", "≤ 1.5")), ..flat("ExecSync true") },
    flat("StopContainer"),
    Figure { floor: Some(("pod down", "")), ..flat("pod down") },
    count(step::RATE_UP, "≥ 150, not falling"),
    count(step::RATE_DOWN, ""),
    time("ListPodSandbox", 0.99, "≤ 25 at 2,000"),
    time("ListContainers", 0.99, "≤ 25 at 2,000"),
    time("StreamPodSandboxes", 0.99, "≤ 25 at 2,000"),
    time("StreamContainers", 0.99, "≤ 25 at 2,000"),
    time("ListContainerStats", 0.5, "≤ 40 at 1,000"),
    time("ListPodSandboxStats", 0.5, "≤ 40 at 1,000"),
    count(step::DESCRIPTORS, "≤ 3"),
    count(step::MOUNTS, "0"),
    Figure { unit: "MiB", scale: 1.0 / KIB_PER_MIB, ..count(step::RESIDENT, "≤ 64 at 1,000") },
    Figure { unit: "KiB", ..count(step::PRIVATE, "≤ 60") },
    Figure { unit: "MB", scale: BYTES_PER_KIB / 1e6, ..count(step::WHOLE, "≤ 0.55 at 1,000") },
    Figure { unit: "%", ..count(step::IDLE_CPU, "≤ 0.1 at 500") },
    count(step::IDLE_WAKES, "≤ 1 at 500"),
    Figure { unit: "s", scale: 1.0 / MS_PER_S, ..count(step::READY, "≤ 2 at 2,000") },
];

const fn count(row: &'static str, wanted: &'static str) -> Figure {
    Figure { row, unit: "", scale: 1.0, quantile: 0.5, wanted, flat: false, floor: None }
}

const fn time(row: &'static str, quantile: f64, wanted: &'static str) -> Figure {
    Figure { unit: if quantile > 0.5 { "ms, p99" } else { "ms" }, quantile, ..count(row, wanted) }
}

const fn flat(row: &'static str) -> Figure {
    Figure { flat: true, ..time(row, 0.5, "") }
}
