//! Port-forward.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use wharf_streaming::Config;

use crate::rig::{Rig, STUCK_PORT, soon};
use crate::spdy::{Carrier, Event, Spdy};
use crate::websocket::{Message, WebSocket};

const FORWARD: &str = "portforward.k8s.io";

/// A server in the pod that answers each connection with its input, doubled, once the client has sent everything.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(double(socket));
        }
    });
    port
}

async fn double(mut socket: TcpStream) {
    let mut got = Vec::new();
    socket.read_to_end(&mut got).await.unwrap();
    socket.write_all(&got).await.unwrap();
    socket.write_all(&got).await.unwrap();
}

/// A port on which nothing listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Opens a pair of streams: the error stream and the data stream.
async fn pair(client: &mut Spdy, port: u16, request: &str) -> (u32, u32) {
    let port = port.to_string();
    let headers = |kind| [("streamType", kind), ("port", port.as_str()), ("requestID", request)];
    let error = client.open(&headers("error")).await;
    (error, client.open(&headers("data")).await)
}

async fn many_and_a_bad_one(mut client: Spdy) {
    let (good, bad) = (echo().await, closed_port().await);
    let mut pairs = Vec::new();
    for request in 0..50 {
        let port = if request == 20 { bad } else { good };
        let (error, data) = pair(&mut client, port, &request.to_string()).await;
        client.send(data, format!("{request},").as_bytes()).await;
        client.fin(error).await;
        pairs.push((request, error, data));
    }
    for (_, _, data) in &pairs {
        client.fin(*data).await;
    }
    let mut open = pairs.len();
    while open > 0 {
        match client.next().await {
            // The error stream of the bad pair ends as well, but its data stream is reset.
            Event::Fin(id) if pairs.iter().any(|(_, error, _)| *error == id) => open -= 1,
            Event::Eof | Event::GoAway(_) => panic!("the session ended"),
            _ => {}
        }
    }
    for (request, error, data) in pairs {
        if request == 20 {
            assert_eq!(
                client.text(error),
                format!("cannot forward to port {bad}: Connection refused (os error 111)")
            );
            assert_eq!(client.text(data), "");
        } else {
            assert_eq!(
                (client.text(error), client.text(data)),
                (String::new(), format!("{request},{request},"))
            );
        }
    }
}

#[tokio::test]
async fn many_connections_share_a_session() {
    let rig = Rig::new().await;
    many_and_a_bad_one(Spdy::connect(&rig.port_forward(&[]), FORWARD).await).await;
}

#[tokio::test]
async fn connections_that_are_given_up_at_once_are_begun_within_a_bound() {
    const BOUND: usize = 128;
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    for request in 0..3 * BOUND {
        let (error, data) = pair(&mut client, STUCK_PORT, &request.to_string()).await;
        client.reset(error).await;
        client.reset(data).await;
    }
    soon(async {
        while rig.stuck() < BOUND {
            tokio::task::yield_now().await
        }
    })
    .await;
    // Two round trips: by then all streams have been accepted and reset.
    for id in [1, 3] {
        client.ping(id).await;
        while client.next().await != Event::Ping(id) {}
    }
    assert_eq!(rig.stuck(), BOUND);
}

#[tokio::test]
async fn a_session_leaves_as_many_connections_to_others_as_it_has() {
    let rig = Rig::with(Config { forwards: 4, ..Config::default() }).await;
    let (mut greedy, mut modest) = (session(&rig).await, session(&rig).await);
    let mut pairs = Vec::new();
    for request in ["0", "1", "2"] {
        pairs.push(pair(&mut greedy, STUCK_PORT, request).await);
    }
    let (error, _data) = pairs[2];
    while greedy.next().await != Event::Fin(error) {}
    let why = "cannot forward to port 1: as many connections are forwarded as may be at a time";
    assert_eq!(greedy.text(error), why);
    assert_eq!(rig.stuck(), 2);
    let (_error, data) = pair(&mut modest, echo().await, "0").await;
    modest.send(data, b"x").await;
    modest.fin(data).await;
    while modest.next().await != Event::Fin(data) {}
    assert_eq!(modest.text(data), "xx");
}

async fn session(rig: &Rig) -> Spdy {
    Spdy::connect(&rig.port_forward(&[]), FORWARD).await
}

