//! The addresses of pods: which are taken, by whom, and when they may be used again.
//!
//! A lease is on disk before its link is made, and its addresses are free only when the link is gone: until then, a
//! detached pod's lease is *draining*. Addresses are assigned in turn, so that none is reused at once.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use wharf_state::record::Durability;
use wharf_state::records::Records;
use wharf_types::PodId;

use crate::store::{self, Json, StoreError};
use crate::subnet::{Subnet, Subnets};
use crate::{Mode, PortMapping};

const DRAINING: &str = ".draining";

/// Why a lease is not available.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Every address of the range is taken.
    #[error("no address is free in {subnets}; {taken} are taken")]
    Exhausted {
        /// The pods' ranges.
        subnets: Subnets,
        /// How many addresses pods have, including those whose links still exist.
        taken: usize,
    },
    /// Another pod has the host port.
    #[error("host port {port}/{protocol} is taken by pod {owner}", protocol = .protocol.name())]
    PortTaken {
        /// The protocol.
        protocol: crate::Protocol,
        /// The port of the host.
        port: u16,
        /// The pod that has it.
        owner: PodId,
    },
    /// The pod requests one host port twice.
    #[error("host port {port}/{protocol} is requested twice", protocol = .protocol.name())]
    PortTwice {
        /// The protocol.
        protocol: crate::Protocol,
        /// The port of the host.
        port: u16,
    },
    /// The host port has an address family that pods do not have.
    #[error(
        "host port {port}/{protocol} on {host_ip} needs pod addresses of the same family, and pods have {subnets}: use \
         an address of the host of their family, or no address for all", protocol = .protocol.name()
    )]
    PortFamily {
        /// The protocol.
        protocol: crate::Protocol,
        /// The port of the host.
        port: u16,
        /// The address of the host.
        host_ip: IpAddr,
        /// The pods' ranges.
        subnets: Subnets,
    },
    /// The host port is one of an address from which the kernel sends nothing to a pod.
    #[error(
        "host port {port}/{protocol} on ::1 cannot lead to a pod, because the kernel sends nothing from there: use \
         {}, or no address for all", instead_of_loopback(.subnets), protocol = .protocol.name()
    )]
    PortLoopback {
        /// The protocol.
        protocol: crate::Protocol,
        /// The port of the host.
        port: u16,
        /// The pods' ranges.
        subnets: Subnets,
    },
    /// The lease could not be recorded.
    #[error("cannot save the lease of the pod")]
    Store {
        /// The file, and the reason.
        #[from]
        source: StoreError,
    },
}

/// An address that can be used for ::1.
fn instead_of_loopback(subnets: &Subnets) -> &'static str {
    let has_ipv4 = subnets.as_slice().iter().any(|subnet| !subnet.is_ipv6());
    if has_ipv4 { "127.0.0.1" } else { "another IPv6 address of the host" }
}

/// What a pod has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Primary first.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ports: Vec<PortMapping>,
    /// How the pod is connected.
    pub(crate) mode: Mode,
}

/// Proof that a pod has a host port on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoopbackPort;

impl Lease {
    pub(crate) fn loopback_port(&self) -> Option<LoopbackPort> {
        let is_there = |port: &PortMapping| match port.host_ip {
            None => true,
            Some(IpAddr::V4(ip)) => ip.is_unspecified() || ip.is_loopback(),
            Some(IpAddr::V6(_)) => false,
        };
        let mut ports = self.ports.iter().filter(|port| port.host_port != 0);
        (self.ips.iter().any(IpAddr::is_ipv4) && ports.any(is_there)).then_some(LoopbackPort)
    }
}

/// The record on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    ips: Vec<IpAddr>,
    ports: Vec<PortMapping>,
    #[serde(default = "mode_of_first_releases")]
    mode: Mode,
}

fn mode_of_first_releases() -> Mode {
    Mode::Bridge
}

impl store::Kind for Record {
    const NAME: &'static str = "lease";
}

