//! Manifests and indexes as registries serve them: OCI, and Docker's version 2 schema 2.
//!
//! A document has one meaning or is refused. Its own media type, the registry's `Content-Type` and its fields must
//! agree. A document with both `manifests` and `layers` is refused (CVE-2021-41190), and so is one with a duplicate key
//! in any object, because parsers differ in which value they take. Foreign `urls` are not even parsed.
//!
//! An OCI manifest whose config is that of no image is an artifact: its layers are files as they stand (see
//! [`Artifact`]).

mod artifact;
mod json;
pub(crate) mod names;
mod platform;
mod profile;
mod write;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use wharf_types::{Digest, DigestError, ErrorKind, Failure};

use crate::unpack::Form;

pub use artifact::Artifact;
pub(crate) use json::{check as check_json, check_within as check_json_within};
pub use platform::{Platform, select_platform};
pub use profile::{PROFILE_MANIFEST_LIMIT_BYTES, parse_profile};
pub(crate) use write::{Blob, index_of_names, manifest_of_layers};

/// The longest manifest or index, in bytes.
pub const MANIFEST_LIMIT_BYTES: usize = 4 << 20;
/// The longest image config, in bytes.
pub const CONFIG_LIMIT_BYTES: usize = 4 << 20;
/// How many indexes there may be between a reference and a manifest.
pub const INDEX_NESTING_LIMIT: usize = 3;
/// The most entries of an index, and the most layers of a manifest.
pub const ENTRIES_LIMIT: usize = 2_000;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The media types of image configs; the last ones come from old versions of Docker and some tools.
const CONFIGS: [&str; 7] = [
    OCI_CONFIG,
    DOCKER_CONFIG,
    "application/octet-stream",
    "application/json",
    "text/html",
    "text/plain",
    "",
];

/// The media types to request from a registry, best first.
pub const ACCEPTED: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// The digest of a document.
#[must_use]
pub fn digest_of(document: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(document).into())
}

/// Why a document is not a manifest or index that wharf accepts.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is longer than the limit.
    #[error("the document has {size_bytes} bytes; at most {limit_bytes} are allowed")]
    TooLarge {
        /// Its length.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Its lists have more entries than an image needs: each costs memory wherever the config is read.
    #[error("the document has more than {limit} entries, such as labels, variables and arguments, in all")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// It names a user with a name that no system can have.
    #[error("the user that the image names has {size_bytes} bytes; at most {limit_bytes} are allowed")]
    LongUser {
        /// The length.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// It is not JSON of the expected form, is nested too deeply, or has a duplicate key.
    #[error("the document is malformed")]
    Malformed {
        /// The parser's error, with the position.
        #[source]
        source: serde_json::Error,
    },
    /// A digest is not SHA-256 in its only spelling.
    #[error("the document has a digest that cannot be used")]
    Digest {
        /// The digest's error.
        #[source]
        source: DigestError,
    },
    /// It has the fields of both kinds, or lacks those of its own.
    #[error("the document is ambiguous: {reason}")]
    Ambiguous {
        /// What contradicts what.
        reason: String,
    },
    /// A file of an artifact has a name that cannot be one.
    #[error("the artifact has a file {name:?}, which {problem}")]
    FileName {
        /// The name, shortened to 200 characters.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It is not an image made of layers.
    #[error("this is not a runnable image: {reason}")]
    NotAnImage {
        /// What it is.
        reason: String,
    },
    /// It is not an artifact of one security profile.
    #[error("this is not a security profile: {reason}")]
    NotAProfile {
        /// What it is instead.
        reason: String,
    },
    /// No entry of the index is for this machine.
    #[error("the image has no variant for {wanted}; it has: {offered}")]
    NoPlatform {
        /// This machine's platform.
        wanted: String,
        /// The platforms in the index.
        offered: String,
    },
}

impl Failure for ManifestError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoPlatform { .. } => ErrorKind::NotFound,
            Self::TooLarge { .. } | Self::TooMany { .. } | Self::LongUser { .. } => {
                ErrorKind::ResourceExhausted
            }
            Self::NotAnImage { .. } | Self::Digest { source: DigestError::Algorithm { .. } } => {
                ErrorKind::Unimplemented
            }
            Self::FileName { .. } | Self::NotAProfile { .. } => ErrorKind::InvalidArgument,
            Self::Malformed { .. } | Self::Digest { .. } | Self::Ambiguous { .. } => ErrorKind::DataLoss,
        }
    }
}

