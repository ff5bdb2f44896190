//! The records on disk, separate from the live types.
//!
//! They have what cannot be derived from manifests and configs. An older format is still read. A record that
//! is damaged or in quarantine might name any layer: then only those of removed images are swept.

use std::path::Path;

use serde::{Deserialize, Serialize};
use wharf_snapshots::tree::Usage;
use wharf_state::record::{self, Durability, Format};
use wharf_state::records::{self, Content, ContentError};
use wharf_types::{Digest, ErrorKind, Failure};

use crate::config::ImageUser;
use crate::unpack::{Contents, Effect, HardLink};

const LAYER: Format = Format { kind: "layer", version: 2 };
/// The previous format, which had the names of implied directories in it.
const LAYER_1: Format = Format { kind: "layer", version: 1 };
const LOOSE: Format = Format { kind: "loose", version: 1 };

/// Why a record could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file.
    #[error("cannot use the record")]
    File {
        /// What is wrong with it.
        #[from]
        source: record::Error,
    },
    /// The content.
    #[error("the content of the record does not match the format of this build")]
    Content {
        /// The parser's error.
        #[from]
        source: serde_json::Error,
    },
    /// The names in it.
    #[error("the record's names do not match the format of this build")]
    Names,
    /// A digest in it.
    #[error("the record contains a malformed digest")]
    Digest {
        /// The digest's error.
        #[from]
        source: wharf_types::DigestError,
    },
}

impl Failure for RecordError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::File { source } => source.kind(),
            Self::Content { .. } | Self::Digest { .. } | Self::Names => ErrorKind::DataLoss,
        }
    }
}

impl RecordError {
    /// Whether the record is certainly not what was saved.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::File { source } => source.is_damage(),
            Self::Content { .. } | Self::Digest { .. } | Self::Names => true,
        }
    }
}

/// What is recorded about an image; the rest is in its manifest and config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Digest of the config.
    pub(crate) id: String,
    /// The digests of its manifests in the store.
    pub(crate) manifests: Vec<String>,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    /// If two images claim one tag, it belongs to the one with the higher number.
    pub(crate) serial: u64,
    pub(crate) size_bytes: u64,
    /// The names of all layers that belong to it.
    pub(crate) layers: Vec<String>,
    /// The names of those that are mounted, top first.
    pub(crate) chain: Vec<String>,
    pub(crate) pinned: bool,
    /// What is known of its config without reading that. An earlier release did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<ConfigFacts>,
}

/// What lists and a start need of a config, whose length is up to the image's author.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigFacts {
    pub(crate) size_bytes: u64,
    pub(crate) user: Option<ImageUser>,
}

impl Content for ImageRecord {
    const FORMAT: Format = Format { kind: "image", version: 1 };

    fn encode(&self) -> Result<Vec<u8>, ContentError> {
        Ok(serde_json::to_vec(self)?)
    }

    fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

impl ImageRecord {
    pub(crate) fn save(&self, path: &Path) -> Result<(), RecordError> {
        Ok(records::save(path, self, Durability::Durable)?)
    }

    pub(crate) fn load(path: &Path) -> Result<Self, RecordError> {
        Ok(records::load(path)?)
    }

