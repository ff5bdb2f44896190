//! Removing: depth is not followed. A directory that lies too deep is moved up to the top of the tree.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::dir::Type;
use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};
use wharf_sys::Error;

use super::{Listing, OPEN_LIMIT, open_directory};

/// The prefix of the names that deep directories get at the top. A file of the tree that has such a name is not lost:
/// the rename fails, and the next number is taken.
const LIFTED: &str = ".wharf-lifted-";

/// Removes `name` in `parent` and everything below it. A missing `name` is success. Memory and descriptors do not grow
/// with the tree.
///
/// # Errors
/// EBUSY if something is mounted inside: the mount point and the directories that lead to it stay, everything
/// else is removed. Otherwise the kernel's first error, after everything that can be removed has been.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> wharf_sys::Result<()> {
    remove_tree_while(parent, name, &|| true)
}

/// The same, but whoever asked for it is asked before each entry whether it goes on.
///
/// # Errors
/// Those of [`remove_tree`]; ECANCELED if it does not go on, and then the rest is still there.
pub fn remove_tree_while(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    goes_on: &dyn Fn() -> bool,
) -> wharf_sys::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(failure(name, errno)),
    }
    let mut removal = Removal { refused: None, lifted: 0, goes_on };
    loop {
        let lifted_before = removal.lifted;
        let top = match open_directory(parent, name) {
            Ok(top) => top,
            Err(errno) => return Err(failure(name, busy(errno))),
        };
        removal.empty(top.as_fd()).map_err(|errno| failure(name, errno))?;
        // A lifted directory may have come after the listing had passed its place.
        if removal.lifted == lifted_before {
            break;
        }
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(removal.refused.unwrap_or_else(|| failure(name, errno))),
    }
}

struct Removal<'a> {
    refused: Option<Error>,
    lifted: u64,
    goes_on: &'a dyn Fn() -> bool,
}

/// A directory that is being emptied, and its name in its parent, the level below it on the stack.
struct Level {
    listing: Listing,
    name: CString,
}

impl Removal<'_> {
    fn empty(&mut self, top: BorrowedFd<'_>) -> Result<(), Errno> {
        let listing = Listing::open(top, OsStr::new("."))?;
        let mut stack = vec![Level { listing, name: CString::default() }];
        while let Some(level) = stack.last_mut() {
            if !(self.goes_on)() {
                return Err(Errno::ECANCELED);
            }
            let Some(entry) = level.listing.entries.next() else {
                let Some(done) = stack.pop() else { break };
                if let Some(above) = stack.last()
                    && self.unlink(above.listing.fd.as_fd(), &done.name, UnlinkatFlags::RemoveDir).is_err()
                {
                    tracing::debug!(name = ?done.name, "kept a directory because something in it could not be removed");
                }
                continue;
            };
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let name = entry.file_name().to_owned();
            let is_directory = match entry.file_type() {
                Some(Type::Directory) => true,
                Some(_) => {
                    self.unlink(level.listing.fd.as_fd(), &name, UnlinkatFlags::NoRemoveDir)
                        == Err(Errno::EISDIR)
                }
                None => nix::unistd::unlinkat(&level.listing.fd, &*name, UnlinkatFlags::NoRemoveDir).is_err(),
            };
            if !is_directory || unlinkat(&level.listing.fd, &*name, UnlinkatFlags::RemoveDir).is_ok() {
                continue;
            }
            let full = stack.len() == OPEN_LIMIT;
            self.descend(top, &mut stack, name, full.then_some(Full))?;
        }
        Ok(())
    }

    /// Continues with the directory `name` of the last level, or moves it up if the stack is full.
    fn descend(
        &mut self,
        top: BorrowedFd<'_>,
        stack: &mut Vec<Level>,
        name: CString,
        full: Option<Full>,
    ) -> Result<(), Errno> {
        let Some(level) = stack.last() else { return Ok(()) };
        let opened = Listing::open(level.listing.fd.as_fd(), OsStr::from_bytes(name.as_bytes()));
        match (opened, full) {
            (Ok(_), Some(Full)) => self.lift(level.listing.fd.as_fd(), &name, top),
            (Ok(listing), None) => {
                stack.push(Level { listing, name });
                Ok(())
            }
            (Err(errno), _) => {
                self.refuse(&name, busy(errno));
                Ok(())
            }
        }
    }

    fn lift(&mut self, from: BorrowedFd<'_>, name: &CString, top: BorrowedFd<'_>) -> Result<(), Errno> {
        loop {
            self.lifted += 1;
            let target = OsString::from(format!("{LIFTED}{}", self.lifted));
            match wharf_sys::fs::rename_new(from, OsStr::from_bytes(name.to_bytes()), top, &target) {
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(Errno::EEXIST) => {}
                Err(errno) => {
                    self.lifted -= 1;
                    self.refuse(name, errno);
                    return Ok(());
                }
            }
        }
    }

    fn unlink(&mut self, dir: BorrowedFd<'_>, name: &CString, flags: UnlinkatFlags) -> Result<(), Errno> {
        match unlinkat(dir, name.as_c_str(), flags) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => {
                if errno != Errno::EISDIR {
                    self.refuse(name, errno);
                }
                Err(errno)
            }
        }
    }

    fn refuse(&mut self, name: &CString, errno: Errno) {
        // A directory that is not empty is only the result of an earlier error, which says more.
        self.refused.get_or_insert_with(|| failure(OsStr::from_bytes(name.as_bytes()), errno));
    }
}

/// The stack of open directories has reached its limit.
struct Full;

fn failure(name: &OsStr, errno: Errno) -> Error {
    Error::new("remove", name.display().to_string(), errno)
}

/// openat2 reports a mount in the way as EXDEV; callers know it as EBUSY.
fn busy(errno: Errno) -> Errno {
    if errno == Errno::EXDEV { Errno::EBUSY } else { errno }
}