/// All leases. The owner serialises access.
#[derive(Debug)]
pub(crate) struct Leases {
    store: Records<Json<Record>>,
    held: HashMap<PodId, Lease>,
    draining: HashMap<PodId, (Lease, Instant)>,
    taken: HashSet<IpAddr>,
    /// The next offset to try.
    next: u32,
}

impl Leases {
    /// Loads what is on disk; damaged leases are moved to the quarantine.
    ///
    /// `earlier` is where a release kept them for which they survived a restart of the machine: it is emptied.
    pub(crate) fn open(dir: &Path, earlier: &Path) -> Result<Self, StoreError> {
        let store = store::open(dir.to_owned())?;
        // The state may be full: the pods' links say what is missing, and the daemon that starts can make room.
        if let Err(error) = store::take_over(earlier, dir) {
            let error = wharf_types::chain(&error);
            tracing::warn!(
                error,
                "not all leases of an earlier release are taken over; the next start tries again"
            );
        }
        let loaded = store::load(&store, |name| name.strip_suffix(DRAINING).unwrap_or(name))?;
        let mut leases =
            Self { store, held: HashMap::new(), draining: HashMap::new(), taken: HashSet::new(), next: 0 };
        for (name, id, Record { ips, ports, mode }) in loaded {
            leases.insert(PodId::clone(&id), Lease { ips, ports, mode });
            if name.ends_with(DRAINING) {
                leases.drain_in_memory(&id);
            }
        }
        Ok(leases)
    }

    pub(crate) fn get(&self, id: &PodId) -> Option<&Lease> {
        self.held.get(id)
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = (&PodId, &Lease)> {
        self.held.iter()
    }

    /// Whether a pod is connected in this mode, or its link may still exist.
    pub(crate) fn has(&self, mode: Mode) -> bool {
        self.all().any(|lease| lease.mode == mode)
    }

    /// Whether a pod that is connected in this mode has an address in the range, or its link may still exist.
    pub(crate) fn has_in(&self, mode: Mode, range: &Subnet) -> bool {
        let mut connected = self.all().filter(|lease| lease.mode == mode);
        connected.any(|lease| lease.ips.iter().any(|ip| range.contains(*ip)))
    }

    fn all(&self) -> impl Iterator<Item = &Lease> {
        self.held.values().chain(self.draining.values().map(|(lease, _since)| lease))
    }

    /// Whether no pod has anything, not even a link that is about to disappear.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.draining.is_empty()
    }