    pub(crate) fn id(&self) -> Result<Digest, RecordError> {
        Ok(self.id.parse()?)
    }
}

#[derive(Serialize, Deserialize)]
struct LayerRecord {
    bytes: u64,
    inodes: u64,
    effect: Effect,
}

#[derive(Deserialize)]
struct LayerRecord1 {
    #[serde(flatten)]
    record: LayerRecord,
    /// One character per byte, because names need not be UTF-8.
    implied: Vec<String>,
}

/// Saves a layer's records in its directory; the caller syncs them. What only a commit needs is in a separate file,
/// which is not read at startup: its length is up to the image's author.
pub(crate) fn save_layer(directory: &Path, contents: &Contents) -> Result<(), RecordError> {
    let Contents { usage, effect, .. } = *contents;
    let record = LayerRecord { bytes: usage.bytes, inodes: usage.inodes, effect };
    record::save(&directory.join("loose"), LOOSE, &encode(contents), Durability::Volatile)?;
    Ok(record::save(&directory.join("info"), LAYER, &serde_json::to_vec(&record)?, Durability::Volatile)?)
}

/// Loads a layer's disk usage from its directory.
pub(crate) fn load_usage(directory: &Path) -> Result<Usage, RecordError> {
    let (record, _implied) = load_info(directory)?;
    Ok(Usage { bytes: record.bytes, inodes: record.inodes })
}

/// Loads everything that is recorded about a layer from its directory.
pub(crate) fn load_layer(directory: &Path) -> Result<Contents, RecordError> {
    let (record, implied) = load_info(directory)?;
    let (implied, links) = match implied {
        Some(implied) => (implied, Vec::new()),
        None => decode(&record::load(&directory.join("loose"), LOOSE)?).ok_or(RecordError::Names)?,
    };
    let usage = Usage { bytes: record.bytes, inodes: record.inodes };
    Ok(Contents { usage, implied, links, effect: record.effect })
}

/// The record, and the implied directories if it has them.
fn load_info(directory: &Path) -> Result<(LayerRecord, Option<Paths>), RecordError> {
    let path = directory.join("info");
    match record::load(&path, LAYER) {
        Err(newer_or_older @ record::Error::Foreign { .. }) => {
            let older = record::load(&path, LAYER_1).map_err(|_neither| newer_or_older)?;
            let LayerRecord1 { record, implied } = serde_json::from_slice(&older)?;
            // A character that does not fit a byte is impossible; it becomes a name that no directory has.
            let bytes = |text: &String| text.chars().map(|c| u8::try_from(c).unwrap_or(b'/')).collect();
            Ok((record, Some(implied.iter().map(bytes).collect())))
        }
        other => Ok((serde_json::from_slice(&other?)?, None)),
    }
}

type Paths = Vec<Vec<u8>>;

const IMPLIED: u8 = b'd';
const LINK: u8 = b'l';

/// `d PATH NUL` for an implied directory, `l PATH NUL TARGET NUL` for a hard link.
fn encode(contents: &Contents) -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in &contents.implied {
        bytes.extend([&[IMPLIED], &path[..], b"\0"].concat());
    }
    for HardLink { path, target } in &contents.links {
        bytes.extend([&[LINK], &path[..], b"\0", &target[..], b"\0"].concat());
    }
    bytes
}

type Names = (Paths, Vec<HardLink>);

fn decode(bytes: &[u8]) -> Option<Names> {
    let (mut implied, mut links) = (Vec::new(), Vec::new());
    let mut names = bytes.split(|byte| *byte == 0);
    while let Some(name) = names.next() {
        match name.split_first() {
            // After the last NUL.
            None => return names.next().is_none().then_some((implied, links)),
            Some((&IMPLIED, path)) => implied.push(path.to_vec()),
            Some((&LINK, path)) => {
                links.push(HardLink { path: path.to_vec(), target: names.next()?.to_vec() });
            }
            Some(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let contents = Contents {
            implied: vec![Vec::new(), b"d".to_vec(), b"l\n\xff".to_vec()],
            links: vec![HardLink { path: b"l".to_vec(), target: b"d/l".to_vec() }],
            usage: Usage { bytes: 5, inodes: 6 },
            effect: Effect::HidesAll,
        };
        let dir = tempfile::tempdir().unwrap();
        save_layer(dir.path(), &contents).unwrap();
        assert_eq!(load_layer(dir.path()).unwrap(), contents);
        assert_eq!(load_usage(dir.path()).unwrap(), contents.usage);
        assert_eq!(decode(b"").unwrap(), Names::default());
        for bad in [&b"d"[..], b"l\0", b"x\0", b"d\0\0", b"lpath\0target"] {
            assert!(decode(bad).is_none(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn the_record_of_an_earlier_build_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = br#"{"bytes":5,"inodes":6,"implied":["","a\u00ff"],"effect":"merges"}"#;
        record::save(&dir.path().join("info"), LAYER_1, text, Durability::Volatile).unwrap();
        let contents = load_layer(dir.path()).unwrap();
        assert_eq!(contents.implied, [Vec::new(), b"a\xff".to_vec()]);
        assert_eq!(load_usage(dir.path()).unwrap(), Usage { bytes: 5, inodes: 6 });
        let newer = Format { version: 3, ..LAYER };
        record::save(&dir.path().join("info"), newer, b"{}", Durability::Volatile).unwrap();
        let error = load_layer(dir.path()).unwrap_err();
        assert!(matches!(error, RecordError::File { source: record::Error::Foreign { .. } }), "{error}");
    }
}
