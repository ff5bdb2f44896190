//! The words of wharf: ids, digests, image references, paths, states, exits and error classes.
//!
//! Each type has one constructor, which checks, so that no holder of a value needs to check it again. Nothing here does
//! I/O.

pub mod capability;
mod chain;
mod digest;
mod exit;
pub mod failure;
mod id;
mod id_map;
mod kind;
pub mod limits;
pub mod lock;
mod owner_id;
mod path;
mod profile_name;
pub mod program;
mod protected;
mod reference;
mod reserve;
mod selinux_label;
pub mod signal;
mod stage;
mod stream_options;
mod terminal;
mod text;
mod timings;
pub mod trace;
mod untrusted;

pub use chain::chain;
pub use digest::{Digest, DigestError};
pub use exit::{ContainerState, Exit};
pub use failure::Failure;
pub use id::{ContainerId, IdError, PodId};
pub use id_map::{IdMaps, IdRange, IdRangeError};
pub use kind::{ErrorKind, Subject};
pub use owner_id::{OwnerId, OwnerIdError};
pub use path::{ContainerPath, HostPath, POD_LOGS, PathError};
pub use profile_name::{DEFAULT_PROFILE, ProfileName, ProfileNameError};
pub use protected::{MASKED_PATHS, READONLY_PATHS};
pub use reference::{Reference, ReferenceError, is_docker_hub, login_scope};
pub use reserve::{Disk, OnlyReserve, Reserve};
pub use selinux_label::{LabelParts, SelinuxLabel, SelinuxLabelError};
pub use stage::{Stage, StageError};
pub use stream_options::StreamOptions;
pub use terminal::TerminalSize;
pub use text::one_line;
pub use timings::{Timing, Timings};
pub use trace::{Trace, Traced};
pub use untrusted::{Field, Untrusted};