    /// The addresses of these detached pods.
    pub(crate) fn draining_addresses<'a>(&self, ids: impl Iterator<Item = &'a PodId>) -> HashSet<IpAddr> {
        ids.filter_map(|id| self.draining.get(id)).flat_map(|(lease, _since)| lease.ips.clone()).collect()
    }

    /// The pods whose links may still exist, and since when.
    pub(crate) fn draining(&self) -> Vec<(PodId, Instant)> {
        self.draining.iter().map(|(id, (_lease, since))| (id.clone(), *since)).collect()
    }

    /// Restores the lost lease of a pod from what the kernel shows. Even if it cannot be recorded, nobody else gets its
    /// addresses.
    pub(crate) fn adopt(&mut self, id: PodId, lease: Lease) {
        if self.held.contains_key(&id) || self.draining.contains_key(&id) {
            return;
        }
        if let Err(error) = self.save(&id, &lease) {
            let error = wharf_types::chain(&error);
            tracing::warn!(pod = %id, error, "the lease of a pod is not recorded; the next start tries again");
        }
        self.insert(id, lease);
    }

    /// Gives a pod addresses and host ports, which are on disk when this returns. A pod that already has addresses
    /// keeps them.
    pub(crate) fn reserve(
        &mut self,
        id: &PodId,
        ports: &[PortMapping],
        subnets: &Subnets,
        mode: Mode,
    ) -> Result<Lease, LeaseError> {
        check_host_ips(ports, subnets)?;
        self.check_ports(id, ports)?;
        let earlier = self.held.get(id).or_else(|| self.draining.get(id).map(|(lease, _since)| lease));
        let ips = match earlier.map(|lease| lease.ips.clone()) {
            Some(ips) if subnets.contain(&ips) => ips,
            outside => {
                let ips = self.pick(subnets)?;
                outside.iter().flatten().for_each(|ip| {
                    self.taken.remove(ip);
                });
                ips
            }
        };
        let lease = Lease { ips, ports: ports.to_vec(), mode };
        self.save(id, &lease)?;
        // From here on it is on disk, so whatever fails next, it can be returned.
        self.draining.remove(id);
        self.insert(id.clone(), lease.clone());
        self.store.remove(&format!("{id}{DRAINING}")).map_err(StoreError::from)?;
        Ok(lease)
    }

    /// Marks a lease as draining: the pod is detached, but its link may still exist.
    pub(crate) fn drain(&mut self, id: &PodId) -> Result<(), StoreError> {
        if self.held.contains_key(id) {
            self.store.rename(id.as_str(), &format!("{id}{DRAINING}"))?;
            self.drain_in_memory(id);
        }
        Ok(())
    }

    /// Frees the addresses of a detached pod whose link is gone.
    pub(crate) fn free(&mut self, id: &PodId) -> Result<(), StoreError> {
        if self.draining.contains_key(id) {
            self.store.remove(&format!("{id}{DRAINING}"))?;
            if let Some((lease, _since)) = self.draining.remove(id) {
                lease.ips.iter().for_each(|ip| {
                    self.taken.remove(ip);
                });
            }
        }
        Ok(())
    }

    fn drain_in_memory(&mut self, id: &PodId) {
        if let Some(lease) = self.held.remove(id) {
            self.draining.insert(id.clone(), (lease, Instant::now()));
        }
    }

    fn insert(&mut self, id: PodId, lease: Lease) {
        self.taken.extend(&lease.ips);
        self.held.insert(id, lease);
    }

    fn save(&self, id: &PodId, lease: &Lease) -> Result<(), StoreError> {
        let record = Record { ips: lease.ips.clone(), ports: lease.ports.clone(), mode: lease.mode };
        Ok(self.store.save(id.as_str(), &Json(record), Durability::Volatile)?)
    }

    /// The next offset whose addresses are free in every subnet.
    fn pick(&mut self, subnets: &Subnets) -> Result<Vec<IpAddr>, LeaseError> {
        let last = subnets.last();
        if self.next == 0 {
            self.next = self.after_highest(subnets);
        }
        for _ in 2..=last {
            if !(2..=last).contains(&self.next) {
                self.next = 2;
            }
            let ips: Vec<IpAddr> = subnets.as_slice().iter().map(|subnet| subnet.nth(self.next)).collect();
            self.next += 1;
            if ips.iter().all(|ip| !self.taken.contains(ip)) {
                return Ok(ips);
            }
        }
        Err(LeaseError::Exhausted { subnets: subnets.clone(), taken: self.held.len() + self.draining.len() })
    }

    /// After a restart, continues after the highest address in use.
    fn after_highest(&self, subnets: &Subnets) -> u32 {
        let Some(subnet) = subnets.as_slice().first() else { return 2 };
        let highest = self.taken.iter().filter(|ip| subnet.contains(**ip)).max();
        highest.and_then(|ip| subnet.offset(*ip)).map_or(2, |offset| offset + 1)
    }

    fn check_ports(&self, id: &PodId, ports: &[PortMapping]) -> Result<(), LeaseError> {
        let mut wanted = HashMap::<_, Vec<&PortMapping>>::new();
        for port in ports.iter().filter(|port| port.host_port != 0) {
            let same = wanted.entry((port.protocol, port.host_port)).or_default();
            if same.iter().any(|other| other.collides(port)) {
                return Err(LeaseError::PortTwice { protocol: port.protocol, port: port.host_port });
            }
            same.push(port);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        for (owner, lease) in self.held.iter().filter(|(owner, _lease)| *owner != id) {
            for other in &lease.ports {
                let same = wanted.get(&(other.protocol, other.host_port));
                if same.is_some_and(|same| same.iter().any(|port| port.collides(other))) {
                    let (protocol, port) = (other.protocol, other.host_port);
                    return Err(LeaseError::PortTaken { protocol, port, owner: owner.clone() });
                }
            }
        }
        Ok(())
    }
}

