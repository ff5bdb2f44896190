//! Pods that pretend to be another pod or the gateway.

use std::net::{IpAddr, UdpSocket};

use super::fixture::{Host, LIMIT, Pod, ask, ip, neighbour, sh};
use crate::Mode;

/// An address in the pods' range that nobody has. Sending to it asks everyone for it, and so announces the sender.
const NOBODY: &str = "10.88.0.99:9";

/// Announces to everyone on the bridge that an address belongs to this pod.
fn claim(pod: &Pod, address: IpAddr) {
    pod.inside(|| {
        sh(&format!("ip address add {address}/32 dev eth0"));
        UdpSocket::bind((address, 0)).unwrap().send_to(b"!", NOBODY).unwrap();
    });
}

/// Makes this network namespace believe the latest answer, even one that comes within a second of the previous one.
fn believe_the_latest() {
    sh("for file in /proc/sys/net/ipv4/neigh/*/locktime; do echo 0 >$file; done");
}

fn the_host_finds_a_pod_whatever_another_says(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (victim, thief) = (Pod::new(1), Pod::new(2));
    let addresses = victim.attach(&network).unwrap();
    thief.attach(&network).unwrap();
    believe_the_latest();
    victim.serve(80);
    ask(addresses.ips[0], 80).unwrap();
    claim(&thief, addresses.ips[0]);
    assert_eq!(ask(addresses.ips[0], 80).unwrap(), ip("10.88.0.1"));
}

fn a_pod_finds_the_gateway_whatever_another_says(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let outsider = neighbour();
    outsider.serve(80);
    let (victim, thief) = (Pod::new(1), Pod::new(2));
    victim.attach(&network).unwrap();
    thief.attach(&network).unwrap();
    let reach = || victim.inside(|| ask(ip("192.0.2.2"), 80));
    victim.inside(believe_the_latest);
    reach().unwrap();
    claim(&thief, ip("10.88.0.1"));
    assert_eq!(reach().unwrap(), ip("192.0.2.1"));
    if mode == Mode::Routed {
        // Only the host could send a message that this pod would believe.
        return;
    }
    for redirects in ["ipv4/conf/all", "ipv4/conf/eth0", "ipv6/conf/eth0"] {
        let path = format!("/proc/sys/net/{redirects}/accept_redirects");
        assert_eq!(victim.inside(|| std::fs::read_to_string(&path)).unwrap(), "0\n", "{path}");
    }
}

/// On a bridge it can: the kernel remembers every address that a pod uses to ask for the gateway, and has room for
/// 1,024 neighbours over all links.
#[test]
fn a_routed_pod_cannot_fill_the_hosts_memory_of_neighbours() {
    let host = Host::new(Mode::Routed);
    let network = host.network();
    let pod = Pod::new(1);
    let addresses = pod.attach(&network).unwrap();
    pod.serve(80);
    // Multicast groups come and go by themselves.
    let known = || sh("ip neighbour show nud all | grep -v ^ff");
    let before = known();
    let ask_as = |name: &str, gateway: &str| {
        let at_once = if name.contains(':') { "nodad" } else { "" };
        sh(&format!("ip neighbour delete {gateway} dev eth0; ip address add {name} dev eth0 {at_once}"));
        UdpSocket::bind((name, 0)).unwrap().send_to(b"!", (gateway, 9)).unwrap();
    };
    pod.inside(|| {
        let found = sh("ip neighbour show dev eth0 nud permanent");
        for number in 100..110 {
            ask_as(&format!("10.88.0.{number}"), "10.88.0.1");
            ask_as(&format!("fd00:88::{number}"), "fd00:88::1");
        }
        for neighbour in found.lines() {
            sh(&format!("ip neighbour replace {} dev eth0", neighbour.replace("PERMANENT", "")));
        }
    });
    // The link has one queue, so what was sent earlier has arrived earlier.
    for ip in addresses.ips {
        ask(ip, 80).unwrap();
    }
    assert_eq!(known(), before);
}

