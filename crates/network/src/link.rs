//! Links and their addresses, through rtnetlink.
//!
//! A link of a pod has the pod's id in its alias: that is how one is found again, whatever a crash has left, and not by
//! a name that anybody could have given.

use std::cell::Cell;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::netlink::{self, IPV4, IPV6, Message, NetlinkError, Operation, Socket};

mod veth;

pub(crate) use veth::{HostEnd, Veth, dress_port, dress_routed, dress_routed_peer};

/// The index of `lo` in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;

const HARDWARE: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;
const MASTER: u16 = 10;
const INFO: u16 = 18;
const ALIAS: u16 = 20;
const STATS: u16 = 23;
const GROUP: u16 = 27;
const EXTENT: u16 = 29;
const INFO_KIND: u16 = 1;
/// Lists links without their counters, which are most of the data.
const WITHOUT_STATS: u32 = 1 << 3;

const ADDRESS_PEER: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_FLAGS: u16 = 8;
const SCOPE_LINK: u8 = 253;
const SCOPE_EVERYWHERE: u8 = 0;
/// `IFA_F_SECONDARY`, which is also `IFA_F_TEMPORARY`.
const ADDRESS_SECOND: u8 = 0x01;
const ADDRESS_PERMANENT: u8 = 0x80;

const FLAG_UP: u32 = 1;
/// The group of the links to pods, by which the rules recognise them: the routed links, and the bridge.
pub(crate) const PODS_GROUP: u32 = 0x7768;
/// The prefix of the hardware addresses that wharf makes.
const OURS: [u8; 2] = [0x02, 0x77];
/// An address that is used at once, without detecting duplicates.
const NO_DAD: u32 = 2;

/// A link as the kernel shows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    /// The index of the bridge of which it is a port; 0 for none.
    pub(crate) master: u32,
    /// The group by which rules, wharf's or others', recognise it.
    pub(crate) group: u32,
    /// The MTU in bytes.
    pub(crate) mtu: u32,
    /// Its hardware address; zero if that is not an Ethernet address.
    pub(crate) hardware: [u8; 6],
    /// `bridge`, `veth`, …; empty for hardware.
    pub(crate) kind: String,
    /// The raw `rtnl_link_stats64`; empty if the kernel sent none.
    pub(crate) stats: Vec<u8>,
}

/// The index of the link with this name in the thread's namespace.
pub(crate) fn index(name: &str) -> Result<Option<u32>, NetlinkError> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno).operation(|| format!("look up the link {name}")),
    }
}

/// The link with this name; `None` if there is none.
pub(crate) fn get(socket: &Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut message = Message::new(GET_LINK, 0).fixed(&header(0, 0));
    message.text(NAME, name);
    let mut link = None;
    match socket.get(message, &mut |_kind, payload| link = Some(parse(payload))) {
        Ok(()) => Ok(link),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno).operation(|| format!("look up the link {name}")),
    }
}

/// All links of the socket's namespace.
pub(crate) fn list(socket: &Socket) -> Result<Vec<Link>, NetlinkError> {
    let request = || {
        let mut message = Message::new(GET_LINK, netlink::DUMP).fixed(&header(0, 0));
        message.attribute(EXTENT, &WITHOUT_STATS.to_ne_bytes());
        message
    };
    socket.dump(&request, |payload| Some(parse(payload))).operation(|| "list the links".to_owned())
}

/// The first links of the socket's namespace that match, in the kernel's order. The others are not kept in memory: an
/// administrator of a namespace can make any number.
pub(crate) fn list_first(
    socket: &Socket,
    limit: usize,
    wanted: impl Fn(&Link) -> bool,
) -> Result<Vec<Link>, NetlinkError> {
    let request = || Message::new(GET_LINK, netlink::DUMP).fixed(&header(0, 0));
    let links = first(socket, limit, &request, |payload| Some(parse(payload)).filter(&wanted));
    links.operation(|| "list the links".to_owned())
}

