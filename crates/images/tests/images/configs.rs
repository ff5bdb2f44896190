//! The configs of images: on disk, verified when they are used, and nowhere else.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use wharf_images::{Image, ImageUser, StoreError};
use wharf_state::record::{self, Durability, Format};
use wharf_types::{Digest, ErrorKind, Failure};

use crate::support::{Rig, Tar, documents_with, sha256, shown};

fn archive() -> Vec<u8> {
    Tar::new().file("f", "1").end()
}

/// Commits an image that says this about running it.
fn image(rig: &Rig, said: &str) -> Result<Arc<Image>, StoreError> {
    let archives = [archive()];
    let layer = match rig.store.stored_layer(&sha256(&archives[0])) {
        Some(layer) => layer,
        None => rig.unpack_plain(&archives[0]).unwrap().into(),
    };
    rig.commit_documents("a.b/x:1", documents_with(&archives, said), vec![layer])
}

fn config_path(rig: &Rig, image: &Image) -> PathBuf {
    rig.root().join("content/sha256").join(image.id().hex())
}

fn record_path(rig: &Rig, image: &Image) -> PathBuf {
    rig.root().join("images").join(image.id().hex())
}

fn user(rig: &Rig) -> Option<ImageUser> {
    rig.store.find("a.b/x:1").unwrap().user().cloned()
}

/// The name of the only image of a store that has none aside.
fn listed(rig: &Rig) -> Vec<String> {
    assert_eq!(fs::read_dir(rig.root().join("quarantine")).unwrap().count(), 0);
    rig.store.list().iter().flat_map(|image| image.repo_tags().to_vec()).collect()
}

