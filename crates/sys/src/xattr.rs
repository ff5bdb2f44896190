//! Extended attributes of open files: never by path, so never through a link.
//!
//! Which attributes are kept, and what they mean, is the callers' matter. A file system without attributes has none to
//! read, and cannot be given any.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use rustix::fs::XattrFlags;

use crate::error::{Named, Result};
use crate::fs::proc_path;

/// The kernel's limit on one value, and on the list of names.
const LIMIT_BYTES: usize = 64 << 10;

/// Sets an attribute, new or existing.
///
/// # Errors
/// The kernel's error: EOPNOTSUPP if the file system has no attributes of that namespace, ENOSPC because of its size.
pub fn set(fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        .named("fsetxattr", || name.escape_debug().collect())
}

/// Sets an attribute of a file of any kind, a symbolic link itself included, that is open without access to it
/// (`O_PATH`). Needs the machine's procfs.
///
/// # Errors
/// The kernel's error, as for [`set`].
pub fn set_of_path(fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::setxattr(proc_path(fd), name, value, XattrFlags::empty())
        .named("setxattr", || name.escape_debug().collect())
}

/// The value of an attribute of such a file; `None` as for [`value`]. It is no longer than 4096 bytes, or that is
/// ERANGE.
///
/// # Errors
/// The kernel's error.
pub fn value_of_path(fd: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; 4096];
    match rustix::fs::getxattr(proc_path(fd), name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(error) if matches!(Errno::from_raw(error.raw_os_error()), Errno::ENODATA | Errno::EOPNOTSUPP) => {
            Ok(None)
        }
        Err(error) => Err(error).named("getxattr", || name.escape_debug().collect()),
    }
}

/// The value of an attribute; `None` if it is not set, or if the file system has no attributes.
///
/// # Errors
/// The kernel's error.
pub fn value(fd: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    // Almost every value is short; a longer one needs a second call.
    let mut short = [0_u8; 256];
    let error = match rustix::fs::fgetxattr(fd, name, &mut short[..]) {
        Ok(length) => return Ok(Some(short[..length].to_vec())),
        Err(error) => error,
    };
    let errno = Errno::from_raw(error.raw_os_error());
    if matches!(errno, Errno::ENODATA | Errno::EOPNOTSUPP) {
        return Ok(None);
    }
    let mut long = vec![0_u8; LIMIT_BYTES];
    let length = rustix::fs::fgetxattr(fd, name, &mut long[..]).named("fgetxattr", || name.into())?;
    long.truncate(length);
    Ok(Some(long))
}

/// The names of the attributes, as far as they are UTF-8; nobody can name the others here.
///
/// # Errors
/// The kernel's error.
pub fn names(fd: BorrowedFd<'_>) -> Result<Vec<String>> {
    let mut short = [0_u8; 256];
    let split = |list: &[u8]| {
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.filter_map(|name| std::str::from_utf8(name).ok().map(str::to_owned)).collect()
    };
    match rustix::fs::flistxattr(fd, &mut short[..]) {
        Ok(length) => return Ok(split(&short[..length])),
        Err(error) if error.raw_os_error() == Errno::EOPNOTSUPP as i32 => return Ok(Vec::new()),
        // Too long for the short buffer, or an error that will recur.
        Err(_) => {}
    }
    let mut long = vec![0_u8; LIMIT_BYTES];
    let length =
        rustix::fs::flistxattr(fd, &mut long[..]).named("flistxattr", || format!("{LIMIT_BYTES} bytes"))?;
    Ok(split(&long[..length]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn attributes_are_set_listed_and_read() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(value(file.as_fd(), "user.a").unwrap(), None);
        set(file.as_fd(), "user.a", b"short").unwrap();
        set(file.as_fd(), "user.b", &[7; 1000]).unwrap();
        assert_eq!(value(file.as_fd(), "user.a").unwrap().unwrap(), b"short");
        assert_eq!(value(file.as_fd(), "user.b").unwrap().unwrap(), [7; 1000]);
        assert_eq!(names(file.as_fd()).unwrap(), ["user.a", "user.b"]);
    }

    #[test]
    fn a_file_that_is_only_found_has_attributes_too() {
        use nix::fcntl::OFlag;
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let found = |path| crate::fs::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW).unwrap();
        let (file, link) = (found(&file), found(&link));
        assert_eq!(value_of_path(link.as_fd(), "trusted.a").unwrap(), None);
        set_of_path(link.as_fd(), "trusted.a", b"of the link").unwrap();
        assert_eq!(value_of_path(link.as_fd(), "trusted.a").unwrap().unwrap(), b"of the link");
        assert_eq!(value_of_path(file.as_fd(), "trusted.a").unwrap(), None);
        let error = set_of_path(file.as_fd(), "nonsense", b"").unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }

    #[test]
    fn an_unknown_namespace_is_an_error_that_names_it() {
        let file = tempfile::tempfile().unwrap();
        let error = set(file.as_fd(), "nonsense", b"").unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }
}
