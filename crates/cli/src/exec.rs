//! `wharf exec` runs a command in a running container; `wharf attach` connects to the streams of its own program.

use std::process::ExitCode;

use wharf_cri_api::v1::{AttachRequest, Container, ExecRequest, ExecSyncRequest};

use crate::args::{Attach, Exec};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::{Listing, runs};
use crate::output::{self, Stream};
use crate::run::exit_code;
use crate::stream::{Ended, LeaveKeys, Sends, Session};
use crate::terminal::Terminal;

pub(crate) async fn exec(daemon: &mut Daemon, exec: Exec) -> Result<ExitCode, Error> {
    let listing = daemon.listing().await?;
    let id = running(&listing, &exec.name)?.id.clone();
    if let Some(timeout_s) = exec.timeout {
        return in_time(daemon, id, exec.command, timeout_s).await;
    }
    let terminal = exec.tty.then(Terminal::raw).transpose()?;
    let what = call_name(&exec.command);
    let request = ExecRequest {
        container_id: id,
        cmd: exec.command,
        tty: exec.tty,
        stdin: exec.interactive,
        stdout: true,
        stderr: !exec.tty,
    };
    let url = daemon.runtime.exec(request).await.map_err(Error::call(what))?.into_inner().url;
    let sends = if exec.interactive { Sends::Input } else { Sends::Nothing };
    Session::open(&url).await?.carry(sends, terminal, LeaveKeys::Pass).await.map(Ended::code)
}

pub(crate) async fn attach(daemon: &mut Daemon, attach: Attach) -> Result<ExitCode, Error> {
    let listing = daemon.listing().await?;
    let container = running(&listing, &attach.name)?;
    let tty = daemon.container_request(container).await?.tty;
    let terminal = (tty && !attach.no_stdin).then(Terminal::raw).transpose()?;
    let request = AttachRequest {
        container_id: container.id.clone(),
        stdin: !attach.no_stdin,
        tty,
        stdout: true,
        stderr: !tty,
    };
    let url = daemon.runtime.attach(request).await.map_err(Error::call("attaching"))?.into_inner().url;
    let sends = if attach.no_stdin { Sends::Nothing } else { Sends::Input };
    let ended = Session::open(&url).await?.carry(sends, terminal, LeaveKeys::Leave).await?;
    if let Ended::Left = ended {
        output::report(&format!("{} keeps running", attach.name));
    }
    Ok(ended.code())
}

/// How errors name the run of a command.
fn call_name(command: &[String]) -> String {
    format!("running {:?}", command.first().map_or("", String::as_str))
}

fn running<'a>(listing: &'a Listing, name: &str) -> Result<&'a Container, Error> {
    let container = listing.container(name)?;
    if runs(container) {
        return Ok(container);
    }
    Err(Error::NotRunningYet {
        name: name.to_owned(),
        state: crate::list::state_word(container.state()),
        advice: "\n  see why: wharf ps --all, wharf logs".into(),
    })
}

/// Waits for the command, which wharfd kills after the timeout, and shows its output once it has exited.
async fn in_time(
    daemon: &mut Daemon,
    container_id: String,
    command: Vec<String>,
    timeout_s: u32,
) -> Result<ExitCode, Error> {
    let what = call_name(&command);
    let request = ExecSyncRequest { container_id, cmd: command, timeout: timeout_s.into() };
    let ended = daemon.runtime.exec_sync(request).await.map_err(Error::call(what))?.into_inner();
    output::bytes(Stream::Stdout, &ended.stdout)?;
    output::bytes(Stream::Stderr, &ended.stderr)?;
    Ok(exit_code(ended.exit_code))
}
