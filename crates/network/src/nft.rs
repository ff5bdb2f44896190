//! wharf's table in nf_tables: which source addresses pods may use, masquerading of what leaves them, and host ports
//! through maps.
//!
//! The rules mention only the group of links to pods, the pods' subnets and the maps, so they are the same for every
//! pod. A pod with host ports adds elements to the maps, each with the pod's id as its comment; a pod without changes
//! nothing. The table has no forward chain: if another table says "drop", an "accept" here would have no effect (see
//! [`crate::firewall`]).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use wharf_types::PodId;

use crate::link::octets;
use crate::netlink::{Family, IPV4, IPV6, Message, NetlinkError, Operation, Socket};
use crate::subnet::Subnet;

pub(crate) mod encode;
pub(crate) mod others;

use encode::{Field, Hook, RawElement, Rule};

/// How many elements one message has: their list must stay below 64 KiB.
const CHUNK_LEN: usize = 128;

const GUARD: &str = "guard";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";
const HOST_PORTS: &str = "host-ports";

const CHAINS: [(&str, Option<Hook>); 5] = [
    (GUARD, Some(("filter", 0, -300))),
    (PREROUTING, Some(("nat", 0, -100))),
    (OUTPUT, Some(("nat", 3, -100))),
    (POSTROUTING, Some(("nat", 4, 100))),
    (HOST_PORTS, None),
];

/// The transport protocol of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its name in lower case, as CNI plugins expect it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// The four maps: by port alone, or by address and port, in each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Map {
    Ports4 = 1,
    Addresses4 = 2,
    Ports6 = 3,
    Addresses6 = 4,
}

/// All maps, those with an address first: a mapping for one address takes precedence over one for all.
const MAPS: [Map; 4] = [Map::Addresses4, Map::Ports4, Map::Addresses6, Map::Ports6];

impl Map {
    fn name(self) -> &'static str {
        match self {
            Self::Ports4 => "ports4",
            Self::Addresses4 => "addresses4",
            Self::Ports6 => "ports6",
            Self::Addresses6 => "addresses6",
        }
    }

    fn family(self) -> u8 {
        if matches!(self, Self::Ports4 | Self::Addresses4) { IPV4 } else { IPV6 }
    }

    fn address(self) -> Field {
        if self.family() == IPV4 { Field::Ipv4 } else { Field::Ipv6 }
    }

    fn by_address(self) -> bool {
        matches!(self, Self::Addresses4 | Self::Addresses6)
    }

    fn key(self) -> Vec<Field> {
        let port = [Field::Protocol, Field::Port];
        if self.by_address() { [vec![self.address()], port.to_vec()].concat() } else { port.to_vec() }
    }
}

/// One element of a map: a host port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    map: Map,
    raw: RawElement,
}

impl Element {
    /// The pod in the comment; `None` if that is not an id.
    pub(crate) fn owner(&self) -> Option<PodId> {
        self.raw.comment.parse().ok()
    }
}

/// A host port, and the port of a pod to which it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) protocol: Protocol,
    /// The host's address; `None` for all in the target's family.
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) target: IpAddr,
    pub(crate) target_port: u16,
}

impl Forward {
    pub(crate) fn element(&self, owner: &PodId) -> Element {
        let map = match (self.target.is_ipv4(), self.host_ip.is_some()) {
            (true, false) => Map::Ports4,
            (true, true) => Map::Addresses4,
            (false, false) => Map::Ports6,
            (false, true) => Map::Addresses6,
        };
        let mut key = self.host_ip.map(octets).unwrap_or_default();
        key.extend_from_slice(&[self.protocol.number(), 0, 0, 0]);
        put_port(&mut key, self.host_port);
        let mut data = octets(self.target);
        put_port(&mut data, self.target_port);
        Element { map, raw: RawElement { key, data, comment: owner.to_string() } }
    }
}

fn put_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[0; 2]);
}

/// Makes the table with its chains, maps and rules, or repairs what someone changed; elements stay. The ranges are
/// those of pods on this node, and on all nodes.
pub(crate) fn ensure(subnets: &[Subnet], cluster_subnets: &[Subnet]) -> Result<(), NetlinkError> {
    let mut messages = vec![encode::new_table()];
    messages.extend(CHAINS.map(|(name, hook)| encode::new_chain(name, hook)));
    for map in MAPS {
        messages.push(encode::new_map(map.name(), map as u32, &map.key(), &[map.address(), Field::Port]));
    }
    messages.extend(CHAINS.map(|(name, _hook)| encode::flush_chain(name)));
    messages.extend(guard_rules());
    messages.extend(port_rules());
    messages.extend(cluster_subnets.iter().map(keep_source_rule));
    messages.extend(masquerade_rules(subnets));
    let socket = Socket::open(Family::Netfilter)?;
    commit(&socket, messages).operation(|| format!("set up the nf_tables table inet {}", encode::TABLE))
}

