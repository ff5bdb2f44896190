//! What the daemon can ask for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_isolation::{JoinPlan, PidNamespace, Place, Plan, Stream, Streams};
use wharf_types::{ContainerId, HostPath, TerminalSize};
use wharf_wire::v1::{self, failure::Kind, reply, request::Body};

use crate::attach;
use crate::container::{Container, Exec};
use crate::lifecycle::{Event, Failure, Missing, Phase};
use crate::link::{self, RequestId, failure};
use crate::pod_reaper::PodReaper;
use crate::shim::Shim;
use crate::spawn::{Child, pipes};
use crate::trouble::OrTell as _;
use crate::watch::{Out, Source};

type Outcome = Result<Option<reply::Result>, Failure>;

/// Does what a request asks; one that must wait is answered later.
pub(crate) fn handle(shim: &mut Shim, id: RequestId, request: v1::Request, descriptors: Vec<OwnedFd>) {
    let outcome = match request.body {
        _ if id.is_late(wharf_sys::clock::monotonic_ns()) => Err(link::expired()),
        Some(Body::Hello(_)) => {
            shim.greeted = true;
            Ok(Some(reply::Result::State(state(shim))))
        }
        Some(Body::Create(_)) => create(shim, id, descriptors),
        Some(Body::Start(start)) => find(shim, &start.container).map(|container| {
            shim.step(&container, Event::Start { request: id });
            None
        }),
        Some(Body::Signal(signal)) => self::signal(shim, &signal),
        Some(Body::Exec(exec)) => self::exec(shim, id, exec, descriptors),
        Some(Body::KillExec(kill)) => {
            if let Some(exec) = shim.execs.get(&kill.exec) {
                exec.kill();
            }
            done()
        }
        Some(Body::Remove(remove)) => self::remove(shim, id, &remove.container),
        Some(Body::Attach(attach)) => attach::attach(shim, id, &attach, descriptors).map(|()| None),
        Some(Body::ReopenLog(reopen)) => reopen_log(shim, id, &reopen.container),
        Some(Body::Shutdown(_)) => {
            shut_down(shim, id);
            Ok(None)
        }
        None => Err(failure(
            Kind::Invalid,
            "this supervisor does not know the request: it is of an older release",
        )),
    };
    match outcome {
        Ok(Some(result)) => shim.link.reply(id, result, &[]),
        Ok(None) => {}
        Err(failure) => shim.link.fail(id, failure),
    }
}

fn done() -> Outcome {
    Ok(Some(reply::Result::Done(v1::Done {})))
}

fn internal(error: impl std::fmt::Display) -> Failure {
    failure(Kind::Internal, error.to_string())
}

fn state(shim: &Shim) -> v1::State {
    v1::State {
        version: wharf_wire::VERSION,
        containers: shim.containers.values().map(Container::status).collect(),
        pid: std::process::id().cast_signed(),
        reaper_pid: shim.reaper.as_ref().map_or(0, |reaper| reaper.pid),
        features: wharf_wire::FEATURES.map(str::to_owned).to_vec(),
    }
}

/// The id, if the supervisor holds the container.
fn find(shim: &Shim, id: &str) -> Result<ContainerId, Failure> {
    match shim.containers.get_key_value(id) {
        Some((id, _)) => Ok(id.clone()),
        None => Err(failure(Kind::NotFound, format!("container {id} is not in this pod"))),
    }
}

fn create(shim: &mut Shim, request: RequestId, descriptors: Vec<OwnedFd>) -> Outcome {
    let mut descriptors = descriptors.into_iter();
    let (plan, log_directory) = (descriptors.next(), descriptors.next());
    let plan = plan.ok_or_else(|| failure(Kind::Invalid, "a create request without a plan"))?;
    let plan = wharf_wire::from_file::<v1::Plan>(&plan).map_err(internal)?;
    let plan = Plan::try_from(plan)
        .map_err(|what| failure(Kind::Invalid, format!("a plan with a bad part: {what}")))?;
    let id = plan.container.clone();
    if shim.containers.contains_key(&id) {
        return Err(failure(Kind::Precondition, format!("container {id} exists already")));
    }
    let (streams, pipes) = pipes(plan.stdio.input).map_err(internal)?;
    let child = spawn_first(shim, &plan, &streams)?;
    let log = plan.stdio.log.clone();
    let missing = if log.is_some() { Missing::Both } else { Missing::Process };
    let terminal = plan.stdio.terminal;
    let mut container = Container::new(plan, child, Phase::Creating { request, missing });
    watch_child(shim, &container.child, [Source::Report(id.clone()), Source::Exit(id.clone())])?;
    if !terminal {
        for (out, pipe) in [(Out::Stdout, pipes.stdout), (Out::Stderr, pipes.stderr)] {
            let watched = shim.watch.add(pipe.as_fd(), Source::Output(id.clone(), out));
            watched.or_tell(format_args!("an output of container {id} will not be read"));
            container.add_output(out, pipe);
        }
    }
    container.stdin = pipes.stdin;
    // While the first process sets things up; an answer waits for both.
    container.log = log.map(|log| shim.log_writer.open(log, log_directory, id.clone()));
    shim.containers.insert(id, container);
    Ok(None)
}

