//! One container's isolation: a [`Plan`] (plain data, every choice taken) and what the container's first process does
//! with it between clone and exec.
//!
//! The order of [`create`] is the order of safety. Everything of the host that is needed is opened first, by path;
//! from the moment the root file system exists, everything in it is reached by descriptor, below the root's own, and
//! no link leads out. Namespaces come first, rights are given up late, and the program is executed only when the
//! supervisor says so. A second process ([`join`]) enters by the first one's descriptor. Whoever would be seen by other
//! processes of a container is born there last (`birth`): none of them ever sees one that has anything of the host.
//!
//! This crate knows no CRI, no OCI and no daemon; it runs in a child of the single-threaded supervisor.

mod birth;
mod confine;
mod create;
mod devices;
mod error;
mod hermit;
mod identity;
mod join;
mod log_file;
mod mounts;
mod paths;
mod plan;
mod pod;
mod procfs;
mod program;
mod report;
mod root;
mod streams;
mod terminal;
mod volumes;
mod wire;

pub use birth::{Origin, Place};
pub use create::create;
pub use error::Error;
pub use hermit::leave_host;
pub use identity::Identity;
pub use join::{JoinPlan, join};
pub use log_file::open_log;
pub use paths::empty_directory;
pub use plan::{
    CgroupPlan, DeviceNode, Input, Limit, LogFile, MountPlan, Namespaces, Outline, PidNamespace, Plan,
    Process, Rootfs, Source, Stdio, User,
};
pub use pod::PodNamespaces;
pub use report::{Report, failed as report_failure};
pub use streams::{Stream, Streams};
pub use wharf_types::program::DEFAULT_PATH;
