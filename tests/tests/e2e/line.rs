//! One connection of a streaming client after its upgrade, over SPDY/3.1 or WebSocket: streams by number, what was sent
//! on each, and how the server ended it. A separate task reads, so that sending never waits for a response.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The payload of one frame.
const FRAME: usize = 32 * 1024;

/// A connection.
#[derive(Debug)]
pub(crate) struct Line {
    outgoing: Outgoing,
    /// What is read once [`Line::listen`] has been called.
    incoming: Option<Incoming>,
    heard: watch::Sender<Heard>,
    listener: Option<JoinHandle<()>>,
    /// A second handle of the socket, to choose how it is closed.
    socket: std::net::TcpStream,
}

enum Outgoing {
    Spdy { socket: OwnedWriteHalf, deflate: Box<Compress>, next: u32 },
    WebSocket(SplitSink<WebSocketStream<TcpStream>, Message>),
}

#[derive(Debug)]
enum Incoming {
    Spdy(BufReader<OwnedReadHalf>),
    WebSocket(Box<SplitStream<WebSocketStream<TcpStream>>>),
}

/// What has arrived so far.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    streams: BTreeMap<u32, Vec<u8>>,
    ends: BTreeMap<u32, End>,
    replies: BTreeSet<u32>,
    /// The streams on which bytes arrived, in this order.
    order: Vec<u32>,
    pub(crate) farewell: Option<Farewell>,
}

/// How the server ended one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Reset,
}

/// How the server ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// GOAWAY, with its status.
    GoAway(u32),
    /// A close frame, with its code.
    Close(u16),
    /// Without a farewell.
    CutOff,
}

enum Event {
    Reply(u32),
    Bytes(u32, Vec<u8>),
    End(u32, End),
    Farewell(Farewell),
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Spdy { .. } => "SPDY",
            Self::WebSocket(_) => "WebSocket",
        })
    }
}

impl Heard {
    /// All bytes of a stream.
    pub(crate) fn bytes(&self, stream: u32) -> &[u8] {
        self.streams.get(&stream).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn end(&self, stream: u32) -> Option<End> {
        self.ends.get(&stream).copied()
    }

    /// The stream with the latest bytes.
    pub(crate) fn last(&self) -> Option<u32> {
        self.order.last().copied()
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Reply(stream) => drop(self.replies.insert(stream)),
            Event::Bytes(stream, bytes) => {
                if !bytes.is_empty() && self.last() != Some(stream) {
                    self.order.push(stream);
                }
                self.streams.entry(stream).or_default().extend(bytes);
            }
            Event::End(stream, end) => drop(self.ends.insert(stream, end)),
            // The connection is closed after a farewell.
            Event::Farewell(farewell) => drop(self.farewell.get_or_insert(farewell)),
        }
    }
}

/// Requests an upgrade, and returns the connection, or the status of a refusal.
async fn upgrade(url: &str, headers: &str) -> Result<BufReader<TcpStream>, u16> {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let request =
        format!("POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n{headers}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.expect("an answer").unwrap());
    }
    match String::from_utf8(head).unwrap().split(' ').nth(1).unwrap().parse().unwrap() {
        101 => Ok(stream),
        status => Err(status),
    }
}

