//! The supervisor's one loop: what became ready, and what that means.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollTimeout;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use wharf_state::Layout;
use wharf_sys::error::Named as _;
use wharf_sys::process;
use wharf_types::ContainerId;
use wharf_wire::v1::{self, reply};

use crate::attach;
use crate::container::{Container, Exec};
use crate::lifecycle::{Event, Failure, Phase};
use crate::link::{self, Link, Received, RequestId, failure};
use crate::log::queue::{LogWriter, Told};
use crate::output::{BUFFER_BYTES, More};
use crate::pod_reaper::PodReaper;
use crate::requests;
use crate::spawn::{Kin, Spawner, Spent};
use crate::trouble::{self, OrTell as _};
use crate::watch::{Out, Source, Watch};

/// How often is looked at what waits for a time or a disk.
const TICK: Duration = Duration::from_secs(1);
/// How long the end of a container waits for its last output to be in its log.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);

/// Everything the supervisor holds.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) directory: PathBuf,
    pub(crate) watch: Watch,
    pub(crate) link: Link,
    pub(crate) spawner: Spawner,
    pub(crate) log_writer: LogWriter,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) execs: BTreeMap<u64, Exec>,
    /// Outputs that are not read until the logs have taken what there is.
    blocked: Vec<(ContainerId, Out)>,
    pub(crate) reaper: Option<PodReaper>,
    pub(crate) spent: Spent,
    /// Whether a daemon has ever asked for the state, which it does before it tells anyone of the pod.
    pub(crate) greeted: bool,
    /// The request to end, once it came.
    pub(crate) ending: Option<RequestId>,
    listener: OwnedFd,
    signals: SignalFd,
    last_tick: Instant,
    pub(crate) buffer: Vec<u8>,
}

impl Shim {
    /// Takes the daemon's connection from standard input, and listens for the daemons that come after it.
    pub(crate) fn start(directory: PathBuf) -> wharf_sys::Result<Self> {
        let connection = take_connection()?;
        // Executed by a descriptor, its name would be that one's number.
        nix::sys::prctl::set_name(c"wharf-shim").named("prctl", String::new)?;
        // No process of a container may look into this one, nor into a child of it before its exec.
        nix::sys::prctl::set_dumpable(false).named("prctl", String::new)?;
        nix::sys::prctl::set_child_subreaper(true).named("prctl", String::new)?;
        nix::unistd::setsid().map(drop).named("setsid", String::new)?;
        let mut watch = Watch::new()?;
        let signals = block_signals()?;
        let listener = wharf_sys::socket::listen(&Layout::supervisor_socket(&directory))?;
        let mut link = Link::default();
        link.open(connection)?;
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
            log_writer: LogWriter::default(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            blocked: Vec::new(),
            reaper: None,
            spent: Spent::default(),
            greeted: false,
            ending: None,
            listener,
            signals,
            last_tick: Instant::now(),
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    /// Runs until the daemon asks for the end and every process is gone; or until it is gone itself before it made
    /// the pod known, so that nobody will ever ask.
    pub(crate) fn run(mut self) -> ExitCode {
        loop {
            let tick = EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::NONE);
            let timeout = if self.has_to_tick() { tick } else { EpollTimeout::NONE };
            let ready = self.watch.wait(timeout);
            // Before anything that came meanwhile is taken for a success.
            self.expire();
            for source in ready {
                self.turn(source);
            }
            self.tick();
            self.tend_logs();
            self.tend_link();
            if let (Some(request), true) = (self.ending, self.is_quiet()) {
                self.link.reply(request, reply::Result::Done(v1::Done {}), &[]);
                return ExitCode::SUCCESS;
            }
            if !self.greeted && self.link.socket().is_none() {
                return ExitCode::SUCCESS;
            }
        }
    }

    /// An exit that could not be recorded does not keep a pod whose end is wanted.
    fn is_quiet(&self) -> bool {
        let is_over = |phase| matches!(phase, Phase::Exited(_) | Phase::Unrecorded(_));
        self.execs.is_empty() && self.containers.values().all(|container| is_over(container.phase))
    }

    fn turn(&mut self, source: Source) {
        match source {
            Source::Report(id) => {
                self.container_reported(&id);
            }
            Source::Output(id, out) => self.output_ready(&id, out),
            Source::Client(id, number) => attach::leave(self, &id, number),
            Source::Exit(id) => self.container_ended(&id),
            Source::ExecReport(id) => {
                self.exec_reported(id);
            }
            Source::ExecExit(id) => self.exec_ended(id),
            Source::Reaper => self.reaper_ended(),
            Source::Signals => {
                while matches!(self.signals.read_signal(), Ok(Some(_))) {}
                self.reap_strays();
            }
            Source::LogWriter => self.log_writer.receive(),
            Source::Link => self.link_ready(),
            Source::Listener => self.accept(),
        }
    }

    fn has_to_tick(&self) -> bool {
        let waits = |phase| matches!(phase, Phase::Ended(_) | Phase::Unrecorded(_));
        self.log_writer.is_awake()
            || self.link.is_starved()
            || self.containers.values().any(|container| waits(container.phase))
            || self.requests().any(RequestId::can_be_late)
    }

    /// The requests that are being done.
    fn requests(&self) -> impl Iterator<Item = RequestId> {
        let containers = self.containers.values().filter_map(Container::request);
        containers.chain(self.execs.values().filter_map(|exec| exec.request))
    }

    /// Ends what nobody waits for any more.
    fn expire(&mut self) {
        let now_ns = wharf_sys::clock::monotonic_ns();
        let is_late = |request: Option<RequestId>| request.is_some_and(|request| request.is_late(now_ns));
        for exec in self.execs.values_mut() {
            if let Some(request) = exec.request.take_if(|request| request.is_late(now_ns)) {
                exec.kill();
                self.link.fail(request, link::expired());
            }
        }
        let late = self.containers.iter().filter(|(_, container)| is_late(container.request()));
        let late: Vec<ContainerId> = late.map(|(id, _)| id.clone()).collect();
        late.iter().for_each(|id| self.step(id, Event::Expired));
    }

    /// What is due each second.
    fn tick(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.last_tick) < TICK {
            return;
        }
        self.last_tick = now;
        self.log_writer.tick(now);
        let patient = |since: Instant| now.duration_since(since) < FLUSH_PATIENCE;
        let due = self.containers.iter().filter_map(|(id, container)| match container.phase {
            Phase::Ended(_) if !container.flushing.is_some_and(patient) => Some((id.clone(), Event::Flushed)),
            Phase::Unrecorded(_) => Some((id.clone(), Event::Retry)),
            _ => None,
        });
        for (id, event) in due.collect::<Vec<_>>() {
            self.step(&id, event);
        }
    }

