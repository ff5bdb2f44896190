//! A walk over a tree of cgroups of any depth.
//!
//! A container that manages its own cgroups may nest them until their paths are longer than the kernel takes. So the
//! walk goes from a directory to the next by descriptor, and back by `..`: it has one directory open, and no path.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

use crate::error::{Error, Named as _, Result};

/// A directory that the walk is in: its name, and the names of those below it that it has not been in.
struct Level {
    name: OsString,
    below: Vec<OsString>,
}

/// Calls `enter` with each directory from `top` downwards, and `leave` with each one below `top`, as its parent and its
/// name, after those below it. What vanishes in the meantime is left out.
///
/// # Errors
/// What `enter` and `leave` return; the kernel's error.
pub fn walk<E: From<Error>>(
    top: &Path,
    enter: &mut dyn FnMut(BorrowedFd<'_>) -> std::result::Result<(), E>,
    leave: &mut dyn FnMut(BorrowedFd<'_>, &Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let Some(mut at) = open(None, top)? else { return Ok(()) };
    enter(at.as_fd())?;
    let mut levels = vec![Level { name: OsString::new(), below: below(&at)? }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.below.pop() {
            let Some(child) = open(Some(at.as_fd()), Path::new(&name))? else { continue };
            at = child;
            enter(at.as_fd())?;
            levels.push(Level { name, below: below(&at)? });
        } else if let Some(done) = levels.pop()
            && !levels.is_empty()
        {
            // It is gone only if somebody else removes the tree, too.
            let Some(parent) = open(Some(at.as_fd()), Path::new(".."))? else { return Ok(()) };
            at = parent;
            leave(at.as_fd(), Path::new(&done.name))?;
        }
    }
    Ok(())
}

/// Opens a directory, by its name in another one or by its path; `None` if it is gone.
///
/// # Errors
/// The kernel's error.
pub fn open(parent: Option<BorrowedFd<'_>>, name: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(parent.unwrap_or(AT_FDCWD), name, flags, Mode::empty());
    gone_is_none(opened).named("openat", || name.display().to_string())
}

/// The names of the directories in one.
///
/// # Errors
/// The kernel's error.
pub fn below(at: &OwnedFd) -> Result<Vec<OsString>> {
    let named = || "a cgroup".to_owned();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = gone_is_none(Dir::openat(at, ".", flags, Mode::empty())).named("openat", named)?;
    let mut names = Vec::new();
    for entry in opened.into_iter().flatten() {
        let Some(entry) = gone_is_none(entry).named("getdents64", named)? else { break };
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if entry.file_type() == Some(Type::Directory) && name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// ENODEV is the error of an open directory, or of one that is being opened, whose cgroup has been removed.
fn gone_is_none<T>(result: nix::Result<T>) -> nix::Result<Option<T>> {
    match result {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_no_path_names_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let name = "d".repeat(250);
        let mut at = open(None, directory.path()).unwrap().unwrap();
        for _ in 0..40 {
            nix::sys::stat::mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            at = open(Some(at.as_fd()), Path::new(&name)).unwrap().unwrap();
        }
        let (mut entered, mut left) = (0, 0);
        let mut enter = |_: BorrowedFd<'_>| {
            entered += 1;
            Ok(())
        };
        let mut leave = |parent: BorrowedFd<'_>, child: &Path| {
            left += 1;
            open(Some(parent), child).map(|found| assert!(found.is_some()))
        };
        walk::<Error>(directory.path(), &mut enter, &mut leave).unwrap();
        assert_eq!((entered, left), (41, 40));
        let gone = directory.path().join("gone");
        walk::<Error>(&gone, &mut |_| panic!("it is gone"), &mut |_, _| Ok(())).unwrap();
    }
}
