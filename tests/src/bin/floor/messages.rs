//! As much of rtnetlink as a routed link needs: several requests in one datagram, which the kernel answers before
//! `send` returns.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x600;
const HEADER_BYTES: usize = 16;
const KIND_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;

/// An rtnetlink socket of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    pub(crate) fn open() -> anyhow::Result<Self> {
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
                .context("open a netlink socket")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("bind a netlink socket")?;
        Ok(Self(socket))
    }

    /// Sends the requests in one datagram. It is an error if any of them failed.
    pub(crate) fn request(&self, batch: &Batch) -> anyhow::Result<()> {
        let (bytes, last) = batch.finished();
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty()).context("send to the kernel")?;
        let mut buffer = [0; 8192];
        loop {
            let count = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("read an answer")?;
            let answer = &buffer[..count];
            let number = |at: usize| answer.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
            let kind = u16::from_ne_bytes([answer[4], answer[5]]);
            let errno = number(16).filter(|_| kind == KIND_ERROR).context("an answer without a code")?;
            let sequence = number(8).context("an answer without a number")?;
            if errno != 0 {
                let error = std::io::Error::from_raw_os_error(errno.wrapping_neg().cast_signed());
                return Err(error).with_context(|| format!("netlink request {sequence} of {last}"));
            }
            if sequence == last {
                return Ok(());
            }
        }
    }
}

/// Requests to send together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    begins: Vec<usize>,
}

impl Batch {
    /// A request that creates something.
    pub(crate) fn create(&mut self, kind: u16, fixed: &[u8], attributes: impl FnOnce(&mut Attributes<'_>)) {
        self.add(kind, REQUEST | CREATE, fixed, attributes);
    }

    /// A request that changes something.
    pub(crate) fn change(&mut self, kind: u16, fixed: &[u8]) {
        self.add(kind, REQUEST, fixed, |_none| {});
    }

    fn add(&mut self, kind: u16, flags: u16, fixed: &[u8], attributes: impl FnOnce(&mut Attributes<'_>)) {
        let begin = self.bytes.len();
        self.begins.push(begin);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        let sequence = u32::try_from(self.begins.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.resize(begin + HEADER_BYTES, 0);
        self.bytes.extend_from_slice(fixed);
        attributes(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - begin).unwrap_or(u32::MAX);
        self.bytes[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// The datagram and the number of its last request, which asks for an answer.
    fn finished(&self) -> (Vec<u8>, u32) {
        let mut bytes = self.bytes.clone();
        if let Some(begin) = self.begins.last() {
            let flags = u16::from_ne_bytes([bytes[begin + 6], bytes[begin + 7]]) | ACK;
            bytes[begin + 6..begin + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        (bytes, u32::try_from(self.begins.len()).unwrap_or(u32::MAX))
    }
}

/// The attributes of a request or of another attribute.
#[derive(Debug)]
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        self.with(kind, |bytes| bytes.extend_from_slice(value));
    }

    /// Adds an attribute with nested attributes, which may begin with bytes of its own.
    pub(crate) fn nest(&mut self, kind: u16, head: &[u8], inner: impl FnOnce(&mut Attributes<'_>)) {
        self.with(kind | NESTED, |bytes| {
            bytes.extend_from_slice(head);
            inner(&mut Attributes(bytes));
        });
    }

    fn with(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let begin = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        write(self.0);
        let length = u16::try_from(self.0.len() - begin).unwrap_or(u16::MAX);
        self.0[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, Socket};

    #[test]
    fn lengths_and_padding_are_the_kernels() {
        let mut batch = Batch::default();
        batch.change(16, &[9; 4]);
        batch.create(16, &[], |attributes| attributes.nest(1, &[], |inner| inner.put(3, b"a\0")));
        let (bytes, last) = batch.finished();
        assert_eq!((last, bytes.len()), (2, 20 + 16 + 4 + 8));
        assert_eq!((bytes[0], bytes[6] & 4), (20, 0), "only the last is answered");
        assert_eq!((bytes[20], bytes[26] & 4), (28, 4));
        assert_eq!(bytes[36..], [12, 0, 1, 128, 6, 0, 3, 0, b'a', 0, 0, 0]);
    }

    #[test]
    fn the_error_of_a_request_names_its_number() {
        let mut batch = Batch::default();
        let header = [[0, 0, 0, 0], i32::MAX.to_ne_bytes(), [0; 4], [0; 4]].concat();
        batch.change(16, &header);
        batch.change(16, &header);
        let error = Socket::open().unwrap().request(&batch).unwrap_err();
        assert!(error.to_string().contains("1 of 2"), "{error}");
    }
}
