//! Images as an archive: an OCI image layout that is also of the form of `docker save`, for every tool that loads one.
//!
//! The archives that an image's layers came from are not kept, so each layer is packed anew ([`pack`]), and has another
//! digest. The config lists the new digests and is otherwise the same. So the image that is saved has another id than
//! the one in the store, always the same one; an image that was loaded from such an archive is saved under its own id.
//!
//! Nothing is written to disk. A layer is packed twice: for its digest, which is its name in the archive, and then into
//! the archive.

mod pack;
mod tar;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wharf_sys::fs::{Resolve, open_below};
use wharf_types::{Digest, ErrorKind, Failure, Reference};

use crate::config::parse_config;
use crate::image::Image;
use crate::layer::LayerLease;
use crate::load::spool::blob_name;
use crate::manifest::{
    Blob, Document, MANIFEST_LIMIT_BYTES, ManifestError, digest_of, index_of_names, manifest_of_layers,
    parse_index_or_manifest,
};
use crate::records::{RecordError, load_layer};
use crate::store::{Store, StoreError};
use crate::unpack::Contents;
use pack::pack;
use tar::{END, Head, padding};

/// Why images could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is no such image.
    #[error("there is no image {name:?}")]
    Unknown {
        /// What was asked for, shortened to 200 characters.
        name: String,
    },
    /// It is not made of archives.
    #[error("{name} is an artifact, and its files are not image layers: only images can be saved")]
    Artifact {
        /// What was asked for.
        name: String,
    },
    /// A layer of the image is being removed.
    #[error("the image {id} is being removed")]
    Leaving {
        /// The image.
        id: Digest,
    },
    /// A document of the image cannot be used.
    #[error("cannot use the {what} of the image {id}")]
    Document {
        /// Which one.
        what: &'static str,
        /// The image.
        id: Digest,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The config of the image cannot be read.
    #[error("cannot save the image")]
    Config {
        /// Why.
        #[from]
        source: StoreError,
    },
    /// The record of a layer cannot be read.
    #[error("cannot read the record of the layer {layer}")]
    Record {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// A layer has too many files with several names.
    #[error("the names of a layer's hard links exceed {limit} bytes in total")]
    Names {
        /// How many bytes there may be.
        limit: usize,
    },
    /// A layer has a hard link to a file of another.
    #[error("the layer's file {path:?} is a hard link to a file of a lower layer, which cannot be saved")]
    LinkBelow {
        /// The link, shortened to 200 characters.
        path: String,
    },
    /// A layer is not what it was when it was unpacked.
    #[error("the layer's file {path:?} is damaged, or was changed while it was saved")]
    Changed {
        /// The file, shortened to 200 characters.
        path: String,
    },
    /// A layer cannot be read.
    #[error("cannot read the layer's file {path:?}")]
    System {
        /// The file, shortened to 200 characters.
        path: String,
        /// The call that failed.
        #[source]
        source: wharf_sys::Error,
    },
    /// The archive could not be written: its reader has gone away.
    #[error("cannot write the archive")]
    Write {
        /// The writer's error.
        #[from]
        source: io::Error,
    },
}

impl Failure for SaveError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Artifact { .. } | Self::LinkBelow { .. } | Self::Leaving { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::Document { source, .. } => source.kind(),
            Self::Config { source } => source.kind(),
            Self::Record { source, .. } => source.kind(),
            Self::Names { .. } => ErrorKind::ResourceExhausted,
            Self::Changed { .. } => ErrorKind::DataLoss,
            Self::System { source, .. } => source.kind(),
            Self::Write { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Images that are about to be written as an archive.
#[derive(Debug)]
pub struct Archived {
    images: Vec<ArchivedImage>,
    /// The distinct layers, by their digests in the archive.
    layers: BTreeMap<Digest, (u64, Digest)>,
    store: Store,
    /// They keep the layers as long as this exists.
    leases: Vec<LayerLease>,
}

/// One of them.
#[derive(Debug)]
pub struct ArchivedImage {
    /// Its id in the store.
    pub id: Digest,
    /// Its id in the archive, and wherever that is loaded.
    pub archived_id: Digest,
    /// Its names in the archive.
    pub names: Vec<Reference>,
    config: Vec<u8>,
    manifest: Vec<u8>,
    platform: Value,
    layers: Vec<Blob>,
}

impl Store {
    /// Prepares images to be saved, and keeps their layers until then. An image that is named by a tag gets this name
    /// in the archive, any other all its tags. Blocks for the disk: it reads all layers.
    ///
    /// # Errors
    /// [`SaveError`]; `wanted` ends it with the writer's error when nobody waits any more.
    pub fn archive(
        &self,
        names: &[String],
        wanted: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Archived, SaveError> {
        let mut chosen: Vec<(Arc<Image>, BTreeSet<String>)> = Vec::new();
        for name in names {
            let shown = || name.chars().take(200).collect();
            let image = self.find(name).ok_or_else(|| SaveError::Unknown { name: shown() })?;
            let tags = tags_of(&image, name);
            match chosen.iter_mut().find(|(other, _)| other.id() == image.id()) {
                Some((_, others)) => others.extend(tags),
                None => chosen.push((image, tags)),
            }
        }
        let mut archived =
            Archived { images: Vec::new(), layers: BTreeMap::new(), store: self.clone(), leases: Vec::new() };
        let mut packed = BTreeMap::new();
        for (image, tags) in chosen {
            archived.add(&image, &tags, &mut packed, wanted)?;
        }
        Ok(archived)
    }

    /// A document of an image.
    fn document(&self, digest: &Digest, limit_bytes: usize) -> Result<Vec<u8>, SaveError> {
        let read = self.shared.read_document(digest, limit_bytes);
        read.map_err(|source| SaveError::System { path: digest.to_string(), source })
    }

    fn layer(&self, diff_id: &Digest) -> Result<(OwnedFd, Contents), SaveError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let path = format!("{}/fs", diff_id.hex());
        let root = open_below(self.shared.layers.as_fd(), path, flags, Resolve::BeneathNoLinks)
            .map_err(|source| SaveError::System { path: diff_id.to_string(), source })?;
        let contents = load_layer(&self.shared.layers_path.join(diff_id.hex()))
            .map_err(|source| SaveError::Record { layer: diff_id.clone(), source })?;
        Ok((root, contents))
    }
}

/// The tags of an image that a name asks for.
fn tags_of(image: &Image, name: &str) -> BTreeSet<String> {
    let tag = name.parse::<Reference>().ok().and_then(|name| name.tagged());
    match tag.filter(|tag| image.repo_tags().contains(tag)) {
        Some(tag) => BTreeSet::from([tag]),
        None => image.repo_tags().iter().cloned().collect(),
    }
}

impl Archived {
    /// The images.
    #[must_use]
    pub fn images(&self) -> &[ArchivedImage] {
        &self.images
    }

    /// The size of all layers, which is nearly that of the archive.
    #[must_use]
    pub fn layers_bytes(&self) -> u64 {
        self.layers.values().map(|(size_bytes, _)| size_bytes).sum()
    }

    fn add(
        &mut self,
        image: &Image,
        tags: &BTreeSet<String>,
        packed: &mut BTreeMap<Digest, Blob>,
        wanted: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), SaveError> {
        let id = image.id();
        let unusable = |what| move |source| SaveError::Document { what, id: id.clone(), source };
        let shown = || tags.first().cloned().unwrap_or_else(|| id.to_string());
        let manifest = image.record().manifests.first().and_then(|digest| digest.parse().ok());
        if let Some(digest) = manifest {
            let manifest = self.store.document(&digest, MANIFEST_LIMIT_BYTES)?;
            if let Document::Manifest(manifest) =
                parse_index_or_manifest(&manifest, None).map_err(unusable("manifest"))?
                && manifest.artifact.is_some()
            {
                return Err(SaveError::Artifact { name: shown() });
            }
        }
        let config = self.store.config_bytes(image)?;
        let (platform, diff_ids) = {
            let (parsed, diff_ids) = parse_config(&config).map_err(unusable("config"))?;
            (platform(&parsed), diff_ids)
        };
        let distinct: BTreeSet<_> = diff_ids.iter().map(|diff_id| diff_id.hex().to_owned()).collect();
        let lease = self.store.lease_names(distinct.into_iter().collect());
        self.leases.push(lease.ok_or_else(|| SaveError::Leaving { id: id.clone() })?);
        let mut layers = Vec::new();
        for diff_id in &diff_ids {
            let blob = match packed.get(diff_id) {
                Some(blob) => blob.clone(),
                None => self.measure(diff_id, wanted)?,
            };
            packed.insert(diff_id.clone(), blob.clone());
            self.layers.insert(blob.0.clone(), (blob.1, diff_id.clone()));
            layers.push(blob);
        }
        let config = with_layers(config, &diff_ids, &layers).map_err(unusable("config"))?;
        let archived_id = digest_of(&config);
        let manifest = manifest_of_layers(&(archived_id.clone(), config.len() as u64), &layers);
        let names = tags.iter().filter_map(|tag| tag.parse().ok()).collect();
        let id = id.clone();
        self.images.push(ArchivedImage { id, archived_id, names, config, manifest, platform, layers });
        Ok(())
    }

    /// Packs a layer to nowhere, and returns its digest and its size.
    fn measure(
        &self,
        diff_id: &Digest,
        wanted: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Blob, SaveError> {
        let (root, contents) = self.store.layer(diff_id)?;
        let mut out = Hashing { inner: Nowhere(wanted), hash: Sha256::new(), size_bytes: 0 };
        pack(&root, &contents, &mut out)?;
        Ok((Digest::from_sha256(out.hash.finalize().into()), out.size_bytes))
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// [`SaveError`]; what has been written is then no archive.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), SaveError> {
        let described: Vec<_> = self.images.iter().map(|image| image.described()).collect();
        file(out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        file(out, "index.json", &index_of_names(&described))?;
        file(out, "manifest.json", &self.docker_manifest())?;
        let mut documents = BTreeMap::new();
        for image in &self.images {
            documents.insert(&image.archived_id, &image.config);
        }
        let digests: Vec<_> = self.images.iter().map(|image| digest_of(&image.manifest)).collect();
        documents.extend(digests.iter().zip(self.images.iter().map(|image| &image.manifest)));
        for (digest, document) in documents {
            file(out, &blob_name(digest), document)?;
        }
        for (digest, (size_bytes, diff_id)) in &self.layers {
            Head::file(blob_name(digest).as_bytes(), *size_bytes).write(out)?;
            let (root, contents) = self.store.layer(diff_id)?;
            let mut hashing = Hashing { inner: &mut *out, hash: Sha256::new(), size_bytes: 0 };
            pack(&root, &contents, &mut hashing)?;
            if Digest::from_sha256(hashing.hash.finalize().into()) != *digest {
                return Err(SaveError::Changed { path: diff_id.to_string() });
            }
            out.write_all(padding(*size_bytes))?;
        }
        out.write_all(&END)?;
        Ok(out.flush()?)
    }

    fn docker_manifest(&self) -> Vec<u8> {
        let entry = |image: &ArchivedImage| {
            let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
            let layers: Vec<_> = image.layers.iter().map(|(digest, _)| blob_name(digest)).collect();
            json!({ "Config": blob_name(&image.archived_id), "RepoTags": names, "Layers": layers })
        };
        json!(self.images.iter().map(entry).collect::<Vec<_>>()).to_string().into_bytes()
    }
}

impl ArchivedImage {
    fn described(&self) -> (Blob, Value, &[Reference]) {
        ((digest_of(&self.manifest), self.manifest.len() as u64), self.platform.clone(), &self.names)
    }
}

fn platform(config: &ImageConfiguration) -> Value {
    let mut platform =
        json!({ "os": config.os().to_string(), "architecture": config.architecture().to_string() });
    if let Some(variant) = config.variant() {
        platform["variant"] = json!(variant);
    }
    platform
}

/// The config with the layers' new digests; the same bytes if these are the old ones.
fn with_layers(config: Vec<u8>, old: &[Digest], new: &[Blob]) -> Result<Vec<u8>, ManifestError> {
    if old.iter().eq(new.iter().map(|(digest, _)| digest)) {
        return Ok(config);
    }
    let malformed = |source| ManifestError::Malformed { source };
    let mut config: Value = serde_json::from_slice(&config).map_err(malformed)?;
    let digests: Vec<_> = new.iter().map(|(digest, _)| digest.to_string()).collect();
    config["rootfs"]["diff_ids"] = json!(digests);
    Ok(config.to_string().into_bytes())
}

fn file(out: &mut dyn Write, name: &str, content: &[u8]) -> Result<(), SaveError> {
    Head::file(name.as_bytes(), content.len() as u64).write(out)?;
    out.write_all(content)?;
    Ok(out.write_all(padding(content.len() as u64))?)
}

/// A writer that keeps nothing, and fails when nobody waits any more.
struct Nowhere<'a>(&'a mut dyn FnMut() -> io::Result<()>);

impl Write for Nowhere<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)().map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that hashes and counts what passes through it.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    size_bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
