//! `wharf run`: creates a pod with one container from an image, or adds a container to a running pod.
//!
//! Without `-d` it stays with the container: with its streams, or with its log if there is no input. What it has made
//! goes or stays with the container's end. A session that is lost is no end: whoever restarts wharfd ends no container,
//! so that is asked once wharfd is back ([`lost`]). Names are planned from a listing, and others may plan the same:
//! each run marks what it makes, and undoes nothing without its mark.

mod make;
mod ports;
mod request;
mod undo;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::SignalKind;
use wharf_cri_api::v1::{AttachRequest, ContainerState, ContainerStatus, StartContainerRequest};

use crate::args::Run;
use crate::daemon::{Daemon, patiently, still_there};
use crate::doctor::KUBELETS;
use crate::error::{self, Error};
use crate::logs::{self, Reader, Selection};
use crate::output::{self, Output};
use crate::signals::Signals;
use crate::stream::{Ended, LeaveKeys, Sends, Session};
use crate::terminal::{self, Terminal};
use crate::{credentials, pull, stop, units, wait};

use make::{Created, Plan};

pub(crate) use request::{LOGS_ANNOTATION, is_of, mark, random};

/// How often a run may find that another one was faster. Each time, at least one other has got a name.
const TRIES: u32 = 100;

/// How long a program may take to exit after Ctrl-C.
const GRACE_S: u32 = 10;

/// How long a program may take to exit once its session is lost: its input may have ended with that.
const LAST: Duration = Duration::from_secs(2);

/// What this process is connected to while the container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectedTo {
    /// The container's own streams: the user interacts with it.
    Streams,
    /// Its log, or nothing at all.
    Log,
}

impl ConnectedTo {
    fn of(run: &Run) -> Self {
        if !run.detach && (run.interactive || run.tty) { Self::Streams } else { Self::Log }
    }
}

/// What `wharf run --detach --json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Started<'a> {
    name: &'a str,
    container_id: &'a str,
    pod: &'a str,
    pod_id: &'a str,
}

pub(crate) async fn run(daemon: &mut Daemon, output: Output, run: Run) -> Result<ExitCode, Error> {
    ports::check(daemon.pid, run.publish.iter().flat_map(|publish| &publish.0))?;
    // Before anything is made that would be left if this process were ended.
    let mut signals = Signals::listen()?;
    let plan = signals.cut(Box::pin(prepare(daemon, &run))).await?;
    if let Some(warning) = warning_of_kubelet(&KUBELETS) {
        output::report(&warning);
    }
    let connects = ConnectedTo::of(&run);
    if connects == ConnectedTo::Streams && run.interactive && run.tty {
        terminal::check()?;
    }
    let created = create(daemon, &run, plan, &mut signals).await?;
    if let Some(signal) = signals.first {
        return Err(withdraw(daemon, &created, &mut signals, signal).await);
    }
    let begun = Box::pin(begin(daemon, &run, &created, connects));
    let session = match signals.hold(&created.shown, "waiting for wharfd, to stop", begun).await? {
        Ok(session) => session,
        Err(error) => return removed(daemon, &created, &mut signals, Err(error)).await,
    };
    if !run.detach {
        return accompany(daemon, &run, &created, (session, &mut signals)).await;
    }
    if let Some(signal) = signals.first {
        return Err(withdraw(daemon, &created, &mut signals, signal).await);
    }
    let Created { pod_name, pod_id, container_id, name, .. } = &created;
    let started = Started { name, container_id, pod: pod_name, pod_id };
    let told = output.result(&started, &format!("{}\n", units::short(container_id)));
    started_as(&created.shown, told, output::report)
}

/// The result of a run that leaves its container running. If its id could not be told, its name is.
fn started_as(name: &str, told: Result<(), Error>, report: impl FnOnce(&str)) -> Result<ExitCode, Error> {
    told.inspect_err(|_unheard| report(&keeps_running(name)))?;
    Ok(ExitCode::SUCCESS)
}

fn keeps_running(name: &str) -> String {
    format!("{name} keeps running: wharf attach {name}, wharf logs -f {name}, wharf rm --force {name}")
}

/// Pulls the images that are missing, and decides what to create.
async fn prepare(daemon: &mut Daemon, run: &Run) -> Result<Plan, Error> {
    fetch(daemon, run).await?;
    make::plan(daemon, run).await
}

