//! Port-forward: into pods over IPv4 and IPv6, many connections at a time, ports that refuse, large transfers.

use tonic::Code;
use wharf_cri_api::v1::NamespaceMode;

use crate::client::{Client, pod_security};
use crate::line::Farewell;
use crate::streams::Forward;
use crate::world::{run, until};

/// The port of a server that echoes its input to the end, by the address on which it listens.
const ECHO: &str = "tcpsvd -c 100 -b 100";

/// Starts servers in a pod, and returns when they listen.
pub(crate) async fn serve(client: &Client, pod: &str, name: &str, servers: &[(&str, u16, &str)]) -> String {
    let commands: Vec<String> = servers
        .iter()
        .map(|(address, port, program)| format!("{ECHO} {address} {port} {program} & "))
        .collect();
    let script = format!("{}wait", commands.concat());
    let id = client.launch(pod, &client.container(name, &script)).await.unwrap();
    for (_, port, _) in servers {
        let listens = format!("netstat -ltn | grep -q ':{port} '");
        until("the server listens", async || {
            (client.exec(&id, &listens, 10).await.unwrap().exit_code == 0).then_some(())
        })
        .await;
    }
    id
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at + seed) / 7 % 251).to_le_bytes()[0]).collect()
}

#[test]
fn both_families_and_refusals() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("families")).await.unwrap();
        let servers = [("127.0.0.1", 8001, "cat"), ("::1", 8002, "cat"), ("0.0.0.0", 8003, "cat")];
        serve(client, &pod, "main", &servers).await;
        let mut forward = Forward::open(client, &pod).await;
        let mut connections = Vec::new();
        for port in [8001, 9, 8002, 10, 8003, 8001] {
            let connection = forward.connect(port).await;
            forward.send(connection, format!("to {port}").as_bytes()).await;
            forward.finish(connection).await;
            connections.push((port, connection));
        }
        for (port, connection) in connections {
            let got = forward.over(connection).await;
            if port < 1000 {
                let why = got.unwrap_err();
                assert!(why.contains(&format!("port {port}")) && why.contains("refused"), "{why}");
            } else {
                assert_eq!(got.unwrap(), format!("to {port}").as_bytes());
            }
        }
    });
}

#[test]
fn a_pod_on_the_hosts_network_has_the_hosts_ports() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("host");
        let options = pod_security(&mut config).namespace_options.get_or_insert_default();
        options.network = NamespaceMode::Node.into();
        let pod = client.run(&config).await.unwrap();
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let mut forward = Forward::open(client, &pod).await;
        let connection = forward.connect(listener.local_addr().unwrap().port()).await;
        let (socket, _) = listener.accept().await.unwrap();
        let (mut reading, mut writing) = socket.into_split();
        let echo = tokio::spawn(async move { tokio::io::copy(&mut reading, &mut writing).await });
        forward.send(connection, b"hello").await;
        forward.finish(connection).await;
        assert_eq!(forward.over(connection).await.unwrap(), b"hello");
        assert_eq!(echo.await.unwrap().unwrap(), 5);
    });
}

#[test]
fn many_connections_each_have_their_own_data() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("many")).await.unwrap();
        serve(client, &pod, "main", &[("127.0.0.1", 8001, "cat"), ("::1", 8002, "cat")]).await;
        let sessions = (0..3).map(|session| async move {
            let mut forward = Forward::open(client, &pod_of(client).await).await;
            let mut connections = Vec::new();
            for number in 0..50 {
                let connection = forward.connect(if number % 5 == 4 { 8002 } else { 8001 }).await;
                let data = pattern(20_000 + number, session * 1000 + number * 17);
                connections.push((connection, data));
            }
            // All are open at the same time and take turns.
            for part in 0..2 {
                for (connection, data) in &connections {
                    let half = if part == 0 { &data[..9_000] } else { &data[9_000..] };
                    forward.send(*connection, half).await;
                }
            }
            for (connection, data) in &connections {
                assert!(forward.until_bytes(*connection, data.len()).await == *data);
                forward.finish(*connection).await;
            }
            for (connection, data) in connections {
                assert!(forward.over(connection).await.unwrap() == data);
            }
        });
        futures_util::future::join_all(sessions).await;
    });
}

async fn pod_of(client: &Client) -> String {
    client.pods().await.remove(0).id
}

#[test]
fn much_goes_both_ways() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("much")).await.unwrap();
        let count = "sh -c 'cat /blob; wc -c'";
        let id = serve(client, &pod, "main", &[("127.0.0.1", 8001, "cat"), ("127.0.0.1", 8002, count)]).await;
        client.output(&id, "seq 1 1000000 > /blob").await;
        let mut forward = Forward::open(client, &pod).await;
        let data = pattern(8 << 20, 0);
        let echoed = forward.connect(8001).await;
        forward.send(echoed, &data).await;
        forward.finish(echoed).await;
        assert!(forward.over(echoed).await.unwrap() == data);

        // The pod continues to write after the client has sent everything.
        let counted = forward.connect(8002).await;
        forward.send(counted, &data[..100_000]).await;
        forward.finish(counted).await;
        let got = String::from_utf8(forward.over(counted).await.unwrap()).unwrap();
        let blob: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
        assert!(got == blob + "100000\n", "{} bytes", got.len());
    });
}

#[test]
fn a_session_ends_with_its_client_or_its_pod() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("ends")).await.unwrap();
        let sleeps = "sh -c 'echo hello; cat; echo over > /over'";
        let id = serve(client, &pod, "main", &[("127.0.0.1", 8001, sleeps)]).await;
        let mut forward = Forward::open(client, &pod).await;
        let connection = forward.connect(8001).await;
        forward.until_bytes(connection, 6).await;
        forward.reset();
        until("the server sees the end", async || {
            (client.exec(&id, "cat /over", 10).await.unwrap().stdout == b"over\n").then_some(())
        })
        .await;

        let mut forward = Forward::open(client, &pod).await;
        let connection = forward.connect(8001).await;
        forward.until_bytes(connection, 6).await;
        client.stop_container(&id, 0).await.unwrap();
        forward.until_end(connection).await;
        forward.give_up(connection).await;
        assert_eq!(forward.over(connection).await.unwrap(), b"hello\n");
        let refused = forward.connect(8001).await;
        assert!(forward.over(refused).await.unwrap_err().contains("refused"));
        let url = client.port_forward_url(&pod).await.unwrap();
        client.stop(&pod).await.unwrap();
        assert_eq!(forward.ended().await, Some(Farewell::GoAway(0)), "the session ends with its pod");
        assert_eq!(client.port_forward_url(&pod).await.unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(client.port_forward_url("nobody").await.unwrap_err().code(), Code::NotFound);
        drop(url);
    });
}
