//! Counters of a pod's interfaces, read through a socket that was opened once inside the pod's namespace.

use std::os::fd::BorrowedFd;

use crate::link;
use crate::netlink::{Family, Socket};
use crate::{Error, netns};

/// How many interfaces of one pod are reported: a pod that makes more than anyone needs must not bloat the responses
/// about all pods of the node.
const INTERFACES_LIMIT: usize = 64;

/// The counters of one interface since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceStats {
    /// The interface's name inside the pod.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that arrived damaged.
    pub rx_errors: u64,
    /// Packets that arrived and were dropped for lack of buffers.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that were dropped instead of being sent.
    pub tx_dropped: u64,
}

/// A socket inside a pod's network namespace.
///
/// It keeps the namespace alive: the pod's link and address are free only after it is dropped.
#[derive(Debug)]
pub struct StatsSocket {
    socket: Socket,
}

impl StatsSocket {
    /// Opens the socket on a thread that enters the namespace and then exits.
    ///
    /// # Errors
    /// [`Error::Netns`] if `netns` is no network namespace, [`Error::Netlink`] if the kernel returns no socket.
    pub fn open(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        let socket = netns::inside(netns, || Socket::open(Family::Route))??;
        Ok(Self { socket })
    }

    /// Reads the counters of every interface except `lo`, or of the first 64 if there are more, with one request to the
    /// kernel.
    ///
    /// # Errors
    /// [`Error::Netlink`] if the kernel returns an error.
    pub fn read(&self) -> Result<Vec<InterfaceStats>, Error> {
        let links = link::list_first(&self.socket, INTERFACES_LIMIT, |link| link.name != "lo")?;
        Ok(links.into_iter().map(counters).collect())
    }
}

/// `struct rtnl_link_stats64` begins with packets, bytes, errors and drops, each received before sent.
fn counters(link: link::Link) -> InterfaceStats {
    let at = |index: usize| {
        let bytes = link.stats.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    };
    InterfaceStats {
        rx_packets: at(0),
        tx_packets: at(1),
        rx_bytes: at(2),
        tx_bytes: at(3),
        rx_errors: at(4),
        tx_errors: at(5),
        rx_dropped: at(6),
        tx_dropped: at(7),
        name: link.name,
    }
}
