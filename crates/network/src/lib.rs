//! The network of pods: the built-in one, through netlink, or CNI plugins. [`Builtin`] decides which of the two the
//! node uses.
//!
//! Everything blocks, and nothing is executed except CNI plugins. The kernel is the truth: links and rules have the id
//! of their pod, records are on disk before what they describe is made, and [`Network::reconcile`] removes whatever a
//! crash left. This crate deliberately does not make network namespaces, write `resolv.conf`, or enforce network
//! policies. It pins a namespace as a file only for CNI plugins, from ADD to DEL.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wharf_types::PodId;
use wharf_types::lock::lock;

mod batch;
mod builtin;
mod choice;
mod cni;
mod conntrack;
mod error;
mod firewall;
mod lease;
mod link;
mod neighbour;
mod netlink;
mod netns;
mod nft;
mod route;
mod socket;
mod stats;
mod store;
mod subnet;
mod sysctl;
#[cfg(test)]
mod tests;

pub use builtin::{BuiltinError, Mode, check_bridge};
pub use choice::Builtin;
pub use cni::CniError;
pub use error::Error;
pub use lease::LeaseError;
pub use netlink::NetlinkError;
pub use netns::{NetnsError, is_pinned, open as open_netns};
pub use nft::Protocol;
pub use socket::{SocketError, TcpSockets, Unreachable};
pub use stats::{InterfaceStats, StatsSocket};
pub use store::StoreError;
pub use subnet::{Subnet, SubnetError, Subnets};
pub use sysctl::SysctlError;

use choice::{Choice, Chooser};

/// The name of a pod's interface, as the kubelet and CNI plugins expect.
pub(crate) const INTERFACE: &str = "eth0";

/// How many pods a remark names.
const NAMED_PODS: usize = 3;

/// The network's directories and settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// CNI records and the pod CIDR. It survives a restart of the machine.
    pub state_dir: PathBuf,
    /// Leases. It may be empty after a restart of the machine, so it is best in memory.
    pub lease_dir: PathBuf,
    /// The directory of CNI configurations, usually `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// The directories of CNI plugins, searched in order; usually `/opt/cni/bin`.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// How long a plugin chain may take to add a pod; usually [`Config::ADD_DEADLINE`].
    pub cni_add_deadline: Duration,
    /// How long a plugin chain may take to delete a pod; usually [`Config::DELETE_DEADLINE`].
    pub cni_delete_deadline: Duration,
    /// Whether pods use the built-in network.
    pub builtin: Builtin,
    /// The settings of that network.
    pub builtin_network: BuiltinConfig,
    /// Files that only a kubelet has, usually [`Config::KUBELET_FILES`]: if one exists, this is a cluster's node.
    pub kubelet_files: Vec<PathBuf>,
}

impl Config {
    /// The usual deadline of a CNI ADD.
    pub const ADD_DEADLINE: Duration = Duration::from_secs(60);
    /// The usual deadline of a CNI DEL.
    pub const DELETE_DEADLINE: Duration = Duration::from_secs(30);
    /// Where kubelets have their configuration or credentials: those that requested a certificate from their cluster,
    /// kubeadm, the clouds, Bottlerocket, Talos, k3s, RKE2, k0s, MicroK8s.
    pub const KUBELET_FILES: [&str; 12] = [
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
        "/var/lib/kubelet/config.yaml",
        "/var/lib/kubelet/kubeconfig",
        "/etc/kubernetes/kubelet.conf",
        "/etc/kubernetes/bootstrap-kubelet.conf",
        "/etc/kubernetes/kubelet/config.json",
        "/etc/kubernetes/kubelet/kubeconfig",
        "/etc/kubernetes/kubeconfig-kubelet",
        "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
        "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
        "/var/lib/k0s/kubelet.conf",
        "/var/snap/microk8s/current/credentials/kubelet.config",
    ];
}

/// The settings of the built-in network.
#[derive(Debug, Clone)]
pub struct BuiltinConfig {
    /// How new pods are connected.
    pub mode: Mode,
    /// The name of the bridge's link, at most 15 bytes; usually `wharf0`.
    pub bridge: String,
    /// The addresses for pods, primary first; the host has the first of each range.
    pub subnets: Subnets,
    /// The addresses of pods on all nodes of the cluster: those of this node must be among them, and packets to them
    /// keep a pod's address. Empty if there are no other nodes, or something else takes care of it.
    pub cluster_subnets: Vec<Subnet>,
    /// The MTU in bytes; if `None`, that of the default route's link, or the kernel's default (1500).
    pub mtu: Option<u32>,
}

