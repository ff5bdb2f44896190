//! Images: manifests, unpacked layers, and the records that join them.

mod limits;
pub mod manifest;
mod stream;
mod tar;
mod unpack;

pub use limits::Limits;
pub use tar::TarError;
pub use unpack::{LayerSource, UnpackError};
