//! A small builder of archives, including those that no honest tool makes, and a store to try them on.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use wharf_images::{
    Compression, Form, Image, Layer, LayerSource, Limits, NewImage, Sender, Store, StoreError, UnpackError,
    UnpackedLayer,
};
use wharf_types::{Digest, Reference};

/// One header in which every field can be set.
#[derive(Clone)]
pub(crate) struct Header(pub(crate) [u8; 512]);

pub(crate) fn header(kind: u8, name: &str) -> Header {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    Header(block).mode(if kind == b'5' { 0o755 } else { 0o644 }).owner(0, 0).size(0).mtime(1_000_000)
}

impl Header {
    pub(crate) fn field(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        self.field(100, format!("{mode:07o}\0").as_bytes())
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        self.field(108, format!("{uid:07o}\0").as_bytes()).field(116, format!("{gid:07o}\0").as_bytes())
    }

    pub(crate) fn size(self, size: u64) -> Self {
        self.field(124, format!("{size:011o}\0").as_bytes())
    }

    pub(crate) fn mtime(self, mtime: u64) -> Self {
        self.field(136, format!("{mtime:011o}\0").as_bytes())
    }

    pub(crate) fn link(self, target: &str) -> Self {
        self.field(157, target.as_bytes())
    }

    pub(crate) fn device(self, major: u32, minor: u32) -> Self {
        self.field(329, format!("{major:07o}\0").as_bytes()).field(337, format!("{minor:07o}\0").as_bytes())
    }

    pub(crate) fn summed(mut self) -> [u8; 512] {
        self.0[148..156].copy_from_slice(b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.field(148, format!("{sum:06o}\0 ").as_bytes()).0
    }
}

/// An archive that is being built.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn add(self, header: Header) -> Self {
        self.raw(&header.summed())
    }

    /// Appends a header with its size set, and the content with its padding.
    pub(crate) fn content(self, header: Header, content: &[u8]) -> Self {
        let padding = content.len().next_multiple_of(512) - content.len();
        self.add(header.size(content.len() as u64)).raw(content).raw(&vec![0; padding])
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.content(header(b'0', name), content.as_bytes())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.add(header(b'5', name))
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.add(header(b'2', name).link(target))
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.add(header(b'1', name).link(target))
    }

    /// An empty file whose name needs PAX.
    pub(crate) fn long_file(self, name: &str) -> Self {
        self.pax(&[("path", name)]).file("short", "")
    }

    /// A directory whose name needs PAX.
    pub(crate) fn long_dir(self, name: &str) -> Self {
        self.pax(&[("path", name)]).dir("short")
    }

    pub(crate) fn whiteout(self, name: &str) -> Self {
        self.file(name, "")
    }

    pub(crate) fn pax(self, records: &[(&str, &str)]) -> Self {
        let text: String = records.iter().map(|(key, value)| pax_record(key, value)).collect();
        self.content(header(b'x', "pax"), text.as_bytes())
    }

    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

pub(crate) fn pax_record(key: &str, value: &str) -> String {
    let body = format!(" {key}={value}\n");
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    format!("{length}{body}")
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => gzip(bytes),
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

pub(crate) fn source(content: &[u8], blob: &[u8]) -> LayerSource {
    LayerSource {
        diff_id: sha256(content),
        form: Form::Archive,
        blob_digest: sha256(blob),
        blob_size_bytes: blob.len() as u64,
        sender: Sender::default(),
    }
}

/// A store beside a canary: a tree that no layer may touch.
pub(crate) struct Rig {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) store: Store,
}

pub(crate) fn limits() -> Limits {
    Limits { layer_bytes: 64 << 20, ratio_free_bytes: 1 << 20, entries: 2000, depth: 40, ..Limits::default() }
}

