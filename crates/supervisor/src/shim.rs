//! The supervisor's one loop: what became ready, and what that means.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use wharf_isolation::Report;
use wharf_state::{ExitRecord, Layout};
use wharf_sys::process;
use wharf_types::{ContainerId, Exit};
use wharf_wire::v1::{self, failure, message, reply};

use crate::attach;
use crate::container::{Container, Exec, wire_identity};
use crate::lifecycle::{self, Action, Event};
use crate::link::{Link, Received, failure};
use crate::pod_reaper::PodReaper;
use crate::requests;
use crate::spawn::Spawner;
use crate::watch::{Out, Source, Watch};

/// The longest read of a container's output.
const READ_BYTES: usize = 64 * 1024;

/// Everything the supervisor holds.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) directory: PathBuf,
    pub(crate) watch: Watch,
    pub(crate) link: Link,
    pub(crate) spawner: Spawner,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) execs: BTreeMap<u64, Exec>,
    /// The cgroups of execs that are over.
    left: Vec<PathBuf>,
    pub(crate) reaper: Option<PodReaper>,
    /// Whether a daemon has ever asked for the state, which it does before it tells anyone of the pod.
    pub(crate) greeted: bool,
    /// The request to end, once it came.
    pub(crate) ending: Option<u64>,
    listener: OwnedFd,
    signals: SignalFd,
    buffer: Vec<u8>,
}

