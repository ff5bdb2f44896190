//! The records on disk, apart from the live types.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wharf_snapshots::tree::Usage;
use wharf_state::record::{self, Durability, Format};
use wharf_types::Digest;

use crate::unpack::{Contents, Effect};

const IMAGE: Format = Format { kind: "image", version: 1 };
const LAYER: Format = Format { kind: "layer", version: 1 };

/// Why a record could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file.
    #[error("the record is unusable")]
    File {
        /// What is wrong with it.
        #[from]
        source: record::Error,
    },
    /// Its content.
    #[error("the content of the record is not what this build writes")]
    Content {
        /// What the parser found.
        #[from]
        source: serde_json::Error,
    },
    /// A digest in it.
    #[error("the record names a malformed digest")]
    Digest {
        /// Which.
        #[from]
        source: wharf_types::DigestError,
    },
}

/// What is recorded of an image; the rest is in its manifest and config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Digest of the config.
    pub(crate) id: String,
    /// Manifests whose content is kept.
    pub(crate) manifests: Vec<String>,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    /// Of two images with one tag, the one with the higher number has it.
    pub(crate) serial: u64,
    pub(crate) size_bytes: u64,
    /// Names of all layers that belong to it.
    pub(crate) layers: Vec<String>,
    /// Those of them that are mounted, top first.
    pub(crate) chain: Vec<String>,
    pub(crate) pinned: bool,
}

impl ImageRecord {
    pub(crate) fn save(&self, path: &Path) -> Result<(), RecordError> {
        Ok(record::save(path, IMAGE, &serde_json::to_vec(self)?, Durability::Durable)?)
    }

    pub(crate) fn load(path: &Path) -> Result<Self, RecordError> {
        Ok(serde_json::from_slice(&record::load(path, IMAGE)?)?)
    }

    pub(crate) fn id(&self) -> Result<Digest, RecordError> {
        Ok(self.id.parse()?)
    }
}

#[derive(Serialize, Deserialize)]
struct LayerRecord {
    bytes: u64,
    inodes: u64,
    /// One character a byte, for names need not be UTF-8.
    implied: Vec<String>,
    effect: Effect,
}

/// Saves what is known of a layer; the caller syncs.
pub(crate) fn save_layer(path: &Path, contents: &Contents) -> Result<(), RecordError> {
    let text = |path: &Vec<u8>| path.iter().copied().map(char::from).collect();
    let record = LayerRecord {
        bytes: contents.usage.bytes,
        inodes: contents.usage.inodes,
        implied: contents.implied.iter().map(text).collect(),
        effect: contents.effect,
    };
    Ok(record::save(path, LAYER, &serde_json::to_vec(&record)?, Durability::Volatile)?)
}

/// Loads what is known of a layer.
pub(crate) fn load_layer(path: &Path) -> Result<Contents, RecordError> {
    let record: LayerRecord = serde_json::from_slice(&record::load(path, LAYER)?)?;
    // A character beyond a byte cannot be; it becomes a name that no directory has.
    let bytes = |text: &String| text.chars().map(|c| u8::try_from(c).unwrap_or(b'/')).collect();
    Ok(Contents {
        usage: Usage { bytes: record.bytes, inodes: record.inodes },
        implied: record.implied.iter().map(bytes).collect(),
        effect: record.effect,
    })
}