fn spawn_first(shim: &mut Shim, plan: &Plan, streams: &Streams) -> Result<Child, Failure> {
    if plan.namespaces.pid == PidNamespace::Pod && shim.reaper.is_none() {
        let reaper = PodReaper::start(shim.spawner.witness(), &plan.namespaces, &shim.directory)
            .map_err(|error| internal(format!("the pod's PID namespace: {error}")))?;
        let watched = shim.watch.add(reaper.pidfd.as_fd(), Source::Reaper);
        watched.inspect_err(|_unwatched| reaper.end()).map_err(internal)?;
        shim.reaper = Some(reaper);
    }
    let place = match &plan.namespaces.pid {
        PidNamespace::Container => Place::New,
        PidNamespace::Host => Place::Host,
        PidNamespace::Pod => match &shim.reaper {
            Some(reaper) => Place::Of(reaper.pidfd.as_fd()),
            None => return Err(internal("the pod has no PID namespace")),
        },
        PidNamespace::Target(target) => match shim.containers.get(target) {
            // While it is made, its first process is the only one in its namespace and may have all in sight.
            Some(target) if target.is_running() => Place::Of(target.child.pidfd.as_fd()),
            _ => return Err(failure(Kind::Precondition, format!("target container {target} does not run"))),
        },
    };
    let cgroup = plan.cgroup.directory.as_ref();
    let cgroup = cgroup.map(|path| wharf_sys::fs::open(path.as_path(), OFlag::O_PATH | OFlag::O_DIRECTORY));
    let cgroup = cgroup.transpose().map_err(internal)?;
    let mut keep = streams.descriptors();
    keep.extend(place.process());
    shim.spawner
        .spawn(place, cgroup.as_ref().map(AsFd::as_fd), &keep, |origin| {
            wharf_isolation::create(plan, streams, origin)
        })
        .map_err(internal)
}

/// Watches a child; one that cannot be watched is killed, and reaped with the strays.
fn watch_child(shim: &mut Shim, child: &Child, sources: [Source; 2]) -> Result<(), Failure> {
    let [report, exit] = sources;
    let watched = shim.watch.add(child.report.as_fd(), report);
    let watched = watched.and_then(|()| shim.watch.add(child.pidfd.as_fd(), exit));
    watched.map_err(|error| {
        child.abandon();
        internal(error)
    })
}

fn signal(shim: &mut Shim, signal: &v1::Signal) -> Outcome {
    let id = find(shim, &signal.container)?;
    let Some(container) = shim.containers.get_mut(&id).filter(|container| container.is_live()) else {
        return done();
    };
    if signal.all {
        container.kill();
        return done();
    }
    let number = i32::try_from(signal.number).map_err(internal)?;
    match container.signal(number) {
        // Gone by now: that is no failure of a signal.
        Err(error) if error.errno != Errno::ESRCH => Err(internal(error)),
        _ => done(),
    }
}

fn exec(shim: &mut Shim, request: RequestId, mut exec: v1::Exec, mut descriptors: Vec<OwnedFd>) -> Outcome {
    let id = find(shim, &exec.container)?;
    if descriptors.len() == 4
        && let Some(file) = descriptors.pop()
    {
        exec.args = wharf_wire::from_file::<v1::Words>(&file).map_err(internal)?.words;
    }
    let streams = streams(descriptors)?;
    let Some(container) = shim.containers.get(&id).filter(|container| container.is_running()) else {
        return Err(failure(Kind::Precondition, format!("container {id} does not run")));
    };
    let leaf = container.plan.cgroup.kill_directory.as_path().join(format!("exec-{}", exec.exec));
    let plan = join_plan(container, &exec, &leaf)?;
    let cgroup =
        make_leaf(container, &leaf).map_err(|error| internal(format!("cgroup of the exec: {error}")))?;
    let first = container.child.pidfd.as_fd();
    let mut keep = streams.descriptors();
    keep.push(first);
    let mut child = shim
        .spawner
        .spawn(Place::Of(first), cgroup.as_ref().map(AsFd::as_fd), &keep, |origin| {
            wharf_isolation::join(&plan, first, &streams, origin)
        })
        .map_err(|error| {
            remove_leaf(&leaf);
            internal(error)
        })?;
    child.awaits_ready = exec.terminal;
    watch_child(shim, &child, [Source::ExecReport(exec.exec), Source::ExecExit(exec.exec)])?;
    shim.execs.insert(exec.exec, Exec { container: id, child, request: Some(request), terminal: None, leaf });
    Ok(None)
}

