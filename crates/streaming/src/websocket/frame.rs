//! The frames of RFC 6455: bytes to events and back, bounded and without I/O.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::channel::{Chunk, PIECE};

/// The longest payload of a control frame: RFC 6455, section 5.5.
const CONTROL_LIMIT: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// An event from a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A part of a message, at most [`PIECE`] bytes. A message consists of one or more of these; the last may be empty.
    Message { kind: Kind, bytes: Bytes, end: End },
    /// A ping, to be echoed in a pong.
    Ping(Bytes),
    /// The reply to a ping.
    Pong,
    /// The client closes the connection.
    Close,
}

/// The kind of a message, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Binary,
}

/// Whether a message ends here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Last,
    More,
}

/// Why a connection cannot continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// It has bits that were not negotiated.
    #[error("a frame begins with the unknown byte {byte:#04x}")]
    Unknown { byte: u8 },
    /// RFC 6455, section 5.1: a client must mask.
    #[error("a client sent a frame without a mask")]
    Unmasked,
    /// A ping, pong or close is too long or fragmented.
    #[error("a control frame is fragmented or longer than {CONTROL_LIMIT} bytes")]
    Control,
    /// A message begins within a message, or a fragment continues none.
    #[error("the fragments of messages are out of order")]
    Order,
    /// A 64-bit length has its first bit set.
    #[error("a frame of more than 2^63 bytes")]
    Length,
}

/// Turns bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The message that continues in the next frame.
    message: Option<Kind>,
    frame: Option<FrameLeft>,
}

/// The missing rest of a data frame.
#[derive(Debug)]
struct FrameLeft {
    kind: Kind,
    /// Whether it ends the message.
    end: End,
    left: u64,
    mask: [u8; 4],
}

/// The head of a frame.
struct Head {
    opcode: u8,
    end: End,
    length: u64,
    mask: [u8; 4],
    /// The length of the head itself, in bytes.
    size: usize,
}

impl Decoder {
    /// Takes one event from the front. `None` if more bytes are needed.
    pub(crate) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        if let Some(frame) = self.frame.take() {
            return Ok(self.piece(frame, bytes));
        }
        let Some(head) = head(bytes)? else { return Ok(None) };
        if head.opcode >= CLOSE {
            return control(&head, bytes);
        }
        let kind = match (head.opcode, self.message.take()) {
            (TEXT, None) => Kind::Text,
            (BINARY, None) => Kind::Binary,
            (CONTINUATION, Some(kind)) => kind,
            _ => return Err(FrameError::Order),
        };
        self.message = (head.end == End::More).then_some(kind);
        bytes.advance(head.size);
        let frame = FrameLeft { kind, end: head.end, left: head.length, mask: head.mask };
        Ok(self.piece(frame, bytes))
    }

    fn piece(&mut self, frame: FrameLeft, bytes: &mut BytesMut) -> Option<Event> {
        let FrameLeft { kind, end, left, mut mask } = frame;
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE).min(bytes.len());
        if taken == 0 && left > 0 {
            self.frame = Some(FrameLeft { kind, end, left, mask });
            return None;
        }
        unmask(&mut bytes[..taken], mask);
        // Copied, so that a queued piece keeps its own bytes alive and not the whole buffer.
        let piece = Bytes::copy_from_slice(&bytes[..taken]);
        bytes.advance(taken);
        let left = left - taken as u64;
        if left > 0 {
            mask.rotate_left(taken % 4);
            self.frame = Some(FrameLeft { kind, end, left, mask });
        }
        let end = if left > 0 { End::More } else { end };
        Some(Event::Message { kind, bytes: piece, end })
    }
}

fn head(bytes: &[u8]) -> Result<Option<Head>, FrameError> {
    let Some(&[byte, second]) = bytes.first_chunk() else { return Ok(None) };
    let (opcode, end) = (byte & 0x0f, if byte & FIN == 0 { End::More } else { End::Last });
    if byte & 0x70 != 0 || !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(FrameError::Unknown { byte });
    }
    if second & MASKED == 0 {
        return Err(FrameError::Unmasked);
    }
    let short = second & !MASKED;
    if opcode >= CLOSE && (end == End::More || usize::from(short) > CONTROL_LIMIT) {
        return Err(FrameError::Control);
    }
    let (length, size) = match short {
        126 => {
            let Some(&[_, _, a, b]) = bytes.first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes([a, b])), 4)
        }
        127 => {
            let Some((_, rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
            let Some(length) = rest.first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*length), 10)
        }
        short => (u64::from(short), 2),
    };
    if length >> 63 != 0 {
        return Err(FrameError::Length);
    }
    let Some(&mask) = bytes[size..].first_chunk() else { return Ok(None) };
    Ok(Some(Head { opcode, end, length, mask, size: size + mask.len() }))
}

fn control(head: &Head, bytes: &mut BytesMut) -> Result<Option<Event>, FrameError> {
    let length = usize::try_from(head.length).or(Err(FrameError::Length))?;
    if bytes.len() < head.size + length {
        return Ok(None);
    }
    bytes.advance(head.size);
    let mut payload = bytes.split_to(length);
    unmask(&mut payload, head.mask);
    Ok(Some(match head.opcode {
        PING => Event::Ping(payload.freeze()),
        PONG => Event::Pong,
        _ => Event::Close,
    }))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
}

