//! The supervisor's only loop: it tells the machine what has happened, and has the driver do what the machine decides.
//!
//! Each turn waits until something is ready or due, and gives each source a bounded part: one request, or some reads of
//! an output. So nobody who has much to say, be it a daemon or a container, holds up the others.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::EpollTimeout;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use wharf_state::Layout;
use wharf_sys::error::Named as _;
use wharf_types::failure::named;
use wharf_types::{ErrorKind, Failure as _};

use crate::diagnostics::{self, OrWarn as _};
use crate::driver::Driver;
use crate::failure::Failure;
use crate::link::{Link, Received};
use crate::log::frame::Refusal;
use crate::log::writer::LogEvent;
use crate::machine::{Event, Machine, client, container};
use crate::requests::{self, Payload};
use crate::watch::{Owner, Source, Watch};

/// How often everything that waits for a time or a disk is checked.
const TICK: Duration = Duration::from_secs(1);

/// A pod's supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    machine: Machine,
    driver: Driver,
    listener: OwnedFd,
    signals: SignalFd,
    last_tick: Instant,
}

impl Supervisor {
    /// Takes the connection to the daemon from standard input, and listens for later daemons.
    pub(crate) fn start(directory: PathBuf) -> wharf_sys::Result<Self> {
        let connection = take_connection()?;
        // Executed through a descriptor, its name would be the descriptor's number.
        nix::sys::prctl::set_name(c"wharf-shim").named("prctl", || "PR_SET_NAME, wharf-shim".into())?;
        // No process of a container may look into this one, nor into a child of it before its exec.
        nix::sys::prctl::set_dumpable(false).named("prctl", || "PR_SET_DUMPABLE, 0".into())?;
        nix::sys::prctl::set_child_subreaper(true).named("prctl", || "PR_SET_CHILD_SUBREAPER, 1".into())?;
        nix::unistd::setsid().map(drop).named("setsid", || "of the supervisor".into())?;
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
            machine: Machine::default(),
            driver: Driver::new(directory, watch, link)?,
            listener,
            signals,
            last_tick: Instant::now(),
        })
    }

    /// Runs until the daemon has requested the end and every process is gone, or until the daemon disconnects before it
    /// made the pod known, so that nobody will ever ask.
    pub(crate) fn run(mut self) -> ExitCode {
        while !self.machine.is_over() {
            let driver = &self.driver;
            let has_to_tick =
                self.machine.waits() || driver.log_writer.is_awake() || driver.link.is_starved();
            let tick = EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::NONE);
            let timeout = if has_to_tick { tick } else { EpollTimeout::NONE };
            let ready = self.driver.watch.wait(timeout);
            self.handle(Event::Time { now_ns: wharf_sys::clock::monotonic_ns() });
            for source in ready {
                self.dispatch(source);
            }
            self.tick();
            self.serve_log_writer();
            self.serve_link();
        }
        ExitCode::SUCCESS
    }

    /// Passes an event to the machine, carries out what it decides, and tells it the results.
    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.machine.step(event) {
                events.extend(self.driver.act(action));
            }
        }
    }

    fn handle_all(&mut self, events: Vec<Event>) {
        for event in events {
            self.handle(event);
        }
    }

    /// Finds out what it means that a descriptor is ready.
    fn dispatch(&mut self, source: Source) {
        match source {
            Source::Report(owner) => self.reported(&owner),
            Source::Exit(owner) => self.exited(&owner),
            Source::Output(id, out) => {
                let events = self.driver.pump_output(&id, out);
                self.handle_all(events);
            }
            Source::Client(_, number) => self.handle(Event::Client(number, client::Event::Left)),
            Source::Reaper => self.driver.reaper_ended(),
            Source::Sandbox => {
                let event = self.driver.sandbox_ended();
                self.handle(event);
            }
            Source::Signals => self.signalled(),
            Source::LogWriter => self.driver.log_writer.receive(),
            Source::Link => self.link_ready(),
            Source::Listener => self.accept(),
        }
    }

    fn reported(&mut self, owner: &Owner) {
        while let Some(event) = self.driver.report(owner) {
            self.handle(event);
        }
    }

    /// Its reports come first, because another process may continue in its place.
    fn exited(&mut self, owner: &Owner) {
        self.reported(owner);
        let events = self.driver.end(owner);
        self.handle_all(events);
    }

    /// Children that are watched are seen by their pidfds; here is only what they have left behind.
    fn signalled(&mut self) {
        // None queues, so one read is enough; what comes meanwhile is seen in the next round.
        match self.signals.read_signal() {
            Ok(Some(signal)) if says_machine_ends(&signal) => self.handle(Event::MachineEnds),
            Ok(_) => {}
            Err(errno) => diagnostics::warn(format_args!("reading a signal: {errno}")),
        }
        self.driver.reap_strays();
    }

    // Its frame is large: inlined, it would be a part of each turn's, and so of every supervisor's memory.
    #[inline(never)]
    fn link_ready(&mut self) {
        self.driver.link.pump();
        match self.driver.link.receive() {
            Received::Request(id, message, descriptors) => {
                let (request, payload) = requests::parse(message.body, descriptors);
                self.driver.payload = payload;
                self.handle(Event::Request(id, request));
                // If the request was refused, what belongs to it is dropped.
                self.driver.payload = Payload::Empty;
            }
            Received::Nothing => {}
            Received::Closed => {
                self.close_link();
                self.handle(Event::Disconnected);
            }
        }
    }

    fn close_link(&mut self) {
        let Driver { link, watch, .. } = &mut self.driver;
        if let Some(socket) = link.socket() {
            watch.remove(socket, &Source::Link);
        }
        link.close();
    }

    /// A new daemon takes over from the old one, which may hang.
    fn accept(&mut self) {
        let socket = match wharf_sys::socket::accept(self.listener.as_fd()) {
            Ok((socket, uid)) if uid == nix::unistd::geteuid().as_raw() => socket,
            Ok((_, uid)) => {
                return diagnostics::warn(format_args!("refused a connection of user {uid}"));
            }
            // It disconnected before it was accepted.
            Err(error) if matches!(error.errno, Errno::EAGAIN | Errno::ECONNABORTED) => return,
            Err(error) => return diagnostics::warn(format_args!("accepting a daemon's connection: {error}")),
        };
        self.close_link();
        let Driver { link, watch, .. } = &mut self.driver;
        link.open(socket).or_warn("taking a daemon's connection");
        let watched = link.socket().map(|socket| watch.add(socket, Source::Link));
        if let Some(Err(error)) = watched {
            diagnostics::warn(format_args!("a daemon's connection cannot be watched: {error}"));
            link.close();
        }
        let event = if link.socket().is_some() { Event::Connected } else { Event::Disconnected };
        self.handle(event);
    }

    /// What is due each second.
    fn tick(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.last_tick) >= TICK {
            self.last_tick = now;
            self.driver.log_writer.tick(now);
        }
    }

    fn serve_link(&mut self) {
        let Driver { link, watch, .. } = &mut self.driver;
        if link.is_starved() {
            link.pump();
        }
        let interest = link.interest();
        if let Some(socket) = link.socket() {
            watch.change(socket, &Source::Link, interest).or_warn("watching the daemon's connection");
        }
    }

    /// Starts, feeds and drops the log writer, and passes on its replies.
    fn serve_log_writer(&mut self) {
        self.driver.run_log_writer();
        for event in self.driver.log_writer.take_events() {
            self.handle(meaning(event));
        }
        self.driver.resume_outputs();
        if !self.driver.log_writer.is_awake() {
            self.driver.let_buffer_go();
        }
    }
}

