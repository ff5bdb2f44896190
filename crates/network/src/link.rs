//! Links, addresses and routes by rtnetlink, and the sysctls that go with them.

use std::cell::Cell;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::netlink::{self, Message, NetlinkError, Operation, Socket};

/// The index of `lo` in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_ALIAS: u16 = 20;
const LINK_STATS: u16 = 23;
const LINK_NETNS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_PORT_KIND: u16 = 4;
const INFO_PORT_DATA: u16 = 5;
const PORT_HAIRPIN: u16 = 4;
const PORT_LEARNING: u16 = 8;
const VETH_PEER: u16 = 1;

const FLAG_UP: u32 = 1;
/// How the hardware addresses begin that wharf makes.
const OURS: [u8; 2] = [0x02, 0x77];
/// An address that is used at once, without asking whether someone else has it.
const NO_DAD: u32 = 2;

/// A link as the kernel shows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    /// The index of the bridge it is a port of; 0 for none.
    pub(crate) master: u32,
    /// The largest packet in bytes.
    pub(crate) mtu: u32,
    /// Its hardware address; zero if it is none of Ethernet's.
    pub(crate) hardware: [u8; 6],
    /// `bridge`, `veth`, …; empty for hardware.
    pub(crate) kind: String,
    /// The raw `rtnl_link_stats64`; empty if the kernel gave none.
    pub(crate) stats: Vec<u8>,
}

/// Both ends of a veth pair to be made.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    /// The index of the bridge the host's end joins.
    pub(crate) bridge: u32,
    pub(crate) mtu: Option<u32>,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_address: [u8; 6],
    pub(crate) peer_netns: BorrowedFd<'a>,
}

/// The index of the link with this name in the thread's namespace.
pub(crate) fn index(name: &str) -> Result<Option<u32>, NetlinkError> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno).operation(|| format!("look up the link {name}")),
    }
}

/// One link by name; `None` if there is none.
pub(crate) fn get(socket: &Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = Message::new(GET_LINK, netlink::ACK).fixed(&link_header(0, 0));
    message.text(LINK_NAME, name);
    let mut link = None;
    match socket.exchange(message, &mut |_kind, payload| link = Some(parse(payload))) {
        Ok(()) => Ok(link),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno).operation(|| format!("look up the link {name}")),
    }
}

/// All links of the socket's namespace.
pub(crate) fn list(socket: &Socket) -> Result<Vec<Link>, NetlinkError> {
    let request = || Message::new(GET_LINK, netlink::DUMP).fixed(&link_header(0, 0));
    socket.dump(&request, |payload| Some(parse(payload))).operation(|| "list the links".to_owned())
}

/// The first links of the socket's namespace that are wanted, in the kernel's order. Of all others nothing is kept: who is
/// an administrator of a namespace can make any number.
pub(crate) fn list_first(
    socket: &Socket,
    limit: usize,
    wanted: impl Fn(&Link) -> bool,
) -> Result<Vec<Link>, NetlinkError> {
    let left = Cell::new(limit);
    let request = || {
        left.set(limit);
        Message::new(GET_LINK, netlink::DUMP).fixed(&link_header(0, 0))
    };
    let first = |payload: &[u8]| {
        let link = Some(parse(payload)).filter(|link| left.get() > 0 && wanted(link))?;
        left.set(left.get() - 1);
        Some(link)
    };
    socket.dump(&request, first).operation(|| "list the links".to_owned())
}

/// Makes a bridge, up. Its hardware address is given, since a bridge without one changes it with its ports.
pub(crate) fn create_bridge(
    socket: &Socket,
    name: &str,
    address: [u8; 6],
    mtu: Option<u32>,
) -> Result<(), NetlinkError> {
    let mut message = create_link();
    message.text(LINK_NAME, name);
    message.attribute(LINK_ADDRESS, &address);
    put_mtu(&mut message, mtu);
    message.nest(LINK_INFO, |info| info.attribute(INFO_KIND, b"bridge"));
    socket.request(message).operation(|| format!("create the bridge {name}"))
}

