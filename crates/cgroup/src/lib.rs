//! cgroups of pods and containers on v1, hybrid and v2: making them, limits, device filters, freezing, killing,
//! statistics.
//!
//! [`Cgroups::detect`] looks once at what is mounted. From then on every controller has one home, a v1 hierarchy or the
//! unified one, and "version" is only a word for people: a container's [`Cgroup`] is a directory in each hierarchy, and
//! each limit goes to wherever its controller lives. Where there is a unified hierarchy, it tracks the processes (kill,
//! freeze, populated); on pure v1 the freezer does.
//!
//! The crate is blocking, signals nothing but what `cgroup.procs` names, and never takes an unreadable value for zero.
//! `cgroups-rs` finds the v1 hierarchies and nothing else: its statistics turn errors into zeros, its removal sleeps,
//! its own detection ignores the unified side of a hybrid node, and it can neither undo a write nor filter devices on v2.

mod apply;
mod create;
mod detect;
mod device;
mod error;
mod files;
mod group;
mod limits;
mod oom;
mod path;
mod plan;
mod stats;
mod tree;
mod weight;

pub use detect::{Cgroups, Controller, Version};
pub use device::{Access, DeviceRule, DeviceType, default_devices};
pub use error::Error;
pub use group::{Cgroup, Entry};
pub use limits::{HugepageLimit, Limits};
pub use path::{CgroupPath, PathError};
pub use stats::{
    Bound, CpuStats, DeviceIo, Extent, HugepageStats, MemoryStats, PidsStats, Pressure, PressureLine, Stats,
    StatsReader, SwapStats,
};
pub use weight::weight_of_shares;

#[cfg(test)]
mod tests;