/// Creates what is planned, or what is to be made in its place once another run has taken a name: a name that was asked
/// for is then refused, unless that run has already removed what had it.
async fn create(
    daemon: &mut Daemon,
    run: &Run,
    mut plan: Plan,
    signals: &mut Signals,
) -> Result<Created, Error> {
    let mut tries = 1..TRIES;
    loop {
        let name = plan.shown();
        let made = Box::pin(make::make(daemon, run, plan));
        match signals.hold(&name, "waiting for wharfd, to remove", made).await? {
            Err(Error::NameTaken { .. }) if signals.first.is_none() && tries.next().is_some() => {}
            made => return made,
        }
        plan = signals.cut(Box::pin(make::plan(daemon, run))).await?;
    }
}

/// Stays with a container until it exits, and then removes or stops what was created.
async fn accompany(
    daemon: &mut Daemon,
    run: &Run,
    created: &Created,
    (session, signals): (Option<Session>, &mut Signals),
) -> Result<ExitCode, Error> {
    let name = &created.shown;
    let ended = match session {
        Some(session) => converse(daemon, run, created, (session, signals)).await,
        None => attend(daemon, created, signals).await.map(Ended::Code),
    };
    match ended {
        Ok(Ended::Left) => {
            output::report(&keeps_running(name));
            return Ok(ExitCode::SUCCESS);
        }
        // Whoever has lost patience does not wait for the removal either.
        Err(error @ Error::LeftBehind { .. }) => return Err(error),
        // What was to end is removed, or stopped.
        Err(error) if error.is_loss() && signals.first.is_none() => {
            return lost(daemon, run, created, signals, error).await;
        }
        _ => {}
    }
    tidy(daemon, run, created, signals, ended.map(Ended::code)).await
}

/// Leaves a container that is no longer heard of, or removes it if it has ended: a restart of wharfd ends none. There
/// is no new session, because output would be missing before it, and without a terminal the input has ended.
async fn lost(
    daemon: &mut Daemon,
    run: &Run,
    created: &Created,
    signals: &mut Signals,
    error: Error,
) -> Result<ExitCode, Error> {
    let name = &created.shown;
    let asked = signals.hold(name, "waiting for wharfd, to stop", last_status(daemon, created)).await?;
    let error = match still_there(asked) {
        Ok(None) => error,
        Ok(Some(status)) if status.state() == ContainerState::ContainerExited => error.but(format!(
            "{name} has exited with code {} since; some of its input or output may be missing",
            status.exit_code
        )),
        Ok(Some(_)) if signals.first.is_some() => error,
        Ok(Some(_)) => return Err(error.but(keeps_running(name))),
        Err(unknown) => {
            let why = error::line(&unknown);
            let advice =
                format!("once wharfd is back, see wharf ps --all, or remove it: wharf rm --force {name}");
            return Err(error.but(format!("{name} may keep running ({why})\n  {advice}")));
        }
    };
    tidy(daemon, run, created, signals, Err(error)).await
}

/// What has become of a container, once wharfd is back.
async fn last_status(daemon: &mut Daemon, created: &Created) -> Result<ContainerStatus, Error> {
    let end = wait::for_end(daemon.clone(), created.container_id.clone());
    match tokio::time::timeout(LAST, end).await {
        Ok(ended) => ended,
        Err(_goes_on) => {
            undo::once_back(undo::AWAY, async || daemon.container_status(&created.container_id).await).await
        }
    }
}

/// Removes what was created, or stops what is left of it, after a run with this result.
async fn tidy(
    daemon: &mut Daemon,
    run: &Run,
    created: &Created,
    signals: &mut Signals,
    ended: Result<ExitCode, Error>,
) -> Result<ExitCode, Error> {
    if run.rm {
        return removed(daemon, created, signals, ended).await;
    }
    if created.own_pod.is_none() {
        return ended;
    }
    // The log and the exit code stay until it is removed.
    let stop = async || stop::pod_with(daemon, &created.pod_id, &[], GRACE_S).await;
    let stopping = undo::once_back(undo::AWAY, stop);
    after(ended, signals.hold(&created.shown, "stopping", stopping).await.flatten())
}

/// Removes what was created, after something with this result.
async fn removed<T>(
    daemon: &mut Daemon,
    created: &Created,
    signals: &mut Signals,
    result: Result<T, Error>,
) -> Result<T, Error> {
    match signals.hold(&created.shown, "removing", undo::created(daemon, created)).await {
        Ok(removed) => undo::after(result, &created.shown, removed),
        Err(cut) => after(result, Err(cut)),
    }
}

/// The result of something, and of what was done after it: of two errors, the first is reported.
fn after<T>(result: Result<T, Error>, later: Result<(), Error>) -> Result<T, Error> {
    match (result, later) {
        (result, Ok(())) => result,
        (Ok(_), Err(later)) => Err(later),
        (Err(error), Err(later)) => {
            output::report(&wharf_types::chain(&error));
            Err(later)
        }
    }
}

