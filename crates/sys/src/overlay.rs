//! Overlay mounts. Layers are added one by one since Linux 6.8, and in a single option before.
//!
//! What is in use is seen in the kernel's tables of mounts, so each overlay shows its layers there: by their names, or
//! by their [`marks`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::FsOpenFlags;

use crate::error::{Error, Named, Result};
use crate::fs::{open, proc_path};
use crate::mount::{self, Attributes, Depth, Propagation};

pub mod marks;

/// The directories of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// The layers, topmost first; at least one. Each is in a directory that has its name.
    pub lowers: &'a [&'a Path],
    /// The directory for writes.
    pub upper: &'a Path,
    /// An empty directory beside the upper one.
    pub work: &'a Path,
    /// The user namespace whose ids those of the files in the layers are. What is written has the host's ids.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// The SELinux label that all files have in it, whatever is on disk.
    pub label: Option<&'a str>,
}

/// What is put into a context.
#[derive(Clone, Copy)]
struct Parts<'a> {
    lowers: &'a [&'a Path],
    /// The upper and the work directory.
    own: Option<[&'a Path; 2]>,
    user_namespace: Option<BorrowedFd<'a>>,
    label: Option<&'a str>,
}

/// How many bytes fsconfig(2) takes.
const STRING_LIMIT: usize = 255;
/// How many layers fit into that: each has a mark, and a descriptor, whose number is shorter.
const JOINED_LIMIT: usize = (STRING_LIMIT - marks::MARKED.len()) / size_of::<marks::Mark>();

impl Overlay<'_> {
    /// Makes the overlay as a detached mount. The upper directory is volatile: it is not synced on unmount and must be
    /// discarded after a crash of the machine. If the kernel wants all layers in one option and they do not fit, the
    /// overlay is first mounted over the directory `place`, in a mount namespace of this thread's own.
    ///
    /// # Errors
    /// The kernel's error, and ENOSPC if nothing can be written to it: if the kernel cannot make a directory in the
    /// work directory, whatever the reason, it mounts the overlay read-only.
    pub fn detached(&self, place: &Path) -> Result<OwnedFd> {
        let made = self.parts().detached(place)?;
        let named = || "the overlay: its disk is full, or takes no writes".to_owned();
        let flags = rustix::fs::fstatvfs(&made).named("fstatvfs", named)?.f_flag;
        if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(Error::new("mount", named(), Errno::ENOSPC));
        }
        Ok(made)
    }

    fn parts(&self) -> Parts<'_> {
        let Self { lowers, upper, work, user_namespace, label } = *self;
        Parts { lowers, own: Some([upper, work]), user_namespace, label }
    }
}

/// Merges layers, topmost first, into a detached mount that cannot be written. There must be two at least: the kernel
/// merges no fewer without an upper directory. `place` is the same as for [`Overlay::detached`], `user_namespace` and
/// `label` are as in [`Overlay`].
///
/// # Errors
/// The kernel's error.
pub fn read_only(
    lowers: &[&Path],
    place: &Path,
    user_namespace: Option<BorrowedFd<'_>>,
    label: Option<&str>,
) -> Result<OwnedFd> {
    Parts { lowers, own: None, user_namespace, label }.detached(place)
}

/// Whether this kernel takes the layers of an overlay one by one, and so by their names. Before, those that wharf
/// mounts are numbers.
#[must_use]
pub fn names_layers() -> bool {
    let add_one =
        |context: OwnedFd| !takes_anything(&context) && set(&context, "lowerdir+", Path::new("/")).is_ok();
    new_context().is_ok_and(add_one)
}

impl<'a> Parts<'a> {
    fn detached(self, place: &Path) -> Result<OwnedFd> {
        match self.user_namespace {
            Some(namespace) => self.detached_mapped(namespace, place),
            None => self.detached_unmapped(place),
        }
    }

