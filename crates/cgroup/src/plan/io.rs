//! Reads and writes: a share of each device, and rates. Files with a line per device take a line per write.
//!
//! Weights are given on BFQ's scale; v2 without BFQ has another. Which scheduler shares the node's devices is not
//! looked up here: it is among what the plan must know ([`super::Present`]). A line for a device changes nothing of the
//! others', so each write also knows the line that takes it back.

use super::{Step, Write};
use crate::detect::{Controller, Kind};
use crate::error::Error;
use crate::limits::{BlockDevice, Io, Limits, Rate};

/// What a share may be.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// What shares reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheduler {
    /// BFQ, which has files of its own.
    Bfq,
    /// Another one, or none.
    Another,
}

pub(super) fn plan(
    limits: &Limits,
    kind: Kind,
    scheduler: Scheduler,
    steps: &mut Vec<Step>,
) -> Result<(), Error> {
    let Io { weight, weights, rates } = &limits.io;
    let all = weight.iter().chain(weights.iter().map(|(_, weight)| weight));
    if let Some(weight) = all.into_iter().find(|weight| !WEIGHTS.contains(weight)) {
        let limit = format!("io weight {weight}");
        return Err(Error::InvalidLimit { limit, reason: "a weight is a number from 10 to 1000" });
    }
    let files = Files { kind, scheduler };
    steps.extend(weight.iter().map(|weight| files.weight(*weight)));
    steps.extend(weights.iter().map(|(device, weight)| files.weight_of(*device, *weight)));
    steps.extend(rates.iter().map(|(device, rate, limit)| files.rate(*device, *rate, *limit)));
    Ok(())
}

/// The names and forms of the files. Weights are in the terms of those of BFQ.
struct Files {
    kind: Kind,
    scheduler: Scheduler,
}

impl Files {
    fn weight(&self, weight: u16) -> Step {
        let file = match (self.kind, self.scheduler) {
            (Kind::V1, Scheduler::Bfq) => "blkio.bfq.weight",
            (Kind::V1, Scheduler::Another) => "blkio.weight",
            (Kind::Unified, Scheduler::Bfq) => "io.bfq.weight",
            (Kind::Unified, Scheduler::Another) => "io.weight",
        };
        Step::One(Write::new(Controller::Io, file, self.scaled(weight)))
    }

    fn weight_of(&self, device: BlockDevice, weight: u16) -> Step {
        let (file, none) = match (self.kind, self.scheduler) {
            (Kind::V1, Scheduler::Bfq) => ("blkio.bfq.weight_device", "0"),
            (Kind::V1, Scheduler::Another) => ("blkio.weight_device", "0"),
            (Kind::Unified, Scheduler::Bfq) => ("io.bfq.weight", "default"),
            (Kind::Unified, Scheduler::Another) => ("io.weight", "default"),
        };
        per_device(file, device, &self.scaled(weight).to_string(), none)
    }

    /// A weight from 10 to 1000 on the scale of the file.
    fn scaled(&self, weight: u16) -> u32 {
        match (self.kind, self.scheduler) {
            (Kind::Unified, Scheduler::Another) => scaled_for_unified(weight),
            _ => weight.into(),
        }
    }

    fn rate(&self, device: BlockDevice, rate: Rate, limit: u64) -> Step {
        let (v1, key) = match rate {
            Rate::ReadBytes => ("blkio.throttle.read_bps_device", "rbps"),
            Rate::WriteBytes => ("blkio.throttle.write_bps_device", "wbps"),
            Rate::Reads => ("blkio.throttle.read_iops_device", "riops"),
            Rate::Writes => ("blkio.throttle.write_iops_device", "wiops"),
        };
        if self.kind == Kind::V1 {
            return per_device(v1, device, &limit.to_string(), "0");
        }
        let value = if limit == 0 { "max".to_owned() } else { limit.to_string() };
        per_device("io.max", device, &format!("{key}={value}"), &format!("{key}=max"))
    }
}

/// A weight from 10 to 1000 on the scale of `io.weight`, which goes from 1 to 10,000.
pub(crate) fn scaled_for_unified(weight: u16) -> u32 {
    1 + (u32::from(weight).saturating_sub(10)) * 9999 / 990
}

fn per_device(file: &str, BlockDevice { major, minor }: BlockDevice, value: &str, none: &str) -> Step {
    let write = Write::new(Controller::Io, file, format!("{major}:{minor} {value}"));
    Step::One(Write { none: Some(format!("{major}:{minor} {none}")), ..write })
}
