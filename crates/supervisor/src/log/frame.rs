//! The messages between the supervisor and its log writer, one datagram each. Both are the same program, so there is no
//! version.

use nix::errno::Errno;
use wharf_isolation::LogLimits;

use super::Stream;

/// The room that a reader leaves before the bytes of a write.
pub(crate) const HEADER_BYTES: usize = 18;
/// The longest payload of an order or a reply.
pub(crate) const PAYLOAD_LIMIT_BYTES: usize = 64 * 1024;

/// An order. `number` is the token for the reply, or a time, or a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Open or reopen the log: see [`Opening`]. Its directory is beside the order, or its path is in the order.
    Open,
    /// Write the bytes, which arrived at the time `number`.
    Write(Stream),
    /// Write what is held back of a stream, which ended at the time `number`.
    Finish(Stream),
    /// Count `number` records as lost.
    Lose,
    /// Reply when everything ordered before has been written.
    Flush,
    /// Forget the log once it says what was lost.
    Close,
    /// Reply without a failure if the writer can exit without losing anything.
    Rest,
}

/// The head of every order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) order: Order,
    pub(super) log: u64,
    pub(super) number: u64,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let (kind, stream) = match self.order {
            Order::Open => (b'O', 0),
            Order::Write(stream) => (b'W', stream as u8),
            Order::Finish(stream) => (b'F', stream as u8),
            Order::Lose => (b'L', 0),
            Order::Flush => (b'S', 0),
            Order::Close => (b'C', 0),
            Order::Rest => (b'R', 0),
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&[kind, stream]);
        bytes[2..10].copy_from_slice(&self.log.to_ne_bytes());
        bytes[10..].copy_from_slice(&self.number.to_ne_bytes());
        bytes
    }

    /// The header and what follows it.
    pub(super) fn parse(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (header, payload) = datagram.split_first_chunk::<HEADER_BYTES>()?;
        let stream = if header[1] == 0 { Stream::Stdout } else { Stream::Stderr };
        let order = match header[0] {
            b'O' => Order::Open,
            b'W' => Order::Write(stream),
            b'F' => Order::Finish(stream),
            b'L' => Order::Lose,
            b'S' => Order::Flush,
            b'C' => Order::Close,
            b'R' => Order::Rest,
            _ => return None,
        };
        let number = |at: usize| header[at..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        Some((Self { order, log: number(2)?, number: number(10)? }, payload))
    }
}

/// What follows the head of [`Order::Open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening<'a> {
    /// When an open log must no longer be reopened, by the monotonic clock; 0 for no deadline.
    pub(super) deadline_ns: u64,
    /// How long its records and the file may be.
    pub(super) limits: LogLimits,
    /// The log's name in its directory.
    pub(super) name: &'a str,
    /// The directory's path.
    pub(super) directory: &'a str,
}

impl<'a> Opening<'a> {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let LogLimits { line_bytes, file_bytes } = self.limits;
        let numbers = [self.deadline_ns, line_bytes.into(), file_bytes].map(u64::to_ne_bytes);
        [&numbers.concat(), self.name.as_bytes(), b"\0", self.directory.as_bytes()].concat()
    }

    pub(super) fn parse(payload: &'a [u8]) -> Option<Self> {
        let (numbers, place) = payload.split_at_checked(24)?;
        let (numbers, _none) = numbers.as_chunks();
        let [deadline_ns, line_bytes, file_bytes] = numbers else { return None };
        let [deadline_ns, line_bytes, file_bytes] =
            [deadline_ns, line_bytes, file_bytes].map(|bytes| u64::from_ne_bytes(*bytes));
        let (name, directory) = std::str::from_utf8(place).ok()?.split_once('\0')?;
        let limits = LogLimits { line_bytes: u32::try_from(line_bytes).ok()?, file_bytes };
        Some(Self { deadline_ns, limits, name, directory })
    }
}

/// Why an order could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) message: String,
}

/// The reply to an order with a token. A directory that was opened is beside it.
pub(super) fn reply(token: u64, outcome: &Result<(), Refusal>) -> Vec<u8> {
    let (errno, message) = match outcome {
        Ok(()) => (0, &[][..]),
        Err(refusal) => (refusal.errno as i32, refusal.message.as_bytes()),
    };
    [&token.to_ne_bytes()[..], &errno.to_ne_bytes(), &message[..message.len().min(1024)]].concat()
}

/// The token of a reply, and whether the order was carried out.
pub(super) fn parse_reply(datagram: &[u8]) -> Option<(u64, Result<(), Refusal>)> {
    let (token, outcome) = datagram.split_first_chunk()?;
    let (errno, message) = outcome.split_first_chunk()?;
    let outcome = match i32::from_ne_bytes(*errno) {
        0 => Ok(()),
        errno => {
            let message = String::from_utf8_lossy(message).into_owned();
            Err(Refusal { errno: Errno::from_raw(errno), message })
        }
    };
    Some((u64::from_ne_bytes(*token), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_comes_back() {
        use Order::*;
        let streams = [Stream::Stdout, Stream::Stderr];
        for order in
            [Open, Lose, Flush, Close, Rest].into_iter().chain(streams.map(Write)).chain(streams.map(Finish))
        {
            let header = Header { order, log: u64::MAX - 1, number: 1 << 40 };
            let bytes = [&header.to_bytes()[..], b"rest"].concat();
            assert_eq!(Header::parse(&bytes), Some((header, &b"rest"[..])));
        }
        assert_eq!((Header::parse(&[0; HEADER_BYTES]), Header::parse(b"W")), (None, None));
    }

    #[test]
    fn openings_come_back() {
        let limits = LogLimits { line_bytes: 1024, file_bytes: 1 << 33 };
        let opening = Opening { deadline_ns: 1 << 40, limits, name: "0.log", directory: "/var/log/pods/x" };
        assert_eq!(Opening::parse(&opening.to_bytes()), Some(opening));
        assert_eq!((Opening::parse(b"short"), Opening::parse(&[b'x'; 30])), (None, None));
    }

    #[test]
    fn replies_come_back_and_are_bounded() {
        let refusal = |errno, message: &str| Err(Refusal { errno, message: message.to_owned() });
        for outcome in [Ok(()), refusal(Errno::ENOSPC, "no"), refusal(Errno::ENOENT, "")] {
            assert_eq!(parse_reply(&reply(7, &outcome)), Some((7, outcome)));
        }
        assert!(reply(8, &refusal(Errno::EIO, &"x".repeat(70_000))).len() < 2000);
        assert_eq!((parse_reply(b"short"), parse_reply(b"12345678abc")), (None, None));
    }
}
