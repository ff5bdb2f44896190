//! Netlink sockets and messages: enough for links, addresses, routes and nf_tables, all blocking.
//!
//! The kernel responds to a request before `send` returns, so reading the response never waits for anyone else.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{bind, connect, recv, send, setsockopt, socket, sockopt};

pub(crate) const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
pub(crate) const DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;
/// Set on a dump that was changing while it was listed: something may be missing or duplicate.
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often such a dump is requested again.
const DUMP_ATTEMPTS: usize = 10;

/// Address families, as every message numbers them.
pub(crate) const IPV4: u8 = 2;
pub(crate) const IPV6: u8 = 10;

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const HEADER_LEN: usize = 16;
/// The kernel fills at most 32 KiB of a dump into one datagram.
const RECEIVE_LEN: usize = 32 * 1024;

/// A request that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {operation}: {words}", words = wharf_types::failure::words(*.errno))]
pub struct NetlinkError {
    /// The operation and its object.
    pub operation: String,
    /// The kernel's error.
    pub errno: Errno,
}

/// Adds the operation to an errno.
pub(crate) trait Operation<T> {
    fn operation(self, name: impl FnOnce() -> String) -> Result<T, NetlinkError>;
}

impl<T> Operation<T> for Result<T, Errno> {
    fn operation(self, name: impl FnOnce() -> String) -> Result<T, NetlinkError> {
        self.map_err(|errno| NetlinkError { operation: name(), errno })
    }
}

/// A message being built: the header, and what is appended to it.
#[derive(Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// Appends the fixed part of a message, padded to 4 bytes.
    pub(crate) fn fixed(mut self, part: &[u8]) -> Self {
        self.put(part);
        self
    }

    pub(crate) fn put(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&attribute_len(value.len() + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.put(value);
    }

    /// A text with the NUL that the kernel expects.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        content(self);
        let len = attribute_len(self.bytes.len() - start);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Requests an acknowledgement even if nothing is refused.
    fn acknowledged(mut self) -> Self {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | ACK;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Attributes are far below 64 KiB. The length of a longer one makes the kernel refuse the message.
fn attribute_len(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Iterates over attributes: the kind without flag bits, and the value. A malformed rest ends the iteration.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _value)| *found == kind).map(|(_kind, value)| value)
}

/// A 32-bit number in native byte order, as in rtnetlink.
pub(crate) fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// An address, of the family that its length implies.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    ipv4().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// A text without its NUL.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// The part of the kernel that a socket talks to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    Route,
    Netfilter,
}

/// A netlink socket; it stays in the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: AtomicU32,
}

impl Socket {
    pub(crate) fn open(family: Family) -> Result<Self, NetlinkError> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let open = || {
            let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            // From here on it takes messages of the kernel alone: an administrator of the namespace could send others.
            connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(fd)
        };
        let fd = open().operation(|| "open a netlink socket".to_owned())?;
        Ok(Self { fd, sequence: AtomicU32::new(1) })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&self, message: Message) -> Result<(), Errno> {
        self.exchange(message.acknowledged(), &mut |_kind, _payload| {})
    }

    /// Collects what `parse` makes of the messages of a dump. EINTR means that the dump kept changing.
    pub(crate) fn dump<T, I: IntoIterator<Item = T>>(
        &self,
        request: &dyn Fn() -> Message,
        parse: impl Fn(&[u8]) -> I,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            match self.exchange(request(), &mut |_kind, payload| found.extend(parse(payload))) {
                Err(Errno::EINTR) => {}
                other => return other.map(|()| found),
            }
        }
        Err(Errno::EINTR)
    }

    /// Sends one request for one object and passes the answer to `answer`: its kind, and the payload after the header.
    pub(crate) fn get(&self, message: Message, answer: &mut dyn FnMut(u16, &[u8])) -> Result<(), Errno> {
        self.exchange(message.acknowledged(), answer)
    }

    /// Sends one request and passes every message of the answer to `answer`: its kind, and the payload after the
    /// header. EINTR means that a dump is inconsistent.
    fn exchange(&self, message: Message, answer: &mut dyn FnMut(u16, &[u8])) -> Result<(), Errno> {
        let sequence = self.next();
        self.send(&message.finish(sequence))?;
        let mut buffer = vec![0; RECEIVE_LEN];
        let mut interrupted = false;
        loop {
            let len = self.receive(&mut buffer, MsgFlags::empty())?;
            for Received { kind, flags, payload, .. } in
                messages(&buffer[..len]).filter(|message| message.sequence == sequence)
            {
                interrupted |= kind != KIND_ERROR && flags & DUMP_INTERRUPTED != 0;
                match kind {
                    KIND_ERROR | KIND_DONE if interrupted => return Err(Errno::EINTR),
                    KIND_ERROR | KIND_DONE => return status(payload),
                    _ => answer(kind, payload),
                }
            }
        }
    }

    /// Sends messages as one datagram; returns the first error, with the index of its message.
    ///
    /// All errors have arrived when `send` returns: rtnetlink handles one request after another, and nf_tables commits
    /// or undoes the whole batch.
    pub(crate) fn batch(&self, messages_to_send: Vec<Message>) -> Result<(), (usize, Errno)> {
        let mut datagram = Vec::new();
        let mut first = None;
        for message in messages_to_send {
            let sequence = self.next();
            first.get_or_insert(sequence);
            datagram.extend(message.finish(sequence));
        }
        let first = first.unwrap_or_default();
        self.send(&datagram).map_err(|errno| (0, errno))?;
        let mut buffer = vec![0; RECEIVE_LEN];
        let mut result = Ok(());
        loop {
            let len = match self.receive(&mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return result,
                Err(errno) => return Err((0, errno)),
            };
            for Received { kind, sequence, payload, .. } in messages(&buffer[..len]) {
                if kind == KIND_ERROR && sequence >= first && result.is_ok() {
                    let index = usize::try_from(sequence - first).unwrap_or_default();
                    result = status(payload).map_err(|errno| (index, errno));
                }
            }
        }
    }

    fn next(&self) -> u32 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// A datagram that is longer than the socket's buffer is refused, and what nf_tables is to do at once must be one.
    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let send = || send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map(drop);
        match send() {
            Err(Errno::EMSGSIZE) => {
                // Beyond what an administrator has set for everybody. The kernel adds as much again.
                setsockopt(&self.fd, sockopt::SndBufForce, &bytes.len())?;
                send()
            }
            sent => sent,
        }
    }

    fn receive(&self, buffer: &mut [u8], flags: MsgFlags) -> Result<usize, Errno> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, flags) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

