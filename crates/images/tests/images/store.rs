//! Names, removal, leases, and the store after a crash or damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wharf_images::{ImageUser, Layer, NewImage, Store, StoreError};
use wharf_types::{ErrorKind, Failure, Reference};

use crate::support::{Rig, Tar, documents, limits, sha256, shown, source};

fn archive(content: &str) -> Vec<u8> {
    Tar::new().file("f", content).end()
}

fn tags(rig: &Rig) -> Vec<Vec<String>> {
    rig.store.list().iter().map(|image| image.repo_tags().to_vec()).collect()
}

#[test]
fn an_image_is_found_by_all_its_names() {
    let rig = Rig::new();
    let image = rig.image("busybox", &[archive("1")]).unwrap();
    let id = image.id().clone();
    assert_eq!(image.repo_tags(), ["docker.io/library/busybox:latest"]);
    assert_eq!(image.repo_digests().len(), 1);
    let digest = image.repo_digests()[0].clone();
    let tagged = digest.replace('@', ":latest@");
    let (full, hex) = (id.to_string(), id.hex().to_owned());
    for name in
        ["busybox", "docker.io/busybox:latest", &digest, &tagged, &full, &hex, &hex[..12], &full[..19]]
    {
        assert_eq!(rig.store.find(name).map(|image| image.id().clone()), Some(id.clone()), "{name}");
    }
    for name in ["", "sha256:", "busybox:other", "zzz", &format!("a.b/c@{id}"), "../x"] {
        assert!(rig.store.find(name).is_none(), "{name}");
    }
    assert!(image.size_bytes() > 0);
    assert_eq!(image.user(), Some(&ImageUser::Id(7)));
    rig.store.config(&image).unwrap().admit(|config| {
        let config = config.config().as_ref().unwrap();
        assert_eq!((config.user(), config.cmd()), (&Some("7:8".to_owned()), &Some(vec!["sh".to_owned()])));
    });
}

