//! `wharf run`: creates a pod with one container from an image, or adds a container to a running pod.

mod ports;
mod request;
mod signals;

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use wharf_cri_api::v1::{
    AttachRequest, ContainerConfig, ContainerMetadata, CreateContainerRequest, PodSandbox,
    RunPodSandboxRequest, StartContainerRequest,
};

use crate::args::Run;
use crate::daemon::{Daemon, patiently};
use crate::doctor::KUBELETS;
use crate::error::Error;
use crate::find::{Listing, is_ready, pod_name};
use crate::logs::{self, Reader, Selection};
use crate::output::{self, Output};
use crate::stream::{Ended, LeaveKeys, Sends, Session};
use crate::terminal::{self, Terminal};
use crate::{credentials, pull, remove, stop, units, wait};

use signals::Signals;

pub(crate) use request::LOGS_ANNOTATION;

/// How long a program may take to exit after Ctrl-C.
const GRACE_S: u32 = 10;

/// What this run has created.
#[derive(Debug)]
struct Created {
    /// The pod, if this run created it.
    own_pod: Option<PodSandbox>,
    pod_name: String,
    pod_id: String,
    container_id: String,
    name: String,
}

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
    ports::check(run.publish.iter().flat_map(|publish| &publish.0))?;
    // Before anything is made that would be left if this process were ended.
    let mut signals = Signals::listen()?;
    tokio::select! {
        fetched = fetch(daemon, &run) => fetched?,
        () = signals.next() => return Err(Error::Interrupted),
    }
    if let Some(warning) = warning_of_kubelet(&KUBELETS) {
        output::report(&warning);
    }
    let connects = ConnectedTo::of(&run);
    if connects == ConnectedTo::Streams && run.interactive && run.tty {
        terminal::check()?;
    }
    let created = signals.hold(Box::pin(make(daemon, &run))).await?;
    if signals.has_come {
        return Err(withdraw(daemon, &created, signals).await);
    }
    let begun = signals.hold(Box::pin(begin(daemon, &run, &created, connects))).await;
    let session = match begun {
        Ok(session) => session,
        // wharfd may not respond to anything.
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => {
            undo(daemon, &created).await;
            return Err(error);
        }
    };
    if run.detach && signals.has_come {
        return Err(withdraw(daemon, &created, signals).await);
    }
    if run.detach {
        let Created { pod_name, pod_id, container_id, name, .. } = &created;
        let started = Started { name, container_id, pod: pod_name, pod_id };
        output.result(&started, &format!("{}\n", units::short(container_id)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = match session {
        Some(session) => converse(daemon, &run, &created, (session, &mut signals)).await,
        None => attend(daemon, &created, &mut signals).await.map(Ended::Code),
    };
    if let Ok(Ended::Left) = ended {
        output::report(&format!(
            "{} keeps running: wharf attach {0}, wharf rm --force {0}",
            created.pod_name
        ));
        return Ok(ExitCode::SUCCESS);
    }
    if run.rm {
        undo(daemon, &created).await;
    } else if created.own_pod.is_some() {
        // Nothing in the pod is running any more; the log and the exit code stay until it is removed.
        stop::pod_with(daemon, &created.pod_id, &[], GRACE_S).await?;
    }
    ended.map(Ended::code)
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

/// Creates the container, and the pod unless the container joins one.
async fn make(daemon: &mut Daemon, run: &Run) -> Result<Created, Error> {
    let listing = daemon.listing().await?;
    let env = request::environment(run)?;
    match &run.pod {
        Some(name) => {
            let pod = joined(&listing, name)?;
            let metadata = request::name_in(&listing, pod, run)?;
            let name = metadata.name.clone();
            let log = request::log_in(&name, &request::random()?);
            let config = request::container(run, env, metadata, log);
            let container_id = Box::pin(create(daemon, run, &pod.id, config)).await?;
            let (pod_name, pod_id) = (pod_name(pod).to_owned(), pod.id.clone());
            Ok(Created { own_pod: None, pod_name, pod_id, container_id, name })
        }
        None => {
            let random = request::random()?;
            let name = request::pod_name(&listing, run, &random)?;
            let config = request::pod(run, &name, &random);
            let asked = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
            let pod = Box::pin(patiently(daemon.runtime.run_pod_sandbox(asked)))
                .await
                .map_err(Error::call(failure(run)));
            let pod_id = pod.inspect_err(|_failed| remove::unused_logs(&config))?.into_inner().pod_sandbox_id;
            let annotations = config.annotations;
            let pod = PodSandbox { id: pod_id.clone(), annotations, ..PodSandbox::default() };
            let metadata = ContainerMetadata { name: name.clone(), attempt: 0 };
            let container = request::container(run, env, metadata, format!("{name}.log"));
            match Box::pin(create(daemon, run, &pod_id, container)).await {
                Ok(container_id) => {
                    Ok(Created { own_pod: Some(pod), pod_name: name.clone(), pod_id, container_id, name })
                }
                Err(error) => {
                    remove::whole_pod(daemon, &pod).await?;
                    Err(error)
                }
            }
        }
    }
}

fn joined<'a>(listing: &'a Listing, name: &str) -> Result<&'a PodSandbox, Error> {
    let pod = listing.pod(name)?;
    if is_ready(pod) {
        return Ok(pod);
    }
    let advice = "\n  its network is gone: remove it and run it again".to_owned();
    Err(Error::NotRunningYet { name: name.to_owned(), state: "stopped", advice })
}

/// The prefix for an error of wharfd; the error itself names the stage.
fn failure(run: &Run) -> String {
    format!("cannot run {}", run.image)
}

async fn create(
    daemon: &mut Daemon,
    run: &Run,
    pod_id: &str,
    config: ContainerConfig,
) -> Result<String, Error> {
    let asked = CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(config),
        ..CreateContainerRequest::default()
    };
    let created = Box::pin(patiently(daemon.runtime.create_container(asked))).await;
    Ok(created.map_err(Error::call(failure(run)))?.into_inner().container_id)
}

