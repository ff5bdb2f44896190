//! Relabelling: a volume gets the SELinux label of the files of the container that mounts it.
//!
//! What is in a volume is its users', who may change it meanwhile: everything is reached by descriptor below its top,
//! no link is followed, and nothing that is mounted in it is touched. What vanishes is left out.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_isolation::{Plan, Source};
use wharf_planner::{Refusal, Unread};
use wharf_sys::fs::{Listing, Resolve, open, open_below};
use wharf_sys::{Error, Result, xattr};
use wharf_types::{Failure as _, HostPath, SelinuxLabel, chain};

/// The attribute with the label of a file.
const ATTRIBUTE: &str = "security.selinux";
/// How many directories a volume may have: their names are held in memory.
const DIRECTORIES_MAX: usize = 1 << 21;

/// Gives the label of a plan's files, if there is one, to each of these paths that it still mounts, and to everything
/// below it, as long as that is `wanted`. A file system that has no labels of its own is left as it is: it was mounted
/// with one, or has none to give.
///
/// # Errors
/// [`Refusal`], with the path.
pub fn relabel(
    paths: &[HostPath],
    plan: &Plan,
    wanted: &dyn Fn() -> bool,
) -> std::result::Result<(), Refusal> {
    let Some(label) = &plan.mount_label else { return Ok(()) };
    let is_mounted = |path: &&HostPath| {
        let mut sources = plan.mounts.iter().map(|mount| &mount.source);
        sources.any(|source| matches!(source, Source::Tree(from) | Source::Single(from) if from == *path))
    };
    paths.iter().filter(is_mounted).try_for_each(|path| relabel_all(path, label, wanted))
}

fn relabel_all(
    path: &HostPath,
    label: &SelinuxLabel,
    wanted: &dyn Fn() -> bool,
) -> std::result::Result<(), Refusal> {
    relabel_one(path.as_path(), ATTRIBUTE, label.as_str(), wanted).map_err(|error| {
        let problem = format!("selinux_relabel of {path}: {}", chain(&error));
        Refusal::unread("mounts", Unread { kind: error.kind(), problem })
    })
}

/// A directory that waits for its content to be labelled, from the top.
struct Waiting {
    /// Where its parent is in the list.
    parent: usize,
    name: Box<OsStr>,
}

fn relabel_one(path: &Path, attribute: &str, label: &str, wanted: &dyn Fn() -> bool) -> Result<()> {
    // The path has no link: it was resolved when the request was looked at.
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let path = path.strip_prefix("/").unwrap_or(path);
    let top = open_below(root.as_fd(), path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Resolve::BeneathNoLinks)?;
    match set(top.as_fd(), attribute, label) {
        Err(error) if error.errno == Errno::EOPNOTSUPP => return Ok(()),
        set => set?,
    }
    let mut directories = Vec::new();
    if is_directory(&top)? {
        directories.push(Waiting { parent: 0, name: Box::default() });
    }
    let mut at = 0;
    while at < directories.len() && wanted() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let opened = open_below(top.as_fd(), path_of(&directories, at), flags, Resolve::OneMount);
        if let Some(directory) = unless_gone(opened)? {
            relabel_content(directory, at, &mut directories, |file| set(file, attribute, label))?;
        }
        at += 1;
    }
    Ok(())
}

/// Labels what is in a directory; those in it wait.
fn relabel_content(
    directory: OwnedFd,
    at: usize,
    directories: &mut Vec<Waiting>,
    set: impl Fn(BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    let mut listing = Listing::new(directory, 0)?;
    while let Some(entry) = listing.read() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.name.to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let opened = open_below(listing.directory(), name, flags, Resolve::OneMount);
        let Some(file) = unless_gone(opened)? else { continue };
        set(file.as_fd())?;
        if is_directory(&file)? {
            directories.push(Waiting { parent: at, name: name.into() });
        }
        if directories.len() > DIRECTORIES_MAX {
            let what = format!("more than {DIRECTORIES_MAX} directories");
            return Err(Error::new("setxattr", what, Errno::EDQUOT));
        }
    }
    Ok(())
}

