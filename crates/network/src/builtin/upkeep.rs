//! Maintenance of the network: what dead pods left is removed, and what someone removed is restored.
//!
//! It relies on the kernel alone: links and elements carry the id of their pod, and the caller knows which pods exist.
//! It runs at a start, once a minute, and soon after a pod has gone.

use std::collections::HashSet;
use std::sync::MutexGuard;

use wharf_types::PodId;
use wharf_types::lock::lock;

use super::pair::{POD_LINKS, delete_link, link_name, pod_links};
use super::ports::elements;
use super::{BuiltinError, BuiltinNetwork, DRAIN_LIMIT, Mode};
use crate::netlink::{Family, NetlinkError, Socket};
use crate::nft::{self, Element};
use crate::subnet::Subnet;
use crate::{firewall, link};

impl BuiltinNetwork {
    /// Removes what belongs to no pod that `keep` knows, and restores rules that someone removed. Returns the pods.
    pub(crate) fn reconcile(&self, keep: &dyn Fn(&PodId) -> bool) -> Result<HashSet<PodId>, BuiltinError> {
        let mut removed = HashSet::new();
        let socket = Socket::open(Family::Route)?;
        for link in pod_links(&socket, link::index(&self.bridge)?)? {
            match link.pod {
                Some((id, _ips)) if keep(&id) => {}
                Some((id, _ips)) => {
                    link::delete(&socket, &link.name)?;
                    removed.insert(id);
                }
                // A crash came between making the link and setting its alias; the lease was there before.
                None if lock(&self.leases).held().any(|(id, _lease)| link_name(id) == link.name) => {}
                None => link::delete(&socket, &link.name)?,
            }
        }
        let stale = |element: &Element| !element.owner().is_some_and(|owner| keep(&owner));
        removed.extend(self.repair_rules(&stale)?.iter().filter_map(Element::owner));
        let held: Vec<PodId> = lock(&self.leases).held().map(|(id, _lease)| id.clone()).collect();
        for id in held.into_iter().filter(|id| !keep(id)) {
            self.detach(&id)?;
            removed.insert(id);
        }
        self.free_addresses();
        self.set_up_again(&socket);
        self.tend_firewalls();
        self.leave_unused(&socket)?;
        Ok(removed)
    }

    /// After a restart, sets the network up for the pods that exist, even if no other is attached: it replaces the
    /// rules of an earlier release, and readiness need not list all links and routes each time.
    fn set_up_again(&self, socket: &Socket) {
        let is_known = lock(&self.ready).is_some();
        if is_known || lock(&self.leases).held().next().is_none() {
            return;
        }
        let set_up = self.usable_subnets().and_then(|subnets| self.ensure(socket, &subnets).map(drop));
        if let Err(error) = set_up {
            let error = wharf_types::chain(&error);
            tracing::warn!(
                error,
                "cannot set up the network of the pods that exist; the next attach retries"
            );
        }
    }

    /// Frees the addresses of detached pods whose link is gone, and deletes links that have existed for too long.
    /// Returns how many are left.
    pub(crate) fn free_addresses(&self) -> usize {
        let mut overdue = lock(&self.leases).draining();
        overdue.retain(|(_id, since)| since.elapsed() > DRAIN_LIMIT);
        self.collect(&overdue.into_iter().map(|(id, _since)| id).collect::<Vec<_>>());
        lock(&self.leases).draining().len()
    }

    /// Keeps other firewalls open as long as there are pods: they may be reloaded or installed later.
    fn tend_firewalls(&self) {
        // Held in the meantime: a pod whose lease is not seen here sets up the network after this, with everything that
        // belongs to it.
        let mut ready = lock(&self.ready);
        let unused = lock(&self.leases).is_empty();
        let done = if unused {
            firewall::close().map(|found| {
                if found {
                    *ready = None;
                }
            })
        } else {
            self.open_firewalls()
        };
        if let Err(error) = done {
            tracing::debug!(%error, "cannot read the firewall's rules");
        }
    }

    pub(super) fn open_firewalls(&self) -> Result<(), NetlinkError> {
        let found = firewall::open(&self.pod_links())?;
        let mut known = lock(&self.obstacles);
        if *known != found {
            for obstacle in &found {
                tracing::warn!("{obstacle}");
            }
            *known = found;
        }
        Ok(())
    }

    /// The links of pods, in iptables' notation.
    fn pod_links(&self) -> Vec<String> {
        let is_used = |mode| self.mode == mode || lock(&self.leases).has(mode);
        let mut links = Vec::new();
        if is_used(Mode::Routed) {
            links.push(POD_LINKS.to_owned());
        }
        if is_used(Mode::Bridge) {
            links.push(self.bridge.clone());
        }
        links
    }

