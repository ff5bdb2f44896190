//! The input of a plugin: a file, locked as long as the plugin or anything that it started has it open.
//!
//! So a new daemon sees whether a call of its killed predecessor is still running. The specification forbids two calls
//! for a pod at a time, and a late ADD would restore what DEL has already removed.

use std::fs::{File, TryLockError};
use std::io::{Result, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::poll;

/// How often the lock is tried, in milliseconds.
const LOOK_MS: u16 = 50;

/// The input of a running call.
#[derive(Debug)]
pub(super) struct Input(File);

impl Input {
    /// Writes the input once no earlier call has the file open. It waits for at most half of the time: a plugin that
    /// hangs without its daemon never exits.
    pub(super) fn write(path: &Path, content: &[u8], deadline: Instant) -> Result<Self> {
        let patience = deadline.saturating_duration_since(Instant::now()) / 2;
        let mut file = locked(path, patience)?;
        file.set_len(0)?;
        file.write_all(content)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Self(file))
    }

    /// The plugin's standard input.
    pub(super) fn stream(&self) -> Result<File> {
        self.0.try_clone()
    }
}

impl Drop for Input {
    /// The call has ended. A process that the plugin left running on purpose is not part of it.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot record the end of a CNI plugin's call");
        }
    }
}

fn locked(path: &Path, patience: Duration) -> Result<File> {
    let end = Instant::now() + patience;
    loop {
        let file = File::options().create(true).truncate(false).write(true).read(true).open(path)?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                poll(&mut [], LOOK_MS)?;
            }
            Err(TryLockError::WouldBlock) => {
                tracing::warn!(file = %path.display(), "a CNI plugin that an earlier wharfd called is still running");
                std::fs::remove_file(path)?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_ms(count: u64) -> Instant {
        Instant::now() + Duration::from_millis(count)
    }

    /// A file that the plugin of a killed daemon has open: nobody unlocks it.
    fn held(path: &Path) -> File {
        let file = File::create(path).unwrap();
        file.try_lock().unwrap();
        file
    }

    #[test]
    fn a_call_waits_for_the_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input");
        let held = held(&path);
        let (path, late) = (&path, in_ms(60_000));
        let second = std::thread::scope(|scope| {
            let second = scope.spawn(move || Input::write(path, b"short", late));
            poll(&mut [], 4 * LOOK_MS).unwrap();
            assert!(!second.is_finished());
            drop(held);
            second.join().unwrap()
        });
        assert_eq!(std::io::read_to_string(second.unwrap().stream().unwrap()).unwrap(), "short");
    }

    #[test]
    fn one_that_hangs_is_not_waited_for_for_ever_and_one_that_ended_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input");
        let first = Input::write(&path, b"1", in_ms(1000)).unwrap();
        let left_running = first.stream().unwrap();
        drop(first);
        let second = Input::write(&path, b"2", in_ms(60_000)).unwrap();
        let third = Input::write(&path, b"3", in_ms(200)).unwrap();
        assert_eq!(std::io::read_to_string(third.stream().unwrap()).unwrap(), "3");
        drop((left_running, second));
    }
}
