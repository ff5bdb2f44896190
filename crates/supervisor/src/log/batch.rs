//! Records that are written together and have the same time.
//!
//! A flood of output is millions of short lines, so the work for each line is what counts. The header is ready except
//! for its tag, and short texts are copied with a fixed length: a copy of variable length is a function call, which
//! takes longer than everything else.

use super::Stream;
use crate::clock;

/// With this many bytes, the records should be written.
const FULL_BYTES: usize = 48 * 1024;
/// `<time> <stream> <tag> `.
const HEADER_BYTES: usize = clock::STAMP_LENGTH + 10;
const TAG_AT: usize = HEADER_BYTES - 2;
/// The fixed length with which short texts are copied.
const SHORT_BYTES: usize = 16;
const MIDDLE_BYTES: usize = 64;

/// Records of one stream.
#[derive(Debug, Default)]
pub(super) struct Batch {
    now_ns: i64,
    header: Header,
    /// Grows as needed; the bytes beyond `length` have no meaning.
    buffer: Vec<u8>,
    length: usize,
}

#[derive(Debug)]
struct Header([u8; HEADER_BYTES]);

impl Default for Header {
    fn default() -> Self {
        Self([b' '; HEADER_BYTES])
    }
}

impl Batch {
    /// A batch without records.
    pub(super) fn new(stream: Stream, now_ns: i64) -> Self {
        let mut batch = Self::default();
        batch.begin(stream, now_ns);
        batch
    }

    /// Empties the batch, for this stream and time.
    pub(super) fn begin(&mut self, stream: Stream, now_ns: i64) {
        let (stamp, name) = self.header.0.split_at_mut(clock::STAMP_LENGTH);
        stamp.copy_from_slice(&clock::stamp(now_ns));
        name.copy_from_slice(match stream {
            Stream::Stdout => b" stdout F ",
            Stream::Stderr => b" stderr F ",
        });
        self.now_ns = now_ns;
        self.length = 0;
    }

    /// The time of its records.
    pub(super) fn now_ns(&self) -> i64 {
        self.now_ns
    }

    /// Adds a record of the held-back part of a line and the first `length` bytes of `text`.
    pub(super) fn record(&mut self, tag: u8, held: &[u8], text: &[u8], length: usize) {
        let end = self.length + HEADER_BYTES + held.len() + length + 1;
        // A copy may write beyond the end of the text.
        let room = end + MIDDLE_BYTES;
        if self.buffer.len() < room {
            self.buffer.resize(room.max(2 * self.buffer.len()), 0);
        }
        self.header.0[TAG_AT] = tag;
        let (header, room) = self.buffer[self.length..].split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&self.header.0);
        room[..held.len()].copy_from_slice(held);
        let room = &mut room[held.len()..];
        copy(text, length, room);
        room[length] = b'\n';
        self.length = end;
    }

    /// Whether it should be written before the next record is added.
    pub(super) fn is_full(&self) -> bool {
        self.length > FULL_BYTES
    }

    /// The bytes to write.
    pub(super) fn records(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Forgets the records.
    pub(super) fn clear(&mut self) {
        self.length = 0;
    }
}

/// Copies the first `length` bytes, and possibly some more.
fn copy(from: &[u8], length: usize, to: &mut [u8]) {
    if length <= SHORT_BYTES
        && let (Some(from), Some(to)) = (from.first_chunk::<SHORT_BYTES>(), to.first_chunk_mut())
    {
        *to = *from;
    } else if length <= MIDDLE_BYTES
        && let (Some(from), Some(to)) = (from.first_chunk::<MIDDLE_BYTES>(), to.first_chunk_mut())
    {
        *to = *from;
    } else {
        to[..length].copy_from_slice(&from[..length]);
    }
}

/// The end of the first line, searched for eight bytes at a time.
pub(super) fn line_end(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const LINE_FEEDS: u64 = u64::from_le_bytes([b'\n'; 8]);
    let (words, rest) = bytes.as_chunks();
    for (number, word) in words.iter().enumerate() {
        // The lowest set bit marks the first byte that is zero, which is where the line feed is.
        let zeroed = u64::from_le_bytes(*word) ^ LINE_FEEDS;
        let found = zeroed.wrapping_sub(ONES) & !zeroed & (ONES << 7);
        if found != 0 {
            return Some(number * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    Some(words.len() * 8 + rest.iter().position(|&byte| byte == b'\n')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE_LIMIT_BYTES: usize = 16 << 10;

    #[test]
    fn the_first_line_end_is_found_wherever_it_is() {
        for length in 0..40 {
            for filler in [0, 1, b'\n' - 1, b'\n' + 1, 0x8a, 0xff] {
                let mut bytes = vec![filler; length];
                assert_eq!(line_end(&bytes), None);
                for at in (0..length).rev() {
                    // The bytes after it stay.
                    bytes[at] = b'\n';
                    assert_eq!(line_end(&bytes), Some(at), "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn texts_of_every_length_come_out_whole() {
        let text: Vec<u8> = (0..=u8::MAX).cycle().take(LINE_LIMIT_BYTES).collect();
        for end in (0..200).chain([LINE_LIMIT_BYTES]) {
            for length in [0, end / 3, end / 2, end] {
                let mut batch = Batch::new(Stream::Stdout, 0);
                batch.record(b'F', b"held ", &text[..end], length);
                batch.record(b'P', b"", b"next", 4);
                let first = [b"held ", &text[..length], b"\n"].concat();
                let (head, rest) = batch.records().split_at(HEADER_BYTES);
                assert_eq!(&head[clock::STAMP_LENGTH..], b" stdout F ");
                assert_eq!(rest[..first.len()], first);
                assert!(rest[first.len()..].ends_with(b" stdout P next\n"));
            }
        }
    }

    #[test]
    fn a_batch_begins_anew() {
        let text = vec![b'x'; LINE_LIMIT_BYTES];
        let mut batch = Batch::new(Stream::Stderr, 7);
        let mut count = 0;
        while !batch.is_full() {
            batch.record(b'P', b"", &text, LINE_LIMIT_BYTES);
            count += 1;
        }
        assert_eq!((count, batch.records().len()), (3, 3 * (HEADER_BYTES + LINE_LIMIT_BYTES + 1)));
        batch.begin(Stream::Stdout, 8);
        assert_eq!((batch.records(), batch.now_ns()), (&[][..], 8));
    }
}