/// Makes a message from a chunk.
pub(crate) fn message(kind: Kind, chunk: &mut Chunk) {
    seal(
        chunk,
        match kind {
            Kind::Text => TEXT,
            Kind::Binary => BINARY,
        },
    );
}

/// The reply to a ping.
pub(crate) fn pong(payload: &[u8]) -> Chunk {
    let mut chunk = Chunk::of(payload);
    seal(&mut chunk, PONG);
    chunk
}

/// The last frame of a connection, with as much of the reason as fits.
pub(crate) fn close(code: CloseCode, reason: &str) -> Chunk {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_LIMIT - 2)];
    let mut chunk = Chunk::of(&[&(code as u16).to_be_bytes(), reason.as_bytes()].concat());
    seal(&mut chunk, CLOSE);
    chunk
}

/// Why the connection ends: RFC 6455, section 7.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseCode {
    Done = 1000,
    GoingAway = 1001,
    Protocol = 1002,
    Data = 1007,
    Internal = 1011,
}

/// Prepends the head of an unmasked frame to its payload.
fn seal(chunk: &mut Chunk, opcode: u8) {
    let length = chunk.bytes().len();
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => chunk.prepend(&[short]),
        (_, Ok(long)) => {
            chunk.prepend(&long.to_be_bytes());
            chunk.prepend(&[126]);
        }
        _ => {
            chunk.prepend(&(length as u64).to_be_bytes());
            chunk.prepend(&[127]);
        }
    }
    chunk.prepend(&[FIN | opcode]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(byte: u8, payload: &[u8]) -> Vec<u8> {
        let mut chunk = Chunk::of(payload);
        seal(&mut chunk, byte & 0x0f);
        let head = chunk.bytes().len() - payload.len();
        let mut bytes = chunk.bytes()[..head].to_vec();
        (bytes[0], bytes[1]) = (byte, bytes[1] | MASKED);
        let mask = [1, 2, 3, 4];
        bytes.extend(mask);
        let start = bytes.len();
        bytes.extend(payload);
        unmask(&mut bytes[start..], mask);
        bytes
    }

    fn all(bytes: &[u8]) -> Result<Vec<Event>, FrameError> {
        let (mut decoder, mut bytes) = (Decoder::default(), BytesMut::from(bytes));
        std::iter::from_fn(|| decoder.decode(&mut bytes).transpose()).collect()
    }

    #[test]
    fn messages_survive_any_split() {
        let long: Vec<u8> = (0..70_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let mut bytes = frame(BINARY, &long[..300]);
        bytes.extend(frame(FIN | PING, b"are you there"));
        bytes.extend(frame(FIN | CONTINUATION, &long[300..]));
        bytes.extend(frame(FIN | CLOSE, &[3, 232]));
        for step in [1, 7, 5000, bytes.len()] {
            let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
            let (mut got, mut lasts, mut others) = (Vec::new(), 0, Vec::new());
            for part in bytes.chunks(step) {
                buffer.extend_from_slice(part);
                while let Some(event) = decoder.decode(&mut buffer).unwrap() {
                    match event {
                        Event::Message { end, bytes, .. } => {
                            lasts += u32::from(end == End::Last);
                            got.extend(bytes);
                        }
                        other => others.push(other),
                    }
                }
            }
            assert!(got == long, "step {step}");
            assert_eq!(lasts, 1);
            assert_eq!(others, [Event::Ping(Bytes::from_static(b"are you there")), Event::Close]);
        }
    }

    #[test]
    fn an_empty_message_is_one() {
        let event = Event::Message { kind: Kind::Text, bytes: Bytes::new(), end: End::Last };
        assert_eq!(all(&frame(FIN | TEXT, b"")).unwrap(), [event]);
    }

    #[test]
    fn malformed_frames_are_errors() {
        let mut unmasked = frame(FIN | BINARY, b"x");
        unmasked[1] &= !MASKED;
        assert_eq!(all(&unmasked), Err(FrameError::Unmasked));
        assert_eq!(all(&frame(FIN | 3, b"")), Err(FrameError::Unknown { byte: 0x83 }));
        assert_eq!(all(&frame(FIN | 0x40 | TEXT, b"")), Err(FrameError::Unknown { byte: 0xc1 }));
        assert_eq!(all(&frame(FIN | PING, &[0; 126])), Err(FrameError::Control));
        assert_eq!(all(&frame(PING, b"")), Err(FrameError::Control));
        assert_eq!(all(&frame(FIN | CONTINUATION, b"")), Err(FrameError::Order));
        assert_eq!(all(&[frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat()), Err(FrameError::Order));
        assert_eq!(all(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::Length));
    }

    #[test]
    fn heads_have_three_sizes() {
        for (length, head) in [(125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut chunk = Chunk::of(&vec![0; length]);
            message(Kind::Binary, &mut chunk);
            assert_eq!(chunk.bytes().len(), length + head);
        }
        assert_eq!(close(CloseCode::Done, "").bytes(), [0x88, 2, 3, 0xe8]);
        assert_eq!(close(CloseCode::Data, "why").bytes(), b"\x88\x05\x03\xefwhy");
        let long = "x".repeat(CONTROL_LIMIT - 3) + "\u{e9}";
        assert_eq!(
            close(CloseCode::Data, &long).bytes().len(),
            2 + CONTROL_LIMIT - 1,
            "no half of a character"
        );
    }
}
