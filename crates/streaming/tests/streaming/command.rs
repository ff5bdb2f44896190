//! Exec and attach.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncReadExt as _;
use wharf_streaming::Config;
use wharf_types::{Exit, TerminalSize};

use crate::rig::{ALL, OUTPUT, Rig, TERMINAL, soon};
use crate::spdy::{Event, Spdy, data};
use crate::websocket::{Message, WebSocket, frame};

const V4: &str = "v4.channel.k8s.io";

/// More than all the buffers between a process and its client hold.
const LARGE: usize = 20 << 20;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 251).to_le_bytes()[0]).collect()
}

#[tokio::test]
async fn all_output_arrives_before_the_status() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let mut process = rig.process().await;
    let play = async {
        process.print(&pattern(LARGE)).await;
        crate::rig::write(process.stderr.as_mut().unwrap(), b"oops").await.unwrap();
        process.exit(Exit::Code(0));
    };
    let (events, ()) = tokio::join!(client.rest(), play);
    assert!(client.received[&ids[2]] == pattern(LARGE), "{} bytes", client.received[&ids[2]].len());
    assert_eq!(client.text(ids[3]), "oops");
    assert_eq!(client.text(ids[0]), r#"{"status":"Success"}"#);
    let at = |event| events.iter().rposition(|known| *known == event).unwrap_or_else(|| panic!("{event:?}"));
    let order = [
        at(Event::Data(ids[2])).max(at(Event::Data(ids[3]))),
        at(Event::Data(ids[0])),
        at(Event::Fin(ids[0])),
        at(Event::Fin(ids[2])).min(at(Event::Fin(ids[3]))).min(at(Event::Fin(ids[1]))),
        at(Event::GoAway(0)),
    ];
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(events.len() - 1, at(Event::GoAway(0)));
}

#[tokio::test]
async fn every_version_has_its_own_form_of_the_exit() {
    let mut rig = Rig::new().await;
    for version in ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", V4] {
        for code in [0, 1, 255] {
            let mut client = Spdy::connect(&rig.exec(OUTPUT), version).await;
            let ids = client.open_all(&["error", "stdout"]).await;
            rig.process().await.exit(Exit::Code(code));
            client.rest().await;
            let status = client.text(ids[0]);
            match (version, code) {
                (V4, 0) => assert_eq!(status, r#"{"status":"Success"}"#),
                (V4, code) => {
                    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                    assert_eq!(status["reason"], "NonZeroExitCode");
                    assert_eq!(status["details"]["causes"][0]["message"], code.to_string());
                }
                (_, 0) => assert_eq!(status, ""),
                (_, code) => assert!(status.ends_with(&format!("exit status {code}")), "{status}"),
            }
        }
    }
}

#[tokio::test]
async fn a_command_that_cannot_start_says_why() {
    let rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.bad_exec(), V4).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    client.rest().await;
    let status: serde_json::Value = serde_json::from_str(&client.text(ids[0])).unwrap();
    assert_eq!((&status["reason"], &status["code"]), (&"InternalError".into(), &500.into()));
    assert_eq!(status["message"], "Internal error occurred: there is no command");
}

#[tokio::test]
async fn large_input_and_its_end_arrive() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let mut process = rig.process().await;
    let mut got = Vec::new();
    let sent = pattern(LARGE);
    let send = async {
        client.send(ids[1], &sent[..LARGE / 2]).await;
        client.write(&data(ids[1], 1, &sent[LARGE / 2..])).await;
    };
    let (read, ()) = tokio::join!(soon(process.stdin.read_to_end(&mut got)), send);
    assert!(read.unwrap() == LARGE && got == sent);
    // The input has ended; the output has not.
    process.print(b"late").await;
    process.exit(Exit::Code(0));
    client.rest().await;
    assert_eq!(client.text(ids[2]), "late");
}

#[tokio::test]
async fn input_that_came_with_the_streams_is_not_lost() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    let mut burst = Vec::new();
    let mut ids = Vec::new();
    for kind in ["stdin", "stderr", "stdout"] {
        let (id, frame) = client.syn_stream(&[("streamtype", kind)]);
        burst.extend(frame);
        ids.push(id);
    }
    burst.extend(data(ids[0], 1, b"early"));
    burst.extend(client.syn_stream(&[("streamtype", "error")]).1);
    client.write(&burst).await;
    let mut process = rig.process().await;
    let mut text = String::new();
    soon(process.stdin.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "early");
}

