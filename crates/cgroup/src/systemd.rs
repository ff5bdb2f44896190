//! Scopes and slices of systemd's, where it makes the cgroups.
//!
//! A scope begins with a process and ends with its last one. But a container's cgroup is made, with its limits, before
//! its first process, and outlives it: what the kernel counted there is read after the end. So each scope has a process
//! that does nothing, the holder, from the beginning until the container is removed. It is in a cgroup of its own below
//! the scope's; the container's is beside it, and all that wharf does with a cgroup it does there. The scope is
//! delegated, so systemd leaves alone what is below.
//!
//! systemd is asked to make a scope, to end a slice, and to change what a scope itself has ([`properties`]). A scope
//! ends without being asked for: its holder is killed, and systemd removes what is empty.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use cgroups_rs::systemd::Property;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use wharf_sys::launch::Launcher;
use wharf_sys::process::{self, Reap};
use wharf_types::lock::lock;

use crate::create;
use crate::detect::{Cgroups, Controller, Hierarchy, Kind};
use crate::error::Error;
use crate::files;
use crate::limits::Limits;
use crate::path::CgroupPath;
use crate::tree::{Deadline, TICK, Tree, wait};
use bus::Manager;
use units::{Scope, Slice};

pub(crate) mod bus;
mod message;
mod properties;
pub(crate) mod units;

/// What the supervisor's program is called when it is a holder.
const HOLDER: &std::ffi::CStr = c"wharf-holder";
/// What shows that systemd is the machine's init: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// How long systemd may take to carry out what it has accepted.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a scope may take to vanish before systemd is told to stop it.
const VANISHING: Duration = Duration::from_secs(5);

/// systemd's manager, and the holders of this process's scopes.
#[derive(Debug)]
pub(crate) struct Systemd {
    manager: Manager,
    launcher: Launcher,
    /// The holders that are children of this process, by the names of their scopes.
    holders: Mutex<HashMap<String, OwnedFd>>,
}

impl Systemd {
    /// Prepares to have systemd make cgroups, with a program whose processes can be holders.
    ///
    /// # Errors
    /// [`Error::NoSystemd`], [`Error::Holder`].
    pub(crate) fn new(program: &Path) -> Result<Self, Error> {
        if !Path::new(BOOTED).is_dir() {
            return Err(Error::NoSystemd);
        }
        let bytes = std::fs::read(program).map_err(Error::io("read", program))?;
        let launcher = wharf_sys::fs::detached_program("wharf-holder", &bytes).and_then(Launcher::new);
        let launcher = launcher.map_err(|source| Error::Holder { source })?;
        Ok(Self { manager: Manager::default(), launcher, holders: Mutex::default() })
    }

    /// Makes a scope; one that is there is used as it is.
    pub(crate) fn make(&self, cgroups: &Cgroups, scope: &Scope) -> Result<(), Error> {
        let deadline = Deadline::after(PATIENCE);
        loop {
            if is_held(cgroups, scope)? {
                return Ok(());
            }
            match self.begin(cgroups, scope) {
                // Somebody else makes it at this moment, or an earlier one is about to vanish.
                Err(Error::Systemd { source, .. })
                    if source.is_unit_there() && !deadline.left().is_zero() =>
                {
                    wait(&mut [], TICK)?;
                }
                other => return other,
            }
        }
    }

    fn begin(&self, cgroups: &Cgroups, scope: &Scope) -> Result<(), Error> {
        let (holder, confirm) = self.start_holder()?;
        match self.settle(cgroups, scope, &holder) {
            Ok(()) => {
                // Until it has read this, it ends with this process.
                nix::unistd::write(&confirm, b"1").map_err(|errno| holder_failed(errno.into()))?;
                let mut holders = lock(&self.holders);
                // systemd may have ended scopes with their slice, and nobody comes here for those.
                holders.retain(|_scope, holder| !has_ended(holder));
                holders.insert(scope.name().to_owned(), holder);
                Ok(())
            }
            Err(error) => {
                end_child(&holder);
                Err(error)
            }
        }
    }