    /// However many layers there are, they are mapped by one mount, of the directory that has all of them.
    fn detached_mapped(self, namespace: BorrowedFd<'_>, place: &Path) -> Result<OwnedFd> {
        let parent = self.common_parent();
        let mapped = mount::copy_tree(parent, Depth::One)?;
        mount::map_ids(mapped.as_fd(), namespace)?;
        match self.detached_below(&mapped, parent) {
            // Before Linux 6.15, layers must be in this mount namespace.
            Err(error) if error.errno == Errno::EINVAL => {
                leave_and_cover(parent, &mapped).and_then(|()| self.detached_unmapped(place))
            }
            made => made,
        }
    }

    /// Above the parent of each, so that the kernel's table of mounts, which shows layers as they were named, has more
    /// of a single one than the last part of its path.
    fn common_parent(self) -> &'a Path {
        let first = self.lowers.first().and_then(|lower| lower.parent()?.parent()).unwrap_or(Path::new("/"));
        let of_all = |parent: &&Path| self.lowers.iter().all(|lower| lower.starts_with(parent));
        first.ancestors().find(of_all).unwrap_or(first)
    }

    /// With layers that are found below a mount of their common parent.
    fn detached_below(self, mount: &OwnedFd, parent: &Path) -> Result<OwnedFd> {
        let context = new_context()?;
        if takes_anything(&context) {
            return Err(Errno::EINVAL).named("fsconfig", || "overlay, lowerdir+".into());
        }
        let before = directory(Path::new("."))?;
        nix::unistd::fchdir(mount).named("fchdir", || parent.display().to_string())?;
        let mut below = self.lowers.iter().map(|lower| lower.strip_prefix(parent).unwrap_or(lower));
        let made = below
            .try_for_each(|lower| set(&context, "lowerdir+", lower))
            .and_then(|()| self.finish(&context, self.own));
        nix::unistd::fchdir(&before).named("fchdir", || "back".into())?;
        made
    }

    fn detached_unmapped(self, place: &Path) -> Result<OwnedFd> {
        let context = new_context()?;
        if takes_anything(&context) {
            return self.detached_joined(place);
        }
        match self.add_layers(&context) {
            Err(error) if error.errno == Errno::EINVAL => self.detached_joined(place),
            added => added.and_then(|()| self.finish(&context, self.own)),
        }
    }

    /// `own` names the upper and the work directory.
    fn finish(self, context: &OwnedFd, own: Option<[&Path; 2]>) -> Result<OwnedFd> {
        if let Some(label) = self.label {
            set(context, mount::LABEL, Path::new(label))?;
        }
        // Open until the mount is made.
        let mut _held = None;
        if let Some([upper, work]) = own {
            _held = Some([set_named(context, "upperdir", upper)?, set_named(context, "workdir", work)?]);
            rustix::mount::fsconfig_set_flag(context.as_fd(), "volatile")
                .named("fsconfig", || "overlay, volatile".into())?;
        }
        mount::finish(context, "overlay", Attributes::NONE)
    }

    fn add_layers(self, context: &OwnedFd) -> Result<()> {
        self.lowers.iter().try_for_each(|lower| set(context, "lowerdir+", lower))
    }

    /// Names the directories by their descriptors, relative to /proc/self/fd. Like that, all 499 layers fit into the
    /// page that mount(2) takes, and no character in a path is special. The source of the mount has their marks.
    fn detached_joined(self, place: &Path) -> Result<OwnedFd> {
        let fits = self.lowers.len() <= JOINED_LIMIT;
        if !fits {
            // Before the layers are opened: they have to be in the namespace in which they are mounted.
            leave_mounts()?;
        }
        let lowers = self.lowers.iter().map(|lower| directory(lower)).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = lowers.iter().map(|lower| lower.as_raw_fd().to_string()).collect();
        let names = names.join(":");
        let opened = self.own.iter().flatten().map(|path| directory(path)).collect::<Result<Vec<_>>>()?;
        let numbers: Vec<String> = opened.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let own = if let [upper, work] = &numbers[..] { Some([upper, work].map(Path::new)) } else { None };
        let before = directory(Path::new("."))?;
        let descriptors = directory(Path::new("/proc/self/fd"))?;
        nix::unistd::fchdir(&descriptors).named("fchdir", || "/proc/self/fd".into())?;
        let source = marks::source(self.lowers);
        let made = if fits {
            let context = new_context()?;
            set(&context, "source", Path::new(&source))
                .and_then(|()| set(&context, "lowerdir", Path::new(&names)))
                .and_then(|()| self.finish(&context, own))
        } else {
            let own = own.map(|[upper, work]| {
                format!(",upperdir={},workdir={},volatile", upper.display(), work.display())
            });
            // In quotes, because a label has commas.
            let label = self.label.map(|label| format!(",{}=\"{label}\"", mount::LABEL));
            let more = own.into_iter().chain(label).collect::<String>();
            mount_over(place, &source, &format!("lowerdir={names}{more}"))
        };
        nix::unistd::fchdir(&before).named("fchdir", || "back".into())?;
        made
    }
}

