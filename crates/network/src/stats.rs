//! Counters of pods' interfaces: of `eth0` from the other end of its pair, for all pods at once, or of every interface
//! through a socket that was opened once inside the pod's namespace.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use wharf_types::PodId;

use crate::netlink::{self, Family, Message, NetlinkError, Operation as _, Socket};
use crate::{Error, INTERFACE, link, netns};

const GET_STATS: u16 = 94;
/// `rtnl_link_stats64`, as an attribute and in the request for it.
const LINK_STATS: u16 = 1;
const WANTED_STATS: u32 = 1;
/// The length of `struct if_stats_msg`: family and padding, index, what is wanted.
const STATS_HEADER_LEN: usize = 12;

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
    /// [`Error::Netns`] if `netns` is not a network namespace, [`Error::Netlink`] if the kernel returns no socket.
    pub fn open(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        let socket = netns::inside(netns, || Socket::open(Family::Route))??;
        Ok(Self { socket })
    }

    /// Opens the socket in a namespace by the path at which it is pinned; `None` if none is pinned there.
    ///
    /// # Errors
    /// Those of [`StatsSocket::open`].
    pub fn pinned(path: &Path) -> Result<Option<Self>, Error> {
        match netns::is_pinned(path)? {
            true => Self::open(netns::open(path)?.as_fd()).map(Some),
            false => Ok(None),
        }
    }

    /// Reads the counters of every interface except `lo`, or of the first 64 if there are more, with one request to the
    /// kernel.
    ///
    /// # Errors
    /// [`Error::Netlink`] if the kernel returns an error.
    pub fn read(&self) -> Result<Vec<InterfaceStats>, Error> {
        let links = link::list_first(&self.socket, INTERFACES_LIMIT, |link| link.name != "lo")?;
        Ok(links.into_iter().map(|link| counters(link.name, &link.stats)).collect())
    }
}

/// The counters of `eth0` of each pod for which `ends` has the index of the host's end, in one dump of the counters of
/// all links of this namespace.
pub(crate) fn of_pods(ends: &HashMap<PodId, u32>) -> Result<HashMap<PodId, InterfaceStats>, NetlinkError> {
    let pods: HashMap<u32, &PodId> = ends.iter().map(|(id, index)| (*index, id)).collect();
    let request = || stats_request(netlink::DUMP, 0);
    let parse = |payload: &[u8]| {
        let (index, stats) = host_end(payload)?;
        Some(((*pods.get(&index)?).clone(), stats))
    };
    let all = Socket::open(Family::Route)?.dump(&request, parse);
    Ok(all.operation(|| "read the counters of the links".to_owned())?.into_iter().collect())
}

/// The counters of `eth0` of the pod whose pair has this host's end; `None` if that is gone.
pub(crate) fn of_pod(end: u32) -> Result<Option<InterfaceStats>, NetlinkError> {
    let mut stats = None;
    let mut answer = |_kind: u16, payload: &[u8]| stats = host_end(payload).map(|(_index, stats)| stats);
    match Socket::open(Family::Route)?.get(stats_request(0, end), &mut answer) {
        Ok(()) => Ok(stats),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno).operation(|| format!("read the counters of link {end}")),
    }
}

fn stats_request(flags: u16, index: u32) -> Message {
    let mut header = [0; STATS_HEADER_LEN];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..].copy_from_slice(&WANTED_STATS.to_ne_bytes());
    Message::new(GET_STATS, flags).fixed(&header)
}

/// The index of a pair's host end in an answer, and the counters of its other end: what one has sent, the other has
/// received.
fn host_end(payload: &[u8]) -> Option<(u32, InterfaceStats)> {
    let (header, rest) = payload.split_at_checked(STATS_HEADER_LEN)?;
    let host = counters(INTERFACE.to_owned(), netlink::find(rest, LINK_STATS)?);
    let pod = InterfaceStats {
        rx_bytes: host.tx_bytes,
        rx_packets: host.tx_packets,
        rx_errors: host.tx_errors,
        rx_dropped: host.tx_dropped,
        tx_bytes: host.rx_bytes,
        tx_packets: host.rx_packets,
        tx_errors: host.rx_errors,
        tx_dropped: host.rx_dropped,
        name: host.name,
    };
    Some((netlink::number(&header[4..])?, pod))
}

/// `struct rtnl_link_stats64` begins with packets, bytes, errors and drops, each received before sent.
fn counters(name: String, stats: &[u8]) -> InterfaceStats {
    let at = |index: usize| {
        let bytes = stats.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
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
        name,
    }
}
