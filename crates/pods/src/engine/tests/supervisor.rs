//! A supervisor without processes. It does at once what it is asked, except what the test has it refuse.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use wharf_types::signal::SIGKILL;
use wharf_types::{ContainerId, Exit};
use wharf_wire::v1::{self, container_status::Phase, failure, message, reply, request};

/// The pid of every first process.
pub(super) const PID: i32 = 4711;
/// The exit code of every command.
pub(super) const COMMAND_CODE: u8 = 3;

/// The daemon's view of it is the other end of its socket.
pub(super) struct Supervisor {
    socket: Arc<OwnedFd>,
    mind: Arc<Mutex<Mind>>,
}

/// What it knows, and what it was told to do.
#[derive(Default)]
struct Mind {
    asked: Vec<String>,
    containers: Vec<v1::ContainerStatus>,
    /// The containers that it made and whose ends it has not reported.
    living: BTreeSet<String>,
    /// The numbers of attached clients.
    attached: Vec<u64>,
    refused: Option<(&'static str, failure::Kind)>,
    ignored: Option<&'static str>,
    /// How a container ends before the request for it is answered.
    early: Option<(&'static str, Exit)>,
}

/// What it reports unasked.
pub(super) type Body = message::Body;

impl Supervisor {
    /// Starts one, and returns the daemon's end of the connection.
    pub(super) fn start() -> (Self, OwnedFd) {
        let (ours, theirs) = wharf_sys::socket::pair().unwrap();
        (Self::prepared(theirs, |_| {}), ours)
    }

    /// One that knows something before it serves its connection.
    pub(super) fn prepared(socket: OwnedFd, prepare: impl FnOnce(&Self)) -> Self {
        let supervisor = Self { socket: Arc::new(socket), mind: Arc::default() };
        prepare(&supervisor);
        let (socket, mind) = (Arc::clone(&supervisor.socket), Arc::clone(&supervisor.mind));
        std::thread::spawn(move || serve(&socket, &mind));
        supervisor
    }

    fn mind(&self) -> MutexGuard<'_, Mind> {
        self.mind.lock().unwrap()
    }

    /// The requests so far, without greetings.
    pub(super) fn asked(&self) -> Vec<String> {
        self.mind().asked.clone()
    }

    /// The numbers of the clients that were attached.
    pub(super) fn attached(&self) -> Vec<u64> {
        self.mind().attached.clone()
    }

    /// Has it refuse every request of a kind.
    pub(super) fn refuse(&self, request: &'static str, kind: failure::Kind) {
        self.mind().refused = Some((request, kind));
    }

    /// Has it do everything again.
    pub(super) fn relent(&self) {
        let mut mind = self.mind();
        (mind.refused, mind.ignored) = (None, None);
    }

    /// Has it answer every request of a kind without doing it.
    pub(super) fn ignore(&self, request: &'static str) {
        self.mind().ignored = Some(request);
    }

    /// Has a container end before the next request of a kind is answered.
    pub(super) fn end_before(&self, request: &'static str, exit: Exit) {
        self.mind().early = Some((request, exit));
    }

    /// Gives it a container that this daemon has not made.
    pub(super) fn hold(&self, id: &ContainerId, phase: Phase) {
        let mut status = status(id.as_str());
        (status.phase, status.started_at_ns) = (phase.into(), 10);
        self.mind().containers.push(status);
    }

    /// The same for one that has ended.
    pub(super) fn hold_ended(&self, id: &ContainerId, exit: Exit) {
        self.hold(id, Phase::Exited);
        self.mind().containers.last_mut().unwrap().exit = Some(exit.into());
    }

    /// Reports something.
    pub(super) fn report(&self, report: Body) {
        send(&self.socket, report);
    }

    /// Dies, with everything that it supervised.
    pub(super) fn die(&self) {
        wharf_sys::socket::shut_down(self.socket.as_fd());
    }
}

/// The report of a container's end.
pub(super) fn exited(container: &str, exit: Exit) -> Body {
    let exited =
        v1::ContainerExited { container: container.to_owned(), exit: Some(exit.into()), finished_at_ns: 20 };
    Body::ContainerExited(exited)
}

fn status(container: &str) -> v1::ContainerStatus {
    v1::ContainerStatus {
        id: container.to_owned(),
        phase: Phase::Created.into(),
        pid: PID,
        ..v1::ContainerStatus::default()
    }
}

fn send(socket: &OwnedFd, body: Body) {
    // The daemon may have closed its end by then.
    wharf_wire::send(socket.as_fd(), &v1::Message { body: Some(body) }, &[]).ok();
}

/// Serves until the daemon closes its end.
fn serve(socket: &OwnedFd, mind: &Mutex<Mind>) {
    while let Ok(Some((request, files))) = wharf_wire::receive::<v1::Request>(socket.as_fd()) {
        let body = request.body.unwrap();
        let (before, result, after) = mind.lock().unwrap().answer(&body, files);
        before.into_iter().for_each(|report| send(socket, report));
        send(socket, Body::Reply(v1::Reply { id: request.id, result: Some(result) }));
        after.into_iter().for_each(|report| send(socket, report));
    }
}

impl Mind {
    /// The reply to a request, and what is reported before and after it.
    fn answer(
        &mut self,
        body: &request::Body,
        files: Vec<OwnedFd>,
    ) -> (Option<Body>, reply::Result, Option<Body>) {
        let name = name(body);
        if name != "hello" {
            self.asked.push(name.clone());
        }
        let early = self.early.take_if(|(request, _)| *request == name);
        let before = early.zip(container(body)).map(|((_, exit), container)| exited(container, exit));
        match self.refused {
            Some((refused, kind)) if refused == name => {
                let failure = v1::Failure {
                    kind: kind.into(),
                    message: format!("{name} is refused"),
                    ..Default::default()
                };
                (before, reply::Result::Failure(failure), None)
            }
            _ if self.ignored == Some(name.as_str()) => (before, reply::Result::Done(v1::Done {}), None),
            _ => {
                let (result, after) = self.act(body, files);
                (before, result, after)
            }
        }
    }

