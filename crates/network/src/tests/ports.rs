//! Host ports.

use std::io::ErrorKind as Io;
use std::net::UdpSocket;

use wharf_types::{ErrorKind, Failure};

use super::fixture::{Host, LIMIT, Pod, ask, ask_udp, ip, knock, neighbour, sh, tcp};
use crate::{Mode, Network, PortMapping, Protocol, nft};

fn a_host_port_leads_to_the_pod_from_everywhere(mode: Mode) {
    reach_from_everywhere(&Host::new(mode));
}

/// Kernels differ in whether bridged frames pass the IP hooks; both kinds must work.
fn a_host_port_leads_to_the_pod_without_filtering_on_the_bridge(mode: Mode) {
    let host = Host::new(mode);
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let setting = format!("/proc/sys/net/bridge/{name}");
        // Without br_netfilter there is no such setting, and this repeats the other test.
        if std::path::Path::new(&setting).exists() {
            std::fs::write(setting, "0").unwrap();
        }
    }
    reach_from_everywhere(&host);
}

fn reach_from_everywhere(host: &Host) {
    let network = host.network();
    let outsider = neighbour();
    let (pod, other) = (Pod::new(1), Pod::new(2));
    let addresses = pod.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    other.attach(&network).unwrap();
    pod.serve(80);
    for local in ["127.0.0.1", "10.88.0.1", "192.0.2.1", "127.5.5.5", "fd00:88::1"] {
        ask(ip(local), 12000).unwrap_or_else(|error| panic!("from the host by {local}: {error}"));
    }
    assert_eq!(
        outsider.inside(|| ask(ip("192.0.2.1"), 12000)).unwrap(),
        ip("192.0.2.2"),
        "the source is seen"
    );
    for (name, from) in [("another pod", &other), ("the pod itself", &pod)] {
        for address in ["10.88.0.1", "192.0.2.1", "fd00:88::1"] {
            from.inside(|| ask(ip(address), 12000))
                .unwrap_or_else(|error| panic!("from {name} by {address}: {error}"));
        }
    }
    // Only addresses of this machine: what others serve on that port is theirs.
    outsider.serve(12000);
    assert_eq!(pod.inside(|| ask(ip("192.0.2.2"), 12000)).unwrap(), ip("192.0.2.1"));
    assert_eq!(ask(ip("192.0.2.2"), 12000).unwrap(), ip("192.0.2.1"));
    assert_eq!(ask(ip("::1"), 12000).unwrap_err().kind(), Io::ConnectionRefused);
    assert_eq!(ask(addresses.ips[0], 80).unwrap(), ip("10.88.0.1"));
    network.detach(&pod.id, None).unwrap();
    assert_eq!(ask(ip("127.0.0.1"), 12000).unwrap_err().kind(), Io::ConnectionRefused);
    assert_eq!(nft::elements().unwrap(), []);
}

/// What kube-proxy does with a service's address must not take the name of the pod that asks, unless pods share a
/// bridge.
fn a_service_is_told_which_pod_asks(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (pod, other) = (Pod::new(1), Pod::new(2));
    pod.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    let asking = other.attach(&network).unwrap();
    pod.serve(80);
    sh("nft 'table ip services { chain services { type nat hook prerouting priority dstnat;
        ip daddr 10.96.0.5 tcp dport 80 dnat to 10.88.0.2:80; }; }'");
    let seen = other.inside(|| ask(ip("10.96.0.5"), 80)).unwrap();
    assert_eq!(seen, if mode == Mode::Routed { asking.ips[0] } else { ip("10.88.0.1") });
}