/// Makes a link take packets of this length.
pub(crate) fn set_mtu(socket: &Socket, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    let mut message = Message::new(NEW_LINK, netlink::ACK).fixed(&link_header(index, 0));
    put_mtu(&mut message, Some(mtu));
    socket.request(message).operation(|| format!("set the MTU of link {index} to {mtu}"))
}

/// Gives a link a hardware address that it keeps, even if it has it already: until then a bridge changes its own with its
/// ports.
pub(crate) fn set_hardware(socket: &Socket, index: u32, hardware: [u8; 6]) -> Result<(), NetlinkError> {
    let mut message = Message::new(NEW_LINK, netlink::ACK).fixed(&link_header(index, 0));
    message.attribute(LINK_ADDRESS, &hardware);
    socket.request(message).operation(|| format!("set the hardware address of link {index}"))
}

/// Makes a veth pair in one message: the host's end up and in its bridge, the peer in the pod's namespace.
/// The peer cannot be up yet: the kernel brings it up before the pair is joined, and fails.
pub(crate) fn create_veth(socket: &Socket, veth: &Veth<'_>) -> Result<(), NetlinkError> {
    let mut message = create_link();
    message.text(LINK_NAME, veth.name);
    message.attribute(LINK_MASTER, &veth.bridge.to_ne_bytes());
    put_mtu(&mut message, veth.mtu);
    message.nest(LINK_INFO, |info| {
        info.attribute(INFO_KIND, b"veth");
        info.nest(INFO_DATA, |data| {
            data.nest(VETH_PEER, |peer| {
                peer.put(&link_header(0, 0));
                peer.text(LINK_NAME, veth.peer_name);
                peer.attribute(LINK_ADDRESS, &veth.peer_address);
                put_mtu(peer, veth.mtu);
                peer.attribute(LINK_NETNS_FD, &veth.peer_netns.as_raw_fd().to_ne_bytes());
            });
        });
    });
    socket.request(message).operation(|| format!("create the veth pair {} and {}", veth.name, veth.peer_name))
}

/// Gives a bridge's port its alias, and lets frames go back out of it: where bridged frames pass the IP hooks
/// (`br_netfilter`), a pod's connection to its own host port is one. What is behind it the bridge does not learn from
/// frames, of which a pod can send any: one in the name of another pod would get that one's, and each new name costs memory.
pub(crate) fn label_port(socket: &Socket, name: &str, alias: &str) -> Result<(), NetlinkError> {
    let mut message = Message::new(NEW_LINK, netlink::ACK).fixed(&link_header(0, 0));
    message.text(LINK_NAME, name);
    message.text(LINK_ALIAS, alias);
    message.nest(LINK_INFO, |info| {
        info.attribute(INFO_PORT_KIND, b"bridge");
        info.nest(INFO_PORT_DATA, |data| {
            data.attribute(PORT_HAIRPIN, &[1]);
            data.attribute(PORT_LEARNING, &[0]);
        });
    });
    socket.request(message).operation(|| format!("label the link {name}"))
}

/// Brings a link up.
pub(crate) fn set_up(socket: &Socket, index: u32) -> Result<(), NetlinkError> {
    let message = Message::new(NEW_LINK, netlink::ACK).fixed(&link_header(index, FLAG_UP));
    socket.request(message).operation(|| format!("bring up link {index}"))
}

/// Deletes a link; one that is gone is fine. This takes the kernel 40 ms.
pub(crate) fn delete(socket: &Socket, name: &str) -> Result<(), NetlinkError> {
    let mut message = Message::new(DELETE_LINK, netlink::ACK).fixed(&link_header(0, 0));
    message.text(LINK_NAME, name);
    match socket.request(message) {
        Ok(()) | Err(Errno::ENODEV) => Ok(()),
        Err(errno) => Err(errno).operation(|| format!("delete the link {name}")),
    }
}

