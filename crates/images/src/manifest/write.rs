//! Documents that wharf writes: the manifest of an image that came without one or is saved, and an archive's index.

use serde_json::{Value, json};
use wharf_types::{Digest, Reference};

use super::names::{IMAGE_NAME, REF_NAME};
use super::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};

/// The media type of any layer here: its compression is recognised by its first bytes.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A digest and a size in bytes.
pub(crate) type Blob = (Digest, u64);

/// The manifest of an image with this config and these layers, bottom first. The same image has the same manifest.
pub(crate) fn manifest_of_layers(config: &Blob, layers: &[Blob]) -> Vec<u8> {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config), "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// The index of an archive of manifests, each with its platform, once for each of its names.
pub(crate) fn index_of_names(manifests: &[(Blob, Value, &[Reference])]) -> Vec<u8> {
    let mut entries = Vec::new();
    for (manifest, platform, names) in manifests {
        let mut entry = descriptor(OCI_MANIFEST, manifest);
        entry["platform"] = platform.clone();
        for name in *names {
            let mut named = entry.clone();
            named["annotations"] =
                json!({ IMAGE_NAME: name.to_string(), REF_NAME: name.tag().unwrap_or_default() });
            entries.push(named);
        }
        if names.is_empty() {
            entries.push(entry);
        }
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    index.to_string().into_bytes()
}

fn descriptor(media_type: &str, (digest, size_bytes): &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size_bytes })
}
