//! The built-in network: one bridge, a veth pair per pod, host ports by nf_tables.
//!
//! Order of an attach: lease on disk, bridge, veth pair, its place, addresses, host ports. Order of a detach: host ports, its
//! place, lease draining; the link goes with the pod's namespace, since deleting it takes the kernel 40 ms. What the host's
//! end of a pair says of its pod is enough to find a lost lease again.
//!
//! A pod may send any frame, with whatever sender. So neither the bridge, nor the host, nor a pod learns from frames where
//! a pod or the gateway is: that is settled when the pod comes. Between pods of one node addresses are asked for as on any
//! network.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::errno::Errno;
use wharf_types::PodId;
use wharf_types::lock::lock;

use crate::lease::{Lease, LeaseError, Leases};
use crate::link::{self, Veth};
use crate::netlink::{Family, NetlinkError, Socket};
use crate::netns::{self, NetnsError};
use crate::nft::{self, Element};
use crate::store::StoreError;
use crate::subnet::{Subnet, Subnets};
use crate::sysctl::{self, SysctlError};
use crate::{Attachment, BuiltinConfig, INTERFACE, PodAddresses, Readiness, firewall};

mod pair;
mod ports;
mod setup;

use pair::{
    adopt, alias, configure_pod, delete_link, forget_place, hardware, hold_place, link_name, pod_links,
};
use ports::{elements, forget_addresses, forget_ports};

/// A link that is still there this long after its pod was detached is deleted by wharf.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The built-in network cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    /// The name belongs to a link of another kind.
    #[error("the link {name} exists and is not a bridge: set network.bridge to another name")]
    NotABridge {
        /// The configured name.
        name: String,
    },
    /// The ranges are IPv6 alone and the kernel has none.
    #[error("the range {subnets} needs IPv6, which this machine lacks: add an IPv4 range to network.subnets")]
    NoIpv6 {
        /// The ranges of pods.
        subnets: Subnets,
    },
    /// Others have addresses of the ranges.
    #[error(
        "the range {subnet} of pods overlaps the route {route}: set network.subnets to one that is free in wharf's \
         configuration"
    )]
    Overlap {
        /// The range of pods.
        subnet: Subnet,
        /// The other's range, and its link.
        route: String,
    },
    /// No address or host port.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A record could not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel refused a link, an address or a rule.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The pod's namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A setting of the kernel could not be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// Setting up the bridge failed.
#[derive(Debug, Clone, Copy)]
struct Failed;

/// The bridge as it was set up.
#[derive(Debug, Clone, Copy)]
struct Built {
    index: u32,
    hardware: [u8; 6],
    /// The largest packet in bytes; the kernel's default if `None`.
    mtu: Option<u32>,
}

/// A pod to be given its veth pair.
struct Pair<'a> {
    pod: &'a Attachment<'a>,
    lease: &'a Lease,
    netns: BorrowedFd<'a>,
}

/// The built-in network.
#[derive(Debug)]
pub(crate) struct BuiltinNetwork {
    /// The name of the bridge's link.
    bridge: String,
    mtu: Option<u32>,
    subnets: Mutex<Subnets>,
    leases: Mutex<Leases>,
    /// Held while host ports are opened or closed with their lease, and while rules and leases are compared: a rule that is
    /// missing would else be put back for a pod that was detached meanwhile. Taken before `leases`.
    rules: Mutex<()>,
    /// What the last attempt to set up bridge and table gave; `None` before the first.
    ready: Mutex<Option<Result<Built, Failed>>>,
    /// What of others stands in the way of packets, for people.
    obstacles: Mutex<Vec<String>>,
}

