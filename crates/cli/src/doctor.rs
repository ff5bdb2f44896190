//! `wharf doctor`: checks whether this machine can run containers, and says how to fix what it finds, or fixes it.
//!
//! It works without a running wharfd too: it then checks the machine alone, and reports that wharfd cannot be reached.

mod bounded;
mod disk;
mod driver;
mod machine;
mod mend;
mod network;
mod process;
mod service;
mod source;
mod unreachable;
mod upkeep;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use serde::Serialize;
use wharf_cri_api::admin::{InfoRequest, InfoResponse};

pub(crate) use driver::KUBELETS;

use self::mend::{CommandLine, Fix, Remedy};
use crate::args::{Doctor, Socket};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{self, Output, Row, Stream};

/// The environment variable of the process that makes the checks.
const CHECKS_ONLY: &str = "WHARF_DOCTOR_CHECKS_ONLY";

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
    #[serde(skip)]
    remedy: Remedy,
}

/// What `wharf doctor --fix` prints as JSON.
#[derive(Serialize)]
struct Fixed<'a> {
    fixes: &'a [Fix],
    /// After that.
    checks: &'a [Check],
}

impl Check {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self::new(what, Verdict::Ok, found, "")
    }

    fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(what, Verdict::Warn, found, advice)
    }

    fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(what, Verdict::Fail, found, advice)
    }

    /// For what cannot be read: it may be as it should, or not.
    fn unknown(what: &'static str, place: &Path, error: &std::io::Error) -> Self {
        let found = format!("unknown: {}: {error}", place.display());
        Self::warn(what, found, "use sudo, or find out why this cannot be read")
    }

    fn new(
        what: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { what, verdict, found: found.into(), advice: advice.into(), remedy: Remedy::Judgement }
    }

    /// With commands that mend it, which end the advice.
    fn mended_by(mut self, commands: Vec<CommandLine>) -> Self {
        self.advice = format!("{}: {}", self.advice, mend::told(&commands));
        self.left_as(Remedy::Commands(commands))
    }

    fn left_as(self, remedy: Remedy) -> Self {
        Self { remedy, ..self }
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

/// Makes all checks, and mends what they find if that is asked for.
pub(crate) async fn doctor(socket: &Socket, output: Output, doctor: Doctor) -> Result<ExitCode, Error> {
    if doctor.fix && !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot { command: "doctor --fix" });
    }
    if std::env::var_os(CHECKS_ONLY).is_some() {
        return checks(socket, output, doctor).await;
    }
    match apart(itself()) {
        Ok(report) => {
            output::bytes(Stream::Stderr, &report.stderr)?;
            output::bytes(Stream::Stdout, &report.stdout)?;
            Ok(ExitCode::from(report.code))
        }
        // What keeps another process from running, such as a limit, is to be found all the same.
        Err(_alone) => Ok(ExitCode::from(check_all(socket, output, doctor).await?)),
    }
}

/// What the process that makes the checks has to say.
#[derive(Debug, Default)]
struct Report {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    code: u8,
}

/// This program with the arguments of this process, to make the checks.
fn itself() -> Command {
    #[expect(clippy::disallowed_methods, reason = "it is this program, by whatever name it was called")]
    let mut checks = Command::new("/proc/self/exe");
    checks.args(std::env::args_os().skip(1)).env(CHECKS_ONLY, "1");
    checks
}

/// Has another process make all checks, and does not wait for it to end: a thread of it that waits for a disk keeps it
/// from ending. It has no stream of this process, which it could keep open.
fn apart(mut checks: Command) -> std::io::Result<Report> {
    let (mut code, tells) = std::io::pipe()?;
    checks.stdin(tells).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = checks.spawn()?;
    // It has the other end of the pipe.
    drop(checks);
    let mut report = Report::default();
    if let (Some(mut stdout), Some(mut stderr)) = (process.stdout.take(), process.stderr.take()) {
        stdout.read_to_end(&mut report.stdout)?;
        // A few lines at most, for which the pipe has room.
        stderr.read_to_end(&mut report.stderr)?;
    }
    if code.read_exact(std::slice::from_mut(&mut report.code)).is_err() {
        // It ended before it had a result, and has said why.
        let code = process.wait()?.code();
        report.code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    }
    Ok(report)
}

