//! Clients of exec, attach and port-forward that behave like kubectl and crictl: the URL comes from the CRI, the bytes
//! go over SPDY or WebSocket.

use std::fmt;

use serde_json::{Value, json};
use wharf_types::StreamOptions;

use crate::client::Client;
use crate::line::{End, Farewell, Heard, Line};

/// All streams without a terminal.
pub(crate) const ALL: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: true, terminal: false };
/// Only output.
pub(crate) const OUTPUT: StreamOptions =
    StreamOptions { stdin: false, stdout: true, stderr: true, terminal: false };
/// Input and output at a terminal.
pub(crate) const TERMINAL: StreamOptions =
    StreamOptions { stdin: true, stdout: true, stderr: false, terminal: true };

/// The protocol of a client of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// v4, like the kubelet.
    Spdy,
    /// v5, like crictl.
    WebSocket,
}

/// Both.
pub(crate) const SPEECHES: [Speech; 2] = [Speech::Spdy, Speech::WebSocket];

/// A command or an attached container, from the client's side.
#[derive(Debug)]
pub(crate) struct Session {
    line: Line,
    speech: Speech,
    wanted: StreamOptions,
    streams: Streams,
}

/// The numbers of the streams.
#[derive(Debug, Clone, Copy, Default)]
struct Streams {
    error: u32,
    stdin: u32,
    stdout: u32,
    stderr: u32,
    resize: u32,
}

/// What a session left when it ended.
pub(crate) struct Ended {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: Value,
    pub(crate) farewell: Option<Farewell>,
}

impl Session {
    /// Executes a line of shell, and waits until its streams are open.
    pub(crate) async fn exec(
        client: &Client,
        speech: Speech,
        container: &str,
        script: &str,
        wanted: StreamOptions,
    ) -> Self {
        let url = client.exec_url(container, &["sh", "-c", script], wanted).await.unwrap();
        Self::open(&url, speech, wanted).await
    }

    /// Attaches to a container, and waits until the streams are open.
    pub(crate) async fn attach(
        client: &Client,
        speech: Speech,
        container: &str,
        wanted: StreamOptions,
    ) -> Self {
        let url = client.attach_url(container, wanted).await.unwrap();
        Self::open(&url, speech, wanted).await
    }

    pub(crate) async fn open(url: &str, speech: Speech, wanted: StreamOptions) -> Self {
        let mut session = Self::deaf(url, speech, wanted).await;
        session.listen().await;
        session
    }

    /// A client that reads nothing before [`Session::listen`]. Its terminal, if it requests one, has 80 columns and 24
    /// rows.
    pub(crate) async fn deaf(url: &str, speech: Speech, wanted: StreamOptions) -> Self {
        let (line, streams) = match speech {
            Speech::Spdy => {
                let mut line = Line::spdy(url, "v4.channel.k8s.io").await.unwrap();
                let streams = open(&mut line, wanted).await;
                (line, streams)
            }
            Speech::WebSocket => {
                let streams = Streams { stdin: 0, stdout: 1, stderr: 2, error: 3, resize: 4 };
                let mut line = Line::websocket(url, "v5.channel.k8s.io").await;
                if wanted.terminal {
                    line.send(streams.resize, &size(80, 24)).await.unwrap();
                }
                (line, streams)
            }
        };
        Self { line, speech, wanted, streams }
    }

    pub(crate) async fn listen(&mut self) {
        self.line.listen();
        if self.speech == Speech::Spdy {
            let Streams { error, stdin, stdout, stderr, resize } = self.streams;
            let all = [error, stdin, stdout, stderr, resize];
            let opened: Vec<u32> = all.into_iter().filter(|stream| *stream != 0).collect();
            self.line.accepted(&opened).await;
        }
    }

