//! Writing limits: plainly at creation, as a transaction later.
//!
//! A new cgroup that takes only some of its limits is removed by the caller. A cgroup in use is changed whole or not at
//! all: the old values are read first and written back if one of the new ones is refused.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use wharf_sys::bpf::{self, DeviceProgram};

use crate::delegate;
use crate::detect::{Controller, Kind};
use crate::device::DeviceRule;
use crate::device::list::{DeviceList, ListWrite};
use crate::device::program::program;
use crate::error::{Error, errno};
use crate::files;
use crate::group::Cgroup;
use crate::limits::{Io, Limits};
use crate::plan::io::Scheduler;
use crate::plan::{Missing, Place, Present, Step, Write, beyond_defaults, plan, twice};

impl Cgroup {
    /// Sets limits on a new cgroup. If it is enclosed, this makes the one inside, with the same limits. After an error
    /// some of them are set: remove the cgroup.
    ///
    /// # Errors
    /// [`Error::InvalidLimit`], [`Error::NoController`], or [`Error::Write`] with the value that the kernel refused.
    pub fn apply(&self, limits: &Limits) -> Result<(), Error> {
        let devices = self.plan_devices(limits, None)?;
        // Nobody has limited its memory yet, so that need not be read.
        let steps = self.plan(&beyond_defaults(limits), None)?;
        self.limit_scope(&beyond_defaults(limits))?;
        let inside = self.inside();
        if let (Some(_), Some(directory)) = (&inside, self.unified()) {
            // Who could lift its limits could make cgroups, too. One of the limits may be a lower bound.
            delegate::bound(&directory, 1)?;
        }
        match &inside {
            None => self.run_all(&steps)?,
            Some(_) => self.run_all(&twice::at(Place::Above, steps.clone()))?,
        }
        match devices {
            // Whatever its list is, its parent's or everything, what it allows is taken back first.
            Some(Devices::List(directories, wanted)) => {
                let writes = wanted.writes_from(&DeviceList::everything());
                directories.iter().try_for_each(|directory| write_list(directory, &writes))?;
            }
            Some(Devices::Program(directory, program)) => set_program(&directory, &program)?,
            None => {}
        }
        let Some(inside) = inside else { return Ok(()) };
        // It inherits the device list of the one above; on v2 the program above applies to it as well.
        self.cgroups().create(inside.path())?;
        self.run_all(&twice::at(Place::Inside, steps))
    }

    /// Changes limits of a cgroup in use: all of them or none. Unset limits stay as they are.
    ///
    /// # Errors
    /// Those of [`Cgroup::apply`]. The old values are then restored, except one that the kernel no longer accepts (a
    /// memory limit below the present usage).
    pub fn update(&self, limits: &Limits) -> Result<(), Error> {
        let inside = self.inside();
        let devices = self.plan_devices(limits, inside.as_ref())?;
        // Read only where one of the two limits is given, and the other follows from it.
        let one_follows = limits.memory_swap_limit_bytes.unwrap_or_default() == 0;
        let memory = if one_follows { self.memory_of_v1()? } else { None };
        let steps = match inside {
            None => self.plan(limits, memory)?,
            Some(_) => self.plan_twice(limits, memory)?,
        };
        let mut undo = Vec::new();
        let mut result = Ok(());
        for step in steps {
            // The old values are read before the step runs: when a pair fails, one half may have been written.
            result = self.remember(&step).and_then(|old| {
                undo.push(old);
                self.past_the_container(&step, || self.run(&step))
            });
            if result.is_err() {
                break;
            }
        }
        // systemd takes all of it or nothing.
        result = result.and_then(|()| self.limit_scope(limits));
        // Last, because both forms of device rules undo themselves.
        if let (Ok(()), Some(devices)) = (&result, devices) {
            result = devices.set();
        }
        if result.is_err() {
            undo.into_iter().rev().for_each(|old| self.restore(&old));
        }
        result
    }

