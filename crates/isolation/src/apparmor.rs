//! AppArmor: the kernel is told the profile in advance, and applies it when this process executes its program.
//!
//! Which one it is stands in the plan, by name. The daemon has loaded it before, if it is wharf's own
//! (`host/src/apparmor.rs`). One that is not loaded is an error: no program runs without the profile that was decided
//! on.

use nix::errno::Errno;
use wharf_sys::fs::write_value;

use crate::error::{Error, Stage};
use crate::plan::Process;

/// Has the kernel confine this process at its next exec, which is that of its program; a process that it clones until
/// then is confined likewise. Nothing else that happens until then is affected, so this comes first: `/proc` is the
/// host's, and nothing of a container can stand in its place.
pub(crate) fn confine(process: &Process) -> Result<(), Error> {
    let Some(profile) = &process.apparmor else { return Ok(()) };
    match write_value("/proc/self/attr/apparmor/exec", &format!("exec {profile}")) {
        Err(error) if (error.call, error.errno) == ("write", Errno::ENOENT) => {
            Err(Error::NoProfile { name: profile.to_string() })
        }
        other => other.stage("asking for the AppArmor profile"),
    }
}
