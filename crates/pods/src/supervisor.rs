//! A pod's supervisor, as the daemon knows it.

mod error;
mod exit;
mod features;
mod log;

pub(crate) use error::SupervisorError;
pub(crate) use exit::exit_of;
pub(crate) use features::Features;