#[test]
fn the_record_of_an_image_does_not_grow_with_its_config() {
    let rig = Rig::new();
    let labels: Vec<_> = (0..40_000).map(|n| format!(r#""label-{n}":"value""#)).collect();
    let said = format!(r#"{{"User":"app","Labels":{{{}}}}}"#, labels.join(","));
    let image = image(&rig, &said).unwrap();
    assert_eq!(image.user(), Some(&ImageUser::Name("app".to_owned())));
    let record = fs::metadata(record_path(&rig, &image)).unwrap().len();
    assert!(record < 4000, "{record} bytes");
    let count = |config: &oci_spec::image::ImageConfiguration| {
        config.config().as_ref().and_then(|config| config.labels().as_ref()).unwrap().len()
    };
    assert_eq!(rig.store.config(&image).unwrap().admit(count), 40_000);
}

#[test]
fn a_config_with_too_many_entries_is_refused() {
    let rig = Rig::new();
    let env = vec![r#""A=b""#; 60_000].join(",");
    let error = image(&rig, &format!(r#"{{"Env":[{env}]}}"#)).unwrap_err();
    assert!(shown(&error).contains("more than 50000 entries"), "{}", shown(&error));
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(rig.store.list().is_empty());
}

/// A start looks only whether a config is there. Its content matters when it is used.
#[test]
fn a_start_reads_no_config_and_a_use_finds_its_damage() {
    let rig = Rig::new();
    let whole = image(&rig, r#"{"User":"7:8"}"#).unwrap();
    let path = config_path(&rig, &whole);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("7:8", "0:0")).unwrap();
    let rig = rig.reopened();
    assert_eq!((listed(&rig), user(&rig)), (vec!["a.b/x:1".to_owned()], Some(ImageUser::Id(7))));
    let found = rig.store.find("a.b/x:1").unwrap();
    assert!(!rig.store.is_whole(&found));
    let error = rig.store.archive(&["a.b/x:1".to_owned()], &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{}", shown(&error));
    assert!(found.is_damaged());
    let error = rig.store.config(&found).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{}", shown(&error));
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.to_string().ends_with("is damaged on disk: pull or load the image again"), "{error}");
    assert_eq!(listed(&rig), ["a.b/x:1"], "a read removes nothing");
    assert!(rig.store.tag("a.b/x:1", &"a.b/y:1".parse().unwrap()).unwrap());
    assert!(rig.store.find("a.b/y:1").unwrap().is_damaged(), "a name mends nothing");
    let again = image(&rig, r#"{"User":"7:8"}"#).unwrap();
    assert!(found.is_damaged() && !again.is_damaged(), "what was read before says nothing of it");
    assert!(rig.store.is_whole(&again) && again.id() == whole.id());
    assert_eq!(listed(&rig), ["a.b/x:1", "a.b/y:1"]);
}

#[test]
fn a_config_that_is_not_there_is_noticed_by_a_start_and_by_a_use() {
    let lost: [fn(&PathBuf); 3] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| {
            let text = fs::read(path).unwrap();
            fs::write(path, &text[..text.len() - 1]).unwrap();
        },
    ];
    for lose in lost {
        let rig = Rig::new();
        let whole = image(&rig, "{}").unwrap();
        lose(&config_path(&rig, &whole));
        let error = rig.store.config(&whole).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{}", shown(&error));
        assert!(whole.is_damaged() && listed(&rig).len() == 1);
        lose(&config_path(&rig, &image(&rig, "{}").unwrap()));
        let rig = rig.reopened();
        assert!(rig.store.list().is_empty());
        assert_eq!(fs::read_dir(rig.root().join("quarantine")).unwrap().count(), 1);
        image(&rig, "{}").unwrap();
        assert!(rig.store.find("a.b/x:1").is_some());
    }
}

#[test]
fn the_config_of_a_removed_image_is_not_damaged() {
    let rig = Rig::new();
    let gone = image(&rig, "{}").unwrap();
    assert!(rig.store.remove("a.b/x:1").unwrap());
    let error = rig.store.config(&gone).unwrap_err();
    assert!(matches!(error, StoreError::Removed { .. }), "{}", shown(&error));
}

/// Writes the record of an image for another id, as the release before this one did: it recorded nothing of a config.
fn write_earlier(rig: &Rig, image: &Image, id: &Digest) {
    let file = fs::read_to_string(record_path(rig, image)).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&file[file.find('{').unwrap()..]).unwrap();
    record["id"] = id.to_string().into();
    record.as_object_mut().unwrap().remove("config").unwrap();
    let (path, text) = (rig.root().join("images").join(id.hex()), record.to_string());
    let format = Format { kind: "image", version: 1 };
    record::save(&path, format, text.as_bytes(), Durability::Volatile).unwrap();
}

#[test]
fn a_record_of_an_earlier_release_costs_its_config_once() {
    let rig = Rig::new();
    let whole = image(&rig, r#"{"User":"7:8"}"#).unwrap();
    let (record, path) = (fs::read(record_path(&rig, &whole)).unwrap(), config_path(&rig, &whole));
    write_earlier(&rig, &whole, whole.id());
    let rig = rig.reopened();
    assert_eq!((listed(&rig).len(), user(&rig)), (1, Some(ImageUser::Id(7))));
    assert_eq!(fs::read(record_path(&rig, &whole)).unwrap(), record, "it is complete now");
    // Without what it would record, damage shows at the start.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("7:8", "0:0")).unwrap();
    write_earlier(&rig, &whole, whole.id());
    let rig = rig.reopened();
    assert!(rig.store.list().is_empty());
}

/// A config that was within the bounds of an earlier release is listed, and not used.
#[test]
fn what_an_earlier_release_stored_beyond_the_bounds_is_listed() {
    let rig = Rig::new();
    let whole = image(&rig, "{}").unwrap();
    let env = vec![r#""A=b""#; 60_000].join(",");
    let said = format!(r#"{{"User":"{}","Env":[{env}]}}"#, "u".repeat(5000));
    let (_, config) = documents_with(&[archive()], &said);
    let digest = sha256(config.as_bytes());
    fs::write(rig.root().join("content/sha256").join(digest.hex()), config).unwrap();
    write_earlier(&rig, &whole, &digest);
    let rig = rig.reopened();
    let found = rig.store.find(digest.hex()).unwrap();
    assert_eq!(found.user(), Some(&ImageUser::Name("u".repeat(1024))));
    let error = rig.store.config(&found).unwrap_err();
    assert!(shown(&error).contains("more than 50000 entries"), "{}", shown(&error));
}