impl Shim {
    /// Takes the daemon's connection from standard input, and listens for the daemons that come after it.
    pub(crate) fn start(directory: PathBuf) -> wharf_sys::Result<Self> {
        let connection = process::inherited(0)?;
        let connection = move_above_streams(connection)?;
        // Executed from a memory file, its name would be that file's descriptor.
        named("prctl", nix::sys::prctl::set_name(c"wharf-shim"))?;
        // No process of a container may look into this one, nor into a child of it before its exec.
        named("prctl", nix::sys::prctl::set_dumpable(false))?;
        named("prctl", nix::sys::prctl::set_child_subreaper(true))?;
        named("setsid", nix::unistd::setsid().map(drop))?;
        let mut watch = Watch::new()?;
        let signals = block_signals()?;
        let listener = wharf_sys::socket::listen(&Layout::supervisor_socket(&directory))?;
        let link = Link::new(connection);
        watch.add(signals.as_fd(), Source::Signals)?;
        watch.add(listener.as_fd(), Source::Listener)?;
        if let Some(socket) = link.socket() {
            watch.add(socket, Source::Link)?;
        }
        Ok(Self {
            directory,
            watch,
            link,
            spawner: Spawner::new()?,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            left: Vec::new(),
            reaper: None,
            greeted: false,
            ending: None,
            listener,
            signals,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Runs until the daemon asks for the end and every process is gone; or until it is gone itself before it made
    /// the pod known, so that nobody will ever ask.
    pub(crate) fn run(mut self) -> ExitCode {
        loop {
            for source in self.watch.wait() {
                self.turn(source);
            }
            if let (Some(request), true) = (self.ending, self.is_quiet()) {
                self.link.reply(request, reply::Result::Done(v1::Done {}), &[]);
                return ExitCode::SUCCESS;
            }
            if !self.greeted && self.link.socket().is_none() {
                return ExitCode::SUCCESS;
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.execs.is_empty() && !self.containers.values().any(Container::is_live)
    }

    fn turn(&mut self, source: Source) {
        match source {
            Source::Report(id) => self.container_reported(&id),
            Source::Output(id, out) => self.output_ready(&id, out),
            Source::Client(id, number) => attach::leave(self, &id, number),
            Source::Exit(id) => self.container_ended(&id),
            Source::ExecReport(id) => self.exec_reported(id),
            Source::ExecExit(id) => self.exec_ended(id),
            Source::Signals => self.reap_strays(),
            Source::Link => self.link_ready(),
            Source::Listener => self.accept(),
        }
    }

    fn link_ready(&mut self) {
        match self.link.receive() {
            Received::Request(request, descriptors) => requests::handle(self, request, descriptors),
            Received::Nothing => {}
            Received::Closed => self.disconnect(),
        }
    }

    /// The daemon is gone: nobody waits for its execs any more. Containers are not touched.
    fn disconnect(&mut self) {
        if let Some(socket) = self.link.socket() {
            self.watch.remove(socket, &Source::Link);
        }
        self.link.close();
        self.execs.values().for_each(Exec::kill);
    }

    /// A new daemon takes over from the old one, which may hang.
    fn accept(&mut self) {
        let Ok((socket, uid)) = wharf_sys::socket::accept(self.listener.as_fd()) else { return };
        if uid != nix::unistd::geteuid().as_raw() {
            return;
        }
        self.disconnect();
        self.link = Link::new(socket);
        if let Some(socket) = self.link.socket() {
            drop(self.watch.add(socket, Source::Link));
        }
    }

    fn reap_strays(&mut self) {
        while matches!(self.signals.read_signal(), Ok(Some(_))) {}
        let known: Vec<i32> = self
            .containers
            .values()
            .map(|container| &container.child)
            .chain(self.execs.values().map(|exec| &exec.child))
            .map(|child| child.pid)
            .collect();
        process::reap_strays(|pid| known.contains(&pid));
    }

    pub(crate) fn container_reported(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let report = Report::receive(container.child.report.as_fd());
        let event = match report {
            Ok(Report::Ready { identity, terminal }) => {
                container.identity = identity;
                if let Some(terminal) = terminal {
                    self.adopt_terminal(id, terminal);
                }
                Event::Ready
            }
            Ok(Report::Failed { kind, message }) => {
                Event::Failed { message: failure(wire_kind(kind), message) }
            }
            Ok(Report::Closed) => {
                self.watch.remove(container.child.report.as_fd(), &Source::Report(id.clone()));
                // The end of the reports is an exec only if the process lives on or ended after one.
                Event::Executed { now_ns: wharf_sys::clock::now_ns() }
            }
            Err(_later) => return,
        };
        self.step(id, event);
    }

    fn adopt_terminal(&mut self, id: &ContainerId, terminal: OwnedFd) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if crate::spawn::set_nonblocking(&terminal).is_err() {
            return;
        }
        drop(self.watch.add(terminal.as_fd(), Source::Output(id.clone(), Out::Stdout)));
        container.add_output(Out::Stdout, terminal);
    }

    fn output_ready(&mut self, id: &ContainerId, out: Out) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.pump(out, &mut self.buffer)
            && let Some(output) = container.outputs.remove(&out)
        {
            self.watch.remove(output.source.as_fd(), &Source::Output(id.clone(), out));
        }
        attach::drop_lost(self, id);
    }

    /// The first process is a zombie: take its last reports and output, then let its life end.
    fn container_ended(&mut self, id: &ContainerId) {
        let exit = match self.containers.get(id) {
            Some(container) if container.is_live() => container.ended(),
            _ => return,
        };
        let Some(exit) = exit else { return };
        // At most two reports are there: a failure, and the end.
        self.container_reported(id);
        self.container_reported(id);
        if let Some(container) = self.containers.get_mut(id) {
            container.kill_all();
            container.drain(&mut self.buffer);
            self.watch.remove(container.child.pidfd.as_fd(), &Source::Exit(id.clone()));
        }
        // One that is on its way in was not in the container's cgroup yet.
        self.execs.values().filter(|exec| exec.container == *id).for_each(Exec::kill);
        attach::end(self, id);
        self.step(id, Event::Exited { exit, now_ns: wharf_sys::clock::now_ns() });
    }

    /// Lets an event move a container on, and does what follows.
    pub(crate) fn step(&mut self, id: &ContainerId, event: Event) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (phase, actions) = lifecycle::step(container.phase, event);
        container.phase = phase;
        for action in actions {
            self.act(id, action);
        }
    }

    fn act(&mut self, id: &ContainerId, action: Action) {
        let Some(container) = self.containers.get(id) else { return };
        match action {
            Action::ReplyCreated { request } => {
                let identity = Some(wire_identity(&container.identity));
                let created = v1::Created { pid: container.child.pid, identity };
                self.link.reply(request, reply::Result::Created(created), &[]);
            }
            Action::ReplyStarted { request, started_at_ns } => {
                self.link.reply(request, reply::Result::Started(v1::Started { started_at_ns }), &[]);
            }
            Action::ReplyFailure { request, failure } => self.link.fail(request, failure),
            Action::TellStart => drop(wharf_sys::socket::send(container.child.report.as_fd(), b"S", &[])),
            Action::RecordExit { exit, started_at_ns, finished_at_ns } => {
                // On disk first: whoever sees the process gone finds its exit.
                let path = Layout::exits(&self.directory).join(id.as_str());
                drop(ExitRecord { exit, started_at_ns, finished_at_ns }.save(&path));
                container.reap();
                let exit = Some(wire_exit(exit));
                let exited = v1::ContainerExited { container: id.to_string(), exit, finished_at_ns };
                self.link.tell(message::Body::ContainerExited(exited));
            }
            Action::Forget => {
                container.reap();
                requests::forget(self, id);
            }
        }
    }

    fn exec_reported(&mut self, id: u64) {
        let Some(exec) = self.execs.get_mut(&id) else { return };
        match Report::receive(exec.child.report.as_fd()) {
            Ok(Report::Ready { terminal, .. }) => {
                let Some(request) = exec.request.take() else { return };
                let terminal: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
                self.link.reply(request, reply::Result::Done(v1::Done {}), &terminal);
            }
            Ok(Report::Failed { kind, message }) => {
                let Some(request) = exec.request.take() else { return };
                self.link.fail(request, failure(wire_kind(kind), message));
            }
            Ok(Report::Closed) => {
                self.watch.remove(exec.child.report.as_fd(), &Source::ExecReport(id));
                let Some(request) = exec.request.take() else { return };
                self.link.reply(request, reply::Result::Done(v1::Done {}), &[]);
            }
            Err(_later) => {}
        }
    }

    fn exec_ended(&mut self, id: u64) {
        let Some(exit) = self.execs.get(&id).and_then(Exec::ended) else { return };
        self.exec_reported(id);
        self.exec_reported(id);
        let Some(exec) = self.execs.remove(&id) else { return };
        self.watch.remove(exec.child.report.as_fd(), &Source::ExecReport(id));
        self.watch.remove(exec.child.pidfd.as_fd(), &Source::ExecExit(id));
        self.left.push(exec.leaf);
        // Busy where the command left something running: it is tried again, and goes with the container at the latest.
        self.left.retain(|leaf| {
            std::fs::remove_dir(leaf).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
        });
        let exited = v1::ExecExited { exec: id, exit: Some(wire_exit(exit)) };
        self.link.tell(message::Body::ExecExited(exited));
    }
}

fn move_above_streams(connection: OwnedFd) -> wharf_sys::Result<OwnedFd> {
    let copy = connection.try_clone();
    let null = wharf_sys::fs::open("/dev/null", nix::fcntl::OFlag::O_RDWR)?;
    named("dup2", nix::unistd::dup2_stdin(&null))?;
    named("dup2", nix::unistd::dup2_stdout(&null))?;
    named("dup2", nix::unistd::dup2_stderr(&null))?;
    // Its number is standard input's, which now is the null device and must stay open.
    let _number = std::os::fd::IntoRawFd::into_raw_fd(connection);
    copy.map_err(|_full| wharf_sys::Error::new("dup", "0", nix::errno::Errno::EMFILE))
}

/// The supervisor ends by request alone; children unblock all before their exec.
fn block_signals() -> wharf_sys::Result<SignalFd> {
    let mut blocked = SigSet::empty();
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE]
        .into_iter()
        .for_each(|signal| blocked.add(signal));
    named("sigprocmask", blocked.thread_block())?;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    named("signalfd", SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
}

fn named<T>(call: &'static str, result: nix::Result<T>) -> wharf_sys::Result<T> {
    result.map_err(|errno| wharf_sys::Error::new(call, "", errno))
}

fn wire_kind(kind: wharf_isolation::Kind) -> failure::Kind {
    match kind {
        wharf_isolation::Kind::Internal => failure::Kind::Internal,
        wharf_isolation::Kind::Invalid => failure::Kind::Invalid,
        wharf_isolation::Kind::NotStarted => failure::Kind::NotStarted,
    }
}

fn wire_exit(exit: Exit) -> v1::Exit {
    let (kind, value, oom) = match exit {
        Exit::Code(code) => (v1::exit::Kind::Code, code, false),
        Exit::Signal { number, oom } => (v1::exit::Kind::Signal, number, oom),
        Exit::NotStarted => (v1::exit::Kind::NotStarted, 0, false),
        Exit::Lost => (v1::exit::Kind::Lost, 0, false),
    };
    v1::Exit { kind: kind.into(), value: value.into(), oom }
}
