//! One container's isolation: a [`Plan`] (plain data, every choice taken) and what the container's first process does
//! with it between clone and exec.
//!
//! The order of [`create`] is the order of safety. Everything of the host that is needed is opened first, by path;
//! from the moment the root file system exists, everything in it is reached by descriptor, below the root's own, and
//! no link leads out. Namespaces come first, rights are given up last, and the program is executed only when the
//! supervisor says so. A second process ([`join`]) enters by the first one's descriptor.
//!
//! This crate knows no CRI, no OCI and no daemon; it runs in a child of the single-threaded supervisor.

mod confine;
mod devices;
mod error;
mod identity;
mod join;
mod mounts;
mod paths;
mod plan;
mod report;
mod root;
mod terminal;
mod volumes;
mod wire;

mod create;

pub use confine::Streams;
pub use create::create;
pub use error::{Error, Kind};
pub use identity::Identity;
pub use join::{JoinPlan, join};
pub use plan::{
    CgroupPlan, DeviceNode, Input, Limit, LogFile, MountPlan, Namespaces, PidNamespace, Plan, Process,
    Rootfs, Source, Stdio, User,
};
pub use report::Report;
