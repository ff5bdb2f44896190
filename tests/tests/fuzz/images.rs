//! What an image's author writes: documents, and layers as they come from a registry.

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use wharf_images::manifest::{Document, parse_index_or_manifest};
use wharf_images::{
    Form, ImageUser, LayerSource, Limits, LoadEvent, Sender, Store, UnpackError, parse_config,
};
use wharf_types::Digest;

use crate::harness::Target;

const DIGEST: &str = "sha256:0101010101010101010101010101010101010101010101010101010101010101";

pub(crate) fn targets() -> Vec<Target> {
    vec![
        Target::new("manifest", manifest, manifests()),
        Target::new("config", config, configs()),
        Target::new("layer", layer_reader(), layers()),
        Target::new("archive", archive_reader(), archives()),
    ]
}

// ---- Documents ----

fn manifest(bytes: &[u8]) -> Result<usize, String> {
    match parse_index_or_manifest(bytes, None).map_err(|error| wharf_types::chain(&error))? {
        Document::Index(entries) => Ok(entries.len()),
        Document::Manifest(manifest) => Ok(manifest.layers.len()),
    }
}

fn manifests() -> Vec<(&'static str, Vec<u8>)> {
    let descriptor = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{DIGEST}","size":7}}"#);
    let oci = "application/vnd.oci.image";
    let entry = descriptor(&format!("{oci}.manifest.v1+json"));
    let platform = r#","platform":{"os":"linux","architecture":"arm64","variant":"v8"}}"#;
    let entry = entry.replace('}', platform);
    let index = format!(r#"{{"schemaVersion":2,"mediaType":"{oci}.index.v1+json","manifests":[{entry}]}}"#);
    let config = descriptor(&format!("{oci}.config.v1+json"));
    let layer = descriptor(&format!("{oci}.layer.v1.tar+gzip"));
    let whole = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{layer}]}}"#);
    let twice = whole.replacen("\"config\"", "\"layers\":[],\"config\"", 1);
    let both = whole.replacen("\"config\"", "\"manifests\":[],\"config\"", 1);
    let title = r#","annotations":{"org.opencontainers.image.title":"deep/file"}}"#;
    let file = descriptor("text/plain").replace('}', title);
    let empty = descriptor("application/vnd.oci.empty.v1+json");
    let artifact = format!(r#"{{"schemaVersion":2,"config":{empty},"layers":[{file},{layer}]}}"#);
    let elsewhere = artifact.replace("deep/file", "../file");
    let deep = [b"[".repeat(4096), b"]".repeat(4096)].concat();
    vec![
        ("index", index.into_bytes()),
        ("manifest", whole.into_bytes()),
        ("artifact", artifact.into_bytes()),
        ("bad-title", elsewhere.into_bytes()),
        ("bad-twice", twice.into_bytes()),
        ("bad-both", both.into_bytes()),
        ("bad-deep", deep),
    ]
}

fn config(bytes: &[u8]) -> Result<usize, String> {
    let (config, diff_ids) = parse_config(bytes).map_err(|error| wharf_types::chain(&error))?;
    // Whether the user is acceptable is up to the code that runs the image.
    drop(ImageUser::of(&config));
    Ok(diff_ids.len())
}

fn configs() -> Vec<(&'static str, Vec<u8>)> {
    let whole = format!(
        r#"{{"architecture":"amd64","os":"linux","created":"2020-01-01T00:00:00Z","config":{{"User":"a:b",
        "Env":["A=b"],"Entrypoint":["/x"],"Cmd":["y"],"WorkingDir":"/w","StopSignal":"SIGTERM",
        "Labels":{{"a":"b"}},"Volumes":{{"/v":{{}}}},"ExposedPorts":{{"80/tcp":{{}}}}}},
        "rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}}}}"#
    );
    let traversal = whole.replace(DIGEST, "sha256:../../etc/passwd");
    vec![
        ("config", whole.into_bytes()),
        ("bad-diff-id", traversal.into_bytes()),
        ("bad-array", b"[]".to_vec()),
    ]
}

// ---- Layers ----