/// Makes all checks for [`apart`], which gets the exit code through standard input.
async fn checks(socket: &Socket, output: Output, doctor: Doctor) -> Result<ExitCode, Error> {
    let code = check_all(socket, output, doctor).await?;
    // A check that waits for a disk keeps this process, and must not keep whoever reads the output.
    let null = std::fs::File::options().write(true).open("/dev/null");
    if let Ok(null) = null {
        let _kept = (nix::unistd::dup2_stdout(&null), nix::unistd::dup2_stderr(&null));
    }
    // Whoever asked may be gone.
    let _unheard = nix::unistd::write(std::io::stdin(), &[code]);
    Ok(ExitCode::from(code))
}

/// Shows all checks, those after the mending if that is asked for, and returns the exit code.
async fn check_all(socket: &Socket, output: Output, doctor: Doctor) -> Result<u8, Error> {
    let checks = if doctor.fix {
        let (fixes, checks) =
            mend::mend(async || look(socket).await, |command| command.execute(mend::PATIENCE)).await;
        show_fixed(output, &Fixed { fixes: &fixes, checks: &checks })?;
        checks
    } else {
        let checks = look(socket).await;
        output.rows(&checks)?;
        if let Some(offer) = mend::offer(&checks).filter(|_offer| output.is_table()) {
            output::text(&offer)?;
        }
        checks
    };
    Ok(u8::from(checks.iter().any(|check| check.verdict == Verdict::Fail)))
}

fn show_fixed(output: Output, fixed: &Fixed<'_>) -> Result<(), Error> {
    if !output.is_table() {
        return output::json(fixed);
    }
    if !fixed.fixes.is_empty() {
        output.rows(fixed.fixes)?;
        output::text("\n")?;
    }
    output.rows(fixed.checks)
}

/// Makes all checks.
async fn look(socket: &Socket) -> Vec<Check> {
    let answer = ask(socket).await;
    let state = answer.as_ref().map_or(STATE, |(_daemon, info)| &*info.state);
    let state = Path::new(state).to_owned();
    let pid = answer.as_ref().ok().and_then(|(daemon, _info)| daemon.pid);
    let mut checks = machine::checks(&state.join("leases"), pid);
    checks.extend(service::checks(answer, &state).await);
    checks
}

async fn ask(socket: &Socket) -> DaemonInfo {
    if bounded::is_silent(socket.path()) {
        let cause = std::io::Error::new(std::io::ErrorKind::TimedOut, "its file system does not respond");
        return Err(Error::File { path: socket.path().to_owned(), cause });
    }
    let mut daemon = Daemon::connect_now(socket).await?;
    let info = daemon.admin.info(InfoRequest {}).await;
    let info = info.map_err(Error::call("asking wharfd about itself"))?.into_inner();
    Ok((daemon, info))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        #[expect(clippy::disallowed_methods, reason = "a test of what any program does")]
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]);
        shell
    }

    #[test]
    fn who_makes_the_checks_has_no_stream_of_ours_and_need_not_end() {
        let dir = tempfile::tempdir().unwrap();
        let end = dir.path().join("end");
        nix::unistd::mkfifo(&end, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = "printf said; printf told >&2; exec >/dev/null 2>&1; printf '\\007' >&0; read -r end <";
        let report = apart(shell(&format!("{script}{}", end.display()))).unwrap();
        std::fs::write(&end, "\n").unwrap();
        assert_eq!((&*report.stdout, &*report.stderr, report.code), (&b"said"[..], &b"told"[..], 7));
        let ended = apart(shell("echo why >&2; exit 3")).unwrap();
        assert_eq!((&*ended.stderr, ended.code), (&b"why\n"[..], 3));
    }

    #[test]
    fn who_makes_the_checks_has_the_same_arguments() {
        let checks = itself();
        assert!(checks.get_args().eq(std::env::args_os().skip(1)), "also if one is `--`");
    }
}