/// Whether pods can be attached now, for the CRI's `NetworkReady` condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Whether they can.
    pub ready: bool,
    /// The reason in one word; empty if there is nothing to say.
    pub reason: String,
    /// For people: what keeps pods from being attached, or, if nothing does, what somebody should look at.
    pub message: String,
}

impl Readiness {
    pub(crate) fn yes() -> Self {
        Self { ready: true, reason: String::new(), message: String::new() }
    }

    /// Adds remarks for people.
    pub(crate) fn and_remark(mut self, remarks: impl IntoIterator<Item = String>) -> Self {
        for remark in remarks {
            if self.message.is_empty() {
                self = Self { reason: "Remarks".to_owned(), message: remark, ..self };
            } else {
                self.message = format!("{}; {remark}", self.message);
            }
        }
        self
    }

    pub(crate) fn not(reason: &str, message: String) -> Self {
        Self { ready: false, reason: reason.to_owned(), message }
    }
}

/// A port of a container, and the host port that leads to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub container_port: u16,
    /// The port of the host; 0 for none.
    pub host_port: u16,
    /// The host's address; `None` for all, `0.0.0.0` for all of IPv4, `::` for all of IPv6.
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// Whether the same packet could belong to both.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        let addresses = match (self.host_ip, other.host_ip) {
            (Some(one), Some(other)) => {
                one == other
                    || (one.is_ipv4() == other.is_ipv4() && (one.is_unspecified() || other.is_unspecified()))
            }
            _ => true,
        };
        addresses && (self.protocol, self.host_port) == (other.protocol, other.host_port)
    }
}

/// A pod to attach.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// The pod.
    pub id: &'a PodId,
    /// Its name, for plugins.
    pub name: &'a str,
    /// Its Kubernetes namespace, for plugins.
    pub namespace: &'a str,
    /// Its uid in Kubernetes, for plugins.
    pub uid: &'a str,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// The file at which it is pinned for plugins, as long as they have anything in it.
    pub pin: &'a Path,
    /// Its ports; those without a host port have no effect.
    pub ports: &'a [PortMapping],
    /// Its annotations, for plugins; those for bandwidth are limits.
    pub annotations: &'a BTreeMap<String, String>,
    /// Its DNS settings, for plugins.
    pub dns: Dns<'a>,
    /// The parent of its cgroups, for plugins; empty for none.
    pub cgroup_parent: &'a str,
}

/// A pod's DNS settings.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dns<'a> {
    /// Addresses of name servers.
    pub servers: &'a [String],
    /// Search domains.
    pub searches: &'a [String],
    /// Options, as in `resolv.conf`.
    pub options: &'a [String],
}

/// The addresses of an attached pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddresses {
    /// At least one, the primary first.
    pub ips: Vec<IpAddr>,
}

/// The node's network, shared by all threads.
#[derive(Debug)]
pub struct Network {
    chooser: Chooser,
    builtin: builtin::BuiltinNetwork,
    cni: cni::Cni,
    /// Pods that this process has attached and nobody has asked to detach. `reconcile` never removes them, because its
    /// caller may have listed the live pods before.
    attached: Mutex<HashSet<PodId>>,
    /// How many pods on the built-in network were last reported, on a node that uses CNI.
    reported: AtomicUsize,
}

impl Network {
    /// Opens the state; damaged records are moved to `quarantine/` and logged.
    ///
    /// # Errors
    /// [`Error::Store`] if the directories cannot be made or read.
    pub fn open(config: Config) -> Result<Self, Error> {
        let settings = config.state_dir.join("settings");
        let chooser = Chooser::open(config.builtin, config.kubelet_files.clone(), settings)?;
        let builtin = builtin::BuiltinNetwork::open(&config)?;
        if let Some(cidrs) = chooser.pod_cidr() {
            match cidrs.parse() {
                Ok(subnets) => {
                    tracing::info!(cidrs, configured = %config.builtin_network.subnets, "using the pod CIDR that the kubelet sent");
                    builtin.set_subnets(subnets);
                }
                Err(error) => chooser.forget_pod_cidr(error),
            }
        }
        let cni = cni::Cni::open(config)?;
        let (attached, reported) = (Mutex::new(HashSet::new()), AtomicUsize::new(0));
        // Plugins are asked now, so that they have answered by the time somebody wants to know.
        if let Ok(Choice::Cni(network)) = chooser.choose(&cni) {
            drop(cni.readiness(&network));
        }
        Ok(Self { chooser, builtin, cni, attached, reported })
    }