/// Puts a mount of a directory over the directory itself, in a mount namespace of this thread's own.
fn leave_and_cover(path: &Path, mount: &OwnedFd) -> Result<()> {
    leave_mounts()?;
    mount::attach(mount.as_fd(), directory(path)?.as_fd())
}

fn new_context() -> Result<OwnedFd> {
    rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).named("fsopen", || "overlay".into())
}

/// Moves this thread into a private copy of its mount namespace.
fn leave_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).named("unshare", || "CLONE_NEWNS".into())?;
    mount::propagate(directory(Path::new("/"))?.as_fd(), Propagation::Private, Depth::Recursive)
}

/// Mounts the overlay over a directory, and returns a detached copy. The directory may be a layer of the next overlay,
/// so it does not stay covered.
fn mount_over(place: &Path, source: &str, options: &str) -> Result<OwnedFd> {
    nix::mount::mount(Some(source), place, Some("overlay"), MsFlags::empty(), Some(options))
        .named("mount", || format!("{}, {options}", place.display()))?;
    let copy = mount::copy_tree(place, Depth::One);
    nix::mount::umount2(place, MntFlags::MNT_DETACH).named("umount2", || place.display().to_string())?;
    copy
}

fn directory(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// The same for a path that may be too long for the call, or have a backslash, which the kernel takes away from these
/// keys. Then it is named by a descriptor of it.
fn set_named(context: &OwnedFd, key: &str, path: &Path) -> Result<Option<OwnedFd>> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= STRING_LIMIT && !bytes.contains(&b'\\') {
        return set(context, key, path).map(|()| None);
    }
    let opened = directory(path)?;
    set(context, key, &proc_path(opened.as_fd()))?;
    Ok(Some(opened))
}

fn set(context: &OwnedFd, key: &str, path: &Path) -> Result<()> {
    rustix::mount::fsconfig_set_string(context.as_fd(), key, path)
        .named("fsconfig", || format!("overlay, {key}={}", path.display()))
}

