//! A cgroup and its descendants in one hierarchy: listing, killing and freezing its processes, and removing it.
//!
//! Every wait has a deadline and sleeps in poll(2): on `cgroup.events`, or on the pidfds of killed processes. v1 does
//! not notify anyone when a cgroup becomes empty or frozen, so there the wait checks every millisecond.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::deep;
use crate::detect::Kind;
use crate::error::{Error, errno};
use crate::files;
use crate::home::Stray;

/// The longest wait for killed processes before the cgroup is read again: others may have been forked.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The most pidfds held at a time while killing without `cgroup.kill`.
const DOOMED_MAX: usize = 256;
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// A deadline, and what it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    start: Instant,
    patience: Duration,
}

impl Deadline {
    pub(crate) fn after(patience: Duration) -> Self {
        Self { start: Instant::now(), patience }
    }

    pub(crate) fn left(&self) -> Duration {
        self.patience.saturating_sub(self.start.elapsed())
    }

    pub(crate) fn late(&self, path: &Path, awaited: &'static str) -> Error {
        Error::Late { path: path.into(), awaited, waited_ms: self.start.elapsed().as_millis() }
    }
}

/// A directory in one hierarchy and everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) kind: Kind,
    pub(crate) directory: PathBuf,
}

impl Tree {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The processes in the whole tree.
    pub(crate) fn pids(&self) -> Result<BTreeSet<i32>, Error> {
        let mut pids = BTreeSet::new();
        deep::each(&self.directory, |directory| {
            let file = directory.join("cgroup.procs");
            match gone_is_none(files::read_if_there(&file)) {
                Ok(text) => pids.extend(parse_pids(&file, &text.unwrap_or_default())?),
                // It is threaded: the one around it lists its processes.
                Err(Error::Io { source, .. }) if errno(&source) == Some(Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(pids)
    }

    pub(crate) fn is_populated(&self) -> Result<bool, Error> {
        if self.kind == Kind::V1 {
            return Ok(!self.pids()?.is_empty());
        }
        self.event("populated")
    }

    /// A flag in `cgroup.events`; false if the cgroup is gone.
    fn event(&self, key: &str) -> Result<bool, Error> {
        let file = self.file("cgroup.events");
        match gone_is_none(files::read_if_there(&file))? {
            None => Ok(false),
            Some(text) => match files::keyed(&text, key) {
                Some("0") => Ok(false),
                Some("1") => Ok(true),
                _ => Err(Error::Parse { file, text }),
            },
        }
    }

    /// Kills every process in the tree. With `cgroup.kill` this is one write, which no fork can escape. Without it, the
    /// tree is frozen and its processes are killed until none is left.
    pub(crate) fn kill(&self, patience: Duration) -> Result<(), Error> {
        match gone_is_none(files::write(&self.file("cgroup.kill"), "1").map(Some)) {
            Ok(Some(())) => return Ok(()),
            Ok(None) if !self.directory.exists() => return Ok(()),
            Ok(None) => {}
            Err(error) => return Err(error),
        }
        let deadline = Deadline::after(patience);
        while !self.kill_round(&deadline)? {
            if deadline.left().is_zero() {
                return Err(deadline.late(&self.directory, "empty"));
            }
        }
        Ok(())
    }

    /// One round of killing; returns whether nothing was left to kill.
    fn kill_round(&self, deadline: &Deadline) -> Result<bool, Error> {
        // Best effort: a frozen tree cannot fork while it is read, but the rounds come to an end without that, too.
        let freezer = self.freezer();
        if let Some((file, value, _)) = &freezer {
            note(files::write(file, value));
        }
        let doomed = self.pids().and_then(|pids| self.doom(pids));
        if let Some((file, _, value)) = &freezer {
            // v1 holds back even SIGKILL from a frozen task.
            note(files::write(file, value));
        }
        let doomed = doomed?;
        let empty = doomed.is_empty();
        let until = Instant::now() + deadline.left().min(LOOK_AGAIN);
        for process in doomed {
            let mut ready = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            wait(&mut ready, until.saturating_duration_since(Instant::now()))?;
        }
        Ok(empty)
    }

    /// Sends SIGKILL to at most [`DOOMED_MAX`] of these processes, as far as they are in the tree, and returns those
    /// that had not exited yet.
    fn doom(&self, pids: BTreeSet<i32>) -> Result<Vec<OwnedFd>, Error> {
        let mut pinned = Vec::new();
        for pid in pids.into_iter().take(DOOMED_MAX) {
            match wharf_sys::process::open_pidfd(pid) {
                Ok(process) => pinned.push((pid, process)),
                Err(error) if error.errno == Errno::ESRCH => {}
                Err(source) => return Err(Error::Kill { pid, source }),
            }
        }
        // Between the reading and the pinning, a pid may have been given to another process. Now that the descriptors
        // pin the processes, reading the cgroup again shows which of them belong to it.
        let members = self.pids()?;
        let mut doomed = Vec::new();
        for (pid, process) in pinned.into_iter().filter(|(pid, _)| members.contains(pid)) {
            match wharf_sys::process::kill(process.as_fd()) {
                Err(source) if source.errno != Errno::ESRCH => return Err(Error::Kill { pid, source }),
                _ => doomed.push(process),
            }
        }
        Ok(doomed)
    }

    /// The freezer's file, and its values for frozen and thawed; `None` if this hierarchy has no freezer.
    fn freezer(&self) -> Option<(PathBuf, &'static str, &'static str)> {
        let (name, frozen, thawed) = match self.kind {
            Kind::Unified => ("cgroup.freeze", "1", "0"),
            Kind::V1 => ("freezer.state", "FROZEN", "THAWED"),
        };
        let file = self.file(name);
        file.exists().then_some((file, frozen, thawed))
    }

    pub(crate) fn freeze(&self, patience: Duration) -> Result<(), Error> {
        let Some((file, frozen, thawed)) = self.freezer() else { return Err(self.no_freezer()) };
        let deadline = Deadline::after(patience);
        files::write(&file, frozen)?;
        while !self.is_frozen()? {
            if deadline.left().is_zero() {
                note(files::write(&file, thawed));
                return Err(deadline.late(&self.directory, "frozen"));
            }
            if self.kind == Kind::V1 {
                // Writing again freezes a task that was forked in the meantime.
                files::write(&file, frozen)?;
            }
            self.await_event(deadline.left(), |tree| tree.is_frozen())?;
        }
        Ok(())
    }

    pub(crate) fn thaw(&self, patience: Duration) -> Result<(), Error> {
        let Some((file, _, thawed)) = self.freezer() else { return Err(self.no_freezer()) };
        let deadline = Deadline::after(patience);
        files::write(&file, thawed)?;
        while self.is_frozen()? {
            if deadline.left().is_zero() {
                return Err(deadline.late(&self.directory, "thawed"));
            }
            self.await_event(deadline.left(), |tree| tree.is_frozen().map(|frozen| !frozen))?;
        }
        Ok(())
    }

    /// Thaws it and all below it, if v1's freezer is in this hierarchy.
    pub(crate) fn thaw_all(&self) -> Result<(), Error> {
        if self.kind == Kind::Unified || !self.file("freezer.state").exists() {
            return Ok(());
        }
        deep::each(&self.directory, |at| files::write_if_there(&at.join("freezer.state"), "THAWED"))
    }

    fn no_freezer(&self) -> Error {
        Error::NoController { limit: "freeze".to_owned(), controller: crate::Controller::Freezer }
    }

    fn is_frozen(&self) -> Result<bool, Error> {
        match self.kind {
            Kind::Unified => self.event("frozen"),
            Kind::V1 => Ok(files::read(&self.file("freezer.state"))?.trim() == "FROZEN"),
        }
    }

    /// Waits until the tree has no process.
    pub(crate) fn await_empty(&self, deadline: &Deadline) -> Result<(), Error> {
        while self.is_populated()? {
            if deadline.left().is_zero() {
                return Err(deadline.late(&self.directory, "empty"));
            }
            self.await_event(deadline.left(), |tree| tree.is_populated().map(|populated| !populated))?;
        }
        Ok(())
    }

    /// Waits for the next change of `cgroup.events`, or for one tick on v1; not at all if `done` holds once the file is
    /// watched.
    fn await_event(
        &self,
        patience: Duration,
        done: impl Fn(&Self) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if self.kind == Kind::V1 {
            return wait(&mut [], patience.min(TICK));
        }
        let path = self.file("cgroup.events");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(source) if is_gone(&source) => return Ok(()),
            Err(source) => return Err(Error::Io { action: "open", path, source }),
        };
        // Reading through this descriptor arms it: poll reports changes made afterwards.
        let mut armed = String::new();
        match io::Read::read_to_string(&mut &file, &mut armed) {
            Err(source) if is_gone(&source) => return Ok(()),
            Err(source) => return Err(Error::Io { action: "read", path, source }),
            Ok(_) if done(self)? => return Ok(()),
            Ok(_) => {}
        }
        wait(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], patience)
    }

    /// Removes the tree from the bottom up. A missing tree is success. `evict` may move a process that is in it
    /// elsewhere; one without a home is killed, and one that stays keeps the tree. Adds to `removed` how many cgroups
    /// there were below its top.
    pub(crate) fn remove(
        &self,
        deadline: &Deadline,
        evict: &dyn Fn(i32) -> Stray,
        removed: &mut usize,
    ) -> Result<(), Error> {
        loop {
            match self.remove_once(deadline, removed) {
                Ok(()) => return Ok(()),
                Err(Error::Io { source, .. }) if errno(&source) == Some(Errno::EBUSY) => {}
                Err(error) => return Err(error),
            }
            if deadline.left().is_zero() {
                return Err(deadline.late(&self.directory, "removed"));
            }
            if self.is_populated()? {
                let mut homeless = self.pids()?;
                homeless.retain(|pid| evict(*pid) == Stray::Homeless);
                if !homeless.is_empty() {
                    note(self.thaw_all());
                    self.doom(homeless)?;
                }
                self.await_event(deadline.left(), |tree| tree.is_populated().map(|populated| !populated))?;
            } else {
                // Empty but busy: the kernel still holds references, and does not say when it drops them.
                wait(&mut [], deadline.left().min(TICK))?;
            }
        }
    }

    fn remove_once(&self, deadline: &Deadline, removed: &mut usize) -> Result<(), Error> {
        // Most trees have no children left, so one call is enough.
        if remove_directory(&self.directory).is_ok() {
            return Ok(());
        }
        let go_on = || match deadline.left().is_zero() {
            true => Err(deadline.late(&self.directory, "removed")),
            false => Ok(()),
        };
        deep::clear(&self.directory, go_on, removed)?;
        remove_directory(&self.directory)
    }
}

fn remove_directory(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir(directory) {
        Err(source) if !is_gone(&source) => {
            Err(Error::Io { action: "remove", path: directory.into(), source })
        }
        _ => Ok(()),
    }
}

/// The pids in a `cgroup.procs`. The kernel shows 0 for a process outside the reader's PID namespace, and kill(0) would
/// signal the reader's own process group.
fn parse_pids(file: &Path, text: &str) -> Result<Vec<i32>, Error> {
    let parse = |line: &str| match line.parse::<i32>() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(Error::Parse { file: file.into(), text: line.to_owned() }),
    };
    text.lines().map(parse).collect()
}

/// ENODEV is the error of an open file, or of one that is being opened, whose cgroup has been removed.
pub(crate) fn is_gone(source: &io::Error) -> bool {
    matches!(errno(source), Some(Errno::ENOENT | Errno::ENODEV))
}

fn gone_is_none<T>(result: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(Error::Io { source, .. } | Error::Write { source, .. }) if is_gone(&source) => Ok(None),
        other => other,
    }
}

