//! Images: manifests, unpacked layers, and the records that connect them.
//!
//! A pull parses a manifest ([`manifest`]), passes each layer's blob to [`Store::unpack`] as it arrives from the
//! network, and ends with [`Store::commit`]. Compressed blobs are not kept. All questions about images are answered
//! from memory. Security profiles from registries are kept beside the images ([`Profiles`]).
//!
//! Images also come in archives ([`Store::load`]), and leave in them ([`Store::archive`]).
//!
//! What comes from a registry or in an archive is hostile until it is verified, and verified content is still hostile:
//! it is what its author wrote. The rules by which a layer's archive becomes files are at the head of `unpack`, those
//! for reading archives at the head of `tar`, and the layout on disk with the order of writes at the head of `store`.
//!
//! Nothing here talks to a registry or mounts anything, and nothing waits except for the disk and for the reader that
//! it was given.

mod chain;
mod complete;
mod config;
mod image;
mod layer;
mod limits;
mod load;
pub mod manifest;
mod profiles;
mod records;
mod relocate;
mod save;
mod store;
mod stream;
mod tar;
mod unpack;

pub use chain::ChainError;
pub use config::{ImageUser, parse_config};
pub use image::Image;
pub use layer::{Layer, LayerLease, UnpackedLayer};
pub use limits::Limits;
pub use load::{LoadError, LoadEvent, Watch};
pub use profiles::{PROFILE_LIMIT_BYTES, ProfileItem, Profiles};
pub use records::RecordError;
pub use save::{Archived, ArchivedImage, SaveError};
pub use store::{NewImage, Store, StoreError, StoreFigures, SweepFigures, Tenancy};
pub use stream::Compression;
pub use tar::TarError;
pub use unpack::{Form, LayerSource, Sender, UnpackError};
pub use wharf_snapshots::tree::Usage;