/// What `parse` finds first in a dump, at most `limit`.
fn first<T>(
    socket: &Socket,
    limit: usize,
    request: &dyn Fn() -> Message,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, Errno> {
    let left = Cell::new(limit);
    let again = || {
        left.set(limit);
        request()
    };
    let first = |payload: &[u8]| {
        let found = parse(payload).filter(|_found| left.get() > 0)?;
        left.set(left.get() - 1);
        Some(found)
    };
    socket.dump(&again, first)
}

/// Makes a bridge and brings it up. Its hardware address is set, because a bridge without one takes it from its ports.
pub(crate) fn create_bridge(
    socket: &Socket,
    name: &str,
    address: [u8; 6],
    mtu: Option<u32>,
) -> Result<(), NetlinkError> {
    let flags = netlink::CREATE | netlink::EXCL;
    let mut message = Message::new(NEW_LINK, flags).fixed(&header(0, FLAG_UP));
    message.text(NAME, name);
    message.attribute(HARDWARE, &address);
    message.attribute(GROUP, &PODS_GROUP.to_ne_bytes());
    put_mtu(&mut message, mtu);
    message.nest(INFO, |info| info.attribute(INFO_KIND, b"bridge"));
    socket.request(message).operation(|| format!("create the bridge {name}"))
}

/// Sets a link's MTU.
pub(crate) fn set_mtu(socket: &Socket, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    let mut message = Message::new(NEW_LINK, 0).fixed(&header(index, 0));
    put_mtu(&mut message, Some(mtu));
    socket.request(message).operation(|| format!("set the MTU of link {index} to {mtu}"))
}

/// Sets a link's hardware address, even to the present one: only then does a bridge stop taking it from its ports.
pub(crate) fn set_hardware(socket: &Socket, index: u32, hardware: [u8; 6]) -> Result<(), NetlinkError> {
    let mut message = Message::new(NEW_LINK, 0).fixed(&header(index, 0));
    message.attribute(HARDWARE, &hardware);
    socket.request(message).operation(|| format!("set the hardware address of link {index}"))
}

/// Brings a link up.
pub(crate) fn set_up(socket: &Socket, index: u32) -> Result<(), NetlinkError> {
    socket.request(up(index)).operation(|| format!("bring up link {index}"))
}

/// The request that brings a link up.
pub(crate) fn up(index: u32) -> Message {
    Message::new(NEW_LINK, 0).fixed(&header(index, FLAG_UP))
}

/// Adds a link to the group of links to pods; a missing one is success.
pub(crate) fn join_pods(socket: &Socket, name: &str) -> Result<(), NetlinkError> {
    let mut message = Message::new(NEW_LINK, 0).fixed(&header(0, 0));
    message.text(NAME, name);
    message.attribute(GROUP, &PODS_GROUP.to_ne_bytes());
    match socket.request(message) {
        Ok(()) | Err(Errno::ENODEV) => Ok(()),
        Err(errno) => Err(errno).operation(|| format!("set the group of the link {name}")),
    }
}

/// Deletes a link; one that is gone is success. This takes the kernel 40 ms.
pub(crate) fn delete(socket: &Socket, name: &str) -> Result<(), NetlinkError> {
    let mut message = Message::new(DELETE_LINK, 0).fixed(&header(0, 0));
    message.text(NAME, name);
    match socket.request(message) {
        Ok(()) | Err(Errno::ENODEV) => Ok(()),
        Err(errno) => Err(errno).operation(|| format!("delete the link {name}")),
    }
}

/// An address of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

impl Address {
    /// An address without neighbours on its link.
    pub(crate) fn alone(ip: IpAddr) -> Self {
        Self { ip, prefix: if ip.is_ipv4() { 32 } else { 128 } }
    }

    /// The request that adds it to a link, usable at once.
    pub(crate) fn add(self, link: u32) -> Message {
        let mut message = self.message(NEW_ADDRESS, netlink::CREATE | netlink::REPLACE, link);
        if self.ip.is_ipv6() {
            message.attribute(ADDRESS_FLAGS, &NO_DAD.to_ne_bytes());
        }
        message
    }

    fn message(self, kind: u16, flags: u16, link: u32) -> Message {
        // The kernel chooses an IPv4 address of the loopback link for packets that leave through a link without one,
        // unless its scope prevents that.
        let scope = if link == LOOPBACK { SCOPE_LINK } else { SCOPE_EVERYWHERE };
        let mut header = vec![family(self.ip), self.prefix, 0, scope];
        header.extend_from_slice(&link.to_ne_bytes());
        let mut message = Message::new(kind, flags).fixed(&header);
        let bytes = octets(self.ip);
        message.attribute(ADDRESS_PEER, &bytes);
        message.attribute(ADDRESS_LOCAL, &bytes);
        message
    }
}

/// Adds an address to a link, usable at once; one that it already has is success.
pub(crate) fn add_address(socket: &Socket, link: u32, address: Address) -> Result<(), NetlinkError> {
    match socket.request(address.add(link)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => {
            let Address { ip, prefix } = address;
            Err(errno).operation(|| format!("add the address {ip}/{prefix} to link {link}"))
        }
    }
}

/// The addresses of a link that somebody gave it and that are valid beyond it, at most `limit`: those of IPv4 first,
/// and each family in the order in which they were given.
pub(crate) fn addresses(socket: &Socket, link: u32, limit: usize) -> Result<Vec<Address>, NetlinkError> {
    let request = || Message::new(GET_ADDRESS, netlink::DUMP).fixed(&[0; 8]);
    let found = first(socket, limit, &request, |payload| parse_address(payload, link));
    let found = found.operation(|| format!("list the addresses of link {link}"))?;
    let (ipv6, mut ipv4): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| address.ip.is_ipv6());
    // The kernel lists those of IPv6 in the opposite order.
    ipv4.extend(ipv6.into_iter().rev());
    Ok(ipv4)
}

