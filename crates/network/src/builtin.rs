//! The built-in network: a veth pair for each pod, routed or in one bridge, and host ports through nf_tables.
//!
//! The order of an attach: lease on disk, what belongs to the node, veth pair, both of its ends, host ports. The order
//! of a detach: host ports, what the bridge knows about the pod, lease draining. The link disappears with the pod's
//! namespace, because deleting it takes the kernel 40 ms. The alias of a pair's host end is enough to restore a lost
//! lease.
//!
//! *Routed*, a pod has the host as its only neighbour: the host has a route to each pod, and the pod's default route
//! leads to the host. A pod costs the same however many there are. *In a bridge*, pods are each other's neighbours.
//! Each costs in proportion to those that already exist, and the kernel has room for 1,023.
//!
//! A pod may send any frame with any source address. So neither the bridge nor the host nor a pod learns from frames
//! where a pod or the gateway is: that is set when the pod is attached. Pods in one bridge resolve each other's
//! addresses as on any network; a routed link needs no resolution.
//!
//! The mode applies to new pods. If there are pods of both modes, the host answers on the bridge for those to which it
//! routes, and the bridge is removed after its last pod.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_types::PodId;
use wharf_types::lock::lock;

use crate::lease::{Lease, LeaseError, Leases};
use crate::link;
use crate::netlink::{Family, NetlinkError, Socket};
use crate::netns::NetnsError;
use crate::nft;
use crate::store::StoreError;
use crate::subnet::{Subnet, Subnets};
use crate::sysctl::{Ipv6, SysctlError};
use crate::{Attachment, Config, InterfaceStats, PodAddresses, Readiness, stats};

mod connect;
mod pair;
mod ports;
mod setup;
mod upkeep;
mod used;

use connect::{FIRST_INSIDE_INDEX, next_index};
use pair::{adopt, delete_link, link_name};
use ports::{elements, forget_ports};
use used::Used;

/// If a link still exists this long after its pod was detached, wharf deletes it.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How the built-in network connects pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each pod has its own link, with the host as its router.
    Routed,
    /// All pods are in one bridge.
    Bridge,
}

impl Mode {
    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
        }
    }
}

/// Why the built-in network could not do what was requested.
#[derive(Debug, thiserror::Error)]
pub enum BuiltinError {
    /// A link of another kind has the bridge's name.
    #[error("the link {name} exists and is not a bridge: set network.bridge to another name")]
    NotABridge {
        /// The configured name.
        name: String,
    },
    /// The ranges are only IPv6, and the kernel has no IPv6.
    #[error("the range {subnets} needs IPv6, which this machine lacks: add an IPv4 range to network.subnets")]
    NoIpv6 {
        /// The pods' ranges.
        subnets: Subnets,
    },
    /// This node has no range of the cluster's yet.
    #[error(
        "the range {subnet} of pods is not in any of network.cluster_subnets: wharf waits for the kubelet's pod CIDR, which \
         comes when the kubelet starts or the CIDR changes. On a node that gets none, set network.subnets to a part of \
         network.cluster_subnets; if the kubelet has sent this range, correct network.cluster_subnets"
    )]
    NotOfCluster {
        /// The pods' range.
        subnet: Subnet,
    },
    /// Others use addresses in the ranges.
    #[error(
        "the range {subnet} of pods overlaps the route {route}: set network.subnets to one that is free in wharf's \
         configuration"
    )]
    Overlap {
        /// The pods' range.
        subnet: Subnet,
        /// The other range, and its link.
        route: String,
    },
    /// No address or host port is available.
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
    /// A kernel setting could not be changed.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// Setting up the network failed.
#[derive(Debug, Clone, Copy)]
struct Failed;

/// The node's part of the network, as it was set up.
#[derive(Debug, Clone, Copy)]
struct Built {
    /// The bridge for new pods, or one with pods left in it.
    bridge: Option<u32>,
    /// The hardware address at which pods find their gateway.
    gateway: [u8; 6],
    /// The MTU in bytes; the kernel's default if `None`.
    mtu: Option<u32>,
    /// Present if links have IPv6 settings.
    ipv6: Option<Ipv6>,
}

