//! The frames of SPDY/3.1: bytes to frames and back, bounded and without I/O.
//!
//! A client is not trusted: what is too long or of another version ends the connection. Blocks of headers stay
//! compressed here, because their state belongs to the connection (`headers`). Frames of windows and settings are
//! ignored.

use bytes::{Buf as _, Bytes, BytesMut};

use crate::channel::PIECE;

/// The longest control frame that is accepted, in bytes. Clients send a few hundred.
const CONTROL_LIMIT: usize = 64 * 1024;

/// The head of every frame, in bytes.
const HEAD: usize = 8;

/// The first word of a control frame of version 3.
const CONTROL: u16 = 0x8003;

const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// A frame that a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A new stream. The headers are compressed and must be inflated even if the stream is refused.
    SynStream { stream: u32, fin: bool, block: Bytes },
    /// More headers for a stream. They are not used but must be inflated.
    Headers { stream: u32, fin: bool, block: Bytes },
    /// A reset of a stream.
    Reset { stream: u32 },
    /// A ping, to be echoed.
    Ping { id: u32 },
    /// A part of a stream, at most [`PIECE`] bytes: a data frame is split into several of these.
    Data { stream: u32, fin: bool, bytes: Bytes },
    /// A frame that needs no answer.
    Ignored,
}

/// Why a connection cannot continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// It is not SPDY version 3.
    #[error("a control frame begins with {word:#06x}; SPDY/3.1 has {CONTROL:#06x}")]
    Version { word: u16 },
    /// The length does not fit the kind of frame, or exceeds the limit.
    #[error("a control frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    /// Stream 0 does not exist.
    #[error("a frame for stream 0")]
    StreamZero,
}

/// Turns bytes into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    data: Option<DataLeft>,
}

/// The missing rest of a data frame.
#[derive(Debug)]
struct DataLeft {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Decoder {
    /// Takes one frame, or a piece of a data frame, from the front. `None` if more bytes are needed.
    pub(crate) fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(data) = self.data.take() {
            return Ok(self.piece(data, bytes));
        }
        let Some(&head) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let [a, b, c, d, flags, ..] = head;
        if a & 0x80 != 0 {
            return control(head, bytes);
        }
        let stream = u32::from_be_bytes([a, b, c, d]);
        if stream == 0 {
            return Err(FrameError::StreamZero);
        }
        bytes.advance(HEAD);
        Ok(self.piece(DataLeft { stream, fin: flags & FIN != 0, left: length(head) }, bytes))
    }

    fn piece(&mut self, data: DataLeft, bytes: &mut BytesMut) -> Option<Frame> {
        let DataLeft { stream, fin, left } = data;
        let taken = left.min(PIECE).min(bytes.len());
        if taken == 0 && left > 0 {
            self.data = Some(DataLeft { stream, fin, left });
            return None;
        }
        // Copied, so that a queued piece keeps its own bytes alive and not the whole buffer.
        let piece = Bytes::copy_from_slice(&bytes[..taken]);
        bytes.advance(taken);
        if taken < left {
            self.data = Some(DataLeft { stream, fin, left: left - taken });
        }
        Some(Frame::Data { stream, fin: fin && taken == left, bytes: piece })
    }
}

fn length([.., a, b, c]: [u8; HEAD]) -> usize {
    u32::from_be_bytes([0, a, b, c]) as usize
}

fn control(head: [u8; HEAD], bytes: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let [a, b, c, d, flags, ..] = head;
    let (word, kind, length) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), length(head));
    if word != CONTROL {
        return Err(FrameError::Version { word });
    }
    let fin = flags & FIN != 0;
    let fits = match kind {
        SYN_STREAM => length >= 10,
        SYN_REPLY | HEADERS => length >= 4,
        RST_STREAM | GOAWAY => length == 8,
        PING => length == 4,
        _ => true,
    };
    if !fits || length > CONTROL_LIMIT {
        return Err(FrameError::Length { kind, length });
    }
    if bytes.len() < HEAD + length {
        return Ok(None);
    }
    bytes.advance(HEAD);
    let mut payload = bytes.split_to(length).freeze();
    if !matches!(kind, SYN_STREAM | SYN_REPLY | HEADERS | RST_STREAM | PING) {
        return Ok(Some(Frame::Ignored));
    }
    let word = payload.get_u32();
    if kind == PING {
        return Ok(Some(Frame::Ping { id: word }));
    }
    let stream = word & 0x7fff_ffff;
    if stream == 0 {
        return Err(FrameError::StreamZero);
    }
    Ok(Some(match kind {
        RST_STREAM => Frame::Reset { stream },
        SYN_STREAM => {
            // Skips the associated stream, the priority and the slot.
            payload.advance(6);
            Frame::SynStream { stream, fin, block: payload }
        }
        _ => Frame::Headers { stream, fin, block: payload },
    }))
}

