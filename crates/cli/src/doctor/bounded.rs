//! Checks of file systems, which may not respond.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::Check;

/// How long a file system may take. A machine under load takes tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// Makes a check of a place. If the file system there does not respond in time, that is the result, and the thread of
/// the check is left behind.
pub(super) fn check(
    what: &'static str,
    place: &Path,
    check: impl FnOnce(&Path) -> Check + Send + 'static,
) -> Check {
    within(PATIENCE, place.to_owned(), check).unwrap_or_else(|| {
        let advice = "check the disk, or the server that it is on, and see the kernel's log (dmesg)";
        Check::fail(what, format!("{} does not respond", place.display()), advice)
    })
}

/// What is read from a place; nothing if the file system there does not respond in time, which another check reports.
pub(super) fn read<T: Default + Send + 'static>(
    place: &Path,
    read: impl FnOnce(&Path) -> T + Send + 'static,
) -> T {
    within(PATIENCE, place.to_owned(), read).unwrap_or_default()
}

fn within<T: Send + 'static>(
    patience: Duration,
    place: PathBuf,
    work: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    // Nobody receives what comes too late.
    let work = move || sender.send(work(&place)).unwrap_or_default();
    std::thread::Builder::new().spawn(work).ok()?;
    receiver.recv_timeout(patience).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_respond_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let read = |place: &Path| std::fs::read(place).unwrap_or_default();
        assert_eq!(within(Duration::from_millis(50), fifo, read), None);
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(within(PATIENCE, dir.path().join("file"), read), Some(b"x".to_vec()));
    }
}
