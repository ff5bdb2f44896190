//! Connections in the kernel's conntrack table that lead to no pod any more.
//!
//! A connection keeps the translation with which it began. A TCP client notices that nobody answers and connects again.
//! But a UDP or SCTP connection is only a pair of addresses and ports: a sender that keeps its port refreshes, with
//! each packet, an entry that leads to a pod that is gone, or to the host, which it reached before the pod existed.

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

/// A connection, with the addresses of its first packet and of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    /// Where its packets really go: the destination, or what that was translated to.
    pub(crate) target: IpAddr,
}

/// Deletes the stale connections of a protocol.
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

/// Lists the connections of one protocol: the kernel filters by protocol only within one family.
fn request(family: u8, protocol: Protocol) -> Message {
    let mut message = Message::new(GET, netlink::DUMP).fixed(&[family, 0, 0, 0]);
    message.nest(ORIGINAL, |tuple| {
        tuple.nest(TUPLE_PROTOCOL, |part| part.attribute(PROTOCOL_NUMBER, &[protocol.number()]));
    });
    message.nest(FILTER, |filter| filter.attribute(FILTER_ORIGINAL_FLAGS, &BY_PROTOCOL.to_ne_bytes()));
    message
}

/// The message that deletes the connection in one message of the list.
fn delete(payload: &[u8]) -> Option<Message> {
    let (header, attributes) = payload.split_at_checked(4)?;
    let mut message = Message::new(DELETE, 0).fixed(&[header[0], 0, 0, 0]);
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

/// Source and destination. The attributes of IPv4 have the lower numbers, then those of IPv6 follow.
fn addresses(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let addresses = netlink::find(tuple, TUPLE_ADDRESSES)?;
    let address = |kinds: [u16; 2]| {
        kinds.iter().find_map(|kind| netlink::find(addresses, *kind)).and_then(netlink::address)
    };
    Some((address([1, 3])?, address([2, 4])?))
}
