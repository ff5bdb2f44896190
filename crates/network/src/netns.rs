//! Network namespaces by descriptor: opening one, and working inside it on a thread of its own.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};

/// The magic number of nsfs, the file system that namespace files live in.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The file cannot be opened.
    #[error("open the network namespace {}", path.display())]
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
    /// No thread could be started.
    #[error("start a thread for a network namespace")]
    Thread {
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A thread could not enter the namespace.
    #[error("enter a network namespace")]
    Enter {
        /// The kernel's error.
        source: Errno,
    },
    /// The thread ended without a result.
    #[error("the thread inside a network namespace ended unexpectedly")]
    Lost,
}

/// Opens a pinned namespace.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    let fail = |source| NetnsError::Open { path: path.to_owned(), source };
    let fd = nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
        .map_err(fail)?;
    if fstatfs(&fd).map_err(fail)?.filesystem_type() != NSFS_MAGIC {
        return Err(NetnsError::NotPinned { path: path.to_owned() });
    }
    Ok(fd)
}

/// Runs `work` on a new thread inside the namespace. A thread that entered a namespace is never used for anything else.
pub(crate) fn inside<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
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
    fn another_kind_of_namespace_is_refused() {
        let uts = open(Path::new("/proc/self/ns/uts")).unwrap();
        assert!(matches!(inside(&uts, || ()), Err(NetnsError::Enter { source: Errno::EINVAL })));
    }
}
