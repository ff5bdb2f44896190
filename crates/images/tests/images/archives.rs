//! Images in archives: those of several forms, hostile ones, and what is saved and loaded again.

use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::{Value, json};
use wharf_images::{Compression, Image, LoadError, LoadEvent, Sender};
use wharf_types::{Digest, ErrorKind, Failure};

use crate::support::{Rig, Tar, compress, documents, header, sha256, shown};

const NAME: &str = "io.containerd.image.name";

pub(crate) fn layer(content: &str) -> Vec<u8> {
    Tar::new().dir("etc").file("etc/word", content).end()
}

/// The files of an archive, in no order that matters.
#[derive(Clone, Default)]
pub(crate) struct Files(pub(crate) Vec<(String, Vec<u8>)>);

impl Files {
    pub(crate) fn put(&mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) {
        let (name, content) = (name.into(), content.into());
        self.0.retain(|(other, _)| *other != name);
        self.0.push((name, content));
    }

    fn blob(&mut self, content: &[u8]) -> Digest {
        let digest = sha256(content);
        self.put(format!("blobs/sha256/{}", digest.hex()), content);
        digest
    }

    fn tar(&self) -> Tar {
        self.0.iter().fold(Tar::new(), |tar, (name, content)| tar.content(header(b'0', name), content))
    }

    pub(crate) fn end(&self) -> Vec<u8> {
        self.tar().end()
    }
}

fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}.v1+json"),
        "digest": sha256(content).to_string(), "size": content.len(),
    })
}

/// An image with its blobs; returns its manifest's descriptor, and its config.
fn image(files: &mut Files, layers: &[Vec<u8>]) -> (Value, Vec<u8>) {
    let (manifest, config) = documents(layers);
    files.blob(config.as_bytes());
    layers.iter().for_each(|layer| drop(files.blob(layer)));
    files.blob(manifest.as_bytes());
    (descriptor("manifest", manifest.as_bytes()), config.into_bytes())
}

fn named(mut entry: Value, key: &str, name: &str) -> Value {
    entry["annotations"] = json!({ key: name });
    entry
}

fn layout_of(mut files: Files, manifests: &[Value]) -> Files {
    files.put("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    files.put("index.json", json!({ "schemaVersion": 2, "manifests": manifests }).to_string());
    files
}

/// A layout with one image of one layer.
pub(crate) fn layout(content: &str) -> Files {
    let mut files = Files::default();
    let (entry, _config) = image(&mut files, &[layer(content)]);
    layout_of(files, &[named(entry, NAME, "a.b/c:1")])
}

/// The form of `docker save`, with one image of one layer.
pub(crate) fn docker(content: &str) -> Files {
    let mut files = Files::default();
    let layer = layer(content);
    let (_manifest, config) = documents(std::slice::from_ref(&layer));
    files.put("config.json", config);
    files.put("1/layer.tar", layer);
    let entry = json!({ "Config": "config.json", "RepoTags": ["c:1"], "Layers": ["1/layer.tar"] });
    files.put("manifest.json", json!([entry]).to_string());
    files
}

/// Loads an archive, and returns the names and ids of its images.
fn load(rig: &Rig, archive: &[u8]) -> Result<Vec<(Vec<String>, Digest)>, LoadError> {
    let mut loaded = Vec::new();
    rig.store.load(&mut Cursor::new(archive), &Sender::default(), &mut |event| {
        if let LoadEvent::Loaded { image, names } = event {
            loaded.push((names, image.id().clone()));
        }
        ControlFlow::Continue(())
    })?;
    Ok(loaded)
}

fn found(rig: &Rig, name: &str) -> Arc<Image> {
    rig.store.find(name).unwrap_or_else(|| panic!("{name} is missing"))
}

/// Nothing is in the store, or on its way into it.
fn is_empty(rig: &Rig, what: &str) {
    let list = |name: &str| std::fs::read_dir(rig.root().join(name)).unwrap().count();
    let counts = ["staging", "images", "layers", "content/sha256"].map(list);
    assert_eq!((counts, rig.store.list().len()), ([0; 4], 0), "{what}");
    rig.check_canary();
}

#[test]
fn both_forms_are_loaded_in_any_order_and_compression() {
    let (oci, docker) = (layout("1"), docker("1"));
    let mut both = oci.clone();
    both.0.extend(docker.0.clone());
    for (what, files, name) in [
        ("a layout", &oci, "a.b/c:1"),
        ("docker save", &docker, "docker.io/library/c:1"),
        ("both", &both, "a.b/c:1"),
    ] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            for backwards in [false, true] {
                let mut files = files.clone();
                if backwards {
                    files.0.reverse();
                }
                let rig = Rig::new();
                let loaded = load(&rig, &compress(&files.end(), compression)).unwrap();
                let image = found(&rig, name);
                assert_eq!(loaded, [(vec![name.to_owned()], image.id().clone())], "{what}");
                assert_eq!(image.repo_tags(), [name]);
                let word = image.layers().last().unwrap().join("etc/word");
                assert_eq!(std::fs::read_to_string(word).unwrap(), "1");
                assert_eq!(std::fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
                // Only a layout has the manifest that a registry would have.
                let digests = if what == "docker save" { 0 } else { 1 };
                assert_eq!(image.repo_digests().len(), digests, "{what}");
            }
        }
    }
}

