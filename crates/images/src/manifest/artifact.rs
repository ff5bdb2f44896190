//! Artifacts: manifests whose blobs are files as they stand, to be mounted as a volume.
//!
//! A file has the name in the annotation of its descriptor by which tools know it, or else the digest of its blob. What
//! such a name says is hostile: it must be a path that leads nowhere else however it is read, and no two files may be
//! in each other's way. So there is no order in which one of them would win.
//!
//! The store keeps an artifact as an image that has each file in a layer of its own. An artifact has no config of an
//! image, so one is made up here from nothing but the digests of these layers: it has the same bytes wherever the
//! artifact is pulled. The digest of a layer is made up, too, from the file's name and its blob's digest. No archive
//! can have that digest, because it is the digest of a text that is not an archive.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    CONFIG_LIMIT_BYTES, Descriptor, Manifest, ManifestError, OCI_CONFIG, RawDescriptor, ambiguous,
    check_count, digest_of,
};

/// The annotation with a file's name.
const TITLE: &str = "org.opencontainers.image.title";
const PATH_LIMIT_BYTES: usize = 1024;
const COMPONENT_LIMIT_BYTES: usize = 255;

/// What distinguishes an artifact from an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    paths: Vec<String>,
    config: Vec<u8>,
}

impl Artifact {
    /// The files' paths, one for each layer of the manifest.
    #[must_use]
    pub fn paths(&self) -> &[String] {
        &self.paths
    }

    /// The config of the image as which it is kept.
    #[must_use]
    pub fn config(&self) -> &[u8] {
        &self.config
    }
}

/// The manifest of an artifact with these blobs.
pub(super) fn manifest(blobs: Vec<RawDescriptor>) -> Result<Manifest, ManifestError> {
    check_count(&blobs)?;
    if blobs.is_empty() {
        return Err(ambiguous("it is an artifact without files".into()));
    }
    let (mut paths, mut layers) = (Vec::new(), Vec::new());
    for mut blob in blobs {
        let annotations = blob.annotations.take().unwrap_or_default();
        let blob = Descriptor::try_from(blob)?;
        paths.push(match annotations[TITLE].as_str().filter(|title| !title.is_empty()) {
            Some(title) => checked(title)?.to_owned(),
            None => blob.digest.hex().to_owned(),
        });
        layers.push(blob);
    }
    check_places(&paths)?;
    let layer = |(path, blob): (&String, &Descriptor)| {
        digest_of(format!("a file of an artifact\n{}\n{path}", blob.digest).as_bytes()).to_string()
    };
    let layer_digests: Vec<String> = paths.iter().zip(&layers).map(layer).collect();
    let config =
        json!({ "rootfs": { "type": "layers", "diff_ids": layer_digests } }).to_string().into_bytes();
    if config.len() > CONFIG_LIMIT_BYTES {
        return Err(ManifestError::TooLarge { size_bytes: config.len(), limit_bytes: CONFIG_LIMIT_BYTES });
    }
    let descriptor = Descriptor {
        media_type: OCI_CONFIG.to_owned(),
        digest: digest_of(&config),
        size_bytes: config.len() as u64,
    };
    Ok(Manifest { config: descriptor, layers, artifact: Some(Artifact { paths, config }) })
}

/// A name that is a plain path below any directory.
fn checked(name: &str) -> Result<&str, ManifestError> {
    let problem = match name {
        long if long.len() > PATH_LIMIT_BYTES => "has more than 1024 bytes",
        absolute if absolute.starts_with('/') => "is not relative",
        odd if odd.contains(char::is_control) => "has a control character",
        path => match path.split('/').find_map(problem_of) {
            Some(problem) => problem,
            None => return Ok(name),
        },
    };
    Err(refused(name, problem))
}

/// What is wrong with a component of a path.
fn problem_of(part: &str) -> Option<&'static str> {
    match part {
        "" => Some("has an empty component"),
        "." | ".." => Some("has a component . or .."),
        long if long.len() > COMPONENT_LIMIT_BYTES => Some("has a component of more than 255 bytes"),
        // In a layer it would hide what is in others.
        hiding if hiding.starts_with(".wh.") => Some("has a component that begins with .wh."),
        _ => None,
    }
}

/// Each file needs a place of its own.
fn check_places(paths: &[String]) -> Result<(), ManifestError> {
    let mut all = BTreeSet::new();
    for path in paths {
        if !all.insert(path.as_str()) {
            return Err(refused(path, "has the name of another one"));
        }
    }
    for path in paths {
        let mut above = path.as_str();
        while let Some((parent, _name)) = above.rsplit_once('/') {
            if all.contains(parent) {
                return Err(refused(path, "lies below another file"));
            }
            above = parent;
        }
    }
    Ok(())
}

fn refused(name: &str, problem: &'static str) -> ManifestError {
    ManifestError::FileName { name: name.chars().take(200).collect(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Document, OCI_MANIFEST, parse_index_or_manifest};
    use wharf_types::{ErrorKind, Failure as _};

    /// An artifact of files with these names, of which some have none.
    fn artifact(names: &[Option<&str>]) -> Result<Manifest, ManifestError> {
        let blob = |(at, name): (usize, &Option<&str>)| {
            json!({
                "mediaType": "application/x", "size": 5, "digest": digest_of(&[u8::try_from(at).unwrap()]).to_string(),
                "annotations": name.map(|name| json!({ TITLE: name, "other": null })),
            })
        };
        let layers: Vec<_> = names.iter().enumerate().map(blob).collect();
        let empty = json!({
            "mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": digest_of(b"{}").to_string(),
        });
        let text = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/x", "config": empty,
            "layers": layers,
        });
        match parse_index_or_manifest(text.to_string().as_bytes(), None)? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) => panic!("it is no index"),
        }
    }

    #[test]
    fn a_file_has_its_title_or_the_name_of_its_blob() {
        let manifest = artifact(&[Some("a"), None, Some("b/..c/d"), Some("")]).unwrap();
        let hex = |at: u8| digest_of(&[at]).hex().to_owned();
        let found = manifest.artifact.as_ref().unwrap();
        assert_eq!(found.paths(), ["a".to_owned(), hex(1), "b/..c/d".to_owned(), hex(3)]);
        let (_config, layers) = crate::config::parse_config(found.config()).unwrap();
        assert_eq!((layers.len(), digest_of(found.config())), (4, manifest.config.digest.clone()));
        assert_eq!(artifact(&[Some("a"), None, Some("b/..c/d"), None]).unwrap(), manifest);
        assert_ne!(artifact(&[Some("z"), None, Some("b/..c/d"), None]).unwrap().config, manifest.config);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for (names, words) in [
            (&["../x"][..], "component . or .."),
            (&["a/../../x"], "component . or .."),
            (&["./x"], "component . or .."),
            (&["/etc/passwd"], "not relative"),
            (&["a//b"], "empty component"),
            (&["a/"], "empty component"),
            (&["a\0b"], "control character"),
            (&["a\nb"], "control character"),
            (&[".wh.x"], "begins with .wh."),
            (&["a/.wh..wh..opq"], "begins with .wh."),
            (&[&"x".repeat(256)], "255 bytes"),
            (&[&"x/".repeat(600)], "1024 bytes"),
            (&["a", "a"], "name of another one"),
            (&["a/b", "a"], "below another file"),
            (&["a", "b", "a/b/c"], "below another file"),
        ] {
            let names: Vec<_> = names.iter().map(|name| Some(*name)).collect();
            let error = artifact(&names).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        artifact(&[]).unwrap_err();
    }
}
