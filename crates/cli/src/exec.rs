//! `wharf exec`: a command in a running container, without a terminal.

use std::process::ExitCode;

use wharf_cri_api::v1::ExecSyncRequest;

use crate::args::Exec;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::runs;
use crate::output::{self, Stream};
use crate::run::exit_code;

pub(crate) async fn exec(daemon: &mut Daemon, exec: Exec) -> Result<ExitCode, Error> {
    let listing = daemon.listing().await?;
    let container = listing.container(&exec.name)?;
    if !runs(container) {
        return Err(Error::NotRunningYet {
            name: exec.name,
            state: crate::list::state_word(container.state()),
            advice: "\n  see why: wharf ps --all, wharf logs".into(),
        });
    }
    without_terminal(daemon, &container.id, exec.command, exec.timeout).await
}

/// Waits for the command, and shows what it wrote when it has ended.
async fn without_terminal(
    daemon: &mut Daemon,
    id: &str,
    command: Vec<String>,
    timeout_s: Option<u32>,
) -> Result<ExitCode, Error> {
    let what = format!("running {:?}", command.first().map_or("", String::as_str));
    let request =
        ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: timeout_s.unwrap_or(0).into() };
    let ended = daemon.runtime.exec_sync(request).await.map_err(Error::call(what))?.into_inner();
    output::bytes(Stream::Stdout, &ended.stdout)?;
    output::bytes(Stream::Stderr, &ended.stderr)?;
    Ok(exit_code(ended.exit_code))
}
