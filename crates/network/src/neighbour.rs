//! Who has which hardware address, and behind which port it is: told to the kernel, so that it need not learn it from
//! frames and packets, in which a pod can name any sender.

use std::net::IpAddr;

use nix::errno::Errno;

use crate::link::octets;
use crate::netlink::{self, IPV4, IPV6, Message, NetlinkError, Operation, Socket};

const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;

const BRIDGE_FAMILY: u8 = 7;
const NETWORK_ADDRESS: u16 = 1;
const HARDWARE_ADDRESS: u16 = 2;
/// Never asked for, and changed by nobody's answer.
const PERMANENT: u16 = 0x80;
/// Of a bridge: behind this port for as long as there is one.
const STATIC: u16 = 0x40;
/// The entry is the bridge's, which the port belongs to.
const OF_MASTER: u8 = 4;

/// Says what hardware address a neighbour has, instead of what was known before.
pub(crate) fn hold(
    socket: &Socket,
    link: u32,
    neighbour: IpAddr,
    hardware: [u8; 6],
) -> Result<(), NetlinkError> {
    let flags = netlink::ACK | netlink::CREATE | netlink::REPLACE;
    let mut message =
        Message::new(NEW_NEIGHBOUR, flags).fixed(&header(family(neighbour), link, PERMANENT, 0));
    message.attribute(NETWORK_ADDRESS, &octets(neighbour));
    message.attribute(HARDWARE_ADDRESS, &hardware);
    socket.request(message).operation(|| format!("say where the neighbour {neighbour} of link {link} is"))
}

/// Forgets a neighbour; one that is not known is fine.
pub(crate) fn forget(socket: &Socket, link: u32, neighbour: IpAddr) -> Result<(), NetlinkError> {
    let mut message =
        Message::new(DELETE_NEIGHBOUR, netlink::ACK).fixed(&header(family(neighbour), link, 0, 0));
    message.attribute(NETWORK_ADDRESS, &octets(neighbour));
    match socket.request(message) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).operation(|| format!("forget the neighbour {neighbour} of link {link}")),
    }
}

/// Says what hardware address is behind a port of a bridge. It goes with the port.
pub(crate) fn hold_behind(socket: &Socket, port: u32, hardware: [u8; 6]) -> Result<(), NetlinkError> {
    let flags = netlink::ACK | netlink::CREATE | netlink::REPLACE;
    let mut message =
        Message::new(NEW_NEIGHBOUR, flags).fixed(&header(BRIDGE_FAMILY, port, STATIC, OF_MASTER));
    message.attribute(HARDWARE_ADDRESS, &hardware);
    socket.request(message).operation(|| format!("say what is behind the bridge's port {port}"))
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

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}
