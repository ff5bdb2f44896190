//! Why a request fails because of plugins.

use wharf_planner::Refusal;
use wharf_types::{ErrorKind, Failure};

use crate::api::Field;

/// The plugins refused something, or contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A plugin responded with an error.
    #[error("NRI plugin {plugin} refuses {call}: {message}")]
    Refused {
        /// Its index and name.
        plugin: String,
        /// The method.
        call: &'static str,
        /// Its own words.
        message: String,
    },
    /// A plugin did not respond, and its failure policy says that the request then fails.
    #[error(
        "NRI plugin {plugin} does not respond to {call}, and its failure policy fails the request: {problem}"
    )]
    Silent {
        /// Its index and name.
        plugin: String,
        /// The method.
        call: &'static str,
        /// What happened to the call.
        problem: String,
    },
    /// Two plugins set the same thing differently.
    #[error("NRI plugins {one} and {other} both set {what}")]
    Conflict {
        /// The one that was asked first.
        one: String,
        /// The one that was asked later.
        other: String,
        /// The field, with the name of its entry.
        what: String,
    },
    /// A plugin updates the container about whose creation it was asked.
    #[error("NRI plugin {plugin} updates container {id}, which is being created: it must adjust it instead")]
    Early {
        /// Its index and name.
        plugin: String,
        /// The container.
        id: String,
    },
    /// A validator rejected the adjustments of other plugins.
    #[error("{validator} rejects the adjustments of NRI plugins: {reason}")]
    Rejected {
        /// The validator.
        validator: String,
        /// Its reason.
        reason: String,
    },
    /// An adjustment or update of plugins is not supported.
    #[error("NRI plugins ({plugins}) made an adjustment that is not supported: {field}: {problem}")]
    Impossible {
        /// The class of the failure.
        kind: ErrorKind,
        /// All plugins that set something.
        plugins: String,
        /// The field.
        field: &'static str,
        /// Why not.
        problem: String,
    },
}

impl Error {
    /// The refusal of something that plugins set.
    pub(crate) fn of(refusal: Refusal, plugins: &[String]) -> Self {
        let plugins = plugins.join(", ");
        // The plugins are at fault, not the request, unless the machine is short of something.
        let kind = match refusal.kind() {
            ErrorKind::ResourceExhausted => ErrorKind::ResourceExhausted,
            _ => ErrorKind::FailedPrecondition,
        };
        let (field, problem) = match refusal {
            Refusal::Field { field, problem }
            | Refusal::Spec { field, problem }
            | Refusal::Host { field, problem, .. } => (field, problem),
            Refusal::Addition { what, problem, .. } => ("CDI_devices", format!("{what}: {problem}")),
            Refusal::ImageVolume { target, problem, .. } => ("mounts", format!("{target}: {problem}")),
        };
        Self::Impossible { kind, plugins, field, problem }
    }
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Silent { .. } => ErrorKind::Unavailable,
            Self::Impossible { kind, .. } => *kind,
            Self::Refused { .. } | Self::Conflict { .. } | Self::Early { .. } | Self::Rejected { .. } => {
                ErrorKind::FailedPrecondition
            }
        }
    }
}

/// A field in words: `FIELD_MEM_LIMIT` is `mem limit`.
pub(crate) fn words(field: Field) -> String {
    field.as_str_name().trim_start_matches("FIELD_").to_lowercase().replace('_', " ")
}
