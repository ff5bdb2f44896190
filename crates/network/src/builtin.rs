//! The built-in network: a veth pair for each pod, routed or in one bridge, and host ports by nf_tables.
//!
//! Order of an attach: lease on disk, what is of the node, veth pair, both of its ends, host ports. Order of a detach: host
//! ports, what the bridge knows of the pod, lease draining; the link goes with the pod's namespace, since deleting it takes
//! the kernel 40 ms. What the host's end of a pair says of its pod is enough to find a lost lease again.
//!
//! *Routed*, a pod has the host as its only neighbour: the host has a route to each pod, and the pod's default route leads to
//! the host. A pod costs the same however many there are. *In a bridge*, pods are each other's neighbours, and each costs in
//! proportion to those that are there already; the kernel has room for 1,023.
//!
//! A pod may send any frame, with whatever sender. So neither the bridge, nor the host, nor a pod learns from frames where
//! a pod or the gateway is: that is settled when the pod comes. Between pods of one bridge addresses are asked for as on any
//! network; a routed link knows no questions.
//!
//! The mode is that of the pods to come. Where both kinds are, the host answers on the bridge for those that it routes to,
//! and the bridge goes after its last pod.

use std::path::PathBuf;
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
use crate::{Attachment, BuiltinConfig, INTERFACE, PodAddresses, Readiness};

mod connect;
mod pair;
mod ports;
mod setup;
mod upkeep;

use connect::{FIRST_INSIDE_INDEX, next_index};
use pair::{adopt, delete_link, link_name};
use ports::{elements, forget_ports};

/// A link that is still there this long after its pod was detached is deleted by wharf.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How pods are connected by the built-in network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By a link of their own, with the host as their router.
    Routed,
    /// By one bridge.
    Bridge,
}

impl Mode {
    /// The word for it in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
        }
    }
}

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

/// Setting up the network failed.
#[derive(Debug, Clone, Copy)]
struct Failed;

/// The network as it was set up.
#[derive(Debug, Clone, Copy)]
struct Built {
    /// The bridge: that of the pods to come, or one that other pods are left in.
    bridge: Option<u32>,
    /// The hardware address that pods find their gateway under.
    gateway: [u8; 6],
    /// The largest packet in bytes; the kernel's default if `None`.
    mtu: Option<u32>,
    /// Where links have settings of IPv6.
    ipv6: Option<Ipv6>,
}

/// The built-in network.
#[derive(Debug)]
pub(crate) struct BuiltinNetwork {
    mode: Mode,
    /// The name of the bridge's link.
    bridge: String,
    mtu: Option<u32>,
    subnets: Mutex<Subnets>,
    leases: Mutex<Leases>,
    /// The index of the next pair's end on the host, counted from the first.
    next_index: AtomicU32,
    /// The index of `eth0`: the first that is free in the namespaces of this machine's pods.
    inside_index: AtomicU32,
    /// Held while host ports are opened or closed with their lease, and while rules and leases are compared: a rule that is
    /// missing would else be put back for a pod that was detached meanwhile. Taken before `leases`.
    rules: Mutex<()>,
    /// What the last attempt to set up links and table gave; `None` before the first.
    ready: Mutex<Option<Result<Built, Failed>>>,
    /// What of others stands in the way of packets, for people.
    obstacles: Mutex<Vec<String>>,
}

impl BuiltinNetwork {
    /// Loads the leases, and takes over what the kernel shows of pods whose lease is lost.
    pub(crate) fn open(config: &BuiltinConfig, dir: PathBuf) -> Result<Self, StoreError> {
        let mut leases = Leases::open(dir)?;
        let highest_index = adopt(&mut leases).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the links of running pods");
            0
        });
        Ok(Self {
            mode: config.mode,
            bridge: config.bridge.clone(),
            mtu: config.mtu,
            subnets: Mutex::new(config.subnets.clone()),
            leases: Mutex::new(leases),
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

    /// Uses other ranges for the pods to come; those that run keep their addresses.
    pub(crate) fn set_subnets(&self, subnets: Subnets) {
        *lock(&self.subnets) = subnets;
        *lock(&self.ready) = None;
    }

    /// What of the machine stands in the way of a pod.
    pub(crate) fn readiness(&self) -> Readiness {
        match self.check() {
            Ok(()) => Readiness::yes().and_remark(lock(&self.obstacles).clone()),
            Err(error) => Readiness::not("NetworkFailed", wharf_types::chain(&error)),
        }
    }

    /// After a failure setting up is tried again here: on a node that is not ready no pod would ever do it.
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
            Some(link) if self.mode == Mode::Bridge && link.kind != "bridge" => {
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
        self.leave_other_mode(pod.id)?;
        let lease = self.reserve(pod, &subnets)?;
        let result = self.connect(pod, &lease, &subnets);
        if let Err(error) = result {
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
            self.forget_place(&lease)?;
            lock(&self.leases).drain(id)?;
        }
        forget_ports(&lease);
        if link::index(&link_name(id))?.is_none() {
            lock(&self.leases).free(id)?;
        }
        Ok(())
    }

    /// The pods that are connected.
    pub(crate) fn pods(&self) -> Vec<PodId> {
        lock(&self.leases).held().map(|(id, _lease)| id.clone()).collect()
    }

    /// What an earlier attempt for this pod left of another mode.
    fn leave_other_mode(&self, id: &PodId) -> Result<(), BuiltinError> {
        let mode = lock(&self.leases).get(id).map(|lease| lease.mode);
        if mode.is_some_and(|mode| mode != self.mode) { self.detach(id) } else { Ok(()) }
    }

    /// Reserves addresses; if none is free, those of detached pods are freed by force.
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