#[test]
fn an_index_is_a_list_of_images_and_of_choices() {
    let rig = Rig::new();
    let mut files = Files::default();
    let (one, _) = image(&mut files, &[layer("1")]);
    let (two, _) = image(&mut files, &[layer("2"), layer("1")]);
    let (other, _) = image(&mut files, &[layer("3")]);
    let on = |mut entry: Value, architecture: &str| {
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let index =
        json!({ "schemaVersion": 2, "manifests": [on(other.clone(), "s390x"), on(two.clone(), machine)] });
    let index = index.to_string().into_bytes();
    files.blob(&index);
    let entries = [
        named(one.clone(), NAME, "a.b/one:1"),
        named(one, "org.opencontainers.image.ref.name", "a.b/one:2"),
        named(descriptor("index", &index), NAME, "a.b/two"),
        named(on(other.clone(), "s390x"), NAME, "a.b/three:1"),
        named(on(two, machine), NAME, "a.b/three:1"),
        on(other.clone(), "s390x"),
        named(other, "org.opencontainers.image.ref.name", "latest"),
    ];
    let loaded = load(&rig, &layout_of(files, &entries).end()).unwrap();
    let names: Vec<_> = loaded.iter().map(|(names, _)| names.join(" ")).collect();
    assert_eq!(names, ["a.b/one:1 a.b/one:2", "a.b/two:latest", "a.b/three:1", ""]);
    assert_eq!(found(&rig, "a.b/two").id(), found(&rig, "a.b/three:1").id());
    assert_eq!(rig.store.list().len(), 3);
    let pinned = format!("a.b/two@{}", sha256(&index));
    assert_eq!(found(&rig, &pinned).id(), found(&rig, "a.b/two").id());
    let nameless = found(&rig, loaded[3].1.as_str());
    assert!(nameless.repo_tags().is_empty() && nameless.repo_digests().is_empty());
}

#[test]
fn a_name_that_is_repeated_is_told_once() {
    let rig = Rig::new();
    let mut files = docker("1");
    let entry =
        |tags: &[&str]| json!({ "Config": "config.json", "RepoTags": tags, "Layers": ["1/layer.tar"] });
    let list = json!([entry(&["b:1", "a:1", "b:1"]), entry(&["docker.io/library/a:1", "c:1"])]);
    files.put("manifest.json", list.to_string());
    let loaded = load(&rig, &files.tar().end()).unwrap();
    let names = ["docker.io/library/b:1", "docker.io/library/a:1", "docker.io/library/c:1"];
    assert_eq!((loaded.len(), loaded[0].0.as_slice()), (1, &names.map(str::to_owned)[..]));
}

#[test]
fn a_layer_that_images_share_may_be_a_link() {
    let rig = Rig::new();
    let mut files = docker("1");
    let (_, config) = documents(&[layer("1"), layer("2")]);
    files.put("b.json", config);
    files.put("2/layer.tar", layer("2"));
    let list = json!([
        { "Config": "config.json", "RepoTags": null, "Layers": ["1/layer.tar"] },
        { "Config": "b.json", "RepoTags": ["b:1", "b:2"], "Layers": ["3/layer.tar", "2/layer.tar"] },
    ]);
    files.put("manifest.json", list.to_string());
    let archive = files.tar().symlink("3/layer.tar", "../1/layer.tar").end();
    let loaded = load(&rig, &archive).unwrap();
    assert_eq!((loaded.len(), loaded[0].0.len(), loaded[1].0.len()), (2, 0, 2));
    assert_eq!(found(&rig, "b:2").layers().len(), 2);
    // Once more, they are there.
    let mut exist = 0;
    let mut watch = |event: LoadEvent<'_>| {
        exist += usize::from(matches!(event, LoadEvent::Exists(_)));
        ControlFlow::Continue(())
    };
    rig.store.load(&mut Cursor::new(&archive), &Sender::default(), &mut watch).unwrap();
    assert_eq!(exist, 3);
    assert_eq!(rig.store.list().len(), 2);
}