    fn link_ready(&mut self) {
        self.link.pump();
        match self.link.receive() {
            Received::Request(id, request, descriptors) => requests::handle(self, id, request, descriptors),
            Received::Nothing => {}
            Received::Closed => self.disconnect(),
        }
    }

    fn tend_link(&mut self) {
        if self.link.is_starved() {
            self.link.pump();
        }
        let interest = self.link.interest();
        if let Some(socket) = self.link.socket() {
            self.watch.change(socket, &Source::Link, interest).or_tell("watching the daemon's connection");
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
        let socket = match wharf_sys::socket::accept(self.listener.as_fd()) {
            Ok((socket, uid)) if uid == nix::unistd::geteuid().as_raw() => socket,
            Ok((_, uid)) => return trouble::tell(format_args!("user {uid} wanted to take over: refused")),
            // It went away before it was taken.
            Err(error) if matches!(error.errno, Errno::EAGAIN | Errno::ECONNABORTED) => return,
            Err(error) => return trouble::tell(format_args!("a daemon wanted to take over: {error}")),
        };
        self.disconnect();
        self.link.open(socket).or_tell("taking a daemon's connection");
        let watched = self.link.socket().map(|socket| self.watch.add(socket, Source::Link));
        if let Some(Err(error)) = watched {
            trouble::tell(format_args!("a daemon's connection is of no use: {error}"));
            self.link.close();
        }
    }

    pub(crate) fn reap_strays(&mut self) {
        self.spent.reap();
        let containers = || self.containers.values();
        let execs = self.execs.values().map(|exec| &exec.child);
        let starting = containers().filter(|container| container.is_starting());
        let mut births = starting.map(|container| &container.child).chain(execs.clone());
        if births.any(|child| child.kin == Kin::Parent) {
            // A dead child that is unknown may be one that was born and not told of yet. It is looked for again after that.
            return;
        }
        let own = containers().filter(|container| container.has_process()).map(|container| &container.child);
        let known: Vec<i32> = own.chain(execs).map(|child| child.pid).collect();
        let reaper = self.reaper.as_ref().map(|reaper| reaper.pid);
        process::reap_strays(|pid| reaper == Some(pid) || known.contains(&pid));
    }

    /// With it all containers in its namespace end; the next one gets a new namespace.
    fn reaper_ended(&mut self) {
        if let Some(reaper) = self.reaper.take_if(|reaper| reaper.has_ended()) {
            self.watch.remove(reaper.pidfd.as_fd(), &Source::Reaper);
        }
    }

    fn output_ready(&mut self, id: &ContainerId, out: Out) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((output, mut sink)) = container.output(out, &mut self.log_writer) else { return };
        let source = Source::Output(id.clone(), out);
        match output.pump(&mut sink, &mut self.buffer) {
            More::Later => {}
            More::Blocked => {
                self.watch.remove(output.source.as_fd(), &source);
                self.blocked.push((id.clone(), out));
            }
            More::Never => {
                self.watch.remove(output.source.as_fd(), &source);
                container.outputs.remove(&out);
            }
        }
        attach::drop_lost(self, id);
    }

