//! Work of a daemon that belongs to no single caller: calls that callers share ([`Joins`]), rounds for as long as
//! somebody wants their results ([`Demand`]), what is tried until it succeeds ([`persist`]), limits on what goes on at
//! a time ([`Crowd`], [`Turns`], [`PendingConnections`]), ends that callers ask for more than once ([`Stopping`]), what
//! may be stuck ([`Aside`]), and what needs a thread of its own ([`Threads`]), once for all ([`Single`]). Work takes
//! the trace of whoever begins it along ([`Carried`]). What it does is for others to say.

mod aside;
mod carried;
mod crowd;
mod demand;
mod joins;
mod pending;
mod persist;
pub mod pool;
mod single;
mod stopping;
mod thread;
mod turns;

pub use aside::{Aside, Underway};
pub use carried::Carried;
pub use crowd::{Crowd, CrowdLimits, Crowded, Member};
pub use demand::Demand;
pub use joins::{Call, Joins, spawn};
pub use pending::{PendingConnections, PendingPlace};
pub use persist::persist;
pub use single::Single;
pub use stopping::Stopping;
pub use thread::{ThreadError, Threads};
pub use turns::{Turn, Turns};