#[test]
fn what_is_not_named_is_ignored() {
    let rig = Rig::new();
    let mut files = layout("1");
    files.blob(b"nobody names this");
    files.put("repositories", "{");
    files.put("1/VERSION", "1.0");
    load(&rig, &files.tar().dir("blobs/").symlink("odd", "elsewhere").end()).unwrap();
    assert_eq!(rig.store.list().len(), 1);
    // A document and a layer as well.
    assert_eq!(std::fs::read_dir(rig.root().join("content/sha256")).unwrap().count(), 2);
}

/// An archive, and words of the error with which it is refused.
type Case = (&'static str, Vec<u8>, ErrorKind, &'static str);

fn with(files: &Files, change: impl FnOnce(&mut Files)) -> Vec<u8> {
    let mut files = files.clone();
    change(&mut files);
    files.end()
}

fn without(files: &Files, part: &str) -> Vec<u8> {
    with(files, |files| files.0.retain(|(name, _)| !name.contains(part)))
}

fn hostile_archives() -> Vec<Case> {
    use ErrorKind::{DataLoss, InvalidArgument, ResourceExhausted};
    let files = layout("1");
    let whole = files.end();
    let lie = format!("blobs/sha256/{}", "0".repeat(64));
    let zeros = with(&Files::default(), |files| files.put("zeros", vec![0; 2 << 20]));
    let blob = sha256(&layer("1")).hex().to_owned();
    vec![
        ("upward", files.tar().file("../etc/cron.d/x", "").end(), InvalidArgument, "a component .."),
        (
            "a link out",
            files.tar().symlink("x", "../../etc/passwd").end(),
            InvalidArgument,
            "out of the archive",
        ),
        (
            "a link to the host",
            files.tar().symlink("x", "/etc/passwd").end(),
            InvalidArgument,
            "out of the archive",
        ),
        ("a hard link", files.tar().hard_link("x", "index.json").end(), InvalidArgument, "neither a file"),
        (
            "a device",
            files.tar().add(header(b'3', "x").device(1, 3)).end(),
            InvalidArgument,
            "neither a file",
        ),
        ("a fifo", files.tar().add(header(b'6', "x")).end(), InvalidArgument, "neither a file"),
        ("twice", files.tar().file("index.json", "{}").end(), InvalidArgument, "twice"),
        ("another blob", with(&files, |files| files.put(lie, "x")), DataLoss, "has the digest"),
        ("no digest", with(&files, |files| files.put("blobs/sha256/x", "x")), InvalidArgument, "no digest"),
        ("truncated", whole[..whole.len() / 2 - 100].to_vec(), InvalidArgument, "cannot read the archive"),
        (
            "truncated gzip",
            compress(&whole, Compression::Gzip)[..200].to_vec(),
            InvalidArgument,
            "cannot read",
        ),
        ("a bomb", compress(&zeros, Compression::Gzip), ResourceExhausted, "times its compressed size"),
        ("nothing", Vec::new(), InvalidArgument, "no image"),
        ("no archive", b"hello".repeat(1000), InvalidArgument, "cannot read the archive"),
        ("without images", layout_of(Files::default(), &[]).end(), InvalidArgument, "no image"),
        ("without a layer", without(&files, &blob), InvalidArgument, "the archive lacks blobs/sha256/"),
        ("without an index", without(&files, "index.json"), InvalidArgument, "no image"),
        ("another size", other_size(), DataLoss, "its descriptor says"),
        ("many manifests", many_manifests(), DataLoss, "it lists 10000 manifests"),
        ("a name of none", of_name("../../x"), InvalidArgument, "cannot have"),
        ("one name for two", one_name_for_two(), InvalidArgument, "to two images"),
        ("a cycle", cycle(), DataLoss, "has the digest"),
        ("a deep index", deep(), DataLoss, "indexes in a row"),
        ("a layer that reaches out", reaching(), InvalidArgument, "a component .."),
        ("another layer", other_layer(), DataLoss, "the digest of the layer's content"),
        (
            "a later layout",
            with(&files, |files| files.put("oci-layout", LATER)),
            ErrorKind::Unimplemented,
            "2.0",
        ),
    ]
}