#[tokio::test]
async fn unknown_streams_are_nothing_and_late_ones_are_refused() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(OUTPUT), V4).await;
    let odd = client.open(&[("streamType", "novel")]).await;
    assert_eq!([client.next().await, client.next().await], [Event::Reply(odd), Event::Fin(odd)]);
    let ids = client.open_all(&["error", "stdout"]).await;
    let mut process = rig.process().await;
    let late = client.open(&[("streamType", "stdin")]).await;
    assert_eq!(client.next().await, Event::Reset(late, 3));
    client.ping(5).await;
    assert_eq!(client.next().await, Event::Ping(5));
    process.print(b"fine").await;
    process.exit(Exit::Code(0));
    client.rest().await;
    assert_eq!(client.text(ids[1]), "fine");
}

#[tokio::test]
async fn a_terminal_has_its_size_from_the_first_byte_on() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(TERMINAL), V4).await;
    // The sizes arrive before the last stream is open, and so before the process exists.
    let resize = client.open_all(&["error", "stdin", "resize"]).await[2];
    client.send(resize, b"{\"Width\":1,\"Height\":1}\n{\"Width\":100,\"Hei").await;
    client.send(resize, b"ght\":40}\n").await;
    client.ping(1).await;
    assert_eq!(client.next().await, Event::Ping(1));
    client.open(&[("streamType", "stdout")]).await;
    let mut process = rig.process().await;
    assert_eq!(process.size, Some(TerminalSize { width: 100, height: 40 }));
    assert_eq!(soon(process.sizes.recv()).await, Some(TerminalSize { width: 100, height: 40 }));
    client.send(resize, b"{\"Width\":80,\"Height\":24}").await;
    assert_eq!(soon(process.sizes.recv()).await, Some(TerminalSize { width: 80, height: 24 }));
    client.send(resize, b"nonsense").await;
    process.print(b"goes on").await;
    process.exit(Exit::Code(0));
    client.rest().await;
    assert_eq!(client.text(7 + 2), "");
    assert_eq!(client.text(7), "goes on");
}

#[tokio::test]
async fn a_command_waits_for_the_size_but_not_for_ever() {
    for (patience, size) in
        [(Duration::from_mins(1), Some(TerminalSize { width: 80, height: 24 })), (Duration::ZERO, None)]
    {
        let mut rig = Rig::with(Config { size: patience, ..Config::default() }).await;
        let mut client = Spdy::connect(&rig.exec(TERMINAL), V4).await;
        let ids = client.open_all(&["error", "stdin", "stdout", "resize"]).await;
        if size.is_some() {
            client.send(ids[3], b"{\"Width\":80,\"Height\":24}").await;
        }
        assert_eq!(rig.process().await.size, size);

        let mut client = WebSocket::connect(&rig.exec(TERMINAL), V4).await;
        if size.is_some() {
            client.send(2, b"\x04{\"Width\":80,\"Height\":24}").await;
        }
        assert_eq!(rig.process().await.size, size);
    }
}

#[tokio::test]
async fn what_has_no_size_does_not_wait_for_it() {
    let mut rig = Rig::with(Config { size: Duration::from_mins(1), ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.exec(ALL), V4).await;
    client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    rig.process().await.exit(Exit::Code(0));
    let _attached = WebSocket::connect(&rig.attach(TERMINAL), V4).await;
    rig.process().await;
    // The client has sent everything that it has to send.
    let mut client = Spdy::connect(&rig.exec(TERMINAL), V4).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "resize"]).await;
    client.fin(ids[3]).await;
    rig.process().await;
}

