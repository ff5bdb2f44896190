//! The corpus of hostile layers: each is refused with the right message, or has a defined result, and none of them
//! touches anything outside its own directory.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use wharf_images::{Limits, Store};
use wharf_types::{ErrorKind, Failure as _};

use crate::support::{Header, Rig, Tar, header, limits, long_names, pax_record, shown, source};

type Case = (&'static str, Vec<u8>, &'static str);

/// Every case must fail with an error that contains these words, and leave nothing behind.
fn refused(cases: Vec<Case>) {
    let rig = Rig::new();
    for (what, archive, words) in cases {
        match rig.unpack_plain(&archive) {
            Ok(_) => panic!("{what}: it was unpacked"),
            Err(error) => assert!(shown(&error).contains(words), "{what}: {}", shown(&error)),
        }
        assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0, "{what}: something stays");
        rig.check_canary();
    }
}

fn file_with_pax(records: &[(&str, &str)]) -> Vec<u8> {
    Tar::new().pax(records).file("a", "x").end()
}

#[test]
fn names() {
    let long = "x".repeat(256);
    let deep = format!("{}f", "d/".repeat(41));
    refused(vec![
        ("dot dot", Tar::new().file("../canary/file", "bad").end(), "component .."),
        ("dot dot inside", Tar::new().dir("a").file("a/../../canary/file", "bad").end(), "component .."),
        ("dot dot directory", Tar::new().add(header(b'5', "..").mode(0o777)).end(), "component .."),
        ("long component", file_with_pax(&[("path", &long)]), "255 bytes"),
        ("long path", file_with_pax(&[("path", &format!("{}f", "a/".repeat(2500)))]), "4096 bytes"),
        ("deep path", file_with_pax(&[("path", &deep)]), "nested too deeply"),
        ("empty name", Tar::new().file("", "x").end(), "empty name"),
        ("file as root", Tar::new().file("./", "x").end(), "is the root"),
        ("link as root", Tar::new().symlink("/", "/etc").end(), "is the root"),
        ("NUL in a long name", Tar::new().content(header(b'L', "l"), b"a\0b").file("x", "").end(), "NUL"),
        ("NUL in a PAX name", file_with_pax(&[("path", "a\0b")]), "NUL"),
    ]);
}

#[test]
fn links() {
    refused(vec![
        ("hard link outside", Tar::new().hard_link("a", "../canary/file").end(), "component .."),
        ("hard link to itself", Tar::new().file("a", "").hard_link("a", "a").end(), "to itself"),
        ("hard link to itself, which is nothing", Tar::new().hard_link("a", "./a").end(), "to itself"),
        ("hard link to a directory", Tar::new().dir("d").hard_link("a", "d").end(), "to a directory"),
        ("hard link to a whiteout", Tar::new().whiteout(".wh.b").hard_link("a", "b").end(), "whiteout"),
        ("hard link to a whiteout name", Tar::new().hard_link("a", ".wh.b").end(), "whiteout"),
        ("hard link over its parent", Tar::new().file("d/f", "").hard_link("d", "d/f").end(), "it replaces"),
        ("hard link without target", Tar::new().hard_link("a", "").end(), "empty name"),
        (
            "hard link with content",
            Tar::new().file("a", "").content(header(b'1', "b").link("a"), b"x").end(),
            "wrong checksum",
        ),
        ("symlink without target", Tar::new().symlink("a", "").end(), "impossible target"),
        ("link loop", Tar::new().symlink("a", "b").symlink("b", "a").file("a/f", "x").end(), "too many"),
        ("through a file", Tar::new().file("a", "").file("a/b", "x").end(), "not a directory"),
        ("hard link through a loop", Tar::new().symlink("a", "a").hard_link("h", "a/f").end(), "too many"),
    ]);
}