/// A store in a directory that has nothing else.
fn store() -> (tempfile::TempDir, Store) {
    let limits = Limits {
        layer_bytes: 4 << 20,
        ratio: 100,
        ratio_free_bytes: 1 << 20,
        entries: 1000,
        reserve_bytes: 0,
        reserve_inodes: 0,
        ..Limits::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(&dir.path().join("store"), limits).unwrap();
    (dir, store)
}

/// Unpacks blobs into a store of its own, which afterwards has nothing of them, inside or beside it.
fn layer_reader() -> impl Fn(&[u8]) -> Result<usize, String> {
    let (dir, store) = store();
    move |bytes| {
        let count = unpack(&store, bytes);
        assert_eq!(entries(&dir.path().join("store/staging")), 0, "something of a layer stays");
        assert_eq!(entries(dir.path()), 1, "something is beside the store");
        count
    }
}

/// The content's digest is that of no layer: input that is refused only for that was read to its end.
fn unpack(store: &Store, bytes: &[u8]) -> Result<usize, String> {
    let source = LayerSource {
        diff_id: Digest::from_sha256([0; 32]),
        form: Form::Archive,
        blob_digest: Digest::from_sha256(Sha256::digest(bytes).into()),
        blob_size_bytes: bytes.len() as u64,
        sender: Sender::default(),
    };
    match store.unpack(&source, &mut &*bytes) {
        Err(UnpackError::DiffId { found: Some(_), .. }) => Ok(1),
        Err(error) => Err(wharf_types::chain(&error)),
        Ok(_layer) => panic!("a layer of another content was taken"),
    }
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn layers() -> Vec<(&'static str, Vec<u8>)> {
    let (plain, odd) = (archive(), odd_archive());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let outside = entry(tar::EntryType::Regular, b"../outside", b"x");
    let mut checksum = plain.clone();
    checksum[0] ^= 1;
    let bomb = zstd::encode_all(vec![0; 8 << 20].as_slice(), 1).unwrap();
    vec![
        ("bad-bomb", bomb),
        ("bad-checksum", checksum),
        ("bad-cut-gzip", gzip[..gzip.len() / 2].to_vec()),
        ("bad-cut-zstd", zstd[..zstd.len() / 2].to_vec()),
        ("bad-outside", outside),
        ("gzip", gzip),
        ("zstd", zstd),
        ("plain", plain),
        ("odd", odd),
    ]
}

/// An archive with one entry of each kind.
fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size);
        header
    };
    let mut directory = header(tar::EntryType::Directory, 0);
    builder.append_data(&mut directory, "d/", &b""[..]).unwrap();
    for name in ["d/file", "d/.wh.gone", "d/.wh..wh..opq", &"long/".repeat(40)] {
        let name = name.trim_end_matches('/');
        builder.append_data(&mut header(tar::EntryType::Regular, 5), name, &b"hello"[..]).unwrap();
    }
    for (kind, name, target) in
        [(tar::EntryType::Symlink, "link", "../d"), (tar::EntryType::Link, "hard", "d/file")]
    {
        builder.append_link(&mut header(kind, 0), name, target).unwrap();
    }
    builder.append_data(&mut header(tar::EntryType::Fifo, 0), "pipe", &b""[..]).unwrap();
    builder.into_inner().unwrap()
}

/// An archive with PAX records: a time, an attribute, a sparse file.
fn odd_archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let map = [&b"1\n0\n5\n"[..], &[0; 506], b"hello"].concat();
    let records: [(&str, &[u8]); 6] = [
        ("mtime", b"1.5"),
        ("SCHILY.xattr.user.x", b"kept"),
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"5"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(map.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "GNUSparseFile.0/sparse", map.as_slice()).unwrap();
    builder.into_inner().unwrap()
}

/// An archive with one entry, whose name the library would refuse to write.
fn entry(kind: tar::EntryType, name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content).unwrap();
    builder.into_inner().unwrap()
}

// ---- Archives of images ----

/// Loads archives into a store of its own, which afterwards has their images and nothing else of them.
fn archive_reader() -> impl Fn(&[u8]) -> Result<usize, String> {
    let (dir, store) = store();
    move |bytes| {
        let mut count = 0;
        let loaded = store.load(&mut &*bytes, &Sender::default(), &mut |event| {
            count += usize::from(matches!(event, LoadEvent::Loaded { .. }));
            ControlFlow::Continue(())
        });
        assert_eq!(entries(&dir.path().join("store/staging")), 0, "something of an archive stays");
        assert_eq!(entries(dir.path()), 1, "something is beside the store");
        for image in store.list() {
            store.remove(image.id().as_str()).unwrap();
        }
        loaded.map(|()| count).map_err(|error| wharf_types::chain(&error))
    }
}

fn archives() -> Vec<(&'static str, Vec<u8>)> {
    let layer = archive();
    let digest = |bytes: &[u8]| Digest::from_sha256(Sha256::digest(bytes).into());
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest(&layer)
    );
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes).hex());
    let described = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (digest(bytes), bytes.len());
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#)
    };
    let (of_config, of_layer) =
        (described("config.v1+json", config.as_bytes()), described("layer.v1.tar", &layer));
    let manifest = format!(r#"{{"schemaVersion":2,"config":{of_config},"layers":[{of_layer}]}}"#);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        described("manifest.v1+json", manifest.as_bytes())
    );
    let list = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["1/layer.tar"]}]"#;
    let layout: [(&str, &[u8]); 5] = [
        (&blob(config.as_bytes()), config.as_bytes()),
        (&blob(&layer), &layer),
        (&blob(manifest.as_bytes()), manifest.as_bytes()),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
    ];
    let docker: [(&str, &[u8]); 3] =
        [("manifest.json", list.as_bytes()), ("c.json", config.as_bytes()), ("1/layer.tar", &layer)];
    let (whole, docker) = (files(&layout), files(&docker));
    vec![
        ("bad-cut", whole[..whole.len() / 2 - 100].to_vec()),
        ("bad-missing", files(&layout[1..])),
        ("docker", docker.clone()),
        ("layout", whole),
        ("zstd", zstd::encode_all(docker.as_slice(), 1).unwrap()),
    ]
}

fn files(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}
