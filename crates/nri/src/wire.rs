//! How the two sides call each other: ttrpc messages of two connections, in the frames of one socket.
//!
//! A frame has a header of 8 bytes: the number of the connection and the length of what follows. On [`PLUGIN`] the
//! runtime calls the plugin, on [`RUNTIME`] the plugin calls the runtime. The frames of a connection are one stream of
//! bytes, in which a ttrpc message has a header of 10 bytes: its length, its stream, its type and flags. All numbers
//! are big-endian. Streams of ttrpc with more than one message are not used by NRI and are refused.

mod connection;

pub use connection::{CallError, Connection, Request, Side};

/// The connection on which the runtime calls the plugin.
pub const PLUGIN: u32 = 1;
/// The connection on which the plugin calls the runtime.
pub const RUNTIME: u32 = 2;

/// The service of a plugin.
pub const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service of the runtime.
pub const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// The longest message that ttrpc allows, in bytes, without its header.
pub const MESSAGE_LIMIT_BYTES: usize = 4 << 20;

pub(crate) const FRAME_HEADER_BYTES: usize = 8;
const MESSAGE_HEADER_BYTES: usize = 10;
/// A plugin in Go reads a header together with what follows it into a buffer of this size, and fails if a frame is
/// longer than the buffer that it reads into. What follows is read into a buffer for the whole message.
const FIRST_FRAME_BYTES: usize = 4096;

/// Codes of statuses, which are gRPC's.
pub mod code {
    /// A message is longer than it may be.
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    /// The state of things does not allow it.
    pub const FAILED_PRECONDITION: i32 = 9;
    /// An argument is wrong.
    pub const INVALID_ARGUMENT: i32 = 3;
    /// No such method.
    pub const UNIMPLEMENTED: i32 = 12;
}

/// What is wrong with what the other side sent. Nothing after it can be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame is longer than a message may be.
    #[error("a frame of {bytes} bytes")]
    Frame {
        /// The length in its header.
        bytes: u32,
    },
    /// A message is longer than [`MESSAGE_LIMIT_BYTES`].
    #[error("a message of {bytes} bytes")]
    Length {
        /// The length in its header.
        bytes: u32,
    },
    /// A message of this type does not belong on this connection.
    #[error("a message of type {kind} on connection {connection}")]
    Kind {
        /// The type in its header.
        kind: u8,
        /// The connection.
        connection: u32,
    },
    /// A request's stream must have an odd number.
    #[error("a request on stream {stream}")]
    Stream {
        /// The number.
        stream: u32,
    },
    /// The content is not the protobuf that it should be.
    #[error("a message that is not valid protobuf")]
    Malformed,
    /// Requests come faster than they are handled.
    #[error("too many requests at once")]
    Flood,
}

/// The type of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The content is a request.
    Request,
    /// The content is a response.
    Response,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
        }
    }
}

/// A ttrpc message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The request that it is or belongs to.
    pub stream: u32,
    /// What it is: the number in the header.
    pub kind: u8,
    /// What it contains.
    pub content: Vec<u8>,
}

/// The content of a request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RequestContent {
    /// The service.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The method.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's own message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits.
    #[prost(int64, tag = "4")]
    pub timeout_ns: i64,
}

/// The content of a response.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResponseContent {
    /// Why it failed, if it did.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The method's own message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// How a call ended.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// One of [`code`]; 0 is success.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) connection: u32,
    pub(crate) len: usize,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`ProtocolError::Frame`].
    pub(crate) fn parse(
        [c0, c1, c2, c3, l0, l1, l2, l3]: [u8; FRAME_HEADER_BYTES],
    ) -> Result<Self, ProtocolError> {
        let bytes = u32::from_be_bytes([l0, l1, l2, l3]);
        let len =
            usize::try_from(bytes).ok().filter(|len| *len <= MESSAGE_HEADER_BYTES + MESSAGE_LIMIT_BYTES);
        let len = len.ok_or(ProtocolError::Frame { bytes })?;
        Ok(Self { connection: u32::from_be_bytes([c0, c1, c2, c3]), len })
    }
}

/// The bytes of a message on a connection, with the headers of its frames. `None` if its content is longer than
/// [`MESSAGE_LIMIT_BYTES`].
#[must_use]
pub fn framed(connection: u32, kind: Kind, stream: u32, content: &impl prost::Message) -> Option<Vec<u8>> {
    let content = content.encode_to_vec();
    let len = u32::try_from(content.len()).ok().filter(|_| content.len() <= MESSAGE_LIMIT_BYTES)?;
    let mut message = Vec::with_capacity(MESSAGE_HEADER_BYTES + content.len());
    message.extend(len.to_be_bytes());
    message.extend(stream.to_be_bytes());
    message.extend([kind.number(), 0]);
    message.extend(content);
    let (first, rest) = message.split_at(message.len().min(FIRST_FRAME_BYTES));
    let mut bytes = Vec::with_capacity(message.len() + 2 * FRAME_HEADER_BYTES);
    for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
        bytes.extend(connection.to_be_bytes());
        bytes.extend(u32::try_from(part.len()).ok()?.to_be_bytes());
        bytes.extend(part);
    }
    Some(bytes)
}

