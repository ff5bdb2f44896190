//! Overlays, the way that the kernel has: layers one by one since Linux 6.8, all in one option before.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use rustix::mount::FsOpenFlags;

use crate::error::{Named, Result};
use crate::fs::open;
use crate::mount::{self, Attributes};

/// The directories of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// The layers, topmost first; at least one.
    pub lowers: &'a [&'a Path],
    /// What is written goes here.
    pub upper: &'a Path,
    /// An empty directory beside the upper one.
    pub work: &'a Path,
}

impl Overlay<'_> {
    /// Mounts it over the directory `place`, and returns its root. The upper directory is volatile: not synced when
    /// unmounted, to be discarded after a crash of the machine.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mount(&self, place: &Path) -> Result<OwnedFd> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .named("fsopen", || "overlay".into())?;
        if takes_anything(&context) {
            return self.mount_joined(place);
        }
        match self.add_layers(&context) {
            Err(error) if error.errno == Errno::EINVAL => self.mount_joined(place),
            added => added.and_then(|()| self.mount_context(&context, place)),
        }
    }

    fn add_layers(&self, context: &OwnedFd) -> Result<()> {
        self.lowers.iter().try_for_each(|lower| set(context, "lowerdir+", lower))
    }

    fn mount_context(&self, context: &OwnedFd, place: &Path) -> Result<OwnedFd> {
        set(context, "upperdir", self.upper)?;
        set(context, "workdir", self.work)?;
        rustix::mount::fsconfig_set_flag(context.as_fd(), "volatile")
            .named("fsconfig", || "overlay, volatile".into())?;
        let mounted = mount::finish(context, "overlay", Attributes::NONE)?;
        mount::attach(mounted.as_fd(), directory(place)?.as_fd())?;
        Ok(mounted)
    }

    /// All options together have to fit into a page: descriptors name the directories, seen from where the kernel shows
    /// them. So 499 layers fit, and no character in a path has a meaning.
    fn mount_joined(&self, place: &Path) -> Result<OwnedFd> {
        let lowers = self.lowers.iter().map(|lower| directory(lower)).collect::<Result<Vec<_>>>()?;
        let (upper, work) = (directory(self.upper)?, directory(self.work)?);
        let names: Vec<String> = lowers.iter().map(|lower| lower.as_raw_fd().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            names.join(":"),
            upper.as_raw_fd(),
            work.as_raw_fd()
        );
        let before = directory(Path::new("."))?;
        let descriptors = directory(Path::new("/proc/self/fd"))?;
        nix::unistd::fchdir(&descriptors).named("fchdir", || "/proc/self/fd".into())?;
        let mounted =
            nix::mount::mount(Some("overlay"), place, Some("overlay"), MsFlags::empty(), Some(&*options))
                .named("mount", || format!("{}, {options}", place.display()));
        nix::unistd::fchdir(&before).named("fchdir", || "back".into())?;
        mounted?;
        directory(place)
    }
}

fn directory(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

fn set(context: &OwnedFd, key: &str, path: &Path) -> Result<()> {
    rustix::mount::fsconfig_set_string(context.as_fd(), key, path)
        .named("fsconfig", || format!("overlay, {key}={}", path.display()))
}

/// Whether options are only kept until the mount, as before Linux 6.5: then `lowerdir+` would be refused too late, and with
/// a line in the kernel's log. From 6.5 on what is unknown is refused at once, and before 6.8 that is `lowerdir+` too.
fn takes_anything(context: &OwnedFd) -> bool {
    rustix::mount::fsconfig_set_flag(context.as_fd(), "no-such-option").is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sched::CloneFlags;

    use super::*;

    /// Three layers of which the topmost hides a file of the others, merged by `mount` in a mount namespace of a thread's
    /// own; returns how the directory is to be found there, and what was written through it.
    fn merged(mount: fn(&Overlay<'_>, &Path) -> Result<OwnedFd>) -> (String, Vec<String>) {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for name in ["a,:b", "layer", "bottom", "upper", "work", "place"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("which"), name).unwrap();
        }
        fs::remove_file(at("upper").join("which")).unwrap();
        fs::remove_file(at("work").join("which")).unwrap();
        fs::write(at("bottom").join("deep"), "").unwrap();
        let paths = ["a,:b", "layer", "bottom", "upper", "work", "place"].map(at);
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let [top, middle, bottom, upper, work, place] = &paths;
            let overlay = Overlay { lowers: &[top, middle, bottom], upper, work };
            let before = std::env::current_dir().unwrap();
            let root = mount(&overlay, place).unwrap();
            assert_eq!(std::env::current_dir().unwrap(), before);
            let seen = fs::read_to_string(place.join("which")).unwrap();
            nix::sys::stat::mkdirat(&root, "new", nix::sys::stat::Mode::S_IRWXU).unwrap();
            assert!(place.join("deep").exists());
            seen
        });
        let seen = thread.join().unwrap();
        let written = fs::read_dir(at("upper")).unwrap();
        (seen, written.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
    }

    #[test]
    fn layers_are_merged_in_order() {
        assert_eq!(merged(|overlay, place| overlay.mount(place)), ("a,:b".into(), vec!["new".into()]));
    }

    #[test]
    fn the_way_of_older_kernels_does_the_same() {
        assert_eq!(merged(|overlay, place| overlay.mount_joined(place)), ("a,:b".into(), vec!["new".into()]));
    }

    #[test]
    fn as_many_layers_as_the_kernel_stacks_fit() {
        let temp = tempfile::tempdir().unwrap();
        let [upper, work] = ["upper", "work"].map(|name| temp.path().join(name));
        let lowers: Vec<_> = (0..499).map(|number| temp.path().join(format!("layer-{number}"))).collect();
        lowers.iter().chain([&upper, &work]).for_each(|path| fs::create_dir(path).unwrap());
        fs::write(lowers[498].join("lowest"), "").unwrap();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let lowers: Vec<&Path> = lowers.iter().map(|path| path.as_path()).collect();
            let overlay = Overlay { lowers: &lowers, upper: &upper, work: &work };
            let root = overlay.mount_joined(&upper).unwrap();
            nix::sys::stat::fstatat(&root, "lowest", nix::fcntl::AtFlags::empty()).unwrap();
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_missing_layer_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let [there, missing] = ["there", "missing"].map(|name| temp.path().join(name));
        fs::create_dir(&there).unwrap();
        let overlay = Overlay { lowers: &[&missing], upper: &there, work: &there };
        for error in [overlay.mount(&there).unwrap_err(), overlay.mount_joined(&there).unwrap_err()] {
            assert_eq!(error.errno, Errno::ENOENT, "{error}");
            assert!(error.arguments.contains("missing"), "{error}");
        }
    }
}