async fn start(daemon: &mut Daemon, run: &Run, id: &str) -> Result<(), Error> {
    let request = StartContainerRequest { container_id: id.to_owned() };
    patiently(daemon.runtime.start_container(request)).await.map(drop).map_err(Error::call(failure(run)))
}

/// Removes what was created. What cannot be removed is reported and does not change the result.
async fn undo(daemon: &mut Daemon, created: &Created) {
    let removed = match &created.own_pod {
        Some(pod) => remove::whole_pod(daemon, pod).await,
        None => remove::with_log(daemon, &created.container_id).await,
    };
    if let Err(error) = removed {
        output::report(&wharf_types::chain(&error));
    }
}

/// Removes what was created, after a signal; the next one ends that.
async fn withdraw(daemon: &mut Daemon, created: &Created, mut signals: Signals) -> Error {
    signals.has_come = false;
    tokio::select! {
        () = undo(daemon, created) => {}
        () = signals.next() => {}
    }
    Error::Interrupted
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
/// stops it and a second one kills it.
async fn converse(
    daemon: &Daemon,
    run: &Run,
    created: &Created,
    (session, signals): (Session, &mut Signals),
) -> Result<Ended, Error> {
    let sends = if run.interactive { Sends::Input } else { Sends::Nothing };
    let terminal = (run.tty && run.interactive).then(Terminal::raw).transpose()?;
    let interrupted = interrupts(daemon.clone(), created.container_id.clone(), signals);
    tokio::select! {
        ended = session.carry(sends, terminal, LeaveKeys::Leave) => ended,
        error = interrupted => Err(error),
    }
}

/// Shows the container's output until it exits. Ctrl-C stops it and a second one kills it.
async fn attend(daemon: &mut Daemon, created: &Created, signals: &mut Signals) -> Result<ExitCode, Error> {
    let status = daemon.container_status(&created.container_id).await?;
    let mut reader = Reader::of(&status, &created.name, &Selection::default())?;
    let shown = reader.follow(wait::for_end(daemon.clone(), created.container_id.clone()));
    let interrupted = interrupts(daemon.clone(), created.container_id.clone(), signals);
    tokio::pin!(shown, interrupted);
    tokio::select! {
        ended = &mut shown => {
            let status = ended?;
            logs::report_loss(daemon, &created.pod_id, &status).await;
            Ok(exit_code(status.exit_code))
        }
        error = &mut interrupted => Err(error),
    }
}

/// Stops the container at each interrupt, the first time gently; returns only if that fails.
async fn interrupts(mut daemon: Daemon, id: String, signals: &mut Signals) -> Error {
    let Err(error) = async {
        signals.next().await;
        output::report("stopping the container; press Ctrl-C again to kill it");
        let mut gently = daemon.clone();
        let stopping = gently.stop_container(&id, GRACE_S);
        tokio::select! {
            stopped = stopping => stopped?,
            () = signals.next() => daemon.stop_container(&id, 0).await?,
        }
        // The container exits soon, which ends the wait.
        std::future::pending::<Result<std::convert::Infallible, Error>>().await
    }
    .await;
    error
}

/// What a kubelet whose configuration is here does to pods that it does not know.
fn warning_of_kubelet(configurations: &[&str]) -> Option<String> {
    let file = configurations.iter().find(|file| Path::new(file).exists())?;
    Some(format!(
        "this machine is a cluster's node ({file}): its kubelet stops pods that it did not create, this one too, \
         within about a minute\n  let the cluster make what is to stay: kubectl run"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_node_it_is_said_what_the_kubelet_does() {
        let told = warning_of_kubelet(&["/no/such", "/proc/self/status"]).unwrap();
        assert!(told.contains("(/proc/self/status)") && told.contains("kubectl run"), "{told}");
        assert_eq!(warning_of_kubelet(&["/no/such"]), None);
    }
}