/// A reference to a blob: its digest, its size and its claimed media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type, as the document gives it.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// The number of bytes.
    pub size_bytes: u64,
}

/// A manifest: one image for one platform, or an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image's config; its digest is the image's id. That of an artifact is made of its files.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// What the layers are if they are files.
    pub artifact: Option<Artifact>,
}

impl Manifest {
    /// What becomes of the blob of a layer.
    #[must_use]
    pub fn form(&self, layer: usize) -> Form {
        let path = self.artifact.as_ref().and_then(|artifact| artifact.paths().get(layer));
        path.map_or(Form::Archive, |path| Form::File(path.clone()))
    }
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// A manifest, or another index.
    pub descriptor: Descriptor,
    /// The platform that it is for; an entry need not name one.
    pub platform: Option<Platform>,
    /// The whole name that the index of an archive gives it, unchecked; a tag alone is none.
    pub name: Option<String>,
}

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A choice of manifests.
    Index(Vec<IndexEntry>),
    /// One image.
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default, deserialize_with = "json::null_is_empty")]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    /// Any value: only those of an artifact's files and of an archive's images are looked at.
    annotations: Option<serde_json::Value>,
}

impl TryFrom<RawDescriptor> for Descriptor {
    type Error = ManifestError;

    fn try_from(raw: RawDescriptor) -> Result<Self, ManifestError> {
        let digest = raw.digest.parse().map_err(|source| ManifestError::Digest { source })?;
        if raw.size > i64::MAX.cast_unsigned() {
            return Err(ambiguous(format!("{digest} has a size of {}", raw.size)));
        }
        Ok(Self { media_type: raw.media_type, digest, size_bytes: raw.size })
    }
}

/// Parses a manifest or an index. `content_type` is the registry's header, if it sent one; parameters after a semicolon
/// are ignored.
///
/// # Errors
/// [`ManifestError`] for anything that is not one image, or one choice of images, in one of the two formats.
pub fn parse_index_or_manifest(bytes: &[u8], content_type: Option<&str>) -> Result<Document, ManifestError> {
    if bytes.len() > MANIFEST_LIMIT_BYTES {
        return Err(ManifestError::TooLarge { size_bytes: bytes.len(), limit_bytes: MANIFEST_LIMIT_BYTES });
    }
    check_json(bytes).map_err(|source| ManifestError::Malformed { source })?;
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Malformed { source })?;
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let kind = kind_of(&raw, content_type)?;
    match (kind, raw.manifests, raw.config, raw.layers) {
        (Kind::Index, Some(manifests), None, None) => index(manifests).map(Document::Index),
        // An image may also claim to be an artifact; an artifact that is not an image has another config type.
        (Kind::Manifest, None, Some(config), Some(layers)) => {
            let is_image = CONFIGS.contains(&config.media_type.as_str());
            // Docker has plugins, which are no files to be mounted.
            let is_docker = raw.media_type.as_deref() == Some(DOCKER_MANIFEST);
            let manifest = match (is_image, is_docker) {
                (true, _) => manifest(config, layers),
                (false, false) => artifact::manifest(layers),
                (false, true) => {
                    Err(not_an_image(format!("its config is of type {:.100}", config.media_type)))
                }
            };
            manifest.map(Document::Manifest)
        }
        (Kind::Index, ..) => {
            Err(ambiguous("an index must have manifests, and neither config nor layers".into()))
        }
        (Kind::Manifest, ..) => {
            Err(ambiguous("a manifest must have config and layers, and no manifests".into()))
        }
    }
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Kind {
    Index,
    Manifest,
}

