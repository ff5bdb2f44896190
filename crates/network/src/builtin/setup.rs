//! The node's part of the network: gateways, bridge and the table's rules, and what on the machine it must fit.
//!
//! It is made with the first pod, and every step can be repeated. What others made is left alone, except the two places
//! where their firewalls would drop what pods send.

use std::collections::HashSet;
use std::net::IpAddr;

use nix::errno::Errno;
use wharf_types::lock::lock;

use super::connect::answer_on_bridge;
use super::pair::PodLink;
use super::{Built, BuiltinError, BuiltinNetwork, Failed, Mode};
use crate::batch::Batch;
use crate::link::{self, Address, Link};
use crate::netlink::{Family, NetlinkError, Socket};
use crate::nft;
use crate::route::{self, Route};
use crate::subnet::{Subnet, Subnets};
use crate::sysctl::{self, SysctlError};

/// The lowest MTU with which a link has IPv6, in bytes.
const IPV6_MTU: u32 = 1280;

impl BuiltinNetwork {
    /// The ranges, without IPv6 if the kernel has none.
    pub(super) fn usable_subnets(&self) -> Result<Subnets, BuiltinError> {
        let subnets = self.subnets();
        let is_of_cluster = |subnet: &Subnet| self.cluster_subnets.iter().any(|all| all.includes(subnet));
        if let Some(subnet) = subnets.as_slice().iter().find(|subnet| !is_of_cluster(subnet))
            && !self.cluster_subnets.is_empty()
        {
            return Err(BuiltinError::NotOfCluster { subnet: *subnet });
        }
        if sysctl::has_ipv6()? {
            return Ok(subnets);
        }
        subnets.without_ipv6().ok_or(BuiltinError::NoIpv6 { subnets })
    }

    /// The node's part, set up with its rules at the first call.
    pub(super) fn ensure(&self, socket: &Socket, subnets: &Subnets) -> Result<Built, BuiltinError> {
        let mut ready = lock(&self.ready);
        if let Some(Ok(built)) = &*ready {
            return Ok(*built);
        }
        let result = self.set_up(socket, subnets);
        *ready = Some(result.as_ref().copied().map_err(|_error| Failed));
        result
    }

    fn set_up(&self, socket: &Socket, subnets: &Subnets) -> Result<Built, BuiltinError> {
        let mtu = self.look_around(socket, subnets)?;
        // The rules guard 127.0.0.0/8, so they come before the setting that needs the guard.
        self.write_rules(socket, subnets)?;
        let first = subnets.as_slice().first().map(|subnet| link::hardware_address(subnet.gateway()));
        let gateway = first.unwrap_or([2, 0, 0, 0, 0, 0]);
        let bridge = match self.mode {
            Mode::Routed => {
                open_gateways(socket, subnets)?;
                self.pods_bridge(socket)?
            }
            Mode::Bridge => Some(self.set_up_bridge(socket, subnets, gateway, mtu)?),
        };
        if let Some(bridge) = &bridge {
            self.answer_for_routed(socket, bridge.index)?;
        }
        let gateway =
            bridge.as_ref().filter(|_| self.mode == Mode::Bridge).map_or(gateway, |link| link.hardware);
        forward(subnets)?;
        self.open_firewalls()?;
        let has_ipv6 = sysctl::knows_ipv6()? && mtu.is_none_or(|mtu| mtu >= IPV6_MTU);
        let ipv6 = has_ipv6.then_some(sysctl::Ipv6);
        Ok(Built { bridge: bridge.map(|link| link.index), gateway, mtu, ipv6 })
    }

    fn set_up_bridge(
        &self,
        socket: &Socket,
        subnets: &Subnets,
        hardware: [u8; 6],
        mtu: Option<u32>,
    ) -> Result<Link, BuiltinError> {
        match link::create_bridge(socket, &self.bridge, hardware, mtu) {
            Err(NetlinkError { errno: Errno::EEXIST, .. }) => {}
            other => other?,
        }
        let link = match link::get(socket, &self.bridge)? {
            Some(link) if link.kind == "bridge" => link,
            _ => return Err(BuiltinError::NotABridge { name: self.bridge.clone() }),
        };
        // Pods are given this address and do not ask for it again. If it is already set it is left alone: the kernel
        // would forget all neighbours.
        if !link::is_ours(link.hardware) {
            link::set_hardware(socket, link.index, link.hardware)?;
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
            link::set_mtu(socket, link.index, mtu)?;
        }
        sysctl::prepare_bridge(&self.bridge)?;
        link::set_up(socket, link.index)?;
        for subnet in subnets.as_slice() {
            let address = Address { ip: subnet.gateway(), prefix: subnet.prefix() };
            link::add_address(socket, link.index, address)?;
        }
        Ok(link)
    }

    /// Writes the rules, and adds the bridge to the links to which they apply, even a bridge of an earlier release.
    fn write_rules(&self, socket: &Socket, subnets: &Subnets) -> Result<(), NetlinkError> {
        if self.pods_bridge(socket)?.is_some() {
            link::join_pods(socket, &self.bridge)?;
        }
        nft::ensure(subnets.as_slice(), &self.cluster_subnets)
    }