/// What an event of the log writer means to the machine. A request to create a container names the log and may be at
/// fault; a request to reopen the log does not name it, and its caller cannot mend it.
fn meaning(event: LogEvent) -> Event {
    match event {
        LogEvent::Opened(id, Ok(())) => Event::Container(id, container::Event::LogOpened),
        LogEvent::Opened(id, Err(refusal)) => {
            let failure = unopened(named(refusal.errno), &refusal);
            Event::Container(id, container::Event::LogFailed(failure))
        }
        LogEvent::Reopened(request, outcome) => {
            let outcome = outcome.map_err(|refusal| unopened(refusal.errno.kind(), &refusal));
            Event::Settled { request, outcome }
        }
        LogEvent::Flushed(id) => Event::Container(id, container::Event::Flushed),
    }
}

fn unopened(kind: ErrorKind, refusal: &Refusal) -> Failure {
    Failure::new(kind.into(), format!("the log file cannot be opened: {}", refusal.message))
}

/// Takes the connection to the daemon from standard input. Standard error stays what it is: the file for what goes
/// wrong, the text of a panic included.
fn take_connection() -> wharf_sys::Result<OwnedFd> {
    let input = wharf_sys::descriptors::standard_input()?;
    let connection = input.try_clone_to_owned().named("dup", || "standard input".into())?;
    let null = wharf_sys::fs::open("/dev/null", nix::fcntl::OFlag::O_RDWR)?;
    nix::unistd::dup2_stdin(&null).named("dup2", || "standard input".into())?;
    nix::unistd::dup2_stdout(&null).named("dup2", || "standard output".into())?;
    Ok(connection)
}

