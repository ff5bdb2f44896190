//! The CRI's two services: what a request says becomes a call on pods, images or the network, and what comes back
//! becomes an answer or a status. Nothing is decided here and nothing is kept.

mod filter;
mod image;
mod runtime;
mod status;
mod streams;

pub use image::Images;
pub use runtime::Runtime;
pub use streams::Streams;

/// The longest message either way, in bytes.
pub const MESSAGE_LIMIT_BYTES: usize = 16 << 20;
