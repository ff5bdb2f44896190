//! Sessions of exec and attach: a WebSocket to the URL that wharfd issued, with a channel for each stream.

use std::process::ExitCode;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::error::Error;
use crate::output::{self, Stream};
use crate::run::exit_code;
use crate::terminal::{self, Input, Keys, Terminal, Typed};

/// The subprotocol of exec and attach.
const COMMANDS: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// The channel on which the end of another is sent; that channel's number follows.
pub(crate) const END: u8 = 255;

/// A WebSocket.
pub(crate) type Socket = WebSocketStream<TcpStream>;

/// Connects to a URL that wharfd issued.
pub(crate) async fn open(url: &str, protocol: &'static str) -> Result<Socket, Error> {
    let rest = url.strip_prefix("http://").ok_or_else(|| Error::Elsewhere { url: url.to_owned() })?;
    let address = rest.split('/').next().unwrap_or(rest);
    let mut request = format!("ws://{rest}").into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    let tcp = TcpStream::connect(address).await.map_err(tungstenite::Error::from)?;
    let (socket, _response) = tokio_tungstenite::client_async(request, tcp).await?;
    Ok(socket)
}

/// Whether this process's input is sent to the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sends {
    Input,
    Nothing,
}

/// What Control-P Control-Q does on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaveKeys {
    /// It detaches. The program continues: it is the container's own and existed before the session.
    Leave,
    /// The keys go to the program like any others: it would not outlive the session.
    Pass,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The program exited.
    Code(ExitCode),
    /// The user detached.
    Left,
}

impl Ended {
    /// The exit code of `wharf`.
    pub(crate) fn code(self) -> ExitCode {
        match self {
            Self::Code(code) => code,
            Self::Left => ExitCode::SUCCESS,
        }
    }
}

/// A session in progress.
#[derive(Debug)]
pub(crate) struct Session {
    socket: Socket,
    status: Vec<u8>,
}

impl Session {
    /// Connects.
    pub(crate) async fn open(url: &str) -> Result<Self, Error> {
        Ok(Self { socket: open(url, COMMANDS).await?, status: Vec::new() })
    }

    /// Waits until the streams are connected to the program: everything that it writes from now on arrives.
    pub(crate) async fn is_ready(&mut self) -> Result<(), Error> {
        let is_over = match self.socket.next().await.transpose()? {
            Some(message) => take(message, &mut self.status)?,
            None => true,
        };
        if is_over || !self.status.is_empty() {
            // The status has the reason.
            return ended(&self.status).and(Err(Error::Incomplete { what: "the streams of the session" }));
        }
        Ok(())
    }

    /// Carries input and output until the program exits or the user detaches.
    pub(crate) async fn carry(
        self,
        sends: Sends,
        terminal: Option<Terminal>,
        leave: LeaveKeys,
    ) -> Result<Ended, Error> {
        let Self { socket, mut status } = self;
        let (mut sink, mut source) = socket.split();
        let mut input = match sends {
            Sends::Input => Some(Input::start()?),
            Sends::Nothing => None,
        };
        let mut keys = (terminal.is_some() && leave == LeaveKeys::Leave).then(Keys::default);
        let mut sizes = terminal.as_ref().map(|_| terminal::sizes()).transpose()?;
        loop {
            let message = tokio::select! {
                received = source.next() => match received.transpose()? {
                    Some(message) => {
                        if take(message, &mut status)? { break } else { continue }
                    }
                    None => break,
                },
                piece = terminal::next(&mut input) => match (piece, &mut keys) {
                    (Some(piece), Some(keys)) => match keys.take(piece) {
                        Typed::Leave => return Ok(Ended::Left),
                        Typed::Keys(keys) => channel(STDIN, &keys),
                    },
                    (Some(piece), None) => channel(STDIN, &piece),
                    (None, _) => {
                        input = None;
                        channel(END, &[STDIN])
                    }
                },
                Some(size) = terminal::next_size(&mut sizes) => channel(RESIZE, size.as_bytes()),
            };
            sink.send(message).await?;
        }
        // The user's terminal is restored before anything is printed.
        drop(terminal);
        ended(&status).map(Ended::Code)
    }
}

pub(crate) fn channel(number: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[number], bytes].concat().into())
}

/// Shows a message's content; returns `true` for the last message.
fn take(message: Message, status: &mut Vec<u8>) -> Result<bool, Error> {
    match message {
        Message::Binary(bytes) => match bytes.split_first() {
            Some((&STDOUT, bytes)) => output::bytes(Stream::Stdout, bytes)?,
            Some((&STDERR, bytes)) => output::bytes(Stream::Stderr, bytes)?,
            Some((&STATUS, bytes)) => status.extend_from_slice(bytes),
            _ => {}
        },
        Message::Close(_) => return Ok(true),
        _ => {}
    }
    Ok(false)
}

/// How a command ended, as Kubernetes reports it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    status: String,
    message: String,
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

fn ended(status: &[u8]) -> Result<ExitCode, Error> {
    let status: Status = serde_json::from_slice(status)
        .map_err(|_cut| Error::Incomplete { what: "the exit status of the command" })?;
    if status.status == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let code = status.details.causes.iter().find(|cause| cause.reason == "ExitCode");
    match code.and_then(|cause| cause.message.parse().ok()) {
        Some(code) => Ok(exit_code(code)),
        None => Err(Error::Refused { message: status.message }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_in_the_status() {
        let code = |text: &str| {
            ended(text.as_bytes()).map(|code| format!("{code:?}")).map_err(|error| error.to_string())
        };
        assert_eq!(code(r#"{"status":"Success"}"#), Ok(format!("{:?}", ExitCode::SUCCESS)));
        let failed = r#"{"status":"Failure","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(code(failed), Ok(format!("{:?}", ExitCode::from(3))));
        let refused = code(r#"{"status":"Failure","message":"no such file"}"#).unwrap_err();
        assert!(refused.contains("no such file"), "{refused}");
        assert!(code("").is_err());
    }

    #[test]
    fn only_the_last_message_ends_the_session() {
        let mut status = Vec::new();
        assert!(!take(channel(STATUS, b"{"), &mut status).unwrap());
        assert!(!take(channel(STATUS, b"}"), &mut status).unwrap());
        assert!(!take(Message::Binary(Vec::new().into()), &mut status).unwrap());
        assert!(take(Message::Close(None), &mut status).unwrap());
        assert_eq!(status, b"{}");
    }
}
