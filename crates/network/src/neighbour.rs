//! Hardware addresses of neighbours, and the bridge ports behind which they are. The kernel is told both, so that it
//! need not learn them from frames and packets, in which a pod can claim to be any sender.

use std::net::IpAddr;

use nix::errno::Errno;

use crate::link::{family, octets};
use crate::netlink::{self, Message, NetlinkError, Operation, Socket};

const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;

const BRIDGE_FAMILY: u8 = 7;
const NETWORK_ADDRESS: u16 = 1;
const HARDWARE_ADDRESS: u16 = 2;
/// It is never resolved, and no answer changes it.
const PERMANENT: u16 = 0x80;
/// A bridge's entry: behind this port as long as the port exists.
const STATIC: u16 = 0x40;
/// The entry belongs to the bridge of which the link is a port.
const OF_MASTER: u8 = 4;
/// Not a neighbour, but an address for which the host answers.
const PROXY: u8 = 8;

/// The request that sets a neighbour's hardware address, whatever was known before.
///
/// The kernel does not count such an entry for its limit on neighbours (`gc_thresh3`).
pub(crate) fn hold(link: u32, neighbour: IpAddr, hardware: [u8; 6]) -> Message {
    let flags = netlink::CREATE | netlink::REPLACE;
    let mut message =
        Message::new(NEW_NEIGHBOUR, flags).fixed(&header(family(neighbour), link, PERMANENT, 0));
    message.attribute(NETWORK_ADDRESS, &octets(neighbour));
    message.attribute(HARDWARE_ADDRESS, &hardware);
    message
}

/// The request that sets which hardware address is behind a bridge's port. The entry disappears with the port.
pub(crate) fn hold_behind(port: u32, hardware: [u8; 6]) -> Message {
    let flags = netlink::CREATE | netlink::REPLACE;
    let mut message =
        Message::new(NEW_NEIGHBOUR, flags).fixed(&header(BRIDGE_FAMILY, port, STATIC, OF_MASTER));
    message.attribute(HARDWARE_ADDRESS, &hardware);
    message
}

/// The request that has the host answer on a link for an IPv6 address behind another link. The entry disappears with
/// the link.
pub(crate) fn answer_for(link: u32, address: IpAddr) -> Message {
    let flags = netlink::CREATE | netlink::REPLACE;
    let mut message = Message::new(NEW_NEIGHBOUR, flags).fixed(&header(family(address), link, 0, PROXY));
    message.attribute(NETWORK_ADDRESS, &octets(address));
    message
}

/// Removes the entry of a link's neighbour; an unknown one is success.
pub(crate) fn forget(socket: &Socket, link: u32, neighbour: IpAddr) -> Result<(), NetlinkError> {
    remove(socket, link, neighbour, 0)
}

/// Stops the host from answering for an address; one for which it does not answer is success.
pub(crate) fn answer_no_more_for(socket: &Socket, link: u32, address: IpAddr) -> Result<(), NetlinkError> {
    remove(socket, link, address, PROXY)
}

fn remove(socket: &Socket, link: u32, neighbour: IpAddr, flags: u8) -> Result<(), NetlinkError> {
    let mut message = Message::new(DELETE_NEIGHBOUR, 0).fixed(&header(family(neighbour), link, 0, flags));
    message.attribute(NETWORK_ADDRESS, &octets(neighbour));
    match socket.request(message) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).operation(|| format!("forget the neighbour {neighbour} of link {link}")),
    }
}

/// `struct ndmsg`: family, index, state, flags.
fn header(family: u8, link: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}
