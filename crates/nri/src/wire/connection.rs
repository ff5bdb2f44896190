//! One side of a plugin's socket: it calls the other side, and hands on what the other side calls.
//!
//! A task reads and writes until the socket ends, the other side breaks the protocol, or nobody is left who uses the
//! connection. Then every call that waits fails.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use wharf_types::lock::lock;

use super::{
    Assembler, FRAME_HEADER_BYTES, FrameHeader, Kind, Message, PLUGIN, ProtocolError, RUNTIME,
    RequestContent, ResponseContent, Status, code, framed,
};

/// How many messages may wait to be written. A side has few calls under way at once.
const OUTGOING_MAX: usize = 16;
/// How many requests of the other side may wait to be handled.
const REQUESTS_MAX: usize = 16;
/// How much is read at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Whose side of the socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It calls plugins.
    Runtime,
    /// It calls the runtime.
    Plugin,
}

impl Side {
    /// The connections of its own calls, and of those of the other side.
    fn connections(self) -> (u32, u32) {
        match self {
            Self::Runtime => (PLUGIN, RUNTIME),
            Self::Plugin => (RUNTIME, PLUGIN),
        }
    }
}

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection has ended.
    #[error("the connection has ended")]
    Ended,
    /// The request is longer than a message may be.
    #[error("the request does not fit into a message")]
    TooLong,
    /// The response is not the message that it should be.
    #[error("the response cannot be understood")]
    Malformed,
    /// The other side says that it failed.
    #[error("{}", .0.message)]
    Failed(Status),
}

/// A connection; it ends with its last clone.
#[derive(Debug, Clone)]
pub struct Connection {
    calls: Arc<Calls>,
    outgoing: mpsc::Sender<Vec<u8>>,
    connection: u32,
    ended: watch::Receiver<bool>,
    close: Arc<watch::Sender<bool>>,
}

/// The calls that wait for their responses.
#[derive(Debug, Default)]
struct Calls(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// By the numbers of their streams.
    responses: BTreeMap<u32, oneshot::Sender<ResponseContent>>,
    last: Option<u32>,
    is_over: bool,
}

/// A request of the other side.
#[derive(Debug)]
pub struct Request {
    /// Its service, method and message.
    pub content: RequestContent,
    stream: u32,
    connection: u32,
    outgoing: mpsc::WeakSender<Vec<u8>>,
}

impl Connection {
    /// Begins to speak over a socket; the requests of the other side are in the queue, which ends with the connection.
    #[must_use]
    pub fn start(stream: UnixStream, side: Side) -> (Self, mpsc::Receiver<Request>) {
        let (own, others) = side.connections();
        let (outgoing, to_write) = mpsc::channel(OUTGOING_MAX);
        let (to_handle, requests) = mpsc::channel(REQUESTS_MAX);
        let (close, mut closing) = watch::channel(false);
        let (end, ended) = watch::channel(false);
        let calls = Arc::new(Calls::default());
        let (reading, writing) = stream.into_split();
        let mut reader = Reader {
            calls: Arc::clone(&calls),
            own: (own, Assembler::default()),
            others: (others, Assembler::default()),
            requests: to_handle,
            outgoing: outgoing.downgrade(),
        };
        let own_calls = Arc::clone(&calls);
        tokio::spawn(async move {
            let broken = tokio::select! {
                broken = reader.read(reading) => broken.err(),
                () = write(writing, to_write) => None,
                () = async { drop(closing.wait_for(|close| *close).await) } => None,
            };
            if let Some(error) = broken {
                tracing::warn!(%error, "the other side of an NRI socket broke the protocol");
            }
            own_calls.end();
            end.send_replace(true);
        });
        (Self { calls, outgoing, connection: own, ended, close: Arc::new(close) }, requests)
    }

    /// Calls a method of the other side, and waits however long the response takes.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<R: prost::Message + Default>(
        &self,
        (service, method): (&str, &str),
        message: &impl prost::Message,
        timeout: Duration,
    ) -> Result<R, CallError> {
        let content = RequestContent {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: message.encode_to_vec(),
            timeout_ns: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
        };
        let (stream, response) = self.calls.begin()?;
        let _forgotten_with_this = Forgotten { calls: &self.calls, stream };
        let bytes = framed(self.connection, Kind::Request, stream, &content).ok_or(CallError::TooLong)?;
        self.outgoing.send(bytes).await.map_err(|_over| CallError::Ended)?;
        let ResponseContent { status, payload } = response.await.map_err(|_over| CallError::Ended)?;
        match status {
            Some(status) if status.code != 0 => Err(CallError::Failed(status)),
            _ => R::decode(payload.as_slice()).map_err(|_malformed| CallError::Malformed),
        }
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.close.send_replace(true);
    }

    /// Whether it has ended, or is about to.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        *self.ended.borrow() || *self.close.borrow()
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        // The task that has the sender sets it before it ends.
        drop(self.ended.clone().wait_for(|ended| *ended).await);
    }
}

