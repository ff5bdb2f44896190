//! Pods on the built-in bridge, on a machine whose firewall is strict, and with senders that never change their port.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use wharf_cri_api::v1::{PortMapping, Protocol};

use crate::cni::{ip, node, page, server};
use crate::world::{run, run_on, until};

#[test]
fn pods_are_reached_where_the_firewall_drops_what_is_forwarded() {
    let prepare = |_dir: &std::path::Path| {
        // Where bridged frames pass the firewall too, it drops even what pods send each other.
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
        assert!(rules.contains("-A FORWARD -i wharf0") && rules.contains("-A FORWARD -o wharf0"), "{rules}");
    });
}

#[test]
fn a_udp_sender_that_keeps_its_port_reaches_the_next_pod() {
    run(async |world| {
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
                // An earlier packet may have been refused.
                let (len, _peer) = sender.recv_from(&mut answer).ok()?;
                (answer[..len] == *format!("I am {name}\n").as_bytes()).then_some(())
            };
            until(&format!("{name} answers"), answer).await;
            client.down(&pod).await.unwrap();
        }
    });
}