    /// Sets what has its effect at the scope around it, if systemd makes those.
    fn limit_scope(&self, limits: &Limits) -> Result<(), Error> {
        match (self.cgroups().systemd(), self.scope()) {
            (Some(systemd), Some(scope)) => systemd.limit(self.cgroups(), &scope, limits),
            _ => Ok(()),
        }
    }

    fn plan(&self, limits: &Limits, memory: Option<(i64, i64)>) -> Result<Vec<Step>, Error> {
        let home = |controller| self.home(controller).map(|(kind, _)| kind);
        let cpu_max = match self.home(Controller::Cpu) {
            Some((Kind::Unified, directory))
                if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() =>
            {
                files::read_if_there(&directory.join("cpu.max"))?
            }
            _ => None,
        };
        let unified = self.unified().is_some();
        let scheduler = if limits.io == Io::default() { Scheduler::Another } else { self.scheduler() };
        plan(limits, Present { home: &home, cpu_max: cpu_max.as_deref(), memory, unified, scheduler })
    }

    /// Plans a change of an enclosed cgroup. What is decided by present values follows from those above: the container
    /// may have changed those inside.
    fn plan_twice(&self, limits: &Limits, memory: Option<(i64, i64)>) -> Result<Vec<Step>, Error> {
        let mut twice = Vec::new();
        for step in self.plan(&self.with_whole_quota(limits)?, memory)? {
            let cpuset = match &step {
                Step::One(write) if write.controller == Some(Controller::Cpuset) => {
                    self.held_by_v1(Controller::Cpuset, &write.file)?
                }
                _ => None,
            };
            twice.extend(twice::change(step, cpuset.as_deref()));
        }
        Ok(twice)
    }

    /// The limits with quota and period if v1 has one of them to change: inside, the other one may be the container's.
    fn with_whole_quota(&self, limits: &Limits) -> Result<Limits, Error> {
        let quota = limits.cpu_quota_us.filter(|quota| *quota != 0);
        let period = limits.cpu_period_us.filter(|period| *period != 0);
        let held = |name| Ok::<_, Error>(self.held_by_v1(Controller::Cpu, name)?.unwrap_or_default());
        Ok(match (quota, period) {
            (Some(_), None) => {
                Limits { cpu_period_us: held("cpu.cfs_period_us")?.trim().parse().ok(), ..limits.clone() }
            }
            (None, Some(_)) => {
                Limits { cpu_quota_us: held("cpu.cfs_quota_us")?.trim().parse().ok(), ..limits.clone() }
            }
            _ => limits.clone(),
        })
    }

    /// What a file has if its controller is in a v1 hierarchy.
    fn held_by_v1(&self, controller: Controller, file: &str) -> Result<Option<String>, Error> {
        match self.home(controller) {
            Some((Kind::V1, directory)) => files::read_if_there(&directory.join(file)),
            _ => Ok(None),
        }
    }

    fn scheduler(&self) -> Scheduler {
        let has_bfq = self.home(Controller::Io).is_some_and(|(kind, directory)| match kind {
            Kind::V1 => directory.join("blkio.bfq.weight").exists(),
            Kind::Unified => directory.join("io.bfq.weight").exists(),
        });
        if has_bfq { Scheduler::Bfq } else { Scheduler::Another }
    }

    fn memory_of_v1(&self) -> Result<Option<(i64, i64)>, Error> {
        let held = |name| {
            let text = self.held_by_v1(Controller::Memory, name)?;
            Ok::<_, Error>(text.and_then(|text| text.trim().parse().ok()))
        };
        let both: Option<i64> = held("memory.memsw.limit_in_bytes")?;
        Ok(held("memory.limit_in_bytes")?.zip(both))
    }

    fn run_all(&self, steps: &[Step]) -> Result<(), Error> {
        steps.iter().try_for_each(|step| self.run(step))
    }