    /// Sends input; an error if the server accepts no more.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.line.send(self.streams.stdin, bytes).await
    }

    /// Ends only the input; an error if the server accepts no more.
    pub(crate) async fn end_input(&mut self) -> Result<(), String> {
        self.line.finish(self.streams.stdin).await
    }

    pub(crate) async fn resize(&mut self, width: u16, height: u16) {
        self.line.send(self.streams.resize, &size(width, height)).await.unwrap();
    }

    /// Waits until the output contains these words.
    pub(crate) async fn until(&self, words: &str) {
        let has = |heard: &Heard| self.shown(heard).contains(words).then_some(());
        self.line.until(&format!("there is {words:?}"), has).await;
    }

    /// Whether the output contains these words by now.
    pub(crate) fn has(&self, words: &str) -> bool {
        self.line.now(|heard| self.shown(heard).contains(words))
    }

    /// Whether the server has ended the connection by now.
    pub(crate) fn is_over(&self) -> bool {
        self.line.now(|heard| heard.farewell.is_some())
    }

    /// Waits until there are this many bytes of output.
    pub(crate) async fn until_bytes(&self, count: usize) {
        let enough = |heard: &Heard| (heard.bytes(self.streams.stdout).len() >= count).then_some(());
        self.line.until(&format!("there are {count} bytes"), enough).await;
    }

    fn shown(&self, heard: &Heard) -> String {
        String::from_utf8_lossy(heard.bytes(self.streams.stdout)).into_owned()
    }

    /// Waits until the server ends the session, which must be in order: the output, then the status, then the rest.
    pub(crate) async fn ended(self) -> Ended {
        let (streams, speech, wanted) = (self.streams, self.speech, self.wanted);
        let heard = self.line.over().await;
        assert_eq!(heard.last(), Some(streams.error), "the status is last");
        if speech == Speech::Spdy {
            let asked =
                [(true, streams.error), (wanted.stdout, streams.stdout), (wanted.stderr, streams.stderr)];
            for (_, stream) in asked.into_iter().filter(|(asked, _)| *asked) {
                assert_eq!(heard.end(stream), Some(End::Finished), "stream {stream}");
            }
        }
        let status = heard.bytes(streams.error);
        Ended {
            stdout: heard.bytes(streams.stdout).to_vec(),
            stderr: heard.bytes(streams.stderr).to_vec(),
            status: serde_json::from_slice(status)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(status))),
            farewell: heard.farewell,
        }
    }

    /// How the connection ends, whatever was sent on its streams.
    pub(crate) async fn cut_off(self) -> Option<Farewell> {
        self.line.over().await.farewell
    }

    /// Leaves like a client that crashed.
    pub(crate) fn reset(self) {
        self.line.reset();
    }
}

/// Opens the streams of a command. The terminal's size is sent before the last one is opened, and so before the command
/// begins.
async fn open(line: &mut Line, wanted: StreamOptions) -> Streams {
    let StreamOptions { stdin, stdout, stderr, terminal } = wanted;
    let mut streams = Streams::default();
    let kinds = [
        ("error", true, &mut streams.error),
        ("stdin", stdin, &mut streams.stdin),
        ("resize", terminal, &mut streams.resize),
        ("stdout", stdout, &mut streams.stdout),
        ("stderr", stderr, &mut streams.stderr),
    ];
    for (kind, _, number) in kinds.into_iter().filter(|(_, asked, _)| *asked) {
        *number = line.open(&[("streamtype", kind)]).await;
        if kind == "resize" {
            line.send(*number, &size(80, 24)).await.unwrap();
        }
    }
    streams
}

/// The size of a terminal in the protocol's form.
fn size(width: u16, height: u16) -> Vec<u8> {
    json!({"Width": width, "Height": height}).to_string().into_bytes()
}

impl Ended {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// The exit code in the status.
    ///
    /// # Panics
    /// The command did not exit by itself.
    pub(crate) fn code(&self) -> i32 {
        self.exit().unwrap_or_else(|| panic!("no exit: {self:?}"))
    }

