//! Machines whose firewall drops forwarded packets.

use std::collections::HashSet;

use super::fixture::{Host, Pod, ask, ip, neighbour, sh, tcp};
use crate::{Mode, Network};

/// One chain in the output of `iptables -S`, to check that iptables can read what wharf wrote.
fn rules(program: &str, chain: &str) -> String {
    sh(&format!("{program} -S {chain} 2>&1"))
}

/// The rules for pods, as iptables shows them.
fn accepts(mode: Mode) -> [String; 2] {
    let links = if mode == Mode::Bridge { "wharf0" } else { "wh+" };
    [
        format!("-i {links} -m comment --comment wharf -j ACCEPT"),
        format!("-o {links} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT"),
    ]
}

/// Checks that a pod reaches the world and is reached through its host port, and in no other way from outside.
fn reaches(network: &Network, pod: &Pod, outsider: &Pod) {
    let addresses = pod.attach_with(network, &[tcp(12000, 80)]).unwrap();
    let other = Pod::new(200);
    let second = other.attach(network).unwrap();
    pod.serve(80);
    other.serve(80);
    outsider.serve(80);
    assert_eq!(pod.inside(|| ask(ip("192.0.2.2"), 80)).unwrap(), ip("192.0.2.1"));
    assert_eq!(outsider.inside(|| ask(ip("192.0.2.1"), 12000)).unwrap(), ip("192.0.2.2"));
    for address in &second.ips {
        pod.inside(|| ask(*address, 80)).unwrap();
    }
    let routed = outsider.inside(|| {
        let address = std::net::SocketAddr::new(addresses.ips[0], 80);
        std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300))
    });
    assert_eq!(routed.unwrap_err().kind(), std::io::ErrorKind::TimedOut, "the firewall is still one");
}

fn pods_pass_a_policy_of_drop_and_leave_it_as_it_was(mode: Mode) {
    let host = Host::new(mode);
    let outsider = neighbour();
    sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP");
    let before = (rules("iptables", ""), rules("ip6tables", ""));
    let network = host.network();
    let pod = Pod::new(1);
    reaches(&network, &pod, &outsider);
    for program in ["iptables", "ip6tables"] {
        let found = rules(program, "FORWARD");
        assert!(accepts(mode).iter().all(|accept| found.contains(accept)), "{found}");
    }
    network.reconcile(&HashSet::new());
    assert_eq!(rules("iptables", "FORWARD").lines().count(), 3, "once each");
    for id in [pod.id.clone(), Pod::new(200).id] {
        network.detach(&id, None).unwrap();
    }
    drop(pod);
    network.demolish().unwrap();
    assert_eq!((rules("iptables", ""), rules("ip6tables", "")), before);
}

fn a_firewall_that_comes_later_or_is_loaded_anew_is_passed_after_the_next_look(mode: Mode) {
    let host = Host::new(mode);
    let outsider = neighbour();
    let network = host.network();
    let pod = Pod::new(1);
    pod.attach(&network).unwrap();
    outsider.serve(80);
    let asks = || pod.inside(|| ask(ip("192.0.2.2"), 80));
    asks().unwrap();
    for load in ["iptables -P FORWARD DROP", "iptables -F FORWARD"] {
        sh(load);
        network.reconcile(&HashSet::new());
        asks().unwrap();
    }
    // The rules disappear with the last pod, and return with the next.
    network.detach(&pod.id, None).unwrap();
    drop(pod);
    let gone = || {
        network.reconcile(&HashSet::new());
        rules("iptables", "FORWARD") == "-P FORWARD DROP\n"
    };
    let start = std::time::Instant::now();
    while !gone() {
        assert!(start.elapsed() < super::fixture::LIMIT, "{}", rules("iptables", "FORWARD"));
    }
    let next = Pod::new(2);
    next.attach(&network).unwrap();
    next.inside(|| ask(ip("192.0.2.2"), 80)).unwrap();
}

fn what_is_removed_while_no_daemon_runs_comes_back_when_one_starts(mode: Mode) {
    let host = Host::new(mode);
    let outsider = neighbour();
    outsider.serve(80);
    sh("iptables -P FORWARD DROP
        nft 'add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }'");
    let pod = Pod::new(1);
    pod.attach(&host.network()).unwrap();
    sh("iptables -F FORWARD; nft delete table inet wharf; echo 0 >/proc/sys/net/ipv4/ip_forward");
    let network = host.network();
    network.reconcile(&HashSet::from([pod.id.clone()]));
    assert_eq!(pod.inside(|| ask(ip("192.0.2.2"), 80)).unwrap(), ip("192.0.2.1"));
    assert!(network.readiness().message.contains("firewalld drops"), "people are told again");
}

/// Docker's rules, shortened.
const DOCKER: &str = "
    for iptables in iptables ip6tables; do
        $iptables -P FORWARD DROP
        for chain in DOCKER DOCKER-USER DOCKER-FORWARD DOCKER-CT; do $iptables -N $chain; done
        $iptables -A FORWARD -j DOCKER-USER
        $iptables -A FORWARD -j DOCKER-FORWARD
        $iptables -A DOCKER-FORWARD -j DOCKER-CT
        $iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
        $iptables -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        $iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
        $iptables -A DOCKER-USER -j RETURN
    done";

/// ufw's rules, shortened.
const UFW: &str = "
    iptables -P FORWARD DROP
    for chain in ufw-before-forward ufw-user-forward ufw-after-logging-forward ufw-reject-forward; do
        iptables -N $chain; iptables -A FORWARD -j $chain
    done
    iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    iptables -A ufw-before-forward -p icmp --icmp-type 8 -j ACCEPT
    iptables -A ufw-before-forward -j ufw-user-forward
    iptables -A ufw-reject-forward -j DROP";

fn pods_pass_the_rules_of_docker_and_of_ufw(mode: Mode) {
    for set in [DOCKER, UFW] {
        let host = Host::new(mode);
        let outsider = neighbour();
        sh(set);
        let network = host.network();
        reaches(&network, &Pod::new(1), &outsider);
        if set == DOCKER {
            let found = rules("iptables", "DOCKER-USER");
            assert!(accepts(mode).iter().all(|accept| found.contains(accept)), "{found}");
        }
        sh("iptables-save | iptables-restore");
    }
}

fn a_firewall_that_is_not_iptables_is_reported(mode: Mode) {
    let host = Host::new(mode);
    sh("nft add table inet mine
        nft 'add chain inet mine forward { type filter hook forward priority 0; policy drop; }'");
    let network = host.network();
    Pod::new(1).attach(&network).unwrap();
    let readiness = network.readiness();
    assert!(readiness.ready && readiness.message.contains("chain mine forward drops"), "{readiness:?}");
    let links = if mode == Mode::Bridge { "wharf0" } else { "\"wh*\"" };
    sh(&format!("nft 'add rule inet mine forward iifname {links} accept'"));
    network.reconcile(&HashSet::new());
    assert_eq!(network.readiness().message, "", "somebody has thought of it");
}

in_both_modes! {
    pods_pass_a_policy_of_drop_and_leave_it_as_it_was,
    a_firewall_that_comes_later_or_is_loaded_anew_is_passed_after_the_next_look,
    pods_pass_the_rules_of_docker_and_of_ufw,
    a_firewall_that_is_not_iptables_is_reported,
    what_is_removed_while_no_daemon_runs_comes_back_when_one_starts,
}
