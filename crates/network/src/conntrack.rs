//! Connections that the kernel still knows though they lead to no pod any more.
//!
//! A connection keeps the translation that it began with. TCP notices that nobody answers and begins anew, but one of UDP
//! or SCTP is only what a sender's addresses and ports say: one that keeps its port refreshes with each packet what leads
//! it to a pod that is gone, or to the host, where it knocked before there was a pod.

use std::net::IpAddr;

use nix::errno::Errno;

use crate::Protocol;
use crate::netlink::{self, Family, IPV4, IPV6, Message, NetlinkError, Operation, Socket};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const FILTER_ORIGINAL_FLAGS: u16 = 1;
const BY_PROTOCOL: u32 = 1 << 3;

const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_DESTINATION_PORT: u16 = 3;

/// A connection, as its first packet and the answer to it have the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    /// Where the packets go in truth: the destination, or what it was translated to.
    pub(crate) target: IpAddr,
}

/// Deletes the connections of a protocol that are stale.
pub(crate) fn forget(protocol: Protocol, is_stale: &dyn Fn(&Flow) -> bool) -> Result<(), NetlinkError> {
    let socket = Socket::open(Family::Netfilter)?;
    let stale = |payload: &[u8]| {
        let flow = parse(payload.get(4..)?)?;
        is_stale(&flow).then(|| delete(payload)).flatten()
    };
    for family in [IPV4, IPV6] {
        let deletions = socket.dump(&|| request(family, protocol), stale);
        for deletion in deletions.operation(|| format!("list the connections of {}", protocol.name()))? {
            match socket.request(deletion) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(errno).operation(|| format!("delete a connection of {}", protocol.name()));
                }
            }
        }
    }
    Ok(())
}

/// All of one protocol: the kernel sorts out the others, but not for both families at once.
fn request(family: u8, protocol: Protocol) -> Message {
    let mut message = Message::new(GET, netlink::DUMP).fixed(&[family, 0, 0, 0]);
    message.nest(ORIGINAL, |tuple| {
        tuple.nest(TUPLE_PROTOCOL, |part| part.attribute(PROTOCOL_NUMBER, &[protocol.number()]));
    });
    message.nest(FILTER, |filter| filter.attribute(FILTER_ORIGINAL_FLAGS, &BY_PROTOCOL.to_ne_bytes()));
    message
}

/// Deletes what one message of the list shows.
fn delete(payload: &[u8]) -> Option<Message> {
    let (header, attributes) = payload.split_at_checked(4)?;
    let mut message = Message::new(DELETE, netlink::ACK).fixed(&[header[0], 0, 0, 0]);
    message.nest(ORIGINAL, |tuple| tuple.put(netlink::find(attributes, ORIGINAL).unwrap_or_default()));
    for kind in [ID, ZONE] {
        if let Some(value) = netlink::find(attributes, kind) {
            message.attribute(kind, value);
        }
    }
    Some(message)
}

fn parse(attributes: &[u8]) -> Option<Flow> {
    let original = netlink::find(attributes, ORIGINAL)?;
    let reply = netlink::find(attributes, REPLY)?;
    let protocol = netlink::find(original, TUPLE_PROTOCOL)?;
    let port = netlink::find(protocol, PROTOCOL_DESTINATION_PORT)?;
    let (source, destination) = addresses(original)?;
    Some(Flow {
        source,
        destination,
        port: u16::from_be_bytes(port.get(..2)?.try_into().ok()?),
        target: addresses(reply)?.0,
    })
}

/// Source and destination; those of IPv4 come first in the numbering, then those of IPv6.
fn addresses(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let addresses = netlink::find(tuple, TUPLE_ADDRESSES)?;
    let address = |kinds: [u16; 2]| {
        kinds.iter().find_map(|kind| netlink::find(addresses, *kind)).and_then(netlink::address)
    };
    Some((address([1, 3])?, address([2, 4])?))
}
