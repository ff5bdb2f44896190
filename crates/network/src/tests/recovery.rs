//! What is left after a crash, and what others damage.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fixture::{Host, Pod, ask, has_gateway, id, ip, pod_links, sh, tcp};
use crate::netlink::{Family, Socket};
use crate::{Attachment, Mode, link, nft};

fn leases_and_ports_are_known_after_a_restart(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (one, two) = (Pod::new(1), Pod::new(2));
    let first = one.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    drop(network);
    let network = host.network();
    assert_eq!(network.addresses(&one.id), Some(first));
    assert!(two.attach_with(&network, &[tcp(12000, 80)]).is_err());
    assert_eq!(two.attach(&network).unwrap().ips[0], ip("10.88.0.3"));
    assert_eq!(network.reconcile(&HashSet::from([one.id.clone()])), 0);
    one.serve(80);
    ask(ip("127.0.0.1"), 12000).unwrap();
    network.detach(&one.id, None).unwrap();
    assert_eq!(nft::elements().unwrap(), []);
}

fn no_rule_is_put_back_for_a_pod_that_is_detached_meanwhile(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let pod = Pod::new(1);
    let live = HashSet::from([pod.id.clone()]);
    let over = AtomicBool::new(false);
    let left = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                network.reconcile(&live);
            }
        });
        let leaves_something = |_round: &u8| {
            let attached = pod.attach_with(&network, &[tcp(12000, 80)]);
            let detached = network.detach(&pod.id, None);
            attached.is_err() || detached.is_err() || nft::elements().is_ok_and(|left| !left.is_empty())
        };
        let left = (0..100).filter(leaves_something).count();
        over.store(true, Ordering::Relaxed);
        left
    });
    assert_eq!(left, 0, "rounds that failed or left a rule");
}

fn everything_of_dead_pods_is_found_in_the_kernel_alone(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (dead, live) = (Pod::new(1), Pod::new(2));
    dead.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    let kept = live.attach_with(&network, &[tcp(13000, 80)]).unwrap();
    drop(network);
    host.lose_leases();
    let network = host.network();
    assert_eq!(network.addresses(&live.id), Some(kept), "read from the link");
    assert_eq!(network.reconcile(&HashSet::from([live.id.clone()])), 1);
    assert_eq!(pod_links(), [format!("wh{}", live.id.short())]);
    assert_eq!(nft::elements().unwrap().len(), 2);
    assert_eq!(network.addresses(&dead.id), None);
    assert_eq!(network.reconcile(&HashSet::from([live.id.clone()])), 0);
    live.serve(80);
    ask(ip("127.0.0.1"), 13000).unwrap();
}

fn a_pod_attached_by_this_process_is_never_swept_away(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let pod = Pod::new(1);
    pod.attach(&network).unwrap();
    assert_eq!(network.reconcile(&HashSet::new()), 0);
    assert_eq!(pod_links().len(), 1);
}

fn a_link_whose_label_is_missing_is_removed_unless_a_lease_has_its_name(mode: Mode) {
    let host = Host::new(mode);
    let pod = Pod::new(1);
    pod.attach(&host.network()).unwrap();
    let name = pod_links().remove(0);
    sh(&format!("ip link set {name} alias ''"));
    assert_eq!(host.network().reconcile(&HashSet::from([pod.id.clone()])), 0);
    assert_eq!(pod_links().len(), 1);
    host.lose_leases();
    host.network().reconcile(&HashSet::new());
    assert!(pod_links().is_empty());
}

fn an_attach_that_was_cut_short_is_done_again(mode: Mode) {
    let host = Host::new(mode);
    let pod = Pod::new(1);
    let first = pod.attach_with(&host.network(), &[tcp(12000, 80)]).unwrap();
    // A killed daemon leaves all of it; the retry has the same id and namespace.
    let network = host.network();
    assert_eq!(pod.attach_with(&network, &[tcp(12000, 80)]).unwrap(), first);
    pod.serve(80);
    ask(ip("127.0.0.1"), 12000).unwrap();
    assert_eq!(pod_links().len(), 1);
    assert_eq!(nft::elements().unwrap().len(), 2);
}