/// Waits for one of the descriptors, for at most `patience`.
pub(crate) fn wait(descriptors: &mut [PollFd<'_>], patience: Duration) -> Result<(), Error> {
    // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
    let whole = patience.as_micros().div_ceil(1000);
    let timeout = PollTimeout::try_from(whole).unwrap_or(PollTimeout::MAX);
    match poll(descriptors, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => {
            Err(Error::Io { action: "poll", path: PathBuf::from("cgroup.events"), source: errno.into() })
        }
    }
}

/// Logs an error that is not worth failing for.
pub(crate) fn note(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::debug!(?error, "best effort write failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_that_cannot_be_read_is_an_error() {
        let file = Path::new("cgroup.procs");
        assert_eq!(parse_pids(file, "1\n42\n").unwrap(), [1, 42]);
        assert_eq!(parse_pids(file, "").unwrap(), Vec::<i32>::new());
        for text in ["0\n", "-1\n", "1\nx\n", "\n", "99999999999\n"] {
            assert!(parse_pids(file, text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_gone_is_empty_dead_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        for kind in [Kind::V1, Kind::Unified] {
            let tree = Tree { kind, directory: directory.path().join("gone") };
            assert!(!tree.is_populated().unwrap());
            assert!(tree.pids().unwrap().is_empty());
            tree.kill(Duration::ZERO).unwrap();
            tree.remove(&Deadline::after(Duration::ZERO), &|_pid| Stray::Settled, &mut 0).unwrap();
            assert!(tree.freeze(Duration::ZERO).is_err());
            assert!(tree.thaw(Duration::ZERO).is_err());
        }
    }
}
