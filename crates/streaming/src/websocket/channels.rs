//! Numbered channels in the messages of a WebSocket connection.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::sync::mpsc;
use wharf_types::lock::lock;

use crate::channel::{Chunk, Inbound, Outbound, PIECES};
use crate::websocket::frame::{self, End, Kind};
use crate::wire::{Wire, WireError};

/// The v5 channel on which a client says that it ends another one.
const CLOSE: u8 = 255;

/// How a message encodes a channel's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// The channel's number as one byte, then the bytes.
    Binary,
    /// The channel's number as one digit, or as the ASCII character that follows `9`, then the bytes in base64.
    Base64,
}

/// A protocol version's use of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) encoding: Encoding,
    /// v5: a client can end a single channel.
    pub(crate) half_close: bool,
}

/// How a client violated the channels' protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChannelError {
    /// v5: the message that ends a channel names none, or more than one.
    #[error("a close message has to name one open input channel")]
    Close,
    /// The message is not base64.
    #[error("a message is not base64")]
    Base64,
}

/// The channels of a connection.
pub(crate) struct Channels {
    wire: Arc<Wire>,
    shape: Shape,
    sinks: Sinks,
}

/// Where the client's bytes go, by channel. A channel that was not opened or has ended has no entry.
#[derive(Clone, Default)]
pub(crate) struct Sinks(Arc<Mutex<Vec<Option<mpsc::Sender<Bytes>>>>>);

impl Channels {
    pub(crate) fn new(wire: Arc<Wire>, shape: Shape) -> Self {
        Self { wire, shape, sinks: Sinks::default() }
    }

    pub(crate) fn sinks(&self) -> Sinks {
        self.sinks.clone()
    }

    /// Starts to receive what the client sends on a channel. Until then, it is dropped.
    pub(crate) fn inbound(&self, channel: u8) -> Inbound {
        let (sender, inbound) = mpsc::channel(PIECES);
        let mut sinks = self.sinks.lock();
        let at = usize::from(channel);
        if sinks.len() <= at {
            sinks.resize_with(at + 1, || None);
        }
        sinks[at] = Some(sender);
        inbound
    }

    /// The server's direction of a channel.
    pub(crate) fn outbound(&self, channel: u8) -> Outbound {
        let (wire, sinks) = (Arc::clone(&self.wire), self.sinks.clone());
        Outbound::WebSocket(Outlet { wire, sinks, channel, encoding: self.shape.encoding })
    }
}

impl Sinks {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<mpsc::Sender<Bytes>>>> {
        lock(&self.0)
    }

    fn sink(&self, channel: u8) -> Option<mpsc::Sender<Bytes>> {
        self.lock().get(usize::from(channel))?.clone()
    }

    /// Ends a channel in the client's direction. `None` if it does not exist.
    fn end(&self, channel: u8) -> Option<()> {
        self.lock().get_mut(usize::from(channel)).map(|sink| *sink = None)
    }
}

/// The server's direction of one channel.
pub(crate) struct Outlet {
    wire: Arc<Wire>,
    sinks: Sinks,
    channel: u8,
    encoding: Encoding,
}

impl Outlet {
    /// Sends a payload, which may be empty.
    pub(crate) async fn send(&self, chunk: &mut Chunk) -> Result<(), WireError> {
        match self.encoding {
            Encoding::Binary => {
                chunk.prepend(&[self.channel]);
                frame::message(Kind::Binary, chunk);
                self.wire.send(chunk.bytes()).await
            }
            Encoding::Base64 => {
                let mut text = Chunk::of(STANDARD.encode(chunk.bytes()).as_bytes());
                text.prepend(&[b'0'.wrapping_add(self.channel)]);
                frame::message(Kind::Text, &mut text);
                self.wire.send(text.bytes()).await
            }
        }
    }

    /// Ends the channel. The client cannot be told; what it still sends is dropped.
    pub(crate) fn finish(&self) {
        self.sinks.end(self.channel);
    }
}

/// Sorts pieces of messages by channel.
pub(crate) struct Sorter {
    shape: Shape,
    sinks: Sinks,
    at: Position,
}

/// The position of the next piece in its message.
enum Position {
    /// Before the channel's number.
    Start,
    /// In a channel's bytes, with the channel's receiver if it has one. `left` is less than one group of base64.
    Channel { sink: Option<mpsc::Sender<Bytes>>, left: Vec<u8> },
    /// In the number of the channel to end.
    Close { named: Option<u8> },
}

/// Bytes and their receiver.
pub(crate) type Delivery = (mpsc::Sender<Bytes>, Bytes);

impl Sorter {
    pub(crate) fn new(shape: Shape, sinks: Sinks) -> Self {
        Self { shape, sinks, at: Position::Start }
    }

