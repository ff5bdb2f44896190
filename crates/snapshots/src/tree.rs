//! Directory trees that a container or an image filled: removed and measured through descriptors alone.
//!
//! The shape of such a tree is hostile: it may be deeper than any path or stack, it may be wider than memory, and
//! something may be mounted inside it. So both walks are loops over a short stack of open directories. They follow no
//! link and never leave the file system on which they began: a mount inside the tree is left alone with everything in
//! it, and is reported.

mod measure;
mod remove;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};

pub use measure::{Progress, Usage, Walk};
pub use remove::{remove_tree, remove_tree_while};

/// How many directories a walk keeps open: two descriptors and one read buffer each.
const OPEN_LIMIT: usize = 48;

/// Opens the directory `name` in `parent` for reading. It must be a directory, not a link, and on the same mount.
fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    open_with(parent, name, ResolveFlag::RESOLVE_BENEATH)
}

/// Opens the parent of a directory if it is on the same mount. It need not be the directory that the walk came from.
fn open_parent(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_with(directory, OsStr::new(".."), ResolveFlag::empty())
}

fn open_with(parent: BorrowedFd<'_>, name: &OsStr, resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
    let resolve = resolve
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    loop {
        match nix::fcntl::openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve)) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// An open directory and the rest of its listing. (`Dir` alone would start again with each call of `iter`.)
struct Listing {
    fd: OwnedFd,
    entries: nix::dir::OwningIter,
}

impl Listing {
    fn open(parent: BorrowedFd<'_>, name: &OsStr) -> Result<Self, Errno> {
        let fd = open_directory(parent, name)?;
        let entries = Dir::from_fd(open_directory(fd.as_fd(), OsStr::new("."))?)?.into_iter();
        Ok(Self { fd, entries })
    }
}
