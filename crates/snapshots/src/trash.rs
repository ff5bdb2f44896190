//! Removal in the background: a rename takes a tree out of its place, and a thread frees the disk space.
//!
//! What a crash or the end of a daemon left in the trash is removed by the next one. A tree that cannot be removed,
//! such as one with an immutable file, is tried again and again and hinders no other.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use wharf_sys::Result;
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open_below, rename_new};

use crate::tree::remove_tree_while;

/// A directory of trees to be removed, and the thread that removes them one by one. The thread's queue holds only names
/// of entries of that directory. Dropping the trash ends the thread, which leaves the rest to the next one.
#[derive(Debug)]
pub struct Trash {
    directory: Arc<OwnedFd>,
    serial: AtomicU64,
    names: Option<Sender<OsString>>,
    is_ending: Arc<AtomicBool>,
    /// Its other end is the thread's.
    ended: Mutex<Receiver<Infallible>>,
}

/// How long the end waits for the thread, which looks for it between two entries: the disk may never respond.
const END_PATIENCE: Duration = Duration::from_secs(1);

impl Trash {
    /// Opens the directory `name` in `parent`, makes it if it does not exist, and starts to remove what an earlier run
    /// left.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open(parent: BorrowedFd<'_>, name: &str) -> Result<Self> {
        ensure_directory(parent, name)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let directory = Arc::new(open_below(parent, name, flags, Resolve::BeneathNoLinks)?);
        let (names, queue) = channel();
        let (own, is_ending) = (Arc::clone(&directory), Arc::new(AtomicBool::new(false)));
        let (until, (end, ended)) = (Arc::clone(&is_ending), channel());
        let work = move || {
            run(&own, &queue, &|| !until.load(Ordering::Relaxed));
            drop(end);
        };
        let thread = std::thread::Builder::new().name("trash".into()).spawn(work);
        thread.named("clone", || "the thread that empties the trash".into())?;
        let trash = Self {
            directory,
            serial: AtomicU64::new(0),
            names: Some(names),
            is_ending,
            ended: Mutex::new(ended),
        };
        list_names(trash.directory.as_fd())?.into_iter().for_each(|name| trash.queue(name));
        Ok(trash)
    }

    /// Discards what a crash left, if it can be now. It does no harm, and a daemon must start on a disk that has become
    /// read-only, too: pods may run from it.
    pub fn discard_remains(&self, parent: BorrowedFd<'_>, name: &OsStr) {
        if let Err(error) = self.discard(parent, name) {
            tracing::warn!(name = %name.display(), %error, "what a crash left cannot be removed: the next start tries again");
        }
    }

    /// Takes `name` in `parent` out of its place at once; its space is freed later. Both directories must be on one
    /// file system. A missing `name` is success.
    ///
    /// # Errors
    /// The kernel's error: EBUSY for a mount point.
    pub fn discard(&self, parent: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        loop {
            let target = OsString::from(self.serial.fetch_add(1, Ordering::Relaxed).to_string());
            match rename_new(parent, name, &*self.directory, &target) {
                Ok(()) => self.queue(target),
                // Left by an earlier run.
                Err(Errno::EEXIST) => continue,
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(wharf_sys::Error::new("rename", name.display().to_string(), errno)),
            }
            return Ok(());
        }
    }

    fn queue(&self, name: OsString) {
        if self.names.as_ref().is_none_or(|names| names.send(name).is_err()) {
            tracing::warn!("the thread that empties the trash is gone; the next start removes what it left");
        }
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Relaxed);
        drop(self.names.take());
        let ended = self.ended.get_mut().map(|ended| ended.recv_timeout(END_PATIENCE));
        if matches!(ended, Ok(Err(Timeout))) {
            tracing::debug!(
                "the thread that empties the trash waits for its disk; the next start goes on with it"
            );
        }
    }
}

/// The delay before a tree that could not be removed is tried again. It doubles with each failure.
const RETRY: Duration = Duration::from_secs(1);
/// The longest delay: some trees may never go, such as one with an immutable file.
const RETRY_LIMIT: Duration = Duration::from_mins(5);

fn run(directory: &OwnedFd, queue: &Receiver<OsString>, goes_on: &dyn Fn() -> bool) {
    let remove = |name: &OsString| remove_tree_while(directory.as_fd(), name, goes_on);
    let mut left = Vec::new();
    let mut pause = RETRY;
    while goes_on() {
        let next = if left.is_empty() {
            queue.recv().map_err(|_ended| Disconnected)
        } else {
            queue.recv_timeout(pause)
        };
        match next {
            Ok(name) => {
                if let Err(error) = remove(&name)
                    && goes_on()
                {
                    tracing::warn!(name = %name.display(), %error, "cannot remove a directory tree yet; it is tried again");
                    left.push(name);
                    pause = RETRY;
                }
            }
            Err(Timeout) => {
                left.retain(|name| remove(name).is_err());
                pause = longer(pause);
            }
            Err(Disconnected) => return,
        }
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(RETRY_LIMIT)
}

/// Makes a directory of mode 0755, or leaves the existing one as it is.
///
/// # Errors
/// The kernel's error.
pub fn ensure_directory(parent: BorrowedFd<'_>, name: &str) -> Result<()> {
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(wharf_sys::Error::new("mkdirat", name, errno)),
    }
}

/// Keeps everybody else out of one of wharf's own directories; its path is for people. Nothing is written if that is
/// the case already: the file system may have become read-only.
///
/// # Errors
/// The kernel's error.
pub fn make_private(directory: &OwnedFd, path: &Path) -> Result<()> {
    let named = || path.display().to_string();
    let mode = Mode::from_bits_truncate(fstat(directory).named("fstat", named)?.st_mode);
    if mode == Mode::S_IRWXU { Ok(()) } else { fchmod(directory, Mode::S_IRWXU).named("fchmod", named) }
}

/// The names in one of wharf's own directories, without `.` and `..`.
///
/// # Errors
/// The kernel's error.
pub fn list_names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = Dir::openat(directory, ".", flags, Mode::empty()).named("openat", || ".".into())?;
    let mut names = Vec::new();
    for entry in dir {
        let entry = entry.named("readdir", || ".".into())?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use nix::fcntl::AT_FDCWD;

    use super::*;

    /// Waits until a directory is empty.
    fn await_empty(path: &std::path::Path) {
        let begin = std::time::Instant::now();
        while std::fs::read_dir(path).unwrap().next().is_some() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", path.display());
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_end_waits_for_one_entry_and_the_next_trash_removes_the_rest() {
        let temp = tempfile::tempdir().unwrap();
        let old = temp.path().join("trash/old");
        std::fs::create_dir_all(&old).unwrap();
        for number in 0..4000 {
            mkdirat(AT_FDCWD, &old.join(number.to_string()), Mode::S_IRWXU).unwrap();
        }
        let parent = std::fs::File::open(temp.path()).unwrap();
        drop(Trash::open(parent.as_fd(), "trash").unwrap());
        assert!(old.exists(), "the end waited for all of it");
        let _again = Trash::open(parent.as_fd(), "trash").unwrap();
        await_empty(&temp.path().join("trash"));
    }

    #[test]
    fn what_never_goes_is_tried_ever_more_seldom() {
        let pauses = std::iter::successors(Some(RETRY), |&pause| Some(longer(pause)));
        let a_day = pauses.scan(Duration::ZERO, |at, pause| {
            *at += pause;
            (*at < Duration::from_hours(24)).then_some(())
        });
        assert!(a_day.count() < 300);
    }
}
