//! Layers as overlayfs shows them, in a mount namespace of the test's own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use wharf_types::{ErrorKind, Failure};

use crate::support::{Rig, Tar, header, long_names, shown};

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
fn files_below_a_link_of_a_lower_layer_are_where_it_leads() {
    let rig = Rig::new();
    let base = Tar::new()
        .add(header(b'5', "usr").mode(0o751))
        .add(header(b'5', "usr/lib").mode(0o711).owner(3, 4).mtime(42))
        .file("usr/lib/old", "base")
        .file("usr/lib/removed", "base")
        .symlink("lib", "/usr/lib")
        .symlink("lib64", "lib")
        .end();
    let top = Tar::new()
        .file("lib/x", "top")
        .file("lib/old", "top")
        .whiteout("lib/.wh.removed")
        .add(header(b'5', "lib/own").mode(0o700))
        .file("lib/own/y", "top")
        .hard_link("lib/z", "lib/x")
        .file("lib64/w", "top")
        .file("usr/lib/v", "top")
        .end();
    let image = rig.image("a.b/c:1", &[base.clone(), top.clone()]).unwrap();
    assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
    mounted(&rig, image.layers(), |root| {
        let text = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        assert_eq!(fs::read_link(root.join("lib")).unwrap(), Path::new("/usr/lib"));
        assert_eq!(fs::read_link(root.join("lib64")).unwrap(), Path::new("lib"));
        for name in ["x", "old", "own/y", "z", "w", "v"] {
            assert_eq!(text(&format!("usr/lib/{name}")), "top", "{name}");
        }
        assert!(!root.join("usr/lib/removed").exists());
        let meta = |name: &str| fs::metadata(root.join(name)).unwrap();
        let lib = meta("usr/lib");
        assert_eq!((lib.mode() & 0o7777, lib.uid(), lib.gid()), (0o711, 3, 4), "as the base names it");
        assert_eq!((meta("usr").mode() & 0o7777, meta("usr/lib/own").mode() & 0o7777), (0o751, 0o700));
        assert_eq!(meta("usr/lib/x").ino(), meta("usr/lib/z").ino());
    });
    // Another image uses the layer as it is; the first image's own layers are removed with it.
    let plain = rig.image("a.b/plain:1", &[top]).unwrap();
    mounted(&rig, plain.layers(), |root| assert!(root.join("lib/x").exists()));
    assert!(rig.store.remove("a.b/c:1").unwrap());
    let left = fs::read_dir(rig.root().join("layers")).unwrap().count();
    assert_eq!(left, 1 + usize::from(plain.layers().len() > 1));
    let named = Tar::new().dir("lib").file("lib/x", "").end();
    let image = rig.image("a.b/c:1", &[base, named]).unwrap();
    mounted(&rig, image.layers(), |root| assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_dir()));
}

#[test]
fn whiteouts_below_a_link_of_a_lower_layer_hide_what_is_where_it_leads() {
    let rig = Rig::new();
    let base = Tar::new()
        .dir("usr")
        .dir("usr/tools")
        .dir("usr/tools/d")
        .file("usr/tools/d/a", "base")
        .file("usr/tools/old", "base")
        .file("usr/other", "base")
        .symlink("t", "usr/tools")
        .symlink("r", "/")
        .end();
    let table: [(&str, Tar, &'static [&'static str]); 7] = [
        ("an opaque link", Tar::new().whiteout("t/.wh..wh..opq").file("t/new", ""), &["new"]),
        (
            "what is its target's own",
            Tar::new().file("usr/tools/own", "").whiteout("t/.wh..wh..opq"),
            &["own"],
        ),
        (
            "a file and its whiteout",
            Tar::new().file("usr/tools/old", "").whiteout("t/.wh.old"),
            &["d", "d/a", "old"],
        ),
        (
            "a file after its whiteout",
            Tar::new().whiteout("usr/tools/.wh.old").file("t/old", ""),
            &["d", "d/a", "old"],
        ),
        (
            "a directory and its whiteout",
            Tar::new().file("usr/tools/d/b", "").whiteout("t/.wh.d"),
            &["d", "d/b", "old"],
        ),
        (
            "a directory after it",
            Tar::new().whiteout("usr/tools/.wh.d").file("t/d/b", ""),
            &["d", "d/b", "old"],
        ),
        ("a target after its whiteout", Tar::new().whiteout("usr/.wh.tools").file("t/new", ""), &["new"]),
    ];
    for (name, top, expected) in table {
        let image = rig.image("a.b/c:1", &[base.clone(), top.end()]).unwrap();
        mounted(&rig, image.layers(), move |root| {
            assert!(root.join("usr/other").exists(), "{name}");
            let found: Vec<_> = ["d", "d/a", "d/b", "new", "old", "own"]
                .into_iter()
                .filter(|path| root.join("usr/tools").join(path).exists())
                .collect();
            assert_eq!(found, expected, "{name}");
        });
    }
    let cleared = Tar::new().whiteout("r/.wh..wh..opq").file("r/x", "").end();
    let image = rig.image("a.b/c:1", &[base, cleared]).unwrap();
    mounted(&rig, image.layers(), |root| {
        let found: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, ["x"], "a link to the root");
    });
}