#[tokio::test]
async fn spdy_goes_through_a_websocket() {
    let rig = Rig::new().await;
    let socket = WebSocket::connect(&rig.port_forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
    many_and_a_bad_one(Spdy::over(Carrier::Tunnel(socket))).await;
}

#[tokio::test]
async fn streams_without_sense_are_reset() {
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    for headers in [
        [("streamType", "error"), ("port", "0")],
        [("streamType", "data"), ("port", "65536")],
        [("streamType", "stdin"), ("port", "80")],
        [("port", "80"), ("x", "y")],
    ] {
        let id = client.open(&headers).await;
        assert_eq!(client.next().await, Event::Reset(id, 1));
    }
    // The blocks of the refused streams were inflated: a good one can still be parsed, with pairs matched by order
    // alone.
    let port = echo().await.to_string();
    let error = client.open(&[("streamType", "error"), ("port", &port)]).await;
    let data = client.open(&[("streamType", "data"), ("port", &port)]).await;
    client.fin(data).await;
    let mut events = Vec::new();
    while !events.contains(&Event::Fin(error)) {
        events.push(client.next().await);
    }
    assert_eq!(events, [Event::Reply(error), Event::Reply(data), Event::Fin(data), Event::Fin(error)]);
}

#[tokio::test]
async fn half_a_pair_is_given_up() {
    let rig = Rig::with(Config { creation: Duration::from_millis(50), ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let error = client.open(&[("streamType", "error"), ("port", "80"), ("requestID", "a")]).await;
    let data = client.open(&[("streamType", "data"), ("port", "80"), ("requestID", "b")]).await;
    let mut events = Vec::new();
    while !(events.contains(&Event::Fin(error)) && events.contains(&Event::Reset(data, 5))) {
        events.push(client.next().await);
    }
    assert!(client.text(error).contains("did not come in time"));
}

#[tokio::test]
async fn two_streams_of_one_kind_are_given_up() {
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let headers = [("streamType", "error"), ("port", "80"), ("requestID", "a")];
    let ids = [client.open(&headers).await, client.open(&headers).await];
    let mut events = Vec::new();
    while !events.iter().any(|event| ids.iter().any(|id| *event == Event::Fin(*id))) {
        events.push(client.next().await);
    }
    assert!(
        client.text(ids[1]).contains("two streams of one kind")
            || client.text(ids[0]).contains("two streams")
    );
}

#[tokio::test]
async fn a_reset_closes_the_connection_into_the_pod() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let (_, data) = pair(&mut client, listener.local_addr().unwrap().port(), "a").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    client.reset(data).await;
    assert_eq!(soon(socket.read(&mut [0; 1])).await.unwrap_or(0), 0);
    // So does a client that leaves.
    let (_, _data) = pair(&mut client, listener.local_addr().unwrap().port(), "b").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    drop(client);
    assert_eq!(soon(socket.read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_pod_that_does_not_read_hurts_only_its_own_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::with(Config { stall: Duration::from_millis(100), ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let (_, stuck) = pair(&mut client, listener.local_addr().unwrap().port(), "stuck").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    // More than all the buffers on the way hold.
    client.send(stuck, &vec![0; (1 << 24) - 1]).await;
    let (_, good) = pair(&mut client, echo().await, "good").await;
    client.send(good, b"on").await;
    client.fin(good).await;
    let mut events = Vec::new();
    while !events.contains(&Event::Fin(good)) {
        events.push(client.next().await);
    }
    assert!(events.contains(&Event::Reset(stuck, 7)), "{events:?}");
    assert_eq!(client.text(good), "onon");
    soon(socket.read_to_end(&mut Vec::new())).await.unwrap();
}

/// A listener in the pod whose connections take few bytes that nobody reads.
fn reluctant() -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(1).unwrap()
}

#[tokio::test]
async fn what_a_stopped_pod_does_not_read_waits_and_holds_up_nobody() {
    let listener = reluctant();
    let rig = Rig::with(Config { stall: Duration::MAX, ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let (_, stopped) = pair(&mut client, listener.local_addr().unwrap().port(), "stopped").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    let upload: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    client.send(stopped, &upload).await;
    client.fin(stopped).await;
    let (_, good) = pair(&mut client, echo().await, "good").await;
    client.send(good, b"on").await;
    client.fin(good).await;
    while client.next().await != Event::Fin(good) {}
    assert_eq!(client.text(good), "onon");
    let mut got = Vec::new();
    soon(socket.read_to_end(&mut got)).await.unwrap();
    assert!(got == upload, "{} of {} bytes", got.len(), upload.len());
}

#[tokio::test]
async fn a_client_that_waits_for_the_end_before_it_ends_its_direction_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let (error, data) = pair(&mut client, listener.local_addr().unwrap().port(), "a").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    client.send(data, b"GET / HTTP/1.0").await;
    soon(socket.read_exact(&mut [0; 14])).await.unwrap();
    socket.write_all(b"answer").await.unwrap();
    drop(socket);
    while client.next().await != Event::Fin(error) {}
    assert_eq!((client.text(data), client.text(error)), ("answer".to_owned(), String::new()));
}

#[tokio::test]
async fn a_session_ends_with_its_pod_and_what_the_pod_wrote_arrives() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rig = Rig::new().await;
    let mut idle = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), FORWARD).await;
    let (error, data) = pair(&mut client, listener.local_addr().unwrap().port(), "a").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    rig.end_pod();
    assert_eq!(idle.next().await, Event::GoAway(0));
    socket.write_all(b"last").await.unwrap();
    drop(socket);
    let mut events = Vec::new();
    while !events.contains(&Event::GoAway(0)) {
        events.push(client.next().await);
    }
    assert!(events.contains(&Event::Fin(error)), "{events:?}");
    assert_eq!(client.text(data), "last");
}

#[tokio::test]
async fn older_websockets_have_two_channels_for_each_port() {
    let rig = Rig::new().await;
    for protocol in ["", "v4.channel.k8s.io"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (good, bad) = (listener.local_addr().unwrap().port(), closed_port().await);
        let mut client = WebSocket::connect(&rig.port_forward(&[good, bad]), protocol).await;
        let mut expected = Vec::new();
        for (channel, port) in [(0, good), (1, good), (2, bad), (3, bad)] {
            expected.push(Message::Data(2, [&[channel], port.to_le_bytes().as_slice()].concat()));
        }
        let mut refusal =
            format!("cannot forward to port {bad}: Connection refused (os error 111)").into_bytes();
        refusal.insert(0, 3);
        expected.push(Message::Data(2, refusal));
        let mut got = Vec::new();
        while got.len() < expected.len() {
            got.push(client.next().await);
        }
        assert!(expected.iter().all(|message| got.contains(message)), "{got:?}");
        let (mut socket, _) = soon(listener.accept()).await.unwrap();
        client.send(2, b"\0ping").await;
        let mut text = [0; 4];
        soon(socket.read_exact(&mut text)).await.unwrap();
        socket.write_all(&text).await.unwrap();
        assert_eq!(client.next().await, Message::Data(2, b"\0ping".to_vec()));
        drop(socket);
        assert_eq!(client.next().await, Message::Close(1000));
    }
}
