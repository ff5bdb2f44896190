//! Artifacts of security profiles: an OCI manifest whose only layer is one small document, as it stands.

use serde_json::Value;

use super::{Descriptor, Kind, ManifestError, OCI_MANIFEST, RawDescriptor, RawDocument, check_json, kind_of};
use crate::profiles::PROFILE_LIMIT_BYTES;

/// The longest manifest of a profile, in bytes.
pub const PROFILE_MANIFEST_LIMIT_BYTES: usize = 64 << 10;

/// What the config, or the whole artifact, calls itself.
const SECCOMP: &str = "application/vnd.cncf.seccomp-profile.config.v1+json";
/// The config of an artifact that has none.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Parses the manifest of a seccomp profile, and returns where the profile is. `content_type` is the registry's header,
/// if it sent one.
///
/// # Errors
/// [`ManifestError`] for anything that is not one such artifact, or is too large.
pub fn parse_profile(bytes: &[u8], content_type: Option<&str>) -> Result<Descriptor, ManifestError> {
    let (size_bytes, limit_bytes) = (bytes.len(), PROFILE_MANIFEST_LIMIT_BYTES);
    if size_bytes > limit_bytes {
        return Err(ManifestError::TooLarge { size_bytes, limit_bytes });
    }
    let malformed = |source| ManifestError::Malformed { source };
    check_json(bytes).map_err(malformed)?;
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(malformed)?;
    let whole: Value = serde_json::from_slice(bytes).map_err(malformed)?;
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let is_oci = raw.media_type.as_deref().is_none_or(|own| own.is_empty() || own == OCI_MANIFEST);
    let (Kind::Manifest, true, None, Some(config), Some(layers)) =
        (kind_of(&raw, content_type)?, is_oci, raw.manifests, raw.config, raw.layers)
    else {
        return Err(refused("it is not an OCI image manifest with config and layers"));
    };
    check_type(&config, whole["artifactType"].as_str().unwrap_or_default())?;
    let descriptors = whole["layers"].as_array().into_iter().flatten().chain([&whole["config"]]);
    if descriptors.into_iter().any(|descriptor| has_urls(&descriptor["urls"])) {
        return Err(refused("a descriptor has urls, and nothing is fetched from elsewhere"));
    }
    let count = layers.len();
    let Ok([layer]) = <[RawDescriptor; 1]>::try_from(layers) else {
        return Err(refused(&format!("it has {count} layers instead of one")));
    };
    let profile = Descriptor::try_from(layer)?;
    if profile.size_bytes > PROFILE_LIMIT_BYTES as u64 {
        let size_bytes = usize::try_from(profile.size_bytes).unwrap_or(usize::MAX);
        return Err(ManifestError::TooLarge { size_bytes, limit_bytes: PROFILE_LIMIT_BYTES });
    }
    Ok(profile)
}

/// The type is that of the config, or of the artifact if the config is empty. If both are given they must agree.
fn check_type(config: &RawDescriptor, artifact: &str) -> Result<(), ManifestError> {
    match (config.media_type.as_str(), artifact) {
        (SECCOMP, "" | SECCOMP) | (EMPTY, SECCOMP) => Ok(()),
        (SECCOMP, other) => Err(refused(&format!(
            "its config says that it is a seccomp profile, its artifactType {other:.100}"
        ))),
        (EMPTY, other) => Err(refused(&format!("its config is empty and its artifactType is {other:.100}"))),
        (other, _) => Err(refused(&format!("its config is of type {other:.100}"))),
    }
}

fn has_urls(urls: &Value) -> bool {
    !urls.is_null() && urls.as_array().is_none_or(|urls| !urls.is_empty())
}

fn refused(reason: &str) -> ManifestError {
    ManifestError::NotAProfile { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(media_type: &str) -> Value {
        json!({ "mediaType": media_type, "size": 7, "digest": format!("sha256:{}", "0".repeat(64)) })
    }

    fn artifact(change: impl FnOnce(&mut Value)) -> String {
        let layer = descriptor("application/x-anything");
        let mut artifact = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(SECCOMP), "layers": [layer],
        });
        change(&mut artifact);
        artifact.to_string()
    }

    #[test]
    fn a_profile_says_that_it_is_one() {
        let changes: [fn(&mut Value); 5] = [
            |_| {},
            |artifact| drop(artifact.as_object_mut().unwrap().remove("mediaType")),
            |artifact| artifact["artifactType"] = SECCOMP.into(),
            |artifact| (artifact["config"], artifact["artifactType"]) = (descriptor(EMPTY), SECCOMP.into()),
            |artifact| artifact["layers"][0]["urls"] = json!([]),
        ];
        for change in changes {
            let text = artifact(change);
            for header in [
                None,
                Some(OCI_MANIFEST),
                Some("application/json"),
                Some("application/vnd.oci.image.manifest.v1+json; x=y"),
            ] {
                assert_eq!(parse_profile(text.as_bytes(), header).unwrap().size_bytes, 7, "{text}");
            }
        }
    }

    #[test]
    fn what_is_not_one_profile_is_refused() {
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 15] = [
            (
                |artifact| artifact["config"] = descriptor("application/vnd.oci.image.config.v1+json"),
                "config is of type",
            ),
            (|artifact| artifact["config"] = descriptor(EMPTY), "config is empty"),
            (|artifact| artifact["artifactType"] = "application/x".into(), "artifactType application/x"),
            (|artifact| artifact["layers"] = json!([]), "0 layers"),
            (|artifact| artifact["layers"] = json!([descriptor("a"), descriptor("b")]), "2 layers"),
            (|artifact| artifact["layers"][0]["size"] = ((1 << 20) + 1).into(), "at most 1048576"),
            (|artifact| artifact["layers"][0]["urls"] = json!(["https://elsewhere.test"]), "urls"),
            (|artifact| artifact["config"]["urls"] = json!("https://elsewhere.test"), "urls"),
            (|artifact| artifact["layers"][0]["digest"] = "sha512:00".into(), "digest"),
            (|artifact| artifact["manifests"] = json!([]), "not an OCI image manifest"),
            (
                |artifact| drop(artifact.as_object_mut().unwrap().remove("config")),
                "not an OCI image manifest",
            ),
            (
                |artifact| artifact["mediaType"] = super::super::DOCKER_MANIFEST.into(),
                "not an OCI image manifest",
            ),
            (|artifact| artifact["mediaType"] = super::super::OCI_INDEX.into(), "not an OCI image manifest"),
            (|artifact| artifact["schemaVersion"] = 1.into(), "schema 1"),
            (|artifact| artifact["annotations"] = "x".repeat(64 << 10).into(), "at most 65536"),
        ];
        for (change, words) in changes {
            let error = parse_profile(artifact(change).as_bytes(), None).unwrap_err();
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        let twice = artifact(|_| {}).replacen("{", r#"{"layers":[],"#, 1);
        assert!(matches!(parse_profile(twice.as_bytes(), None), Err(ManifestError::Malformed { .. })));
        let index = "application/vnd.oci.image.index.v1+json";
        parse_profile(artifact(|_| {}).as_bytes(), Some(index)).unwrap_err();
    }
}
