//! Serves the CRI on its sockets until a signal ends the daemon.
//!
//! The end of the daemon is the end of no container: calls in flight get some time to finish, others are served
//! meanwhile, and one that is cut off can be repeated with the next daemon.
#![expect(clippy::disallowed_methods, reason = "it runs on the main thread, which is not a worker")]

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt as _, StreamMap};
use tonic::transport::Server;
use wharf_cri::{Admin, Answers, Images, Observers, Runtime, Underway};
use wharf_cri_api::admin::admin_server::AdminServer;
use wharf_cri_api::v1::image_service_server::ImageServiceServer;
use wharf_cri_api::v1::runtime_service_server::RuntimeServiceServer;
use wharf_types::limits::MESSAGE_LIMIT_BYTES;

use crate::listener::Listener;
use crate::systemd::{feed_watchdog, notify};

/// How long in-flight calls may take once the daemon has been asked to exit. Cutting them off loses no work.
pub(crate) const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// How long calls may take that began after that, once nothing is accepted any more.
const LAST_LIMIT: Duration = Duration::from_secs(1);

/// How long nothing is accepted after an accept has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The services on each socket.
pub(crate) struct Services {
    pub(crate) runtime: Runtime,
    pub(crate) images: Images,
    pub(crate) admin: Admin,
    /// Who observes their calls.
    pub(crate) observers: Observers,
}

/// Serves until SIGTERM or SIGINT, then waits a limited time for in-flight calls. Containers keep running.
pub(crate) async fn serve(sockets: &[&Path], services: Services) -> anyhow::Result<()> {
    let (served, connections) = listen_on_all(sockets)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(sockets = ?served, version = env!("CARGO_PKG_VERSION"), "wharfd is ready");
    notify("READY=1");
    let (underway, ended) = Underway::new();
    let (counted, observers) = (underway.clone(), services.observers);
    let (closing, closed) = oneshot::channel();
    let (events, progress) = (services.runtime.clone(), services.admin.clone());
    let serving = Server::builder()
        .layer(tower::layer::layer_fn(move |services| {
            Answers::of(services, counted.clone(), observers.clone())
        }))
        .add_service(
            RuntimeServiceServer::new(services.runtime)
                .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
                .max_encoding_message_size(MESSAGE_LIMIT_BYTES),
        )
        .add_service(
            ImageServiceServer::new(services.images)
                .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
                .max_encoding_message_size(MESSAGE_LIMIT_BYTES),
        )
        .add_service(AdminServer::new(services.admin))
        .serve_with_incoming_shutdown(unhurried(connections), async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("wharfd is stopping; containers keep running");
            notify("STOPPING=1");
            underway.close();
            if tokio::time::timeout(FINISH_LIMIT, ended.wait()).await.is_err() {
                tracing::warn!("stopped waiting for in-flight calls");
            }
            events.end_events();
            progress.end_progress();
            closing.send(()).ok();
        });
    tokio::select! {
        served = serving => served?,
        () = async {
            closed.await.ok();
            tokio::time::sleep(LAST_LIMIT).await;
        } => {}
        () = feed_watchdog() => {}
    }
    // The sockets' files stay for the next daemon, which could not make others on a file system that is full by then.
    Ok(())
}

/// The same connections, with a pause after each failed accept. A process that has no descriptor left cannot accept,
/// and the connection stays in the queue: without the pause this would fail again at once, forever.
fn unhurried<C>(
    connections: impl Stream<Item = std::io::Result<C>>,
) -> impl Stream<Item = std::io::Result<C>> {
    connections.then(|accepted| async {
        if let Err(error) = &accepted {
            tracing::warn!(%error, "cannot accept a connection to the CRI");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        accepted
    })
}

/// The sockets that are served, and the connections to all of them. Without the first one there is no service.
fn listen_on_all<'a>(
    sockets: &[&'a Path],
) -> anyhow::Result<(Vec<&'a Path>, impl Stream<Item = std::io::Result<UnixStream>> + use<>)> {
    let (mut served, mut all) = (Vec::new(), StreamMap::new());
    for (number, socket) in sockets.iter().enumerate() {
        match listen(socket).with_context(|| format!("listening on {}", socket.display())) {
            Ok(listener) => {
                served.push(*socket);
                all.insert(number, UnixListenerStream::new(listener));
            }
            // Who has the first one has everything.
            Err(error) if number > 0 => {
                tracing::warn!(error = format!("{error:#}"), "the CRI is not served at one of extra_sockets");
            }
            Err(error) => return Err(error),
        }
    }
    Ok((served, all.map(|(_, accepted)| accepted)))
}

/// Binds a socket that only its owner may open, in place of the one that an earlier daemon left.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = socket.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    if let Some(listener) = Listener::at(socket)? {
        anyhow::bail!("{listener} is serving it: stop that first");
    }
    wharf_sys::socket::remove(socket)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets this mode when it is made: nobody else can connect at any moment.
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(socket)?)?;
    nix::sys::socket::listen(&listener, Backlog::MAXCONN)?;
    Ok(UnixListener::from_std(listener.into())?)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_file_in_the_place_of_the_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        let refused = format!("{:#}", listen(&path).unwrap_err());
        assert!(refused.contains("no socket"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        drop(listen(&dir.path().join("socket")).unwrap());
        listen(&dir.path().join("socket")).unwrap();
    }

    #[tokio::test]
    async fn each_socket_is_served_and_open_to_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("one"), dir.path().join("other/two")];
        let sockets = paths.each_ref().map(|path| path.as_path());
        let (served, connections) = listen_on_all(&sockets).unwrap();
        assert_eq!(served, sockets);
        let mut connections = std::pin::pin!(connections);
        for path in &paths {
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
            let _client = UnixStream::connect(path).await.unwrap();
            connections.next().await.unwrap().unwrap();
        }
        let error = format!("{:#}", listen_on_all(&sockets[1..]).err().unwrap());
        let who = format!("(pid {}) is serving it", std::process::id());
        assert!(error.contains("two") && error.contains(&who), "{error}");
        drop(std::fs::remove_file(&paths[0]));
        let (served, _alone) = listen_on_all(&sockets).unwrap();
        assert_eq!(served, sockets[..1], "a further socket that another process serves is done without");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_accept_is_not_repeated_at_once() {
        let begin = Instant::now();
        let full = || io::Error::other("too many open files");
        let accepted = tokio_stream::iter([Ok(1), Err(full()), Err(full()), Ok(2)]);
        let all: Vec<_> = unhurried(accepted).filter_map(Result::ok).collect().await;
        assert_eq!(all, [1, 2]);
        assert_eq!(begin.elapsed(), 2 * ACCEPT_PAUSE, "by a clock that waits alone move");
    }
}
