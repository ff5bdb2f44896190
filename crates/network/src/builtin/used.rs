//! Addresses that ended pods had, and what others still send to them.
//!
//! To find a connection, the kernel walks its whole table of them, which takes milliseconds even if it is empty. So
//! connections are looked for only when an address is about to be used again.

use std::collections::HashSet;
use std::net::IpAddr;

use wharf_types::lock::lock;

use super::BuiltinNetwork;
use super::ports::forget;
use crate::Protocol;
use crate::conntrack::Flow;
use crate::lease::Lease;
use crate::subnet::Subnets;

/// The most addresses that are remembered.
const ADDRESSES_LIMIT: usize = 1 << 16;

/// Addresses to which the kernel may still know connections; `None` if an earlier process may have freed any.
pub(super) type Used = Option<HashSet<IpAddr>>;

impl BuiltinNetwork {
    /// Remembers addresses that are about to be freed.
    pub(super) fn remember_used(&self, ips: impl IntoIterator<Item = IpAddr>) {
        if let Some(used) = &mut *lock(&self.used) {
            used.extend(ips);
            if used.len() > ADDRESSES_LIMIT {
                forget_addresses(std::mem::take(used));
            }
        }
    }

    /// Deletes connections to the pods that had this pod's addresses before, so that their packets do not reach it.
    pub(super) fn forget_predecessors(&self, lease: &Lease, subnets: &Subnets) {
        // Held meanwhile: whoever gets another of these addresses waits until its connections are deleted too.
        let mut used = lock(&self.used);
        match &mut *used {
            None => {
                self.forget_all_but_held(lease, subnets);
                *used = Some(HashSet::new());
            }
            Some(used) if lease.ips.iter().any(|ip| used.contains(ip)) => {
                forget_addresses(std::mem::take(used));
            }
            Some(_) => {}
        }
    }

    /// Deletes connections to all addresses of the ranges except to those of pods that were there before this one.
    fn forget_all_but_held(&self, lease: &Lease, subnets: &Subnets) {
        let mut held: HashSet<IpAddr> =
            lock(&self.leases).held().flat_map(|(_id, lease)| lease.ips.clone()).collect();
        held.retain(|ip| !lease.ips.contains(ip));
        held.extend(subnets.as_slice().iter().map(|subnet| subnet.gateway()));
        let is_free =
            |ip: &IpAddr| !held.contains(ip) && subnets.as_slice().iter().any(|subnet| subnet.contains(*ip));
        forget(Protocol::Udp, &|flow| ends(flow).iter().any(is_free));
    }
}

fn forget_addresses(addresses: HashSet<IpAddr>) {
    forget(Protocol::Udp, &|flow| ends(flow).iter().any(|ip| addresses.contains(ip)));
}

/// The ends of a connection, either of which may be a pod's.
fn ends(flow: &Flow) -> [IpAddr; 2] {
    [flow.source, flow.target]
}
