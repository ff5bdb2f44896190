//! A server whose processes are played by the test.

use std::future::pending;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use wharf_streaming::{
    AttachGrant, Backend, BackendError, Config, Error, ExecGrant, PortForwardGrant, Server, Session, Urls,
};
use wharf_types::{ContainerId, Exit, PodId, StreamOptions, TerminalSize};

/// How long any single step may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// All streams without a terminal.
pub(crate) const ALL: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: true, terminal: false };

/// A port of the pod to which connections neither succeed nor fail.
pub(crate) const STUCK_PORT: u16 = 1;

/// Input and output at a terminal.
pub(crate) const TERMINAL: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: false, terminal: true };

/// Only output.
pub(crate) const OUTPUT: StreamOptions =
    StreamOptions { stdin: false, stdout: true, stderr: false, terminal: false };

/// Waits for something, but not forever.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it should have happened by now")
}

/// A running server.
pub(crate) struct Rig {
    pub(crate) urls: Urls,
    processes: mpsc::UnboundedReceiver<Process>,
    stop: Option<oneshot::Sender<()>>,
    pod: watch::Sender<bool>,
    stuck: Arc<AtomicUsize>,
}

/// A process, from its own side.
pub(crate) struct Process {
    pub(crate) stdin: pipe::Receiver,
    pub(crate) stdout: Option<pipe::Sender>,
    pub(crate) stderr: Option<pipe::Sender>,
    /// The size of its terminal when it began.
    pub(crate) size: Option<TerminalSize>,
    pub(crate) sizes: mpsc::UnboundedReceiver<TerminalSize>,
    exit: oneshot::Sender<Exit>,
    dropped: oneshot::Receiver<()>,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let (started, processes) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let (pod, stuck) = (watch::Sender::new(false), Arc::<AtomicUsize>::default());
        let fake = Fake { started, pod_ended: pod.subscribe(), stuck: Arc::clone(&stuck) };
        let server = Server::bind(config, fake).await.unwrap();
        let urls = server.urls();
        tokio::spawn(server.serve(async {
            stopped.await.ok();
        }));
        Self { urls, processes, stop: Some(stop), pod, stuck }
    }

    /// Shuts the server down.
    pub(crate) fn end(&mut self) {
        self.stop = None;
    }

    /// Ends the pod.
    pub(crate) fn end_pod(&self) {
        self.pod.send_replace(true);
    }

    /// How many connections to the stuck port have been begun.
    pub(crate) fn stuck(&self) -> usize {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Why a server with this configuration cannot start.
    pub(crate) async fn refused(config: Config) -> Error {
        let (started, _) = mpsc::unbounded_channel();
        let (_pod, pod_ended) = watch::channel(false);
        Server::bind(config, Fake { started, pod_ended, stuck: Arc::default() }).await.unwrap_err()
    }

    /// A URL for an exec.
    pub(crate) fn exec(&self, wanted: StreamOptions) -> String {
        self.exec_of(wanted, "sh")
    }

    /// A URL for an exec that the backend refuses.
    pub(crate) fn bad_exec(&self) -> String {
        self.exec_of(OUTPUT, "bad")
    }

    /// A URL for an exec that the backend never completes.
    pub(crate) fn slow_exec(&self) -> String {
        self.exec_of(OUTPUT, "slow")
    }

    fn exec_of(&self, wanted: StreamOptions, program: &str) -> String {
        let container = ContainerId::from_random([1; 32]);
        self.urls.exec(ExecGrant { container, command: vec![program.into()], wanted }).unwrap()
    }

    pub(crate) fn attach(&self, wanted: StreamOptions) -> String {
        self.urls.attach(AttachGrant { container: ContainerId::from_random([1; 32]), wanted }).unwrap()
    }

    pub(crate) fn port_forward(&self, ports: &[u16]) -> String {
        let grant = PortForwardGrant { pod: PodId::from_random([2; 32]), ports: ports.to_vec() };
        self.urls.port_forward(grant).unwrap()
    }

    /// The next process that was started.
    pub(crate) async fn process(&mut self) -> Process {
        soon(self.processes.recv()).await.unwrap()
    }
}

impl Process {
    /// Writes to stdout.
    pub(crate) async fn print(&mut self, bytes: &[u8]) {
        write(self.stdout.as_mut().unwrap(), bytes).await.unwrap();
    }

    /// Exits.
    pub(crate) fn exit(self, exit: Exit) {
        self.exit.send(exit).unwrap();
    }

    /// Waits until nobody waits for the process any longer and all its descriptors are closed.
    pub(crate) async fn abandoned(mut self) {
        assert!(soon(&mut self.dropped).await.is_err());
        let closed = async { while write(self.stdout.as_mut().unwrap(), b"x").await.is_ok() {} };
        soon(closed).await;
    }
}

/// Writes all bytes to a pipe.
pub(crate) async fn write(pipe: &mut pipe::Sender, bytes: &[u8]) -> io::Result<()> {
    soon(tokio::io::AsyncWriteExt::write_all(pipe, bytes)).await
}

struct Fake {
    started: mpsc::UnboundedSender<Process>,
    pod_ended: watch::Receiver<bool>,
    stuck: Arc<AtomicUsize>,
}

impl Fake {
    fn start(&self, wanted: StreamOptions, size: Option<TerminalSize>) -> Result<Session, BackendError> {
        let (stdin, to_stdin) = io::pipe()?;
        let (from_stdout, stdout) = io::pipe()?;
        let (from_stderr, stderr) = io::pipe()?;
        let (exit, ended) = oneshot::channel();
        let (alive, dropped) = oneshot::channel::<()>();
        let (resized, sizes) = mpsc::unbounded_channel();
        let process = Process {
            stdin: pipe::Receiver::from_owned_fd(stdin.into())?,
            stdout: Some(pipe::Sender::from_owned_fd(stdout.into())?),
            stderr: Some(pipe::Sender::from_owned_fd(stderr.into())?),
            size,
            sizes,
            exit,
            dropped,
        };
        self.started.send(process).ok();
        Ok(Session {
            stdin: wanted.stdin.then(|| to_stdin.into()),
            stdout: wanted.stdout.then(|| from_stdout.into()),
            stderr: wanted.stderr.then(|| from_stderr.into()),
            resize: wanted.terminal.then(|| {
                Box::new(move |size| {
                    resized.send(size).ok();
                }) as _
            }),
            exit: Box::pin(async move {
                let exit = ended.await.unwrap_or(Exit::Lost);
                drop(alive);
                Ok(exit)
            }),
        })
    }
}

impl Backend for Fake {
    async fn exec(&self, grant: ExecGrant, size: Option<TerminalSize>) -> Result<Session, BackendError> {
        let session = self.start(grant.wanted, size)?;
        match grant.command[0].as_str() {
            "bad" => Err("there is no command".into()),
            // Drops the session only when it is itself dropped.
            "slow" => pending::<Result<(), _>>().await.map(|()| session),
            _ => Ok(session),
        }
    }

    async fn attach(&self, grant: AttachGrant) -> Result<Session, BackendError> {
        self.start(grant.wanted, None)
    }

    async fn connect(&self, _pod: &PodId, port: u16) -> Result<OwnedFd, BackendError> {
        if port == STUCK_PORT {
            self.stuck.fetch_add(1, Ordering::Relaxed);
            pending::<()>().await;
        }
        Ok(TcpStream::connect(("127.0.0.1", port))?.into())
    }

    async fn ended(&self, _pod: &PodId) {
        if self.pod_ended.clone().wait_for(|ended| *ended).await.is_err() {
            pending().await
        }
    }
}
