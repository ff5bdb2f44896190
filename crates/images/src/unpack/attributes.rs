//! Owner, mode, extended attributes and time: set on an open file, or on an entry without following it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat};
use wharf_sys::Result;
use wharf_sys::error::Named;

use crate::tar::Entry;

/// Marks a directory that hides what the layers below have in it.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Sets everything on an open file or directory. The owner comes first, because a change of owner clears the set-id
/// bits and the capabilities.
pub(super) fn set(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchown(fd, Some(owner.0), Some(owner.1)).named("fchown", || format!("{}:{}", entry.uid, entry.gid))?;
    let mode = Mode::from_bits_truncate(entry.mode);
    fchmod(fd, mode).named("fchmod", || format!("{mode:?}"))?;
    set_xattrs(fd, &entry.xattrs)?;
    set_time(fd, entry.mtime)
}

fn set_xattrs(fd: BorrowedFd<'_>, xattrs: &[(String, Vec<u8>)]) -> Result<()> {
    for (name, value) in xattrs {
        if !is_admitted(name) {
            continue;
        }
        match wharf_sys::xattr::set(fd, name, value) {
            // On a file system without user attributes they are lost, as with other runtimes.
            Err(error) if error.errno == Errno::EOPNOTSUPP && name.starts_with("user.") => {
                tracing::debug!(%error, "dropped an extended attribute of a layer's entry");
            }
            other => other?,
        }
    }
    Ok(())
}

/// Overlayfs's own attributes are never an image's to set: they redirect, hide and reveal.
pub(crate) fn is_admitted(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

pub(super) fn set_time(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<()> {
    let time = TimeSpec::new(mtime.0, mtime.1.into());
    futimens(fd, &time, &time).named("futimens", || format!("{}", mtime.0))
}

/// Sets the owner and time of a symbolic link, which has neither a mode nor attributes.
pub(super) fn set_on_link(parent: impl AsFd, name: &[u8], entry: &Entry) -> Result<()> {
    let (parent, name) = (parent.as_fd(), OsStr::from_bytes(name));
    let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(parent, name, Some(owner.0), Some(owner.1), AtFlags::AT_SYMLINK_NOFOLLOW)
        .named("fchownat", || format!("{}:{}", entry.uid, entry.gid))?;
    let time = TimeSpec::new(entry.mtime.0, entry.mtime.1.into());
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .named("utimensat", || format!("{}", entry.mtime.0))
}

/// Sets the owner, mode and time of a device node or fifo, which must not be opened.
pub(super) fn set_on_node(parent: impl AsFd, name: &[u8], entry: &Entry) -> Result<()> {
    set_on_link(&parent, name, entry)?;
    let mode = Mode::from_bits_truncate(entry.mode);
    fchmodat(parent, OsStr::from_bytes(name), mode, FchmodatFlags::NoFollowSymlink)
        .named("fchmodat", || format!("{mode:?}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn attributes_are_admitted_by_name() {
        for (name, want) in [
            ("security.capability", true),
            ("user.x", true),
            ("user.overlay.opaque", false),
            ("trusted.overlay.redirect", false),
            ("trusted.x", false),
            ("security.selinux", false),
            ("system.posix_acl_access", false),
        ] {
            assert_eq!(super::is_admitted(name), want, "{name}");
        }
    }
}