fn a_detach_that_was_cut_short_keeps_the_address_until_the_link_is_gone(mode: Mode) {
    let host = Host::with_subnets(mode, "10.88.0.0/29");
    let network = host.network();
    let pod = Pod::new(1);
    pod.attach(&network).unwrap();
    network.detach(&pod.id, None).unwrap();
    drop(network);
    let network = host.network();
    assert_eq!(network.addresses(&pod.id), None);
    let others: Vec<Pod> = (2..=5).map(Pod::new).collect();
    for other in &others {
        assert_ne!(other.attach(&network).unwrap().ips, [ip("10.88.0.2")]);
    }
    assert_eq!(
        Pod::new(6).attach(&network).unwrap().ips,
        [ip("10.88.0.2")],
        "by force when nothing else is free"
    );
}

fn a_bridge_and_rules_that_someone_removed_come_back(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (one, two, three) = (Pod::new(1), Pod::new(2), Pod::new(3));
    one.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    one.serve(80);
    nft::delete_table().unwrap();
    ask(ip("127.0.0.1"), 12000).unwrap_err();
    two.attach_with(&network, &[tcp(13000, 80)]).unwrap();
    ask(ip("127.0.0.1"), 12000).unwrap();
    nft::delete_table().unwrap();
    network.reconcile(&HashSet::new());
    ask(ip("127.0.0.1"), 12000).unwrap();
    match mode {
        Mode::Routed => {
            drop(sh("ip address delete 10.88.0.1/32 dev lo; ip -6 route delete unreachable fd00:88::/64"))
        }
        Mode::Bridge => link::delete(&Socket::open(Family::Route).unwrap(), "wharf0").unwrap(),
    }
    network.reconcile(&HashSet::new());
    let third = three.attach(&network).unwrap();
    three.serve(80);
    ask(third.ips[0], 80).unwrap();
}

fn nothing_is_left_of_a_bridge_that_is_demolished_and_an_attach_makes_it_again(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    network.demolish().unwrap();
    let one = Pod::new(1);
    one.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    network.detach(&one.id, None).unwrap();
    network.demolish().unwrap();
    assert!(!has_gateway(mode));
    assert!(nft::elements().unwrap().is_empty());
    one.attach(&network).unwrap();
    assert!(has_gateway(mode));
}

#[test]
fn a_link_of_another_kind_is_not_demolished() {
    let mut host = Host::new(Mode::Bridge);
    host.config.builtin_network.bridge = "lo".into();
    host.network().demolish().unwrap();
    assert!(link::get(&Socket::open(Family::Route).unwrap(), "lo").unwrap().is_some());
}

fn damaged_state_is_set_aside(mode: Mode) {
    let host = Host::new(mode);
    drop(host.network());
    for file in [
        format!("run/leases/{}", id(1)),
        "run/leases/x".into(),
        format!("state/cni/{}.json", id(2)),
        "state/settings/pod-cidr".into(),
    ] {
        std::fs::write(host.dir.path().join(file), "\0\0\0").unwrap();
    }
    let network = host.network();
    assert!(network.readiness().ready);
    for directory in ["run", "state"] {
        let quarantine = host.dir.path().join(directory).join("quarantine");
        assert_eq!(std::fs::read_dir(quarantine).unwrap().count(), 2);
    }
    Pod::new(1).attach(&network).unwrap();
}

fn pods_attach_side_by_side(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let pods: Vec<Pod> = (1..=20).map(Pod::new).collect();
    let ips = std::thread::scope(|scope| {
        let threads: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| pod.attach(&network).unwrap().ips)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<HashSet<_>>()
    });
    assert_eq!(ips.len(), 20);
    let missing = Attachment {
        id: &id(99),
        name: "",
        namespace: "",
        uid: "",
        netns: pods[0].netns.as_fd(),
        pin: "/nowhere".as_ref(),
        ports: &[],
        annotations: &Default::default(),
        dns: Default::default(),
        cgroup_parent: "",
    };
    assert!(network.attach(&missing).is_err(), "a namespace has one eth0");
    assert_eq!(pod_links().len(), 20);
}

in_both_modes! {
    leases_and_ports_are_known_after_a_restart,
    no_rule_is_put_back_for_a_pod_that_is_detached_meanwhile,
    everything_of_dead_pods_is_found_in_the_kernel_alone,
    a_pod_attached_by_this_process_is_never_swept_away,
    a_link_whose_label_is_missing_is_removed_unless_a_lease_has_its_name,
    an_attach_that_was_cut_short_is_done_again,
    a_detach_that_was_cut_short_keeps_the_address_until_the_link_is_gone,
    a_bridge_and_rules_that_someone_removed_come_back,
    nothing_is_left_of_a_bridge_that_is_demolished_and_an_attach_makes_it_again,
    damaged_state_is_set_aside,
    pods_attach_side_by_side,
}
