//! What honest layers become on disk.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use wharf_images::{Limits, Store};

use crate::support::{Rig, Tar, header, limits, long_names, pax_record, source};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    use std::os::fd::AsFd;
    wharf_sys::xattr::value(fs::File::open(path).unwrap().as_fd(), name).unwrap()
}

fn is_whiteout(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[test]
fn attributes_are_kept() {
    let rig = Rig::new();
    let capability = "\u{1}\0\0\u{2}\0\u{4}\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let records = [
        ("SCHILY.xattr.user.x", "kept"),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.opaque", "y"),
        ("SCHILY.xattr.user.overlay.opaque", "y"),
        ("SCHILY.xattr.trusted.x", "y"),
        ("mtime", "1234567.5"),
    ];
    let archive = Tar::new()
        .add(header(b'5', "./").mode(0o700).owner(3, 4))
        .add(header(b'5', "d").mode(0o1777).mtime(77))
        .pax(&records)
        .content(header(b'0', "d/f").mode(0o6755).owner(100, 200), b"x")
        .add(header(b'6', "d/fifo").mode(0o620).owner(5, 6))
        .add(header(b'3', "d/null").mode(0o666).device(1, 3))
        .add(header(b'4', "d/disk").mode(0o4660).device(8, 1))
        .add(header(b'2', "d/link").link("f").owner(9, 9))
        .end();
    let layer = rig.one_layer(archive);
    let meta = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    let root = meta("");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o700, 3, 4));
    let file = meta("d/f");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o6755, 100, 200));
    assert_eq!((file.mtime(), file.mtime_nsec()), (1_234_567, 500_000_000));
    assert_eq!(
        (mode(&layer.join("d")), meta("d").mtime()),
        (0o1777, 77),
        "the time, though files came later"
    );
    let path = layer.join("d/f");
    assert_eq!(xattr(&path, "user.x").unwrap(), b"kept");
    assert_eq!(xattr(&path, "security.capability").unwrap(), capability.as_bytes());
    for name in ["trusted.overlay.opaque", "user.overlay.opaque", "trusted.x"] {
        assert_eq!(xattr(&path, name), None, "{name}");
    }
    assert!(meta("d/fifo").file_type().is_fifo() && mode(&layer.join("d/fifo")) == 0o620);
    assert_eq!((meta("d/null").rdev(), mode(&layer.join("d/null"))), (nix::sys::stat::makedev(1, 3), 0o666));
    assert!(meta("d/disk").file_type().is_block_device() && mode(&layer.join("d/disk")) == 0o4660);
    assert_eq!((meta("d/link").uid(), fs::read_link(layer.join("d/link")).unwrap()), (9, "f".into()));
}

#[test]
fn long_names_in_every_dialect() {
    let rig = Rig::new();
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let prefix = header(b'0', "name").field(345, b"some/prefix");
    let archive = Tar::new()
        .content(header(b'L', "././@LongLink"), format!("{long}\0").as_bytes())
        .file("short", "gnu")
        .pax(&[("path", &format!("{long}2"))])
        .file("short", "pax")
        .content(header(b'K', "././@LongLink"), long.as_bytes())
        .symlink("l", "short")
        .content(prefix, b"ustar")
        .content(header(b'g', "g"), pax_record("comment", "x").as_bytes())
        .add(header(0, "old/").field(257, &[0; 8]))
        .end();
    let layer = rig.one_layer(archive);
    let read = |name: &str| fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!((read(&long), read(&format!("{long}2"))), ("gnu".into(), "pax".into()));
    assert_eq!(fs::read_link(layer.join("l")).unwrap(), Path::new(&long));
    assert_eq!(read("some/prefix/name"), "ustar");
    assert!(layer.join("old").is_dir());
}

#[test]
fn holes_in_every_dialect() {
    let rig = Rig::new();
    let old = header(b'S', "old").field(386, b"00000000012\x0000000000004\x0000000000144\x0000000000000\0");
    let one = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "one"),
        ("GNU.sparse.realsize", "100"),
    ];
    let mut mapped = b"2\n10\n4\n100\n0\n".to_vec();
    mapped.resize(512, 0);
    mapped.extend_from_slice(b"data");
    let zero_one = [("GNU.sparse.size", "100"), ("GNU.sparse.numblocks", "1"), ("GNU.sparse.map", "10,4")];
    let zero = [("GNU.sparse.size", "100"), ("GNU.sparse.offset", "10"), ("GNU.sparse.numbytes", "4")];
    let archive = Tar::new()
        .content(old.field(483, b"00000000144\0"), b"data")
        .pax(&one)
        .content(header(b'0', "GNUSparseFile.0/one"), &mapped)
        .pax(&zero_one)
        .file("zero_one", "data")
        .pax(&zero)
        .file("zero", "data")
        .end();
    let layer = rig.one_layer(archive);
    let mut want = vec![0; 100];
    want[10..14].copy_from_slice(b"data");
    for name in ["old", "one", "zero_one", "zero"] {
        assert_eq!(fs::read(layer.join(name)).unwrap(), want, "{name}");
    }
}

