//! Archives of an OCI image layout: `oci-layout`, `index.json` and blobs by digest.
//!
//! Each entry of the index is an image or a choice of images. Entries with one name are a choice as well: the one for
//! this machine is taken, as in a pull. Entries without a name are separate images, and those for other machines are
//! passed over, unless there is nothing else.

use serde::Deserialize;

use super::LoadError;
use super::listed::{Documents, IMAGES_LIMIT, Listed, check_digest, unusable};
use super::spool::{Spool, blob_name};
use crate::manifest::{
    CONFIG_LIMIT_BYTES, Descriptor, Document, INDEX_NESTING_LIMIT, IndexEntry, MANIFEST_LIMIT_BYTES,
    Manifest, ManifestError, Platform, check_json, digest_of, parse_index_or_manifest, select_platform,
};

/// The file that says that there is a layout, and of which version.
pub(super) const MARK: &str = "oci-layout";
/// The file that lists the images.
pub(super) const INDEX: &str = "index.json";

const MARK_LIMIT_BYTES: usize = 4096;

#[derive(Deserialize)]
struct Mark {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

pub(super) fn images(spool: &Spool<'_>) -> Result<Vec<Listed>, LoadError> {
    check_mark(spool)?;
    let bytes = spool.read(spool.find(INDEX)?, MANIFEST_LIMIT_BYTES)?;
    let entries = match parse_index_or_manifest(&bytes, None).map_err(unusable(INDEX))? {
        Document::Index(entries) => entries,
        Document::Manifest(_) => {
            let reason = "it is a manifest, not an index".to_owned();
            return Err(unusable(INDEX)(ManifestError::Ambiguous { reason }));
        }
    };
    let (mut listed, mut documents): (Vec<Listed>, _) = (Vec::new(), Documents::default());
    for (descriptor, name) in chosen(&entries)? {
        let names: Vec<_> = name.map(str::parse).transpose()?.into_iter().collect();
        let is_known = |image: &&mut Listed| image.resolved.as_ref() == Some(&descriptor.digest);
        if let Some(image) = listed.iter_mut().find(is_known) {
            image.names.extend(names);
            continue;
        }
        if listed.len() == IMAGES_LIMIT {
            return Err(LoadError::Limit { what: "images", limit: IMAGES_LIMIT as u64 });
        }
        let image = image(spool, descriptor, &mut documents)?;
        listed.push(Listed { names, ..image });
    }
    Ok(listed)
}

fn check_mark(spool: &Spool<'_>) -> Result<(), LoadError> {
    let bytes = spool.read(spool.find(MARK)?, MARK_LIMIT_BYTES)?;
    let malformed = |source| unusable(MARK)(ManifestError::Malformed { source });
    check_json(&bytes).map_err(malformed)?;
    let mark: Mark = serde_json::from_slice(&bytes).map_err(malformed)?;
    if !mark.version.starts_with("1.") {
        let reason = format!("an image layout of version {:.40}", mark.version);
        return Err(unusable(MARK)(ManifestError::NotAnImage { reason }));
    }
    Ok(())
}

/// The entries for this machine, each with the name that it has.
fn chosen(entries: &[IndexEntry]) -> Result<Vec<(&Descriptor, Option<&str>)>, LoadError> {
    let host = Platform::host();
    let mut chosen = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for entry in entries {
        let Some(name) = entry.name.as_deref() else {
            let own = select_platform(std::slice::from_ref(entry), &host).ok();
            chosen.extend(own.map(|own| (own, None)));
            continue;
        };
        if seen.insert(name) {
            let same = |other: &&IndexEntry| other.name.as_deref() == Some(name);
            let group: Vec<_> = entries.iter().filter(same).cloned().collect();
            let digest = select_platform(&group, &host).map_err(unusable(INDEX))?.digest.clone();
            let taken = entries.iter().find(|entry| same(entry) && entry.descriptor.digest == digest);
            chosen.extend(taken.map(|entry| (&entry.descriptor, Some(name))));
        }
    }
    if chosen.is_empty() && !entries.is_empty() {
        select_platform(entries, &host).map_err(unusable(INDEX))?;
    }
    Ok(chosen)
}

/// The image to which a descriptor leads, without names.
fn image(spool: &Spool<'_>, top: &Descriptor, documents: &mut Documents) -> Result<Listed, LoadError> {
    let (manifest, manifest_bytes) = manifest(spool, top)?;
    let manifest_bytes = documents.keep(manifest_bytes)?;
    let name = blob_name(&manifest.config.digest);
    let config = match &manifest.artifact {
        Some(artifact) => artifact.config().to_owned(),
        None => {
            let blob = spool.blob(&manifest.config.digest, manifest.config.size_bytes)?;
            spool.read(blob, CONFIG_LIMIT_BYTES)?
        }
    };
    check_digest(&manifest.config.digest, &config)?;
    let config = documents.keep(config)?;
    let diff_ids = documents.diff_ids(&name, &config, manifest.layers.len())?;
    let blob = |layer: &Descriptor| spool.blob(&layer.digest, layer.size_bytes).cloned();
    let blobs = manifest.layers.iter().map(blob).collect::<Result<_, _>>()?;
    let (names, resolved) = (Vec::new(), Some(top.digest.clone()));
    let manifest_digest = digest_of(&manifest_bytes);
    Ok(Listed { names, resolved, manifest, manifest_bytes, manifest_digest, config, diff_ids, blobs })
}

/// Follows an index, or an index of indexes, to this machine's manifest.
fn manifest(spool: &Spool<'_>, top: &Descriptor) -> Result<(Manifest, Vec<u8>), LoadError> {
    let (host, mut descriptor) = (Platform::host(), top.clone());
    for _level in 0..=INDEX_NESTING_LIMIT {
        let name = blob_name(&descriptor.digest);
        let bytes = document(spool, &descriptor)?;
        let kind = Some(descriptor.media_type.as_str()).filter(|kind| !kind.is_empty());
        descriptor = match parse_index_or_manifest(&bytes, kind).map_err(unusable(&name))? {
            Document::Manifest(manifest) => return Ok((manifest, bytes)),
            Document::Index(entries) => select_platform(&entries, &host).map_err(unusable(&name))?.clone(),
        };
    }
    let reason = format!("more than {INDEX_NESTING_LIMIT} indexes in a row");
    Err(unusable(INDEX)(ManifestError::Ambiguous { reason }))
}

fn document(spool: &Spool<'_>, descriptor: &Descriptor) -> Result<Vec<u8>, LoadError> {
    let blob = spool.blob(&descriptor.digest, descriptor.size_bytes)?;
    let bytes = spool.read(blob, MANIFEST_LIMIT_BYTES)?;
    check_digest(&descriptor.digest, &bytes).map(|()| bytes)
}