#[test]
fn a_store_keeps_only_the_entries_that_it_names() {
    let rig = Rig::new();
    rig.image("busybox", &[archive("1")]).unwrap();
    let mut found: Vec<_> =
        fs::read_dir(rig.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let mut named = Store::ENTRIES.to_vec();
    found.sort_unstable();
    named.sort_unstable();
    assert_eq!(found, named);
}

#[test]
fn one_image_of_two_registries_has_both_names() {
    let rig = Rig::new();
    let one = rig.image("a.b/x:1", &[archive("1")]).unwrap();
    let two = rig.image("c.d/y:2", &[archive("1")]).unwrap();
    assert_eq!(one.id(), two.id());
    assert_eq!(tags(&rig), [["a.b/x:1", "c.d/y:2"]]);
    assert_eq!(two.repo_digests().len(), 2);
    assert!(rig.store.remove("a.b/x:1").unwrap());
    assert!(rig.store.list().is_empty() && rig.store.find("c.d/y:2").is_none());
    assert!(!rig.store.remove("a.b/x:1").unwrap());
}

#[test]
fn a_tag_moves_and_the_old_image_stays_by_digest() {
    let rig = Rig::new();
    let old = rig.image("a.b/x:1", &[archive("1")]).unwrap();
    let new = rig.image("a.b/x:1", &[archive("2")]).unwrap();
    assert_eq!(rig.store.find("a.b/x:1").unwrap().id(), new.id());
    let old_now = rig.store.find(&old.id().to_string()).unwrap();
    assert!(old_now.repo_tags().is_empty());
    assert_eq!(old_now.repo_digests(), old.repo_digests());
    let (root, temp) = (rig.root(), rig.temp);
    drop(rig.store);
    let store = Store::open(&root).unwrap();
    assert_eq!(store.find("a.b/x:1").unwrap().id(), new.id());
    assert!(store.find(old.id().hex()).unwrap().repo_tags().is_empty());
    drop(temp);
}

#[test]
fn a_pull_by_digest_has_no_tag() {
    let rig = Rig::new();
    let (manifest, _) = documents(&[archive("1")]);
    let reference = format!("a.b/x@{}", sha256(manifest.as_bytes()));
    let image = rig.image(&reference, &[archive("1")]).unwrap();
    assert!(image.repo_tags().is_empty());
    assert_eq!(image.repo_digests(), std::slice::from_ref(&reference));
    assert!(rig.store.find(&reference).is_some());
}

#[test]
fn layers_are_shared_and_go_with_their_last_user() {
    let rig = Rig::new();
    let (base, one, two) = (archive("base"), archive("1"), archive("2"));
    let first = rig.image("a.b/x:1", &[base.clone(), one.clone()]).unwrap();
    let before = rig.store.usage();
    let second = rig.image("a.b/x:2", &[base.clone(), two]).unwrap();
    let both = rig.store.usage();
    assert!(both.inodes - before.inodes < before.inodes, "the base is counted once");
    let lease = rig.store.lease(first.id()).unwrap();
    assert_eq!(lease.paths(), first.layers());
    assert!(rig.store.remove("a.b/x:1").unwrap());
    let held = rig.store.usage();
    assert_eq!(both.inodes - held.inodes, 3, "its documents are gone, its layers are on the disk");
    assert!(rig.store.has_layer(&sha256(&one)) && first.layers()[0].exists(), "held");
    drop(lease);
    assert!(first.layers()[0].exists(), "only a sweep looks at what is mounted");
    rig.store.sweep().unwrap();
    assert!(!rig.store.has_layer(&sha256(&one)) && !first.layers()[0].exists());
    assert!(rig.store.usage().inodes < held.inodes);
    assert!(second.layers()[1].exists());
    assert!(rig.store.remove(second.id().hex()).unwrap());
    assert!(!second.layers()[1].exists());
    assert_eq!(rig.store.usage(), wharf_images::Usage::default());
    assert_eq!(fs::read_dir(rig.root().join("content/sha256")).unwrap().count(), 0);
}

#[test]
fn a_hold_outlives_the_process_by_its_paths() {
    let rig = Rig::new();
    let image = rig.image("a.b/x:1", &[archive("1")]).unwrap();
    std::mem::drop(rig.store.lease(image.id()));
    let lease = rig.store.lease(image.id()).unwrap();
    assert!(rig.store.remove("a.b/x:1").unwrap());
    let (root, _temp) = (rig.root(), rig.temp);
    // The process dies: the lease is never ended.
    let paths = lease.paths();
    let copy = root.with_extension("copy");
    assert!(copy_tree(&root, &copy));
    let moved: Vec<_> = paths.iter().map(|path| copy.join(path.strip_prefix(&root).unwrap())).collect();
    let store = Store::open(&copy).unwrap();
    let held = store.lease_paths(moved.iter().map(PathBuf::as_path));
    assert_eq!(held.paths(), moved);
    assert_eq!(store.sweep().unwrap(), wharf_images::Usage::default());
    assert!(moved[0].exists());
    drop(held);
    assert!(store.sweep().unwrap().inodes > 0);
    assert!(!moved[0].exists());
    assert!(store.lease_paths(moved.iter().map(PathBuf::as_path)).paths().is_empty());
}

/// A record of a newer release, or one that cannot be read now, may be whole and name any layer.
#[test]
fn what_is_not_understood_keeps_its_layers_and_stays_where_it_is() {
    let rig = Rig::new();
    let image = rig.image("a.b/x:1", &[archive("1"), archive("2")]).unwrap();
    let (root, layers, id) = (rig.root(), image.layers().to_vec(), image.id().hex().to_owned());
    let (record, info) = (root.join("images").join(&id), layers[0].parent().unwrap().join("info"));
    let Rig { store, temp: _temp } = rig;
    drop((image, store));
    for file in [&record, &info] {
        let whole = fs::read(file).unwrap();
        let text = String::from_utf8_lossy(&whole);
        let [wharf, kind, _version, rest] = text.splitn(4, ' ').collect::<Vec<_>>()[..] else {
            panic!("{text}")
        };
        fs::write(file, format!("{wharf} {kind} 99 {rest}")).unwrap();
        let store = Store::open(&root).unwrap();
        assert!(store.list().is_empty());
        assert_eq!(store.sweep().unwrap(), wharf_images::Usage::default());
        assert!(layers.iter().all(|layer| layer.exists()) && file.exists());
        drop(store);
        fs::write(file, whole).unwrap();
        assert_eq!(Store::open(&root).unwrap().list().len(), 1, "it is as it was before");
    }
}

#[test]
fn layers_of_a_damaged_image_are_no_orphans() {
    let rig = Rig::new();
    let image = rig.image("a.b/x:1", &[archive("1")]).unwrap();
    let (root, layer) = (rig.root(), image.layers()[0].clone());
    fs::write(root.join("images").join(image.id().hex()), "damaged").unwrap();
    let Rig { store, temp: _temp } = rig;
    drop((image, store));
    for _start in 0..2 {
        let store = Store::open(&root).unwrap();
        assert!(store.list().is_empty());
        assert_eq!(store.sweep().unwrap(), wharf_images::Usage::default());
        assert!(layer.exists());
    }
    fs::remove_dir_all(root.join("quarantine")).unwrap();
    assert!(Store::open(&root).unwrap().sweep().unwrap().inodes > 0, "once a person has looked");
    assert!(!layer.exists());
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) -> bool {
    fs::create_dir_all(to).unwrap();
    fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).all(|entry| {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).is_ok()
        }
    })
}

