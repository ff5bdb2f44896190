//! Creating a container's log, so that its pod's supervisor, which waits for no disk, needs no process for that.
//!
//! A disk that stalls takes one thread of the pool and no more than a second: then the supervisor's log writer waits
//! for it instead. Nothing is written here.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use wharf_isolation::LogFile;
use wharf_types::failure::named;
use wharf_types::{ErrorKind, chain};

use crate::error::{Error, blocking};

/// How many threads of the pool may wait for the logs' disk.
const TURNS: usize = 8;
/// How long to wait for that disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// Permits for creating logs.
#[derive(Debug)]
pub(crate) struct Logs(Arc<Semaphore>);

impl Default for Logs {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TURNS)))
    }
}

impl Logs {
    /// Creates a log, and returns its directory for the supervisor. `None` if the disk stalls: then only the
    /// supervisor's log writer waits for it.
    pub(crate) async fn make(&self, file: LogFile) -> Result<Option<OwnedFd>, Error> {
        let Ok(turn) = Arc::clone(&self.0).try_acquire_owned() else { return Ok(None) };
        let made = blocking(move || {
            let _turn = turn;
            file.make().map_err(unopened)
        });
        tokio::time::timeout(PATIENCE, made).await.ok().transpose()
    }
}

/// The request names the file; but a lack of space on the machine is not the request's fault.
fn unopened(error: wharf_sys::Error) -> Error {
    match named(error.errno) {
        ErrorKind::InvalidArgument => {
            Error::invalid("log_path", format!("it cannot be opened: {}", chain(&error)))
        }
        _ => Error::at("making the container's log", error),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may wait for a disk")]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use wharf_isolation::LogLimits;
    use wharf_types::{Failure as _, HostPath};

    fn file(directory: &tempfile::TempDir, name: &str) -> LogFile {
        let directory = HostPath::new(directory.path().to_str().unwrap()).unwrap();
        LogFile { directory, name: name.into(), limits: LogLimits::default() }
    }

    #[tokio::test]
    async fn a_log_is_made_in_its_directory_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Logs::default().make(file(&directory, "0.log")).await.unwrap().is_some());
        assert!(directory.path().join("0.log").is_file());
        std::os::unix::fs::symlink("/tmp", directory.path().join("link")).unwrap();
        for name in ["missing/0.log", "link/0.log", "../0.log"] {
            let error = Logs::default().make(file(&directory, name)).await.unwrap_err();
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

    #[tokio::test]
    async fn without_a_turn_it_is_left_to_the_supervisor() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs(Arc::new(Semaphore::new(0)));
        assert!(logs.make(file(&directory, "0.log")).await.unwrap().is_none());
    }
}
