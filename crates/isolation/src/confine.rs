//! Giving up rights: limits, user, capabilities, filter. They only shrink here.
//!
//! A filter is loaded as the last but the capabilities, since what comes before it may be what it refuses, and since loading
//! it takes a right that the program does not have. Where others will see the program's process, that process has nothing
//! beyond the program's rights from its first moment: the filter is loaded before it is born, if it can be.

use nix::unistd::{Gid, Uid};
use wharf_sys::capabilities::{self, Capabilities};
use wharf_sys::clone::Child;
use wharf_sys::error::Named as _;
use wharf_sys::{keyring, limits, open_files, seccomp, signals};
use wharf_types::capability;

use crate::birth::Inside;
use crate::error::{Error, Stage};
use crate::identity::Identity;
use crate::plan::{Limit, Process};

/// The filter, and the capabilities that the program has in the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seal<'a> {
    pub(crate) filter: &'a [u8],
    pub(crate) flags: u32,
    /// To be set behind the filter. With no_new_privs they are set before it, as no right is needed to load it.
    pub(crate) sets: Option<Capabilities>,
}

impl<'a> Seal<'a> {
    pub(crate) fn of(process: &'a Process, identity: &Identity) -> Self {
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

/// This process has the user and the rights of its program, and what it takes to load the filter.
#[derive(Debug)]
pub(crate) struct Shed<'a> {
    /// What is applied by this process; none where it is in the script.
    seal: Option<Seal<'a>>,
}

impl Shed<'_> {
    /// Loads the filter and takes away the right to, if that is this process's to do.
    pub(crate) fn seal(self) -> Result<(), Error> {
        self.seal.map_or(Ok(()), |seal| seal.apply())
    }
}

/// Gives up every right that the program is not to have, for a process that is in the container.
pub(crate) fn shed<'a>(
    _inside: Inside,
    process: &Process,
    identity: &Identity,
    seal: Option<Seal<'a>>,
    child: &Child,
) -> Result<Shed<'a>, Error> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Each has its default action: the supervisor saw to that once, for all its children.
    signals::unblock(child).stage("unblocking signals")?;
    // First as the supervisor was given it; the process may ask for another.
    open_files::hand_on().stage("setting resource limits")?;
    // While it may raise them.
    set_limits(&process.limits)?;
    // The inherited one is that of wharfd, and all containers would have it. Still as root, who may have many keys.
    keyring::leave(child).stage("making a session keyring")?;
    let sets = effective_for(&process.capabilities, identity.uid);
    // It takes CAP_SETPCAP, which the program need not have.
    capabilities::bound(sets.bounding).stage("dropping capabilities")?;
    become_user(identity)?;
    // Becoming another user sets it to fs.suid_dumpable, and the container's other processes could look into this one.
    let dumpable = nix::sys::prctl::set_dumpable(false).named("prctl", || "PR_SET_DUMPABLE, 0".into());
    dumpable.stage("becoming the user")?;
    if process.no_new_privileges {
        set_capabilities(&sets)?;
        let set = nix::sys::prctl::set_no_new_privs().named("prctl", || "PR_SET_NO_NEW_PRIVS, 1".into());
        set.stage("setting no_new_privs")?;
    } else {
        capabilities::set(&able_to_load(&sets, process)).stage("setting capabilities")?;
    }
    Ok(Shed { seal })
}

/// Without no_new_privs a filter needs `CAP_SYS_ADMIN` to be loaded.
fn able_to_load(sets: &Capabilities, process: &Process) -> Capabilities {
    let right = if process.seccomp.is_empty() { 0 } else { capability::SYS_ADMIN };
    Capabilities { effective: sets.effective | right, permitted: sets.permitted | right, ..*sets }
}

/// As an exec by the kernel would: a user other than root keeps only what is ambient.
fn effective_for(sets: &Capabilities, uid: u32) -> Capabilities {
    if uid == 0 {
        return *sets;
    }
    let kept = sets.ambient;
    Capabilities { effective: kept, permitted: kept, ..*sets }
}

fn set_limits(limits: &[Limit]) -> Result<(), Error> {
    limits.iter().try_for_each(|limit| {
        limits::set(limit.resource, limit.soft, limit.hard).stage("setting resource limits")
    })
}

/// Groups first, since only root may set them; capabilities stay permitted for what is left to do.
fn become_user(identity: &Identity) -> Result<(), Error> {
    const STAGE: &str = "becoming the user";
    let who = || format!("{}:{}", identity.uid, identity.gid);
    capabilities::keep().stage(STAGE)?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).named("setgroups", who).stage(STAGE)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    nix::unistd::setresgid(gid, gid, gid).named("setresgid", who).stage(STAGE)?;
    nix::unistd::setresuid(uid, uid, uid).named("setresuid", who).stage(STAGE)
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
        assert_eq!(effective_for(&sets, 0), sets);
        let kept = Capabilities { effective: 1, permitted: 1, ..sets };
        assert_eq!(effective_for(&sets, 1000), kept);
    }
}