#[tokio::test]
async fn version_two_has_no_resize() {
    let mut rig = Rig::with(Config { size: Duration::from_mins(1), ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.exec(TERMINAL), "v2.channel.k8s.io").await;
    client.open_all(&["error", "stdin", "stdout"]).await;
    rig.process().await.exit(Exit::Code(0));
    client.rest().await;
}

#[tokio::test]
async fn a_descendant_does_not_hold_the_session() {
    let mut rig = Rig::new().await;
    let mut client = Spdy::connect(&rig.exec(OUTPUT), V4).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    let mut process = rig.process().await;
    process.print(b"last words").await;
    // It keeps the pipe open and goes on writing as long as it can.
    let mut descendant = process.stdout.take().unwrap();
    let writes =
        tokio::spawn(async move { while crate::rig::write(&mut descendant, &[b'y'; 4096]).await.is_ok() {} });
    process.exit(Exit::Code(0));
    client.rest().await;
    assert!(client.text(ids[1]).starts_with("last words"));
    assert_eq!(client.text(ids[0]), r#"{"status":"Success"}"#);
    soon(writes).await.unwrap();
}

#[tokio::test]
async fn streams_that_do_not_come_end_the_session() {
    let rig = Rig::with(Config { creation: Duration::from_millis(500), ..Config::default() }).await;
    let mut client = Spdy::connect(&rig.exec(OUTPUT), V4).await;
    client.open_all(&["error"]).await;
    assert_eq!(client.rest().await, [Event::GoAway(2)]);
}

/// A message for a channel.
fn encode(protocol: &str, channel: u8, bytes: &[u8]) -> (u8, Vec<u8>) {
    if protocol.contains("base64") {
        return (1, format!("{channel}{}", STANDARD.encode(bytes)).into_bytes());
    }
    (2, [&[channel], bytes].concat())
}

#[tokio::test]
async fn every_websocket_variant_carries_the_channels() {
    let mut rig = Rig::new().await;
    for protocol in
        ["", "channel.k8s.io", "base64.channel.k8s.io", V4, "v4.base64.channel.k8s.io", "v5.channel.k8s.io"]
    {
        let encode = |channel, bytes: &[u8]| encode(protocol, channel, bytes);
        let expect = |channel, bytes: &[u8]| {
            let (opcode, payload) = encode(channel, bytes);
            Message::Data(opcode, payload)
        };
        let mut client = WebSocket::connect(&rig.attach(ALL), protocol).await;
        let mut process = rig.process().await;
        assert_eq!(client.next().await, expect(1, b""), "{protocol}: the sign of being ready");
        let (opcode, message) = encode(0, b"hello");
        client.stream.try_write(&frame(opcode, &message[..3])).unwrap();
        client.send(9, b"are you there").await;
        client.stream.try_write(&frame(0x80, &message[3..])).unwrap();
        assert_eq!(client.next().await, Message::Data(10, b"are you there".to_vec()));
        let mut got = [0; 5];
        soon(process.stdin.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"hello");
        let (opcode, message) = encode(9, b"nowhere");
        client.send(opcode, &message).await;
        process.print(b"out").await;
        assert_eq!(client.next().await, expect(1, b"out"));
        crate::rig::write(process.stderr.as_mut().unwrap(), b"err").await.unwrap();
        assert_eq!(client.next().await, expect(2, b"err"));
        process.exit(Exit::Code(0));
        if protocol.starts_with('v') {
            assert_eq!(client.next().await, expect(3, br#"{"status":"Success"}"#));
        }
        assert_eq!(client.next().await, Message::Close(1000), "{protocol}");
        assert_eq!(client.next().await, Message::Eof);
    }
}

#[tokio::test]
async fn version_five_ends_input_alone() {
    let mut rig = Rig::new().await;
    let mut client = WebSocket::connect(&rig.exec(ALL), "v5.channel.k8s.io").await;
    let mut process = rig.process().await;
    client.send(2, b"\0some").await;
    client.send(2, &[255, 0]).await;
    let mut text = String::new();
    soon(process.stdin.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "some");
    process.exit(Exit::Code(7));
    assert_eq!(client.next().await, Message::Data(2, vec![1]));
    let Message::Data(2, status) = client.next().await else { panic!("no status") };
    assert!(String::from_utf8_lossy(&status).contains(r#""message":"7""#));
    assert_eq!(client.next().await, Message::Close(1000));
}