/// A port with an address can lead only to an address of the same family, and none can lead from ::1.
fn check_host_ips(ports: &[PortMapping], subnets: &Subnets) -> Result<(), LeaseError> {
    for asked in ports.iter().filter(|port| port.host_port != 0) {
        let (Some(host_ip), protocol, port) = (asked.host_ip, asked.protocol, asked.host_port) else {
            continue;
        };
        if !subnets.as_slice().iter().any(|subnet| subnet.is_ipv6() == host_ip.is_ipv6()) {
            return Err(LeaseError::PortFamily { protocol, port, host_ip, subnets: subnets.clone() });
        }
        if host_ip == IpAddr::from(Ipv6Addr::LOCALHOST) {
            return Err(LeaseError::PortLoopback { protocol, port, subnets: subnets.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    fn id(byte: u8) -> PodId {
        PodId::from_random([byte; 32])
    }

    fn port(host_port: u16, host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip }
    }

    #[test]
    fn addresses_go_in_turn_and_are_free_only_after_draining() {
        let dir = tempfile::tempdir().unwrap();
        let subnets: Subnets = "10.0.0.0/29,fd00::/64".parse().unwrap();
        let mut leases = Leases::open(dir.path(), &dir.path().join("earlier")).unwrap();
        let ips =
            |leases: &mut Leases, byte| leases.reserve(&id(byte), &[], &subnets, Mode::Routed).unwrap().ips;
        assert_eq!(ips(&mut leases, 1)[0].to_string(), "10.0.0.2");
        assert_eq!(ips(&mut leases, 1)[1].to_string(), "fd00::2", "asking again gives the same");
        leases.drain(&id(1)).unwrap();
        for byte in 2..=5 {
            assert_eq!(ips(&mut leases, byte)[0].to_string(), format!("10.0.0.{}", byte + 1));
        }
        let full = leases.reserve(&id(6), &[], &subnets, Mode::Routed).unwrap_err();
        assert_eq!(full.to_string(), "no address is free in 10.0.0.0/29,fd00::/64; 5 are taken");
        leases.free(&id(1)).unwrap();
        leases.free(&id(1)).unwrap();
        assert_eq!(ips(&mut leases, 6)[0].to_string(), "10.0.0.2");
    }

    #[test]
    fn leases_survive_reopening_in_the_state_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let subnets: Subnets = "10.0.0.0/24".parse().unwrap();
        let mut leases = Leases::open(&dir.path().join("l"), &dir.path().join("earlier")).unwrap();
        let first = leases.reserve(&id(1), &[port(80, None)], &subnets, Mode::Routed).unwrap();
        leases.reserve(&id(2), &[], &subnets, Mode::Routed).unwrap();
        leases.drain(&id(2)).unwrap();
        std::fs::write(dir.path().join("l").join(id(3).as_str()), r#"{"version":9,"ips":[],"ports":[]}"#)
            .unwrap();
        let mut leases = Leases::open(&dir.path().join("l"), &dir.path().join("earlier")).unwrap();
        assert_eq!(leases.get(&id(1)), Some(&first));
        assert_eq!((leases.get(&id(2)), leases.draining().len()), (None, 1));
        assert_eq!(leases.get(&id(3)), None);
        let third = leases.reserve(&id(3), &[], &subnets, Mode::Routed).unwrap();
        assert_eq!(third.ips[0].to_string(), "10.0.0.4");
    }

    #[test]
    fn leases_of_a_release_that_kept_them_elsewhere_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let (earlier, now) = (dir.path().join("earlier"), dir.path().join("now"));
        let subnets: Subnets = "10.0.0.0/24".parse().unwrap();
        let mut leases = Leases::open(&earlier, &now).unwrap();
        let first = leases.reserve(&id(1), &[port(80, None)], &subnets, Mode::Bridge).unwrap();
        leases.reserve(&id(2), &[], &subnets, Mode::Bridge).unwrap();
        leases.drain(&id(2)).unwrap();
        for _ in 0..2 {
            let leases = Leases::open(&now, &earlier).unwrap();
            assert_eq!((leases.get(&id(1)), leases.draining().len()), (Some(&first), 1));
            assert!(!earlier.exists());
        }
    }

    #[test]
    fn a_lease_that_cannot_be_recorded_keeps_its_addresses_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let (earlier, now) = (dir.path().join("earlier"), dir.path().join("now"));
        std::fs::create_dir_all(earlier.join("directory")).unwrap();
        let mut leases = Leases::open(&now, &earlier).unwrap();
        // Where the record belongs is a directory, as in a state without room it cannot be written.
        std::fs::create_dir_all(now.join(id(1).as_str()).join("occupied")).unwrap();
        let ips = vec!["10.0.0.2".parse().unwrap()];
        leases.adopt(id(1), Lease { ips, ports: Vec::new(), mode: Mode::Routed });
        let next = leases.reserve(&id(2), &[], &"10.0.0.0/24".parse().unwrap(), Mode::Routed).unwrap();
        assert_eq!(next.ips[0].to_string(), "10.0.0.3");
    }

    #[test]
    fn host_ports_belong_to_one_pod() {
        let dir = tempfile::tempdir().unwrap();
        let subnets: Subnets = "10.0.0.0/24".parse().unwrap();
        let mut leases = Leases::open(dir.path(), &dir.path().join("earlier")).unwrap();
        let mut ask =
            |byte, ports: &[PortMapping]| leases.reserve(&id(byte), ports, &subnets, Mode::Routed).map(drop);
        ask(1, &[port(80, None), port(81, Some("10.9.9.9"))]).unwrap();
        ask(1, &[port(80, None), port(81, Some("10.9.9.9"))]).unwrap();
        assert!(
            matches!(ask(2, &[port(80, None)]), Err(LeaseError::PortTaken { owner, .. }) if owner == id(1))
        );
        assert!(matches!(ask(2, &[port(80, Some("10.1.1.1"))]), Err(LeaseError::PortTaken { .. })));
        assert!(matches!(ask(2, &[port(81, None)]), Err(LeaseError::PortTaken { port: 81, .. })));
        assert!(matches!(ask(2, &[port(9, None), port(9, None)]), Err(LeaseError::PortTwice { .. })));
        ask(2, &[port(81, Some("10.9.9.8")), port(0, None), port(0, None)]).unwrap();
        ask(3, &[PortMapping { protocol: Protocol::Udp, ..port(80, None) }]).unwrap();
        let no_ipv6 = ask(4, &[port(90, Some("::"))]).unwrap_err();
        assert!(matches!(no_ipv6, LeaseError::PortFamily { port: 90, .. }), "{no_ipv6}");
    }

    #[test]
    fn what_is_advised_for_the_ipv6_loopback_address_is_accepted() {
        for (ranges, advised, accepted) in [
            ("10.0.0.0/24,fd00::/64", "127.0.0.1", "127.0.0.1"),
            ("fd00::/64", "another IPv6 address of the host", "2001:db8::1"),
        ] {
            let subnets = ranges.parse().unwrap();
            let check = |host_ip| check_host_ips(&[port(90, host_ip)], &subnets);
            let refused = check(Some("::1")).unwrap_err().to_string();
            assert!(refused.ends_with(&format!(": use {advised}, or no address for all")), "{refused}");
            check(Some(accepted)).and_then(|()| check(None)).unwrap();
        }
    }
}