#[test]
fn simultaneous_pulls_and_removals_all_succeed() {
    let rig = Arc::new(Rig::new());
    std::thread::scope(|scope| {
        for n in 0..4 {
            let rig = Arc::clone(&rig);
            scope.spawn(move || {
                for _ in 0..5 {
                    let layers: Vec<Layer> = ["base", "top"]
                        .iter()
                        .map(|c| rig.unpack_plain(&archive(c)).unwrap().into())
                        .collect();
                    rig.commit(&format!("a.b/x:{n}"), &[archive("base"), archive("top")], layers).unwrap();
                    let image = rig.store.find(&format!("a.b/x:{n}"));
                    assert!(image.is_none_or(|image| image.layers().len() == 2));
                    rig.store.remove(&format!("a.b/x:{n}")).unwrap();
                }
            });
        }
    });
    assert!(rig.store.list().is_empty());
    assert_eq!(fs::read_dir(rig.root().join("layers")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
}

#[test]
fn a_layer_unpacked_for_two_images_outlives_the_first() {
    let rig = Rig::new();
    let archive = archive("1");
    let layer = Arc::new(rig.unpack_plain(&archive).unwrap());
    let commit = |name: &str| {
        rig.commit(name, std::slice::from_ref(&archive), vec![Layer::Unpacked(Arc::clone(&layer))]).unwrap()
    };
    commit("a.b/x:1");
    assert!(rig.store.remove("a.b/x:1").unwrap());
    let image = commit("a.b/x:2");
    drop(layer);
    assert!(image.layers()[0].join("f").exists());
    assert!(rig.store.remove("a.b/x:2").unwrap());
    assert_eq!(fs::read_dir(rig.root().join("layers")).unwrap().count(), 0);
}

#[test]
fn a_whole_layer_waits_for_a_retry_of_this_boot_and_not_for_ever() {
    let archive = archive("1");
    let wanted = source(&archive, &archive);
    let kept =
        |root: &std::path::Path| fs::read_dir(root.join("kept")).unwrap().next().unwrap().unwrap().path();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7 * 3600);
    for (what, there) in
        [("as it was", true), ("another boot", false), ("long ago", false), ("damaged", false)]
    {
        let rig = Rig::new();
        drop(rig.unpack_plain(&archive).unwrap());
        drop(rig.unpack_plain(&archive).unwrap());
        let (root, Rig { temp, store }) = (rig.root(), rig);
        drop(store);
        let layer = kept(&root).join(wanted.diff_id.hex());
        match what {
            "another boot" => fs::rename(kept(&root), root.join("kept/another")).unwrap(),
            "long ago" => fs::File::open(&layer).unwrap().set_modified(long_ago).unwrap(),
            "damaged" => fs::write(layer.join("info"), "x").unwrap(),
            _ => {}
        }
        let rig = Rig { store: Store::open_with(&root, limits()).unwrap(), temp };
        drop(rig.unpack_plain(&Tar::new().end()).unwrap());
        let found = rig.store.kept_layer(&wanted);
        assert_eq!(found.is_some(), there, "{what}");
        assert!(rig.store.kept_layer(&wanted).is_none(), "{what}: it is one pull's");
        if let Some(layer) = found {
            let image = rig.commit("a.b/x:1", std::slice::from_ref(&archive), vec![layer.into()]).unwrap();
            assert_eq!(fs::read_to_string(image.layers()[0].join("f")).unwrap(), "1");
            assert!(rig.store.kept_layer(&wanted).is_none());
        }
    }
}

#[test]
fn a_commit_that_fails_at_its_end_leaves_nothing() {
    let archives = [archive("1")];
    let (manifest, config) = documents(&archives);
    for blocked in [
        format!("images/{}", sha256(config.as_bytes()).hex()),
        format!("content/sha256/{}", sha256(manifest.as_bytes()).hex()),
    ] {
        let rig = Rig::new();
        let blocked = rig.root().join(blocked);
        fs::create_dir(&blocked).unwrap();
        rig.image("a.b/x:1", &archives).unwrap_err();
        rig.store.sweep().unwrap();
        for name in ["staging", "layers"] {
            assert_eq!(fs::read_dir(rig.root().join(name)).unwrap().count(), 0, "{name}");
        }
        fs::remove_dir(blocked).unwrap();
        rig.image("a.b/x:1", &archives).unwrap();
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let rig = Rig::new();
    let (manifest, config) = documents(&[archive("1")]);
    let digest = sha256(manifest.as_bytes());
    let reference: Reference = "a.b/x:1".parse().unwrap();
    let commit = |manifest: &str, config: &str, content: &str| {
        rig.store.commit(NewImage {
            names: std::slice::from_ref(&reference),
            resolved: Some(&digest),
            manifest: manifest.as_bytes(),
            manifest_digest: &digest,
            config: config.as_bytes(),
            layers: vec![rig.unpack_plain(&archive(content)).unwrap().into()],
            pinned: false,
        })
    };
    for (manifest, config, content) in [
        (&format!("{manifest} "), &config, "1"),
        (&manifest, &format!("{config} "), "1"),
        (&manifest, &config, "2"),
    ] {
        let error = commit(manifest, config, content).unwrap_err();
        assert!(
            matches!(error, StoreError::Mismatch { .. }) && error.kind() == ErrorKind::DataLoss,
            "{error}"
        );
    }
    assert!(rig.commit("a.b/x:1", &[archive("1"), archive("2")], Vec::new()).is_err());
    assert!(rig.store.list().is_empty());
    assert_eq!(fs::read_dir(rig.root().join("staging")).unwrap().count(), 0);
    commit(&manifest, &config, "1").unwrap();
}

#[test]
fn a_directory_of_others_is_left_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let mode = || fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    fs::write(dir.path().join("theirs"), "").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }), "{}", shown(&error));
    assert_eq!(mode(), 0o755);
    fs::remove_file(dir.path().join("theirs")).unwrap();
    drop(Store::open(dir.path()).unwrap());
    assert_eq!(mode(), 0o700);
    fs::write(dir.path().join("theirs"), "").unwrap();
    Store::open(dir.path()).unwrap();
}

