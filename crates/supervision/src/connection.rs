//! The daemon's end of the connection to a supervisor: requests with their replies, and events.
//!
//! A request has a deadline, which travels with it, so that the supervisor does not begin what nobody waits for any
//! more. A connection that ends says nothing about the supervisor: only its process does.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use wharf_types::lock::lock;
use wharf_types::{Stage as _, StageError, chain};
use wharf_wire::v1::{self, Message, Request, message, reply, request};

use crate::error::SupervisorError;
use crate::features::Features;
use crate::held::HeldPaths;
use crate::{ANSWER_PATIENCE, BRIEF_PATIENCE, number};

type ReplySender = oneshot::Sender<(reply::Result, Vec<OwnedFd>)>;

/// How many requests may wait for one supervisor, so that a stopped one cannot use up the daemon's memory.
const REQUESTS_LIMIT: usize = 1024;
/// How many events may wait to be handled. A supervisor keeps what is not accepted, and sends it later.
const EVENTS_LIMIT: usize = 256;

/// A connection to one supervisor.
#[derive(Debug)]
pub struct Connection {
    socket: Arc<UnixStream>,
    shared: Arc<Shared>,
    next: AtomicU64,
    /// What it can do; empty until it has been greeted.
    features: OnceLock<Features>,
    /// What the supervisor holds for the pod; unset until the greeting is answered.
    held: OnceLock<HeldPaths>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The callers that wait for replies, by the number of their request.
    waiting: Mutex<HashMap<u64, ReplySender>>,
    /// Whether anything has arrived since the last call of `was_heard`.
    heard: AtomicBool,
    /// Whether a reply did not come in time and nothing has arrived since.
    silent: AtomicBool,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, ReplySender>> {
        lock(&self.waiting)
    }

    fn answer(&self, reply: v1::Reply, descriptors: Vec<OwnedFd>) {
        let waiter = self.waiting().remove(&reply.id);
        if let (Some(waiter), Some(result)) = (waiter, reply.result) {
            let _caller_may_be_gone = waiter.send((result, descriptors));
        }
    }
}