#[test]
fn hard_links_to_files_of_lower_layers_are_one_file_with_them() {
    let rig = Rig::new();
    let base = Tar::new()
        .add(header(b'5', "usr").mode(0o751))
        .add(header(b'5', "usr/bin").mode(0o711).owner(3, 4).mtime(42))
        .content(header(b'0', "usr/bin/tool").mode(0o6755).owner(5, 6), b"tool")
        .file("usr/bin/replaced", "base")
        .symlink("bin", "/usr/bin")
        .symlink("soft", "usr/bin/tool")
        .end();
    let middle = Tar::new().file("usr/bin/replaced", "middle").file("usr/bin/removed", "x").end();
    let top = Tar::new()
        .hard_link("usr/bin/copy", "usr/bin/tool")
        .hard_link("new/deep/again", "bin/tool")
        .hard_link("third", "new/deep/again")
        .hard_link("newer", "usr/bin/replaced")
        .hard_link("softer", "soft")
        .hard_link("overwritten", "usr/bin/tool")
        .file("overwritten", "own")
        .file("stood", "own")
        .hard_link("stood", "usr/bin/tool")
        .hard_link("early", "late")
        .file("late", "late")
        .end();
    let image = rig.image("a.b/c:1", &[base.clone(), middle, top]).unwrap();
    assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
    mounted(&rig, image.layers(), |root| {
        let text = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        let meta = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        for name in ["usr/bin/copy", "new/deep/again", "third", "stood"] {
            assert_eq!((text(name), meta(name).ino()), ("tool".into(), meta("usr/bin/tool").ino()), "{name}");
            assert_eq!((meta(name).mode() & 0o7777, meta(name).uid()), (0o6755, 5), "{name}");
        }
        assert_eq!(
            (text("newer"), text("overwritten"), text("early")),
            ("middle".into(), "own".into(), "late".into())
        );
        assert_eq!(fs::read_link(root.join("softer")).unwrap(), Path::new("usr/bin/tool"));
        assert_eq!((meta("usr").mode() & 0o7777, meta("usr/bin").mode() & 0o7777), (0o751, 0o711));
        assert_eq!((meta("usr/bin").uid(), meta("usr/bin").mtime()), (3, 42), "as the base names it");
    });
    // Another image uses the base as it was.
    let plain = rig.image("a.b/plain:1", &[base]).unwrap();
    assert!(rig.store.remove("a.b/c:1").unwrap());
    mounted(&rig, plain.layers(), |root| {
        assert!(root.join("usr/bin/tool").exists() && !root.join("usr/bin/copy").exists());
    });
}

#[test]
fn hard_links_to_what_no_layer_has_as_a_file_are_refused() {
    for target in ["nothing", "d", "removed", "hidden/f", "f/below", "loop/f", "canary/file"] {
        let rig = Rig::new();
        let base = Tar::new()
            .file("d/f", "x")
            .file("removed", "x")
            .file("hidden/f", "x")
            .file("f", "x")
            .symlink("loop", "loop")
            .end();
        let middle = Tar::new().whiteout(".wh.removed").whiteout("hidden/.wh..wh..opq").end();
        let top = Tar::new().hard_link("link", target).end();
        let error = rig.image("x.y/z:1", &[base, middle, top]).unwrap_err();
        assert!(
            shown(&error).contains("neither in it nor a file of a lower layer"),
            "{target}: {}",
            shown(&error)
        );
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0, "{target}");
        rig.check_canary();
    }
}

#[test]
fn layers_that_leave_too_many_names_open_are_refused_together() {
    let rig = Rig::new();
    let layer = |n: usize| {
        let names = long_names(900).into_iter();
        names.fold(Tar::new(), |tar, name| tar.long_file(&format!("{name}{n}/f"))).end()
    };
    let archives: Vec<_> = (0..5).map(layer).collect();
    let error = rig.image("a.b/c:1", &archives).unwrap_err();
    assert!(shown(&error).contains("without an entry of their own"), "{}", shown(&error));
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    rig.image("a.b/c:1", &archives[..2]).unwrap();
}

#[test]
fn links_of_lower_layers_that_lead_nowhere_are_refused() {
    for (link, target, entry) in
        [("a", "a", "a/f"), ("a", "b", "a/f"), ("a", "a/b", "a/f"), ("a", "file", "a/f"), ("a", "d", "a/f")]
    {
        let rig = Rig::new();
        let base = Tar::new().symlink(link, target).symlink("b", "a").end();
        // The link leads to a file of the upper layer, or what moves there is a directory in it.
        let top = Tar::new().file(entry, "x").file("file", "x").file("d/f/g", "x").end();
        let error = rig.image("x.y/z:1", &[base, top]).unwrap_err();
        assert!(shown(&error).contains("symbolic link, and they cannot"), "{target}: {}", shown(&error));
        assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0, "{target}");
        rig.check_canary();
    }
}

#[test]
fn a_link_that_climbs_leads_to_the_root_of_the_image() {
    let rig = Rig::new();
    let base = Tar::new().dir("d").symlink("d/up", "../../../../..").end();
    let top = Tar::new().file("d/up/canary/file", "image").end();
    let image = rig.image("a.b/c:1", &[base, top]).unwrap();
    rig.check_canary();
    mounted(&rig, image.layers(), |root| {
        assert_eq!(fs::read_to_string(root.join("canary/file")).unwrap(), "image");
    });
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
