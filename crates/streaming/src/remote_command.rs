//! Exec and attach, independent of the protocol: pumps the streams of a process, then reports its exit status.
//!
//! Clients read the output to its end before they read the error stream, and close when they have the status. So the
//! server first sends everything that the process wrote before it exited, then the status, then the ends of the
//! streams.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use wharf_types::{StreamOptions, chain};

use crate::backend::{BackendError, Resize, Session};
use crate::channel::{Inbound, Outbound};
use crate::descriptor::Descriptor;
use crate::error::SessionError;
use crate::pump;
use crate::resize::{self, Sizes};
use crate::spdy;
use crate::status::{Outcome, StatusForm};
use crate::websocket;
use crate::wire::WireError;

/// A client's streams.
struct Client {
    stdin: Option<Inbound>,
    resize: Option<Inbound>,
    stdout: Option<Outbound>,
    stderr: Option<Outbound>,
    error: Outbound,
    /// The server's directions of streams that only the client writes to.
    unused: Vec<Outbound>,
    /// Whether an empty message tells the client that the streams are connected to the process, as over WebSocket.
    greets: bool,
}

/// What a version of the protocol supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) status: StatusForm,
    /// Whether there is a stream for terminal sizes.
    pub(crate) resize: bool,
}

/// Serves a client over SPDY. The client opens one stream for each thing that it wants, in any order.
pub(crate) async fn over_spdy<F>(
    mut streams: mpsc::Receiver<spdy::Stream>,
    wanted: StreamOptions,
    version: Version,
    creation: Duration,
    start: impl FnOnce(Sizes) -> F,
) -> Result<(), SessionError>
where
    F: Future<Output = Result<Session, BackendError>>,
{
    let overdue = SessionError::Creation { after_ms: creation.as_millis() };
    let client = timeout(creation, collect(&mut streams, wanted, version)).await.unwrap_or(Err(overdue))?;
    // Streams that come later are refused.
    drop(streams);
    serve(client, version.status, start).await
}

/// Serves a client over the channels of a WebSocket, which all exist from the start.
pub(crate) async fn over_websocket<F>(
    channels: websocket::Channels,
    wanted: StreamOptions,
    status: StatusForm,
    start: impl FnOnce(Sizes) -> F,
) -> Result<(), SessionError>
where
    F: Future<Output = Result<Session, BackendError>>,
{
    let client = Client {
        stdin: wanted.stdin.then(|| channels.inbound(0)),
        stdout: wanted.stdout.then(|| channels.outbound(1)),
        stderr: wanted.stderr.then(|| channels.outbound(2)),
        error: channels.outbound(3),
        resize: Some(channels.inbound(4)),
        unused: Vec::new(),
        greets: true,
    };
    serve(client, status, start).await
}

/// Waits for the streams that a client must open, and accepts them.
async fn collect(
    streams: &mut mpsc::Receiver<spdy::Stream>,
    wanted: StreamOptions,
    version: Version,
) -> Result<Client, SessionError> {
    let mut missing = vec!["error"];
    let wants_resize = wanted.terminal && version.resize;
    missing.extend(wanted.stdin.then_some("stdin"));
    missing.extend(wanted.stdout.then_some("stdout"));
    missing.extend(wanted.stderr.then_some("stderr"));
    missing.extend(wants_resize.then_some("resize"));
    let mut found = HashMap::new();
    while !missing.is_empty() {
        let Some(stream) = streams.recv().await else { return Err(WireError::Left.into()) };
        let spdy::Stream { headers, inbound, outlet } = stream;
        outlet.accept().await?;
        match missing.iter().position(|name| headers.value("streamtype") == Some(name)) {
            Some(at) => drop(found.insert(missing.swap_remove(at), (inbound, Outbound::Spdy(outlet)))),
            // Newer than this server, not requested, or a duplicate: it is not used.
            None => outlet.finish().await?,
        }
    }
    let mut unused = Vec::new();
    let mut read_only = |stream: Option<(Inbound, Outbound)>| {
        let (inbound, outbound) = stream?;
        unused.push(outbound);
        Some(inbound)
    };
    let stdin = read_only(found.remove("stdin"));
    let resize = read_only(found.remove("resize"));
    let mut write_only = |name| Some(found.remove(name)?.1);
    let (stdout, stderr) = (write_only("stdout"), write_only("stderr"));
    let error = write_only("error").ok_or(WireError::Left)?;
    Ok(Client { stdin, resize, stdout, stderr, error, unused, greets: false })
}

/// Starts the process, serves it until it ends, and reports its exit.
async fn serve<F>(
    client: Client,
    status: StatusForm,
    start: impl FnOnce(Sizes) -> F,
) -> Result<(), SessionError>
where
    F: Future<Output = Result<Session, BackendError>>,
{
    let Client { stdin, resize, stdout, stderr, error, unused, greets } = client;
    let (latest, sizes) = watch::channel(None);
    let work = async {
        let outcome = match start(sizes.clone()).await {
            Ok(session) => {
                let first = stdout.as_ref().or(stderr.as_ref()).unwrap_or(&error);
                if greets {
                    first.tell(&[]).await?;
                }
                attend(session, stdin, [stdout.as_ref(), stderr.as_ref()], sizes).await?
            }
            Err(error) => Outcome::Failed(chain(&*error)),
        };
        error.conclude(&outcome.text(status)).await?;
        for stream in stdout.iter().chain(&stderr).chain(&unused) {
            stream.finish().await?;
        }
        Ok(())
    };
    // Sizes are read from the first byte on, because the first may arrive before the process exists.
    tokio::select! {
        done = work => done,
        never = resize::follow(resize, latest) => match never {},
    }
}

/// Pumps the streams of a process until it is gone and its output has been sent.
async fn attend(
    session: Session,
    stdin: Option<Inbound>,
    [stdout, stderr]: [Option<&Outbound>; 2],
    sizes: Sizes,
) -> Result<Outcome, WireError> {
    let open = |fd: Option<OwnedFd>| fd.map(Descriptor::new).transpose();
    let (to_stdin, from_stdout, from_stderr) = match [session.stdin, session.stdout, session.stderr].map(open)
    {
        [Ok(to_stdin), Ok(from_stdout), Ok(from_stderr)] => (to_stdin, from_stdout, from_stderr),
        [Err(error), ..] | [_, Err(error), _] | [.., Err(error)] => {
            return Ok(Outcome::Failed(format!("cannot wait for the streams of the process: {error}")));
        }
    };
    let ended = session.exit.shared();
    let output = async |from, to| match (from, to) {
        (Some(from), Some(to)) => pump::output(from, to, ended.clone()).await,
        _ => Ok(()),
    };
    let written = async {
        tokio::try_join!(output(from_stdout, stdout), output(from_stderr, stderr))?;
        Ok(ended.clone().await.map_or_else(Outcome::Failed, Outcome::Ended))
    };
    let read = async {
        if let (Some(from), Some(to)) = (stdin, to_stdin) {
            pump::input(from, to).await;
        }
        pending().await
    };
    tokio::select! {
        done = written => done,
        never = read => never,
        never = apply(sizes, session.resize) => match never {},
    }
}

/// Sets each new size of the terminal.
async fn apply(mut sizes: Sizes, resize: Option<Resize>) -> Infallible {
    if let Some(resize) = resize {
        loop {
            if let Some(size) = *sizes.borrow_and_update() {
                resize(size);
            }
            if sizes.changed().await.is_err() {
                break;
            }
        }
    }
    pending().await
}