#[test]
fn whiteouts() {
    refused(vec![
        ("nothing", Tar::new().whiteout(".wh.").end(), "impossible name"),
        ("dot", Tar::new().whiteout("a/.wh..").end(), "impossible name"),
        ("dot dot", Tar::new().whiteout(".wh...").end(), "impossible name"),
        ("newline", Tar::new().whiteout(".wh.a\nb").end(), "impossible name"),
        ("parent", Tar::new().file(".wh.a/b", "x").end(), "whiteout"),
        ("outside", Tar::new().whiteout("../.wh.canary").end(), "component .."),
    ]);
}

#[test]
fn headers() {
    let sum = Header(header(b'0', "a").summed()).field(148, b"000001\0 ").0;
    let big = |at: usize, bytes: &[u8]| Tar::new().add(header(b'0', "a").field(at, bytes)).end();
    refused(vec![
        ("checksum", Tar::new().raw(&sum).end(), "wrong checksum"),
        ("garbage", vec![b'x'; 2048], "not octal"),
        ("lone zero block", Tar::new().raw(&[0; 512]).file("a", "").end(), "lone zero block"),
        ("cut in a header", Tar::new().file("a", "").0[..300].to_vec(), "cannot read"),
        ("cut in content", Tar::new().add(header(b'0', "a").size(5000)).raw(&[1; 600]).0, "cannot read"),
        ("negative size", big(124, &[0xff; 12]), "negative size"),
        ("huge size", big(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), "out of range"),
        ("size of 96 bits", big(124, b"\x80\x01\0\0\0\0\0\0\0\0\0\0"), "out of range"),
        ("negative uid", big(108, &[0xff; 8]), "owner or group"),
        ("uid of 2^32 - 1", big(108, b"\x80\0\0\0\xff\xff\xff\xff"), "owner or group"),
        ("gid above 2^32", big(116, b"\x80\0\0\x01\0\0\0\0"), "owner or group"),
        ("time", big(136, b"\x80\0\0\0\x70\0\0\0\0\0\0\0"), "time"),
        ("negative mode", big(100, &[0xff; 8]), "mode"),
        ("major", Tar::new().add(header(b'3', "d").device(4096, 0)).end(), "device number"),
        ("minor", Tar::new().add(header(b'4', "d").device(1, 1 << 20)).end(), "device number"),
        ("directory with content", Tar::new().content(header(b'5', "d"), b"x").end(), "wrong checksum"),
        ("fifo with content", Tar::new().content(header(b'6', "d"), b"x").end(), "wrong checksum"),
        ("volume", Tar::new().add(header(b'V', "v")).end(), "several volumes"),
        ("continued", Tar::new().add(header(b'M', "v")).end(), "several volumes"),
        ("unknown type", Tar::new().add(header(b'Z', "v")).end(), "unknown type"),
    ]);
}

#[test]
fn extensions() {
    let global = |key: &str, value: &str| {
        Tar::new().content(header(b'g', "g"), pax_record(key, value).as_bytes()).file("a", "").end()
    };
    let long = || Tar::new().content(header(b'L', "l"), b"long\0");
    refused(vec![
        ("two paths", file_with_pax(&[("path", "a"), ("path", "b")]), "twice"),
        ("two sizes", file_with_pax(&[("size", "1"), ("size", "1")]), "twice"),
        ("another size", file_with_pax(&[("size", "1024")]), "another in PAX"),
        ("hexadecimal size", file_with_pax(&[("size", "0x1")]), "not decimal"),
        ("signed size", file_with_pax(&[("size", "+1")]), "not decimal"),
        ("negative uid", file_with_pax(&[("uid", "-1")]), "not decimal"),
        ("uid above 2^32", file_with_pax(&[("uid", "4294967296")]), "owner or group"),
        (
            "bad length",
            Tar::new().content(header(b'x', "p"), b"99 path=a\n").file("a", "").end(),
            "malformed PAX",
        ),
        (
            "no newline",
            Tar::new().content(header(b'x', "p"), b"9 path=ab").file("a", "").end(),
            "malformed PAX",
        ),
        (
            "two PAX headers",
            Tar::new().pax(&[("path", "b")]).pax(&[("uid", "1")]).file("a", "").end(),
            "second PAX",
        ),
        ("PAX at the end", Tar::new().pax(&[("path", "b")]).end(), "missing after"),
        ("long name at the end", long().end(), "missing after"),
        ("two long names", long().content(header(b'L', "l"), b"b").file("a", "").end(), "second GNU"),
        ("global path", global("path", "b"), "globally"),
        ("global link", global("linkpath", "b"), "globally"),
        ("global size", global("size", "1"), "globally"),
        ("long PAX", Tar::new().content(header(b'x', "p"), &vec![b'x'; (1 << 20) + 1]).end(), "1 MiB"),
        ("long long name", Tar::new().add(header(b'L', "l").size(1 << 40)).end(), "1 MiB"),
        ("empty long name", Tar::new().content(header(b'L', "l"), b"").file("a", "").end(), "empty"),
    ]);
}

