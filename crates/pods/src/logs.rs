//! Creating a container's log, so that its pod's supervisor, which waits for no disk, needs no process for that.
//!
//! A disk that stalls takes one thread of the pool and no more than a second: then the supervisor's log writer waits
//! for it instead. Nothing is written here.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use wharf_host::make_log;
use wharf_isolation::LogFile;

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
            Ok(make_log(&file)?)
        });
        tokio::time::timeout(PATIENCE, made).await.ok().transpose()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may wait for a disk")]
mod tests {
    use super::*;
    use wharf_isolation::LogLimits;
    use wharf_types::{ErrorKind, Failure as _, HostPath};

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

    #[tokio::test]
    async fn without_a_turn_it_is_left_to_the_supervisor() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs(Arc::new(Semaphore::new(0)));
        assert!(logs.make(file(&directory, "0.log")).await.unwrap().is_none());
    }
}