impl BuiltinNetwork {
    /// Loads the leases, and takes over what the kernel shows of pods whose lease is lost.
    pub(crate) fn open(config: &BuiltinConfig, dir: PathBuf) -> Result<Self, StoreError> {
        let mut leases = Leases::open(dir)?;
        if let Err(error) = adopt(&mut leases) {
            tracing::warn!(%error, "cannot list the links of running pods");
        }
        Ok(Self {
            bridge: config.bridge.clone(),
            mtu: config.mtu,
            subnets: Mutex::new(config.subnets.clone()),
            leases: Mutex::new(leases),
            rules: Mutex::new(()),
            ready: Mutex::new(None),
            obstacles: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn subnets(&self) -> Subnets {
        lock(&self.subnets).clone()
    }

    /// Uses other ranges for the pods to come; those that run keep their addresses.
    pub(crate) fn set_subnets(&self, subnets: Subnets) {
        *lock(&self.subnets) = subnets;
        *lock(&self.ready) = None;
    }

    /// What of the bridge stands in the way of a pod.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.check() {
            Ok(()) => Readiness::yes().and_remark(lock(&self.obstacles).clone()),
            Err(error) => Readiness::not("NetworkFailed", wharf_types::chain(&error)),
        }
    }

    /// After a failure the bridge is tried again here: on a node that is not ready no pod would ever do it.
    fn check(&self) -> Result<(), BuiltinError> {
        let subnets = self.usable_subnets()?;
        let socket = Socket::open(Family::Route)?;
        let ready = lock(&self.ready).as_ref().map(Result::is_ok);
        match ready {
            Some(true) => {}
            Some(false) => drop(self.ensure(&socket, &subnets)?),
            None => drop(self.look_around(&socket, &subnets)?),
        }
        match link::get(&socket, &self.bridge)? {
            Some(link) if link.kind != "bridge" => {
                Err(BuiltinError::NotABridge { name: self.bridge.clone() })
            }
            _bridge_or_none => Ok(()),
        }
    }

    pub(crate) fn addresses(&self, id: &PodId) -> Option<PodAddresses> {
        let leases = lock(&self.leases);
        let ips = leases.get(id)?.ips.clone();
        Some(PodAddresses { ips, interface: INTERFACE.to_owned() })
    }

    /// Connects a pod. After an error nothing of it is left but a draining lease.
    pub(crate) fn attach(&self, pod: &Attachment<'_>) -> Result<PodAddresses, BuiltinError> {
        let subnets = self.usable_subnets()?;
        let lease = self.reserve(pod, &subnets)?;
        let result = self.connect(pod, &lease, &subnets);
        if let Err(error) = result {
            let _rules = lock(&self.rules);
            let undone = nft::remove_owned(pod.id).map_err(BuiltinError::from);
            let undone = undone.and_then(|()| Ok(delete_link(pod.id)?));
            let undone = undone.and_then(|()| Ok(forget_place(&self.bridge, &lease)?));
            let undone = undone.and_then(|()| {
                let mut leases = lock(&self.leases);
                leases.drain(pod.id)?;
                Ok(leases.free(pod.id)?)
            });
            if let Err(error) = undone {
                tracing::warn!(pod = %pod.id, %error, "a failed attach could not be undone; the next reconcile retries");
            }
            return Err(error);
        }
        Ok(PodAddresses { ips: lease.ips, interface: INTERFACE.to_owned() })
    }

    /// Disconnects a pod; one that is not connected is fine.
    pub(crate) fn detach(&self, id: &PodId) -> Result<(), BuiltinError> {
        let Some(lease) = lock(&self.leases).get(id).cloned() else { return Ok(()) };
        {
            let _rules = lock(&self.rules);
            nft::remove(&elements(id, &lease))?;
            forget_place(&self.bridge, &lease)?;
            lock(&self.leases).drain(id)?;
        }
        forget_ports(&lease);
        if link::index(&link_name(id))?.is_none() {
            lock(&self.leases).free(id)?;
        }
        Ok(())
    }

    /// Removes what belongs to no pod that `keep` knows, and puts back rules that someone removed. Gives the pods.
    pub(crate) fn reconcile(&self, keep: &dyn Fn(&PodId) -> bool) -> Result<HashSet<PodId>, BuiltinError> {
        let mut removed = HashSet::new();
        let socket = Socket::open(Family::Route)?;
        for (link, pod) in pod_links(&socket, link::index(&self.bridge)?)? {
            match pod {
                Some((id, _ips)) if keep(&id) => {}
                Some((id, _ips)) => {
                    link::delete(&socket, &link)?;
                    removed.insert(id);
                }
                // A crash came between making the link and labelling it; the lease was there before.
                None if lock(&self.leases).held().any(|(id, _lease)| link_name(id) == link) => {}
                None => link::delete(&socket, &link)?,
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
        self.tend_firewalls();
        Ok(removed)
    }

    /// The pods that are connected.
    pub(crate) fn pods(&self) -> Vec<PodId> {
        lock(&self.leases).held().map(|(id, _lease)| id.clone()).collect()
    }

    /// Frees the addresses of detached pods whose link is gone, and deletes links that are there for too long. Gives how many
    /// are left.
    pub(crate) fn free_addresses(&self) -> usize {
        let mut overdue = lock(&self.leases).draining();
        overdue.retain(|(_id, since)| since.elapsed() > DRAIN_LIMIT);
        self.collect(&overdue.into_iter().map(|(id, _since)| id).collect::<Vec<_>>());
        lock(&self.leases).draining().len()
    }

    /// Lets packets pass firewalls of others as long as there are pods: these may be loaded anew, or come later.
    fn tend_firewalls(&self) {
        // Held meanwhile: a pod whose lease is not seen here sets up the bridge after this, with all that belongs to it.
        let mut ready = lock(&self.ready);
        let unused = lock(&self.leases).is_empty();
        let done = match (unused, &*ready) {
            (true, _) => firewall::close().map(|found| {
                if found {
                    *ready = None;
                }
            }),
            (false, Some(Ok(_built))) => self.open_firewalls(),
            (false, _) => Ok(()),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "cannot read the firewall's rules");
        }
    }

    fn open_firewalls(&self) -> Result<(), NetlinkError> {
        let found = firewall::open(&self.bridge)?;
        let mut known = lock(&self.obstacles);
        if *known != found {
            for obstacle in &found {
                tracing::warn!("{obstacle}");
            }
            *known = found;
        }
        Ok(())
    }

    /// Removes the bridge and the table if they are there, as a table of this name is wharf's.
    pub(crate) fn retire(&self) -> Result<(), BuiltinError> {
        match nft::has_table() {
            Ok(true) => self.demolish(),
            Ok(false) => Ok(()),
            // A kernel without nf_tables never had the bridge.
            Err(error) => {
                tracing::debug!(%error, "nf_tables cannot be looked at");
                Ok(())
            }
        }
    }

    /// Removes the bridge and the rules; one that is gone, or a link of another kind, is left.
    pub(crate) fn demolish(&self) -> Result<(), BuiltinError> {
        let socket = Socket::open(Family::Route)?;
        if link::get(&socket, &self.bridge)?.is_some_and(|link| link.kind == "bridge") {
            link::delete(&socket, &self.bridge)?;
        }
        *lock(&self.ready) = None;
        firewall::close()?;
        Ok(nft::delete_table()?)
    }

    fn repair_rules(&self, stale: &dyn Fn(&Element) -> bool) -> Result<Vec<Element>, BuiltinError> {
        let rules = lock(&self.rules);
        self.repair(&rules, stale)
    }

    fn repair(
        &self,
        _rules: &MutexGuard<'_, ()>,
        stale: &dyn Fn(&Element) -> bool,
    ) -> Result<Vec<Element>, BuiltinError> {
        let wanted: Vec<Element> =
            lock(&self.leases).held().flat_map(|(id, lease)| elements(id, lease)).collect();
        let wanted: Vec<Element> = wanted.into_iter().filter(|element| !stale(element)).collect();
        let in_use = !wanted.is_empty() || matches!(&*lock(&self.ready), Some(Ok(_)));
        if in_use {
            nft::ensure(&self.bridge, lock(&self.subnets).as_slice())?;
        }
        match nft::restore(&wanted, stale) {
            // A node whose pods are attached by CNI may have a kernel without nf_tables.
            Err(error) if !in_use => {
                tracing::debug!(%error, "nf_tables cannot be looked at");
                Ok(Vec::new())
            }
            other => Ok(other?),
        }
    }

    /// Reserves addresses; if none is free, those of detached pods are freed by force.
    fn reserve(&self, pod: &Attachment<'_>, subnets: &Subnets) -> Result<Lease, LeaseError> {
        match lock(&self.leases).reserve(pod.id, pod.ports, subnets) {
            Err(LeaseError::Exhausted { .. }) => {}
            other => return other,
        }
        let draining = lock(&self.leases).draining();
        self.collect(&draining.into_iter().map(|(id, _since)| id).collect::<Vec<_>>());
        lock(&self.leases).reserve(pod.id, pod.ports, subnets)
    }

    /// Frees the leases of detached pods whose link is gone, after deleting the links of `by_force`.
    fn collect(&self, by_force: &[PodId]) {
        let is_gone = |id: &PodId| -> Result<bool, BuiltinError> {
            if by_force.contains(id) {
                delete_link(id)?;
            }
            Ok(link::index(&link_name(id))?.is_none())
        };
        let mut gone = lock(&self.leases).draining();
        gone.retain(|(id, _since)| {
            is_gone(id).unwrap_or_else(|error| {
                tracing::warn!(pod = %id, %error, "cannot delete the link of a detached pod yet; the next reconcile retries");
                false
            })
        });
        let addresses = lock(&self.leases).draining_addresses(gone.iter().map(|(id, _since)| id));
        forget_addresses(&addresses);
        for (id, _since) in gone {
            if let Err(error) = lock(&self.leases).free(&id) {
                tracing::warn!(pod = %id, %error, "cannot free the address of a detached pod yet; the next reconcile retries");
            }
        }
    }

    fn connect(&self, pod: &Attachment<'_>, lease: &Lease, subnets: &Subnets) -> Result<(), BuiltinError> {
        let inside = netns::inside(pod.netns, || {
            sysctl::prepare_pod()?;
            Ok::<_, BuiltinError>(Socket::open(Family::Route)?)
        })??;
        let outside = Socket::open(Family::Route)?;
        let built = self.create_pair(&outside, &Pair { pod, lease, netns: pod.netns }, subnets)?;
        let name = link_name(pod.id);
        link::label_port(&outside, &name, &alias(pod.id, &lease.ips))?;
        hold_place(&outside, built.index, &name, lease)?;
        configure_pod(&inside, lease, subnets, built.hardware)?;
        self.open_ports(pod.id, lease)?;
        forget_ports(lease);
        Ok(())
    }

    /// Makes a pod's veth pair; gives the bridge that the host's end is in.
    fn create_pair(
        &self,
        outside: &Socket,
        pair: &Pair<'_>,
        subnets: &Subnets,
    ) -> Result<Built, BuiltinError> {
        let name = link_name(pair.pod.id);
        let create = |built: Built| {
            let veth = Veth {
                name: &name,
                bridge: built.index,
                mtu: built.mtu,
                peer_name: INTERFACE,
                peer_address: hardware(pair.lease),
                peer_netns: pair.netns,
            };
            link::create_veth(outside, &veth).map(|()| built)
        };
        match create(self.ensure(outside, subnets)?) {
            // An earlier attempt for this pod was cut short.
            Err(NetlinkError { errno: Errno::EEXIST, .. }) if link::index(&name)?.is_some() => {
                link::delete(outside, &name)?;
                Ok(create(self.ensure(outside, subnets)?)?)
            }
            // Someone removed the bridge since it was set up.
            Err(NetlinkError { errno: Errno::ENODEV | Errno::EINVAL, .. }) => {
                *lock(&self.ready) = None;
                Ok(create(self.ensure(outside, subnets)?)?)
            }
            other => Ok(other?),
        }
    }

    fn open_ports(&self, id: &PodId, lease: &Lease) -> Result<(), BuiltinError> {
        let elements = elements(id, lease);
        let rules = lock(&self.rules);
        match nft::add(&elements) {
            // Someone removed the table since it was set up; the ports of the other pods come back with it.
            Err(NetlinkError { errno: Errno::ENOENT, .. }) => {
                self.repair(&rules, &|_element| false)?;
                Ok(())
            }
            // An attach of this very pod that was cut short left its elements, or a dead pod did.
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
