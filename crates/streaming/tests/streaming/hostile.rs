//! Hostile clients: the connection ends with a reason and within limits, and nothing else suffers.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wharf_streaming::Config;
use wharf_types::Exit;

use crate::http::request;
use crate::rig::{ALL, OUTPUT, Rig, soon};
use crate::spdy::{Carrier, Event, Spdy, control, data};
use crate::websocket::{Message, WebSocket, frame};

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn malformed_frames_end_the_session() {
    let mut rig = Rig::new().await;
    let mut bystander = Spdy::connect(&rig.exec(OUTPUT), V4).await;
    let ids = bystander.open_all(&["error", "stdout"]).await;
    let mut process = rig.process().await;
    for bad in [
        data(0, 0, b"stream 0"),
        control(6, b"five!"),
        control(1, b"short"),
        control(1, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, b'n', b'o', b' ', b'z', b'l', b'i', b'b']),
        vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
        vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
    ] {
        let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
        client.write(&bad).await;
        assert_eq!(client.rest().await, [Event::GoAway(1)], "{bad:?}");
    }
    for (bad, code) in [
        (vec![0x82, 1, 0], 1002),
        (frame(0x83, b""), 1002),
        (frame(0xc2, b"\0"), 1002),
        (frame(0x09, b""), 1002),
        (vec![0x89, 0xfe, 1, 0], 1002),
    ] {
        let mut client = WebSocket::connect(&rig.exec(OUTPUT), V4).await;
        let _process = rig.process().await;
        assert_eq!(client.next().await, Message::Data(2, vec![1]));
        client.stream.write_all(&bad).await.unwrap();
        assert_eq!(client.next().await, Message::Close(code), "{bad:?}");
    }
    let mut client = WebSocket::connect(&rig.exec(ALL), "base64.channel.k8s.io").await;
    assert_eq!(client.next().await, Message::Data(1, b"1".to_vec()));
    client.send(1, b"0***").await;
    assert_eq!(client.next().await, Message::Close(1007));
    process.print(b"untouched").await;
    process.exit(Exit::Code(0));
    bystander.rest().await;
    assert_eq!(bystander.text(ids[1]), "untouched");
}

#[tokio::test]
async fn a_bomb_of_headers_ends_the_session() {
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    client.open(&[("streamType", "error"), ("bomb", &"0".repeat(8 << 20))]).await;
    assert_eq!(client.rest().await, [Event::GoAway(1)]);
}

#[tokio::test]
async fn a_hundred_thousand_streams_are_too_many() {
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.port_forward(&[]), "portforward.k8s.io").await;
    let mut burst = Vec::new();
    for request in 0..100_000 {
        let request = request.to_string();
        let headers = [("streamType", "error"), ("port", "1"), ("requestID", request.as_str())];
        burst.extend(client.syn_stream(&headers).1);
    }
    let Carrier::Plain(stream) = client.carrier else { unreachable!() };
    let (reading, mut writing) = stream.into_split();
    let flood = tokio::spawn(async move { writing.write_all(&burst).await.map(|()| writing) });
    let (mut accepted, mut refused) = (0, 0);
    let mut reading = tokio::io::BufReader::new(reading);
    let farewell = loop {
        let head = soon(reading.read_u64()).await.unwrap();
        let mut payload = vec![0; usize::try_from(head & 0xff_ffff).unwrap()];
        soon(reading.read_exact(&mut payload)).await.unwrap();
        match head >> 32 {
            0x8003_0002 => accepted += 1,
            0x8003_0003 => {
                assert_eq!(payload[4..], 3_u32.to_be_bytes(), "refused");
                refused += 1;
            }
            0x8003_0007 => break payload,
            other => panic!("{other:#x}"),
        }
    };
    assert_eq!((accepted, refused), (1024, 1000));
    assert_eq!(farewell[4..], 1_u32.to_be_bytes(), "against the protocol");
    flood.await.unwrap().ok();
}

#[tokio::test]
async fn ids_out_of_order_are_reset() {
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    for (id, answer) in
        [(5, Event::Reply(5)), (3, Event::Reset(3, 1)), (8, Event::Reset(8, 1)), (7, Event::Reply(7))]
    {
        let kind = if id == 5 { "error" } else { "stdin" };
        let frame = client.syn_stream_as(id, &[("streamType", kind)]);
        client.write(&frame).await;
        assert_eq!(client.next().await, answer);
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off() {
    let mut rig = Rig::with(Config { write: Duration::from_millis(200), ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.exec(OUTPUT), V4).await;
    client.open_all(&["error", "stdout"]).await;
    let mut process = rig.process().await;
    let mut stdout = process.stdout.take().unwrap();
    // This ends when the server has given up on the client and closed the pipe.
    soon(async { while crate::rig::write(&mut stdout, &[0; 65536]).await.is_ok() {} }).await;
}

/// The clock jumps ahead when nothing else happens.
#[tokio::test(start_paused = true)]
async fn a_client_that_never_asks_is_let_go() {
    let rig = Rig::new().await;
    let address = rig.urls.base().strip_prefix("http://").unwrap();
    for beginning in ["", "POST /exec/", "\u{3} no HTTP at all"] {
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(beginning.as_bytes()).await.unwrap();
        assert_eq!(soon(client.read(&mut [0; 16])).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn silent_clients_keep_nobody_out() {
    let mut rig = Rig::new().await;
    let address = rig.urls.base().strip_prefix("http://").unwrap().to_owned();
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    let mut client = Spdy::connect(&rig.exec(OUTPUT), V4).await;
    client.open_all(&["error", "stdout"]).await;
    rig.process().await.exit(wharf_types::Exit::Code(0));
    assert_eq!(client.rest().await.last(), Some(&Event::GoAway(0)));
    assert_eq!(soon(silent[0].read(&mut [0; 16])).await.unwrap_or(0), 0, "who waited longest was let go");
}

/// The clock stands still, because there is always something to do, so nobody is let go for the time that has passed.
#[tokio::test(start_paused = true)]
async fn refused_clients_keep_nobody_out() {
    let rig = Rig::new().await;
    let busy = tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let nowhere = format!("{}/exec/nowhere", rig.urls.base());
    let mut refused = Vec::new();
    for _ in 0..1100 {
        let answer = request("POST", &nowhere, "", b"").await;
        assert_eq!(answer.status(), "404");
        refused.push(answer.stream);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_open(&refused[0]) {
        assert!(Instant::now() < deadline, "who was refused first has to make room for the last ones");
        tokio::task::yield_now().await;
    }
    busy.abort();
}

/// Whether the server still accepts bytes, even if it sends nothing more.
fn is_open(client: &TcpStream) -> bool {
    client.try_write(b"?").is_ok_and(|written| written > 0)
}