    /// Removes the part of the node that only the other mode uses, after that mode's last pod.
    fn leave_unused(&self, socket: &Socket) -> Result<(), BuiltinError> {
        let has_bridge = self.mode == Mode::Bridge || lock(&self.leases).has(Mode::Bridge);
        if !has_bridge && self.remove_bridge(socket)? {
            *lock(&self.ready) = None;
        }
        Ok(self.leave_ranges(socket)?)
    }

    /// Removes the gateways of ranges that are configured no more, after the range's last pod.
    fn leave_ranges(&self, socket: &Socket) -> Result<(), NetlinkError> {
        let configured = self.subnets();
        let is_needed = |mode: Mode, range: &Subnet| {
            let is_for_new_pods = self.mode == mode && configured.as_slice().contains(range);
            is_for_new_pods || lock(&self.leases).has_in(mode, range)
        };
        self.close_gateways(socket, |range| is_needed(Mode::Routed, range))?;
        self.leave_in_bridge(socket, |range| is_needed(Mode::Bridge, range))
    }

    /// Removes the network and the table if they exist: a table of this name is wharf's.
    pub(crate) fn retire(&self) -> Result<(), BuiltinError> {
        match nft::has_table() {
            Ok(true) => self.demolish(),
            Ok(false) => Ok(()),
            // A kernel without nf_tables never had the network.
            Err(error) => {
                tracing::debug!(%error, "nf_tables cannot be looked at");
                Ok(())
            }
        }
    }

    /// Removes the node's part; what is gone, or a link of another kind, is left.
    pub(crate) fn demolish(&self) -> Result<(), BuiltinError> {
        let socket = Socket::open(Family::Route)?;
        self.remove_bridge(&socket)?;
        self.close_gateways(&socket, |_range| false)?;
        *lock(&self.ready) = None;
        firewall::close()?;
        Ok(nft::delete_table()?)
    }

    /// Removes the bridge; if the node's network is routed, only a bridge that wharf made. Returns whether it did.
    fn remove_bridge(&self, socket: &Socket) -> Result<bool, NetlinkError> {
        let removable = |link: &link::Link| {
            link.kind == "bridge" && (self.mode == Mode::Bridge || link::is_ours(link.hardware))
        };
        let found = link::get(socket, &self.bridge)?.is_some_and(|link| removable(&link));
        if found {
            link::delete(socket, &self.bridge)?;
        }
        Ok(found)
    }

    fn repair_rules(&self, stale: &dyn Fn(&Element) -> bool) -> Result<Vec<Element>, BuiltinError> {
        let rules = lock(&self.rules);
        self.repair(&rules, stale)
    }

    pub(super) fn repair(
        &self,
        _rules: &MutexGuard<'_, ()>,
        stale: &dyn Fn(&Element) -> bool,
    ) -> Result<Vec<Element>, BuiltinError> {
        let wanted: Vec<Element> =
            lock(&self.leases).held().flat_map(|(id, lease)| elements(id, lease)).collect();
        let wanted: Vec<Element> = wanted.into_iter().filter(|element| !stale(element)).collect();
        let has_pods = lock(&self.leases).held().next().is_some();
        let in_use = has_pods || matches!(&*lock(&self.ready), Some(Ok(_)));
        if in_use {
            self.restore_node()?;
        }
        match nft::restore(&wanted, stale) {
            // A node whose pods are attached through CNI may have a kernel without nf_tables.
            Err(error) if !in_use => {
                tracing::debug!(%error, "nf_tables cannot be looked at");
                Ok(Vec::new())
            }
            other => Ok(other?),
        }
    }

    /// Frees the leases of detached pods whose link is gone, after deleting the links of `by_force`.
    pub(super) fn collect(&self, by_force: &[PodId]) {
        let is_gone = |id: &PodId| -> Result<bool, BuiltinError> {
            if by_force.contains(id) {
                delete_link(id)?;
            }
            Ok(link::index(&link_name(id))?.is_none())
        };
        let mut gone = lock(&self.leases).draining();
        gone.retain(|(id, _since)| {
            is_gone(id).unwrap_or_else(|error| {
                let error = wharf_types::chain(&error);
                tracing::warn!(pod = %id, error, "cannot delete the link of a detached pod yet; the next reconcile retries");
                false
            })
        });
        let addresses = lock(&self.leases).draining_addresses(gone.iter().map(|(id, _since)| id));
        self.remember_used(addresses);
        for (id, _since) in gone {
            if let Err(error) = lock(&self.leases).free(&id) {
                let error = wharf_types::chain(&error);
                tracing::warn!(pod = %id, error, "cannot free the address of a detached pod yet; the next reconcile retries");
            }
        }
    }
}
