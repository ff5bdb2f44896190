//! Creating a container's log.

use std::ops::Range;
use std::os::fd::OwnedFd;

use wharf_isolation::{LogFile, LogLimits};
use wharf_planner::{Refusal, Unread};
use wharf_types::failure::named;
use wharf_types::{ErrorKind, HostPath, Stage as _, StageError, chain};

use crate::error::Error;

/// Creates a log, and returns its directory.
///
/// # Errors
/// It cannot be opened: the request names the file, but a lack of space on the machine is not the request's fault.
pub fn make_log(file: &LogFile) -> Result<OwnedFd, Error> {
    file.make().map_err(unopened)
}

/// Removes the log of a container that could not be made, unless something is in it or it was made before or after it,
/// in nanoseconds since the epoch. A container without a log has an empty directory or name.
///
/// # Errors
/// The kernel's error.
pub fn remove_unused_log(directory: &str, name: &str, made_ns: &Range<i64>) -> Result<(), StageError> {
    let Some(directory) = HostPath::new(directory).ok().filter(|_directory| !name.is_empty()) else {
        return Ok(());
    };
    let log = LogFile { directory, name: name.to_owned(), limits: LogLimits::default() };
    log.remove_unused(made_ns).stage("removing the container's log")
}

fn unopened(error: wharf_sys::Error) -> Error {
    match named(error.errno) {
        kind @ ErrorKind::InvalidArgument => {
            let problem = format!("it cannot be opened: {}", chain(&error));
            Refusal::unread("log_path", Unread { kind, problem }).into()
        }
        _ => StageError::at("making the container's log", error).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use wharf_types::Failure as _;

    #[test]
    fn a_log_is_made_in_its_directory_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let directory = HostPath::new(directory.path().to_str().unwrap()).unwrap();
            LogFile { directory, name: name.into(), limits: LogLimits::default() }
        };
        let path = directory.path().join("0.log");
        make_log(&file("0.log")).unwrap();
        assert!(path.is_file());
        std::fs::write(&path, "said").unwrap();
        let remove =
            |made_ns| remove_unused_log(directory.path().to_str().unwrap(), "0.log", &made_ns).unwrap();
        let now_ns = wharf_sys::clock::now_ns();
        remove(now_ns..i64::MAX);
        assert!(path.is_file(), "it has been used");
        std::fs::write(&path, "").unwrap();
        remove(now_ns + 1_000_000_000..i64::MAX);
        assert!(path.is_file(), "it is older");
        let hour_ago = now_ns - 3600 * 1_000_000_000;
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(hour_ago.cast_unsigned());
        std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
        make_log(&file("0.log")).unwrap();
        remove(hour_ago - 1..hour_ago + 1);
        assert!(path.is_file(), "another container has it by now");
        remove(now_ns..i64::MAX);
        assert!(!path.exists());
        remove(now_ns..i64::MAX);
        std::os::unix::fs::symlink("/tmp", directory.path().join("link")).unwrap();
        for name in ["missing/0.log", "link/0.log", "../0.log"] {
            let error = make_log(&file(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}: {error}");
        }
    }

    #[test]
    fn a_full_disk_is_not_the_requests_fault() {
        let kind = |errno| unopened(wharf_sys::Error::new("open", "0.log", errno)).kind();
        assert_eq!(kind(Errno::ENOSPC), ErrorKind::ResourceExhausted);
        assert_eq!(kind(Errno::EIO), ErrorKind::Internal);
        assert_eq!(kind(Errno::ENOENT), ErrorKind::InvalidArgument);
    }
}