/// The gateway's address is among those that a pod cannot use as a sender, so nobody is redirected.
#[test]
fn a_routed_pod_speaks_in_its_own_name_alone() {
    let host = Host::new(Mode::Routed);
    let network = host.network();
    let (liar, victim) = (Pod::new(1), Pod::new(2));
    let own = liar.attach(&network).unwrap();
    let victims = victim.attach(&network).unwrap();
    let forged = [["10.88.0.1", "10.88.0.77", "192.0.2.7"], ["fd00:88::1", "fd00:88::77", "2001:db8::7"]];
    for ((to, own), names) in victims.ips.iter().zip(&own.ips).zip(forged) {
        speaks_in_its_own_name((&liar, *own), (&victim, *to), names);
    }
    // While somebody reloads a firewall whose configuration begins so, the kernel still checks IPv4.
    sh("nft flush ruleset");
    speaks_in_its_own_name(
        (&liar, own.ips[0]),
        (&victim, victims.ips[0]),
        ["10.88.0.79", "10.88.0.78", "192.0.2.8"],
    );
}

fn speaks_in_its_own_name((liar, own): (&Pod, IpAddr), (victim, to): (&Pod, IpAddr), names: [&str; 3]) {
    let socket = victim.inside(|| UdpSocket::bind((to, 9)).unwrap());
    socket.set_read_timeout(Some(LIMIT / 10)).unwrap();
    liar.inside(|| {
        for name in names {
            let at_once = if name.contains(':') { "nodad" } else { "" };
            sh(&format!("ip address add {name} dev lo {at_once}"));
            UdpSocket::bind((name, 0)).unwrap().send_to(b"forged", (to, 9)).unwrap();
        }
    });
    let mut buffer = [0; 10];
    // A busy machine may lose some.
    let received = (0..10).find_map(|_| {
        liar.inside(|| UdpSocket::bind((own, 0)).unwrap().send_to(b"own", (to, 9)).unwrap());
        socket.recv_from(&mut buffer).ok()
    });
    let (len, from) = received.expect("what it sends in its own name arrives");
    assert_eq!((&buffer[..len], from.ip()), (&b"own"[..], own));
}

#[test]
fn the_bridge_does_not_learn_from_frames() {
    let host = Host::new(Mode::Bridge);
    let network = host.network();
    let (victim, thief) = (Pod::new(1), Pod::new(2));
    let addresses = victim.attach(&network).unwrap();
    thief.attach(&network).unwrap();
    victim.serve(80);
    ask(addresses.ips[0], 80).unwrap();
    for hardware in ["02:77:0a:58:00:63", "02:77:0a:58:00:02"] {
        thief.inside(|| {
            sh(&format!("ip link set eth0 address {hardware}"));
            UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"!", NOBODY).unwrap();
        });
    }
    assert_eq!(ask(addresses.ips[0], 80).unwrap(), ip("10.88.0.1"));
    let learned = sh("bridge fdb show br wharf0");
    assert!(!learned.contains("02:77:0a:58:00:63"), "{learned}");
}

fn a_pod_is_known_as_long_as_it_is_there_also_after_a_restart(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (pod, other) = (Pod::new(1), Pod::new(2));
    let addresses = pod.attach(&network).unwrap();
    let known = || sh("ip neighbour show nud permanent");
    let network = host.network();
    other.attach(&network).unwrap();
    assert!(addresses.ips.iter().all(|ip| known().contains(&ip.to_string())), "{}", known());
    for gone in [pod, other] {
        network.detach(&gone.id, Some(&gone.path())).unwrap();
        // What is known of a routed pod disappears with its link.
        if mode == Mode::Routed {
            sh(&format!("ip link delete wh{}", gone.id.short()));
        }
    }
    assert_eq!(known(), "");
}

#[test]
fn a_bridge_that_others_made_keeps_its_hardware_address() {
    let host = Host::new(Mode::Bridge);
    sh("ip link add wharf0 type bridge");
    let hardware = || sh("ip -o link show wharf0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'");
    let before = hardware();
    let network = host.network();
    let pods: Vec<Pod> = (1..=8).map(Pod::new).collect();
    for pod in &pods {
        pod.attach(&network).unwrap();
    }
    assert_eq!(hardware(), before);
}

in_both_modes! {
    the_host_finds_a_pod_whatever_another_says,
    a_pod_finds_the_gateway_whatever_another_says,
    a_pod_is_known_as_long_as_it_is_there_also_after_a_restart,
}
