//! A pod's supervisor, as the daemon knows it.

mod error;

pub(crate) use error::SupervisorError;