/// Pulls the images that are missing.
async fn fetch(daemon: &mut Daemon, run: &Run) -> Result<(), Error> {
    for image in std::iter::once(&run.image).chain(run.mount.iter().map(|mount| &mount.image)) {
        if daemon.image(image).await?.is_none() {
            pull::fetch(daemon, image, credentials::stored(image)?).await?;
        }
    }
    Ok(())
}

/// A program's exit code as the exit code of this process.
pub(crate) fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The prefix for an error of wharfd; the error itself names the stage.
fn failure(run: &Run) -> String {
    format!("cannot run {}", run.image)
}

async fn start(daemon: &mut Daemon, run: &Run, id: &str) -> Result<(), Error> {
    let request = StartContainerRequest { container_id: id.to_owned() };
    patiently(daemon.runtime.start_container(request)).await.map(drop).map_err(Error::call(failure(run)))
}

/// Removes what was created, after a signal.
async fn withdraw(
    daemon: &mut Daemon,
    created: &Created,
    signals: &mut Signals,
    signal: SignalKind,
) -> Error {
    let interrupted = Error::Interrupted { signal };
    match signals.hold(&created.shown, "removing", undo::created(daemon, created)).await {
        Ok(Err(cause)) => interrupted.but_left(&created.shown, cause),
        Ok(Ok(())) => interrupted,
        Err(cut) => cut,
    }
}

/// Starts the container. If the user interacts with it, connects to its streams first, so that nothing is missed.
async fn begin(
    daemon: &mut Daemon,
    run: &Run,
    created: &Created,
    how: ConnectedTo,
) -> Result<Option<Session>, Error> {
    let session = match how {
        ConnectedTo::Streams => Some(streams(daemon, run, &created.container_id).await?),
        ConnectedTo::Log => None,
    };
    start(daemon, run, &created.container_id).await?;
    Ok(session)
}

async fn streams(daemon: &mut Daemon, run: &Run, id: &str) -> Result<Session, Error> {
    let request = AttachRequest {
        container_id: id.to_owned(),
        stdin: run.interactive,
        tty: run.tty,
        stdout: true,
        stderr: !run.tty,
    };
    let url = daemon.runtime.attach(request).await.map_err(Error::call(failure(run)))?.into_inner().url;
    let mut session = Session::open(&url).await?;
    session.is_ready().await?;
    Ok(session)
}

/// Carries input and output until the container exits. On a terminal all keys go to the program; without one, Ctrl-C
/// stops it, a second one kills it, and a third one leaves it.
async fn converse(
    daemon: &Daemon,
    run: &Run,
    created: &Created,
    (session, signals): (Session, &mut Signals),
) -> Result<Ended, Error> {
    let sends = if run.interactive { Sends::Input } else { Sends::Nothing };
    let terminal = (run.tty && run.interactive).then(Terminal::raw).transpose()?;
    tokio::select! {
        ended = session.carry(sends, terminal, LeaveKeys::Leave) => ended,
        error = interrupts(daemon.clone(), created, signals) => Err(error),
    }
}

/// Shows the container's output until it exits. Ctrl-C stops it, a second one kills it, and a third one leaves it.
async fn attend(daemon: &Daemon, created: &Created, signals: &mut Signals) -> Result<ExitCode, Error> {
    tokio::select! {
        ended = Box::pin(show(daemon.clone(), created)) => ended,
        error = interrupts(daemon.clone(), created, signals) => Err(error),
    }
}

async fn show(mut daemon: Daemon, created: &Created) -> Result<ExitCode, Error> {
    let status = daemon.container_status(&created.container_id).await?;
    let mut reader = Reader::of(&status, &created.name, &Selection::default())?;
    let end = wait::for_end(daemon.clone(), created.container_id.clone());
    let status = reader.follow(end).await?;
    logs::report_loss(&mut daemon, &created.pod_id, &status).await;
    Ok(exit_code(status.exit_code))
}

/// Stops the container at the first signal, kills it at the second, and leaves it at the third. Returns only if that
/// fails, or at the last signal: the container's exit ends the wait.
async fn interrupts(mut daemon: Daemon, created: &Created, signals: &mut Signals) -> Error {
    let (id, name) = (&created.container_id, &created.shown);
    signals.first().await;
    output::report("stopping the container; press Ctrl-C again to kill it");
    let mut gently = daemon.clone();
    let stopped = tokio::select! {
        stopped = gently.stop_container(id, GRACE_S) => stopped,
        _ = signals.next() => {
            output::report("killing the container; press Ctrl-C again to give up");
            signals.hold(name, "killing", daemon.stop_container(id, 0)).await.flatten()
        }
    };
    match stopped {
        Ok(()) => Error::LeftBehind { name: name.clone(), signal: signals.next().await },
        Err(error) => error,
    }
}