    fn run(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::One(only) => self.write(only),
            Step::Pair(first, second) => match self.write(first) {
                Ok(()) => self.write(second),
                // The other order is for limits that the present ones forbid. If it fails at once, that was not why.
                Err(refused) => match self.write(second) {
                    Ok(()) => self.write(first),
                    Err(_also) => Err(refused),
                },
            },
        }
    }

    fn write(&self, write: &Write) -> Result<(), Error> {
        match files::write(&self.file(write)?, &write.value) {
            Err(Error::Write { source, .. })
                if write.missing == Missing::Skip && errno(&source) == Some(Errno::ENOENT) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn file(&self, write: &Write) -> Result<PathBuf, Error> {
        let inside = if write.place == Place::Inside { self.inside() } else { None };
        let at = inside.as_ref().unwrap_or(self);
        let directory = match write.controller {
            Some(controller) => at.home(controller).map(|(_, directory)| directory),
            None => at.unified(),
        };
        directory.map(|directory| directory.join(&write.file)).ok_or(Error::NoHierarchy)
    }

    /// The present content of a step's files. A file that cannot be read (a write-only trigger) has nothing to restore.
    fn remember(&self, step: &Step) -> Result<Vec<Old>, Error> {
        let writes = match step {
            Step::One(only) => vec![only],
            Step::Pair(first, second) => vec![first, second],
        };
        let mut old = Vec::new();
        for write in writes {
            let file = self.file(write)?;
            match files::read_if_there(&file) {
                Err(Error::Io { source, .. }) if is_write_only(&source) => {}
                held => old.extend(held?.map(|held| {
                    let none = write.none.iter().map(String::as_str);
                    let value = none.chain([held.as_str()]).collect::<Vec<_>>().join("\n");
                    Old { file, write: Write { value, ..write.clone() } }
                })),
            }
        }
        Ok(old)
    }

    /// Restores old values, the last written first. If one of a pair is refused, the other is restored first.
    fn restore(&self, old: &[Old]) {
        let refused: Vec<&Old> = old.iter().rev().filter(|old| restore_file(old).is_err()).collect();
        for old in refused {
            let step = Step::One(old.write.clone());
            if let Err(error) = self.past_the_container(&step, || restore_file(old)) {
                tracing::warn!(?error, file = ?old.file, "old limit not restored");
            }
        }
    }

    /// Converts the rules to this node's form, before anything is written. On v1 a cgroup inside has a list of its own.
    fn plan_devices(&self, limits: &Limits, inside: Option<&Self>) -> Result<Option<Devices>, Error> {
        let Some(rules) = &limits.devices else { return Ok(None) };
        match (self.home(Controller::Devices), self.unified()) {
            (Some((_, directory)), _) => {
                let inside = inside.and_then(|inside| inside.home(Controller::Devices));
                let directories = [directory].into_iter().chain(inside.map(|(_, inside)| inside)).collect();
                Ok(Some(Devices::List(directories, DeviceList::of_rules(rules)?)))
            }
            (None, Some(directory)) => load(directory, rules).map(Some),
            (None, None) => {
                let limit = "devices".to_owned();
                Err(Error::NoController { limit, controller: Controller::Devices })
            }
        }
    }
}

/// Device rules in the kernel's form, with the directories that they are for, outermost first.
enum Devices {
    List(Vec<PathBuf>, DeviceList),
    Program(PathBuf, DeviceProgram),
}

impl Devices {
    fn set(&self) -> Result<(), Error> {
        match self {
            Self::List(directories, wanted) => set_lists(directories, wanted),
            Self::Program(directory, program) => set_program(directory, program),
        }
    }
}

/// A file's value before an update, as a write of it.
struct Old {
    file: PathBuf,
    write: Write,
}

fn is_write_only(source: &std::io::Error) -> bool {
    matches!(errno(source), Some(Errno::EACCES | Errno::EINVAL | Errno::EOPNOTSUPP))
}

/// Files with one line per device accept one line per write.
fn restore_file(Old { file, write: Write { value, .. } }: &Old) -> Result<(), Error> {
    if value.trim().is_empty() { files::write(file, "") } else { files::write_each(file, value.lines()) }
}

fn load(directory: PathBuf, rules: &[DeviceRule]) -> Result<Devices, Error> {
    match DeviceProgram::load(&program(rules)?) {
        Ok(program) => Ok(Devices::Program(directory, program)),
        Err(source) => Err(Error::DeviceFilter { path: directory, source }),
    }
}

/// What the outer list loses, the kernel takes from the inner one, too; what it is to get, the outer one must have.
fn set_lists(directories: &[PathBuf], wanted: &DeviceList) -> Result<(), Error> {
    let held = directories.iter().map(|directory| Ok((directory, read_list(directory)?)));
    let held: Vec<(&PathBuf, DeviceList)> = held.collect::<Result<_, Error>>()?;
    // From what each has by then.
    let change = |directory: &Path, wanted: &DeviceList| {
        write_list(directory, &wanted.writes_from(&read_list(directory)?))
    };
    let result = held.iter().try_for_each(|(directory, _)| change(directory, wanted));
    if result.is_err() {
        for (directory, before) in &held {
            if let Err(error) = change(directory, before) {
                tracing::warn!(?error, ?directory, "old device list not restored");
            }
        }
    }
    result
}

fn read_list(directory: &Path) -> Result<DeviceList, Error> {
    let file = directory.join("devices.list");
    let text = files::read(&file)?;
    DeviceList::parse(&text).ok_or(Error::Parse { file, text })
}

fn write_list(directory: &Path, writes: &[ListWrite]) -> Result<(), Error> {
    writes.chunk_by(|(name, _), (next, _)| name == next).try_for_each(|same| match same {
        [(name, _), ..] => {
            files::write_each(&directory.join(name), same.iter().map(|(_, value)| value.as_str()))
        }
        [] => Ok(()),
    })
}

/// Attaches the program in place of the present one. The cgroup belongs to wharf alone, so any other program attached
/// to it is left from an interrupted update.
pub(crate) fn set_program(directory: &Path, program: &DeviceProgram) -> Result<(), Error> {
    let cgroup = File::open(directory).map_err(Error::io("open", directory))?;
    replace(cgroup.as_fd(), program).map_err(|source| Error::DeviceFilter { path: directory.into(), source })
}

fn replace(cgroup: BorrowedFd<'_>, program: &DeviceProgram) -> wharf_sys::Result<()> {
    let attached = bpf::attached(cgroup)?;
    let held = attached.into_iter().map(DeviceProgram::open).collect::<wharf_sys::Result<Vec<_>>>()?;
    program.attach(cgroup, held.first())?;
    held.iter().skip(1).try_for_each(|leftover| leftover.detach(cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Access, DeviceType};

    #[test]
    fn a_device_list_that_cannot_be_read_changes_none() {
        let dir = tempfile::tempdir().unwrap();
        let [outer, inner] = ["outer", "inner"].map(|name| dir.path().join(name));
        for (directory, file, text) in [
            (&outer, "devices.list", "a *:* rwm\n"),
            (&outer, "devices.allow", ""),
            (&outer, "devices.deny", ""),
            (&inner, "devices.list", "what nobody understands\n"),
        ] {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join(file), text).unwrap();
        }
        let rules = [DeviceRule::allow(DeviceType::Char, Some(1), Some(3), Access::ALL)];
        let wanted = DeviceList::of_rules(&rules).unwrap();
        let failed = set_lists(&[outer.clone(), inner], &wanted).unwrap_err();
        assert!(matches!(failed, Error::Parse { .. }), "{failed:?}");
        let written =
            ["devices.allow", "devices.deny"].map(|file| std::fs::read_to_string(outer.join(file)).unwrap());
        assert_eq!(written, ["", ""]);
    }
}