impl Connection {
    /// Takes a connected socket. Events come out of the returned queue, which ends with the connection.
    pub fn new(socket: OwnedFd) -> Result<(Self, mpsc::Receiver<message::Body>), StageError> {
        const STAGE: &str = "the supervisor's connection";
        // It serves only for readiness: messages are sent and received by the wire's own functions.
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true).stage(STAGE)?;
        let socket = Arc::new(UnixStream::from_std(socket).stage(STAGE)?);
        let shared = Arc::new(Shared::default());
        let (sender, events) = mpsc::channel(EVENTS_LIMIT);
        tokio::spawn(read(Arc::clone(&socket), Arc::clone(&shared), sender));
        // These are numbers that no other daemon has used, so that late replies to another daemon match no request.
        Ok((
            Self {
                socket,
                shared,
                next: AtomicU64::new(number()),
                features: OnceLock::new(),
                held: OnceLock::new(),
            },
            events,
        ))
    }

    /// Whether a reply did not come in time and the supervisor has been silent since.
    pub fn is_silent(&self) -> bool {
        self.shared.silent.load(Ordering::Relaxed)
    }

    /// The features that the supervisor has announced.
    pub fn features(&self) -> Features {
        self.features.get().cloned().unwrap_or_default()
    }

    /// What the supervisor reported that it holds for the pod.
    pub fn held(&self) -> HeldPaths {
        self.held.get().cloned().unwrap_or_default()
    }

    /// Whether anything has arrived since the last call.
    pub fn was_heard(&self) -> bool {
        self.shared.heard.swap(false, Ordering::Relaxed)
    }

    /// Asks for the supervisor's whole state, and waits for the answer as long as the connection lasts. The daemon that
    /// makes the pod passes in `hold` what the supervisor is to hold for the pod from now on.
    pub async fn greet(&self, hold: &[(v1::Held, BorrowedFd<'_>)]) -> Result<v1::State, StageError> {
        const STAGE: &str = "greeting the pod's supervisor";
        let (kinds, descriptors): (Vec<i32>, Vec<_>) =
            hold.iter().map(|(held, descriptor)| (i32::from(*held), *descriptor)).unzip();
        let hello = request::Body::Hello(v1::Hello { version: wharf_wire::VERSION, hold: kinds });
        let hello = Request { body: Some(hello), ..Request::default() };
        match self.exchange(STAGE, hello, &descriptors).await? {
            (reply::Result::State(state), _) => {
                // The features stay the same as long as it lives.
                self.features.get_or_init(|| Features::new(state.features.clone()));
                self.held.get_or_init(|| HeldPaths::of(&state));
                Ok(state)
            }
            _ => Err(StageError::at(STAGE, SupervisorError::Protocol { expected: "its state" })),
        }
    }

    /// Whether the supervisor responds soon.
    pub async fn greet_briefly(&self) -> bool {
        let hello = request::Body::Hello(v1::Hello { version: wharf_wire::VERSION, hold: Vec::new() });
        self.within(BRIEF_PATIENCE, "greeting the pod's supervisor", hello, &[]).await.is_ok()
    }

    /// Sends a request with descriptors, and waits for the reply and its descriptors.
    pub(crate) async fn call(
        &self,
        stage: &'static str,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(reply::Result, Vec<OwnedFd>), StageError> {
        // One that has been silent for long is not waited for as long each time.
        let patience = if self.is_silent() { BRIEF_PATIENCE } else { ANSWER_PATIENCE };
        self.within(patience, stage, body, descriptors).await
    }

    /// The same, for at most this long.
    pub(crate) async fn within(
        &self,
        patience: Duration,
        stage: &'static str,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(reply::Result, Vec<OwnedFd>), StageError> {
        let answer = self.answer_within(patience, stage, body, descriptors).await;
        answer.unwrap_or_else(|| {
            self.shared.silent.store(true, Ordering::Relaxed);
            Err(StageError::at(stage, SupervisorError::Silent { patience }))
        })
    }

    /// The same; `None` if there is no reply in time, which says nothing about the supervisor if a container's process
    /// has the work.
    pub(crate) async fn answer_within(
        &self,
        patience: Duration,
        stage: &'static str,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Option<Result<(reply::Result, Vec<OwnedFd>), StageError>> {
        let deadline_ns = deadline_ns(&body, patience);
        let exchange = self.exchange(stage, Request { id: 0, deadline_ns, body: Some(body) }, descriptors);
        tokio::time::timeout(patience, exchange).await.ok()
    }

    async fn exchange(
        &self,
        stage: &'static str,
        mut request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(reply::Result, Vec<OwnedFd>), StageError> {
        request.id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut waiting = Waiting::new(&self.shared, request.id, stage)?;
        self.send(&request, descriptors).await.map_err(SupervisorError::from).stage(stage)?;
        let answer = (&mut waiting.answer).await.map_err(|_closed| SupervisorError::Gone);
        match answer.stage(stage)? {
            (reply::Result::Failure(failure), _) => {
                Err(StageError::at(stage, SupervisorError::from(failure)))
            }
            answer => Ok(answer),
        }
    }

    async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), wharf_wire::Error> {
        let mut refused = None;
        // Inside the call that waits, so that a full socket is waited for and not polled.
        let sent = self.socket.async_io(Interest::WRITABLE, || {
            match wharf_wire::send(self.socket.as_fd(), request, descriptors) {
                Err(error) if error.would_block() => Err(std::io::ErrorKind::WouldBlock.into()),
                Err(error) => {
                    refused = Some(error);
                    Ok(())
                }
                Ok(()) => Ok(()),
            }
        });
        let waited = sent.await;
        match (refused, waited) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(error)) => {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                Err(wharf_wire::Error::Socket(wharf_sys::Error::new("poll", "the connection", errno)))
            }
        }
    }
}

/// The monotonic time from which a request must no longer be carried out. It comes before the caller is told of the
/// failure, because the caller may then repeat the request. A request that only ends something is carried out whenever
/// it arrives: its caller has ended the thing by force in the meantime, or is about to.
fn deadline_ns(body: &request::Body, patience: Duration) -> u64 {
    use request::Body;
    match body {
        Body::Hello(_)
        | Body::Lend(_)
        | Body::Signal(_)
        | Body::KillExec(_)
        | Body::Remove(_)
        | Body::Shutdown(_) => 0,
        Body::Create(_) | Body::Start(_) | Body::Exec(_) | Body::Attach(_) | Body::ReopenLog(_) => {
            let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
            wharf_sys::clock::monotonic_ns().saturating_add(patience_ns)
        }
    }
}

/// A place among the callers that wait for a reply; dropping it gives up the wait.
struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
    answer: oneshot::Receiver<(reply::Result, Vec<OwnedFd>)>,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, id: u64, stage: &'static str) -> Result<Self, StageError> {
        let (sender, answer) = oneshot::channel();
        let mut waiting = shared.waiting();
        if waiting.len() >= REQUESTS_LIMIT {
            return Err(StageError::at(stage, SupervisorError::Busy { limit: REQUESTS_LIMIT }));
        }
        waiting.insert(id, sender);
        Ok(Self { shared, id, answer })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.id);
    }
}

