//! Archives of which one image is refused: no other is in the store because of them.

use std::io::Cursor;
use std::ops::ControlFlow;

use serde_json::{Value, json};
use wharf_images::Sender;
use wharf_types::{ErrorKind, Failure};

use crate::archives::{docker, layer};
use crate::support::{Rig, Tar, documents, sha256, shown};

/// The form of `docker save`, with an image `c:1` and another one.
fn with_another(second: &[u8], tag: &str) -> Vec<u8> {
    let mut files = docker("1");
    let (_manifest, config) = documents(&[second.to_vec()]);
    files.put("b.json", config);
    files.put("2/layer.tar", second);
    let list = json!([
        { "Config": "config.json", "RepoTags": ["c:1"], "Layers": ["1/layer.tar"] },
        { "Config": "b.json", "RepoTags": [tag], "Layers": ["2/layer.tar"] },
    ]);
    files.put("manifest.json", list.to_string());
    files.end()
}

#[test]
fn an_archive_of_which_an_image_is_refused_replaces_none() {
    let pinned = format!("b@{}", sha256(b"nothing"));
    let unlinked = Tar::new().hard_link("h", "nowhere").end();
    for (second, tag, words) in [(unlinked, "b:1", "nowhere"), (layer("2"), &pinned, "whose digest is not")] {
        let rig = Rig::new();
        let before = rig.image("docker.io/library/c:1", &[layer("before")]).unwrap();
        let archive = with_another(&second, tag);
        let mut loaded = 0;
        let mut watch = |event: wharf_images::LoadEvent<'_>| {
            loaded += usize::from(matches!(event, wharf_images::LoadEvent::Loaded { .. }));
            ControlFlow::Continue(())
        };
        let error = rig.store.load(&mut Cursor::new(&archive), &Sender::default(), &mut watch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", shown(&error));
        assert!(shown(&error).contains(words), "{}", shown(&error));
        let names: Vec<_> = rig.store.list().iter().map(|image| image.id().clone()).collect();
        assert_eq!((loaded, names), (0, vec![before.id().clone()]), "{tag}");
        assert_eq!(rig.store.find("docker.io/library/c:1").unwrap().id(), before.id(), "{tag}");
        assert_eq!(std::fs::read_dir(rig.root().join("staging")).unwrap().count(), 0, "{tag}");
    }
}

/// Also if they are all the same, which costs an archive nothing.
#[test]
fn the_names_of_all_images_together_are_bounded() {
    let rig = Rig::new();
    let mut files = docker("1");
    let mut load = |count: usize| {
        let entry =
            json!({ "Config": "config.json", "RepoTags": vec!["c:1"; count], "Layers": ["1/layer.tar"] });
        files.put("manifest.json", json!([entry, entry]).to_string());
        rig.store
            .load(&mut Cursor::new(files.end()), &Sender::default(), &mut |_event| ControlFlow::Continue(()))
    };
    load(1000).unwrap();
    let error = load(1001).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", shown(&error));
    assert!(shown(&error).contains("more than 2000 names"), "{}", shown(&error));
}

/// A config is some bytes for each layer that it lists, and a list of names even less.
#[test]
fn the_layers_of_all_images_together_are_bounded() {
    let rig = Rig::new();
    let layers = vec![layer("1"); 2000];
    let mut files = docker("1");
    files.put("config.json", documents(&layers).1);
    let list = |count: usize| -> Vec<Value> {
        let entry = json!({ "Config": "config.json", "Layers": vec!["1/layer.tar"; layers.len()] });
        vec![entry; count]
    };
    let mut load = |count: usize| {
        files.put("manifest.json", json!(list(count)).to_string());
        let mut images = 0;
        let mut watch = |event: wharf_images::LoadEvent<'_>| {
            images += usize::from(matches!(event, wharf_images::LoadEvent::Loaded { .. }));
            ControlFlow::Continue(())
        };
        rig.store.load(&mut Cursor::new(files.end()), &Sender::default(), &mut watch).map(|()| images)
    };
    let error = load(11).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", shown(&error));
    assert!(shown(&error).contains("more than 20000 layers"), "{}", shown(&error));
    assert_eq!(load(10).unwrap(), 1, "they are all the same");
}