impl Line {
    /// Upgrades to SPDY/3.1 with a subprotocol; an error is the status of a refusal.
    pub(crate) async fn spdy(url: &str, version: &str) -> Result<Self, u16> {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}");
        let stream = upgrade(url, &headers).await?;
        assert!(stream.buffer().is_empty(), "a server of SPDY has nothing to say at first");
        let (stream, socket) = twice(stream.into_inner());
        let (reading, writing) = stream.into_split();
        let mut deflate = Box::new(Compress::new(Compression::default(), true));
        deflate.set_dictionary(wharf_streaming::decode::dictionary()).unwrap();
        let outgoing = Outgoing::Spdy { socket: writing, deflate, next: 1 };
        Ok(Self::new(outgoing, Incoming::Spdy(BufReader::new(reading)), socket))
    }

    /// Upgrades to WebSocket with a subprotocol.
    pub(crate) async fn websocket(url: &str, version: &'static str) -> Self {
        let rest = url.strip_prefix("http://").unwrap();
        let mut request = format!("ws://{rest}").into_client_request().unwrap();
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(version));
        let (stream, socket) = twice(TcpStream::connect(rest.split_once('/').unwrap().0).await.unwrap());
        let (stream, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        let (outgoing, incoming) = stream.split();
        Self::new(Outgoing::WebSocket(outgoing), Incoming::WebSocket(Box::new(incoming)), socket)
    }

    fn new(outgoing: Outgoing, incoming: Incoming, socket: std::net::TcpStream) -> Self {
        let heard = watch::Sender::new(Heard::default());
        Self { outgoing, incoming: Some(incoming), heard, listener: None, socket }
    }

    /// Starts to read what the server sends.
    pub(crate) fn listen(&mut self) {
        let Some(mut incoming) = self.incoming.take() else { return };
        let heard = self.heard.clone();
        self.listener = Some(tokio::spawn(async move {
            while let Some(event) = incoming.next().await {
                heard.send_modify(|heard| heard.note(event));
            }
            heard.send_modify(|heard| heard.note(Event::Farewell(Farewell::CutOff)));
        }));
    }

    /// Opens a SPDY stream.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let Outgoing::Spdy { socket, deflate, next } = &mut self.outgoing else {
            panic!("the channels of a WebSocket are there")
        };
        let id = *next;
        *next += 2;
        let mut block = word(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(word(text.len()));
            block.extend(text.bytes());
        }
        let mut payload = [id.to_be_bytes().as_slice(), &[0; 6]].concat();
        payload.reserve(block.len() + 1024);
        deflate.compress_vec(&block, &mut payload, FlushCompress::Sync).unwrap();
        socket.write_all(&control(1, &payload)).await.unwrap();
        id
    }

    /// Sends bytes on a stream; an error if the server accepts no more.
    pub(crate) async fn send(&mut self, stream: u32, bytes: &[u8]) -> Result<(), String> {
        for part in bytes.chunks(FRAME) {
            let sent = timeout(PATIENCE, self.outgoing.send(stream, part, 0));
            sent.await.expect("the server takes what is sent")?;
        }
        Ok(())
    }

    /// Ends the client's direction of a stream.
    pub(crate) async fn finish(&mut self, stream: u32) -> Result<(), String> {
        match &mut self.outgoing {
            Outgoing::Spdy { .. } => self.outgoing.send(stream, b"", 1).await,
            // v5 of the protocol: a channel of its own announces the end of another.
            Outgoing::WebSocket(_) => self.outgoing.send(255, &[channel(stream)], 0).await,
        }
    }

    /// Resets a SPDY stream in both directions.
    pub(crate) async fn cancel(&mut self, stream: u32) {
        let Outgoing::Spdy { socket, .. } = &mut self.outgoing else {
            panic!("a channel cannot be given up")
        };
        let body = [stream.to_be_bytes(), 5_u32.to_be_bytes()].concat();
        socket.write_all(&control(3, &body)).await.unwrap();
    }

    /// Waits until the server has accepted SPDY streams.
    pub(crate) async fn accepted(&self, streams: &[u32]) {
        let all = |heard: &Heard| streams.iter().all(|stream| heard.replies.contains(stream)).then_some(());
        self.until("the streams are accepted", all).await;
    }

    /// Waits until `answer` finds something in what has arrived.
    ///
    /// # Panics
    /// It finds nothing in time.
    pub(crate) async fn until<T>(&self, what: &str, answer: impl Fn(&Heard) -> Option<T>) -> T {
        let mut heard = self.heard.subscribe();
        let mut found = None;
        let wait = heard.wait_for(|heard| {
            found = answer(heard);
            found.is_some()
        });
        let waited = timeout(PATIENCE, wait).await.map(drop);
        assert!(
            waited.is_ok(),
            "waited in vain until {what}: {:.1000}",
            format!("{:?}", self.heard.borrow())
        );
        found.unwrap()
    }

    /// Looks at what has arrived so far.
    pub(crate) fn now<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.heard.borrow())
    }

    /// Waits until the server has ended the connection, and returns what it sent.
    pub(crate) async fn over(mut self) -> Heard {
        let listener = self.listener.take().expect("someone listens");
        timeout(PATIENCE, listener).await.expect("the server ends the connection").unwrap();
        self.heard.send_replace(Heard::default())
    }

    /// Leaves without a farewell: the connection is reset, as by a client that crashed.
    pub(crate) fn reset(self) {
        setsockopt(&self.socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
    }
}