/// The kind, from the document's media type, the header's, and the fields: all that are present must agree.
fn kind_of(raw: &RawDocument, content_type: Option<&str>) -> Result<Kind, ManifestError> {
    let header = content_type.filter(|text| text.starts_with("application/vnd."));
    if raw.fs_layers.is_some()
        || raw.schema_version == Some(1)
        || [raw.media_type.as_deref(), header].iter().flatten().any(|text| text.starts_with(SCHEMA1))
    {
        let reason = "Docker's manifest schema 1, which is obsolete; push the image again".into();
        return Err(not_an_image(reason));
    }
    if raw.schema_version != Some(2) {
        return Err(ambiguous("schemaVersion is not 2".into()));
    }
    let own = raw.media_type.as_deref().filter(|text| !text.is_empty());
    let kinds = (own.map(kind_of_type).transpose()?, header.map(kind_of_type).transpose()?);
    match kinds {
        // Registries and builders confuse the names of the two formats, but never manifest with index.
        (Some(kind), Some(called)) if kind != called => {
            let (own, header) = (own.unwrap_or_default(), header.unwrap_or_default());
            Err(ambiguous(format!("it calls itself {own:.100}, the registry calls it {header:.100}")))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        // OCI makes the field optional; without it the fields alone decide.
        (None, None) if raw.manifests.is_some() => Ok(Kind::Index),
        (None, None) => Ok(Kind::Manifest),
    }
}

fn kind_of_type(media_type: &str) -> Result<Kind, ManifestError> {
    match media_type {
        OCI_INDEX | DOCKER_LIST => Ok(Kind::Index),
        OCI_MANIFEST | DOCKER_MANIFEST => Ok(Kind::Manifest),
        other => Err(not_an_image(format!("a document of type {other:.100}"))),
    }
}

fn index(manifests: Vec<RawDescriptor>) -> Result<Vec<IndexEntry>, ManifestError> {
    if manifests.len() > ENTRIES_LIMIT {
        return Err(ambiguous(format!("it lists {} manifests", manifests.len())));
    }
    let entry = |mut raw: RawDescriptor| {
        let (platform, name) = (raw.platform.take(), names::of(raw.annotations.take()));
        Ok(IndexEntry { platform, name, descriptor: raw.try_into()? })
    };
    manifests.into_iter().map(entry).collect()
}

fn manifest(config: RawDescriptor, layers: Vec<RawDescriptor>) -> Result<Manifest, ManifestError> {
    check_count(&layers)?;
    let config = Descriptor::try_from(config)?;
    if config.size_bytes > CONFIG_LIMIT_BYTES as u64 {
        let size_bytes = usize::try_from(config.size_bytes).unwrap_or(usize::MAX);
        return Err(ManifestError::TooLarge { size_bytes, limit_bytes: CONFIG_LIMIT_BYTES });
    }
    let layer = |raw: RawDescriptor| {
        check_layer_type(&raw.media_type)?;
        raw.try_into()
    };
    let layers = layers.into_iter().map(layer).collect::<Result<_, _>>()?;
    Ok(Manifest { config, layers, artifact: None })
}

fn check_count(layers: &[RawDescriptor]) -> Result<(), ManifestError> {
    if layers.len() > ENTRIES_LIMIT {
        return Err(ambiguous(format!("it lists {} layers", layers.len())));
    }
    Ok(())
}

/// Only archives are layers. An archive's compression is recognised by its first bytes.
fn check_layer_type(media_type: &str) -> Result<(), ManifestError> {
    const ARCHIVES: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    match ARCHIVES.iter().find_map(|base| media_type.strip_prefix(base)) {
        Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd") => Ok(()),
        _ => Err(not_an_image(format!("it has a layer of type {media_type:.100}"))),
    }
}

fn ambiguous(reason: String) -> ManifestError {
    ManifestError::Ambiguous { reason }
}

fn not_an_image(reason: String) -> ManifestError {
    ManifestError::NotAnImage { reason }
}

#[cfg(test)]
mod tests;
