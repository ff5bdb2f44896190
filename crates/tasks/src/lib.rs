//! Work of a daemon that belongs to no single caller: calls that callers share ([`Joins`]), rounds for as long as somebody
//! wants their results ([`Demand`]), and what is tried until it succeeds ([`persist`]). What the work does is for others to
//! say.

mod demand;
mod joins;
mod persist;

pub use demand::Demand;
pub use joins::{Call, Joins, spawn};
pub use persist::persist;
