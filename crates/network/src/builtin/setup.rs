//! Setting up the bridge: what of the machine it has to fit, its link, and the rules of its table.

use nix::errno::Errno;
use wharf_types::lock::lock;

use super::{Built, BuiltinError, BuiltinNetwork, Failed};
use crate::link::{self, Link};
use crate::netlink::{NetlinkError, Socket};
use crate::subnet::{Subnet, Subnets};
use crate::{nft, route, sysctl};

impl BuiltinNetwork {
    /// The ranges without IPv6 where the kernel has none.
    pub(super) fn usable_subnets(&self) -> Result<Subnets, BuiltinError> {
        let subnets = self.subnets();
        if sysctl::has_ipv6() {
            return Ok(subnets);
        }
        subnets.without_ipv6().ok_or(BuiltinError::NoIpv6 { subnets })
    }

    /// The bridge, set up with its rules at the first call.
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
        // The guard of 127.0.0.0/8 is in the rules: they come before the setting that it guards.
        nft::ensure(&self.bridge, subnets.as_slice())?;
        let gateway = subnets.as_slice().first().map(Subnet::gateway);
        let hardware = gateway.map_or([2, 0, 0, 0, 0, 0], link::hardware_address);
        match link::create_bridge(socket, &self.bridge, hardware, mtu) {
            Err(NetlinkError { errno: Errno::EEXIST, .. }) => {}
            other => other?,
        }
        let link = match link::get(socket, &self.bridge)? {
            Some(link) if link.kind == "bridge" => link,
            _ => return Err(BuiltinError::NotABridge { name: self.bridge.clone() }),
        };
        // Pods are told this one, and ask no more. Where it is set already that is left: the kernel would forget all neighbours.
        if !link::is_ours(link.hardware) {
            link::set_hardware(socket, link.index, link.hardware)?;
        }
        if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
            link::set_mtu(socket, link.index, mtu)?;
        }
        sysctl::prepare_bridge(&self.bridge)?;
        link::set_up(socket, link.index)?;
        for subnet in subnets.as_slice() {
            link::add_address(socket, link.index, subnet.gateway(), subnet.prefix())?;
        }
        sysctl::forward(subnets.as_slice().iter().any(Subnet::is_ipv6).then_some(sysctl::Ipv6))?;
        self.open_firewalls()?;
        Ok(Built { index: link.index, hardware: link.hardware, mtu })
    }

    /// What the machine's other links mean for the bridge: that they have no address of its ranges, and how large its packets
    /// may be.
    pub(super) fn look_around(
        &self,
        socket: &Socket,
        subnets: &Subnets,
    ) -> Result<Option<u32>, BuiltinError> {
        let (routes, links) = (route::list(socket)?, link::list(socket)?);
        let own = links.iter().find(|link: &&Link| link.name == self.bridge).map(|link| link.index);
        for subnet in subnets.as_slice() {
            if let Some(route) = route::overlap(&routes, subnet, own) {
                return Err(BuiltinError::Overlap { subnet: *subnet, route: route.describe(&links) });
            }
        }
        Ok(self.mtu.or_else(|| route::uplink_mtu(&routes, &links)))
    }
}
