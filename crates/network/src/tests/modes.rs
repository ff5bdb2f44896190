//! Pods of both modes side by side, as after a change of the mode or an upgrade.

use std::collections::HashSet;

use super::fixture::{Host, Pod, ask, has_gateway, ip, neighbour, sh, tcp};
use crate::Mode;

/// Switches the host to the other mode, for pods that are added from now on.
fn change(host: &mut Host) {
    let mode = &mut host.config.builtin_network.mode;
    *mode = if *mode == Mode::Routed { Mode::Bridge } else { Mode::Routed };
}

fn pods_of_both_modes_reach_each_other_and_the_last_takes_its_gateway_along(mode: Mode) {
    let mut host = Host::new(mode);
    let pods = [1, 2, 3].map(Pod::new);
    let first = pods[0].attach_with(&host.network(), &[tcp(12000, 80)]).unwrap();
    change(&mut host);
    let network = host.network();
    let second = pods[1].attach(&network).unwrap();
    // A pod that is added when both kinds exist already.
    let third = pods[2].attach(&network).unwrap();
    pods.iter().for_each(|pod| pod.serve(80));
    let all = [&first.ips, &second.ips, &third.ips];
    for (from, own) in pods.iter().zip(all) {
        for to in all.into_iter().filter(|to| *to != own) {
            for (to, own) in to.iter().zip(own) {
                assert_eq!(from.inside(|| ask(*to, 80)).unwrap(), *own, "from {own} to {to}");
            }
        }
        from.inside(|| ask(ip("10.88.0.1"), 12000)).unwrap();
        from.inside(|| ask(ip("fd00:88::1"), 12000)).unwrap();
    }
    ask(ip("127.0.0.1"), 12000).unwrap();

    let ids = |pods: &[Pod]| pods.iter().map(|pod| pod.id.clone()).collect::<HashSet<_>>();
    network.reconcile(&ids(&pods));
    assert!(has_gateway(mode), "its pod is there");
    network.detach(&pods[0].id, None).unwrap();
    network.reconcile(&ids(&pods[1..]));
    assert!(!has_gateway(mode));
    assert_eq!(pods[1].inside(|| ask(third.ips[0], 80)).unwrap(), second.ips[0]);
    ask(second.ips[1], 80).unwrap();
}

fn an_attach_that_is_done_again_in_the_other_mode_keeps_its_address(mode: Mode) {
    let mut host = Host::new(mode);
    let pod = Pod::new(1);
    let first = pod.attach(&host.network()).unwrap();
    change(&mut host);
    let network = host.network();
    assert_eq!(pod.attach(&network).unwrap(), first);
    pod.serve(80);
    for ip in first.ips {
        ask(ip, 80).unwrap();
    }
    network.reconcile(&HashSet::new());
    assert!(!has_gateway(mode));
}

/// Leases of that release are in another directory and do not say how pods are connected, and its bridge is in no
/// group.
#[test]
fn pods_of_a_release_that_knew_bridges_alone_live_on() {
    let mut host = Host::new(Mode::Bridge);
    let outsider = neighbour();
    outsider.serve(80);
    let pod = Pod::new(1);
    pod.attach_with(&host.network(), &[tcp(12000, 80)]).unwrap();
    pod.serve(80);
    let port = r#"{"protocol":"tcp","container_port":80,"host_port":12000,"host_ip":null}"#;
    let record = format!(r#"{{"version":1,"ips":["10.88.0.2","fd00:88::2"],"ports":[{port}]}}"#);
    host.lose_leases();
    let leases = host.config.state_dir.join("leases");
    std::fs::create_dir(&leases).unwrap();
    std::fs::write(leases.join(pod.id.as_str()), record).unwrap();
    sh("ip link set wharf0 group 0");
    change(&mut host);
    let network = host.network();
    network.reconcile(&HashSet::from([pod.id.clone()]));
    assert!(has_gateway(Mode::Routed), "the network is set up for pods that exist, too");
    ask(ip("127.0.0.1"), 12000).unwrap();
    assert_eq!(pod.inside(|| ask(ip("192.0.2.2"), 80)).unwrap(), ip("192.0.2.1"));
    assert!(has_gateway(Mode::Bridge));
    network.detach(&pod.id, None).unwrap();
    network.reconcile(&HashSet::new());
    assert!(!has_gateway(Mode::Bridge));
}

/// As after the advice to leave a range that is somebody else's.
fn the_gateway_of_a_range_that_is_left_goes_with_its_last_pod(mode: Mode) {
    let mut host = Host::new(mode);
    let (one, two) = (Pod::new(1), Pod::new(2));
    let first = one.attach(&host.network()).unwrap();
    one.serve(80);
    host.config.builtin_network.subnets = "10.99.0.0/24".parse().unwrap();
    let network = host.network();
    let second = two.attach(&network).unwrap();
    two.serve(80);
    let gateways = || sh("ip -o address show; ip route; ip -6 route");
    network.reconcile(&HashSet::from([one.id.clone()]));
    two.inside(|| ask(first.ips[0], 80)).unwrap();
    assert!(gateways().contains("10.88.0.1"), "its pod is there");
    network.detach(&one.id, None).unwrap();
    sh(&format!("ip link delete wh{}", one.id.short()));
    network.reconcile(&HashSet::new());
    let left = gateways();
    assert!(!left.contains("10.88.0.") && !left.contains("fd00:88:"), "{left}");
    ask(second.ips[0], 80).unwrap();
}

#[test]
fn a_bridge_that_others_made_is_left_alone_when_pods_are_routed() {
    let host = Host::new(Mode::Routed);
    sh("ip link add wharf0 type bridge");
    let about = || sh("ip -o link show wharf0; sysctl net.ipv4.conf.wharf0.proxy_arp");
    let before = about();
    let network = host.network();
    Pod::new(1).attach(&network).unwrap();
    network.reconcile(&HashSet::new());
    assert_eq!(about(), before, "the host answers on it for nobody");
    network.demolish().unwrap();
    assert_eq!(about(), before);
}

in_both_modes! {
    pods_of_both_modes_reach_each_other_and_the_last_takes_its_gateway_along,
    an_attach_that_is_done_again_in_the_other_mode_keeps_its_address,
    the_gateway_of_a_range_that_is_left_goes_with_its_last_pod,
}