/// Receives until the connection ends: replies go to their callers, events into the queue.
async fn read(socket: Arc<UnixStream>, shared: Arc<Shared>, events: mpsc::Sender<message::Body>) {
    while let Some((message, descriptors)) = receive(&socket).await {
        shared.heard.store(true, Ordering::Relaxed);
        shared.silent.store(false, Ordering::Relaxed);
        let event = match message.body {
            Some(message::Body::Reply(reply)) => {
                shared.answer(reply, descriptors);
                continue;
            }
            Some(event) => event,
            // It is from a newer release, and nobody here waits for it.
            None => continue,
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    shared.waiting().clear();
}

/// The next message; `None` when the connection has ended.
async fn receive(socket: &UnixStream) -> Option<(Message, Vec<OwnedFd>)> {
    loop {
        socket.readable().await.ok()?;
        let mut received = None;
        let tried =
            socket.try_io(Interest::READABLE, || match wharf_wire::receive::<Message>(socket.as_fd()) {
                Err(error) if error.would_block() => Err(std::io::ErrorKind::WouldBlock.into()),
                other => {
                    received = Some(other);
                    Ok(())
                }
            });
        // After a spurious wakeup, waits again.
        if let (Ok(()), Some(received)) = (tried, received) {
            return received.unwrap_or_else(|error| {
                // What happened to its socket is shown by its process.
                if !matches!(error, wharf_wire::Error::Socket(_)) {
                    tracing::warn!(error = chain(&error), "the connection to a supervisor is given up");
                }
                None
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use wharf_types::{ErrorKind, Failure as _};

    /// One thread for all tasks: a send that blocked it would stop everything else.
    #[test]
    fn a_supervisor_that_does_not_read_holds_up_its_own_calls_and_nothing_else() {
        const CALLS: u64 = 1000;
        let (ours, theirs) = wharf_sys::socket::pair().unwrap();
        let (others_went_on, seen) = std::sync::mpsc::channel();
        let daemon = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (connection, _events) = Connection::new(ours).unwrap();
                let body = request::Body::KillExec(v1::KillExec { exec: 7 });
                let requests: Vec<_> =
                    (0..CALLS).map(|id| Request { id, body: Some(body.clone()), deadline_ns: 0 }).collect();
                let sends = requests.iter().map(|request| connection.send(request, &[]));
                let sends = futures_util::future::try_join_all(sends);
                let other = async { others_went_on.send(()).unwrap() };
                tokio::join!(sends, other).0.unwrap();
            });
        });
        seen.recv_timeout(Duration::from_secs(20)).expect("a task beside the sends goes on");
        let receive = || wharf_wire::receive::<Request>(theirs.as_fd()).unwrap().unwrap().0.id;
        let mut received: Vec<u64> = (0..CALLS).map(|_| receive()).collect();
        received.sort_unstable();
        assert_eq!(received, (0..CALLS).collect::<Vec<_>>(), "each once, now that it reads");
        daemon.join().unwrap();
    }

    /// A supervisor may still answer what an earlier daemon asked for.
    #[tokio::test]
    async fn no_request_has_the_number_of_one_of_an_earlier_connection() {
        let first = async || {
            let (ours, theirs) = wharf_sys::socket::pair().unwrap();
            let (connection, _events) = Connection::new(ours).unwrap();
            // The other end stays open until the number is here.
            let receive = move || {
                let (request, _descriptors) =
                    wharf_wire::receive::<Request>(theirs.as_fd()).unwrap().unwrap();
                (request.id, theirs)
            };
            tokio::select! {
                answer = connection.greet(&[]) => panic!("nobody answers: {answer:?}"),
                number = tokio::task::spawn_blocking(receive) => number.unwrap().0,
            }
        };
        assert_ne!(first().await, first().await);
    }

    #[tokio::test]
    async fn requests_that_wait_are_bounded_and_leave_nothing() {
        let (ours, _theirs) = wharf_sys::socket::pair().unwrap();
        let (connection, _events) = Connection::new(ours).unwrap();
        let mut calls: Vec<_> = (0..REQUESTS_LIMIT).map(|_| Box::pin(connection.greet(&[]))).collect();
        for call in &mut calls {
            assert!(call.as_mut().now_or_never().is_none());
        }
        assert_eq!(connection.greet(&[]).await.unwrap_err().kind(), ErrorKind::ResourceExhausted);
        drop(calls);
        assert!(connection.shared.waiting().is_empty());
    }
}
