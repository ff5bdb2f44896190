//! Archives of the form of `docker save`: `manifest.json` lists images, each with its tags, its config and its layers.
//!
//! The files have any names, and there are no digests except those of the layers in the config. So each image gets a
//! manifest that is made up here, and no digest: a registry would have another manifest of it.

use std::collections::HashMap;

use serde::Deserialize;

use super::LoadError;
use super::listed::{Documents, IMAGES_LIMIT, Listed, unusable};
use super::spool::{Spool, Spooled};
use crate::manifest::{
    CONFIG_LIMIT_BYTES, Document, ENTRIES_LIMIT, MANIFEST_LIMIT_BYTES, ManifestError, check_json, digest_of,
    manifest_of_layers, parse_index_or_manifest,
};

/// The file that lists the images.
pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn images(spool: &Spool<'_>) -> Result<Vec<Listed>, LoadError> {
    let bytes = spool.read(spool.find(MANIFEST)?, MANIFEST_LIMIT_BYTES)?;
    let malformed = |source| unusable(MANIFEST)(ManifestError::Malformed { source });
    check_json(&bytes).map_err(malformed)?;
    let raw: Vec<RawImage> = serde_json::from_slice(&bytes).map_err(malformed)?;
    if raw.len() > IMAGES_LIMIT {
        return Err(LoadError::Limit { what: "images", limit: IMAGES_LIMIT as u64 });
    }
    let (mut documents, mut known) = (Documents::default(), HashMap::new());
    let mut listed: Vec<Listed> = Vec::new();
    for raw in raw {
        let image = image(spool, raw, &mut documents)?;
        let at = *known.entry(image.manifest_digest.clone()).or_insert(listed.len());
        match listed.get_mut(at) {
            Some(same) => same.names.extend(image.names),
            None => listed.push(image),
        }
    }
    Ok(listed)
}

fn image(spool: &Spool<'_>, raw: RawImage, documents: &mut Documents) -> Result<Listed, LoadError> {
    let layers = raw.layers.unwrap_or_default();
    if layers.len() > ENTRIES_LIMIT {
        return Err(LoadError::Limit { what: "layers of one image", limit: ENTRIES_LIMIT as u64 });
    }
    let config = documents.keep(spool.read(spool.find(&raw.config)?, CONFIG_LIMIT_BYTES)?)?;
    let diff_ids = documents.diff_ids(&raw.config, &config, layers.len())?;
    let blobs: Vec<Spooled> =
        layers.iter().map(|name| spool.find(name).cloned()).collect::<Result<_, _>>()?;
    let listed: Vec<_> = blobs.iter().map(|blob| (blob.digest.clone(), blob.size_bytes)).collect();
    let manifest_bytes = manifest_of_layers(&(digest_of(&config), config.len() as u64), &listed);
    let manifest_bytes = documents.keep(manifest_bytes)?;
    let manifest = match parse_index_or_manifest(&manifest_bytes, None).map_err(unusable(MANIFEST))? {
        Document::Manifest(manifest) => manifest,
        Document::Index(_) => return Err(LoadError::NoImage),
    };
    let names = documents.names(&raw.repo_tags.unwrap_or_default())?;
    let (resolved, manifest_digest) = (None, digest_of(&manifest_bytes));
    Ok(Listed { names, resolved, manifest, manifest_bytes, manifest_digest, config, diff_ids, blobs })
}