    fn act(&mut self, body: &request::Body, files: Vec<OwnedFd>) -> (reply::Result, Option<Body>) {
        use request::Body as Asked;
        let done = reply::Result::Done(v1::Done {});
        match body {
            Asked::Hello(_) => {
                let features = wharf_wire::FEATURES.map(str::to_owned).to_vec();
                let containers = self.containers.clone();
                (reply::Result::State(v1::State { features, containers, ..v1::State::default() }), None)
            }
            Asked::Create(create) => {
                let status = status(&create.container);
                let identity = Some(v1::Identity { uid: 7, gid: 8, groups: vec![8] });
                let created = v1::Created { pid: status.pid, identity, stages: vec![] };
                self.living.insert(create.container.clone());
                self.containers.push(status);
                (reply::Result::Created(created), None)
            }
            Asked::Start(_) => {
                (reply::Result::Started(v1::Started { started_at_ns: 10, pid: PID, stage: None }), None)
            }
            Asked::Signal(signal) => {
                let number = u8::try_from(signal.number).unwrap();
                let lived = self.living.remove(&signal.container);
                (done, lived.then(|| exited(&signal.container, Exit::Signal { number, oom: false })))
            }
            Asked::Remove(remove) => {
                self.containers.retain(|status| status.id != remove.container);
                (done, None)
            }
            Asked::Exec(exec) => {
                // The last two are its outputs.
                for (file, text) in files.into_iter().rev().zip(["problems", "output"]) {
                    std::fs::File::from(file).write_all(text.as_bytes()).unwrap();
                }
                let exit = Some(Exit::Code(COMMAND_CODE).into());
                (done, Some(Body::ExecExited(v1::ExecExited { exec: exec.exec, exit })))
            }
            Asked::Attach(attach) => {
                self.attached.push(attach.attach);
                (done, None)
            }
            Asked::KillExec(kill) => {
                let exit = Some(Exit::Signal { number: SIGKILL, oom: false }.into());
                (done, Some(Body::ExecExited(v1::ExecExited { exec: kill.exec, exit })))
            }
            Asked::ReopenLog(_) | Asked::Shutdown(_) | Asked::Lend(_) => (done, None),
        }
    }
}

/// The container that a request is to bring further.
fn container(body: &request::Body) -> Option<&str> {
    match body {
        request::Body::Create(create) => Some(&create.container),
        request::Body::Start(start) => Some(&start.container),
        _ => None,
    }
}

fn name(body: &request::Body) -> String {
    use request::Body as Asked;
    let name = match body {
        Asked::Hello(_) => "hello",
        Asked::Create(_) => "create",
        Asked::Start(_) => "start",
        Asked::Signal(signal) if signal.all => "kill",
        Asked::Signal(signal) => return format!("signal {}", signal.number),
        Asked::Remove(_) => "remove",
        Asked::Exec(_) => "exec",
        Asked::KillExec(_) => "kill exec",
        Asked::Attach(_) => "attach",
        Asked::ReopenLog(_) => "reopen log",
        Asked::Shutdown(_) => "shut down",
        Asked::Lend(_) => "lend",
    };
    name.to_owned()
}