/// Whether this is the SIGTERM of the machine's init. That of anybody else has no effect.
fn says_machine_ends(signal: &siginfo) -> bool {
    signal.ssi_signo == Signal::SIGTERM as u32 && signal.ssi_code == nix::libc::SI_USER && signal.ssi_pid == 1
}

/// Only a request ends the supervisor, or the end of the machine; children unblock all signals before their exec.
fn block_signals() -> wharf_sys::Result<SignalFd> {
    let mut blocked = SigSet::empty();
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE]
        .into_iter()
        .for_each(|signal| blocked.add(signal));
    blocked.thread_block().named("sigprocmask", || "SIG_BLOCK".into())?;
    let mut read = SigSet::empty();
    [Signal::SIGCHLD, Signal::SIGTERM].into_iter().for_each(|signal| read.add(signal));
    SignalFd::with_flags(&read, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .named("signalfd", || "SIGCHLD and SIGTERM".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::RequestId;
    use wharf_types::ContainerId;
    use wharf_wire::v1::failure::Kind;

    #[test]
    fn a_log_that_cannot_be_opened_is_the_fault_of_who_named_it() {
        let refused = |errno| Err(Refusal { errno, message: "open 0.log".to_owned() });
        for (errno, opened, reopened) in [
            (Errno::ENOENT, Kind::Invalid, Kind::Internal),
            (Errno::ELOOP, Kind::Invalid, Kind::Internal),
            (Errno::ENOSPC, Kind::Exhausted, Kind::Exhausted),
            (Errno::EMFILE, Kind::Exhausted, Kind::Exhausted),
            (Errno::EIO, Kind::Internal, Kind::Internal),
        ] {
            let id = ContainerId::from_random([1; 32]);
            let Event::Container(_, container::Event::LogFailed(failure)) =
                meaning(LogEvent::Opened(id, refused(errno)))
            else {
                panic!("{errno} is a failure")
            };
            assert_eq!(
                (failure.kind, &*failure.message),
                (opened, "the log file cannot be opened: open 0.log")
            );
            let request = RequestId::of_test(1);
            let Event::Settled { outcome: Err(failure), .. } =
                meaning(LogEvent::Reopened(request, refused(errno)))
            else {
                panic!("{errno} is a failure")
            };
            assert_eq!(failure.kind, reopened, "{errno}");
        }
    }
}
