//! Detects that a client has disconnected, without reading what it sent before.
//!
//! The end of a connection arrives after all bytes that the client sent. So the server does not see it while it has no
//! room for those bytes, and the kernel of a killed client offers them for minutes. But the kubelet is on this machine,
//! so the server asks the kernel for the state of the client's socket.

use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::time::sleep;

/// How often the state of the client's socket is requested.
const LOOK: Duration = Duration::from_secs(1);

/// Watches a client for its disconnection.
#[derive(Debug, Clone)]
pub(crate) struct Hangup {
    /// The reactor reports a hang-up only together with readable bytes, and those are always there while nobody reads
    /// them. So it watches another epoll, which becomes readable for a hang-up alone.
    epoll: Arc<AsyncFd<OwnedFd>>,
    /// The client's socket, if the kernel can be asked about it.
    peer: Option<Peer>,
}

impl Hangup {
    pub(crate) fn watch(socket: &TcpStream) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLRDHUP, 0))?;
        #[expect(
            deprecated,
            reason = "what its successor asks of the caller, unsafely, an `OwnedFd` upholds by itself"
        )]
        let registered = AsyncFd::new(epoll.0)?;
        let peer = Peer { its: socket.peer_addr()?, ours: socket.local_addr()? };
        Ok(Self { epoll: Arc::new(registered), peer: Some(peer).filter(Peer::can_be_asked_for) })
    }

    /// Resolves when the client has closed its end or the connection has broken.
    pub(crate) async fn happened(&self) {
        let told = async {
            // An error would mean that the reactor is gone, and with it every task that waits here.
            drop(self.epoll.readable().await);
        };
        tokio::select! {
            () = told => {}
            () = self.closed_behind_bytes() => {}
        }
    }

    async fn closed_behind_bytes(&self) {
        let Some(peer) = &self.peer else { return pending().await };
        while peer.is_open().unwrap_or(true) {
            sleep(LOOK).await;
        }
    }
}

/// The client's end of a connection within this machine: its address and ours.
#[derive(Debug, Clone, Copy)]
struct Peer {
    its: SocketAddr,
    ours: SocketAddr,
}

impl Peer {
    /// Whether the kernel supports this request; it need not.
    fn can_be_asked_for(&self) -> bool {
        let same_machine = self.its.ip().is_loopback() || self.its.ip() == self.ours.ip();
        same_machine && matches!(self.is_open(), Ok(true))
    }

    /// Whether the client has the socket open: `SOCK_DIAG_BY_FAMILY` of sock_diag(7) for this one socket.
    fn is_open(&self) -> io::Result<bool> {
        const HEADER_LEN: usize = 16;
        const ERROR: u16 = 2;
        const ESTABLISHED: u8 = 1;
        const CLOSE_WAIT: u8 = 8;
        let flags = SockFlag::SOCK_CLOEXEC;
        let kernel =
            socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
        // Nobody else's answer is heard.
        connect(kernel.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        send(kernel.as_raw_fd(), &self.question(), MsgFlags::empty())?;
        let mut answer = [0; 512];
        let len = recv(kernel.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let body = answer.get(HEADER_LEN..len).filter(|body| body.len() >= 4).ok_or_else(short)?;
        if u16::from_ne_bytes([answer[4], answer[5]]) == ERROR {
            let code = i32::from_ne_bytes([body[0], body[1], body[2], body[3]]);
            return if code == -nix::libc::ENOENT {
                Ok(false)
            } else {
                Err(io::Error::from_raw_os_error(-code))
            };
        }
        Ok(matches!(body[1], ESTABLISHED | CLOSE_WAIT))
    }

    /// The request: `struct nlmsghdr` and `struct inet_diag_req_v2`.
    fn question(&self) -> Vec<u8> {
        const LEN: u32 = 72;
        const BY_FAMILY: u16 = 20;
        const REQUEST: u16 = 1;
        const TCP: u8 = 6;
        let mut bytes = LEN.to_ne_bytes().to_vec();
        bytes.extend(BY_FAMILY.to_ne_bytes());
        bytes.extend(REQUEST.to_ne_bytes());
        bytes.extend([0; 8]);
        let family = if self.its.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
        bytes.extend([u8::try_from(family).unwrap_or_default(), TCP, 0, 0]);
        // Sockets in any state.
        bytes.extend([0xff; 4]);
        for address in [self.its, self.ours] {
            bytes.extend(address.port().to_be_bytes());
        }
        for address in [self.its, self.ours] {
            let octets = match address.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            bytes.extend(&octets);
            bytes.extend(vec![0; 16 - octets.len()]);
        }
        // Any link, and no cookie.
        bytes.extend([0; 4]);
        bytes.extend([0xff; 8]);
        bytes
    }
}
