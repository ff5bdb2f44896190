//! What an enclosed container has made in the way of a change of its limits.
//!
//! It may change what its own cgroup has, and make others below it. Their limits hold beside those above, but the
//! kernel checks some of them against each other, and then refuses what is written above. So whatever of the
//! container's is in the way is changed first: it is the container's to change again, within what holds.

use std::cell::Cell;
use std::io::ErrorKind;
use std::path::Path;

use nix::errno::Errno;

use crate::deep;
use crate::detect::{Controller, Kind};
use crate::error::{Error, errno};
use crate::files;
use crate::group::Cgroup;
use crate::plan::{Place, Step, Write};

/// The most cgroups that are gone through. On v2, a container can make no more.
const COUNT_LIMIT: usize = 4096;

impl Cgroup {
    /// Does something to a limit. If the kernel refuses that because of what the container has made, that is changed,
    /// and it is done again.
    pub(crate) fn past_the_container(
        &self,
        step: &Step,
        act: impl Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let refused = match act() {
            Err(error) if is_in_the_way(&error) => error,
            done => return done,
        };
        match self.make_way(step) {
            Ok(Way::Made) => act(),
            Ok(Way::Clear) => Err(refused),
            Err(error) => {
                tracing::warn!(?error, "the limits of cgroups that a container has made cannot be changed");
                Err(refused)
            }
        }
    }

    fn make_way(&self, step: &Step) -> Result<Way, Error> {
        let (Some(inside), Step::One(write) | Step::Pair(_, write)) = (self.inside(), step) else {
            return Ok(Way::Clear);
        };
        let Some((kind, directory)) = write.controller.and_then(|controller| inside.home(controller)) else {
            return Ok(Way::Clear);
        };
        match (write.file.as_str(), kind, write.place) {
            // An idle cgroup takes no shares.
            ("cpu.shares" | "cpu.weight", _, Place::Inside) => {
                files::write_if_there(&directory.join("cpu.idle"), "0")?
            }
            // A quota must not be less than the burst, and on v1 not less than that of a cgroup below.
            ("cpu.max", _, Place::Inside) => files::write_if_there(&directory.join("cpu.max.burst"), "0")?,
            ("cpu.cfs_quota_us" | "cpu.cfs_period_us", Kind::V1, place) => {
                if place == Place::Inside {
                    files::write_if_there(&directory.join("cpu.cfs_burst_us"), "0")?;
                }
                no_quotas(&directory)?;
            }
            ("cpuset.cpus" | "cpuset.mems", Kind::V1, _) => {
                let Some((_, above)) = self.home(Controller::Cpuset) else { return Ok(Way::Clear) };
                return exchange(&directory, &above.join(&write.file), write);
            }
            _ => return Ok(Way::Clear),
        }
        Ok(Way::Made)
    }
}

/// Whether there was anything that could be in the way.
enum Way {
    Clear,
    Made,
}

fn is_in_the_way(error: &Error) -> bool {
    matches!(error, Error::Write { source, .. }
        if matches!(errno(source), Some(Errno::EINVAL | Errno::EBUSY)))
}

/// Without a quota, a cgroup has that of the one above it. Each write has the kernel go through all cgroups.
fn no_quotas(inside: &Path) -> Result<(), Error> {
    let count = Count::default();
    deep::each(inside, |directory| {
        count.one_more(inside)?;
        let file = directory.join("cpu.cfs_quota_us");
        match files::read_if_there(&file)? {
            Some(quota) if quota.trim() != "-1" => files::write_if_there(&file, "-1"),
            _ => Ok(()),
        }
    })
}

/// Gives all that is below the one above what that has, from the top down, and then only what is new, from the bottom
/// up: a cpuset must have everything that those below it have.
fn exchange(inside: &Path, above: &Path, new: &Write) -> Result<Way, Error> {
    let both = format!("{},{}", files::read(above)?.trim(), new.value);
    // It is the value itself that is refused.
    if files::write(above, &both).is_err() {
        return Ok(Way::Clear);
    }
    let count = Count::default();
    let give = |directory: &Path, value: &str| {
        count.one_more(inside)?;
        let file = directory.join(&new.file);
        // One that has none takes no process, and is in nobody's way.
        match files::read_if_there(&file)? {
            Some(has) if !has.trim().is_empty() => files::write_if_there(&file, value),
            _ => Ok(()),
        }
    };
    deep::each(inside, |directory| give(directory, &both))?;
    count.again();
    deep::each_after_those_below(inside, |directory| give(directory, &new.value))?;
    Ok(Way::Made)
}

#[derive(Default)]
struct Count(Cell<usize>);

impl Count {
    fn again(&self) {
        self.0.set(0);
    }

    fn one_more(&self, top: &Path) -> Result<(), Error> {
        self.0.set(self.0.get() + 1);
        if self.0.get() <= COUNT_LIMIT {
            return Ok(());
        }
        let source = std::io::Error::new(ErrorKind::QuotaExceeded, "the container has made too many cgroups");
        Err(Error::Io { action: "change everything below", path: top.into(), source })
    }
}
