//! Pods and their containers: what the CRI requests, done in separate tasks and remembered.
//!
//! [`Engine`] has all pods in memory and answers lists, statuses and statistics from there. A change runs in a task
//! that a caller's cancellation does not end; changes of one pod run one after another. A pod's record is on disk
//! before the first side effect for it, so that a new daemon finds what an old one made (`recovery`). The kernel is the
//! truth: a container runs if its supervisor says so, and a pod is ready if its supervisor exists.

mod container;
mod engine;
mod error;
mod events;
mod exec;
mod exec_sync;
mod facts;
mod housekeeping;
mod interactive;
mod lock;
mod logs;
mod places;
mod pod;
mod port_forward;
mod recovery;
mod runtime_spec;
mod table;
#[cfg(test)]
mod tests;
mod usage;

pub use container::Container;
pub use engine::{BLOCKING_THREADS, Engine, Options, Parts};
pub use error::Error;
pub use exec_sync::ExecOutput;
pub use facts::{ContainerFacts, Event, PodFacts};
pub use interactive::Interactive;
pub use pod::Pod;
pub use usage::{PodUsage, Traffic};
pub use wharf_host::{Extent, Unready};
