//! The names of images: given, taken and removed, also across a restart.

use wharf_images::{Store, StoreError};
use wharf_types::{ErrorKind, Failure, Reference};

use crate::archives::layer;
use crate::support::{Rig, limits};

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn tags(store: &Store, text: &str) -> Vec<String> {
    store.find(text).map(|image| image.repo_tags().to_vec()).unwrap_or_default()
}

#[test]
fn a_tag_is_given_and_taken_durably() {
    let rig = Rig::new();
    let one = rig.image("a.b/one:1", &[layer("1")]).unwrap().id().clone();
    let two = rig.image("a.b/two:1", &[layer("2")]).unwrap().id().clone();
    assert!(rig.store.tag("a.b/one:1", &name("c.d/e:f")).unwrap());
    assert!(rig.store.tag(one.as_str(), &name("c.d/e:f")).unwrap(), "once more");
    assert!(rig.store.tag(&two.hex()[..12], &name("a.b/one:1")).unwrap(), "it leaves the other image");
    assert!(!rig.store.tag("no:1", &name("x:1")).unwrap());
    let check = |store: &Store| {
        assert_eq!(tags(store, one.as_str()), ["c.d/e:f"]);
        assert_eq!(tags(store, two.as_str()), ["a.b/two:1", "a.b/one:1"]);
        assert_eq!(store.find("a.b/one:1").unwrap().id(), &two);
    };
    check(&rig.store);
    let (root, Rig { temp, store }) = (rig.root(), rig);
    drop(store);
    check(&Store::open_with(&root, limits()).unwrap());
    drop(temp);
}

#[test]
fn one_of_several_tags_is_removed_and_the_last_is_not() {
    let rig = Rig::new();
    let id = rig.image("a.b/one:1", &[layer("1")]).unwrap().id().clone();
    for other in ["a.b/one:2", "c.d/two:1"] {
        rig.store.tag("a.b/one:1", &name(other)).unwrap();
    }
    let digests = || rig.store.find(id.as_str()).unwrap().repo_digests().len();
    assert!(rig.store.untag(&name("a.b/one:1")).unwrap());
    assert!(!rig.store.untag(&name("a.b/one:1")).unwrap(), "it is gone");
    assert_eq!((tags(&rig.store, id.as_str()).len(), digests()), (2, 1));
    assert!(rig.store.untag(&name("a.b/one:2")).unwrap());
    assert_eq!((tags(&rig.store, id.as_str()), digests()), (vec!["c.d/two:1".to_owned()], 0));
    let error = rig.store.untag(&name("c.d/two:1")).unwrap_err();
    assert!(matches!(error, StoreError::OnlyTag { .. }) && error.kind() == ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("c.d/two:1"), "{error}");
}

#[test]
fn a_digest_is_no_tag() {
    let rig = Rig::new();
    rig.image("a.b/one:1", &[layer("1")]).unwrap();
    let digest = name(&format!("a.b/one@sha256:{}", "0".repeat(64)));
    for error in [rig.store.tag("a.b/one:1", &digest).unwrap_err(), rig.store.untag(&digest).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}
