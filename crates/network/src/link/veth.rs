//! Veth pairs: one end on the host, the other in a pod.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::{
    ALIAS, FLAG_UP, GROUP, HARDWARE, INFO, INFO_KIND, MASTER, NAME, NEW_LINK, PODS_GROUP, header, put_mtu,
};
use crate::lease::LoopbackPort;
use crate::netlink::{self, IPV4, IPV6, Message, Socket};
use crate::sysctl::Ipv6;

const BY_FAMILY: u16 = 26;
const NETNS_FD: u16 = 28;
const SENDING_QUEUES: u16 = 31;
const RECEIVING_QUEUES: u16 = 32;
const INFO_DATA: u16 = 2;
const INFO_PORT_KIND: u16 = 4;
const INFO_PORT_DATA: u16 = 5;
const PORT_HAIRPIN: u16 = 4;
const PORT_LEARNING: u16 = 8;
const PEER: u16 = 1;

const IPV4_SETTINGS: u16 = 1;
const IPV4_ACCEPT_REDIRECTS: u16 = 4;
const IPV4_CHECKS_SOURCE: u16 = 8;
const IPV4_ROUTE_LOCALNET: u16 = 26;
const IPV6_GENERATES: u16 = 8;
const NOTHING: u8 = 1;

/// Nothing is resolved on the link, and no request is answered.
const FLAG_NO_ARP: u32 = 1 << 7;

/// The role of a pair's host end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HostEnd {
    /// A port of the bridge with this index.
    Port { bridge: u32 },
    /// A link of its own, with this hardware address.
    Routed { hardware: [u8; 6] },
}

/// Both ends of a veth pair to make.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    /// The index of the host's end.
    pub(crate) index: u32,
    pub(crate) end: HostEnd,
    pub(crate) mtu: Option<u32>,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_index: u32,
    pub(crate) peer_hardware: [u8; 6],
    pub(crate) peer_netns: BorrowedFd<'a>,
}

impl Veth<'_> {
    /// Makes the pair with one message: a port is up and in its bridge; a routed link is not up before it has its
    /// settings; the peer is in the pod's namespace. The peer cannot be up yet: the kernel would bring it up before the
    /// pair is joined, and fail.
    pub(crate) fn create(&self, socket: &Socket) -> Result<(), Errno> {
        // Set now, because the kernel walks all IPv6 routes when a flag changes on a link that is up.
        let flags = if matches!(self.end, HostEnd::Port { .. }) { FLAG_UP } else { FLAG_NO_ARP };
        let mut message =
            Message::new(NEW_LINK, netlink::CREATE | netlink::EXCL).fixed(&header(self.index, flags));
        message.text(NAME, self.name);
        match self.end {
            HostEnd::Port { bridge } => message.attribute(MASTER, &bridge.to_ne_bytes()),
            HostEnd::Routed { hardware } => {
                message.attribute(HARDWARE, &hardware);
                message.attribute(GROUP, &PODS_GROUP.to_ne_bytes());
            }
        }
        put_size(&mut message, self.mtu);
        message.nest(INFO, |info| {
            info.attribute(INFO_KIND, b"veth");
            info.nest(INFO_DATA, |data| data.nest(PEER, |peer| self.put_peer(peer)));
        });
        socket.request(message)
    }

    fn put_peer(&self, peer: &mut Message) {
        peer.put(&header(self.peer_index, 0));
        peer.text(NAME, self.peer_name);
        peer.attribute(HARDWARE, &self.peer_hardware);
        put_size(peer, self.mtu);
        peer.attribute(NETNS_FD, &self.peer_netns.as_raw_fd().to_ne_bytes());
    }
}

/// Limits the queues: veth would make a pair of them for each CPU that there may ever be, which costs time and memory,
/// and a pod sends from few CPUs.
fn put_size(message: &mut Message, mtu: Option<u32>) {
    put_mtu(message, mtu);
    for queues in [SENDING_QUEUES, RECEIVING_QUEUES] {
        message.attribute(queues, &1_u32.to_ne_bytes());
    }
}

/// The request that sets the alias of a bridge's port, and lets frames leave through the port through which they came:
/// if bridged frames pass the IP hooks (`br_netfilter`), a pod's connection to its own host port does that. The bridge
/// does not learn from frames what is behind the port, because a pod can send any frame: one in the name of another pod
/// would redirect that pod's packets, and each new name costs memory.
pub(crate) fn dress_port(index: u32, alias: &str) -> Message {
    let mut message = Message::new(NEW_LINK, 0).fixed(&header(index, 0));
    message.text(ALIAS, alias);
    message.nest(INFO, |info| {
        info.attribute(INFO_PORT_KIND, b"bridge");
        info.nest(INFO_PORT_DATA, |data| {
            data.attribute(PORT_HAIRPIN, &[1]);
            data.attribute(PORT_LEARNING, &[0]);
        });
    });
    message
}

/// The request that sets the alias and the settings of the host end of a routed pair, before it is up. A host port on
/// 127.0.0.1 needs the end to route 127.0.0.0/8; no other pod has such an end, for the rules that keep the pod out of
/// the host's services there are gone whenever somebody flushes the ruleset. For the same reason the end itself refuses
/// IPv4 packets in the name of others. It has no IPv6 address to which the pod could send neighbour or router messages.
pub(crate) fn dress_routed(
    index: u32,
    alias: &str,
    port: Option<LoopbackPort>,
    ipv6: Option<Ipv6>,
) -> Message {
    let mut message = Message::new(NEW_LINK, 0).fixed(&header(index, 0));
    message.text(ALIAS, alias);
    message.nest(BY_FAMILY, |families| {
        families.nest(IPV4.into(), |family| {
            family.nest(IPV4_SETTINGS, |values| {
                values.attribute(IPV4_ROUTE_LOCALNET, &u32::from(port.is_some()).to_ne_bytes());
                values.attribute(IPV4_CHECKS_SOURCE, &1_u32.to_ne_bytes());
                values.attribute(IPV4_ACCEPT_REDIRECTS, &0_u32.to_ne_bytes());
            });
        });
        if ipv6.is_some() {
            no_link_local(families);
        }
    });
    message
}

/// The request that gives a pod's end of a routed pair no link-local IPv6 address, before it is up: nothing could be
/// reached from one, and the kernel would send router solicitations from it forever.
pub(crate) fn dress_routed_peer(index: u32) -> Message {
    let mut message = Message::new(NEW_LINK, 0).fixed(&header(index, 0));
    message.nest(BY_FAMILY, no_link_local);
    message
}

fn no_link_local(families: &mut Message) {
    families.nest(IPV6.into(), |family| family.attribute(IPV6_GENERATES, &[NOTHING]));
}