#[test]
fn holes() {
    let one = |map: &str| {
        let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100")];
        let mut content = map.as_bytes().to_vec();
        content.resize(512, 0);
        content.extend_from_slice(b"data");
        Tar::new().pax(&records).content(header(b'0', "s"), &content).end()
    };
    let old = |pairs: &[u8]| {
        let head = header(b'S', "s").field(386, pairs).field(483, b"00000000144\0");
        Tar::new().content(head, b"data").end()
    };
    let zero = |records: &[(&str, &str)]| Tar::new().pax(records).file("s", "data").end();
    refused(vec![
        ("a million regions", one("1000000\n"), "65536 regions"),
        ("overlap", one("2\n0\n3\n1\n1\n"), "contradicts"),
        ("past the end", one("1\n99\n4\n"), "contradicts"),
        ("more than there is", one("1\n0\n5\n"), "contradicts"),
        ("no number", one("x\n"), "decimal"),
        ("a long number", one(&"1".repeat(30)), "malformed map"),
        ("a map without end", one("60000\n1\n"), "map"),
        ("old: past the end", old(b"00000000777\x0000000000004\0"), "contradicts"),
        ("old: negative", old(&[0xff; 24]), "negative region"),
        ("0.1: odd", zero(&[("GNU.sparse.size", "100"), ("GNU.sparse.map", "0,4,5")]), "malformed map"),
        ("0.1: no size", zero(&[("GNU.sparse.map", "0,4")]), "malformed map"),
        (
            "0.0: two offsets",
            zero(&[("GNU.sparse.offset", "0"), ("GNU.sparse.offset", "1")]),
            "malformed map",
        ),
        (
            "0.0: wrong count",
            zero(&[("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "2")]),
            "malformed map",
        ),
        ("unknown format", zero(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]), "unknown format"),
        (
            "a huge file",
            zero(&[("GNU.sparse.size", "99999999999"), ("GNU.sparse.map", "0,4")]),
            "bytes in files with holes",
        ),
        (
            "huge files together",
            (0..3).fold(Tar::new(), |tar, n| hollow(tar, n, 30 << 20)).end(),
            "bytes in files with holes",
        ),
    ]);
    let rig = Rig::new();
    rig.unpack_plain(&(0..2).fold(Tar::new(), |tar, n| hollow(tar, n, 30 << 20)).end()).unwrap();
}

/// Adds a file with four bytes of data in front of a hole.
fn hollow(tar: Tar, n: u32, size_bytes: u64) -> Tar {
    let size = size_bytes.to_string();
    tar.pax(&[("GNU.sparse.size", &size), ("GNU.sparse.map", "0,4")]).file(&n.to_string(), "data")
}

#[test]
fn bounds() {
    let many = (0..2001).fold(Tar::new(), |tar, n| tar.file(&format!("{n}"), "")).end();
    let implied = (0..60).fold(Tar::new(), |tar, n| tar.file(&format!("{n}/{}f", "d/".repeat(35)), "")).end();
    refused(vec![
        ("entries", many, "2000 entries"),
        ("implied directories", implied, "2000 entries"),
        (
            "bytes",
            Tar::new().content(header(b'0', "a"), &vec![1; 65 << 20]).end(),
            "bytes of an unpacked layer",
        ),
    ]);
}

#[test]
fn names_that_a_layer_leaves_open_are_bounded_by_themselves() {
    let rig = Rig::new();
    let roomy = Limits { entries: 10_000, ..limits() };
    let store = Store::open_with(&rig.temp.path().join("roomy"), roomy).unwrap();
    let names = long_names(1_100);
    let archive = names.iter().fold(Tar::new(), |tar, name| tar.long_file(&format!("{name}/f"))).end();
    let error = store.unpack(&source(&archive, &archive), &mut &archive[..]).unwrap_err();
    assert!(shown(&error).contains("bytes of names of directories"), "{}", shown(&error));
}

/// A layer with files below links of the layer under it.
fn many_links(links: usize, directories: usize) -> [Vec<u8>; 2] {
    let base = (0..links).fold(Tar::new(), |tar, at| tar.symlink(&format!("l{at}"), &format!("usr/t{at}")));
    let top = (0..links).fold(Tar::new(), |tar, at| tar.file(&format!("l{at}/x"), "x"));
    [base.end(), (0..directories).fold(top, |tar, at| tar.dir(&format!("d{at}"))).end()]
}

/// The copies of layers that are in the store.
fn copies(rig: &Rig) -> Vec<String> {
    let layers = fs::read_dir(rig.root().join("layers")).unwrap();
    let names = layers.map(|layer| layer.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("moved-")).collect()
}

#[test]
fn one_copy_of_a_layer_is_enough_for_all_links() {
    let rig = Rig::new();
    rig.image("a.b/c:1", &many_links(100, 100)).unwrap();
    let copies = copies(&rig);
    // It has the number of the copies before it.
    assert!(matches!(&copies[..], [only] if only.ends_with("-0")), "{copies:?}");
    let copy = rig.root().join("layers").join(&copies[0]).join("fs");
    for at in 0..100 {
        assert_eq!(fs::read(copy.join(format!("usr/t{at}/x"))).unwrap(), b"x");
        assert!(!copy.join(format!("l{at}")).exists());
    }
}

#[test]
fn a_copy_of_a_layer_replaces_the_one_before_it() {
    let rig = Rig::new();
    let base = Tar::new().symlink("a", "b").symlink("b", "c").symlink("c", "d").end();
    rig.image("a.b/c:1", &[base, Tar::new().file("a/x", "x").file("a/b/y", "y").file("b/z", "z").end()])
        .unwrap();
    let copies = copies(&rig);
    assert!(matches!(&copies[..], [last] if last.ends_with("-2")), "{copies:?}");
    let copy = rig.root().join("layers").join(&copies[0]).join("fs");
    for (file, content) in [("d/x", "x"), ("d/b/y", "y"), ("d/z", "z")] {
        assert_eq!(fs::read_to_string(copy.join(file)).unwrap(), content);
    }
}

#[test]
fn copies_of_layers_keep_the_disks_reserve() {
    let temp = tempfile::tempdir().unwrap();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), temp.path(), Some("tmpfs"), MsFlags::empty(), Some("nr_inodes=4000")).unwrap();
        let store = Store::open_with(&temp.path().join("store"), limits()).unwrap();
        let rig = Rig { temp, store };
        let error = rig.image("a.b/c:1", &many_links(1, 1990)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", shown(&error));
        assert!(shown(&error).contains("fewer than 200 inodes free"), "{}", shown(&error));
    });
    thread.join().unwrap();
}

