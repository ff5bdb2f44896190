//! A pod's veth pair: its end inside the pod, and the host's end, which is named after the pod and has the pod's id and
//! addresses as its alias.

use std::collections::HashMap;
use std::net::IpAddr;

use wharf_types::PodId;

use super::Mode;
use crate::lease::{Lease, Leases};
use crate::link::{self, Link, PODS_GROUP};
use crate::netlink::{Family, NetlinkError, Socket};

const LINK_PREFIX: &str = "wh";

/// The host ends of all pods, in iptables' notation for links with the same prefix.
pub(super) const POD_LINKS: &str = "wh+";

/// The hardware address of a pod's end.
pub(super) fn hardware(lease: &Lease) -> [u8; 6] {
    lease.ips.first().map_or([2, 0, 0, 0, 0, 0], |ip| link::hardware_address(*ip))
}

/// Deletes the pair through its host end; one that is gone is success.
pub(super) fn delete_link(id: &PodId) -> Result<(), NetlinkError> {
    let name = link_name(id);
    if link::index(&name)?.is_none() {
        return Ok(());
    }
    link::delete(&Socket::open(Family::Route)?, &name)
}

/// The name of the host's end.
pub(super) fn link_name(id: &PodId) -> String {
    format!("{LINK_PREFIX}{}", id.short())
}

/// The alias of the host's end.
pub(super) fn alias(id: &PodId, ips: &[IpAddr]) -> String {
    ips.iter().fold(id.to_string(), |alias, ip| format!("{alias} {ip}"))
}

/// The host's end of a pod's pair.
#[derive(Debug)]
pub(super) struct PodLink {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mode: Mode,
    /// The pod in its alias.
    pub(super) pod: Option<(PodId, Vec<IpAddr>)>,
}

impl PodLink {
    /// Recognises a pod's link by its name; without an alias, it must also be in the group or the bridge of such links.
    pub(super) fn of(link: Link, bridge: Option<u32>) -> Option<Self> {
        let digits = link.name.strip_prefix(LINK_PREFIX)?;
        let named = digits.len() == 13 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let mut words = link.alias.split(' ');
        let id = words.next().and_then(|word| word.parse().ok());
        let ips = words.filter_map(|word| word.parse().ok()).collect();
        let mode = if link.master == 0 { Mode::Routed } else { Mode::Bridge };
        let (index, pod) = (link.index, id.map(|id| (id, ips)));
        let belongs = pod.is_some() || link.group == PODS_GROUP || bridge == Some(link.master);
        (link.kind == "veth" && named && belongs).then_some(Self { name: link.name, index, mode, pod })
    }
}

/// The host ends of all pods.
pub(super) fn pod_links(socket: &Socket, bridge: Option<u32>) -> Result<Vec<PodLink>, NetlinkError> {
    Ok(link::list(socket)?.into_iter().filter_map(|link| PodLink::of(link, bridge)).collect())
}

/// Restores lost leases from what the kernel shows. Returns the index of each pod's link, and the highest index of all
/// such links, 0 if there are none.
pub(super) fn adopt(leases: &mut Leases) -> Result<(HashMap<PodId, u32>, u32), NetlinkError> {
    let (mut ends, mut highest) = (HashMap::new(), 0);
    for link in pod_links(&Socket::open(Family::Route)?, None)? {
        highest = highest.max(link.index);
        if let Some((id, ips)) = link.pod {
            ends.insert(id.clone(), link.index);
            leases.adopt(id, Lease { ips, ports: Vec::new(), mode: link.mode });
        }
    }
    Ok((ends, highest))
}