#[test]
fn a_store_that_could_not_be_locked_is_found_without_a_change() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    Store::check(&root).unwrap();
    assert!(!root.exists());
    let open = Store::open(&root).unwrap();
    Store::check(&root).unwrap();
    drop(open);
    fs::remove_file(root.join("lock")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("lock")).unwrap();
    let before = fs::read_dir(&root).unwrap().count();
    assert!(shown(&Store::open(&root).unwrap_err()).contains("lock"));
    let error = shown(&Store::check(&root).unwrap_err());
    assert!(error.contains("lock") && fs::read_dir(&root).unwrap().count() == before, "{error}");
}

#[test]
fn the_store_opens_as_it_was_left() {
    let rig = Rig::new();
    let image = rig.image("a.b/x:1", &[archive("1"), archive("2")]).unwrap();
    let (root, usage) = (rig.root(), rig.store.usage());
    let second = Store::open(&root).unwrap_err();
    assert!(matches!(second, StoreError::InUse { .. }), "{}", shown(&second));
    drop(rig.store);
    let store = Store::open_with(&root, limits()).unwrap();
    let again = store.find("a.b/x:1").unwrap();
    assert_eq!(
        (again.id(), again.layers(), again.size_bytes()),
        (image.id(), image.layers(), image.size_bytes())
    );
    assert_eq!(store.usage(), usage);
    drop(rig.temp);
}

