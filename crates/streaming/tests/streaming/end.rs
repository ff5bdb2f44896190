//! A client that leaves, in every state: everything is freed.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use wharf_streaming::Config;

use crate::rig::{ALL, Rig, soon};
use crate::spdy::{Carrier, Event, Spdy, data};
use crate::websocket::{Message, WebSocket};

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn leaving_abandons_a_silent_process() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let process = rig.process().await;
    drop(client);
    process.abandoned().await;

    let client = WebSocket::connect(&rig.attach(ALL), V4).await;
    let process = rig.process().await;
    drop(client);
    process.abandoned().await;
}

#[tokio::test]
async fn leaving_abandons_a_process_that_is_being_started() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.slow_exec(), V4).await;
    client.open_all(&["error", "stdout"]).await;
    let process = rig.process().await;
    drop(client);
    process.abandoned().await;
}

#[tokio::test]
async fn leaving_abandons_a_process_in_the_middle_of_its_output() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let mut process = rig.process().await;
    let mut stdout = process.stdout.take().unwrap();
    let flood =
        tokio::spawn(async move { while crate::rig::write(&mut stdout, &[0; 65536]).await.is_ok() {} });
    assert!(matches!(client.next().await, Event::Data(_)));
    drop(client);
    soon(flood).await.unwrap();
}

#[tokio::test]
async fn closing_a_websocket_is_answered() {
    let mut rig = Rig::new().await;
    let mut client = WebSocket::connect(&rig.exec(ALL), V4).await;
    let process = rig.process().await;
    assert_eq!(client.next().await, Message::Data(2, vec![1]));
    client.send(8, &1000_u16.to_be_bytes()).await;
    assert_eq!(client.next().await, Message::Close(1000));
    process.abandoned().await;
}

#[tokio::test]
async fn leaving_before_the_streams_are_there_frees_the_session() {
    let rig = Rig::with(Config { sessions: 1, ..Config::default() }).await;
    for _ in 0..3 {
        let mut client = Spdy::connect(&retry(&rig).await, V4).await;
        client.open_all(&["error"]).await;
    }
}

/// A URL that is not refused for lack of room: the session before it ends in its own time.
async fn retry(rig: &Rig) -> String {
    let probe = async {
        while crate::http::request("GET", &format!("{}/x/y", rig.urls.base()), "", b"").await.status()
            == "503"
        {}
    };
    soon(probe).await;
    rig.exec(ALL)
}

#[tokio::test]
async fn silence_ends_a_session() {
    let mut rig = Rig::with(Config { idle: Duration::from_millis(500), ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let process = rig.process().await;
    assert_eq!(client.rest().await, [Event::GoAway(2)]);
    process.abandoned().await;
    let mut client = WebSocket::connect(&rig.exec(ALL), V4).await;
    assert_eq!(client.next().await, Message::Data(2, vec![1]));
    assert_eq!(client.next().await, Message::Close(1011));
}

#[tokio::test]
async fn leaving_with_unread_input_abandons_the_process() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let mut process = rig.process().await;
    // More than the process takes, but no more than the buffers on the way do.
    client.write(&data(ids[1], 0, &vec![b'x'; 1 << 20])).await;
    let mut some = [0; 10];
    soon(process.stdin.read_exact(&mut some)).await.unwrap();
    drop(client);
    process.abandoned().await;

    let mut client = WebSocket::connect(&rig.exec(ALL), V4).await;
    let process = rig.process().await;
    client.send(2, &vec![0; 1 << 20]).await;
    drop(client);
    process.abandoned().await;

    let socket = WebSocket::connect(&rig.port_forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let mut client = Spdy::over(Carrier::Tunnel(socket));
    client.open(&[("streamType", "error"), ("port", &port)]).await;
    let data_stream = client.open(&[("streamType", "data"), ("port", &port)]).await;
    let (mut pod, _) = soon(listener.accept()).await.unwrap();
    client.write(&data(data_stream, 0, &vec![b'x'; 8 << 20])).await;
    drop(client);
    // Everything that is still on its way to the pod, and then the end.
    let end = async { while pod.read(&mut vec![0; 1 << 16]).await.is_ok_and(|read| read > 0) {} };
    soon(end).await;
}

#[tokio::test]
async fn a_client_whose_input_is_stuck_hears_that_the_connection_lives() {
    let mut rig = Rig::with(Config { heartbeat: Duration::from_millis(50), ..Config::default() }).await;
    let mut client = WebSocket::connect(&rig.exec(ALL), V4).await;
    let _process = rig.process().await;
    assert_eq!(client.next().await, Message::Data(2, vec![1]));
    client.send(2, &vec![0; 1 << 20]).await;
    for _ in 0..3 {
        assert_eq!(client.next().await, Message::Data(10, vec![]));
    }
}

#[tokio::test]
async fn a_server_that_ends_tells_its_clients() {
    let mut rig = Rig::new().await;
    let mut spdy = Spdy::connect(&rig.exec(ALL), V4).await;
    let ids = spdy.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let mut first = rig.process().await;
    let mut websocket = WebSocket::connect(&rig.attach(ALL), V4).await;
    let second = rig.process().await;
    let mut forward = Spdy::connect(&rig.port_forward(&[]), "portforward.k8s.io").await;
    assert_eq!(websocket.next().await, Message::Data(2, vec![1]));
    first.print(b"last words").await;
    rig.end();
    assert_eq!(forward.rest().await, [Event::GoAway(2)]);
    assert_eq!(spdy.rest().await.last(), Some(&Event::GoAway(0)));
    assert_eq!(spdy.text(ids[2]), "last words");
    assert!(spdy.text(ids[0]).contains("is being stopped or restarted"), "{}", spdy.text(ids[0]));
    let Message::Data(2, status) = websocket.next().await else { panic!("no status") };
    assert!(String::from_utf8_lossy(&status[1..]).contains("is being stopped or restarted"));
    assert_eq!(websocket.next().await, Message::Close(1000));
    drop((spdy, websocket));
    first.abandoned().await;
    second.abandoned().await;
}
