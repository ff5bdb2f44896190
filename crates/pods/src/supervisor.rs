//! A pod's supervisor, as the daemon knows it.

mod error;
mod features;
mod log;

pub(crate) use error::SupervisorError;
pub(crate) use features::Features;
