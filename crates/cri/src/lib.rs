//! The CRI's two services and wharfd's own beside them. A request becomes a call on pods, images or the network, and
//! its result becomes a response or a status. Nothing is decided here, and nothing is kept.

mod admin;
mod answers;
mod archives;
mod batches;
mod conditions;
mod filter;
mod image;
mod metrics;
mod names;
mod profiles;
mod readings;
mod runtime;
mod seen;
mod stats;
mod status;
mod streams;
mod subject;
mod underway;
mod view;

pub use admin::Admin;
pub use answers::Answers;
pub use image::Images;
pub use names::Names;
pub use runtime::Runtime;
pub use seen::Observers;
pub use streams::Streams;
pub use underway::{Ended, Underway};
