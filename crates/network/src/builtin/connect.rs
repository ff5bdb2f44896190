//! Connecting one pod: its pair, and the settings of both ends, each in one batch.
//!
//! The lease is on disk before. After a failure nothing is undone here: the links and the lease carry the pod's id, by
//! which `upkeep` finds them.

use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use nix::errno::Errno;
use wharf_types::lock::lock;

use super::pair::{alias, hardware, link_name};
use super::ports::forget_ports;
use super::{Built, BuiltinError, BuiltinNetwork, Mode};
use crate::batch::Batch;
use crate::lease::Lease;
use crate::link::{Address, HostEnd, Veth};
use crate::netlink::{Family, NetlinkError, Operation, Socket};
use crate::netns;
use crate::route::{self, Reached};
use crate::subnet::Subnets;
use crate::{Attachment, INTERFACE, link, neighbour, sysctl};

/// How often making a pair is attempted: its name or an index may be taken, or the bridge may have disappeared.
const CREATE_ATTEMPTS: usize = 32;

/// The index after `lo`. Some kernels have tunnel links there in every namespace.
pub(super) const FIRST_INSIDE_INDEX: u32 = 2;
/// The indices on the host. They are chosen, so that nobody has to ask for them, and are far above those that the
/// kernel assigns.
const FIRST_INDEX: u32 = 1 << 30;
const INDEX_COUNT: u32 = 1 << 29;

/// A pod being connected.
#[derive(Clone, Copy)]
struct Connection<'a> {
    pod: &'a Attachment<'a>,
    lease: &'a Lease,
    subnets: &'a Subnets,
}

/// A pod's pair, as the indices of its ends.
#[derive(Clone, Copy)]
struct Pair {
    outside: u32,
    inside: u32,
}

impl Connection<'_> {
    /// Its addresses, each with its gateway.
    fn addresses(&self) -> impl Iterator<Item = (Address, IpAddr)> {
        self.lease.ips.iter().zip(self.subnets.as_slice()).map(|(ip, subnet)| {
            let address = match self.lease.mode {
                Mode::Routed => Address::alone(*ip),
                Mode::Bridge => Address { ip: *ip, prefix: subnet.prefix() },
            };
            (address, subnet.gateway())
        })
    }
}

/// Where the count of indices continues after a restart.
pub(super) fn next_index(highest: u32) -> u32 {
    highest.checked_sub(FIRST_INDEX).map_or(0, |count| count + 1)
}

impl BuiltinNetwork {
    /// Connects a pod that has a lease.
    pub(super) fn connect(
        &self,
        pod: &Attachment<'_>,
        lease: &Lease,
        subnets: &Subnets,
    ) -> Result<(), BuiltinError> {
        let inside = netns::inside(pod.netns, || {
            if self.mode == Mode::Bridge {
                sysctl::prepare_pod()?;
            }
            Ok::<_, BuiltinError>(Socket::open(Family::Route)?)
        })??;
        let outside = Socket::open(Family::Route)?;
        let connection = Connection { pod, lease, subnets };
        let (built, pair) = self.create_pair(&outside, connection)?;
        lock(&self.ends).insert(pod.id.clone(), pair.outside);
        match self.mode {
            Mode::Routed => route_to(connection, built, pair.outside).send(&outside)?,
            Mode::Bridge => join_bridge(connection, built, pair.outside).send(&outside)?,
        }
        let configure = || configure_pod(connection, built, pair.inside).send(&inside);
        match configure() {
            // The machine supports IPv6 but disables it in new namespaces.
            Err(NetlinkError { errno: Errno::EACCES, .. }) => {
                netns::inside(pod.netns, || sysctl::allow_ipv6(INTERFACE))??;
                configure()?;
            }
            other => other?,
        }
        if self.mode == Mode::Bridge && lease.loopback_port().is_some() {
            sysctl::route_loopback(&self.bridge)?;
        }
        self.open_ports(pod.id, lease)?;
        forget_ports(lease);
        Ok(())
    }

    /// Makes a pod's veth pair, and returns it with the network that it is in.
    ///
    /// This is a request of its own: after a refusal the kernel continues with a batch, and the later requests would
    /// apply to whichever link has the index.
    fn create_pair(
        &self,
        outside: &Socket,
        connection: Connection<'_>,
    ) -> Result<(Built, Pair), BuiltinError> {
        let name = link_name(connection.pod.id);
        let mut built = self.ensure(outside, connection.subnets)?;
        let mut indices = Pair { outside: self.next_index(), inside: self.inside_index.load(Relaxed) };
        let mut refusal = Errno::EAGAIN;
        for _ in 0..CREATE_ATTEMPTS {
            let pair = Veth {
                name: &name,
                index: indices.outside,
                end: self.host_end(built),
                mtu: built.mtu,
                peer_name: INTERFACE,
                peer_index: indices.inside,
                peer_hardware: hardware(connection.lease),
                peer_netns: connection.pod.netns,
            };
            match pair.create(outside) {
                Ok(()) => return Ok((built, indices)),
                Err(errno) => refusal = errno,
            }
            match refusal {
                // One of the indices is taken. An index that is free in one new pod is free in the next.
                Errno::EBUSY => {
                    indices = Pair { outside: self.next_index(), inside: indices.inside + 1 };
                    self.inside_index.fetch_max(indices.inside, Relaxed);
                }
                // An earlier attempt for this pod was interrupted.
                Errno::EEXIST if link::index(&name)?.is_some() => link::delete(outside, &name)?,
                // Someone has removed the bridge since it was set up.
                Errno::ENODEV | Errno::EINVAL => {
                    *lock(&self.ready) = None;
                    built = self.ensure(outside, connection.subnets)?;
                }
                _ => break,
            }
        }
        Ok(Err(refusal).operation(|| format!("create the veth pair {name} and {INTERFACE}"))?)
    }

