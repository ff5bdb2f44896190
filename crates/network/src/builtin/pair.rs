//! A pod's veth pair: its end inside the pod, and the host's, which is named after the pod and has as alias the pod's id
//! and addresses.

use std::net::IpAddr;

use nix::errno::Errno;
use wharf_types::PodId;

use super::BuiltinError;
use crate::INTERFACE;
use crate::lease::{Lease, Leases};
use crate::netlink::{Family, NetlinkError, Socket};
use crate::subnet::Subnets;
use crate::{link, neighbour};

const LINK_PREFIX: &str = "wh";

/// Says where a pod is, so that no other can say that it is there: behind which port of the bridge, and under which hardware
/// address the host finds it.
pub(super) fn hold_place(
    outside: &Socket,
    bridge: u32,
    name: &str,
    lease: &Lease,
) -> Result<(), NetlinkError> {
    let Some(port) = link::index(name)? else {
        return Err(NetlinkError { operation: format!("find the link {name}"), errno: Errno::ENODEV });
    };
    let hardware = hardware(lease);
    neighbour::hold_behind(outside, port, hardware)?;
    lease.ips.iter().try_for_each(|ip| neighbour::hold(outside, bridge, *ip, hardware))
}

/// Forgets where a pod was; where nothing is known of it that is fine.
pub(super) fn forget_place(bridge: &str, lease: &Lease) -> Result<(), NetlinkError> {
    let Some(bridge) = link::index(bridge)? else { return Ok(()) };
    let socket = Socket::open(Family::Route)?;
    lease.ips.iter().try_for_each(|ip| neighbour::forget(&socket, bridge, *ip))
}

/// The hardware address of a pod's end.
pub(super) fn hardware(lease: &Lease) -> [u8; 6] {
    lease.ips.first().map_or([2, 0, 0, 0, 0, 0], |ip| link::hardware_address(*ip))
}

/// Everything inside the pod: loopback up, addresses, default routes, and where the gateways are.
pub(super) fn configure_pod(
    inside: &Socket,
    lease: &Lease,
    subnets: &Subnets,
    gateway: [u8; 6],
) -> Result<(), NetlinkError> {
    link::set_up(inside, link::LOOPBACK)?;
    let Some(interface) = link::get(inside, INTERFACE)? else {
        return Err(NetlinkError { operation: format!("find {INTERFACE} in the pod"), errno: Errno::ENODEV });
    };
    // The link comes up last: from then on the kernel's own work on it holds the lock that these requests need.
    for (ip, subnet) in lease.ips.iter().zip(subnets.as_slice()) {
        link::add_address(inside, interface.index, *ip, subnet.prefix())?;
    }
    link::set_up(inside, interface.index)?;
    for subnet in subnets.as_slice() {
        link::add_default_route(inside, interface.index, subnet.gateway())?;
        neighbour::hold(inside, interface.index, subnet.gateway(), gateway)?;
    }
    Ok(())
}

/// Deletes the pair by the host's end; one that is gone is fine.
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

/// The host's end of a pod's pair: its name, and what its alias says of the pod.
pub(super) type PodLink = (String, Option<(PodId, Vec<IpAddr>)>);

/// The host's ends of all pods, known by their names; those without a label only if they are ports of the bridge.
pub(super) fn pod_links(socket: &Socket, bridge: Option<u32>) -> Result<Vec<PodLink>, NetlinkError> {
    let ours = |link: &link::Link| {
        let digits = link.name.strip_prefix(LINK_PREFIX).unwrap_or_default();
        let named = digits.len() == 13 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        link.kind == "veth" && named
    };
    let pod_of = |link: link::Link| {
        let mut words = link.alias.split(' ');
        let id = words.next().and_then(|word| word.parse().ok());
        let ips = words.filter_map(|word| word.parse().ok()).collect();
        (id.is_some() || bridge == Some(link.master)).then(|| (link.name, id.map(|id| (id, ips))))
    };
    Ok(link::list(socket)?.into_iter().filter(ours).filter_map(pod_of).collect())
}

/// Takes over what the kernel shows of pods whose lease is lost.
pub(super) fn adopt(leases: &mut Leases) -> Result<(), BuiltinError> {
    for (id, ips) in
        pod_links(&Socket::open(Family::Route)?, None)?.into_iter().filter_map(|(_name, pod)| pod)
    {
        leases.adopt(id, ips)?;
    }
    Ok(())
}
