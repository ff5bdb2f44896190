//! Real images, from the OCI layouts that tests/images builds, as a registry would have them.

use std::fs;
use std::path::Path;

use crate::image::{Content, OCI_INDEX, OCI_MANIFEST, sha256};

/// The repository of a layout with one image, which gets the tag `latest`.
pub(crate) fn content(layout: &Path) -> Content {
    let mut content = Content::default();
    for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap().flatten() {
        let digest = format!("sha256:{}", blob.file_name().to_string_lossy());
        let bytes = fs::read(blob.path()).unwrap();
        let document: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        let kind = document.as_ref().and_then(|document| document["mediaType"].as_str());
        if let Some(kind) = kind {
            content.put(&format!("manifests/{digest}"), kind, bytes.clone());
        }
        content.put(&format!("blobs/{digest}"), "application/octet-stream", bytes);
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let tagged = content.file(&format!("manifests/{digest}")).1.clone();
    content.put("manifests/latest", OCI_INDEX, tagged);
    content
}

/// The same content with another config for the one image for this machine, which gets the tag.
pub(crate) fn with_config(mut content: Content, change: impl FnOnce(&mut serde_json::Value)) -> Content {
    let document = |content: &Content, below: &str| -> serde_json::Value {
        serde_json::from_slice(&content.file(below).1).unwrap()
    };
    let mut manifest = document(&content, "manifests/latest");
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    while let Some(listed) = manifest["manifests"].as_array() {
        let fits = |entry: &&serde_json::Value| {
            entry["platform"]["architecture"].as_str().is_none_or(|architecture| architecture == machine)
        };
        let next = listed.iter().find(fits).unwrap()["digest"].as_str().unwrap();
        manifest = document(&content, &format!("manifests/{next}"));
    }
    let mut config = document(&content, &format!("blobs/{}", manifest["config"]["digest"].as_str().unwrap()));
    change(&mut config);
    let config = config.to_string().into_bytes();
    let digest = sha256(&config);
    manifest["config"]["digest"] = digest.to_string().into();
    manifest["config"]["size"] = config.len().into();
    content.put(&format!("blobs/{digest}"), "application/octet-stream", config);
    let manifest = manifest.to_string().into_bytes();
    content.put(&format!("manifests/{}", sha256(&manifest)), OCI_MANIFEST, manifest.clone());
    content.put("manifests/latest", OCI_MANIFEST, manifest);
    content
}
