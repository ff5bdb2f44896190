//! The last steps before the program: limits, user, capabilities; then, where it is to run, session, seccomp, exec. Rights
//! only shrink here.

use std::ffi::CString;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use wharf_sys::capabilities::{self, Capabilities};
use wharf_sys::{descriptors, keyring, limits, open_files, seccomp, signals, terminal};
use wharf_types::capability;
use wharf_types::program::DEFAULT_PATH;

use crate::birth::{self, Born, Inside, Origin, Place};
use crate::error::{Error, Stage};
use crate::identity::Identity;
use crate::plan::{Limit, Process};
use crate::streams::Connected;

/// This process has the user and the rights of its program. Where its filter is not loaded it can load it, and that is all
/// it has beyond them.
#[derive(Debug)]
pub(crate) struct Shed {
    filter: Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Loaded,
    Waiting,
}

/// Gives up every right that the program is not to have. The filter is loaded too if others will see the process and if it
/// can go on under it.
pub(crate) fn shed(
    _inside: Inside,
    process: &Process,
    identity: &Identity,
    origin: &Origin<'_>,
) -> Result<Shed, Error> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    signals::reset(origin.child).stage("resetting signals")?;
    // First as the supervisor was given it; the process may ask for another.
    open_files::hand_on().stage("setting resource limits")?;
    set_limits(&process.limits)?;
    // The inherited one is that of wharfd, and all containers would have it. Still as root, who may have many keys.
    keyring::leave(origin.child).stage("making a session keyring")?;
    let sets = effective_for(&process.capabilities, identity.uid);
    capabilities::bound(sets.bounding).stage("dropping capabilities")?;
    become_user(identity)?;
    // Becoming another user sets it to fs.suid_dumpable, and the container's other processes could look into this one.
    nix::sys::prctl::set_dumpable(false).stage("becoming the user")?;
    if process.no_new_privileges {
        set_capabilities(&sets)?;
        nix::sys::prctl::set_no_new_privs().stage("setting no_new_privs")?;
    } else {
        // Without no_new_privs a filter needs CAP_SYS_ADMIN to be loaded.
        let right = if process.seccomp.is_empty() { 0 } else { capability::SYS_ADMIN };
        let raised =
            Capabilities { effective: sets.effective | right, permitted: sets.permitted | right, ..sets };
        capabilities::set(&raised).stage("setting capabilities")?;
    }
    let seen = matches!(origin.place, Place::Of(_));
    if seen
        && birth::CALLS.iter().all(|(call, first)| call.passes(&process.seccomp, &[*first, 0, 0, 0, 0, 0]))
    {
        seal(process, identity)?;
        return Ok(Shed { filter: Filter::Loaded });
    }
    Ok(Shed { filter: Filter::Waiting })
}

/// Executes the program in a session of its own, under its filter. Returns only if that fails.
pub(crate) fn execute(born: Born, process: &Process, identity: &Identity, connected: Connected) -> Error {
    let sealed = lead_session(connected).and_then(|()| match born.shed().filter {
        Filter::Loaded => Ok(()),
        Filter::Waiting => seal(process, identity),
    });
    match sealed {
        Ok(()) => run(process, identity),
        Err(error) => error,
    }
}

/// Sessions and their terminals are of a PID namespace.
fn lead_session(connected: Connected) -> Result<(), Error> {
    const STAGE: &str = "leading a session";
    nix::unistd::setsid().stage(STAGE)?;
    if connected == Connected::Terminal {
        terminal::control(std::io::stdin().as_fd()).stage(STAGE)?;
    }
    descriptors::close_on_exec_from(3).stage(STAGE)
}

/// The final sets come after the filter, which must then allow capset, as it must allow the exec. With no_new_privs it is
/// the very last step.
fn seal(process: &Process, identity: &Identity) -> Result<(), Error> {
    load_filter(process)?;
    if process.no_new_privileges {
        return Ok(());
    }
    set_capabilities(&effective_for(&process.capabilities, identity.uid))
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

fn become_user(identity: &Identity) -> Result<(), Error> {
    const STAGE: &str = "becoming the user";
    capabilities::keep().stage(STAGE)?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups).stage(STAGE)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    nix::unistd::setresgid(gid, gid, gid).stage(STAGE)?;
    nix::unistd::setresuid(uid, uid, uid).stage(STAGE)
}

fn set_capabilities(sets: &Capabilities) -> Result<(), Error> {
    capabilities::set(sets).stage("setting capabilities")?;
    capabilities::set_ambient(sets.ambient).stage("setting ambient capabilities")
}

fn load_filter(process: &Process) -> Result<(), Error> {
    if process.seccomp.is_empty() {
        return Ok(());
    }
    seccomp::load(&process.seccomp, process.seccomp_flags).stage("loading the seccomp filter")
}

fn run(process: &Process, identity: &Identity) -> Error {
    let program = String::from_utf8_lossy(&process.args[0]).into_owned();
    match try_run(process, identity) {
        Ok(never) => match never {},
        Err(errno) => Error::Exec { program, reason: reason(errno) },
    }
}

fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => wharf_types::program::MISSING,
        Errno::EACCES => wharf_types::program::DENIED,
        Errno::ENOEXEC => wharf_types::program::FORMAT,
        other => other.desc(),
    }
}

fn try_run(process: &Process, identity: &Identity) -> Result<std::convert::Infallible, Errno> {
    let text = |bytes: &Vec<u8>| CString::new(bytes.clone()).map_err(|_nul| Errno::EINVAL);
    let args: Vec<CString> = process.args.iter().map(text).collect::<Result<_, _>>()?;
    let mut env: Vec<CString> = process.env.iter().map(text).collect::<Result<_, _>>()?;
    if !process.env.iter().any(|pair| pair.starts_with(b"HOME=")) {
        let home = identity.home.as_deref().unwrap_or("/");
        env.push(CString::new(format!("HOME={home}")).map_err(|_nul| Errno::EINVAL)?);
    }
    let mut failure = Errno::ENOENT;
    for candidate in candidates(process) {
        let candidate = CString::new(candidate).map_err(|_nul| Errno::EINVAL)?;
        match nix::unistd::execve(&candidate, &args, &env) {
            Ok(never) => return Ok(never),
            // As a shell searches: a file that may not be run is remembered, a missing one is not.
            Err(Errno::EACCES) => failure = Errno::EACCES,
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(failure)
}

/// The paths to try: the program itself if it has a slash, else one in each directory of its own PATH.
fn candidates(process: &Process) -> Vec<Vec<u8>> {
    let program = &process.args[0];
    if program.is_empty() || program.contains(&b'/') {
        return vec![program.clone()];
    }
    let path =
        process.env.iter().find_map(|pair| pair.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH.as_bytes());
    path.split(|&b| b == b':')
        .map(|directory| match directory {
            b"" => [b"./", &program[..]].concat(),
            _ => [directory, b"/", program].concat(),
        })
        .collect()
}
