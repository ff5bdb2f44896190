//! Pods on the built-in network in both modes: with a strict firewall on the host, with a sender that never changes its
//! port, and across a change of the mode.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use wharf_cri_api::v1::{PortMapping, Protocol};

use crate::cni::{ip, node, page, server, set};
use crate::world::{World, run_on, until};

#[test]
fn routed_pods_are_reached_where_the_firewall_drops_what_is_forwarded() {
    pass_a_strict_firewall("routed", "wh+");
}

#[test]
fn pods_in_a_bridge_are_reached_where_the_firewall_drops_what_is_forwarded() {
    pass_a_strict_firewall("bridge", "wharf0");
}

fn pass_a_strict_firewall(mode: &str, links: &str) {
    let prepare = |dir: &Path| {
        set_mode(dir, mode);
        // With br_netfilter, bridged frames pass the firewall too, and it drops even what pods send each other.
        let strict = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP";
        drop(node(&format!("modprobe --quiet br_netfilter || true; {strict}")));
    };
    run_on(prepare, async |world| {
        let client = &world.client;
        let (web, one) = server(client, "web", 12080).await;
        let (other, two) = server(client, "other", 0).await;
        let (web_ip, other_ip) = (ip(client, &web).await, ip(client, &other).await);
        let ask =
            async |from, host: &str| client.output(from, &format!("wget -T 10 -qO- http://{host}")).await;
        assert_eq!(ask(&two, &web_ip).await, "I am web");
        assert_eq!(ask(&one, &other_ip).await, "I am other");
        for from in [&one, &two] {
            assert_eq!(ask(from, "10.213.0.1:12080").await, "I am web");
        }
        assert!(page("127.0.0.1", 12080).ends_with("I am web\n"));
        let rules = node("iptables -S FORWARD");
        for rule in [format!("-A FORWARD -i {links} "), format!("-A FORWARD -o {links} ")] {
            assert!(rules.contains(&rule), "{rules}");
        }
    });
}

fn set_mode(dir: &Path, mode: &str) {
    set(dir, &format!("mode = \"{mode}\""));
}

#[test]
fn pods_of_a_bridge_live_on_when_those_to_come_are_routed() {
    change_mode("bridge", "routed");
}

#[test]
fn routed_pods_live_on_when_those_to_come_join_a_bridge() {
    change_mode("routed", "bridge");
}

fn change_mode(before: &str, after: &str) {
    run_on(
        |dir| set_mode(dir, before),
        async |world| {
            let (old, in_old) = server(&world.client, "old", 12080).await;
            world.daemon.end().await;
            set_mode(&world.dir, after);
            world.start_again().await;
            let (new, in_new) = server(&world.client, "new", 12081).await;
            let client = &world.client;
            let (old_ip, new_ip) = (ip(client, &old).await, ip(client, &new).await);
            let ask =
                async |from, host: &str| client.output(from, &format!("wget -T 10 -qO- http://{host}")).await;
            assert_eq!(ask(&in_old, &new_ip).await, "I am new");
            assert_eq!(ask(&in_new, &old_ip).await, "I am old");
            for from in [&in_old, &in_new] {
                assert_eq!(ask(from, "10.213.0.1:12080").await, "I am old");
                assert_eq!(ask(from, "10.213.0.1:12081").await, "I am new");
            }
            assert!(page("127.0.0.1", 12080).ends_with("I am old\n"));
            assert!(page("127.0.0.1", 12081).ends_with("I am new\n"));
        },
    );
}

#[test]
fn a_udp_sender_that_keeps_its_port_reaches_the_next_routed_pod() {
    run_on(|dir| set_mode(dir, "routed"), keep_a_port);
}

#[test]
fn a_udp_sender_that_keeps_its_port_reaches_the_next_pod_in_a_bridge() {
    run_on(|dir| set_mode(dir, "bridge"), keep_a_port);
}

async fn keep_a_port(world: &mut World) {
    let client = &world.client;
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let port: SocketAddr = "127.0.0.1:12053".parse().unwrap();
    sender.send_to(b"is there a pod?", port).unwrap();
    for name in ["first", "second"] {
        let mut config = client.pod(name);
        config.port_mappings.push(PortMapping {
            protocol: Protocol::Udp.into(),
            container_port: 53,
            host_port: port.port().into(),
            ..PortMapping::default()
        });
        let pod = client.run(&config).await.unwrap();
        let script = format!("echo I am {name} >/name; while :; do nc -u -l -p 53 -w 1 </name; done");
        client.launch(&pod, &client.container("main", &script)).await.unwrap();
        let answer = async || {
            sender.send_to(b"?", port).ok()?;
            let mut answer = [0; 100];
            // An earlier packet may have been refused, which shows as an error here.
            let (len, _peer) = sender.recv_from(&mut answer).ok()?;
            (answer[..len] == *format!("I am {name}\n").as_bytes()).then_some(())
        };
        until(&format!("{name} answers"), answer).await;
        client.down(&pod).await.unwrap();
    }
}
