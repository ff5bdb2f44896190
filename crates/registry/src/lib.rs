//! Distribution client.
mod auth;
mod blob;
mod challenge;
mod config;
mod credentials;
mod error;
mod hosts;
mod progress;
mod request;
mod session;
mod site;
mod tls;
mod transport;
mod url;
mod stub;
mod wharf_images { pub(crate) use ::wharf_images::manifest; pub use crate::stub::*; }
pub use config::*; pub use credentials::*; pub use error::*; pub use hosts::*; pub use progress::*;