/// Whether options are only stored until the mount, as before Linux 6.5. Then `lowerdir+` would be refused too late,
/// with a line in the kernel's log. From 6.5 on, unknown options are refused at once, which before 6.8 includes
/// `lowerdir+`.
fn takes_anything(context: &OwnedFd) -> bool {
    rustix::mount::fsconfig_set_flag(context.as_fd(), "no-such-option").is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Merges three layers with `mount`, where the topmost one hides a file of the others. Returns what is read through
    /// the overlay, and what was written through it.
    fn merged(mount: fn(&Overlay<'_>, &Path) -> Result<OwnedFd>) -> (String, Vec<String>) {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for name in ["a,:\\b", "layer", "bottom", "u,:\\r", "w,:\\k"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("which"), name).unwrap();
        }
        fs::remove_file(at("u,:\\r").join("which")).unwrap();
        fs::remove_file(at("w,:\\k").join("which")).unwrap();
        fs::write(at("bottom").join("deep"), "").unwrap();
        let paths = ["a,:\\b", "layer", "bottom", "u,:\\r", "w,:\\k"].map(at);
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
            let [top, middle, bottom, upper, work] = &paths;
            let overlay =
                Overlay { lowers: &[top, middle, bottom], upper, work, user_namespace: None, label: None };
            let before = std::env::current_dir().unwrap();
            let root = mount(&overlay, upper).unwrap();
            assert_eq!(std::env::current_dir().unwrap(), before);
            let root = crate::fs::proc_path(root.as_fd());
            fs::create_dir(root.join("new")).unwrap();
            assert!(root.join("deep").exists());
            fs::read_to_string(root.join("which")).unwrap()
        });
        let seen = thread.join().unwrap();
        let written = fs::read_dir(at("u,:\\r")).unwrap();
        (seen, written.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
    }

    #[test]
    fn layers_are_merged_in_order() {
        assert_eq!(merged(|overlay, place| overlay.detached(place)), ("a,:\\b".into(), vec!["new".into()]));
    }

    #[test]
    fn an_overlay_that_could_not_be_written_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let [lower, full] = ["lower", "full"].map(|name| temp.path().join(name));
        [&lower, &full].into_iter().for_each(|path| fs::create_dir(path).unwrap());
        let full_disk = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
            // For its own root, and two directories.
            let options = Some("nr_inodes=3");
            nix::mount::mount(Some("tmpfs"), &full, Some("tmpfs"), MsFlags::empty(), options).unwrap();
            let [upper, work] = ["upper", "work"].map(|name| full.join(name));
            [&upper, &work].into_iter().for_each(|path| fs::create_dir(path).unwrap());
            let overlay =
                Overlay { lowers: &[&lower], upper: &upper, work: &work, user_namespace: None, label: None };
            overlay.detached(&upper).unwrap_err()
        });
        assert_eq!(full_disk.join().unwrap().errno, Errno::ENOSPC);
    }

    /// Those of a container are longer than those of layers: with some data roots only they are too long.
    #[test]
    fn upper_directories_may_have_long_paths() {
        for bytes in [STRING_LIMIT, STRING_LIMIT + 1, 2 * STRING_LIMIT] {
            let temp = tempfile::tempdir().unwrap();
            let mut long = temp.path().to_owned();
            while long.as_os_str().len() + "/upper".len() < bytes {
                let left = bytes - "/upper".len() - long.as_os_str().len();
                long.push("x".repeat((left - 1).clamp(1, 100)));
            }
            let [lower, upper, work] = [temp.path().join("lower"), long.join("upper"), long.join("work")];
            [&lower, &upper, &work].into_iter().for_each(|path| fs::create_dir_all(path).unwrap());
            assert!(upper.as_os_str().len() >= bytes);
            let overlay =
                Overlay { lowers: &[&lower], upper: &upper, work: &work, user_namespace: None, label: None };
            let root = overlay.detached(&upper).unwrap();
            fs::create_dir(proc_path(root.as_fd()).join("new")).unwrap();
            assert!(upper.join("new").is_dir());
        }
    }

    #[test]
    fn the_way_of_older_kernels_does_the_same() {
        assert_eq!(
            merged(|overlay, place| overlay.parts().detached_joined(place)),
            ("a,:\\b".into(), vec!["new".into()])
        );
    }

    #[test]
    fn as_many_layers_as_the_kernel_stacks_fit() {
        let temp = tempfile::tempdir().unwrap();
        let [upper, work] = ["upper", "work"].map(|name| temp.path().join(name));
        let lowers: Vec<_> = (0..499).map(|number| temp.path().join(format!("layer-{number}"))).collect();
        lowers.iter().chain([&upper, &work]).for_each(|path| fs::create_dir(path).unwrap());
        fs::write(lowers[498].join("lowest"), "").unwrap();
        let thread = std::thread::spawn(move || {
            let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let before = mounts();
            let lowers: Vec<&Path> = lowers.iter().map(|path| path.as_path()).collect();
            let overlay =
                Overlay { lowers: &lowers, upper: &upper, work: &work, user_namespace: None, label: None };
            let root = overlay.parts().detached_joined(&upper).unwrap();
            nix::sys::stat::fstatat(&root, "lowest", nix::fcntl::AtFlags::empty()).unwrap();
            assert_ne!(mounts(), before, "it is mounted in a namespace of the thread's own");
        });
        let mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains("overlay");
        let before = mounted();
        thread.join().unwrap();
        assert_eq!(mounted(), before);
    }

    /// The owners of a layer's file, and of one that is written by the root of the namespace, as this process sees
    /// them.
    fn owners(mount: fn(&Overlay<'_>, &Path) -> Result<OwnedFd>) -> [(u32, u32); 2] {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for name in ["layers/top/fs", "layers/base/fs", "own/upper", "own/work"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("layers/base/fs/file"), "").unwrap();
        std::os::unix::fs::chown(at("layers/base/fs/file"), Some(7), Some(8)).unwrap();
        let range = wharf_types::IdRange::new(100_000, 1000).unwrap();
        let namespace =
            crate::user_namespace::make(wharf_types::IdMaps { users: range, groups: range }).unwrap();
        let paths = ["layers/top/fs", "layers/base/fs", "own/upper", "own/work"].map(at);
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
            let [top, base, upper, work] = &paths;
            let user_namespace = Some(namespace.as_fd());
            let overlay = Overlay { lowers: &[top, base], upper, work, user_namespace, label: None };
            assert_eq!(overlay.parts().common_parent(), top.parent().unwrap().parent().unwrap());
            let root = mount(&overlay, upper).unwrap();
            crate::user_namespace::own_files(100_000, 100_000).unwrap();
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
            nix::fcntl::openat(&root, "new", flags, nix::sys::stat::Mode::empty()).unwrap();
            ["file", "new"].map(|name| {
                let stat = nix::sys::stat::fstatat(&root, name, nix::fcntl::AtFlags::empty()).unwrap();
                (stat.st_uid, stat.st_gid)
            })
        });
        thread.join().unwrap()
    }

    #[test]
    fn layers_have_the_ids_of_a_user_namespace_and_stay_as_they_are() {
        let expected = [(100_007, 100_008), (100_000, 100_000)];
        assert_eq!(owners(|overlay, place| overlay.detached(place)), expected);
        let as_before_6_15 = owners(|overlay, place| {
            let parent = overlay.parts().common_parent();
            let mapped = mount::copy_tree(parent, Depth::One)?;
            mount::map_ids(mapped.as_fd(), overlay.user_namespace.unwrap())?;
            leave_and_cover(parent, &mapped)?;
            overlay.parts().detached_unmapped(place)
        });
        assert_eq!(as_before_6_15, expected);
    }

    #[test]
    fn the_table_of_mounts_names_a_layer_however_few_there_are() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for name in ["layers/only/fs", "own/upper", "own/work", "own/place"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        let range = wharf_types::IdRange::new(100_000, 1000).unwrap();
        let namespace =
            crate::user_namespace::make(wharf_types::IdMaps { users: range, groups: range }).unwrap();
        let [only, upper, work, place] = ["layers/only/fs", "own/upper", "own/work", "own/place"].map(at);
        let thread = std::thread::spawn(move || {
            leave_mounts().unwrap();
            let user_namespace = Some(namespace.as_fd());
            let overlay =
                Overlay { lowers: &[&only], upper: &upper, work: &work, user_namespace, label: None };
            let made = overlay.detached(&upper).unwrap();
            mount::attach(made.as_fd(), directory(&place).unwrap().as_fd()).unwrap();
            fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
        });
        let table = thread.join().unwrap();
        let line = table.lines().find(|line| line.contains("own/place")).unwrap();
        assert!(line.contains("only/fs"), "{line}");
    }

    /// A container's overlay and an image volume's, by either call.
    #[test]
    fn the_table_of_mounts_has_a_mark_of_each_layer_that_it_does_not_name() {
        for (count, has_upper) in
            [(1, true), (2, false), (JOINED_LIMIT, true), (JOINED_LIMIT + 1, true), (499, false)]
        {
            let temp = tempfile::tempdir().unwrap();
            let at = |name: &str| temp.path().join(name);
            let lowers: Vec<_> = (0..count).map(|number| at(&format!("layers/{number}/fs"))).collect();
            let [upper, work, place] = ["upper", "work", "place"].map(at);
            lowers.iter().chain([&upper, &work, &place]).for_each(|path| fs::create_dir_all(path).unwrap());
            let table = std::thread::spawn(move || {
                leave_mounts().unwrap();
                let lowers: Vec<&Path> = lowers.iter().map(|path| path.as_path()).collect();
                let own = has_upper.then_some([upper.as_path(), &work]);
                let made = Parts { lowers: &lowers, own, user_namespace: None, label: None }
                    .detached_joined(&upper)
                    .unwrap();
                mount::attach(made.as_fd(), directory(&place).unwrap().as_fd()).unwrap();
                fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
            });
            let table = table.join().unwrap();
            let point = at("place").display().to_string();
            let line = table.lines().find(|line| line.contains(&point)).unwrap();
            let mark = |number: usize| marks::mark(number.to_string().as_ref());
            let marks = (0..count).flat_map(mark).map(char::from).collect::<String>();
            assert!(line.contains(&format!(" - overlay {}{marks} ", marks::MARKED)), "{line}");
        }
    }

    #[test]
    fn without_an_upper_directory_nothing_is_written() {
        let ways: [fn(Parts<'_>, &Path) -> Result<OwnedFd>; 2] =
            [|parts, place| parts.detached(place), |parts, place| parts.detached_joined(place)];
        for count in [2, JOINED_LIMIT + 1] {
            for way in ways {
                let temp = tempfile::tempdir().unwrap();
                let lowers: Vec<_> = (0..count).map(|number| temp.path().join(number.to_string())).collect();
                for (number, lower) in lowers.iter().enumerate() {
                    fs::create_dir(lower).unwrap();
                    fs::write(lower.join("which"), number.to_string()).unwrap();
                }
                fs::write(lowers[count - 1].join("lowest"), "").unwrap();
                let thread = std::thread::spawn(move || {
                    unshare(CloneFlags::CLONE_FS).unwrap();
                    let lowers: Vec<&Path> = lowers.iter().map(|path| path.as_path()).collect();
                    let root = way(
                        Parts { lowers: &lowers, own: None, user_namespace: None, label: None },
                        lowers[0],
                    )
                    .unwrap();
                    let root = crate::fs::proc_path(root.as_fd());
                    assert_eq!(fs::read_to_string(root.join("which")).unwrap(), "0");
                    assert!(root.join("lowest").exists());
                    fs::write(root.join("new"), "").unwrap_err().raw_os_error()
                });
                assert_eq!(thread.join().unwrap(), Some(libc::EROFS), "{count} layers");
            }
        }
    }

    #[test]
    fn a_missing_layer_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let [there, missing] = ["there", "missing"].map(|name| temp.path().join(name));
        fs::create_dir(&there).unwrap();
        let overlay =
            Overlay { lowers: &[&missing], upper: &there, work: &there, user_namespace: None, label: None };
        for error in
            [overlay.detached(&there).unwrap_err(), overlay.parts().detached_joined(&there).unwrap_err()]
        {
            assert_eq!(error.errno, Errno::ENOENT, "{error}");
            assert!(error.arguments.contains("missing"), "{error}");
        }
    }
}