    /// The exit code, if the status has one. It must have the only form that clients understand.
    pub(crate) fn exit(&self) -> Option<i32> {
        if self.status == json!({"status": "Success"}) {
            return Some(0);
        }
        let code = self.status["details"]["causes"][0]["message"].as_str()?.to_owned();
        let message = format!("command terminated with non-zero exit code: exit status {code}");
        let causes = json!([{"reason": "ExitCode", "message": code}]);
        let failure = json!({
            "status": "Failure", "message": message, "reason": "NonZeroExitCode", "details": {"causes": causes},
        });
        assert_eq!(self.status, failure);
        code.parse().ok()
    }

    /// Why the command could not be served, if the status says that.
    pub(crate) fn failure(&self) -> Option<&str> {
        let failed = self.status["reason"] == "InternalError" && self.status["code"] == 500;
        self.status["message"].as_str().filter(|_| failed)
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |bytes: &[u8]| format!("{} bytes, {:.200}", bytes.len(), String::from_utf8_lossy(bytes));
        write!(f, "stdout: {}; stderr: {}; ", cut(&self.stdout), cut(&self.stderr))?;
        write!(f, "{}; {:?}", self.status, self.farewell)
    }
}

/// Connections into a pod, over one connection of the client.
#[derive(Debug)]
pub(crate) struct Forward {
    line: Line,
    requests: u32,
}

/// One of the connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    error: u32,
    data: u32,
}

impl Forward {
    pub(crate) async fn open(client: &Client, pod: &str) -> Self {
        let url = client.port_forward_url(pod).await.unwrap();
        let mut line = Line::spdy(&url, "portforward.k8s.io").await.unwrap();
        line.listen();
        Self { line, requests: 0 }
    }

    /// Connects to a port.
    pub(crate) async fn connect(&mut self, port: u16) -> Connection {
        let (port, request) = (port.to_string(), self.requests.to_string());
        self.requests += 1;
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", request.as_str())];
        let error = self.line.open(&headers("error")).await;
        let data = self.line.open(&headers("data")).await;
        self.line.accepted(&[error, data]).await;
        self.line.finish(error).await.unwrap();
        Connection { error, data }
    }

    pub(crate) async fn send(&mut self, connection: Connection, bytes: &[u8]) {
        self.line.send(connection.data, bytes).await.unwrap();
    }

    /// Ends the client's direction.
    pub(crate) async fn finish(&mut self, connection: Connection) {
        self.line.finish(connection.data).await.unwrap();
    }

    /// Resets a connection, as clients do with one that its pod has ended.
    pub(crate) async fn give_up(&mut self, connection: Connection) {
        self.line.cancel(connection.data).await;
    }

    /// Waits until the pod has ended its direction of a connection.
    pub(crate) async fn until_end(&self, connection: Connection) {
        self.line.until("the pod ends the connection", |heard| heard.end(connection.data).map(drop)).await;
    }

    /// Waits until this much has arrived from the pod.
    pub(crate) async fn until_bytes(&self, connection: Connection, count: usize) -> Vec<u8> {
        let got = |heard: &Heard| {
            let bytes = heard.bytes(connection.data);
            (bytes.len() >= count).then(|| bytes.to_vec())
        };
        self.line.until(&format!("there are {count} bytes"), got).await
    }

    /// Everything that arrived, once the server has ended a connection properly; or why it failed.
    pub(crate) async fn over(&self, connection: Connection) -> Result<Vec<u8>, String> {
        let Connection { error, data } = connection;
        let over = |heard: &Heard| {
            let (told, ended) = (heard.end(error)?, heard.end(data)?);
            assert_eq!(told, End::Finished, "what went wrong may be read to its end");
            let text = String::from_utf8_lossy(heard.bytes(error)).into_owned();
            assert_eq!(text.is_empty(), ended == End::Finished, "{text}");
            Some(if text.is_empty() { Ok(heard.bytes(data).to_vec()) } else { Err(text) })
        };
        self.line.until("the connection ends", over).await
    }

    /// How the server ends the session.
    pub(crate) async fn ended(self) -> Option<Farewell> {
        self.line.over().await.farewell
    }

    /// Leaves like a client that crashed.
    pub(crate) fn reset(self) {
        self.line.reset();
    }
}