/// The path of a directory from the top.
fn path_of(directories: &[Waiting], mut at: usize) -> PathBuf {
    let mut names = Vec::new();
    while let Some(directory) = directories.get(at).filter(|_| at > 0) {
        names.push(&*directory.name);
        at = directory.parent;
    }
    names.into_iter().rev().collect()
}

/// Most files have the label already, and writing costs far more than reading.
fn set(file: BorrowedFd<'_>, attribute: &str, label: &str) -> Result<()> {
    let has = xattr::value_of_path(file, attribute)?.unwrap_or_default();
    // The kernel may end it with a zero.
    if has.strip_suffix(b"\0").unwrap_or(&has) == label.as_bytes() {
        return Ok(());
    }
    xattr::set_of_path(file, attribute, label.as_bytes())
}

/// What was opened; `None` if it has vanished, is another thing now, or is a mount of its own.
fn unless_gone(opened: Result<OwnedFd>) -> Result<Option<OwnedFd>> {
    match opened {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn is_directory(file: &OwnedFd) -> Result<bool> {
    let stat =
        nix::sys::stat::fstat(file).map_err(|errno| Error::new("fstat", "a file of a volume", errno))?;
    Ok(stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Any user's files can have it, without SELinux.
    const STAND_IN: &str = "trusted.label";

    fn label_of(path: &Path) -> Option<String> {
        let file = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).unwrap();
        let label = xattr::value_of_path(file.as_fd(), STAND_IN).unwrap();
        label.map(|label| String::from_utf8(label).unwrap())
    }

    #[test]
    fn everything_in_a_volume_is_labelled_and_nothing_else() {
        let relabelled = || {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let base = dir.path().canonicalize().unwrap();
            let at = |name: &str| base.join(name);
            for name in ["volume/deep/er", "volume/mounted", "outside/in"] {
                fs::create_dir_all(at(name)).unwrap();
            }
            for name in ["volume/file", "volume/deep/er/file", "outside/in/file"] {
                fs::write(at(name), "").unwrap();
            }
            symlink(at("outside/in"), at("volume/link")).unwrap();
            symlink("../../outside", at("volume/deep/up")).unwrap();
            nix::unistd::mkfifo(&at("volume/fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
            let bind = MsFlags::MS_BIND;
            mount(Some(&at("outside")), &at("volume/mounted"), None::<&str>, bind, None::<&str>).unwrap();
            for label in ["first", "second"] {
                relabel_one(&at("volume"), STAND_IN, label, &|| true).unwrap();
                for name in [
                    "volume",
                    "volume/file",
                    "volume/fifo",
                    "volume/link",
                    "volume/deep",
                    "volume/deep/up",
                    "volume/deep/er/file",
                ] {
                    assert_eq!(label_of(&at(name)).as_deref(), Some(label), "{name}");
                }
            }
            for name in ["outside", "outside/in", "outside/in/file", "volume/mounted"] {
                assert_eq!(label_of(&at(name)), None, "{name}");
            }
            relabel_one(&at("outside/in/file"), STAND_IN, "alone", &|| true).unwrap();
            assert_eq!(label_of(&at("outside/in")), None);
            assert_eq!(label_of(&at("outside/in/file")).as_deref(), Some("alone"));
            let through_a_link = relabel_one(&at("volume/link/file"), STAND_IN, "x", &|| true);
            assert!(through_a_link.is_err());
            relabel_one(&at("volume"), STAND_IN, "third", &|| false).unwrap();
            let labels = ["volume", "volume/deep"].map(|name| label_of(&at(name)));
            assert_eq!(labels, ["third", "second"].map(|label| Some(label.to_owned())), "the pod has gone");
        };
        std::thread::spawn(relabelled).join().unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_labelled_is_named() {
        let path = HostPath::new("/no/such/volume").unwrap();
        let label = SelinuxLabel::new("u:r:t").unwrap();
        let refusal = relabel_all(&path, &label, &|| true).unwrap_err();
        assert!(refusal.to_string().contains("selinux_relabel of /no/such/volume"), "{refusal}");
        // This file system has no attributes.
        relabel_one(Path::new("/proc/version"), "security.selinux", "u:r:t", &|| true).unwrap();
    }
}