/// Layers that are accepted, and must do nothing outside.
#[test]
fn accepted_and_contained() {
    let rig = Rig::new();
    let canary = rig.canary();
    let canary = canary.to_str().unwrap();
    let up = "../../../../../../../../../..".to_owned() + canary;
    let cases: Vec<(&str, Tar)> = vec![
        ("file through an absolute link", Tar::new().symlink("l", canary).file("l/file", "bad")),
        ("file through a climbing link", Tar::new().symlink("l", &up).file("l/file", "bad")),
        ("directory through a link", Tar::new().symlink("l", canary).add(header(b'5', "l/x").mode(0o777))),
        ("mode of a linked directory", Tar::new().symlink("l", canary).add(header(b'5', "l").mode(0o777))),
        ("mode of a linked file", {
            let target = format!("{canary}/file");
            Tar::new().symlink("l", &target).content(header(b'0', "l").mode(0o6777).owner(1, 1), b"bad")
        }),
        ("owner of a link", { Tar::new().add(header(b'2', "l").link(canary).owner(5, 5).mode(0o777)) }),
        ("hard link to a link, then a write", {
            Tar::new().symlink("l", &format!("{canary}/file")).hard_link("h", "l").file("h", "bad")
        }),
        ("link swapped below a cached parent", {
            Tar::new().file("d/a", "x").symlink("d", canary).file("d/file", "bad")
        }),
        ("whiteout through a link", Tar::new().symlink("l", canary).whiteout("l/.wh.file")),
        ("opaque through a link", Tar::new().symlink("l", canary).whiteout("l/.wh..wh..opq")),
        ("replace through a link", Tar::new().symlink("l", canary).dir("l/file").file("l/file", "bad")),
        ("proc", Tar::new().symlink("p", "/proc/self/root").file(&format!("p{canary}/file"), "bad")),
        ("absolute name", Tar::new().file(&format!("{canary}/file"), "bad")),
        ("dots", Tar::new().file("././//a", "x").dir("./").dir(".")),
        ("no end", Tar::new().file("a", "x")),
        ("after the end", Tar::new().file("a", "x").raw(&[0; 1024]).raw(b"anything at all")),
        (
            "case and Unicode",
            Tar::new().file("A", "1").file("a", "2").file("\u{e9}", "3").file("e\u{301}", "4"),
        ),
        ("sizes that mean nothing", {
            let link = header(b'1', "h").link("a").size(7);
            Tar::new().file("a", "x").add(link).add(header(b'5', "d").size(4096))
        }),
        ("a file with a slash", Tar::new().file("a/", "x")),
        ("name by two means", {
            let long = Tar::new().content(header(b'L', "l"), b"long\0");
            long.pax(&[("path", "../other")]).file("a", "")
        }),
        ("old driver's names", Tar::new().file(".wh..wh.plnk/1.2", "x").dir(".wh..wh.aufs")),
    ];
    for (what, tar) in cases {
        let archive = if what == "no end" { tar.0 } else { tar.end() };
        rig.unpack_plain(&archive).unwrap_or_else(|error| panic!("{what}: {}", shown(&error)));
        rig.check_canary();
    }
}

#[test]
fn truncation_at_every_block_and_flips_never_panic() {
    let rig = Rig::new();
    let records = [("path", "deep/er"), ("SCHILY.xattr.user.a", "b")];
    let archive = Tar::new()
        .dir("d")
        .pax(&records)
        .file("x", "content")
        .symlink("l", "d")
        .hard_link("h", "deep/er")
        .content(header(b'L', "long"), b"a/long/name\0")
        .file("y", "more")
        .whiteout(".wh.z")
        .end();
    for end in (0..archive.len()).step_by(256) {
        drop(rig.unpack_plain(&archive[..end]));
    }
    for at in (0..archive.len()).step_by(17) {
        for bit in [0x01, 0x20, 0x80] {
            let mut flipped = archive.clone();
            flipped[at] ^= bit;
            drop(rig.unpack_plain(&flipped));
        }
    }
    rig.check_canary();
    assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
}