    /// Whether pods can be attached now: through a valid CNI configuration whose plugins exist, or through the built-in
    /// network, if that fits the machine. For plugins of CNI 1.1.0 and later, their last reported status counts as
    /// well, and they are asked again. Costs a directory listing.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        match self.chooser.choose(&self.cni) {
            Ok(Choice::Builtin) => self.builtin.readiness().and_remark(self.ignored_cni()),
            Ok(Choice::Cni(network)) => self.cni.readiness(&network).and_remark(self.left_behind()),
            Err(error) => Readiness::not(error.reason(), wharf_types::chain(&error)),
        }
    }

    /// Attaches a pod; its addresses work on return. A pod that is already attached is attached again, with the same
    /// addresses if the network allows it.
    ///
    /// # Errors
    /// [`Error::Yields`] on a cluster's node without a CNI configuration, [`Error::Builtin`] or [`Error::Cni`]; then
    /// nothing is left except what [`Network::detach`] or [`Network::reconcile`] removes.
    pub fn attach(&self, pod: &Attachment<'_>) -> Result<PodAddresses, Error> {
        let choice = self.chooser.choose(&self.cni)?;
        self.attached().insert(pod.id.clone());
        let result = self.attach_to(&choice, pod);
        if result.is_err() {
            self.attached().remove(pod.id);
        }
        result
    }

    /// Detaches a pod; an unknown pod or a namespace that is gone is success. The built-in network leaves the link to
    /// the end of the namespace: drop the namespace afterwards, and every [`StatsSocket`] in it.
    ///
    /// # Errors
    /// [`Error::Builtin`] or [`Error::Cni`]; the pod's record stays, and the next call or [`Network::reconcile`] tries
    /// again.
    pub fn detach(&self, id: &PodId, netns: Option<&Path>) -> Result<(), Error> {
        self.attached().remove(id);
        self.builtin.detach(id)?;
        Ok(self.cni.detach(id, netns)?)
    }

    /// Frees the addresses of detached pods on the built-in network whose link has disappeared with their namespace,
    /// which takes the kernel a moment. Returns how many are left: none, about 20 ms after the last reference to a
    /// pod's namespace was dropped.
    #[must_use]
    pub fn free_addresses(&self) -> usize {
        self.builtin.free_addresses()
    }

    /// The counters of `eth0` of all pods on the built-in network, in one reading; empty if the kernel refuses it.
    #[must_use]
    pub fn traffic(&self) -> HashMap<PodId, InterfaceStats> {
        self.builtin.traffic().unwrap_or_else(|error| {
            tracing::debug!(%error, "no counters of pods' links");
            HashMap::new()
        })
    }

    /// The same of one pod; `None` if it is not on the built-in network.
    #[must_use]
    pub fn traffic_of(&self, id: &PodId) -> Option<InterfaceStats> {
        self.builtin.traffic_of(id).unwrap_or_else(|error| {
            tracing::debug!(pod = %id, error = wharf_types::chain(&error), "no counters of the pod's link");
            None
        })
    }

    /// Whether [`Network::traffic`] includes a pod.
    #[must_use]
    pub fn counts(&self, id: &PodId) -> bool {
        self.builtin.counts(id)
    }

    /// The addresses of an attached pod, even one that an earlier process attached.
    #[must_use]
    pub fn addresses(&self, id: &PodId) -> Option<PodAddresses> {
        self.builtin.addresses(id).or_else(|| self.cni.addresses(id))
    }

    /// Finds the addresses of a pod that an earlier process attached through plugins, if the record of it is lost, and
    /// makes that record anew. `None` if the pod has no addresses.
    ///
    /// # Errors
    /// [`Error::Cni`] if its namespace cannot be asked. A record that cannot be made is logged.
    pub fn adopt(&self, pod: &Attachment<'_>) -> Result<Option<PodAddresses>, Error> {
        Ok(self.cni.adopt(pod)?)
    }

    /// Removes leases, links, host ports and CNI networks of pods that are neither in `live` nor attached by this
    /// process, and restores rules that someone removed. Once an hour it also has CNI plugins free what they keep of
    /// other pods. Returns for how many pods something was removed. What cannot be removed is logged and left for the
    /// next call; once a minute is a good interval.
    pub fn reconcile(&self, live: &HashSet<PodId>) -> usize {
        let mut removed = self.reconcile_builtin(live);
        removed.extend(self.cni.reconcile(&|id| self.keeps(live, id)));
        if let Ok(Choice::Cni(network)) = self.chooser.choose(&self.cni) {
            self.cni.collect_garbage(&network, live);
        }
        removed.len()
    }

    /// The part of [`Network::reconcile`] that runs no plugin and so takes no time. Returns the pods.
    pub fn reconcile_builtin(&self, live: &HashSet<PodId>) -> HashSet<PodId> {
        let removed = self.builtin.reconcile(&|id| self.keeps(live, id)).unwrap_or_else(|error| {
            tracing::warn!(error = wharf_types::chain(&error), "cannot keep the built-in network in order");
            HashSet::new()
        });
        if !matches!(self.chooser.choose(&self.cni), Ok(Choice::Builtin)) {
            self.leave_builtin();
        }
        removed
    }

    /// On a node that uses CNI: reports the pods that are still on the built-in network, or removes that network after
    /// the last. A plugin may use the same range now.
    fn leave_builtin(&self) {
        let left = self.builtin.pods();
        if left.len() != self.reported.swap(left.len(), Relaxed) && !left.is_empty() {
            tracing::warn!("{}", self.left_behind().unwrap_or_default());
        }
        if left.is_empty()
            && let Err(error) = self.builtin.retire()
        {
            tracing::warn!(
                error = wharf_types::chain(&error),
                "cannot remove the built-in network, which is no longer in use"
            );
        }
    }

    /// The pods on the built-in network, as a text for people, on a node that uses CNI.
    fn left_behind(&self) -> Option<String> {
        let left = self.builtin.pods();
        let named: Vec<&str> = left.iter().take(NAMED_PODS).map(PodId::short).collect();
        (!left.is_empty()).then(|| {
            format!(
                "pods still on the built-in network, outside the cluster's network: {} ({}{}); remove them, and they \
                 are created anew on the cluster's network",
                left.len(),
                named.join(", "),
                if left.len() > NAMED_PODS { ", …" } else { "" }
            )
        })
    }

    fn ignored_cni(&self) -> Option<String> {
        let there = self.chooser.ignores_cni() && !matches!(self.cni.current(), Ok(None));
        let directory = self.cni.directory().display();
        there.then(|| {
            format!("the CNI configurations in {directory} are ignored, because network.builtin is \"on\"")
        })
    }

    fn keeps(&self, live: &HashSet<PodId>, id: &PodId) -> bool {
        live.contains(id) || self.attached().contains(id)
    }

    /// Removes the built-in network and its rules, as on a machine that no longer uses wharf. [`Network::reconcile`]
    /// must have removed the pods' own links and ports. An attach makes what it needs again.
    ///
    /// # Errors
    /// [`Error::Builtin`] for what the kernel refused.
    pub fn demolish(&self) -> Result<(), Error> {
        Ok(self.builtin.demolish()?)
    }

    /// The ranges for the addresses of new pods on the built-in network.
    #[must_use]
    pub fn subnets(&self) -> Subnets {
        self.builtin.subnets()
    }

    /// Sets these ranges (one CIDR, or one of each family separated by a comma, primary first) for new pods on the
    /// built-in network, even after a restart. A kubelet that sends them is also a sign of a cluster's node. An empty
    /// text changes nothing.
    ///
    /// # Errors
    /// [`Error::Subnet`] for a malformed text, [`Error::Store`] if it cannot be recorded.
    pub fn set_pod_cidr(&self, cidrs: &str) -> Result<(), Error> {
        if cidrs.is_empty() {
            return Ok(());
        }
        let subnets: Subnets = cidrs.parse()?;
        self.chooser.remember_pod_cidr(cidrs)?;
        self.builtin.set_subnets(subnets);
        tracing::info!(cidrs, "using the pod CIDR that the kubelet sent");
        Ok(())
    }

    /// Attaches a pod to the node's network, after detaching it from the other one, to which an earlier configuration
    /// may have attached it.
    fn attach_to(&self, choice: &Choice, pod: &Attachment<'_>) -> Result<PodAddresses, Error> {
        match choice {
            Choice::Cni(network) => {
                self.builtin.detach(pod.id)?;
                Ok(self.cni.attach(network, pod)?)
            }
            Choice::Builtin => {
                self.cni.detach(pod.id, None)?;
                Ok(self.builtin.attach(pod)?)
            }
        }
    }

    fn attached(&self) -> MutexGuard<'_, HashSet<PodId>> {
        lock(&self.attached)
    }
}
