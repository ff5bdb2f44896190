//! Pods and their containers: what the CRI requests, done in separate tasks and remembered.
//!
//! [`Engine`] has all pods in memory and answers lists, statuses and statistics from there. A change runs in a task
//! that a caller's cancellation does not end; changes of one pod run one after another, except that its containers are
//! made beside one another. A pod's record is on disk before the first side effect for it, so that a new daemon finds
//! what an old one made (`engine::recovery`). The kernel is the truth: a container runs if its supervisor says so, and
//! a pod is ready if its supervisor exists.

mod container;
mod engine;
mod error;
mod events;
mod lock;
mod places;
mod pod;
mod table;

pub use container::Container;
pub use engine::{Engine, ExecOutput, Interactive, Load, Options, Parts, PodUsage, Traffic};
pub use error::Error;
pub use pod::Pod;
pub use wharf_host::{AdditionsConfig, Extent, HandlerConfig, Handlers, Labelled, Unready, check_supervisor};
pub use wharf_planner::Switch;
pub use wharf_records::{ContainerFacts, Event, PodFacts};
pub use wharf_supervision::STANDINGS;
pub use wharf_tasks::pool::THREADS as BLOCKING_THREADS;
