//! The directories of a pod: its own in the state directory, and that of its containers' logs.
//!
//! The first is wharf's, for root alone, and goes with the pod. The other is the kubelet's, which names it and reads
//! and removes what is in it; it is only made here if it is missing. What is in a pod's directory is drawn in
//! `state/src/layout.rs`.

use std::fs::{DirBuilder, create_dir_all};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_planner::Refusal;
use wharf_snapshots::tree::remove_tree;
use wharf_state::Layout;
use wharf_sys::error::Named as _;
use wharf_sys::fs::open;
use wharf_types::failure::named;
use wharf_types::{ErrorKind, Stage as _, StageError, chain};

use crate::error::Error;

/// Makes a pod's directory, with those in it.
///
/// # Errors
/// The disk's.
pub fn make(directory: &Path) -> Result<(), StageError> {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    let mut directories = Layout::directories(directory).into_iter();
    directories.try_for_each(|path| builder.create(path)).stage("making the pod's directory")
}

/// Makes the directory of logs that a request names, if it names one.
///
/// # Errors
/// The kernel's objection to the name is the request's fault, anything else the machine's.
pub fn make_for_logs(path: &str) -> Result<(), Error> {
    let made = if path.is_empty() { Ok(()) } else { create_dir_all(path) };
    made.named("mkdir", || path.to_owned()).map_err(|error| match named(error.errno) {
        ErrorKind::InvalidArgument => {
            let problem = format!("{path:?} cannot be made: {}", chain(&error));
            Refusal::Field { field: "log_directory", problem }.into()
        }
        _ => StageError::at("making the directory of the pod's logs", error).into(),
    })
}

/// Removes a pod's directory with all in it; one that is not there is fine.
///
/// # Errors
/// The disk's.
pub fn remove(directory: &Path) -> Result<(), StageError> {
    remove_all(directory).stage("removing the pod's directory (if it is busy, unmount what is mounted there)")
}

/// Removes a directory with all in it, but nothing that is mounted there; one that is not there is fine.
pub(crate) fn remove_all(directory: &Path) -> wharf_sys::Result<()> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else { return Ok(()) };
    let removed = match open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(()),
        parent => parent.and_then(|parent| remove_tree(parent.as_fd(), name)),
    };
    let named = |error: wharf_sys::Error| {
        wharf_sys::Error::new("remove", directory.display().to_string(), error.errno)
    };
    removed.map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::Failure as _;

    #[test]
    fn a_pods_directory_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        make(&pod).unwrap();
        assert!(Layout::exits(&pod).is_dir());
        assert_eq!(make(&pod).unwrap_err().kind(), ErrorKind::Internal, "no other pod has this id");
        remove(&pod).unwrap();
        remove(&pod).unwrap();
        assert!(!pod.exists());
    }

    #[test]
    fn a_directory_of_logs_that_cannot_be_is_the_requests_fault() {
        let dir = tempfile::tempdir().unwrap();
        make_for_logs("").unwrap();
        let logs = dir.path().join("a/b");
        make_for_logs(logs.to_str().unwrap()).unwrap();
        assert!(logs.is_dir());
        std::fs::write(logs.join("file"), "").unwrap();
        let error = make_for_logs(logs.join("file/c").to_str().unwrap()).unwrap_err();
        assert!(matches!(&error, Error::Refused(Refusal::Field { field: "log_directory", .. })), "{error}");
        // Nobody can make a directory there, whatever the request names.
        let error = make_for_logs("/proc/sys/logs").unwrap_err();
        assert!(chain(&error).contains("/proc/sys/logs"), "{}", chain(&error));
    }
}
