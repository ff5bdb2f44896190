//! The images of an archive, with everything about them that is known before a layer is unpacked.

use std::collections::{BTreeMap, BTreeSet};

use wharf_types::{Digest, Reference};

use super::spool::{Spool, Spooled};
use super::{LoadError, docker, layout};
use crate::config::parse_config;
use crate::manifest::{Manifest, ManifestError, digest_of};
use crate::unpack::shown;

/// The most images of an archive.
pub(super) const IMAGES_LIMIT: usize = 1000;
/// The most names of all its images, repeated ones included. An index cannot list more.
const NAMES_LIMIT: usize = 2000;
/// The most bytes of all manifests and configs, which are in memory until the images are in the store.
const DOCUMENTS_LIMIT_BYTES: usize = 128 << 20;
/// The most layers of all images, those that they share counted for each: an archive of some kilobytes can list
/// millions.
const LAYERS_LIMIT: usize = 20_000;

/// An image of an archive.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) names: Vec<Reference>,
    /// The digest that its names have: none if a registry would have another manifest of it.
    pub(super) resolved: Option<Digest>,
    pub(super) manifest: Manifest,
    pub(super) manifest_bytes: Vec<u8>,
    pub(super) manifest_digest: Digest,
    pub(super) config: Vec<u8>,
    pub(super) diff_ids: Vec<Digest>,
    /// The blobs of its layers, bottom first.
    pub(super) blobs: Vec<Spooled>,
}

impl Listed {
    /// What an error or a message calls it: its first name, or its id.
    pub(super) fn shown(&self) -> String {
        self.names.first().map_or_else(|| self.manifest.config.digest.to_string(), ToString::to_string)
    }
}

/// All images of an archive. One that is both an OCI layout and of Docker's form is read as the former, which has the
/// manifests by which registries know its images.
pub(super) fn images(spool: &Spool<'_>) -> Result<Vec<Listed>, LoadError> {
    let mut listed = if spool.has(layout::MARK) && spool.has(layout::INDEX) {
        layout::images(spool)?
    } else if spool.has(docker::MANIFEST) {
        docker::images(spool)?
    } else {
        return Err(LoadError::NoImage);
    };
    if listed.is_empty() {
        return Err(LoadError::NoImage);
    }
    check(&listed)?;
    for image in &mut listed {
        let mut told = BTreeSet::new();
        image.names.retain(|name| told.insert(name.clone()));
    }
    Ok(listed)
}

/// Checks what the images of an archive have together.
fn check(listed: &[Listed]) -> Result<(), LoadError> {
    let mut owners = BTreeMap::new();
    for image in listed {
        let id = &image.manifest.config.digest;
        for name in &image.names {
            if name.digest().is_some_and(|digest| Some(digest) != image.resolved.as_ref()) {
                return Err(LoadError::NameDigest { name: name.to_string() });
            }
            if owners.insert(name, id).is_some_and(|other| other != id) {
                return Err(LoadError::NameTwice { name: name.to_string() });
            }
        }
    }
    Ok(())
}

/// What the documents so far have.
#[derive(Debug, Default)]
pub(super) struct Documents {
    bytes: usize,
    layers: usize,
    names: usize,
}

impl Documents {
    pub(super) fn keep(&mut self, document: Vec<u8>) -> Result<Vec<u8>, LoadError> {
        self.bytes += document.len();
        if self.bytes > DOCUMENTS_LIMIT_BYTES {
            let limit = DOCUMENTS_LIMIT_BYTES as u64;
            return Err(LoadError::Limit { what: "bytes of manifests and configs", limit });
        }
        Ok(document)
    }

    pub(super) fn names(&mut self, tags: &[String]) -> Result<Vec<Reference>, LoadError> {
        self.names += tags.len();
        if self.names > NAMES_LIMIT {
            return Err(LoadError::Limit { what: "names of images", limit: NAMES_LIMIT as u64 });
        }
        Ok(tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>()?)
    }

    /// The layers that a config lists, of which there must be as many as the image has.
    pub(super) fn diff_ids(
        &mut self,
        name: &str,
        config: &[u8],
        layers: usize,
    ) -> Result<Vec<Digest>, LoadError> {
        self.layers += layers;
        if self.layers > LAYERS_LIMIT {
            return Err(LoadError::Limit { what: "layers in all its images", limit: LAYERS_LIMIT as u64 });
        }
        let (_config, diff_ids) = parse_config(config).map_err(unusable(name))?;
        if diff_ids.len() != layers {
            let reason = format!("{layers} layers in the manifest, {} in the config", diff_ids.len());
            return Err(unusable(name)(ManifestError::Ambiguous { reason }));
        }
        Ok(diff_ids)
    }
}

/// The document has that digest, whatever names it.
pub(super) fn check_digest(expected: &Digest, document: &[u8]) -> Result<(), LoadError> {
    let found = digest_of(document);
    if found == *expected { Ok(()) } else { Err(LoadError::Blob { expected: expected.clone(), found }) }
}

pub(super) fn unusable(name: &str) -> impl FnOnce(ManifestError) -> LoadError {
    let name = shown(name.as_bytes());
    move |source| LoadError::Document { name, source }
}