#[test]
fn what_a_crash_left_is_swept() {
    let rig = Rig::new();
    rig.image("a.b/x:1", &[archive("1")]).unwrap();
    let root = rig.root();
    drop(rig.store);
    fs::create_dir_all(root.join("staging/17/fs/deep/er")).unwrap();
    fs::write(root.join("staging/18"), "half a document").unwrap();
    fs::create_dir_all(root.join("trash/0/x")).unwrap();
    fs::write(root.join("images/abc.new"), "half a record").unwrap();
    let store = Store::open(&root).unwrap();
    assert_eq!(store.list().len(), 1);
    let begin = std::time::Instant::now();
    while fs::read_dir(root.join("trash")).unwrap().next().is_some() {
        assert!(begin.elapsed().as_secs() < 20, "the trash is not emptied");
        std::thread::yield_now();
    }
    for name in ["staging", "quarantine"] {
        assert_eq!(fs::read_dir(root.join(name)).unwrap().count(), 0, "{name}");
    }
    assert_eq!(fs::read_dir(root.join("images")).unwrap().count(), 1);
    drop(rig.temp);
}

/// Makes a FIFO in the place of a file. Whoever opens it waits for a writer.
fn in_its_place(file: &std::path::Path) {
    fs::remove_file(file).unwrap();
    nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

/// Damages a store, given the ids of an image and of its first layer.
type Damage = fn(&std::path::Path, &str, &str);

#[test]
fn damage_is_put_aside_and_a_pull_repairs_it() {
    let archives = [archive("1"), archive("2")];
    let damages: [(&str, Damage); 8] = [
        ("record", |root, id, _| fs::write(root.join("images").join(id), "nonsense").unwrap()),
        ("empty record", |root, id, _| fs::write(root.join("images").join(id), "").unwrap()),
        ("config", |root, id, _| fs::write(root.join("content/sha256").join(id), "{}").unwrap()),
        ("layer", |root, _, layer| fs::remove_dir_all(root.join("layers").join(layer)).unwrap()),
        ("layer's record", |root, _, layer| {
            fs::write(root.join("layers").join(layer).join("info"), "x").unwrap()
        }),
        ("FIFO for a record", |root, id, _| in_its_place(&root.join("images").join(id))),
        ("FIFO for a config", |root, id, _| in_its_place(&root.join("content/sha256").join(id))),
        ("FIFO for a layer's record", |root, _, layer| {
            in_its_place(&root.join("layers").join(layer).join("info"));
        }),
    ];
    for (what, damage) in damages {
        let rig = Rig::new();
        let image = rig.image("a.b/x:1", &archives).unwrap();
        rig.image("a.b/other:1", &[archive("3")]).unwrap();
        let Rig { store, temp } = rig;
        drop(store);
        let root = temp.path().join("store");
        damage(&root, image.id().hex(), sha256(&archives[0]).hex());
        let rig = Rig { store: Store::open(&root).unwrap(), temp };
        assert_eq!(tags(&rig), [["a.b/other:1"]], "{what}");
        assert!(fs::read_dir(root.join("quarantine")).unwrap().count() > 0, "{what}");
        let again = rig.image("a.b/x:1", &archives).unwrap();
        assert_eq!(again.id(), image.id());
        assert!(again.layers().iter().all(|layer| layer.exists()), "{what}");
    }
}

/// A process in a mount namespace of its own.
struct Other(std::process::Child);

impl Other {
    /// Returns when the script's commands have been executed; the process stays until its input ends.
    fn run(script: &str) -> Self {
        let script = format!("set -e; mount --make-rprivate /; {script}");
        #[expect(clippy::disallowed_methods, reason = "only processes show mount namespaces")]
        let mut command = std::process::Command::new("unshare");
        let mut child = command
            .args(["-m", "sh", "-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert_eq!(line, "done\n", "{script}");
        Self(child)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        std::mem::drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// The source of an overlay of one layer.
fn marked(name: &str) -> String {
    let mark = wharf_sys::overlay::marks::mark(name.as_ref()).map(char::from);
    format!("layers-{}", mark.iter().collect::<String>())
}

#[test]
fn a_mount_keeps_a_layer_and_its_name_elsewhere_does_not() {
    const END: &str = "echo done; read forever";
    let overlay = "mkdir PLACE; mount -t overlay -o lowerdir=LAYER:PLACE x /mnt";
    let numbers =
        "mkdir PLACE; exec 5<LAYER 6<PLACE; cd /proc/self/fd; mount -t overlay -o lowerdir=5:6 MARKS /mnt";
    let rows = [
        (
            "a directory of that name",
            false,
            format!(
                "mkdir PLACE; mount -t tmpfs x PLACE; mkdir -p PLACE/layers/NAME/fs; \
                 mount --bind PLACE/layers/NAME/fs /mnt; {END}"
            ),
        ),
        ("a bind", true, format!("mount --bind LAYER /mnt; {END}")),
        (
            "an overlay, seen by nobody whose root is another mount",
            true,
            format!("{overlay}; mkdir ROOT; mount --bind / ROOT; exec chroot ROOT sh -c '{END}'"),
        ),
        (
            "an overlay, over whose parent something is mounted",
            true,
            format!("{overlay}; mount -t tmpfs x /; {END}"),
        ),
        ("an overlay as before Linux 6.8", true, format!("{numbers}; {END}")),
        (
            "another's overlay as before Linux 6.8",
            false,
            format!(
                "{}; {END}",
                numbers.replace("LAYER 6<PLACE", "PLACE 6</usr").replace("MARKS", "layers-")
            ),
        ),
    ];
    for (what, keeps, script) in rows {
        let rig = Rig::new();
        let image = rig.image("a.b/x:1", &[archive("1")]).unwrap();
        let layer = image.layers()[0].clone();
        let name = layer.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let shown = |path: PathBuf| path.display().to_string();
        let script = script
            .replace("LAYER", &shown(layer.clone()))
            .replace("PLACE", &shown(rig.temp.path().join("place")))
            .replace("ROOT", &shown(rig.temp.path().join("root")))
            .replace("MARKS", &marked(name))
            .replace("NAME", name);
        let other = Other::run(&script);
        assert!(rig.store.remove("a.b/x:1").unwrap());
        assert_eq!(layer.exists(), keeps, "{what}");
        drop(other);
        rig.store.sweep().unwrap();
        assert!(!layer.exists(), "{what}: nothing has it mounted any more");
    }
}

/// Until it is gone it is counted as there, and each sweep tries again.
#[test]
fn a_layer_that_cannot_be_removed_is_not_forgotten() {
    let rig = Rig::new();
    let image = rig.image("a.b/c:1", &[archive("1")]).unwrap();
    let layer = image.layers()[0].clone();
    let before = rig.store.usage();
    let trash = Immutable::new(rig.root().join("trash"));
    assert!(rig.store.remove(image.id().as_str()).unwrap());
    let figures = rig.store.figures().sweeps;
    assert_eq!((figures.failed, figures.succeeded, figures.freed_bytes), (1, 0, 0));
    assert!(layer.exists() && rig.store.usage().bytes >= before.bytes - 3 * 4096);
    let error = shown(&rig.store.sweep().unwrap_err());
    assert!(error.starts_with("the image store cannot remove a layer: "), "{error}");
    drop(trash);
    assert!(rig.store.sweep().unwrap().inodes > 0 && !layer.exists());
    assert!(rig.store.figures().sweeps.freed_bytes > 0);
}

/// A directory that nobody can change, as long as this exists.
struct Immutable(PathBuf);

impl Immutable {
    fn new(directory: PathBuf) -> Self {
        change_attribute("+i", &directory);
        Self(directory)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        change_attribute("-i", &self.0);
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's own process")]
fn change_attribute(change: &str, directory: &Path) {
    let status = std::process::Command::new("chattr").arg(change).arg(directory).status().unwrap();
    assert!(status.success(), "chattr {change} {}", directory.display());
}