/// A message from the kernel.
struct Received<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Iterates over the messages of a datagram. A truncated one keeps what arrived.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER_LEN)?;
        let len = usize::try_from(number(header)?).ok()?.max(HEADER_LEN);
        let (kind, flags) =
            (u16::from_ne_bytes([header[4], header[5]]), u16::from_ne_bytes([header[6], header[7]]));
        let sequence = number(&header[8..])?;
        let payload = &bytes[HEADER_LEN..len.min(bytes.len())];
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, flags, sequence, payload })
    })
}

/// The status at the start of an error or done message: zero, or a negated errno.
fn status(payload: &[u8]) -> Result<(), Errno> {
    let code = number(payload).unwrap_or(0).cast_signed();
    if code == 0 { Ok(()) } else { Err(Errno::from_raw(-code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut message = Message::new(1, 0);
        message.text(3, "abc");
        message.nest(4, |inner| inner.attribute(5, &7_u32.to_ne_bytes()));
        let bytes = message.finish(9);
        let Received { kind, flags, sequence, payload } = messages(&bytes).next().unwrap();
        assert_eq!((kind, flags, sequence), (1, REQUEST, 9));
        assert_eq!(text(find(payload, 3).unwrap()), "abc");
        assert_eq!(find(find(payload, 4).unwrap(), 5).and_then(number), Some(7));
    }

    #[test]
    fn nobody_answers_but_the_kernel() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let socket = Socket::open(Family::Route).unwrap();
        let address: NetlinkAddr = nix::sys::socket::getsockname(socket.fd.as_raw_fd()).unwrap();
        let forger = Socket::open(Family::Route).unwrap();
        // What would end the next dump.
        let forged = Message::new(KIND_DONE, 0).fixed(&[0; 4]).finish(1);
        let sent = nix::sys::socket::sendto(forger.fd.as_raw_fd(), &forged, &address, MsgFlags::empty());
        assert_eq!(sent, Err(Errno::ECONNREFUSED));
    }

    #[test]
    fn malformed_answers_end_the_walk() {
        for bytes in [&[][..], &[1], &[0, 0, 1, 0], &[200, 0, 1, 0, 5], &[3, 0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
        let mut short = vec![0_u8; HEADER_LEN];
        short[0] = 255;
        assert_eq!(messages(&short).count(), 1);
    }

    #[test]
    fn a_refusal_names_the_operation() {
        let socket = Socket::open(Family::Route).unwrap();
        let error = socket.request(Message::new(999, 0)).operation(|| "look".to_owned()).unwrap_err();
        assert_eq!((error.to_string().starts_with("cannot look: "), error.errno), (true, Errno::EOPNOTSUPP));
    }
}
