//! `wharf doctor`: checks whether this machine can run containers, and says how to fix what it finds.
//!
//! It works without a running wharfd too: it then checks the machine alone, and reports that wharfd cannot be reached.

mod bounded;
mod disk;
mod driver;
mod machine;
mod process;
mod service;
mod upkeep;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use serde::Serialize;
use wharf_cri_api::admin::{InfoRequest, InfoResponse};

pub(crate) use driver::KUBELETS;

use crate::args::Socket;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{Output, Row};

/// The flag of the process that makes the checks.
const CHECKS_ONLY: &str = "checks-only";

/// wharfd's state directory, unless it says otherwise.
const STATE: &str = "/run/wharf";

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Ok,
    /// Something will not work, or may not.
    Warn,
    /// No container can run.
    Fail,
}

/// One check, what it found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it; empty if there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warn, found: found.into(), advice: advice.into() }
    }

    fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Fail, found: found.into(), advice: advice.into() }
    }
}

impl Check {
    /// Drops the advice of a check that passed.
    fn without_needless_advice(mut self) -> Self {
        if self.verdict == Verdict::Ok {
            self.advice.clear();
        }
        self
    }
}

impl Row for Check {
    const HEADINGS: &'static [&'static str] = &["", "CHECK", "FOUND"];

    fn cells(&self) -> Vec<String> {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let found = match self.advice.as_str() {
            "" => self.found.clone(),
            advice => format!("{}: {advice}", self.found),
        };
        vec![verdict.to_owned(), self.what.to_owned(), found]
    }
}

/// The connection to wharfd with its information about itself, or why there is none.
pub(crate) type DaemonInfo = Result<(Daemon, InfoResponse), Error>;

/// Makes all checks.
pub(crate) async fn doctor(socket: &Socket, output: Output) -> Result<ExitCode, Error> {
    match apart() {
        Ok(code) => Ok(code),
        // What keeps another process from running, such as a limit, is to be found all the same.
        Err(_alone) => Ok(ExitCode::from(check_all(socket, output).await?)),
    }
}

/// Has another process make all checks, and does not wait for it to end: a thread of it that waits for a disk keeps it
/// from ending.
fn apart() -> std::io::Result<ExitCode> {
    let (mut told, tells) = std::io::pipe()?;
    #[expect(clippy::disallowed_methods, reason = "it is this program, by whatever name it was called")]
    let mut checks = Command::new("/proc/self/exe");
    checks.args(std::env::args_os().skip(1)).arg(format!("--{CHECKS_ONLY}")).stdin(tells);
    let mut process = checks.spawn()?;
    // It has the other end of the pipe.
    drop(checks);
    let mut code = [0];
    match told.read_exact(&mut code) {
        Ok(()) => Ok(ExitCode::from(code[0])),
        // It ended before it had a result, and has said why.
        Err(_ended) => {
            let code = process.wait()?.code();
            Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

/// Makes all checks for [`apart`], which gets the exit code through standard input.
pub(crate) async fn checks(socket: &Socket, output: Output) -> Result<ExitCode, Error> {
    let code = check_all(socket, output).await?;
    // A check that waits for a disk keeps this process, and must not keep whoever reads the output.
    let null = std::fs::File::options().write(true).open("/dev/null");
    if let Ok(null) = null {
        let _kept = (nix::unistd::dup2_stdout(&null), nix::unistd::dup2_stderr(&null));
    }
    // Whoever asked may be gone.
    let _unheard = nix::unistd::write(std::io::stdin(), &[code]);
    Ok(ExitCode::from(code))
}

/// Shows all checks, and returns the exit code.
async fn check_all(socket: &Socket, output: Output) -> Result<u8, Error> {
    let answer = ask(socket).await;
    let state = answer.as_ref().map_or(Path::new(STATE), |(_daemon, info)| Path::new(&info.state));
    let mut checks = machine::checks(&state.join("leases"));
    checks.extend(service::checks(answer).await);
    output.rows(&checks)?;
    Ok(u8::from(checks.iter().any(|check| check.verdict == Verdict::Fail)))
}

async fn ask(socket: &Socket) -> DaemonInfo {
    let mut daemon = Daemon::connect_now(socket).await?;
    let info = daemon.admin.info(InfoRequest {}).await;
    let info = info.map_err(Error::call("asking wharfd about itself"))?.into_inner();
    Ok((daemon, info))
}