/// Why a stream is reset, with the protocol's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reset {
    Protocol = 1,
    Refused = 3,
    Cancel = 5,
    FlowControl = 7,
}

/// Why the connection ends, with the protocol's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Farewell {
    Done = 0,
    Protocol = 1,
    Internal = 2,
}

/// The head of a data frame.
pub(crate) fn data_head(stream: u32, length: usize) -> [u8; HEAD] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [.., l0, l1, l2] = length.to_be_bytes();
    [a, b, c, d, 0, l0, l1, l2]
}

/// An empty data frame that ends the server's direction of a stream.
pub(crate) fn fin(stream: u32) -> [u8; HEAD] {
    let mut frame = data_head(stream, 0);
    frame[4] = FIN;
    frame
}

/// The reply to a new stream, with its compressed headers.
pub(crate) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control_frame(SYN_REPLY, &[stream], block)
}

/// A frame that resets a stream.
pub(crate) fn rst_stream(stream: u32, why: Reset) -> Vec<u8> {
    control_frame(RST_STREAM, &[stream, why as u32], &[])
}

/// The echo of a ping.
pub(crate) fn ping(id: u32) -> Vec<u8> {
    control_frame(PING, &[id], &[])
}

/// The last frame of a connection.
pub(crate) fn go_away(last_stream: u32, why: Farewell) -> Vec<u8> {
    control_frame(GOAWAY, &[last_stream, why as u32], &[])
}

/// A control frame without flags.
fn control_frame(kind: u16, words: &[u32], rest: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + words.len() * 4 + rest.len());
    frame.extend(CONTROL.to_be_bytes());
    frame.extend(kind.to_be_bytes());
    let [.., l0, l1, l2] = (words.len() * 4 + rest.len()).to_be_bytes();
    frame.extend([0, l0, l1, l2]);
    frame.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    frame.extend(rest);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let (mut decoder, mut bytes) = (Decoder::default(), BytesMut::from(bytes));
        std::iter::from_fn(|| decoder.decode(&mut bytes).transpose()).collect()
    }

    fn data(stream: u32, payload: &[u8], flags: u8) -> Vec<u8> {
        let mut frame = data_head(stream, payload.len()).to_vec();
        frame[4] = flags;
        frame.extend(payload);
        frame
    }

    #[test]
    fn frames_survive_any_split() {
        let mut bytes = data(5, b"hello", FIN);
        bytes.extend(ping(7));
        bytes.extend(control_frame(SYN_STREAM, &[9, 0], &[0, 0, 1, 2, 3]));
        bytes.extend(rst_stream(9, Reset::Cancel));
        bytes.extend(go_away(9, Farewell::Done));
        let whole = all(&bytes).unwrap();
        assert_eq!(whole.len(), 5);
        assert_eq!(whole[0], Frame::Data { stream: 5, fin: true, bytes: Bytes::from_static(b"hello") });
        let block = Bytes::from_static(&[1, 2, 3]);
        assert_eq!(whole[2], Frame::SynStream { stream: 9, fin: false, block });
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
        let (mut controls, mut text) = (Vec::new(), Vec::new());
        for byte in bytes {
            buffer.extend([byte]);
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                match frame {
                    Frame::Data { bytes, .. } => text.extend(bytes),
                    other => controls.push(other),
                }
            }
        }
        assert_eq!((text.as_slice(), controls.as_slice()), (&b"hello"[..], &whole[1..]));
    }

    #[test]
    fn a_large_data_frame_comes_in_pieces() {
        let frames = all(&data(1, &vec![7; PIECE * 2 + 1], FIN)).unwrap();
        let ends: Vec<_> =
            frames.iter().map(|frame| matches!(frame, Frame::Data { fin: true, .. })).collect();
        assert_eq!(ends, [false, false, true]);
        assert_eq!(all(&data(1, b"", FIN)).unwrap().len(), 1, "an empty frame still ends the stream");
    }

    #[test]
    fn malformed_frames_are_errors() {
        assert_eq!(all(&data(0, b"x", 0)), Err(FrameError::StreamZero));
        let mut version = ping(1);
        version[1] = 2;
        assert_eq!(all(&version), Err(FrameError::Version { word: 0x8002 }));
        for (kind, words) in [(SYN_STREAM, 2), (SYN_REPLY, 0), (RST_STREAM, 1), (PING, 2), (GOAWAY, 1)] {
            let frame = control_frame(kind, &[1, 1][..words], &[]);
            assert_eq!(all(&frame), Err(FrameError::Length { kind, length: words * 4 }), "{kind}");
        }
        let huge = [0x80, 3, 0, 4, 0, 1, 0, 1];
        assert_eq!(all(&huge), Err(FrameError::Length { kind: 4, length: CONTROL_LIMIT + 1 }));
        assert_eq!(all(&control_frame(HEADERS, &[0], &[])), Err(FrameError::StreamZero));
    }
}