/// The built-in network.
#[derive(Debug)]
pub(crate) struct BuiltinNetwork {
    mode: Mode,
    /// The name of the bridge's link.
    bridge: String,
    mtu: Option<u32>,
    /// The ranges of pods' addresses; a kubelet's pod CIDR replaces them.
    subnets: Mutex<Subnets>,
    /// Those of all nodes.
    cluster_subnets: Vec<Subnet>,
    /// The addresses and host ports of all pods.
    leases: Mutex<Leases>,
    /// The index of the host's end of each attached pod's pair.
    ends: Mutex<HashMap<PodId, u32>>,
    /// What was freed and may still have connections. Taken before `leases`.
    used: Mutex<Used>,
    /// The index of the next pair's host end, counted from the first.
    next_index: AtomicU32,
    /// The index of `eth0`: the first one that is free in the namespaces of this machine's pods.
    inside_index: AtomicU32,
    /// Held while host ports are opened or closed together with their lease, and while rules and leases are compared:
    /// otherwise a missing rule could be restored for a pod that was detached in the meantime. Taken before `leases`.
    rules: Mutex<()>,
    /// The result of the last attempt to set up links and table; `None` before the first.
    ready: Mutex<Option<Result<Built, Failed>>>,
    /// What in the firewalls of others blocks packets, for people.
    obstacles: Mutex<Vec<String>>,
}