const LATER: &str = r#"{"imageLayoutVersion":"2.0.0"}"#;

fn hostile_dockers() -> Vec<Case> {
    use ErrorKind::{DataLoss, InvalidArgument, ResourceExhausted};
    let files = docker("1");
    let list = |list: Value| with(&docker("1"), |files| files.put("manifest.json", list.to_string()));
    let entry =
        |config: &str, layer: &str| json!([{ "Config": config, "RepoTags": ["x:1"], "Layers": [layer] }]);
    let one = json!({ "Config": "config.json", "RepoTags": null, "Layers": ["1/layer.tar"] });
    let huge = " ".repeat(5 << 20);
    let mut linked = docker("1");
    linked.put("manifest.json", entry("config.json", "a").to_string());
    let linked = linked.tar().symlink("a", "b").symlink("b", "1/layer.tar").end();
    vec![
        (
            "a huge list",
            with(&files, |files| files.put("manifest.json", huge)),
            ResourceExhausted,
            "document",
        ),
        ("many images", list(json!(vec![one.clone(); 10_000])), ResourceExhausted, "1000 images"),
        ("a key twice", with(&files, |files| files.put("manifest.json", TWICE)), DataLoss, "manifest.json"),
        ("no list", list(json!({ "Config": "x" })), DataLoss, "manifest.json"),
        ("the host's file", list(entry("/etc/passwd", "1/layer.tar")), InvalidArgument, "lacks /etc/passwd"),
        ("upward", list(entry("../../etc/passwd", "1/layer.tar")), InvalidArgument, "lacks ../../etc/passwd"),
        ("without a layer", list(entry("config.json", "2/layer.tar")), InvalidArgument, "lacks 2/layer.tar"),
        ("no layer", list(json!([{ "Config": "config.json", "Layers": null }])), DataLoss, "0 layers"),
        ("a config that is none", list(entry("1/layer.tar", "1/layer.tar")), DataLoss, "1/layer.tar"),
        ("a link to a link", linked, InvalidArgument, "a link to another link"),
    ]
}

const TWICE: &str = r#"[{"Config":"config.json","Layers":[],"Layers":["1/layer.tar"]}]"#;

fn other_size() -> Vec<u8> {
    let mut files = Files::default();
    let (mut entry, _) = image(&mut files, &[layer("1")]);
    entry["size"] = json!(7);
    layout_of(files, &[entry]).end()
}

fn many_manifests() -> Vec<u8> {
    let mut files = Files::default();
    let (entry, _) = image(&mut files, &[layer("1")]);
    layout_of(files, &vec![entry; 10_000]).end()
}

fn of_name(name: &str) -> Vec<u8> {
    let mut files = Files::default();
    let (entry, _) = image(&mut files, &[layer("1")]);
    layout_of(files, &[named(entry, NAME, name)]).end()
}

fn one_name_for_two() -> Vec<u8> {
    let mut files = docker("1");
    let (_, config) = documents(&[layer("2")]);
    files.put("b.json", config);
    files.put("2/layer.tar", layer("2"));
    let list = json!([
        { "Config": "config.json", "RepoTags": ["x:1"], "Layers": ["1/layer.tar"] },
        { "Config": "b.json", "RepoTags": ["docker.io/library/x:1"], "Layers": ["2/layer.tar"] },
    ]);
    files.put("manifest.json", list.to_string());
    files.end()
}

