//! A pod's share of this host: facts about the machine, the pod's namespaces, the files and images of its containers,
//! and what the machine adds to them.
//!
//! It decides nothing: it gathers what the planner has to know ([`describe`], [`names`]), and makes what the planner
//! has decided ([`namespaces::Template::begin`], [`files::make`]). All of it blocks, apart from [`ensure_profile`].
//! It knows nothing about pods as the daemon has them: the caller passes plans, paths and contents.

mod additions;
mod apparmor;
mod cdi;
mod cgroups;
pub mod directories;
pub mod earlier;
mod error;
mod facts;
pub mod files;
mod handlers;
mod hooks;
mod images;
mod logs;
pub mod namespaces;
mod places;
mod probe;
mod program;
mod read;
mod readiness;
mod relabel;
mod selinux;
mod sysctls;
mod yaml;

pub use additions::{Additions, AdditionsConfig, describe};
pub use apparmor::ensure_profile;
pub use cgroups::delegate;
pub use error::Error;
pub use facts::{Machine, facts, names};
pub use handlers::{Given, Handler, HandlerConfig, Handlers, Planned, set_rules};
pub use hooks::{Hooked, HooksOf, hooks_of_saved};
pub use images::{ImageView, Images, check_profile};
pub use logs::{make_log, remove_unused_log};
pub use places::{ContainerPlaces, host_path};
pub use probe::{Obstacle, UserNamespaces};
pub use program::check_supervisor;
pub use readiness::{Extent, Unready, unready};
pub use relabel::relabel;
pub use selinux::{Labelled, Level, check_labels};
