//! Images: manifests, unpacked layers, and the records that join them.
//!
//! A pull reads a manifest ([`manifest`]), hands each layer's blob to [`Store::unpack`] while it comes from the network,
//! and ends with [`Store::commit`]. Compressed blobs are not kept. All questions are answered from memory.
//!
//! What comes from a registry is hostile until it is verified, and what is verified is still hostile: it is what its
//! author wrote. The rules by which a layer's archive becomes files stand at the head of `unpack`, the reading of
//! archives at `tar`, the layout and the order of writing at `store`.
//!
//! Nothing here talks to a registry or mounts anything, and nothing waits for anything but the disk and the reader it
//! was given.

mod chain;
mod complete;
mod config;
mod image;
mod layer;
mod limits;
pub mod manifest;
mod records;
mod relocate;
mod store;
mod stream;
mod tar;
mod unpack;

pub use chain::ChainError;
pub use config::{ImageConfig, ImageUser, UserError, parse_config};
pub use image::Image;
pub use layer::{Hold, Layer, UnpackedLayer};
pub use limits::Limits;
pub use records::RecordError;
pub use store::{NewImage, Store, StoreError};
pub use stream::Compression;
pub use tar::TarError;
pub use unpack::{LayerSource, UnpackError};
pub use wharf_snapshots::tree::Usage;
