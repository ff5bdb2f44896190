//! A supervisor as a program, and the daemon's end of its connection.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use wharf_cgroup::{Cgroup, CgroupPath, Cgroups};
use wharf_isolation::{CgroupPlan, Plan};
use wharf_state::Layout;
use wharf_sys::socket;
use wharf_wire::v1::{self, Message, Request, failure::Kind, message, reply, request};

use crate::rig_plan::{self, host};

/// What an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const PROGRAM: &str = env!("CARGO_BIN_EXE_wharf-shim");

/// A supervisor of a pod in a directory of its own; killed when dropped, and its containers with it.
pub(crate) struct Supervisor {
    process: Child,
    link: OwnedFd,
    pub(crate) directory: tempfile::TempDir,
    requests: u64,
    events: VecDeque<message::Body>,
}

impl Supervisor {
    pub(crate) fn start() -> Self {
        #[expect(clippy::disallowed_methods, reason = "it is the program that is tested")]
        Self::start_with(Command::new(PROGRAM))
    }

    /// Starts it below an init of its own, which sends it SIGTERM after [`Supervisor::end_machine`], and exits as it
    /// does.
    pub(crate) fn start_below_init() -> Self {
        const INIT: &str =
            r#"exec 3<&0 </dev/null; "$0" "$1" <&3 3<&- & exec 3<&-; read -r _ <"$1/end"; kill $!; wait $!"#;
        #[expect(clippy::disallowed_methods, reason = "it is the program that is tested")]
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "sh", "-c", INIT, PROGRAM]);
        Self::start_with(command)
    }

    fn start_with(mut command: Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for path in Layout::directories(&directory.path().join("pod")) {
            fs::create_dir(path).unwrap();
        }
        let pod = directory.path().join("pod");
        nix::unistd::mkfifo(&pod.join("end"), Mode::S_IRWXU).unwrap();
        let (link, theirs) = socket::pair().unwrap();
        command.arg(&pod).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        command.stderr(File::create(Layout::supervisor_log(&pod)).unwrap());
        let process = command.spawn().unwrap();
        let mut supervisor = Self { process, link, directory, requests: 0, events: VecDeque::new() };
        let hold = vec![v1::Held::Mounts.into(), v1::Held::Empty.into()];
        let hello = request::Body::Hello(v1::Hello { version: wharf_wire::VERSION, hold });
        let (answer, _) = supervisor.ask(hello, &rig_plan::pod().each_ref().map(OwnedFd::as_fd));
        assert!(matches!(answer, reply::Result::State(_)), "{answer:?}");
        supervisor
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The pod's directory.
    pub(crate) fn pod(&self) -> PathBuf {
        self.directory.path().join("pod")
    }

    /// Takes the place of the daemon that it has been talking to.
    pub(crate) fn take_over(&mut self) {
        self.link = socket::connect(&Layout::supervisor_socket(&self.pod())).unwrap();
        self.events.clear();
    }

    /// Asks for something, and returns the answer with what is beside it.
    pub(crate) fn ask(
        &mut self,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> (reply::Result, Vec<OwnedFd>) {
        self.send(body, descriptors);
        self.answer()
    }

    pub(crate) fn send(&mut self, body: request::Body, descriptors: &[BorrowedFd<'_>]) {
        self.send_until(0, body, descriptors);
    }

    pub(crate) fn send_until(
        &mut self,
        deadline_ns: u64,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) {
        self.requests += 1;
        let request = Request { id: self.requests, deadline_ns, body: Some(body) };
        wharf_wire::send(self.link.as_fd(), &request, descriptors).unwrap();
    }

    /// The next answer.
    pub(crate) fn answer(&mut self) -> (reply::Result, Vec<OwnedFd>) {
        loop {
            match self.receive() {
                (message::Body::Reply(reply), descriptors) => return (reply.result.unwrap(), descriptors),
                (event, _none) => self.events.push_back(event),
            }
        }
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> message::Body {
        match self.events.pop_front() {
            Some(event) => event,
            None => self.receive().0,
        }
    }

    /// Sends what may be no request.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) {
        socket::send(self.link.as_fd(), bytes, &[]).unwrap();
    }

    /// Whether the next that it does is to close the connection.
    pub(crate) fn is_disconnected(&self) -> bool {
        self.await_ready();
        matches!(socket::receive(self.link.as_fd(), &mut [0; 100]), Ok((0, _)))
    }

    fn await_ready(&self) {
        let mut ready = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut ready, patience).unwrap(), 1, "it says something: {}", self.log());
    }

    fn receive(&self) -> (message::Body, Vec<OwnedFd>) {
        self.await_ready();
        let message = wharf_wire::receive::<Message>(self.link.as_fd()).unwrap();
        let (message, descriptors) = message.unwrap_or_else(|| panic!("it is there: {}", self.log()));
        (message.body.unwrap(), descriptors)
    }

    /// What it could tell nobody.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(Layout::supervisor_log(&self.pod())).unwrap()
    }

    // ---- What is asked for ----

    #[track_caller]
    pub(crate) fn done(&mut self, body: request::Body) {
        let (answer, _) = self.ask(body, &[]);
        assert_eq!(answer, reply::Result::Done(v1::Done {}));
    }

    #[track_caller]
    pub(crate) fn refused(&mut self, body: request::Body, descriptors: &[BorrowedFd<'_>]) -> (Kind, String) {
        match self.ask(body, descriptors).0 {
            reply::Result::Failure(failure) => (failure.kind(), failure.message),
            other => panic!("{other:?} is no failure"),
        }
    }

    /// Makes a container of a plan.
    #[track_caller]
    pub(crate) fn create(&mut self, plan: &Plan) -> v1::Created {
        let file = wharf_wire::to_file(&v1::Plan::from(plan)).unwrap();
        match self.ask(create(plan), &[file.as_fd()]).0 {
            reply::Result::Created(created) => created,
            other => panic!("{other:?}: {}", self.log()),
        }
    }

    #[track_caller]
    pub(crate) fn start_container(&mut self, plan: &Plan) {
        let body = request::Body::Start(v1::Start { container: plan.container.to_string() });
        let (answer, _) = self.ask(body, &[]);
        assert!(matches!(answer, reply::Result::Started(_)), "{answer:?}: {}", self.log());
    }

    #[track_caller]
    pub(crate) fn state(&mut self) -> v1::State {
        match self.ask(hello(), &[]).0 {
            reply::Result::State(state) => state,
            other => panic!("{other:?} is no state"),
        }
    }

    /// How a container ended, once it has.
    #[track_caller]
    pub(crate) fn exit(&mut self) -> v1::ContainerExited {
        loop {
            match self.event() {
                message::Body::ContainerExited(exited) => return exited,
                message::Body::ContainerStarted(_) => {}
                other => panic!("{other:?} is no end"),
            }
        }
    }

    /// Asks for the end, and waits for it.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.done(request::Body::Shutdown(v1::Shutdown {}));
        self.process.wait().unwrap()
    }

    /// Has its init end everything.
    pub(crate) fn end_machine(&self) {
        fs::write(self.pod().join("end"), "now\n").unwrap();
    }

    /// Waits until it ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