impl Request {
    /// Responds with a message.
    pub async fn succeed(self, message: &impl prost::Message) {
        let payload = message.encode_to_vec();
        self.respond(ResponseContent { status: None, payload }).await;
    }

    /// Responds that it failed.
    pub async fn fail(self, code: i32, message: String) {
        self.respond(ResponseContent { status: Some(Status { code, message }), payload: Vec::new() }).await;
    }

    async fn respond(self, content: ResponseContent) {
        let framed =
            |content: &ResponseContent| framed(self.connection, Kind::Response, self.stream, content);
        let too_long = || {
            let status =
                Status { code: code::RESOURCE_EXHAUSTED, message: "the response is too long".to_owned() };
            ResponseContent { status: Some(status), payload: Vec::new() }
        };
        let bytes = framed(&content).or_else(|| framed(&too_long()));
        if let (Some(outgoing), Some(bytes)) = (self.outgoing.upgrade(), bytes) {
            // If the connection has ended, nobody waits for it.
            drop(outgoing.send(bytes).await);
        }
    }
}

impl Calls {
    /// The number of a new call, and where its response arrives.
    fn begin(&self) -> Result<(u32, oneshot::Receiver<ResponseContent>), CallError> {
        let mut waiting = lock(&self.0);
        // The numbers of one connection are used once; a client's are odd.
        let stream = waiting.last.map_or(Some(1), |last| last.checked_add(2));
        let stream = stream.filter(|_| !waiting.is_over).ok_or(CallError::Ended)?;
        let (sender, response) = oneshot::channel();
        waiting.last = Some(stream);
        waiting.responses.insert(stream, sender);
        Ok((stream, response))
    }

    fn end(&self) {
        let mut waiting = lock(&self.0);
        waiting.is_over = true;
        waiting.responses.clear();
    }
}

/// A call that nobody waits for any more: its response may still come, and is dropped.
struct Forgotten<'a> {
    calls: &'a Calls,
    stream: u32,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        lock(&self.calls.0).responses.remove(&self.stream);
    }
}

struct Reader {
    calls: Arc<Calls>,
    own: (u32, Assembler),
    others: (u32, Assembler),
    requests: mpsc::Sender<Request>,
    outgoing: mpsc::WeakSender<Vec<u8>>,
}