/// What a kubelet whose configuration is here does to pods that it does not know.
fn warning_of_kubelet(configurations: &[&str]) -> Option<String> {
    let file = configurations.iter().find(|file| Path::new(file).exists())?;
    Some(format!(
        "this machine is a cluster node ({file}): its kubelet stops pods that it did not create, including this one, \
         within about a minute\n  to keep one running, create it through the cluster: kubectl run"
    ))
}

#[cfg(test)]
mod tests {
    use wharf_cri_api::v1::PodSandbox;

    use super::*;
    use crate::daemon;
    use crate::signals::tests::{end, turn};

    const INTERRUPT: SignalKind = SignalKind::interrupt();
    const TERMINATE: SignalKind = SignalKind::terminate();

    fn created() -> Created {
        Created {
            own_pod: Some(PodSandbox::default()),
            shown: "web".into(),
            pod_name: "web".into(),
            pod_id: "p".into(),
            container_id: "c".into(),
            name: "web".into(),
        }
    }

    fn is_left<T>(result: Result<T, Error>, by: SignalKind) -> bool {
        matches!(result, Err(Error::LeftBehind { name, signal }) if name == "web" && signal == by)
    }

    #[tokio::test]
    async fn a_wharfd_that_does_not_respond_does_not_keep_a_run() {
        let _turn = turn().await;
        let ((mut daemon, _socket), created) = (daemon::tests::silent().await, created());
        let mut signals = Signals::listen().unwrap();
        let attending = attend(&daemon, &created, &mut signals);
        assert!(is_left(end(attending, &[INTERRUPT, INTERRUPT, TERMINATE]).await, TERMINATE));
        // After the first signal, each one ends it.
        let (run, error) = (request::tests::parsed("--rm -i busybox"), Error::Incomplete { what: "x" });
        let asking = Box::pin(lost(&mut daemon, &run, &created, &mut signals, error));
        assert!(is_left(end(asking, &[TERMINATE]).await, TERMINATE));
        let withdrawing = Box::pin(withdraw(&mut daemon, &created, &mut signals, INTERRUPT));
        assert!(is_left::<()>(Err(end(withdrawing, &[INTERRUPT]).await), INTERRUPT));
    }

    #[tokio::test]
    async fn what_follows_a_run_does_not_keep_it_either() {
        let _turn = turn().await;
        let ((mut daemon, _socket), created) = (daemon::tests::silent().await, created());
        for line in ["--rm busybox", "busybox"] {
            let mut signals = Signals::listen().unwrap();
            let run = request::tests::parsed(line);
            let ended = Ok(ExitCode::SUCCESS);
            let tidying = Box::pin(tidy(&mut daemon, &run, &created, &mut signals, ended));
            assert!(is_left(end(tidying, &[INTERRUPT, INTERRUPT]).await, INTERRUPT), "{line}");
        }
    }

    #[test]
    fn a_container_whose_id_cannot_be_told_is_named() {
        let mut said = String::new();
        let full = Error::Output { source: std::io::Error::from(std::io::ErrorKind::StorageFull) };
        let result = started_as("web", Err(full), |text| text.clone_into(&mut said));
        assert!(matches!(result, Err(Error::Output { .. })));
        assert!(said.starts_with("web keeps running: ") && said.ends_with("wharf rm --force web"), "{said}");
        assert!(started_as("web", Ok(()), |text| panic!("{text}")).is_ok());
    }

    #[test]
    fn of_two_errors_the_last_is_the_result() {
        let [first, later] = [Error::NoPassword, Error::NoTerminal { source: std::io::Error::other("") }];
        assert!(matches!(after::<()>(Err(first), Err(later)), Err(Error::NoTerminal { .. })));
        assert!(matches!(after(Ok(7), Ok(())), Ok(7)));
        assert!(matches!(after(Ok(7), Err(Error::NoPassword)), Err(Error::NoPassword)));
    }

    #[test]
    fn on_a_node_it_is_said_what_the_kubelet_does() {
        let told = warning_of_kubelet(&["/no/such", "/proc/self/status"]).unwrap();
        assert!(told.contains("(/proc/self/status)") && told.contains("kubectl run"), "{told}");
        assert_eq!(warning_of_kubelet(&["/no/such"]), None);
    }
}