pub(crate) fn hello() -> request::Body {
    request::Body::Hello(v1::Hello { version: wharf_wire::VERSION, hold: Vec::new() })
}

pub(crate) fn create(plan: &Plan) -> request::Body {
    request::Body::Create(v1::Create { container: plan.container.to_string() })
}

/// A cgroup of a test's own, for a container whose commands need one; removed with the test.
pub(crate) struct Fresh(Cgroup);

impl Fresh {
    pub(crate) fn new(name: &str) -> Self {
        let path = CgroupPath::new(&format!("/wharf-test-{}-{name}", std::process::id())).unwrap();
        Self(Cgroups::detect().unwrap().create(&path).unwrap())
    }

    pub(crate) fn plan(&self) -> CgroupPlan {
        let entry = self.0.entry();
        CgroupPlan {
            directory: entry.directory.map(host),
            entries: entry.tasks.into_iter().map(host).collect(),
            kill_directory: host(self.0.kill_directory()),
            oom_file: self.0.oom_file().map(host),
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.0.kill(PATIENCE).unwrap();
        self.0.remove(PATIENCE).unwrap();
    }
}

/// Waits until a file has this text.
pub(crate) fn has_text(path: &Path, text: &str) {
    let start = Instant::now();
    loop {
        let found = fs::read_to_string(path).unwrap_or_default();
        if found.contains(text) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{} has not {text:?}: {found}", path.display());
        std::thread::yield_now();
    }
}
