//! The script that leads to the program: session, filter if it could not be loaded before, exec.
//!
//! It is written while memory can still be allocated and errors can still be described. What follows it is a process
//! that may have neither: each step has its message prepared, and nothing in it decides anything.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use wharf_sys::bare::Prepared;
use wharf_sys::script::{Program, Script};
use wharf_sys::seccomp::Call;
use wharf_types::ErrorKind::{FailedPrecondition, Internal};
use wharf_types::program::DEFAULT_PATH;

use crate::birth::{self, Origin, Others, Place};
use crate::confine::Seal;
use crate::error::{Error, Stage};
use crate::identity::Identity;
use crate::plan::Process;
use crate::report;
use crate::streams::Connected;

/// What a program is to its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The container is made for it.
    First,
    /// A command in it.
    Command,
}

/// Who runs what: the program's process, and its user, whose names have been looked up by now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runner<'a> {
    pub(crate) process: &'a Process,
    pub(crate) identity: &'a Identity,
    pub(crate) part: Part,
}

/// The script that leads to the program, what that tries to execute, and the seal if it is applied before.
#[derive(Debug)]
pub(crate) struct Way<'a> {
    pub(crate) script: Prepared,
    pub(crate) program: Program,
    pub(crate) seal: Option<Seal<'a>>,
}

/// Writes the script. The seal is applied before the script if others will see the program's process and the filter
/// allows everything that follows. Otherwise it is the last step before the exec, and what it refuses then is reported;
/// but where others may trace that process, there is no such way. The obstacle is told if the exec fails.
pub(crate) fn way<'a>(
    runner: Runner<'a>,
    connected: Connected,
    origin: &Origin<'_>,
    obstacle: Option<String>,
) -> Result<Way<'a>, Error> {
    const STAGE: &str = "preparing the exec";
    let Runner { process, identity, .. } = runner;
    let seal = Seal::of(runner);
    let program = program(process, identity)?;
    let failure = failure(process, obstacle);
    if let Place::Of(_, others) = origin.place {
        let mut script = begin(connected, origin.line.as_fd());
        execute(&mut script, &failure, &program, &[]);
        if birth::passes(seal.filter) && script.passes(seal.filter) {
            let script = script.prepare().stage(STAGE)?;
            return Ok(Way { script, program, seal: Some(seal) });
        }
        if others == Others::Tracers {
            return Err(Error::Unsealed);
        }
    }
    let mut script = begin(connected, origin.line.as_fd());
    write_seal(&mut script, &seal);
    execute(&mut script, &failure, &program, seal.filter);
    Ok(Way { script: script.prepare().stage(STAGE)?, program, seal: None })
}

/// Whether a filter allows everything that leads to a program among others, so that its process is under it from its
/// first moment. `line` is any line to the supervisor.
#[must_use]
pub fn is_sealed_at_birth(filter: &[u8], line: BorrowedFd<'_>) -> bool {
    let mut script = begin(Connected::Terminal, line);
    script.execute(&Program {
        candidates: vec![CString::default()],
        arguments: Vec::new(),
        environment: Vec::new(),
    });
    birth::passes(filter) && script.passes(filter)
}

/// Sessions and their terminals belong to a PID namespace, so they are made in the program's.
fn begin(connected: Connected, line: BorrowedFd<'_>) -> Script {
    let mut script = Script::new(line);
    script.on_failure(&report::prepared(Internal, "leading a session failed: setsid()"));
    script.lead_session();
    if connected == Connected::Terminal {
        script.on_failure(&report::prepared(Internal, "leading a session failed: ioctl(TIOCSCTTY)"));
        script.control_terminal();
    }
    script.on_failure(&report::prepared(Internal, "closing descriptors failed: close_range(3)"));
    script.close_on_exec_from(3);
    script
}

/// The final capabilities are set after the filter, which must then allow capset and prctl, as it must allow the exec.
fn write_seal(script: &mut Script, seal: &Seal<'_>) {
    if !seal.filter.is_empty() {
        script.on_failure(&report::prepared(Internal, "loading the seccomp filter failed: seccomp()"));
        script.load_filter(seal.filter, seal.flags);
    }
    if let Some(sets) = &seal.sets {
        let capset = under(seal.filter, Call::CAPSET, "setting capabilities failed", "capset");
        script.on_failure(&report::prepared(Internal, &capset));
        script.set_capabilities(sets);
        let prctl = under(seal.filter, Call::PRCTL, "setting ambient capabilities failed", "prctl");
        script.on_failure(&report::prepared(Internal, &prctl));
        script.set_ambient(sets.ambient);
    }
}

/// What is said if the program cannot be executed, before the kernel's reason.
fn failure(process: &Process, obstacle: Option<String>) -> String {
    let stage = format!("exec of {:?} failed", String::from_utf8_lossy(&process.args[0]));
    match obstacle {
        Some(why) => format!("{stage}: {why}"),
        None => stage,
    }
}

fn execute(script: &mut Script, failure: &str, program: &Program, filter: &[u8]) {
    let is_allowed = Call::EXECVE.passes(filter, &[0; 6]);
    let stage = if is_allowed { failure.to_owned() } else { refused(failure, "execve") };
    script.on_failure(&report::prepared(FailedPrecondition, &stage));
    script.execute(program);
}

/// The message if a call fails that a filter may have refused.
fn under(filter: &[u8], call: Call, stage: &str, name: &str) -> String {
    let option = if call == Call::PRCTL { wharf_sys::capabilities::AMBIENT } else { 0 };
    if call.passes(filter, &[option, 0, 0, 0, 0, 0]) {
        format!("{stage}: {name}()")
    } else {
        refused(stage, name)
    }
}

fn refused(stage: &str, name: &str) -> String {
    format!("{stage}: the container's seccomp profile refuses {name}, without which no program starts")
}

fn program(process: &Process, identity: &Identity) -> Result<Program, Error> {
    let name = String::from_utf8_lossy(&process.args[0]);
    let text = |bytes: &[u8]| {
        let program = name.clone().into_owned();
        CString::new(bytes).map_err(|_nul| Error::Exec { program, reason: Errno::EINVAL.desc() })
    };
    let texts = |all: &[Vec<u8>]| all.iter().map(|bytes| text(bytes)).collect::<Result<Vec<_>, _>>();
    let mut environment = texts(&process.env)?;
    if !process.env.iter().any(|pair| pair.starts_with(b"HOME=")) {
        let home = identity.home.as_deref().unwrap_or("/");
        environment.push(text(format!("HOME={home}").as_bytes())?);
    }
    Ok(Program { candidates: texts(&candidates(process))?, arguments: texts(&process.args)?, environment })
}

/// The paths to try: the program itself if its name has a slash, else one in each directory of its own PATH.
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