fn an_address_and_udp_can_be_asked_for(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let pod = Pod::new(1);
    let by_address = PortMapping { host_ip: Some(ip("127.0.0.1")), ..tcp(12000, 80) };
    let ipv6_only = PortMapping { host_ip: Some(ip("::")), ..tcp(12001, 80) };
    let udp = PortMapping { protocol: Protocol::Udp, ..tcp(12000, 53) };
    pod.attach_with(&network, &[by_address, ipv6_only, udp, tcp(0, 80)]).unwrap();
    pod.serve(80);
    pod.serve_udp(53);
    ask(ip("127.0.0.1"), 12000).unwrap();
    assert_eq!(ask(ip("10.88.0.1"), 12000).unwrap_err().kind(), Io::ConnectionRefused);
    ask(ip("fd00:88::1"), 12001).unwrap();
    assert_eq!(ask(ip("10.88.0.1"), 12001).unwrap_err().kind(), Io::ConnectionRefused);
    assert_eq!(ask_udp(ip("127.0.0.1"), 12000).unwrap(), ip("10.88.0.1"));
}

fn a_udp_sender_that_keeps_its_port_reaches_each_next_pod(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let outsider = neighbour();
    let udp = PortMapping { protocol: Protocol::Udp, ..tcp(12000, 53) };
    let near = UdpSocket::bind("0.0.0.0:0").unwrap();
    let far = outsider.inside(|| UdpSocket::bind("192.0.2.2:5555").unwrap());
    let server = "192.0.2.1:12000".parse().unwrap();
    // Before there is a pod, these are connections to the host itself.
    for sender in [&near, &far] {
        sender.send_to(b"?", server).unwrap();
    }
    for number in 1..=3 {
        let pod = Pod::new(number);
        pod.attach_with(&network, std::slice::from_ref(&udp)).unwrap();
        for sender in [&near, &far] {
            let answering = pod.answer_udp(53, move |_peer| format!("pod {number}"));
            assert_eq!(knock(sender, server), format!("pod {number}"));
            answering.join().unwrap();
        }
        network.detach(&pod.id, Some(&pod.path())).unwrap();
        // Without a pod the host answers again.
        far.send_to(b"?", server).unwrap();
    }
}

fn what_others_still_send_reaches_no_pod_that_has_the_address_next(mode: Mode) {
    reach_no_next_pod(mode, |network, _host| network);
}

fn what_others_still_send_reaches_no_pod_after_a_restart(mode: Mode) {
    reach_no_next_pod(mode, |_network, host| host.network());
}

