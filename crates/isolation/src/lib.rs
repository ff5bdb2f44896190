//! The isolation of one container: a [`Plan`] (plain data, with every choice made) and what the container's first
//! process does with it between clone and exec.
//!
//! The order of [`create`] is what makes it safe. Everything of the host that is needed is opened first, by path. From
//! the moment the root file system exists, everything in it is reached through descriptors below its root, and no link
//! leads out. Namespaces come first, rights are given up late, and the program is executed only when the supervisor
//! says so. A further process ([`join`]) enters through the descriptor of the first. A process that others in a
//! container could see enters the container's PID namespace last (`birth`), so that none of them ever sees a process
//! that has anything of the host.
//!
//! This crate knows neither the CRI nor OCI nor the daemon. It runs in a child of the single-threaded supervisor.

mod apparmor;
mod birth;
pub mod bundle;
mod charged;
mod confine;
mod create;
mod devices;
mod error;
mod executable;
mod hermit;
mod identity;
mod images;
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
mod selinux;
mod streams;
mod terminal;
mod volumes;
mod wire;

pub use birth::{Origin, Others, Place};
pub use create::{STAGES, create};
pub use error::{Error, Stage};
pub use hermit::{LeftHost, enter_cgroups, leave_host};
pub use identity::Identity;
pub use join::{JoinPlan, join};
pub use log_file::{open_existing_log, open_log, replace_log};
pub use plan::{
    CgroupPlan, DeviceNode, Ids, Input, Limit, LogFile, LogLimits, MountPlan, Namespaces, Outline,
    PidNamespace, Plan, Process, Rootfs, Runtime, Sandbox, Source, Stdio, Traits, User, UserNamespace,
};
pub use pod::PodNamespaces;
pub use program::is_sealed_at_birth;
pub use report::{Report, failed as report_failure, order_signal, order_start};
pub use streams::{Stream, Streams};
pub use wharf_types::program::DEFAULT_PATH;