    /// Starts a process that ends unless something is written to the pipe.
    fn start_holder(&self) -> Result<(OwnedFd, OwnedFd), Error> {
        let (input, confirm) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| holder_failed(errno.into()))?;
        let null =
            wharf_sys::fs::open("/dev/null", OFlag::O_WRONLY).map_err(|source| Error::Holder { source })?;
        let streams = [input.as_fd(), null.as_fd(), null.as_fd()];
        let started = self.launcher.start(&[HOLDER.to_owned()], streams, None);
        Ok((started.map_err(|source| Error::Holder { source })?, confirm))
    }

    /// Has systemd make the scope around the holder, and moves that to its place.
    fn settle(&self, cgroups: &Cgroups, scope: &Scope, holder: &OwnedFd) -> Result<(), Error> {
        let pid = process::child_number(holder.as_fd()).map_err(|source| Error::Holder { source })?;
        let devices = cgroups.home(Controller::Devices).map(|home| home.kind);
        let properties = properties::of_scope(scope, pid.cast_unsigned(), devices);
        let others: Vec<(&str, Vec<Property<'_>>)> = Vec::new();
        self.ask("make", scope.name(), "StartTransientUnit", &(scope.name(), "replace", properties, others))?;
        await_moved(cgroups, scope, pid)?;
        let place = scope.holder()?;
        for hierarchy in cgroups.hierarchies() {
            match hierarchy.kind {
                Kind::V1 => create::create(hierarchy, &place)?,
                // As long as the holder is in the scope itself, no controller must be passed on: some would be, and
                // then the kernel takes the cgroups below for those of threads.
                Kind::Unified => drop(create::make(&place.under(&hierarchy.mount))?),
            }
            files::write(&place.under(&hierarchy.mount).join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    /// Tells systemd what a scope itself must have of these limits.
    pub(crate) fn limit(&self, cgroups: &Cgroups, scope: &Scope, limits: &Limits) -> Result<(), Error> {
        let home = |controller: Controller| cgroups.home(controller).map(|home| home.kind);
        let properties = properties::of_limits(limits, &home)?;
        if properties.is_empty() {
            return Ok(());
        }
        // They end with the scope, as it does with the machine.
        self.ask("limit", scope.name(), "SetUnitProperties", &(scope.name(), true, properties))
    }

    /// Ends a unit that still exists, with what is in it.
    fn stop(&self, name: &str) -> Result<(), Error> {
        match self.ask("stop", name, "StopUnit", &(name, "replace")) {
            Err(Error::Systemd { source, .. }) if source.is_no_unit() => Ok(()),
            other => other,
        }
    }

    fn ask<B>(&self, action: &'static str, unit: &str, method: &'static str, body: &B) -> Result<(), Error>
    where
        B: serde::Serialize + zvariant::DynamicType,
    {
        let asked = self.manager.call(method, body);
        asked.map_err(|source| Error::Systemd { action, unit: unit.to_owned(), source })
    }

    fn take_holder(&self, scope: &Scope) -> Option<OwnedFd> {
        lock(&self.holders).remove(scope.name())
    }
}

/// Ends a scope whose payload has been removed; one that is gone is fine.
pub(crate) fn end_scope(cgroups: &Cgroups, scope: &Scope, deadline: &Deadline) -> Result<(), Error> {
    let systemd = cgroups.systemd();
    if let Some(holder) = systemd.and_then(|systemd| systemd.take_holder(scope)) {
        end_child(&holder);
    }
    // An earlier daemon's.
    tree(cgroups.tracker(), &scope.holder()?).kill(deadline.left())?;
    // Without v2, systemd watches a hierarchy of its own, which says nothing about the others.
    if let Some(unified) = cgroups.unified() {
        let own = scope.path().under(&unified.mount);
        if !vanishes(&own, VANISHING.min(deadline.left()))?
            && let Some(systemd) = systemd
        {
            note(scope.name(), systemd.stop(scope.name()));
            vanishes(&own, VANISHING.min(deadline.left()))?;
        }
    }
    remove(cgroups, scope.path(), deadline)
}

/// Ends a slice with what is in it; one that is gone is fine.
pub(crate) fn end_slice(
    cgroups: &Cgroups,
    slice: &Slice,
    path: &CgroupPath,
    deadline: &Deadline,
) -> Result<(), Error> {
    let Some(systemd) = cgroups.systemd() else { return Ok(()) };
    systemd.stop(slice.name())?;
    if let Some(unified) = cgroups.unified() {
        vanishes(&path.under(&unified.mount), deadline.left())?;
    }
    remove(cgroups, path, deadline)
}

/// Whether a scope is there, with its holder in its place.
fn is_held(cgroups: &Cgroups, scope: &Scope) -> Result<bool, Error> {
    tree(cgroups.tracker(), &scope.holder()?).is_populated()
}

/// Waits until systemd has put a process into a scope, where it tracks them.
fn await_moved(cgroups: &Cgroups, scope: &Scope, pid: i32) -> Result<(), Error> {
    let deadline = Deadline::after(PATIENCE);
    let hierarchy = if cgroups.unified().is_some() { "0::" } else { ":name=systemd:" };
    let file = format!("/proc/{pid}/cgroup");
    loop {
        if is_in(&files::read(Path::new(&file))?, hierarchy, scope.path()) {
            return Ok(());
        }
        if deadline.left().is_zero() {
            return Err(deadline.late(Path::new(scope.path().as_str()), "made by systemd"));
        }
        wait(&mut [], TICK)?;
    }
}

/// Whether a process is in a cgroup, from its list of cgroups.
fn is_in(list: &str, hierarchy: &str, path: &CgroupPath) -> bool {
    list.lines().any(|line| {
        line.rsplit_once(hierarchy).is_some_and(|(before, own)| {
            own == path.as_str() && before.bytes().all(|byte| byte.is_ascii_digit())
        })
    })
}

/// Whether a directory is gone, or goes within this time.
fn vanishes(directory: &Path, patience: Duration) -> Result<bool, Error> {
    let deadline = Deadline::after(patience);
    while directory.exists() {
        if deadline.left().is_zero() {
            return Ok(false);
        }
        wait(&mut [], TICK)?;
    }
    Ok(true)
}

/// Removes what systemd has left: it knows only some hierarchies of v1, and may not respond.
fn remove(cgroups: &Cgroups, path: &CgroupPath, deadline: &Deadline) -> Result<(), Error> {
    let own = tree(cgroups.tracker(), path);
    own.thaw_all()?;
    own.kill(deadline.left())?;
    cgroups.tracker_first().try_for_each(|hierarchy| {
        let evict = |pid| cgroups.bring_home(pid, hierarchy);
        tree(hierarchy, path).remove(deadline, &evict, &mut 0)
    })
}

fn tree(hierarchy: &Hierarchy, path: &CgroupPath) -> Tree {
    Tree { kind: hierarchy.kind, directory: path.under(&hierarchy.mount) }
}

/// Kills a child, and reaps it.
fn end_child(child: &OwnedFd) {
    let killed = process::kill(child.as_fd());
    let waited = wait(&mut [PollFd::new(child.as_fd(), PollFlags::POLLIN)], VANISHING);
    let reaped = process::wait(child.as_fd(), Reap::Remove);
    if let (Err(error), _, _) | (_, _, Err(error)) = (killed, waited, reaped) {
        tracing::debug!(?error, "the holder of a scope was gone");
    }
}

/// Whether a child has exited; if so, nothing is left of it.
fn has_ended(child: &OwnedFd) -> bool {
    !matches!(process::wait(child.as_fd(), Reap::Remove), Ok(None))
}

fn note(unit: &str, stopped: Result<(), Error>) {
    if let Err(error) = stopped {
        let error = wharf_types::chain(&error);
        tracing::warn!(unit, error, "systemd may keep a unit of which nothing is left");
    }
}

fn holder_failed(source: std::io::Error) -> Error {
    Error::Io { action: "confirm", path: "the holder of a scope".into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_has_ended_is_left_nowhere() {
        #[expect(clippy::disallowed_methods, reason = "a test's own process")]
        let mut cat = std::process::Command::new("cat");
        let mut child = cat.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = process::open_pidfd(child.id().cast_signed()).unwrap();
        assert!(!has_ended(&process));
        drop(child.stdin.take());
        wait(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], VANISHING).unwrap();
        assert!(has_ended(&process));
        assert!(child.wait().is_err(), "it has been reaped");
    }
}