    /// Starts, feeds and lets go the log writer, and passes on what it answered.
    fn tend_logs(&mut self) {
        if let Some(over) = self.log_writer.take_over() {
            self.watch.remove(over.as_fd(), &Source::LogWriter);
        }
        if self.log_writer.start(self.spawner.witness())
            && let Some(connection) = self.log_writer.connection()
        {
            self.watch.add(connection, Source::LogWriter).or_tell("watching the log writer");
        }
        self.log_writer.pump();
        for told in self.log_writer.take_told() {
            match told {
                Told::Opened(id, Ok(())) => self.step(&id, Event::LogOpened),
                Told::Opened(id, Err(problem)) => {
                    self.step(&id, Event::LogFailed(unopened(v1::failure::Kind::Invalid, &problem)));
                }
                Told::Reopened(request, Ok(())) => {
                    self.link.reply(request, reply::Result::Done(v1::Done {}), &[]);
                }
                Told::Reopened(request, Err(problem)) => {
                    self.link.fail(request, unopened(v1::failure::Kind::Internal, &problem));
                }
                Told::Flushed(id) => self.step(&id, Event::Flushed),
            }
        }
        if self.log_writer.is_clear() {
            self.unblock();
        }
        let interest = self.log_writer.interest();
        if let Some(connection) = self.log_writer.connection() {
            self.watch.change(connection, &Source::LogWriter, interest).or_tell("watching the log writer");
        }
    }

    /// Reads outputs again that waited for the logs.
    fn unblock(&mut self) {
        for (id, out) in std::mem::take(&mut self.blocked) {
            let output = self.containers.get(&id).and_then(|container| container.outputs.get(&out));
            if let Some(output) = output {
                let added = self.watch.add(output.source.as_fd(), Source::Output(id.clone(), out));
                added.or_tell("watching an output");
            }
        }
    }
}

fn unopened(kind: v1::failure::Kind, problem: &str) -> Failure {
    failure(kind, format!("the log file cannot be opened: {problem}"))
}

/// Takes the daemon's connection from standard input. Standard error stays what it is: the file for what goes wrong, a
/// panic's words too.
fn take_connection() -> wharf_sys::Result<OwnedFd> {
    let connection =
        std::io::stdin().as_fd().try_clone_to_owned().named("dup", || "standard input".into())?;
    let null = wharf_sys::fs::open("/dev/null", nix::fcntl::OFlag::O_RDWR)?;
    nix::unistd::dup2_stdin(&null).named("dup2", || "standard input".into())?;
    nix::unistd::dup2_stdout(&null).named("dup2", || "standard output".into())?;
    Ok(connection)
}

/// The supervisor ends by request alone; children unblock all before their exec.
fn block_signals() -> wharf_sys::Result<SignalFd> {
    let mut blocked = SigSet::empty();
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE]
        .into_iter()
        .for_each(|signal| blocked.add(signal));
    blocked.thread_block().named("sigprocmask", String::new)?;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .named("signalfd", String::new)
}
