//! Host ports of pods, as elements of the table, and connections that outlive their target.
//!
//! A port is an element of one of the table's maps, so a thousand of them cost a packet no more than one. The kernel
//! remembers connections by itself: those that would still reach an earlier pod are deleted.

use std::collections::HashSet;
use std::net::IpAddr;

use nix::errno::Errno;
use wharf_types::PodId;
use wharf_types::lock::lock;

use super::{BuiltinError, BuiltinNetwork};
use crate::lease::Lease;
use crate::netlink::NetlinkError;
use crate::nft::{self, Element, Forward};
use crate::{PortMapping, Protocol, conntrack};

impl BuiltinNetwork {
    /// Opens a pod's host ports; one that it already has is success.
    pub(super) fn open_ports(&self, id: &PodId, lease: &Lease) -> Result<(), BuiltinError> {
        let elements = elements(id, lease);
        let rules = lock(&self.rules);
        match nft::add(&elements) {
            // Someone has removed the table since it was set up; the other pods' ports are restored with it.
            Err(NetlinkError { errno: Errno::ENOENT, .. }) => {
                self.repair(&rules, &|_element| false)?;
                Ok(())
            }
            // An interrupted attach of this pod left its elements, or a dead pod did.
            Err(NetlinkError { errno: Errno::EEXIST, operation }) => {
                let leases = lock(&self.leases).held().map(|(id, _lease)| id.clone()).collect::<HashSet<_>>();
                let stale = |element: &Element| {
                    element.owner().is_none_or(|owner| owner == *id || !leases.contains(&owner))
                };
                nft::restore(&elements, stale)?;
                let ours =
                    nft::elements()?.into_iter().filter(|element| element.owner().as_ref() == Some(id));
                if ours.count() < elements.len() {
                    let operation = format!("{operation}, of which another pod has one");
                    return Err(NetlinkError { operation, errno: Errno::EEXIST }.into());
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

/// Deletes the connections of senders that keep their ports: to the host, from before the pod had a host port, or to an
/// earlier pod.
pub(super) fn forget_ports(lease: &Lease) {
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        let ports: HashSet<u16> = lease
            .ports
            .iter()
            .filter(|port| port.protocol == protocol && port.host_port != 0)
            .map(|port| port.host_port)
            .collect();
        if !ports.is_empty() {
            forget(protocol, &|flow| ports.contains(&flow.port));
        }
    }
}

/// Deletes connections; a failure does not keep a pod from being attached or detached.
pub(super) fn forget(protocol: Protocol, is_stale: &dyn Fn(&conntrack::Flow) -> bool) {
    if let Err(error) = conntrack::forget(protocol, is_stale) {
        tracing::warn!(%error, "cannot delete the connections of removed pods from conntrack");
    }
}

/// The elements for a pod's host ports: one for each port and each family that both the port and the pod have.
pub(super) fn elements(id: &PodId, lease: &Lease) -> Vec<Element> {
    let forward = |port: &PortMapping, target: IpAddr| {
        let host_ip = port.host_ip.filter(|ip| !ip.is_unspecified());
        let same_family = port.host_ip.is_none_or(|ip| ip.is_ipv4() == target.is_ipv4());
        let forward = Forward {
            protocol: port.protocol,
            host_ip,
            host_port: port.host_port,
            target,
            target_port: port.container_port,
        };
        same_family.then(|| forward.element(id))
    };
    let ports = lease.ports.iter().filter(|port| port.host_port != 0);
    ports.flat_map(|port| lease.ips.iter().filter_map(move |ip| forward(port, *ip))).collect()
}