/// Removes an address from a link; one that it does not have is success.
pub(crate) fn remove_address(socket: &Socket, link: u32, address: Address) -> Result<(), NetlinkError> {
    match socket.request(address.message(DELETE_ADDRESS, 0, link)) {
        Ok(()) | Err(Errno::EADDRNOTAVAIL) => Ok(()),
        Err(errno) => {
            let Address { ip, prefix } = address;
            Err(errno).operation(|| format!("remove the address {ip}/{prefix} from link {link}"))
        }
    }
}

/// A locally administered hardware address made from an IP address. The same IP address always has the same hardware
/// address, so no neighbour has a stale entry when it is reused.
pub(crate) fn hardware_address(address: IpAddr) -> [u8; 6] {
    let bytes = octets(address);
    let [local, wharf] = OURS;
    let mut hardware = [local, wharf, 0, 0, 0, 0];
    hardware[2..].copy_from_slice(&bytes[bytes.len() - 4..]);
    hardware
}

/// Whether wharf made a hardware address.
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

/// The family of an address, as in messages.
pub(crate) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

fn put_mtu(message: &mut Message, mtu: Option<u32>) {
    if let Some(mtu) = mtu {
        message.attribute(MTU, &mtu.to_ne_bytes());
    }
}

/// `struct ifinfomsg`: family and type, index, flags, and which flags change.
fn header(index: u32, flags: u32) -> [u8; 16] {
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
            HARDWARE => link.hardware = value.try_into().unwrap_or_default(),
            NAME => link.name = netlink::text(value),
            ALIAS => link.alias = netlink::text(value),
            MTU => link.mtu = netlink::number(value).unwrap_or_default(),
            GROUP => link.group = netlink::number(value).unwrap_or_default(),
            MASTER => link.master = netlink::number(value).unwrap_or_default(),
            INFO => link.kind = netlink::find(value, INFO_KIND).map(netlink::text).unwrap_or_default(),
            STATS => link.stats = value.to_vec(),
            _ => {}
        }
    }
    link
}

/// `struct ifaddrmsg` and its attributes: the address, if it is one of this link, valid beyond it, and neither made by
/// the kernel, as from a router's prefix, nor a second one of a network.
fn parse_address(payload: &[u8], link: u32) -> Option<Address> {
    let (header, rest) = payload.split_at_checked(8)?;
    let [prefix, flags, scope] = [header[1], header[2], header[3]];
    let found = [ADDRESS_LOCAL, ADDRESS_PEER].into_iter().find_map(|kind| netlink::find(rest, kind));
    let ip = found.and_then(netlink::address)?;
    let belongs = netlink::number(&header[4..]) == Some(link) && scope == SCOPE_EVERYWHERE;
    let belongs = belongs && flags & (ADDRESS_SECOND | ADDRESS_PERMANENT) == ADDRESS_PERMANENT;
    belongs.then_some(Address { ip, prefix })
}
