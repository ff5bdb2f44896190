//! Real images, from the OCI layouts that tests/images builds, as a registry holds them.

use std::fs;
use std::path::Path;

use crate::image::{Content, OCI_INDEX};

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