    fn host_end(&self, built: Built) -> HostEnd {
        match (self.mode, built.bridge) {
            (Mode::Bridge, Some(bridge)) => HostEnd::Port { bridge },
            _ => HostEnd::Routed { hardware: built.gateway },
        }
    }

    fn next_index(&self) -> u32 {
        FIRST_INDEX + self.next_index.fetch_add(1, Relaxed) % INDEX_COUNT
    }

    /// Removes what the bridge knows about a pod; everything else disappears with the pod's link. Nothing to remove is
    /// success.
    pub(super) fn forget_place(&self, lease: &Lease) -> Result<(), NetlinkError> {
        let Some(bridge) = link::index(&self.bridge)? else { return Ok(()) };
        let socket = Socket::open(Family::Route)?;
        let mut ipv6 = lease.ips.iter().filter(|ip| ip.is_ipv6());
        match lease.mode {
            Mode::Bridge => lease.ips.iter().try_for_each(|ip| neighbour::forget(&socket, bridge, *ip)),
            Mode::Routed => ipv6.try_for_each(|ip| neighbour::answer_no_more_for(&socket, bridge, *ip)),
        }
    }
}

/// The host's end of a routed pair: its settings, the routes to the pod, and the pod's hardware address.
fn route_to(connection: Connection<'_>, built: Built, index: u32) -> Batch {
    let Connection { pod, lease, .. } = connection;
    let mut batch = Batch::default();
    let dress = link::dress_routed(index, &alias(pod.id, &lease.ips), lease.loopback_port(), built.ipv6);
    batch.add("label the link of a pod", dress);
    batch.add("bring up the link of a pod", link::up(index));
    for (Address { ip, .. }, gateway) in connection.addresses() {
        let neighbour = neighbour::hold(index, ip, hardware(lease));
        batch.add(format!("say where the pod {ip} is"), neighbour);
        batch.add(format!("add the route to the pod {ip}"), route::to_pod(ip, index, gateway));
    }
    answer_on_bridge(&mut batch, built.bridge, lease);
    batch
}

/// Has the host answer on the bridge for a pod to which it routes. For IPv4 a setting of the bridge does this.
pub(super) fn answer_on_bridge(batch: &mut Batch, bridge: Option<u32>, lease: &Lease) {
    let Some(bridge) = bridge else { return };
    for ip in lease.ips.iter().filter(|ip| ip.is_ipv6()) {
        batch.add(
            format!("answer neighbour requests for the pod {ip} on the bridge"),
            neighbour::answer_for(bridge, *ip),
        );
    }
}

/// The host's end of a pair in the bridge, and the pod's place, which no other pod can then claim: the port of the
/// bridge, and the hardware address.
fn join_bridge(connection: Connection<'_>, built: Built, index: u32) -> Batch {
    let Connection { pod, lease, .. } = connection;
    let mut batch = Batch::default();
    batch.add("label the link of a pod", link::dress_port(index, &alias(pod.id, &lease.ips)));
    let behind = neighbour::hold_behind(index, hardware(lease));
    batch.add("say what is behind a port of the bridge", behind);
    for ip in built.bridge.iter().flat_map(|bridge| lease.ips.iter().map(|ip| (*bridge, *ip))) {
        let (bridge, ip) = ip;
        let neighbour = neighbour::hold(bridge, ip, hardware(lease));
        batch.add(format!("say where the pod {ip} is"), neighbour);
    }
    batch
}

/// The settings inside the pod: loopback up, addresses, default routes, and the gateways' hardware addresses.
fn configure_pod(connection: Connection<'_>, built: Built, index: u32) -> Batch {
    let mut batch = Batch::default();
    batch.add("bring up the pod's lo", link::up(link::LOOPBACK));
    let reached = match connection.lease.mode {
        Mode::Bridge => Reached::InNetwork,
        Mode::Routed => Reached::ByLinkAlone,
    };
    if connection.lease.mode == Mode::Routed && built.ipv6.is_some() {
        batch.add(format!("set up the pod's {INTERFACE}"), link::dress_routed_peer(index));
    }
    // The link comes up last: from then on the kernel's own work on it holds the lock that these requests need.
    for (address, _gateway) in connection.addresses() {
        batch.add(format!("give the pod its address {}", address.ip), address.add(index));
    }
    batch.add(format!("bring up the pod's {INTERFACE}"), link::up(index));
    for (_address, gateway) in connection.addresses() {
        let neighbour = neighbour::hold(index, gateway, built.gateway);
        batch.add(format!("tell the pod where {gateway} is"), neighbour);
        let route = route::default_by(gateway, index, reached);
        batch.add(format!("add the pod's default route by {gateway}"), route);
    }
    batch
}