/// Links to pods with host ports route 127.0.0.0/8, so that the ports work there; packets from outside must not use
/// that. And a pod may send only in its own name: a packet's source must be one to which a reply would leave through
/// the same link. So no pod can take another's place, fill the host's neighbour table, or act as a router, which has to
/// send from a link-local address.
fn guard_rules() -> Vec<Message> {
    let loopback_at = |offset| {
        encode::new_rule(GUARD, |rule: &mut Rule<'_>| {
            rule.arrives_elsewhere("lo").is_family(IPV4).network_is(offset, &[127]).drop_packet();
        })
    };
    // The first bytes of the source and of the destination.
    vec![
        loopback_at(12),
        loopback_at(16),
        encode::new_rule(GUARD, |rule| rule.arrives_from_pods().leads_back_elsewhere().drop_packet()),
    ]
}

fn port_rules() -> Vec<Message> {
    let to_host_ports =
        |chain: &str| encode::new_rule(chain, |rule| rule.is_for_this_machine().jump(HOST_PORTS));
    let mut rules = vec![to_host_ports(PREROUTING)];
    // The kernel does not route packets from ::1, so a translated connection to it would hang instead of being refused.
    rules.push(encode::new_rule(OUTPUT, |rule| {
        rule.is_family(IPV6).network_is(24, &Ipv6Addr::LOCALHOST.octets()).leave_chain();
    }));
    rules.push(to_host_ports(OUTPUT));
    rules.extend(MAPS.map(|map| {
        encode::new_rule(HOST_PORTS, |rule| {
            let (destination, address_registers) =
                if map.family() == IPV4 { (16..20, 1) } else { (24..40, 4) };
            rule.is_family(map.family());
            let next = if map.by_address() {
                rule.load(1, destination, 0);
                address_registers
            } else {
                0
            };
            rule.load_protocol(next).load(2, 2..4, next + 1).lookup(map.name(), map as u32);
            rule.translate_destination(map.family(), address_registers);
        })
    }));
    rules
}

/// What pods send to those of other nodes keeps its source, so that these see who asks.
fn keep_source_rule(others: &Subnet) -> Message {
    encode::new_rule(POSTROUTING, |rule| {
        let (family, destination) = if others.is_ipv6() { (IPV6, 24) } else { (IPV4, 16) };
        rule.arrives_from_pods().leaves_pods().is_family(family);
        rule.network_within(destination, &octets(others.nth(0)), others.prefix()).leave_chain();
    })
}

fn masquerade_rules(subnets: &[Subnet]) -> Vec<Message> {
    let mut rules =
        vec![encode::new_rule(POSTROUTING, |rule| rule.arrives_from_pods().leaves_pods().masquerade())];
    for subnet in subnets {
        let (family, source, gateway) =
            if subnet.is_ipv6() { (IPV6, 8, subnet.gateway()) } else { (IPV4, 12, subnet.gateway()) };
        // For a pod that uses a host port or a service of a pod on its own bridge: the reply must come back through
        // the host.
        rules.push(encode::new_rule(POSTROUTING, |rule| {
            rule.arrives_from_pods().leaves_to_pods().leaves_by_bridge().is_family(family).translated();
            rule.translate_source(family, &octets(gateway));
        }));
        // With br_netfilter such a connection stays on the bridge, and this hook does not learn where it came from.
        rules.push(encode::new_rule(POSTROUTING, |rule| {
            rule.leaves_to_pods().leaves_by_bridge().is_family(family);
            rule.network_within(source, &octets(subnet.nth(0)), subnet.prefix()).translated();
            rule.translate_source(family, &octets(gateway));
        }));
        // The reply of a pod with a link of its own always comes back through the host, unless the pod has asked
        // itself. A rule cannot compare the two addresses, so this is for whatever pods ask of a host port. Of a
        // service they ask in their own name: kube-proxy takes care of a pod that asks itself.
        for map in MAPS.into_iter().filter(|map| map.family() == family) {
            rules.push(encode::new_rule(POSTROUTING, |rule| {
                rule.arrives_from_pods().leaves_to_pods().is_family(family).translated();
                let next = if map.by_address() { rule.load_asked_address(family, 0) } else { 0 };
                rule.load_asked_protocol(next).load_asked_port(next + 1).lookup(map.name(), map as u32);
                rule.translate_source(family, &octets(gateway));
            }));
        }
        if family == IPV4 {
            // For the host itself, when it uses a host port on 127.0.0.1: a pod cannot reply to that address.
            rules.push(encode::new_rule(POSTROUTING, |rule| {
                rule.leaves_to_pods().is_family(IPV4).network_is(12, &[127]);
                rule.translate_source(IPV4, &octets(gateway));
            }));
        }
    }
    rules
}

