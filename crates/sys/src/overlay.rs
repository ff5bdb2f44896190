//! Overlay mounts, in the kernel's way: layers one by one since Linux 6.8, all in one option before.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::FsOpenFlags;

use crate::error::{Named, Result};
use crate::fs::open;
use crate::mount::{self, Attributes, Depth, Propagation};

/// The directories of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// The layers, topmost first; at least one.
    pub lowers: &'a [&'a Path],
    /// The directory for writes.
    pub upper: &'a Path,
    /// An empty directory beside the upper one.
    pub work: &'a Path,
}

/// How many layers fit into one option. Each is the number of a descriptor, and fsconfig(2) takes 255 bytes.
const JOINED_LIMIT: usize = 63;

impl Overlay<'_> {
    /// Makes the overlay as a detached mount. The upper directory is volatile: it is not synced on unmount and must be
    /// discarded after a crash of the machine. If the kernel wants all layers in one option and they do not fit, the
    /// overlay is first mounted over the directory `place`, in a mount namespace of this thread's own.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn detached(&self, place: &Path) -> Result<OwnedFd> {
        let context = new_context()?;
        if takes_anything(&context) {
            return self.detached_joined(place);
        }
        match self.add_layers(&context) {
            Err(error) if error.errno == Errno::EINVAL => self.detached_joined(place),
            added => added.and_then(|()| finish(&context, self.upper, self.work)),
        }
    }

    fn add_layers(&self, context: &OwnedFd) -> Result<()> {
        self.lowers.iter().try_for_each(|lower| set(context, "lowerdir+", lower))
    }

    /// Names the directories by their descriptors, relative to /proc/self/fd. Like that, all 499 layers fit into the
    /// page that mount(2) takes, and no character in a path is special.
    fn detached_joined(&self, place: &Path) -> Result<OwnedFd> {
        let fits = self.lowers.len() <= JOINED_LIMIT;
        if !fits {
            // Before the layers are opened: they have to be in the namespace in which they are mounted.
            leave_mounts()?;
        }
        let lowers = self.lowers.iter().map(|lower| directory(lower)).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = lowers.iter().map(|lower| lower.as_raw_fd().to_string()).collect();
        let names = names.join(":");
        let (upper, work) = (directory(self.upper)?, directory(self.work)?);
        let [upper, work] = [&upper, &work].map(|fd| fd.as_raw_fd().to_string());
        let before = directory(Path::new("."))?;
        let descriptors = directory(Path::new("/proc/self/fd"))?;
        nix::unistd::fchdir(&descriptors).named("fchdir", || "/proc/self/fd".into())?;
        let made = if fits {
            let context = new_context()?;
            set(&context, "lowerdir", Path::new(&names))
                .and_then(|()| finish(&context, Path::new(&upper), Path::new(&work)))
        } else {
            mount_over(place, &format!("lowerdir={names},upperdir={upper},workdir={work},volatile"))
        };
        nix::unistd::fchdir(&before).named("fchdir", || "back".into())?;
        made
    }
}

fn new_context() -> Result<OwnedFd> {
    rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).named("fsopen", || "overlay".into())
}

fn finish(context: &OwnedFd, upper: &Path, work: &Path) -> Result<OwnedFd> {
    set(context, "upperdir", upper)?;
    set(context, "workdir", work)?;
    rustix::mount::fsconfig_set_flag(context.as_fd(), "volatile")
        .named("fsconfig", || "overlay, volatile".into())?;
    mount::finish(context, "overlay", Attributes::NONE)
}

/// Moves this thread into a private copy of its mount namespace.
fn leave_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).named("unshare", || "CLONE_NEWNS".into())?;
    mount::propagate(directory(Path::new("/"))?.as_fd(), Propagation::Private, Depth::Recursive)
}

/// Mounts the overlay over a directory, and returns a detached copy.
fn mount_over(place: &Path, options: &str) -> Result<OwnedFd> {
    nix::mount::mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(options))
        .named("mount", || format!("{}, {options}", place.display()))?;
    mount::copy_tree(place, Depth::One)
}

fn directory(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
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
        for name in ["a,:b", "layer", "bottom", "upper", "work"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("which"), name).unwrap();
        }
        fs::remove_file(at("upper").join("which")).unwrap();
        fs::remove_file(at("work").join("which")).unwrap();
        fs::write(at("bottom").join("deep"), "").unwrap();
        let paths = ["a,:b", "layer", "bottom", "upper", "work"].map(at);
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
            let [top, middle, bottom, upper, work] = &paths;
            let overlay = Overlay { lowers: &[top, middle, bottom], upper, work };
            let before = std::env::current_dir().unwrap();
            let root = mount(&overlay, upper).unwrap();
            assert_eq!(std::env::current_dir().unwrap(), before);
            let root = crate::fs::proc_path(root.as_fd());
            fs::create_dir(root.join("new")).unwrap();
            assert!(root.join("deep").exists());
            fs::read_to_string(root.join("which")).unwrap()
        });
        let seen = thread.join().unwrap();
        let written = fs::read_dir(at("upper")).unwrap();
        (seen, written.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
    }

    #[test]
    fn layers_are_merged_in_order() {
        assert_eq!(merged(|overlay, place| overlay.detached(place)), ("a,:b".into(), vec!["new".into()]));
    }

    #[test]
    fn the_way_of_older_kernels_does_the_same() {
        assert_eq!(
            merged(|overlay, place| overlay.detached_joined(place)),
            ("a,:b".into(), vec!["new".into()])
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
            let overlay = Overlay { lowers: &lowers, upper: &upper, work: &work };
            let root = overlay.detached_joined(&upper).unwrap();
            nix::sys::stat::fstatat(&root, "lowest", nix::fcntl::AtFlags::empty()).unwrap();
            assert_ne!(mounts(), before, "it is mounted in a namespace of the thread's own");
        });
        let mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains("overlay");
        let before = mounted();
        thread.join().unwrap();
        assert_eq!(mounted(), before);
    }

    #[test]
    fn a_missing_layer_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let [there, missing] = ["there", "missing"].map(|name| temp.path().join(name));
        fs::create_dir(&there).unwrap();
        let overlay = Overlay { lowers: &[&missing], upper: &there, work: &there };
        for error in [overlay.detached(&there).unwrap_err(), overlay.detached_joined(&there).unwrap_err()] {
            assert_eq!(error.errno, Errno::ENOENT, "{error}");
            assert!(error.arguments.contains("missing"), "{error}");
        }
    }
}