impl BuiltinNetwork {
    /// Loads the leases, and restores lost ones from what the kernel shows.
    pub(crate) fn open(config: &Config) -> Result<Self, StoreError> {
        let mut leases = Leases::open(&config.lease_dir, &config.state_dir.join("leases"))?;
        let config = &config.builtin_network;
        let (ends, highest_index) = adopt(&mut leases).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the links of running pods");
            (HashMap::new(), 0)
        });
        Ok(Self {
            mode: config.mode,
            bridge: config.bridge.clone(),
            mtu: config.mtu,
            subnets: Mutex::new(config.subnets.clone()),
            cluster_subnets: config.cluster_subnets.clone(),
            leases: Mutex::new(leases),
            ends: Mutex::new(ends),
            used: Mutex::new(None),
            next_index: AtomicU32::new(next_index(highest_index)),
            inside_index: AtomicU32::new(FIRST_INSIDE_INDEX),
            rules: Mutex::new(()),
            ready: Mutex::new(None),
            obstacles: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn subnets(&self) -> Subnets {
        lock(&self.subnets).clone()
    }

    /// Sets the ranges for new pods; running pods keep their addresses.
    pub(crate) fn set_subnets(&self, subnets: Subnets) {
        *lock(&self.subnets) = subnets;
        *lock(&self.ready) = None;
    }

    /// What on the machine keeps pods from being attached.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.check() {
            Ok(()) => Readiness::yes().and_remark(lock(&self.obstacles).clone()),
            Err(error) => Readiness::not("NetworkFailed", wharf_types::chain(&error)),
        }
    }

    /// After a failure the setup is retried here, because no pod is attached on a node that is not ready.
    fn check(&self) -> Result<(), BuiltinError> {
        let subnets = self.usable_subnets()?;
        let socket = Socket::open(Family::Route)?;
        let ready = lock(&self.ready).as_ref().map(Result::is_ok);
        match ready {
            Some(true) => {}
            Some(false) => drop(self.ensure(&socket, &subnets)?),
            None => drop(self.look_around(&socket, &subnets)?),
        }
        if self.mode == Mode::Bridge { check_link(&socket, &self.bridge) } else { Ok(()) }
    }

    pub(crate) fn addresses(&self, id: &PodId) -> Option<PodAddresses> {
        let leases = lock(&self.leases);
        let ips = leases.get(id)?.ips.clone();
        Some(PodAddresses { ips })
    }

    /// Attaches a pod. After an error nothing of it is left except a draining lease.
    pub(crate) fn attach(&self, pod: &Attachment<'_>) -> Result<PodAddresses, BuiltinError> {
        let subnets = self.usable_subnets()?;
        self.leave_other_mode(pod.id)?;
        let lease = self.reserve(pod, &subnets)?;
        self.forget_predecessors(&lease, &subnets);
        let result = self.connect(pod, &lease, &subnets);
        if let Err(error) = result {
            lock(&self.ends).remove(pod.id);
            let _rules = lock(&self.rules);
            let undone = nft::remove_owned(pod.id).map_err(BuiltinError::from);
            let undone = undone.and_then(|()| Ok(delete_link(pod.id)?));
            let undone = undone.and_then(|()| Ok(self.forget_place(&lease)?));
            let undone = undone.and_then(|()| {
                let mut leases = lock(&self.leases);
                leases.drain(pod.id)?;
                Ok(leases.free(pod.id)?)
            });
            if let Err(error) = undone {
                let error = wharf_types::chain(&error);
                tracing::warn!(pod = %pod.id, error, "a failed attach could not be undone; the next reconcile retries");
            }
            return Err(error);
        }
        Ok(PodAddresses { ips: lease.ips })
    }

    /// Detaches a pod; one that is not attached is success.
    pub(crate) fn detach(&self, id: &PodId) -> Result<(), BuiltinError> {
        let Some(lease) = lock(&self.leases).get(id).cloned() else { return Ok(()) };
        {
            let _rules = lock(&self.rules);
            nft::remove(&elements(id, &lease))?;
            self.forget_place(&lease)?;
            lock(&self.leases).drain(id)?;
        }
        forget_ports(&lease);
        lock(&self.ends).remove(id);
        if link::index(&link_name(id))?.is_none() {
            self.remember_used(lease.ips);
            lock(&self.leases).free(id)?;
        }
        Ok(())
    }

    /// The counters of `eth0` of all attached pods.
    pub(crate) fn traffic(&self) -> Result<HashMap<PodId, InterfaceStats>, NetlinkError> {
        let ends = lock(&self.ends).clone();
        stats::of_pods(&ends)
    }

    /// The counters of `eth0` of a pod; `None` if it is not attached.
    pub(crate) fn traffic_of(&self, id: &PodId) -> Result<Option<InterfaceStats>, NetlinkError> {
        let end = lock(&self.ends).get(id).copied();
        end.map_or(Ok(None), stats::of_pod)
    }

    /// Whether a pod's link is known.
    pub(crate) fn counts(&self, id: &PodId) -> bool {
        lock(&self.ends).contains_key(id)
    }

    /// The attached pods.
    pub(crate) fn pods(&self) -> Vec<PodId> {
        lock(&self.leases).held().map(|(id, _lease)| id.clone()).collect()
    }

    /// Removes what an earlier attempt for this pod in another mode left.
    fn leave_other_mode(&self, id: &PodId) -> Result<(), BuiltinError> {
        let mode = lock(&self.leases).get(id).map(|lease| lease.mode);
        if mode.is_some_and(|mode| mode != self.mode) { self.detach(id) } else { Ok(()) }
    }

    /// Reserves addresses. If none is free, those of detached pods are freed by force.
    fn reserve(&self, pod: &Attachment<'_>, subnets: &Subnets) -> Result<Lease, LeaseError> {
        match lock(&self.leases).reserve(pod.id, pod.ports, subnets, self.mode) {
            Err(LeaseError::Exhausted { .. }) => {}
            other => return other,
        }
        let draining = lock(&self.leases).draining();
        self.collect(&draining.into_iter().map(|(id, _since)| id).collect::<Vec<_>>());
        lock(&self.leases).reserve(pod.id, pod.ports, subnets, self.mode)
    }
}

/// Refuses the name of a link that is not a bridge. Nothing is changed.
///
/// # Errors
/// [`BuiltinError::NotABridge`], or the kernel's error.
pub fn check_bridge(name: &str) -> Result<(), BuiltinError> {
    check_link(&Socket::open(Family::Route)?, name)
}

fn check_link(socket: &Socket, name: &str) -> Result<(), BuiltinError> {
    match link::get(socket, name)? {
        Some(link) if link.kind != "bridge" => Err(BuiltinError::NotABridge { name: name.to_owned() }),
        _bridge_or_none => Ok(()),
    }
}