impl Reader {
    /// Reads until the socket ends.
    async fn read(&mut self, mut socket: OwnedReadHalf) -> Result<(), ProtocolError> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let mut header = [0; FRAME_HEADER_BYTES];
            if socket.read_exact(&mut header).await.is_err() {
                return Ok(());
            }
            let FrameHeader { connection, len: mut left } = FrameHeader::parse(header)?;
            // Memory is used for what has arrived, not for what a header promises.
            while left > 0 {
                let wanted = left.min(PIECE_BYTES);
                let Ok(read @ 1..) = socket.read(&mut piece[..wanted]).await else { return Ok(()) };
                left -= read;
                self.take(connection, &piece[..read])?;
            }
        }
    }

    /// Takes bytes of a connection. Those of an unknown connection are dropped, as the protocol says.
    fn take(&mut self, connection: u32, bytes: &[u8]) -> Result<(), ProtocolError> {
        if connection == self.own.0 {
            let messages = self.own.1.push(bytes)?;
            return messages.into_iter().try_for_each(|message| self.response(message));
        }
        if connection == self.others.0 {
            let messages = self.others.1.push(bytes)?;
            return messages.into_iter().try_for_each(|message| self.request(message));
        }
        Ok(())
    }

    fn response(&self, message: Message) -> Result<(), ProtocolError> {
        if message.kind != Kind::Response.number() {
            return Err(ProtocolError::Kind { kind: message.kind, connection: self.own.0 });
        }
        let content = ResponseContent::decode(message.content.as_slice());
        let content = content.map_err(|_error| ProtocolError::Malformed)?;
        let waiting = lock(&self.calls.0).responses.remove(&message.stream);
        if let Some(waiting) = waiting {
            // An error means that the caller has just given up.
            drop(waiting.send(content));
        }
        Ok(())
    }

    fn request(&self, message: Message) -> Result<(), ProtocolError> {
        let Message { stream, kind, content } = message;
        if kind != Kind::Request.number() {
            return Err(ProtocolError::Kind { kind, connection: self.others.0 });
        }
        if stream.is_multiple_of(2) {
            return Err(ProtocolError::Stream { stream });
        }
        let content =
            RequestContent::decode(content.as_slice()).map_err(|_error| ProtocolError::Malformed)?;
        let request = Request { content, stream, connection: self.others.0, outgoing: self.outgoing.clone() };
        match self.requests.try_send(request) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(ProtocolError::Flood),
            // Nobody handles requests on this side any more.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}

/// Writes until the socket ends, or nobody is left who writes.
async fn write(mut socket: OwnedWriteHalf, mut messages: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = messages.recv().await {
        if socket.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    const PATIENCE: Duration = Duration::from_secs(5);
    const METHOD: (&str, &str) = ("service", "method");

    type End = (Connection, mpsc::Receiver<Request>);

    fn pair() -> (End, End) {
        let (one, other) = UnixStream::pair().unwrap();
        (Connection::start(one, Side::Runtime), Connection::start(other, Side::Plugin))
    }

    fn raw() -> (End, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        (Connection::start(one, Side::Runtime), other)
    }

    fn message(len: usize) -> api::OptionalString {
        api::OptionalString { value: "x".repeat(len) }
    }

    #[tokio::test]
    async fn both_sides_call_each_other() {
        let ((runtime, mut of_plugin), (plugin, mut of_runtime)) = pair();
        for len in [0, 5000, 1 << 20] {
            for (caller, requests) in [(&runtime, &mut of_runtime), (&plugin, &mut of_plugin)] {
                let handled = async {
                    let request = requests.recv().await.unwrap();
                    assert_eq!(request.content.method, "method");
                    let payload = api::OptionalString::decode(request.content.payload.as_slice()).unwrap();
                    request.succeed(&payload).await;
                };
                let sent = message(len);
                let called = caller.call::<api::OptionalString>(METHOD, &sent, PATIENCE);
                let (called, ()) = tokio::join!(called, handled);
                assert_eq!(called.unwrap(), sent);
            }
        }
    }

    #[tokio::test]
    async fn a_failure_says_why_and_a_late_response_is_dropped() {
        let ((runtime, _), (_plugin, mut requests)) = pair();
        let call = runtime.call::<api::Empty>(METHOD, &api::Empty {}, PATIENCE);
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
        let late = requests.recv().await.unwrap();
        late.succeed(&api::Empty {}).await;
        let handled = async { requests.recv().await.unwrap().fail(9, "not now".to_owned()).await };
        let (called, ()) =
            tokio::join!(runtime.call::<api::Empty>(METHOD, &api::Empty {}, PATIENCE), handled);
        assert_eq!(called.unwrap_err().to_string(), "not now");
        assert!(lock(&runtime.calls.0).responses.is_empty());
    }

    #[tokio::test]
    async fn calls_end_with_the_connection() {
        let ((runtime, _requests), socket) = raw();
        let call = runtime.call::<api::Empty>(METHOD, &api::Empty {}, PATIENCE);
        let (called, ()) = tokio::join!(call, async { drop(socket) });
        assert_eq!(called.unwrap_err(), CallError::Ended);
        runtime.ended().await;
        let call = runtime.call::<api::Empty>(METHOD, &api::Empty {}, PATIENCE).await;
        assert_eq!(call.unwrap_err(), CallError::Ended);
        assert!(runtime.is_ended());
    }

    #[tokio::test]
    async fn what_is_no_protocol_ends_the_connection() {
        let request = |stream: u32, kind: u8, len: u32| {
            let mut bytes = [0, 0, 0, 2, 0, 0, 0, 10].to_vec();
            bytes.extend(len.to_be_bytes());
            bytes.extend(stream.to_be_bytes());
            bytes.extend([kind, 0]);
            bytes
        };
        let garbage: Vec<Vec<u8>> = vec![
            vec![0xff; 64],
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            request(1, 1, u32::MAX),
            request(2, 1, 0),
            request(1, 2, 0),
            request(1, 3, 0),
            (0..100).flat_map(|number| request(1 + 2 * number, 1, 0)).collect(),
        ];
        for bytes in garbage {
            let ((runtime, requests), mut socket) = raw();
            socket.write_all(&bytes).await.unwrap();
            let ended = tokio::time::timeout(PATIENCE, runtime.ended()).await;
            assert!(ended.is_ok(), "{bytes:?}");
            drop(requests);
        }
    }

    #[tokio::test]
    async fn an_unknown_connection_is_ignored() {
        let ((runtime, mut requests), mut socket) = raw();
        socket.write_all(&[0, 0, 0, 9, 0, 0, 0, 3, 1, 2, 3]).await.unwrap();
        let content = RequestContent { method: "method".to_owned(), ..RequestContent::default() };
        socket.write_all(&framed(RUNTIME, Kind::Request, 1, &content).unwrap()).await.unwrap();
        assert_eq!(requests.recv().await.unwrap().content, content);
        assert!(!runtime.is_ended());
    }
}