    /// The bridge. If pods are routed, one that others made, and that has no pod left, is none of wharf's.
    fn pods_bridge(&self, socket: &Socket) -> Result<Option<Link>, NetlinkError> {
        let is_for_pods = |link: &Link| {
            let is_wharfs = self.mode == Mode::Bridge || link::is_ours(link.hardware);
            link.kind == "bridge" && (is_wharfs || lock(&self.leases).has(Mode::Bridge))
        };
        Ok(link::get(socket, &self.bridge)?.filter(is_for_pods))
    }

    /// Restores what someone may have removed from the node's part.
    pub(super) fn restore_node(&self) -> Result<(), BuiltinError> {
        let (socket, subnets) = (Socket::open(Family::Route)?, self.usable_subnets()?);
        self.write_rules(&socket, &subnets)?;
        if self.mode == Mode::Routed {
            open_gateways(&socket, &subnets)?;
        }
        Ok(forward(&subnets)?)
    }

    /// Has the host answer in the bridge for the pods to which it routes: pods in the bridge take everyone in their
    /// range for a neighbour.
    fn answer_for_routed(&self, socket: &Socket, bridge: u32) -> Result<(), BuiltinError> {
        let routed = lock(&self.leases).has(Mode::Routed);
        if self.mode == Mode::Bridge && !routed {
            return Ok(());
        }
        sysctl::answer_for_others(&self.bridge)?;
        let mut batch = Batch::default();
        for (_id, lease) in lock(&self.leases).held().filter(|(_id, lease)| lease.mode == Mode::Routed) {
            answer_on_bridge(&mut batch, Some(bridge), lease);
        }
        Ok(batch.send(socket)?)
    }

    /// Removes the addresses at which routed pods find the host, of the ranges that are not needed.
    pub(super) fn close_gateways(
        &self,
        socket: &Socket,
        is_needed: impl Fn(&Subnet) -> bool,
    ) -> Result<(), NetlinkError> {
        for range in route::closed(socket)?.into_iter().filter(|range| !is_needed(range)) {
            link::remove_address(socket, link::LOOPBACK, Address::alone(range.gateway()))?;
            route::open(socket, range)?;
        }
        Ok(())
    }

    /// Removes the addresses of wharf's bridge in ranges that are not needed.
    pub(super) fn leave_in_bridge(
        &self,
        socket: &Socket,
        is_needed: impl Fn(&Subnet) -> bool,
    ) -> Result<(), NetlinkError> {
        let is_wharfs = |link: &Link| link.kind == "bridge" && link::is_ours(link.hardware);
        let Some(bridge) = link::get(socket, &self.bridge)?.filter(is_wharfs) else { return Ok(()) };
        let routes = route::list(socket)?;
        let ranges = routes.iter().filter(|route| route.link == bridge.index).map(Route::range);
        for range in ranges.filter(|range| !is_needed(range)) {
            let address = Address { ip: range.gateway(), prefix: range.prefix() };
            link::remove_address(socket, bridge.index, address)?;
        }
        Ok(())
    }

    /// What the machine's other links mean for pods: they must have no address in the pods' ranges, and they limit the
    /// size of packets.
    pub(super) fn look_around(
        &self,
        socket: &Socket,
        subnets: &Subnets,
    ) -> Result<Option<u32>, BuiltinError> {
        let (routes, links) = (route::list(socket)?, link::list(socket)?);
        let is_own = |link: &&Link| link.name == self.bridge || PodLink::of((*link).clone(), None).is_some();
        let own: HashSet<u32> = links.iter().filter(is_own).map(|link| link.index).collect();
        for subnet in subnets.as_slice() {
            let is_gateway =
                |route: &Route| (route.link, route.destination) == (link::LOOPBACK, subnet.gateway());
            let is_own = |route: &Route| own.contains(&route.link) || is_gateway(route);
            if let Some(route) = route::overlap(&routes, subnet, is_own) {
                return Err(BuiltinError::Overlap { subnet: *subnet, route: route.describe(&links) });
            }
        }
        Ok(self.mtu.or_else(|| route::uplink_mtu(&routes, &links)))
    }
}

/// Sets the addresses at which routed pods find the host, once for all pods, on the host's loopback link. Packets to a
/// pod that does not exist get an error, instead of going to the host's own router.
fn open_gateways(socket: &Socket, subnets: &Subnets) -> Result<(), NetlinkError> {
    for subnet in subnets.as_slice() {
        let gateway: IpAddr = subnet.gateway();
        // In this order, because what was made is found again through the range.
        route::close(socket, *subnet)?;
        link::add_address(socket, link::LOOPBACK, Address::alone(gateway))?;
    }
    Ok(())
}

/// Lets the host forward packets of the ranges' families. Routed pods need that to reach even each other.
fn forward(subnets: &Subnets) -> Result<(), SysctlError> {
    let has_ipv6 = subnets.as_slice().iter().any(Subnet::is_ipv6);
    sysctl::forward(has_ipv6.then_some(sysctl::Ipv6))
}