/// Adds all elements or none. EEXIST: another element has one of the keys. ENOENT: the table is gone.
pub(crate) fn add(elements: &[Element]) -> Result<(), NetlinkError> {
    let mut messages = Vec::new();
    for map in MAPS {
        let of_map: Vec<&RawElement> =
            elements.iter().filter(|element| element.map == map).map(|element| &element.raw).collect();
        messages.extend(
            of_map.chunks(CHUNK_LEN).map(|chunk| encode::add_elements(map.name(), chunk.iter().copied())),
        );
    }
    if messages.is_empty() {
        return Ok(());
    }
    let socket = Socket::open(Family::Netfilter)?;
    commit(&socket, messages).operation(|| "add host ports to nf_tables".to_owned())
}

/// Removes elements; one that is gone, or whose table is gone, is success.
pub(crate) fn remove(elements: &[Element]) -> Result<(), NetlinkError> {
    if elements.is_empty() {
        return Ok(());
    }
    let socket = Socket::open(Family::Netfilter)?;
    let delete = |element: &Element| encode::delete_element(element.map.name(), &element.raw.key);
    for chunk in elements.chunks(CHUNK_LEN) {
        match commit(&socket, chunk.iter().map(delete).collect()) {
            // A batch fails as a whole, so one missing element would keep the others: remove them one by one.
            Err(Errno::ENOENT) => remove_singly(&socket, chunk.iter().map(delete))?,
            other => other.operation(|| "remove host ports from nf_tables".to_owned())?,
        }
    }
    Ok(())
}

fn remove_singly(socket: &Socket, deletions: impl Iterator<Item = Message>) -> Result<(), NetlinkError> {
    for deletion in deletions {
        match commit(socket, vec![deletion]) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                return Err(errno).operation(|| "remove a host port from nf_tables".to_owned());
            }
        }
    }
    Ok(())
}

/// All elements in the kernel; none if there is no table.
pub(crate) fn elements() -> Result<Vec<Element>, NetlinkError> {
    let socket = Socket::open(Family::Netfilter)?;
    let mut found = Vec::new();
    for map in MAPS {
        let element = |raw| Element { map, raw };
        let parse = |payload: &[u8]| encode::parse_elements(payload).into_iter().map(element);
        match socket.dump(&|| encode::dump_elements(map.name()), parse) {
            Ok(elements) => found.extend(elements),
            Err(Errno::ENOENT) => {}
            Err(errno) => {
                return Err(errno).operation(|| format!("list the host ports of {}", map.name()));
            }
        }
    }
    Ok(found)
}

/// Removes a pod's elements, but none that another pod has under the same key.
pub(crate) fn remove_owned(owner: &PodId) -> Result<(), NetlinkError> {
    let owned: Vec<Element> =
        elements()?.into_iter().filter(|element| element.owner().as_ref() == Some(owner)).collect();
    remove(&owned)
}

/// Removes the kernel's elements for which `is_stale` holds, then adds those of `wanted` that are missing. Returns what
/// was removed.
pub(crate) fn restore(
    wanted: &[Element],
    is_stale: impl Fn(&Element) -> bool,
) -> Result<Vec<Element>, NetlinkError> {
    let (stale, present): (Vec<Element>, Vec<Element>) = elements()?.into_iter().partition(is_stale);
    remove(&stale)?;
    let key = |element: &Element| (element.map, element.raw.key.clone());
    let keys: HashSet<_> = present.iter().map(key).collect();
    let missing: Vec<Element> =
        wanted.iter().filter(|element| !keys.contains(&key(element))).cloned().collect();
    add(&missing)?;
    Ok(stale)
}

pub(crate) fn commit(socket: &Socket, messages: Vec<Message>) -> Result<(), Errno> {
    socket.batch(encode::batch(messages)).map_err(|(_index, errno)| errno)
}

/// Whether the table exists.
pub(crate) fn has_table() -> Result<bool, NetlinkError> {
    match Socket::open(Family::Netfilter)?.request(encode::get_table()) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno).operation(|| "look for the nf_tables table".to_owned()),
    }
}

/// Deletes the table with everything in it; one that is gone is success.
pub(crate) fn delete_table() -> Result<(), NetlinkError> {
    let socket = Socket::open(Family::Netfilter)?;
    match commit(&socket, vec![encode::delete_table()]) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno).operation(|| "delete the nf_tables table".to_owned()),
    }
}
