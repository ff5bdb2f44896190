//! The CRI's two services and the daemon's own beside them: what a request says becomes a call on pods, images or the
//! network, and what comes back becomes an answer or a status. Nothing is decided here and nothing is kept.

mod admin;
mod answers;
mod batches;
mod conditions;
mod filter;
mod image;
mod metrics;
mod readings;
mod runtime;
mod stats;
mod status;
mod streams;
mod view;

pub use admin::Admin;
pub use answers::Answers;
pub use image::Images;
pub use runtime::Runtime;
pub use streams::Streams;
