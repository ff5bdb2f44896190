//! Network namespaces by descriptor: opening one, and working inside it on a thread of its own.
//!
//! A thread that entered a namespace ends there: it never returns to the pool. A path is given to a namespace only for
//! CNI plugins, which know nothing else.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};
use wharf_types::failure;

/// The magic number of nsfs, the file system that namespace files live in.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The file cannot be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// The file at which the namespace should be pinned.
        path: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
    /// The file exists but pins no namespace, because the mount over it is gone.
    #[error("{} is not a network namespace", path.display())]
    NotPinned {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be pinned where plugins look for it, or unpinned there.
    #[error("cannot pin or unpin the network namespace at {} for CNI plugins", path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
    /// No thread could be started.
    #[error("cannot start a thread to enter a network namespace: {}", failure::PROCESSES)]
    Thread {
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A thread could not enter the namespace.
    #[error("cannot enter a network namespace")]
    Enter {
        /// The kernel's error.
        source: Errno,
    },
    /// The thread ended without a result.
    #[error("the thread inside a network namespace panicked")]
    Lost,
}

/// Opens a network namespace by the path that it is pinned at.
///
/// # Errors
/// Nothing is there, or it is not a namespace.
pub fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    let fail = |source| NetnsError::Open { path: path.to_owned(), source };
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
        .map_err(fail)?;
    if fstatfs(&fd).map_err(fail)?.filesystem_type() != NSFS_MAGIC {
        return Err(NetnsError::NotPinned { path: path.to_owned() });
    }
    Ok(fd)
}

/// Whether a path leads to a network namespace.
///
/// # Errors
/// It cannot be told: what is there cannot be opened.
pub fn is_pinned(path: &Path) -> Result<bool, NetnsError> {
    match open(path) {
        Ok(_) => Ok(true),
        Err(
            NetnsError::NotPinned { .. } | NetnsError::Open { source: Errno::ENOENT | Errno::ENOTDIR, .. },
        ) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a namespace a path, for those who want one: a mount of the host's, as long as it is there. One that is pinned
/// there already stays.
pub(crate) fn pin(netns: BorrowedFd<'_>, path: &Path) -> Result<(), NetnsError> {
    if is_pinned(path)? {
        return Ok(());
    }
    let fail = |source| NetnsError::Pin { path: path.to_owned(), source };
    let flags = OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    drop(nix::fcntl::open(path, flags, Mode::S_IRUSR).map_err(fail)?);
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    nix::mount::mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(fail)
}

/// Takes the path of a namespace away; one that is not pinned has none.
pub(crate) fn unpin(path: &Path) -> Result<(), NetnsError> {
    if !is_pinned(path)? {
        return Ok(());
    }
    let fail = |source| NetnsError::Pin { path: path.to_owned(), source };
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // It is not a mount, but a link to somebody else's namespace.
        Err(Errno::EINVAL) => Ok(()),
        Err(source) => Err(fail(source)),
        Ok(()) => nix::unistd::unlink(path).map_err(fail),
    }
}

/// Runs `work` on a new thread inside the namespace. A thread that entered a namespace is never used for anything else.
pub(crate) fn inside<T: Send>(netns: impl AsFd, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let netns = netns.as_fd();
    std::thread::scope(|scope| {
        let enter = || {
            setns(netns, CloneFlags::CLONE_NEWNET).map_err(|source| NetnsError::Enter { source })?;
            Ok(work())
        };
        let thread = std::thread::Builder::new().spawn_scoped(scope, enter);
        let thread = thread.map_err(|source| NetnsError::Thread { source })?;
        thread.join().unwrap_or(Err(NetnsError::Lost))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_not_taken_for_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("loop", path("loop")).unwrap();
        for gone in ["none", "file", "file/below"] {
            assert!(!is_pinned(&path(gone)).unwrap(), "{gone}");
        }
        assert!(is_pinned(Path::new("/proc/self/ns/net")).unwrap());
        assert!(matches!(is_pinned(&path("loop")), Err(NetnsError::Open { source: Errno::ELOOP, .. })));
    }

    #[test]
    fn only_pinned_namespaces_open() {
        assert!(open(Path::new("/proc/self/ns/net")).is_ok());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(open(file.path()), Err(NetnsError::NotPinned { .. })));
        assert!(matches!(
            open(Path::new("/nowhere/ns")),
            Err(NetnsError::Open { source: Errno::ENOENT, .. })
        ));
    }

    #[test]
    fn a_limit_on_processes_is_named() {
        let told = wharf_sys::thread::apart(|| {
            use wharf_sys::seccomp::{Call, refuse};
            let netns = open(Path::new("/proc/thread-self/ns/net")).unwrap();
            // A C library uses one of them.
            refuse(Call::CLONE, Errno::EAGAIN)?;
            refuse(Call::CLONE3, Errno::EAGAIN)?;
            Ok(inside(&netns, || ()).unwrap_err().to_string())
        });
        let told = told.unwrap();
        assert!(told.contains("TasksMax"), "{told}");
    }

    #[test]
    fn another_kind_of_namespace_is_refused() {
        let uts = open(Path::new("/proc/self/ns/uts")).unwrap();
        assert!(matches!(inside(&uts, || ()), Err(NetnsError::Enter { source: Errno::EINVAL })));
    }

    #[test]
    fn a_namespace_has_a_path_as_long_as_it_is_pinned() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net");
        let pinned = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let netns = open(Path::new("/proc/thread-self/ns/net")).unwrap();
            let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).unwrap().st_ino;
            unpin(&path).unwrap();
            pin(netns.as_fd(), &path).unwrap();
            pin(netns.as_fd(), &path).unwrap();
            assert_eq!(inode(&open(&path).unwrap()), inode(&netns));
            unpin(&path).unwrap();
            assert!(!path.exists());
            pin(netns.as_fd(), Path::new("/nowhere/net")).unwrap_err()
        });
        let refused = pinned.join().unwrap();
        assert!(matches!(refused, NetnsError::Pin { source: Errno::ENOENT, .. }), "{refused}");
    }
}