#[test]
fn the_last_of_a_name_wins() {
    let rig = Rig::new();
    let archive = Tar::new()
        .file("a", "first")
        .file("a", "second")
        .dir("d")
        .file("d/x/y", "gone")
        .file("d", "a file now")
        .file("e", "x")
        .dir("e")
        .file("e/f", "x")
        .add(header(b'5', "e").mode(0o700))
        .symlink("s", "a")
        .file("s", "no link")
        .end();
    let layer = rig.one_layer(archive);
    let read = |name: &str| fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!(
        (read("a"), read("d"), read("e/f"), read("s")),
        ("second".into(), "a file now".into(), "x".into(), "no link".into())
    );
    assert_eq!(mode(&layer.join("e")), 0o700);
}

#[test]
fn links_are_resolved_in_the_layer() {
    let rig = Rig::new();
    let archive = Tar::new()
        .dir("usr/lib")
        .symlink("lib", "/usr/lib")
        .file("lib/x", "in usr")
        .symlink("usr/up", "../../../../usr/lib")
        .file("usr/up/y", "climbed")
        .symlink("later", "not/yet")
        .file("later/z", "made")
        .hard_link("hard", "lib/x")
        .hard_link("hard", "usr/lib/x")
        .hard_link("soft", "lib")
        .end();
    let layer = rig.one_layer(archive);
    let read = |name: &str| fs::read_to_string(layer.join(name)).unwrap();
    assert_eq!(
        (read("usr/lib/x"), read("usr/lib/y"), read("not/yet/z")),
        ("in usr".into(), "climbed".into(), "made".into())
    );
    let inode = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap().ino();
    assert_eq!(inode("hard"), inode("usr/lib/x"));
    assert_eq!(inode("soft"), inode("lib"), "a link to a symbolic link links that");
    assert!(fs::symlink_metadata(layer.join("lib")).unwrap().is_symlink());
}

#[test]
fn whiteouts_and_the_same_layer() {
    let rig = Rig::new();
    let archive = Tar::new()
        .whiteout("gone/.wh.file")
        .file("both", "stays")
        .whiteout(".wh.both")
        .whiteout(".wh.after")
        .file("after", "stays too")
        .dir("dir")
        .file("dir/f", "x")
        .whiteout(".wh.dir")
        .whiteout(".wh.new")
        .file("new/f", "x")
        .whiteout(".wh.named")
        .dir("named")
        .whiteout("cleared/.wh..wh..opq")
        .add(header(b'3', "fake").device(0, 0))
        .end();
    let layer = rig.one_layer(archive);
    assert!(is_whiteout(&layer.join("gone/file")));
    assert_eq!(fs::read_to_string(layer.join("both")).unwrap(), "stays");
    assert_eq!(fs::read_to_string(layer.join("after")).unwrap(), "stays too");
    for name in ["dir", "new", "named", "cleared"] {
        assert_eq!(xattr(&layer.join(name), "trusted.overlay.opaque").unwrap(), b"y", "{name}");
    }
    assert!(layer.join("dir/f").exists() && layer.join("new/f").exists());
    assert!(fs::symlink_metadata(layer.join("fake")).is_err());
}

#[test]
fn a_layer_may_name_any_number_of_directories() {
    let rig = Rig::new();
    let limits = Limits { entries: 10_000, ..limits() };
    let store = Store::open_with(&rig.temp.path().join("roomy"), limits).unwrap();
    let names = long_names(2_500);
    let tar = names.iter().fold(Tar::new(), |tar, name| tar.long_dir(name).long_file(&format!("{name}/f")));
    let archive = tar.end();
    store.unpack(&source(&archive, &archive), &mut &archive[..]).unwrap();
}

#[test]
fn every_directory_has_its_own_time_whatever_was_made_in_it_and_when() {
    let rig = Rig::new();
    let dir = |name: &str, mtime| header(b'5', name).mtime(mtime);
    let archive = Tar::new()
        .add(dir("./", 1))
        .add(dir("a", 2))
        .add(dir("a/b", 3))
        .file("a/b/f", "x")
        .file("a/f", "x")
        .file("a/b/g", "x")
        .add(dir("a", 4))
        .symlink("l", "a")
        .file("l/through", "x")
        .whiteout("a/b/.wh.gone")
        .whiteout(".wh.w")
        .add(header(b'0', "w/made/f").mtime(5))
        .file("a/b/g", "again")
        .add(dir("a/b", 6))
        .end();
    let layer = rig.one_layer(archive);
    for (name, mtime) in [("", 1), ("a", 4), ("a/b", 6), ("w", 5), ("w/made", 5)] {
        assert_eq!(fs::metadata(layer.join(name)).unwrap().mtime(), mtime, "{name:?}");
    }
}

#[test]
fn archives_of_another_writer_are_read_alike() {
    let rig = Rig::new();
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/{}", "a".repeat(90), "b".repeat(90));
    for (name, content) in [("plain", "1"), (long.as_str(), "2")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o640);
        header.set_mtime(5);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let archive = builder.into_inner().unwrap();
    let layer = rig.one_layer(archive);
    assert_eq!(fs::read_to_string(layer.join(long)).unwrap(), "2");
    assert_eq!(mode(&layer.join("plain")), 0o640);
}
