//! A SPDY client.

use std::collections::HashMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::{self, request};
use crate::rig::soon;
use crate::websocket::{Message, WebSocket};

/// What carries the bytes.
pub(crate) enum Carrier {
    Plain(TcpStream),
    Tunnel(WebSocket),
}

/// A client's side of a connection.
pub(crate) struct Spdy {
    pub(crate) carrier: Carrier,
    deflate: Compress,
    inflate: Decompress,
    primed: bool,
    buffer: Vec<u8>,
    next: u32,
    /// Everything that arrived, by stream.
    pub(crate) received: HashMap<u32, Vec<u8>>,
}

/// What the server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Reply(u32),
    Data(u32),
    Fin(u32),
    Reset(u32, u32),
    Ping(u32),
    GoAway(u32),
    Eof,
}

impl Spdy {
    /// Upgrades a connection.
    pub(crate) async fn connect(url: &str, version: &str) -> Self {
        let headers = format!("{}X-Stream-Protocol-Version: {version}\r\n", http::SPDY);
        let answer = request("POST", url, &headers, b"").await;
        assert_eq!(answer.status(), "101", "{}", answer.head);
        assert!(answer.head.contains(&format!("X-Stream-Protocol-Version: {version}\r\n")));
        Self::over(Carrier::Plain(answer.stream))
    }

    pub(crate) fn over(carrier: Carrier) -> Self {
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(wharf_streaming::decode::dictionary()).unwrap();
        let inflate = Decompress::new(true);
        let received = HashMap::new();
        Self { carrier, deflate, inflate, primed: false, buffer: Vec::new(), next: 1, received }
    }

    /// A SYN_STREAM frame for the next stream.
    pub(crate) fn syn_stream(&mut self, headers: &[(&str, &str)]) -> (u32, Vec<u8>) {
        let id = self.next;
        self.next += 2;
        (id, self.syn_stream_as(id, headers))
    }

    pub(crate) fn syn_stream_as(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            block.extend(text.bytes());
        }
        let mut payload = Vec::with_capacity(block.len() + 1024);
        self.deflate.compress_vec(&block, &mut payload, FlushCompress::Sync).unwrap();
        control(1, &[id.to_be_bytes().as_slice(), &[0; 6], &payload].concat())
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        match &mut self.carrier {
            Carrier::Plain(stream) => soon(stream.write_all(bytes)).await.unwrap(),
            Carrier::Tunnel(socket) => {
                // Message boundaries have no meaning.
                for part in bytes.chunks(1000) {
                    socket.send(2, part).await;
                }
            }
        }
    }

    /// Opens a stream without waiting for the reply.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let (id, frame) = self.syn_stream(headers);
        self.write(&frame).await;
        id
    }

    pub(crate) async fn send(&mut self, id: u32, bytes: &[u8]) {
        self.write(&data(id, 0, bytes)).await;
    }

    pub(crate) async fn fin(&mut self, id: u32) {
        self.write(&data(id, 1, b"")).await;
    }

    pub(crate) async fn ping(&mut self, id: u32) {
        self.write(&control(6, &id.to_be_bytes())).await;
    }

    pub(crate) async fn reset(&mut self, id: u32) {
        self.write(&control(3, &[id.to_be_bytes(), 5_u32.to_be_bytes()].concat())).await;
    }

    /// The next event. The end of a stream is an event of its own.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.take() {
                return event;
            }
            let read = match &mut self.carrier {
                Carrier::Plain(stream) => soon(stream.read_buf(&mut self.buffer)).await.unwrap_or(0),
                Carrier::Tunnel(socket) => match socket.next().await {
                    Message::Data(2, bytes) => {
                        self.buffer.extend(&bytes);
                        bytes.len()
                    }
                    Message::Close(1000) | Message::Eof => 0,
                    other => panic!("{other:?} in a tunnel"),
                },
            };
            if read == 0 {
                assert!(self.buffer.is_empty(), "a frame was cut off");
                return Event::Eof;
            }
        }
    }

    fn take(&mut self) -> Option<Event> {
        let [a, b, c, d, flags, l0, l1, l2] = *self.buffer.first_chunk()?;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if self.buffer.len() < 8 + length {
            return None;
        }
        let payload: Vec<u8> = self.buffer.drain(..8 + length).skip(8).collect();
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            self.received.entry(id).or_default().extend(payload);
            return Some(if flags & 1 == 0 { Event::Data(id) } else { Event::Fin(id) });
        }
        assert_eq!([a, b], [0x80, 3]);
        Some(match u16::from_be_bytes([c, d]) {
            2 => {
                assert_eq!(self.inflate(&payload[4..]), [0; 4], "no headers");
                Event::Reply(word(0))
            }
            3 => Event::Reset(word(0), word(4)),
            6 => Event::Ping(word(0)),
            7 => Event::GoAway(word(4)),
            kind => panic!("a control frame of type {kind}"),
        })
    }

    fn inflate(&mut self, mut block: &[u8]) -> Vec<u8> {
        let mut plain = Vec::with_capacity(1024);
        if !std::mem::replace(&mut self.primed, true) {
            self.inflate.decompress_vec(&block[..6], &mut plain, FlushDecompress::Sync).unwrap_err();
            self.inflate.set_dictionary(wharf_streaming::decode::dictionary()).unwrap();
            block = &block[6..];
        }
        self.inflate.decompress_vec(block, &mut plain, FlushDecompress::Sync).unwrap();
        plain
    }

    /// Opens the streams of a command, and waits until all are accepted.
    pub(crate) async fn open_all(&mut self, kinds: &[&str]) -> Vec<u32> {
        let mut ids = Vec::new();
        for kind in kinds {
            ids.push(self.open(&[("streamType", kind)]).await);
        }
        for id in &ids {
            assert_eq!(self.next().await, Event::Reply(*id));
        }
        ids
    }

    /// Everything until the server closes the connection.
    pub(crate) async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Event::Eof => return events,
                event => events.push(event),
            }
        }
    }

    /// What arrived on a stream.
    pub(crate) fn text(&self, id: u32) -> String {
        String::from_utf8(self.received.get(&id).cloned().unwrap_or_default()).unwrap()
    }
}

/// A control frame of version 3.
pub(crate) fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let [.., l0, l1, l2] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let kind = kind.to_be_bytes();
    [&[0x80, 3, kind[0], kind[1], 0, l0, l1, l2], payload].concat()
}

/// A data frame.
pub(crate) fn data(id: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [.., l0, l1, l2] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&id.to_be_bytes(), &[flags, l0, l1, l2], payload].concat()
}