/// Puts the messages of one connection together again, from the bytes of its frames.
#[derive(Debug, Default)]
pub struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    /// Takes bytes, and returns the messages that are complete with them. What is kept is never longer than one
    /// message and these bytes.
    ///
    /// # Errors
    /// [`ProtocolError::Length`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, ProtocolError> {
        self.bytes.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut taken = 0;
        while let Some((message, len)) = next(&self.bytes[taken..])? {
            messages.push(message);
            taken += len;
        }
        self.bytes.drain(..taken);
        Ok(messages)
    }
}

/// The first message of these bytes, and its length with the header; `None` if it is not complete.
fn next(bytes: &[u8]) -> Result<Option<(Message, usize)>, ProtocolError> {
    let Some((header, rest)) = bytes.split_first_chunk::<MESSAGE_HEADER_BYTES>() else { return Ok(None) };
    let &[l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    let len = usize::try_from(length).ok().filter(|len| *len <= MESSAGE_LIMIT_BYTES);
    let len = len.ok_or(ProtocolError::Length { bytes: length })?;
    let Some(content) = rest.get(..len) else { return Ok(None) };
    let stream = u32::from_be_bytes([s0, s1, s2, s3]);
    Ok(Some((Message { stream, kind, content: content.to_vec() }, MESSAGE_HEADER_BYTES + len)))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn content(len: usize) -> RequestContent {
        RequestContent { payload: vec![7; len], ..RequestContent::default() }
    }

    /// The bytes of the connection, without the headers of the frames, and the lengths of the frames.
    fn unframed(bytes: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let (mut rest, mut stream, mut lengths) = (bytes, Vec::new(), Vec::new());
        while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::parse(*header).unwrap();
            assert_eq!(header.connection, PLUGIN);
            let (payload, after) = after.split_at(header.len);
            stream.extend_from_slice(payload);
            lengths.push(header.len);
            rest = after;
        }
        (stream, lengths)
    }

    #[test]
    fn a_message_comes_through_whole_whatever_its_pieces() {
        for len in [0, 1, 4000, 4083, 4084, 5000, 100_000] {
            let sent = content(len);
            let (stream, lengths) = unframed(&framed(PLUGIN, Kind::Request, 5, &sent).unwrap());
            assert!(lengths.len() <= 2 && lengths[0] <= FIRST_FRAME_BYTES, "{lengths:?}");
            for piece in [1, 7, 4096, stream.len().max(1)] {
                let mut assembler = Assembler::default();
                let messages: Vec<Message> =
                    stream.chunks(piece).flat_map(|bytes| assembler.push(bytes).unwrap()).collect();
                let [message] = messages.as_slice() else { panic!("{len}: {}", messages.len()) };
                assert_eq!((message.stream, message.kind), (5, 1));
                assert_eq!(RequestContent::decode(message.content.as_slice()).unwrap(), sent);
                assert!(assembler.bytes.is_empty());
            }
        }
    }

    #[test]
    fn several_messages_may_be_in_one_piece() {
        let mut stream = Vec::new();
        for number in [1, 3, 5] {
            stream.extend(unframed(&framed(PLUGIN, Kind::Response, number, &content(9)).unwrap()).0);
        }
        let streams: Vec<u32> =
            Assembler::default().push(&stream).unwrap().iter().map(|message| message.stream).collect();
        assert_eq!(streams, [1, 3, 5]);
    }

    #[test]
    fn what_is_too_long_is_refused_by_its_header() {
        let header = |len: u32| {
            let [l0, l1, l2, l3] = len.to_be_bytes();
            FrameHeader::parse([0, 0, 0, 1, l0, l1, l2, l3])
        };
        assert!(header(10 + (4 << 20)).is_ok());
        let bytes = 11 + (4 << 20);
        assert_eq!(header(bytes), Err(ProtocolError::Frame { bytes }));
        assert_eq!(header(u32::MAX), Err(ProtocolError::Frame { bytes: u32::MAX }));
        let message = [255, 255, 255, 255, 0, 0, 0, 1, 2, 0];
        let refused = Assembler::default().push(&message);
        assert_eq!(refused, Err(ProtocolError::Length { bytes: u32::MAX }));
        assert!(framed(PLUGIN, Kind::Request, 1, &content(MESSAGE_LIMIT_BYTES)).is_none());
    }
}