    /// Takes a piece of a message.
    pub(crate) fn take(&mut self, mut piece: Bytes, end: End) -> Result<Option<Delivery>, ChannelError> {
        if matches!(self.at, Position::Start) && !piece.is_empty() {
            self.at = self.begin(piece.split_to(1)[0]);
        }
        let delivery = match &mut self.at {
            Position::Start => None,
            Position::Channel { sink, left } => {
                let bytes = match self.shape.encoding {
                    Encoding::Binary => piece,
                    Encoding::Base64 => decode(left, &piece, end)?,
                };
                sink.clone().filter(|_| !bytes.is_empty()).map(|sink| (sink, bytes))
            }
            Position::Close { named } => {
                for channel in piece {
                    if named.replace(channel).is_some() {
                        return Err(ChannelError::Close);
                    }
                }
                None
            }
        };
        if end == End::Last {
            self.finish()?;
        }
        Ok(delivery)
    }

    fn begin(&self, first: u8) -> Position {
        let channel = match self.shape.encoding {
            Encoding::Binary if first == CLOSE && self.shape.half_close => {
                return Position::Close { named: None };
            }
            Encoding::Binary => first,
            Encoding::Base64 => first.wrapping_sub(b'0'),
        };
        Position::Channel { sink: self.sinks.sink(channel), left: Vec::new() }
    }

    /// Handles the end of a message.
    fn finish(&mut self) -> Result<(), ChannelError> {
        match mem::replace(&mut self.at, Position::Start) {
            Position::Close { named } => {
                named.and_then(|channel| self.sinks.end(channel)).ok_or(ChannelError::Close)
            }
            Position::Start | Position::Channel { .. } => Ok(()),
        }
    }
}

/// Decodes all complete groups, and everything at the end of a message.
fn decode(left: &mut Vec<u8>, piece: &[u8], end: End) -> Result<Bytes, ChannelError> {
    left.extend_from_slice(piece);
    let whole = if end == End::Last { left.len() } else { left.len() / 4 * 4 };
    let bytes = STANDARD.decode(&left[..whole]).or(Err(ChannelError::Base64))?;
    left.drain(..whole);
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorter(shape: Shape) -> (Sorter, Sinks, Inbound) {
        let sinks = Sinks::default();
        let (sender, inbound) = mpsc::channel(PIECES);
        sinks.lock().push(Some(sender));
        (Sorter::new(shape, sinks.clone()), sinks, inbound)
    }

    fn takes(sorter: &mut Sorter, bytes: &'static [u8], end: End) -> Option<Bytes> {
        sorter.take(Bytes::from_static(bytes), end).unwrap().map(|(_, bytes)| bytes)
    }

    #[test]
    fn a_message_in_pieces_keeps_its_channel() {
        let (mut sorter, ..) = sorter(Shape { encoding: Encoding::Binary, half_close: false });
        assert_eq!(takes(&mut sorter, b"", End::More), None);
        assert_eq!(takes(&mut sorter, b"\0", End::More), None);
        assert_eq!(takes(&mut sorter, b"\0a", End::More).unwrap(), b"\0a"[..]);
        assert_eq!(takes(&mut sorter, b"\x09b", End::Last).unwrap(), b"\x09b"[..]);
        assert_eq!(takes(&mut sorter, b"\x09b", End::Last), None, "nobody opened channel 9");
        assert_eq!(takes(&mut sorter, b"\xff\0", End::Last), None, "255 means nothing before v5");
    }

    #[test]
    fn base64_is_decoded_across_pieces() {
        let (mut sorter, ..) = sorter(Shape { encoding: Encoding::Base64, half_close: false });
        assert_eq!(takes(&mut sorter, b"0aGV", End::More), None);
        assert_eq!(takes(&mut sorter, b"sbG8", End::More).unwrap(), b"hel"[..]);
        assert_eq!(takes(&mut sorter, b"=", End::Last).unwrap(), b"lo"[..]);
        assert_eq!(takes(&mut sorter, b"0eA==", End::Last).unwrap(), b"x"[..]);
        let bad = sorter.take(Bytes::from_static(b"0!!!!"), End::Last);
        assert_eq!(bad.map(|_| ()), Err(ChannelError::Base64));
    }

    #[test]
    fn version_five_ends_single_channels() {
        let (mut sorter, sinks, _inbound) = sorter(Shape { encoding: Encoding::Binary, half_close: true });
        assert_eq!(takes(&mut sorter, b"\xff", End::More), None);
        assert!(sinks.sink(0).is_some());
        assert_eq!(takes(&mut sorter, b"\0", End::Last), None);
        assert!(sinks.sink(0).is_none());
        for bad in [&b"\xff"[..], b"\xff\x07", b"\xff\0\0"] {
            assert_eq!(sorter.take(bad.into(), End::Last).map(|_| ()), Err(ChannelError::Close));
            sorter.at = Position::Start;
        }
    }
}