/// An index that names itself, which no index can do that has the digest by which it is named.
fn cycle() -> Vec<u8> {
    let mut files = Files::default();
    let own = format!("sha256:{}", "a".repeat(64));
    let kind = "application/vnd.oci.image.index.v1+json";
    let entry = json!({ "mediaType": kind, "digest": own, "size": 214 });
    files.put(
        format!("blobs/sha256/{}", "a".repeat(64)),
        json!({ "schemaVersion": 2, "manifests": [entry] }).to_string(),
    );
    layout_of(files, &[entry]).end()
}

fn deep() -> Vec<u8> {
    let mut files = Files::default();
    let (mut entry, _) = image(&mut files, &[layer("1")]);
    for _ in 0..10 {
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string().into_bytes();
        files.blob(&index);
        entry = descriptor("index", &index);
    }
    layout_of(files, &[entry]).end()
}

/// The second image cannot be unpacked: the first is not loaded, either.
fn reaching() -> Vec<u8> {
    let mut files = Files::default();
    let (good, _) = image(&mut files, &[layer("1")]);
    let (bad, _) = image(&mut files, &[Tar::new().file("../../canary/file", "dead").end()]);
    layout_of(files, &[named(good, NAME, "good:1"), named(bad, NAME, "bad:1")]).end()
}

/// A layer that the config does not list.
fn other_layer() -> Vec<u8> {
    with(&docker("1"), |files| files.put("1/layer.tar", layer("2")))
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let mut wrong = Vec::new();
    for (what, archive, kind, words) in hostile_archives().into_iter().chain(hostile_dockers()) {
        let rig = Rig::new();
        let error = load(&rig, &archive).expect_err(what);
        if error.kind() != kind || !shown(&error).contains(words) {
            wrong.push(format!("{what}: {:?} {}", error.kind(), shown(&error)));
        }
        is_empty(&rig, what);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let archive = layout("1").end();
    for steps in 0..2 {
        let rig = Rig::new();
        let mut left = steps;
        let mut watch = |_event: LoadEvent<'_>| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            ControlFlow::Continue(())
        };
        let error = rig.store.load(&mut Cursor::new(&archive), &Sender::default(), &mut watch).unwrap_err();
        assert!(matches!(error, LoadError::Unwanted), "{}", shown(&error));
        is_empty(&rig, "given up");
    }
}

/// A layer with one of everything that a layer can have.
fn rich() -> Vec<u8> {
    let long = "longer-name/".repeat(20);
    Tar::new()
        .add(header(b'5', "./").mode(0o750).owner(3, 4).mtime(5))
        .pax(&[("mtime", "1600000000.123456789"), ("SCHILY.xattr.user.note", "a=b")])
        .add(header(b'5', "d/").mode(0o1777).owner(1000, 1000))
        .content(header(b'0', "d/set-id").mode(0o4755).owner(7, 8), b"#!")
        .hard_link("d/again", "d/set-id")
        .file("a-first", "2")
        .hard_link("b-second", "a-first")
        .symlink("link", "/etc/passwd")
        .hard_link("link-again", "link")
        .add(header(b'3', "null").device(1, 3).mode(0o666))
        .add(header(b'4', "disk").device(8, 1))
        .add(header(b'6', "pipe").mode(0o600))
        .whiteout(".wh.gone")
        .dir("opaque")
        .whiteout("opaque/.wh..wh..opq")
        .file("implied/deep/file", "3")
        .whiteout("implied/.wh.other")
        .long_file(&format!("{long}file"))
        .pax(&[("uid", "4000000000"), ("gid", "3000000")])
        .file("far", "4")
        .pax(&[("mtime", "-1.5")])
        .file("old", "5")
        .file(&format!("{}ü", "n".repeat(90)), "6")
        .end()
}

fn archived(rig: &Rig, names: &[&str]) -> (Vec<u8>, Vec<Digest>) {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let archived = rig.store.archive(&names, &mut || Ok(())).unwrap();
    let mut bytes = Vec::new();
    archived.write(&mut bytes).unwrap();
    (bytes, archived.images().iter().map(|image| image.archived_id.clone()).collect())
}

