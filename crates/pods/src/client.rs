//! The daemon's end of a supervisor's connection: requests with their answers, and events.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use wharf_types::ErrorKind;
use wharf_wire::v1::{Message, Request, failure, message, reply, request};

use crate::error::{Error, Stage};

type Answer = oneshot::Sender<(reply::Result, Vec<OwnedFd>)>;

/// How long a supervisor may take to receive a request and to answer it; each is one of a program's execution, on a slow
/// disk at worst.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// A connection to one supervisor.
#[derive(Debug)]
pub(crate) struct Client {
    socket: Arc<UnixStream>,
    waiting: Arc<Mutex<HashMap<u64, Answer>>>,
    next: AtomicU64,
}

/// What a supervisor tells unasked.
#[derive(Debug)]
pub(crate) enum Told {
    Event(message::Body),
    /// The connection is gone, and so is the supervisor or its trust in this daemon.
    Gone,
}

impl Client {
    /// Takes a connected socket; events come out of the returned queue.
    pub(crate) fn new(socket: OwnedFd) -> Result<(Self, mpsc::UnboundedReceiver<Told>), Error> {
        const STAGE: &str = "the supervisor's connection";
        // Only its readiness is used as a stream's: messages are sent and received by the wire's own calls.
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true).stage(STAGE)?;
        let socket = Arc::new(UnixStream::from_std(socket).stage(STAGE)?);
        let waiting = Arc::new(Mutex::new(HashMap::new()));
        // Unbounded here, bounded by the sender: a supervisor tells at most one event a container or exec.
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(read(Arc::clone(&socket), Arc::clone(&waiting), sender));
        Ok((Self { socket, waiting, next: AtomicU64::new(1) }, events))
    }

    /// Sends a request with descriptors, and waits for its answer.
    pub(crate) async fn call(
        &self,
        stage: &'static str,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<reply::Result, Error> {
        self.call_for_descriptors(stage, body, descriptors).await.map(|(result, _)| result)
    }

    /// Sends a request, and waits for its answer and the descriptors beside it.
    pub(crate) async fn call_for_descriptors(
        &self,
        stage: &'static str,
        body: request::Body,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(reply::Result, Vec<OwnedFd>), Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let request = Request { id, body: Some(body) };
        let exchange = async {
            self.send(&request, descriptors).await.map_err(|error| unsent(stage, &error))?;
            answer.await.map_err(|_gone| Error::supervisor_gone(stage))
        };
        let answer = tokio::time::timeout(ANSWER_PATIENCE, exchange).await.unwrap_or_else(|_elapsed| {
            let message = format!("the pod's supervisor did not answer within {ANSWER_PATIENCE:?}");
            Err(Error::Stage { stage, message, kind: ErrorKind::DeadlineExceeded })
        });
        if answer.is_err() {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        match answer? {
            (reply::Result::Failure(failure), _) => {
                let kind = match failure.kind() {
                    failure::Kind::Internal => ErrorKind::Internal,
                    failure::Kind::NotFound => ErrorKind::NotFound,
                    failure::Kind::Invalid => ErrorKind::InvalidArgument,
                    failure::Kind::Precondition | failure::Kind::NotStarted => ErrorKind::FailedPrecondition,
                };
                Err(Error::Stage { stage, message: failure.message, kind })
            }
            answer => Ok(answer),
        }
    }

    async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), wharf_wire::Error> {
        loop {
            match wharf_wire::send(self.socket.as_fd(), request, descriptors) {
                Err(error) if error.would_block() => {}
                other => return other,
            }
            // Readiness is only a hint: the send itself finds out.
            drop(self.socket.ready(Interest::WRITABLE).await);
        }
    }
}

fn unsent(stage: &'static str, error: &wharf_wire::Error) -> Error {
    let kind = match error {
        wharf_wire::Error::Socket(_) => ErrorKind::Unavailable,
        wharf_wire::Error::TooLong { .. } => ErrorKind::InvalidArgument,
        wharf_wire::Error::Malformed { .. } => ErrorKind::Internal,
    };
    Error::Stage { stage, message: wharf_types::chain(error), kind }
}

async fn read(
    socket: Arc<UnixStream>,
    waiting: Arc<Mutex<HashMap<u64, Answer>>>,
    events: mpsc::UnboundedSender<Told>,
) {
    while socket.readable().await.is_ok() {
        let mut received = None;
        let tried =
            socket.try_io(Interest::READABLE, || match wharf_wire::receive::<Message>(socket.as_fd()) {
                Err(error) if error.would_block() => Err(std::io::ErrorKind::WouldBlock.into()),
                other => {
                    received = Some(other);
                    Ok(())
                }
            });
        let (Ok(()), Some(received)) = (tried, received) else { continue };
        match received {
            Ok(Some((Message { body: Some(message::Body::Reply(reply)) }, descriptors))) => {
                let answer = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&reply.id);
                if let (Some(answer), Some(result)) = (answer, reply.result) {
                    // A caller that went away needs no answer.
                    drop(answer.send((result, descriptors)));
                }
            }
            Ok(Some((Message { body: Some(event) }, _))) => {
                if events.send(Told::Event(event)).is_err() {
                    break;
                }
            }
            Ok(Some((Message { body: None }, _))) => {}
            Ok(None) | Err(_) => break,
        }
    }
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    events.send(Told::Gone).unwrap_or_default();
}
