//! The errors of seccomp profiles.

use wharf_types::{ErrorKind, Failure};

/// Why a seccomp profile cannot be read or compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The profile exceeds a limit.
    #[error("the seccomp profile has {count} {what}; at most {limit} are allowed")]
    TooLarge {
        /// What was counted: bytes, names, rules, conditions, pairs of a name and an alternative.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// It is not JSON, or not in the form of a profile.
    #[error("the seccomp profile is not valid JSON of the runtime specification's form")]
    Json {
        /// The parser's error, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// An action, operator, architecture, flag, capability or kernel version that wharf does not know.
    #[error("the seccomp profile names the unknown {what} {name:?}")]
    Unknown {
        /// The kind of word.
        what: &'static str,
        /// The word.
        name: String,
    },
    /// The profile requests notification of a listener, which wharf does not run.
    #[error("the seccomp profile asks for {what}, but wharf runs no listener; use another action")]
    Notify {
        /// The word that requests it.
        what: &'static str,
    },
    /// An entry of a profile from a registry is for no call.
    #[error("the seccomp profile has an entry without names; name its calls, or leave it out")]
    Nameless,
    /// Two keys that exclude each other are both set.
    #[error("the seccomp profile sets both {one:?} and {other:?}; keep one")]
    Conflict {
        /// A key.
        one: &'static str,
        /// The other key.
        other: &'static str,
    },
    /// A number is out of range.
    #[error("the seccomp profile has {what} {value}; the largest is {limit}")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// The runtime spec's own type does not accept a condition.
    #[error("a condition of the seccomp profile cannot be expressed in the runtime spec")]
    Spec {
        /// That type's error.
        #[source]
        source: Box<oci_spec::OciSpecError>,
    },
    /// The compiled filter is longer than the kernel accepts.
    #[error(
        "the seccomp profile compiles to more than {limit} instructions; it needs fewer rules with arguments"
    )]
    ProgramTooLong {
        /// The kernel's limit.
        limit: usize,
    },
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Notify { .. } => ErrorKind::Unimplemented,
            Self::Spec { .. } => ErrorKind::Internal,
            Self::TooLarge { .. }
            | Self::Json { .. }
            | Self::Unknown { .. }
            | Self::Nameless
            | Self::Conflict { .. }
            | Self::OutOfRange { .. }
            | Self::ProgramTooLong { .. } => ErrorKind::InvalidArgument,
        }
    }
}
