//! How a container ended, and which state it is in.
//!
//! The states are those of the CRI. One that is not known is not a state: it is the absence of one, at whoever asks.

use crate::signal::SHELL_BASE;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with a code, 0 to 255.
    Code(u8),
    /// A signal killed it.
    Signal {
        /// The signal's number.
        number: u8,
        /// Whether it was OOM-killed.
        oom: bool,
    },
    /// It never ran: the program could not be executed.
    NotStarted,
    /// Its supervisor died, and nobody saw how it ended.
    Lost,
}

impl Exit {
    /// The code that a shell would show: 128 + signal for a signal, 128 if it never ran, 255 if nobody saw it end.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal { number, .. } => i32::from(SHELL_BASE) + i32::from(number),
            Self::NotStarted => 128,
            Self::Lost => 255,
        }
    }

    /// The CRI's reason for the container's end.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Code(0) => "Completed",
            Self::Signal { oom: true, .. } => "OOMKilled",
            Self::NotStarted => "StartError",
            Self::Code(_) | Self::Signal { .. } => "Error",
            Self::Lost => "Unknown",
        }
    }
}

/// The state of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Its namespaces and file systems exist; its program has not been executed.
    Created,
    /// Its program runs.
    Running {
        /// Nanoseconds since the epoch.
        started_at_ns: i64,
    },
    /// Its first process is gone.
    Exited {
        /// Nanoseconds since the epoch; 0 if it never started.
        started_at_ns: i64,
        /// Nanoseconds since the epoch.
        finished_at_ns: i64,
        /// How it ended.
        exit: Exit,
        /// What a person should know beyond the reason; may be empty.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::{SIGKILL, SIGTERM};

    #[test]
    fn codes_and_reasons_are_those_of_the_cri() {
        assert_eq!((Exit::Code(0).code(), Exit::Code(0).reason()), (0, "Completed"));
        let oom = Exit::Signal { number: SIGKILL, oom: true };
        assert_eq!((oom.code(), oom.reason()), (137, "OOMKilled"));
        let term = Exit::Signal { number: SIGTERM, oom: false };
        assert_eq!((term.code(), term.reason()), (143, "Error"));
        assert_eq!((Exit::NotStarted.code(), Exit::NotStarted.reason()), (128, "StartError"));
        assert_eq!(Exit::Lost.code(), 255);
    }
}