impl Drop for Line {
    /// The reading task holds a part of the connection.
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

impl Outgoing {
    async fn send(&mut self, stream: u32, bytes: &[u8], flags: u8) -> Result<(), String> {
        match self {
            Self::Spdy { socket, .. } => {
                let [_, length @ ..] = word(bytes.len());
                let head = [stream.to_be_bytes().as_slice(), &[flags], &length].concat();
                socket.write_all(&[&head, bytes].concat()).await.map_err(|error| error.to_string())
            }
            Self::WebSocket(socket) => {
                let message = [&[channel(stream)], bytes].concat();
                socket.send(Message::Binary(message.into())).await.map_err(|error| error.to_string())
            }
        }
    }
}

impl Incoming {
    /// The next event; `None` when the connection is closed.
    async fn next(&mut self) -> Option<Event> {
        match self {
            Self::Spdy(socket) => frame(socket).await,
            Self::WebSocket(socket) => match socket.next().await?.ok()? {
                Message::Binary(bytes) => {
                    let (channel, bytes) = bytes.split_first().expect("a message has a channel");
                    Some(Event::Bytes((*channel).into(), bytes.to_vec()))
                }
                Message::Close(frame) => {
                    Some(Event::Farewell(Farewell::Close(frame.map_or(0, |frame| frame.code.into()))))
                }
                other => panic!("{other:?}"),
            },
        }
    }
}

/// Reads SPDY frames up to one that matters.
async fn frame(socket: &mut BufReader<OwnedReadHalf>) -> Option<Event> {
    loop {
        let mut head = [0; 8];
        socket.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, length @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize];
        socket.read_exact(&mut payload).await.ok()?;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, kind]);
            if payload.is_empty() && flags == 0 {
                continue;
            }
            assert!(payload.is_empty() || flags == 0, "the server ends a stream with a frame of its own");
            let end = Event::End(id, End::Finished);
            return Some(if flags == 0 { Event::Bytes(id, payload) } else { end });
        }
        assert_eq!([a, b, c], [0x80, 3, 0]);
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        return Some(match kind {
            2 => Event::Reply(word(0)),
            3 => Event::End(word(0), End::Reset),
            7 => Event::Farewell(Farewell::GoAway(word(4))),
            kind => panic!("a control frame of type {kind}"),
        });
    }
}

/// The socket, and a second handle of it.
fn twice(stream: TcpStream) -> (TcpStream, std::net::TcpStream) {
    stream.set_nodelay(true).unwrap();
    let stream = stream.into_std().unwrap();
    let again = stream.try_clone().unwrap();
    (TcpStream::from_std(stream).unwrap(), again)
}

/// A control frame of SPDY/3.
fn control(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x80, 3, 0, kind], word(payload.len()).as_slice(), payload].concat()
}

fn word(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap().to_be_bytes()
}

fn channel(stream: u32) -> u8 {
    u8::try_from(stream).unwrap()
}