/// Gives a link an address, usable at once; one it has already is fine.
pub(crate) fn add_address(
    socket: &Socket,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<(), NetlinkError> {
    let mut header = vec![family(address), prefix, 0, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let flags = netlink::ACK | netlink::CREATE | netlink::EXCL;
    let mut message = Message::new(NEW_ADDRESS, flags).fixed(&header);
    let bytes = octets(address);
    message.attribute(1, &bytes);
    message.attribute(2, &bytes);
    if address.is_ipv6() {
        message.attribute(8, &NO_DAD.to_ne_bytes());
    }
    match socket.request(message) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno).operation(|| format!("add the address {address}/{prefix} to link {index}")),
    }
}

/// Adds the default route of the gateway's family.
pub(crate) fn add_default_route(socket: &Socket, index: u32, gateway: IpAddr) -> Result<(), NetlinkError> {
    // Family, three lengths and types of service; main table, set at boot, global, unicast; flags.
    let header = [family(gateway), 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let flags = netlink::ACK | netlink::CREATE | netlink::EXCL;
    let mut message = Message::new(NEW_ROUTE, flags).fixed(&header);
    message.attribute(5, &octets(gateway));
    message.attribute(4, &index.to_ne_bytes());
    match socket.request(message) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno).operation(|| format!("add the default route by {gateway}")),
    }
}

/// A locally administered hardware address made of an IP address: the same address is always the same hardware, so
/// no neighbour keeps a stale entry when it is used again.
pub(crate) fn hardware_address(address: IpAddr) -> [u8; 6] {
    let bytes = octets(address);
    let [local, wharf] = OURS;
    let mut hardware = [local, wharf, 0, 0, 0, 0];
    hardware[2..].copy_from_slice(&bytes[bytes.len() - 4..]);
    hardware
}

/// Whether a hardware address is one that wharf has set.
pub(crate) fn is_ours(hardware: [u8; 6]) -> bool {
    hardware.starts_with(&OURS)
}

/// The bytes of an address in network order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn create_link() -> Message {
    let flags = netlink::ACK | netlink::CREATE | netlink::EXCL;
    Message::new(NEW_LINK, flags).fixed(&link_header(0, FLAG_UP))
}

fn put_mtu(message: &mut Message, mtu: Option<u32>) {
    if let Some(mtu) = mtu {
        message.attribute(LINK_MTU, &mtu.to_ne_bytes());
    }
}

/// `struct ifinfomsg`: family and type, index, flags, which flags change.
fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn parse(payload: &[u8]) -> Link {
    let mut link = Link::default();
    let Some((header, rest)) = payload.split_at_checked(16) else { return link };
    link.index = netlink::number(&header[4..]).unwrap_or_default();
    for (kind, value) in netlink::attributes(rest) {
        match kind {
            LINK_ADDRESS => link.hardware = value.try_into().unwrap_or_default(),
            LINK_NAME => link.name = netlink::text(value),
            LINK_ALIAS => link.alias = netlink::text(value),
            LINK_MTU => link.mtu = netlink::number(value).unwrap_or_default(),
            LINK_MASTER => link.master = netlink::number(value).unwrap_or_default(),
            LINK_INFO => link.kind = netlink::find(value, INFO_KIND).map(netlink::text).unwrap_or_default(),
            LINK_STATS => link.stats = value.to_vec(),
            _ => {}
        }
    }
    link
}

/// Routes 127.0.0.0/8 of the socket's namespace out by a link instead of `lo`.
#[cfg(test)]
pub(crate) fn delete_loopback_for_test(socket: &Socket, index: u32) {
    // The local table goes before the main one, so its entries for loopback must go: with the address they do.
    let mut header = vec![2, 8, 0, 0];
    header.extend_from_slice(&LOOPBACK.to_ne_bytes());
    let mut address = Message::new(21, netlink::ACK).fixed(&header);
    address.attribute(2, &[127, 0, 0, 1]);
    socket.request(address).unwrap();
    let header = [2, 8, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let mut route = Message::new(NEW_ROUTE, netlink::ACK | netlink::CREATE).fixed(&header);
    route.attribute(1, &[127, 0, 0, 0]);
    route.attribute(5, &[10, 88, 0, 1]);
    route.attribute(4, &index.to_ne_bytes());
    socket.request(route).unwrap();
}
