//! The layers as overlayfs shows them, in a mount namespace of the test's own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::support::{Rig, Tar, header, shown};

/// Mounts the layers of an image and runs `look` on the result.
fn mounted(rig: &Rig, layers: &[PathBuf], look: impl FnOnce(&Path) + Send + 'static) {
    let target = rig.temp.path().join("store/merged");
    let (upper, work) = (target.with_extension("upper"), target.with_extension("work"));
    let lower: Vec<_> = layers.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
    let top = layers[0].clone();
    let thread = std::thread::spawn(move || {
        for path in [&target, &upper, &work] {
            fs::create_dir_all(path).unwrap();
        }
        fs::set_permissions(&upper, fs::metadata(top).unwrap().permissions()).unwrap();
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
        look(&target);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn whiteouts_hide_and_opaque_directories_replace() {
    let rig = Rig::new();
    let base = Tar::new()
        .file("kept", "base")
        .file("removed", "base")
        .file("dir/a", "base")
        .file("dir/b", "base")
        .file("swapped/old", "base")
        .file("file", "base")
        .end();
    let top = Tar::new()
        .whiteout(".wh.removed")
        .whiteout("dir/.wh..wh..opq")
        .file("dir/c", "top")
        .whiteout(".wh.swapped")
        .file("swapped/new", "top")
        .file("file/now/a/directory", "top")
        .end();
    let image = rig.image("a.b/c:1", &[base, top]).unwrap();
    mounted(&rig, image.layers(), |root| {
        let there = |name: &str| root.join(name).exists();
        assert!(there("kept") && !there("removed"));
        assert!(there("dir/c") && !there("dir/a") && !there("dir/b"));
        assert!(there("swapped/new") && !there("swapped/old"));
        assert!(there("file/now/a/directory"));
    });
}

#[test]
fn an_unnamed_directory_takes_its_attributes_from_below() {
    let rig = Rig::new();
    let base = Tar::new()
        .add(header(b'5', "./").mode(0o711).owner(0, 7))
        .add(header(b'5', "tmp").mode(0o1777).owner(1, 2).mtime(42))
        .add(header(b'5', "tmp/inner").mode(0o700))
        .add(header(b'5', "var").mode(0o750))
        .add(header(b'5', "cleared").mode(0o770))
        .add(header(b'5', "replaced").mode(0o770))
        .end();
    let top = Tar::new()
        .file("tmp/inner/f", "x")
        .file("tmp/f", "x")
        .add(header(b'5', "var").mode(0o755))
        .file("var/f", "x")
        .whiteout("cleared/.wh..wh..opq")
        .whiteout(".wh.replaced")
        .file("replaced/f", "x")
        .end();
    let image = rig.image("a.b/c:1", &[base, top]).unwrap();
    assert_eq!(image.layers().len(), 3);
    mounted(&rig, image.layers(), |root| {
        let meta = |name: &str| fs::metadata(root.join(name)).unwrap();
        let tmp = meta("tmp");
        assert_eq!((tmp.mode() & 0o7777, tmp.uid(), tmp.gid(), tmp.mtime()), (0o1777, 1, 2, 42));
        assert_eq!(meta("tmp/inner").mode() & 0o7777, 0o700);
        assert_eq!(meta("var").mode() & 0o7777, 0o755, "named on top");
        assert_eq!(meta("cleared").mode() & 0o7777, 0o770, "its content went, it stayed");
        assert_eq!(meta("replaced").mode() & 0o7777, 0o755, "another directory of that name");
        assert_eq!(meta("").mode() & 0o7777, 0o711);
        assert!(root.join("tmp/inner/f").exists() && root.join("replaced/f").exists());
    });
}

#[test]
fn a_chain_needs_no_thin_layer_where_nothing_differs() {
    let rig = Rig::new();
    let base = Tar::new().dir("./").dir("etc").file("etc/a", "x").end();
    let top = Tar::new().file("etc/b", "x").end();
    assert_eq!(rig.image("a.b/c:1", &[base, top]).unwrap().layers().len(), 2);
}

#[test]
fn repeated_and_empty_layers_can_be_mounted() {
    let rig = Rig::new();
    let (a, b, empty) = (Tar::new().file("f", "a").end(), Tar::new().file("f", "b").end(), Tar::new().end());
    let image = rig.image("a.b/c:1", &[empty.clone(), a.clone(), b, empty, a]).unwrap();
    assert_eq!(image.layers().len(), 2);
    mounted(&rig, image.layers(), |root| assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "a"));
    let image = rig.image("a.b/nothing:1", &[]).unwrap();
    assert_eq!(image.layers().len(), 1);
    mounted(&rig, image.layers(), |root| assert_eq!(fs::read_dir(root).unwrap().count(), 0));
}

#[test]
fn an_opaque_root_hides_all_below() {
    let rig = Rig::new();
    let (a, b) = (Tar::new().file("a", "").end(), Tar::new().whiteout(".wh..wh..opq").file("b", "").end());
    let image = rig.image("a.b/c:1", &[a, b]).unwrap();
    mounted(&rig, image.layers(), |root| assert!(root.join("b").exists() && !root.join("a").exists()));
}

#[test]
fn files_below_a_link_of_a_lower_layer_are_refused() {
    let rig = Rig::new();
    let base = Tar::new().dir("usr/lib").symlink("lib", "usr/lib").end();
    let top = Tar::new().file("lib/x", "").end();
    let error = rig.image("a.b/c:1", &[base.clone(), top]).unwrap_err();
    assert!(shown(&error).contains("symbolic link there"), "{}", shown(&error));
    let named = Tar::new().dir("lib").file("lib/x", "").end();
    let image = rig.image("a.b/c:1", &[base, named]).unwrap();
    mounted(&rig, image.layers(), |root| assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_dir()));
}

#[test]
fn more_layers_than_overlayfs_takes_are_refused() {
    let rig = Rig::new();
    let archives: Vec<_> = (0..500).map(|n| Tar::new().file(&format!("{n}"), "").end()).collect();
    let error = rig.image("a.b/c:1", &archives).unwrap_err();
    assert!(shown(&error).contains("at most 499"), "{}", shown(&error));
    let image = rig.image("a.b/c:1", &archives[..499]).unwrap();
    assert_eq!(image.layers().len(), 499);
}
