//! cgroups of pods and containers on v1, hybrid and v2: making, limits, device filters, freezing, killing, statistics.
//!
//! [`Cgroups::detect`] looks once at what is mounted. From then on every controller has one home, a v1 hierarchy or the
//! unified one, and "version" is only a word for people: a container's [`Cgroup`] is a directory in each hierarchy,
//! those without a controller included, and each limit goes to the home of its controller. The unified hierarchy, where
//! there is one, tracks the processes (kill, freeze, populated); on pure v1 the freezer's hierarchy does.
//!
//! Who makes the cgroups, wharf or systemd, is the [`Driver`]: where they are then is the [`Placement`]'s to say, and
//! how a scope is made and ended is in `systemd`. What is done with a cgroup is the same.
//!
//! The crate blocks, signals only what `cgroup.procs` lists, and never takes an unreadable value for zero. It uses
//! `cgroups-rs` for systemd's names and properties alone: that crate's statistics turn errors into zeros, its removal
//! sleeps, its detection ignores hierarchies without a controller and the unified side of a hybrid node, it can neither
//! undo a write nor filter devices on v2, and its calls of systemd have no deadline.

mod apply;
mod below;
mod create;
mod deep;
mod delegate;
mod detect;
mod device;
mod error;
mod files;
mod find;
mod group;
mod home;
mod limits;
mod meter;
mod oom;
mod path;
mod placement;
mod plan;
mod stats;
mod systemd;
mod tree;
mod weight;

pub use detect::{Cgroups, Controller, Version};
pub use device::{Access, DeviceRule, DeviceType, default_devices};
pub use error::Error;
pub use group::{Cgroup, Entry, Removed};
pub use limits::{BlockDevice, HugepageLimit, Io, Limits, Rate};
pub use meter::Meter;
pub use oom::OldScores;
pub use path::{CgroupPath, PathError};
pub use placement::{Driver, Placement};
pub use stats::{
    Bound, CpuStats, DeviceIo, Extent, HugepageStats, MemoryStats, PidsStats, Pressure, PressureLine, Stats,
    SwapStats,
};
pub use systemd::bus::BusError;
pub use weight::weight_of_shares;

#[cfg(test)]
mod tests;
