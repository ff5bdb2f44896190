//! Giving up rights: limits, user, capabilities, filter. Rights only shrink here.
//!
//! The filter is loaded last, except for the final capabilities: it may refuse the earlier steps, and loading it takes
//! a right that the program does not have. If others will see the program's process, that process has no more than the
//! program's rights from its first moment: the filter is loaded before it is created, if that is possible.

use nix::sys::stat::Mode;
use wharf_sys::capabilities::{self, Capabilities};
use wharf_sys::clone::Child;
use wharf_sys::error::Named as _;
use wharf_sys::{keyring, limits, open_files, process, scheduling, seccomp, signals};
use wharf_types::{OwnerId, capability};

use crate::birth::Inside;
use crate::error::{Error, Stage};
use crate::identity::Identity;
use crate::plan::{Limit, Process, Traits};
use crate::program::Runner;

/// The filter, and the program's final capabilities.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seal<'a> {
    pub(crate) filter: &'a [u8],
    pub(crate) flags: u32,
    /// Set after the filter is loaded. With no_new_privs they are set before, because loading it then takes no right.
    pub(crate) sets: Option<Capabilities>,
}

impl<'a> Seal<'a> {
    pub(crate) fn of(Runner { process, identity, .. }: Runner<'a>) -> Self {
        let sets = effective_for(&process.capabilities, identity.uid);
        let sets = (!process.no_new_privileges).then_some(sets);
        Self { filter: &process.seccomp, flags: process.seccomp_flags, sets }
    }

    fn apply(&self) -> Result<(), Error> {
        if !self.filter.is_empty() {
            seccomp::load(self.filter, self.flags).stage("loading the seccomp filter")?;
        }
        self.sets.as_ref().map_or(Ok(()), set_capabilities)
    }
}

/// Proof that this process has the user and the rights of its program, plus what it takes to load the filter.
#[derive(Debug)]
pub(crate) struct Shed<'a> {
    /// The seal for this process to apply; `None` if it is in the script.
    seal: Option<Seal<'a>>,
}

impl Shed<'_> {
    /// Loads the filter and drops the right to load it, if this process is to do so.
    pub(crate) fn seal(self) -> Result<(), Error> {
        self.seal.map_or(Ok(()), |seal| seal.apply())
    }
}

/// Gives up every right that the program must not have. The process is in the container.
pub(crate) fn shed<'a>(
    _inside: Inside,
    Runner { process, identity, .. }: Runner<'_>,
    seal: Option<Seal<'a>>,
    child: &Child,
) -> Result<Shed<'a>, Error> {
    set_traits(&process.traits)?;
    // Each signal already has its default action: the supervisor has set that once, for all its children.
    signals::unblock(child).stage("unblocking signals")?;
    // First the limit that the supervisor was given; the request may set another.
    open_files::hand_on().stage("setting resource limits")?;
    // While the process may still raise them.
    set_limits(&process.limits)?;
    // The inherited keyring is wharfd's, and all containers would share it. Still as root, which may have many keys.
    keyring::leave(child).stage("making a session keyring")?;
    let sets = effective_for(&process.capabilities, identity.uid);
    // This needs CAP_SETPCAP, which the program need not have.
    capabilities::bound(sets.bounding).stage("dropping capabilities")?;
    become_user(identity, child)?;
    if process.no_new_privileges {
        set_capabilities(&sets)?;
        let set = nix::sys::prctl::set_no_new_privs().named("prctl", || "PR_SET_NO_NEW_PRIVS, 1".into());
        set.stage("setting no_new_privs")?;
    } else {
        capabilities::set(&able_to_load(&sets, process)).stage("setting capabilities")?;
    }
    Ok(Shed { seal })
}

/// Without no_new_privs it takes `CAP_SYS_ADMIN` to load a filter.
fn able_to_load(sets: &Capabilities, process: &Process) -> Capabilities {
    let right = if process.seccomp.is_empty() { 0 } else { capability::SYS_ADMIN };
    Capabilities { effective: sets.effective | right, permitted: sets.permitted | right, ..*sets }
}

/// What the kernel's exec would leave: a user other than root keeps only the ambient capabilities.
fn effective_for(sets: &Capabilities, uid: OwnerId) -> Capabilities {
    if uid == OwnerId::ROOT {
        return *sets;
    }
    let kept = sets.ambient;
    Capabilities { effective: kept, permitted: kept, ..*sets }
}

/// While the process may still take a better place than others, and while no filter refuses the calls. Late, because
/// all of the container's making would be slow with an idle policy. The process that clones that of the program hands
/// them on.
fn set_traits(traits: &Traits) -> Result<(), Error> {
    nix::sys::stat::umask(Mode::from_bits_truncate(traits.umask));
    if let Some(policy) = traits.scheduling {
        scheduling::set(policy).stage("setting the scheduling policy")?;
    }
    if let Some((class, level)) = traits.io_priority {
        scheduling::set_io_priority(class, level).stage("setting the priority of reads and writes")?;
    }
    if let Some(domain) = traits.personality {
        scheduling::set_personality(domain).stage("setting the personality")?;
    }
    Ok(())
}

fn set_limits(limits: &[Limit]) -> Result<(), Error> {
    limits.iter().try_for_each(|limit| {
        limits::set(limit.resource, limit.soft, limit.hard).stage("setting resource limits")
    })
}

/// Capabilities stay permitted for the remaining steps.
fn become_user(identity: &Identity, child: &Child) -> Result<(), Error> {
    const STAGE: &str = "becoming the user";
    capabilities::keep().stage(STAGE)?;
    process::become_user(child, identity.uid, identity.gid, &identity.groups).stage(STAGE)
}

fn set_capabilities(sets: &Capabilities) -> Result<(), Error> {
    capabilities::set(sets).stage("setting capabilities")?;
    capabilities::set_ambient(sets.ambient).stage("setting ambient capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_other_than_root_keeps_what_is_ambient() {
        let sets = Capabilities { bounding: 15, effective: 7, permitted: 7, inheritable: 3, ambient: 1 };
        assert_eq!(effective_for(&sets, OwnerId::ROOT), sets);
        let kept = Capabilities { effective: 1, permitted: 1, ..sets };
        assert_eq!(effective_for(&sets, OwnerId::new(1000).unwrap()), kept);
    }
}
