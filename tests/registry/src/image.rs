//! Small images as a registry would store them.

use std::collections::BTreeMap;
use std::io::Write;

use sha2::{Digest as _, Sha256};
use wharf_types::Digest;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// A layer: its archive, and the blob that a registry stores.
#[derive(Clone)]
pub struct TestLayer {
    pub diff_id: Digest,
    pub blob: Vec<u8>,
    /// Its compression, as media types name it.
    pub kind: &'static str,
}

impl TestLayer {
    pub fn digest(&self) -> Digest {
        sha256(&self.blob)
    }

    /// A layer of an archive that is not built from a file.
    pub fn of(archive: Vec<u8>) -> Self {
        Self { diff_id: sha256(&archive), blob: archive, kind: "" }
    }

    pub fn path(&self) -> String {
        format!("/v2/app/blobs/{}", self.digest())
    }
}

fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

pub fn plain(name: &str, content: &[u8]) -> TestLayer {
    TestLayer::of(archive(name, content))
}

pub fn gzip(name: &str, content: &[u8]) -> TestLayer {
    let archive = archive(name, content);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive).unwrap();
    TestLayer { diff_id: sha256(&archive), blob: encoder.finish().unwrap(), kind: "gzip" }
}

pub fn zstd(name: &str, content: &[u8]) -> TestLayer {
    let archive = archive(name, content);
    let blob = zstd::encode_all(archive.as_slice(), 1).unwrap();
    TestLayer { diff_id: sha256(&archive), blob, kind: "zstd" }
}

/// Bytes that do not compress.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(&mut next).take(count).collect()
}

/// Documents and blobs by path, as a registry serves them for the repository `app`.
#[derive(Clone, Default)]
pub struct Content {
    pub files: BTreeMap<String, (String, Vec<u8>)>,
    /// The digest of the manifest.
    pub manifest: Option<Digest>,
    /// The digest of the config: the image's id.
    pub config: Option<Digest>,
}

impl Content {
    /// An OCI image under a tag.
    pub fn oci(tag: &str, layers: &[TestLayer]) -> Self {
        let base = "application/vnd.oci.image.layer.v1.tar";
        let kind = |kind: &str| if kind.is_empty() { base.to_owned() } else { format!("{base}+{kind}") };
        Self::image(tag, layers, OCI_MANIFEST, "application/vnd.oci.image.config.v1+json", kind)
    }

    /// A Docker image under a tag.
    pub fn docker(tag: &str, layers: &[TestLayer]) -> Self {
        let base = "application/vnd.docker.image.rootfs.diff.tar";
        let kind = |kind: &str| if kind.is_empty() { base.to_owned() } else { format!("{base}.{kind}") };
        Self::image(tag, layers, DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json", kind)
    }

    fn image(
        tag: &str,
        layers: &[TestLayer],
        manifest_kind: &str,
        config_kind: &str,
        layer_kind: impl Fn(&str) -> String,
    ) -> Self {
        let mut content = Self::default();
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/app", tag]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let config_digest = sha256(&config);
        let mut listed = Vec::new();
        for layer in layers {
            listed.push(serde_json::json!({
                "mediaType": layer_kind(layer.kind), "digest": layer.digest().to_string(), "size": layer.blob.len(),
            }));
            content.put(&format!("blobs/{}", layer.digest()), "application/octet-stream", layer.blob.clone());
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": manifest_kind, "layers": listed,
            "config": {"mediaType": config_kind, "digest": config_digest.to_string(), "size": config.len()},
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = sha256(&manifest);
        content.put(&format!("blobs/{config_digest}"), "application/octet-stream", config);
        content.put(&format!("manifests/{digest}"), manifest_kind, manifest.clone());
        content.put(&format!("manifests/{tag}"), manifest_kind, manifest);
        content.manifest = Some(digest);
        content.config = Some(config_digest);
        content
    }

    /// An artifact of one seccomp profile; `change` makes its manifest another one.
    pub fn profile(profile: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Self {
        let mut content = Self::default();
        let digest = sha256(profile);
        let config = serde_json::json!({
            "mediaType": "application/vnd.cncf.seccomp-profile.config.v1+json", "digest": sha256(b"{}").to_string(),
            "size": 2,
        });
        let layer = serde_json::json!({
            "mediaType": "application/json", "digest": digest.to_string(), "size": profile.len(),
        });
        let mut manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
        });
        change(&mut manifest);
        let manifest = manifest.to_string().into_bytes();
        content.put(&format!("blobs/{digest}"), "application/octet-stream", profile.to_vec());
        content.manifest = Some(sha256(&manifest));
        content.put(&format!("manifests/{}", sha256(&manifest)), OCI_MANIFEST, manifest);
        content
    }

    /// The digest of the manifest, as the end of a reference.
    pub fn pinned(&self) -> String {
        format!("@{}", self.manifest.as_ref().unwrap())
    }

    /// Puts an index, which gets the tag, in front of the image, and returns the index's digest.
    pub fn indexed(mut self, tag: &str) -> (Self, Digest) {
        let manifest = self.manifest.clone().unwrap();
        let size = self.file(&format!("manifests/{manifest}")).1.len();
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
                {"mediaType": OCI_MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)), "size": 9,
                 "platform": {"os": "linux", "architecture": "s390x"}},
                {"mediaType": OCI_MANIFEST, "digest": manifest.to_string(), "size": size,
                 "platform": {"os": "linux", "architecture": "amd64"}},
                {"mediaType": OCI_MANIFEST, "digest": manifest.to_string(), "size": size,
                 "platform": {"os": "linux", "architecture": "arm64"}},
            ],
        });
        let index = index.to_string().into_bytes();
        let digest = sha256(&index);
        self.put(&format!("manifests/{tag}"), OCI_INDEX, index.clone());
        self.put(&format!("manifests/{digest}"), OCI_INDEX, index);
        (self, digest)
    }

    pub fn put(&mut self, below: &str, kind: &str, bytes: Vec<u8>) {
        self.files.insert(format!("/v2/app/{below}"), (kind.to_owned(), bytes));
    }

    pub fn file(&self, below: &str) -> &(String, Vec<u8>) {
        &self.files[&format!("/v2/app/{below}")]
    }

    /// The contents of both on one registry.
    pub fn with(mut self, other: Self) -> Self {
        self.files.extend(other.files);
        self
    }
}
