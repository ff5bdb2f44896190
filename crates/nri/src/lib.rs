//! NRI, the Node Resource Interface: plugins that watch pods and containers, adjust containers that are created, and
//! update those that exist.
//!
//! A plugin is a program with a socket: it connects to [`Settings::socket`], or wharfd starts it. Both sides call each
//! other over that socket ([`wire`]). [`Plugins`] has all plugins and asks them in the order of their indices; what
//! they change is merged, with a refusal if two of them set the same thing ([`Merged`]), and becomes a step on the
//! container's description ([`Plugins::adjust`]). This crate knows no engine: whoever has the pods and containers tells
//! it of them, and does for it what is in [`Node`].
//!
//! A plugin is trusted like root, because it decides what containers are. But it is not trusted to respond, nor to
//! speak the protocol: every wait has a deadline, and every message a bound.

mod adjust;
mod convert;
mod error;
mod launch;
mod listen;
mod merge;
mod node;
mod owners;
mod plugin;
mod plugins;
mod progress;
mod settings;
mod validator;
mod view;
pub mod wire;

/// The messages generated from `proto/nri/v1alpha1/nri.proto`.
#[allow(missing_docs, reason = "the proto's own comments explain its fields")]
#[allow(clippy::struct_excessive_bools, reason = "messages have flags")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated")]
pub mod api {
    include!("generated.rs");
}

pub use convert::Update;
pub use error::Error;
pub use listen::{Listening, start};
pub use merge::{Changes, Merged};
pub use node::{Answer, Existing, Failed, Node, Shown};
pub use plugins::{Plugins, Window};
pub use settings::{Rejected, Settings, Validation};
pub use view::{ContainerView, PodView};