/// What a tree has, by paths: types, modes, owners, times, devices, links, contents and attributes.
fn tree(root: &std::path::Path) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut all = Vec::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let target = path.read_link().ok();
        // The time of a whiteout is that at which it was made.
        let mtime =
            if meta.rdev() == 0 && meta.mode() & 0o170_000 == 0o020_000 { 0 } else { meta.mtime_nsec() };
        let shown = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        all.push(format!(
            "{shown} {:o} {}:{} {mtime} {} {links} {target:?} {content:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.rdev()
        ));
        if meta.is_dir() {
            ahead.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all.sort();
    all
}

#[test]
fn what_is_saved_is_loaded_as_it_was_and_saved_again_the_same() {
    let (one, two) = (Rig::new(), Rig::new());
    let base =
        Tar::new().dir("implied").file("gone", "").file("opaque/x", "").file("implied/other", "").end();
    let image = one.image("a.b/c:1", &[base.clone(), rich(), base]).unwrap();
    one.store.tag("a.b/c:1", &"a.b/c:2".parse().unwrap()).unwrap();
    let (archive, ids) = archived(&one, &["a.b/c:1"]);
    assert_ne!(ids[0], *image.id(), "its layers are packed anew");
    assert_eq!(archived(&one, &["a.b/c:1"]).0, archive, "it is always the same");
    let loaded = load(&two, &archive).unwrap();
    assert_eq!(loaded, [(vec!["a.b/c:1".to_owned()], ids[0].clone())]);
    let copy = found(&two, "a.b/c:1");
    let trees = |image: &Image| image.layers().iter().map(|layer| tree(layer)).collect::<Vec<_>>();
    assert_eq!(trees(&copy), trees(&image));
    let shown =
        |rig: &Rig, image: &Image| rig.store.config(image).unwrap().admit(|config| json!(config.config()));
    assert_eq!(shown(&two, &copy), shown(&one, &image));
    assert_eq!(archived(&two, &["a.b/c:1"]), (archive, ids));
    // Of an image that is named by its id, all tags.
    let (archive, _) = archived(&one, &[image.id().as_str()]);
    assert_eq!(load(&Rig::new(), &archive).unwrap()[0].0, ["a.b/c:1", "a.b/c:2"]);
}

#[test]
fn both_forms_of_what_is_saved_are_the_same_images() {
    let one = Rig::new();
    one.image("a.b/c:1", &[layer("1")]).unwrap();
    one.image("a.b/d:1", &[layer("2"), layer("1")]).unwrap();
    let (archive, ids) = archived(&one, &["a.b/c:1", "a.b/d:1"]);
    let mut files = Files::default();
    let mut reader = tar::Archive::new(&archive[..]);
    for entry in reader.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        files.put(entry.path().unwrap().to_str().unwrap(), content);
    }
    for part in ["manifest.json", "index.json"] {
        let rig = Rig::new();
        let loaded = load(&rig, &without(&files, part)).unwrap();
        let loaded: Vec<_> = loaded.into_iter().map(|(_, id)| id).collect();
        assert_eq!(loaded, ids, "without {part}");
    }
}

#[test]
fn what_cannot_be_saved_is_told() {
    let rig = Rig::new();
    let words = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let error = rig.store.archive(&names, &mut || Ok(())).unwrap_err();
        (error.kind(), shown(&error))
    };
    assert_eq!(words(&["no:1"]), (ErrorKind::NotFound, "there is no image \"no:1\"".to_owned()));
    rig.image("linked:1", &[layer("1"), Tar::new().hard_link("below", "etc/word").end()]).unwrap();
    let (kind, why) = words(&["linked:1"]);
    assert!(kind == ErrorKind::FailedPrecondition && why.contains("\"below\" is a hard link"), "{why}");
    rig.image("good:1", &[layer("1")]).unwrap();
    let gone = || Err(std::io::ErrorKind::BrokenPipe.into());
    let error = rig.store.archive(&["good:1".to_owned()], &mut { gone }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let archived = rig.store.archive(&["good:1".to_owned()], &mut || Ok(())).unwrap();
    // What is removed now stays until it is saved.
    rig.store.remove("good:1").unwrap();
    archived.write(&mut Vec::new()).unwrap();
    let name = sha256(&layer("1")).hex().to_owned();
    std::fs::write(rig.root().join("layers").join(name).join("fs/etc/word"), "2").unwrap();
    let error = archived.write(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", shown(&error));
}