fn reach_no_next_pod(mode: Mode, restart: impl FnOnce(Network, &Host) -> Network) {
    let host = Host::with_subnets(mode, "10.88.0.0/30");
    let network = host.network();
    let outsider = neighbour();
    let world = outsider.inside(|| UdpSocket::bind("192.0.2.2:9").unwrap());
    let pod = Pod::new(1);
    pod.attach(&network).unwrap();
    let first = pod.inside(|| UdpSocket::bind("0.0.0.0:7").unwrap());
    // Packets sent while the pod's link comes up may be lost.
    world.set_read_timeout(Some(LIMIT / 50)).unwrap();
    let start = std::time::Instant::now();
    let seen = loop {
        first.send_to(b"?", "192.0.2.2:9").unwrap();
        if let Ok((_len, seen)) = world.recv_from(&mut [0; 10]) {
            break seen;
        }
        assert!(start.elapsed() < LIMIT, "nothing of the pod arrives");
    };
    drop(first);
    network.detach(&pod.id, None).unwrap();
    drop(pod);
    let start = std::time::Instant::now();
    while network.free_addresses() > 0 {
        assert!(start.elapsed() < LIMIT, "the address is not free");
    }
    let network = restart(network, &host);
    let next = Pod::new(2);
    next.attach(&network).unwrap();
    let socket = next.inside(|| UdpSocket::bind("0.0.0.0:7").unwrap());
    world.send_to(b"for the first", seen).unwrap();
    // Later packets arrive later, if they are not lost while the pod's link comes up.
    let near = UdpSocket::bind("10.88.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT / 50)).unwrap();
    let mut buffer = [0; 100];
    let start = std::time::Instant::now();
    let len = loop {
        near.send_to(b"for the second", "10.88.0.2:7").unwrap();
        if let Ok((len, _peer)) = socket.recv_from(&mut buffer) {
            break len;
        }
        assert!(start.elapsed() < LIMIT, "nothing reaches the next pod");
    };
    assert_eq!(&buffer[..len], b"for the second");
}

fn undoing_leaves_the_port_of_another_pod_alone(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (one, two) = (Pod::new(1), Pod::new(2));
    one.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    // The lease is lost, and the link's alias does not mention ports.
    drop(network);
    host.lose_leases();
    let network = host.network();
    let error = two.attach_with(&network, &[tcp(12000, 80), tcp(12001, 80)]).unwrap_err();
    assert!(error.to_string().contains("another pod has one"), "{error}");
    assert!(nft::elements().unwrap().iter().all(|element| element.owner().as_ref() == Some(&one.id)));
    one.serve(80);
    ask(ip("127.0.0.1"), 12000).unwrap();
}

fn a_port_of_a_family_that_pods_lack_is_refused(mode: Mode) {
    let host = Host::with_subnets(mode, "10.88.0.0/24");
    let ipv6 = PortMapping { host_ip: Some(ip("::1")), ..tcp(12000, 80) };
    let error = Pod::new(1).attach_with(&host.network(), &[ipv6]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

fn a_port_of_the_ipv6_loopback_address_is_refused(mode: Mode) {
    let host = Host::new(mode);
    let loopback = |host_port| PortMapping { host_ip: Some(ip("::1")), ..tcp(host_port, 80) };
    let error = Pod::new(1).attach_with(&host.network(), &[loopback(12000)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains("on ::1 cannot lead to a pod"), "{error}");
    Pod::new(1).attach_with(&host.network(), &[loopback(0)]).unwrap();
}

fn two_pods_cannot_have_one_port(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let (one, two) = (Pod::new(1), Pod::new(2));
    one.attach_with(&network, &[tcp(12000, 80)]).unwrap();
    let error = two.attach_with(&network, &[tcp(12000, 80)]).unwrap_err();
    assert_eq!(error.to_string(), format!("host port 12000/tcp is taken by pod {}", one.id));
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let twice = two.attach_with(&network, &[tcp(13000, 80), tcp(13000, 81)]).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::InvalidArgument);
    network.detach(&one.id, None).unwrap();
    two.attach_with(&network, &[tcp(12000, 80)]).unwrap();
}

fn many_ports_fit_and_are_shown_as_nft_would(mode: Mode) {
    let host = Host::new(mode);
    let network = host.network();
    let pod = Pod::new(1);
    let ports: Vec<PortMapping> = (20000..23000).map(|port| tcp(port, port)).collect();
    pod.attach_with(&network, &ports).unwrap();
    assert_eq!(nft::elements().unwrap().len(), 6000);
    assert!(nft::elements().unwrap().iter().all(|element| element.owner().as_ref() == Some(&pod.id)));
    pod.serve(22999);
    ask(ip("127.0.0.1"), 22999).unwrap();
    network.detach(&pod.id, None).unwrap();
    assert_eq!(nft::elements().unwrap(), []);
}

in_both_modes! {
    a_host_port_leads_to_the_pod_from_everywhere,
    a_host_port_leads_to_the_pod_without_filtering_on_the_bridge,
    a_service_is_told_which_pod_asks,
    an_address_and_udp_can_be_asked_for,
    a_udp_sender_that_keeps_its_port_reaches_each_next_pod,
    what_others_still_send_reaches_no_pod_that_has_the_address_next,
    what_others_still_send_reaches_no_pod_after_a_restart,
    undoing_leaves_the_port_of_another_pod_alone,
    a_port_of_a_family_that_pods_lack_is_refused,
    a_port_of_the_ipv6_loopback_address_is_refused,
    two_pods_cannot_have_one_port,
    many_ports_fit_and_are_shown_as_nft_would,
}