impl Rig {
    pub(crate) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let canary = temp.path().join("canary");
        std::fs::create_dir(&canary).unwrap();
        std::fs::write(canary.join("file"), "alive").unwrap();
        let store = Store::open_with(&temp.path().join("store"), limits()).unwrap();
        Self { temp, store }
    }

    pub(crate) fn canary(&self) -> PathBuf {
        self.temp.path().join("canary")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.temp.path().join("store")
    }

    /// Checks that the canary is unchanged and nothing else was made beside the store.
    pub(crate) fn check_canary(&self) {
        use std::os::unix::fs::MetadataExt;
        let list = |path: &Path| std::fs::read_dir(path).unwrap().count();
        assert_eq!((list(self.temp.path()), list(&self.canary())), (2, 1));
        assert_eq!(std::fs::read_to_string(self.canary().join("file")).unwrap(), "alive");
        for path in [self.canary(), self.canary().join("file")] {
            let meta = std::fs::metadata(path).unwrap();
            assert!(meta.mode() & 0o7022 == 0 && meta.uid() == 0 && meta.nlink() <= 2, "{meta:?}");
        }
    }

    pub(crate) fn unpack_plain(&self, archive: &[u8]) -> Result<UnpackedLayer, UnpackError> {
        self.store.unpack(&source(archive, archive), &mut Cursor::new(archive))
    }

    /// Unpacks layers, bottom first, and commits an image of them.
    pub(crate) fn image(&self, reference: &str, archives: &[Vec<u8>]) -> Result<Arc<Image>, StoreError> {
        let layers = archives.iter().map(|archive| match self.store.stored_layer(&sha256(archive)) {
            Some(layer) => layer,
            None => self.unpack_plain(archive).unwrap().into(),
        });
        self.commit(reference, archives, layers.collect())
    }

    pub(crate) fn commit(
        &self,
        reference: &str,
        archives: &[Vec<u8>],
        layers: Vec<Layer>,
    ) -> Result<Arc<Image>, StoreError> {
        self.commit_documents(reference, documents(archives), layers)
    }

    pub(crate) fn commit_documents(
        &self,
        reference: &str,
        (manifest, config): (String, String),
        layers: Vec<Layer>,
    ) -> Result<Arc<Image>, StoreError> {
        let digest = sha256(manifest.as_bytes());
        let reference: Reference = reference.parse().unwrap();
        self.store.commit(NewImage {
            names: std::slice::from_ref(&reference),
            resolved: Some(reference.digest().unwrap_or(&digest)),
            manifest: manifest.as_bytes(),
            manifest_digest: &digest,
            config: config.as_bytes(),
            layers,
            pinned: false,
        })
    }

    /// The same store as the next daemon opens it.
    pub(crate) fn reopened(self) -> Self {
        let Self { temp, store } = self;
        drop(store);
        let store = Store::open_with(&temp.path().join("store"), limits()).unwrap();
        Self { temp, store }
    }

    /// The directory of the only layer of a one-layer image.
    pub(crate) fn one_layer(&self, archive: Vec<u8>) -> PathBuf {
        let image = self.image("one:layer", &[archive]).unwrap();
        image.layers().last().unwrap().clone()
    }
}

/// Different paths of almost 4000 bytes each.
pub(crate) fn long_names(count: usize) -> Vec<String> {
    let way = vec!["d".repeat(250); 15].join("/");
    (0..count).map(|n| format!("{way}/{n:0100}")).collect()
}

/// A manifest and a config for uncompressed layers.
pub(crate) fn documents(archives: &[Vec<u8>]) -> (String, String) {
    documents_with(archives, r#"{"User":"7:8","Cmd":["sh"],"Env":["A=b"]}"#)
}

/// The same with what the image says about running it.
pub(crate) fn documents_with(archives: &[Vec<u8>], said: &str) -> (String, String) {
    let diff_ids: Vec<_> = archives.iter().map(|archive| format!("\"{}\"", sha256(archive))).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{said},
        "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let layer = |archive: &Vec<u8>| {
        let (digest, size) = (sha256(archive), archive.len());
        let media = "application/vnd.oci.image.layer.v1.tar";
        format!(r#"{{"mediaType":"{media}","digest":"{digest}","size":{size}}}"#)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{}]}}"#,
        sha256(config.as_bytes()),
        config.len(),
        archives.iter().map(layer).collect::<Vec<_>>().join(",")
    );
    (manifest, config)
}

/// An error with its causes.
pub(crate) fn shown(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
