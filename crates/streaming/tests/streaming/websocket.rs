//! A WebSocket client.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::request;
use crate::rig::soon;

/// A client's side of a connection.
pub(crate) struct WebSocket {
    pub(crate) stream: TcpStream,
}

/// What the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// The opcode and the payload: 1 text, 2 binary, 10 pong.
    Data(u8, Vec<u8>),
    Close(u16),
    Eof,
}

impl WebSocket {
    /// Upgrades a connection; an empty protocol is not sent.
    pub(crate) async fn connect(url: &str, protocol: &str) -> Self {
        let mut headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            .to_owned();
        if !protocol.is_empty() {
            headers += &format!("Sec-WebSocket-Protocol: {protocol}\r\n");
        }
        let answer = request("GET", url, &headers, b"").await;
        assert_eq!(answer.status(), "101", "{}", answer.head);
        let echoed = answer.head.contains(&format!("\r\nSec-WebSocket-Protocol: {protocol}\r\n"));
        assert_eq!(echoed, !protocol.is_empty(), "{}", answer.head);
        Self { stream: answer.stream }
    }

    /// Sends a whole message.
    pub(crate) async fn send(&mut self, opcode: u8, payload: &[u8]) {
        soon(self.stream.write_all(&frame(0x80 | opcode, payload))).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Message {
        let Ok(first) = soon(self.stream.read_u8()).await else { return Message::Eof };
        assert_eq!(first & 0xf0, 0x80, "whole messages without extensions");
        let length = match soon(self.stream.read_u8()).await.unwrap() {
            126 => u64::from(soon(self.stream.read_u16()).await.unwrap()),
            127 => soon(self.stream.read_u64()).await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        soon(self.stream.read_exact(&mut payload)).await.unwrap();
        match first & 0x0f {
            8 => Message::Close(u16::from_be_bytes(payload[..2].try_into().unwrap())),
            opcode => Message::Data(opcode, payload),
        }
    }
}

/// A masked frame.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        long @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(long).unwrap().to_be_bytes());
        }
        huge => {
            frame.push(0x80 | 127);
            frame.extend((huge as u64).to_be_bytes());
        }
    }
    let mask = [9, 8, 7, 6];
    frame.extend(mask);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}