fn streams(descriptors: Vec<OwnedFd>) -> Result<Streams, Failure> {
    let streams = descriptors.into_iter().map(Stream::new).collect::<wharf_sys::Result<Vec<_>>>();
    match <[Stream; 3]>::try_from(streams.map_err(internal)?) {
        Ok([stdin, stdout, stderr]) => Ok(Streams { stdin, stdout, stderr }),
        Err(_other) => Err(failure(Kind::Invalid, "an exec request without its three streams")),
    }
}

/// The container's own process with other arguments, in a cgroup of its own below the container's.
fn join_plan(container: &Container, exec: &v1::Exec, leaf: &Path) -> Result<JoinPlan, Failure> {
    if exec.args.is_empty() {
        return Err(failure(Kind::Invalid, "an exec request without a command"));
    }
    let mut process = container.plan.process.clone();
    process.args = exec.args.clone();
    // An update may have changed it: what the first process has is what holds now.
    process.oom_score_adj = score(container.child.pid).or(process.oom_score_adj);
    if exec.terminal && !process.env.iter().any(|variable| variable.starts_with(b"TERM=")) {
        process.env.push(b"TERM=xterm".to_vec());
    }
    let mut entries: Vec<HostPath> = container.plan.cgroup.entries.clone();
    if !has_unified(container) {
        let kill_directory = container.plan.cgroup.kill_directory.as_path();
        entries.retain(|entry| entry.as_path().parent() != Some(kill_directory));
        let own = leaf.join("tasks");
        let own = own.to_str().ok_or_else(|| internal("a cgroup path that is no text"))?;
        entries.push(HostPath::new(own).map_err(internal)?);
    }
    let size = exec.size.map(terminal_size).transpose()?;
    Ok(JoinPlan { process, identity: container.identity.clone(), entries, terminal: exec.terminal, size })
}

fn score(pid: i32) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse().ok()
}

fn terminal_size(v1::TerminalSize { width, height }: v1::TerminalSize) -> Result<TerminalSize, Failure> {
    match (u16::try_from(width), u16::try_from(height)) {
        (Ok(width), Ok(height)) => Ok(TerminalSize { width, height }),
        _ => Err(failure(Kind::Invalid, format!("a terminal cannot have {width} columns and {height} rows"))),
    }
}

/// Whether the container's processes are reached by its cgroup in the unified hierarchy: then an exec is cloned into its
/// own one below.
fn has_unified(container: &Container) -> bool {
    container.plan.cgroup.directory.is_some()
}

/// Makes an exec's own cgroup; opened, if the exec is to be cloned into it.
fn make_leaf(container: &Container, leaf: &Path) -> std::io::Result<Option<OwnedFd>> {
    std::fs::create_dir(leaf)?;
    let open = || wharf_sys::fs::open(leaf, OFlag::O_PATH | OFlag::O_DIRECTORY);
    has_unified(container).then(open).transpose().map_err(|error| error.errno.into())
}

/// Removes the cgroup of an exec that nothing can be left of.
pub(crate) fn remove_leaf(leaf: &Path) {
    match std::fs::remove_dir(leaf) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        removed => removed.or_tell(format_args!("removing cgroup {}", leaf.display())),
    }
}

fn remove(shim: &mut Shim, request: RequestId, id: &str) -> Outcome {
    let Ok(id) = find(shim, id) else { return done() };
    shim.step(&id, Event::Remove { request });
    Ok(None)
}

/// Drops all that is held of a container whose process was reaped.
pub(crate) fn forget(shim: &mut Shim, id: &ContainerId) {
    attach::end(shim, id);
    let Some(container) = shim.containers.remove(id) else { return };
    shim.watch.remove(container.child.report.as_fd(), &Source::Report(id.clone()));
    shim.watch.remove(container.child.pidfd.as_fd(), &Source::Exit(id.clone()));
    for (out, output) in &container.outputs {
        shim.watch.remove(output.source.as_fd(), &Source::Output(id.clone(), *out));
    }
    if let Some(log) = container.log {
        shim.log_writer.close(log);
    }
}

fn reopen_log(shim: &mut Shim, request: RequestId, id: &str) -> Outcome {
    let id = find(shim, id)?;
    let Some(container) = shim.containers.get(&id).filter(|container| container.is_running()) else {
        return Err(failure(Kind::Precondition, format!("container {id} does not run")));
    };
    match container.log {
        Some(log) => shim.log_writer.reopen(log, request),
        None => return Err(failure(Kind::Precondition, format!("container {id} has no log"))),
    }
    Ok(None)
}

fn shut_down(shim: &mut Shim, request: RequestId) {
    shim.execs.values().for_each(Exec::kill);
    shim.containers.values_mut().filter(|container| container.is_live()).for_each(Container::kill);
    if let Some(reaper) = &shim.reaper {
        reaper.end();
    }
    shim.ending = Some(request);
}
