//! How plugins connect: they open the socket, or are started with the daemon. Then they register, are configured, and
//! are synchronised with the existing pods and containers.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use wharf_types::{ContainerId, Stage as _, StageError, chain};

use crate::api::{
    ConfigureRequest, ConfigureResponse, Container, ContainerUpdate, Empty, PodSandbox,
    RegisterPluginRequest, SynchronizeRequest, SynchronizeResponse, UpdateContainersRequest,
    UpdateContainersResponse,
};
use crate::launch::{self, Installed, Process};
use crate::plugin::{ALL_EVENTS, Plugin, Registration};
use crate::wire::{
    CallError, Connection, MESSAGE_LIMIT_BYTES, PLUGIN_SERVICE, RUNTIME_SERVICE, Request, Side, code,
};
use crate::{Existing, Node, Plugins, Settings};

/// The most plugins that may be connected: each has a task, two descriptors and up to two messages in memory.
const PLUGINS_MAX: usize = 64;
/// How long nothing is accepted after an accept has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long to wait for a moment in which nothing is being made, and how long to pause after a vain wait: nothing new
/// can begin during a wait.
const GATE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(1));
/// The size of a message without its pods and containers, in bytes.
const SLACK_BYTES: usize = 4096;
/// The version of NRI whose protocol is spoken here.
const NRI_VERSION: &str = "v0.12.5";

/// Where plugins connect, until [`Listening::end`].
#[derive(Debug)]
pub struct Listening {
    plugins: Arc<Plugins>,
    socket: Option<PathBuf>,
    patience: Duration,
}

impl Listening {
    /// The socket, if plugins may connect.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Tells all plugins that the daemon is exiting, and closes the socket.
    pub async fn end(self) {
        self.plugins.shut_down(self.patience).await;
        if let Some(socket) = self.socket
            && let Err(error) = tokio::fs::remove_file(&socket).await
        {
            tracing::warn!(%error, socket = %socket.display(), "the socket for NRI plugins stays");
        }
    }
}

struct Shared {
    settings: Settings,
    plugins: Arc<Plugins>,
    /// Permits for plugins that are connected.
    room: Arc<Semaphore>,
}

/// Why a connection does not become a plugin.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("it did not register within {0:?}")]
    Late(Duration),
    #[error("its connection was closed")]
    Ended,
    #[error("{0}")]
    Name(String),
    #[error("{method} fails")]
    Call {
        method: &'static str,
        #[source]
        source: CallError,
    },
    #[error("it did not respond to {method} within {patience:?}")]
    Silent { method: &'static str, patience: Duration },
    #[error("it subscribes to unknown events: {0:#x}")]
    Events(i32),
    #[error("it does not support a Synchronize that is split into several messages")]
    Whole,
    #[error("a single pod or container does not fit into a message")]
    TooLong,
    #[error("the existing pods and containers could not be listed in time")]
    Unclear,
}

/// Starts the plugins of the directory, waits until they have registered, and listens for others. A plugin that fails
/// is left out.
///
/// # Errors
/// The socket cannot be made. The plugins of the directory run nevertheless, and end with `plugins`.
pub async fn start(
    settings: Settings,
    plugins: Arc<Plugins>,
    node: Arc<dyn Node>,
) -> Result<Listening, StageError> {
    let shared = Arc::new(Shared { settings, plugins, room: Arc::new(Semaphore::new(PLUGINS_MAX)) });
    shared.plugins.serve(&node);
    if let Some(stopped) = shared.plugins.take_stopped() {
        tokio::spawn(tell_stopped(Arc::clone(&node), stopped));
    }
    launch_all(&shared).await;
    let Settings { socket, external, request_timeout, .. } = &shared.settings;
    let (plugins, patience) = (Arc::clone(&shared.plugins), *request_timeout);
    if !external {
        return Ok(Listening { plugins, socket: None, patience });
    }
    let socket = socket.clone();
    let listener = bind(&socket).await.stage("making the socket for NRI plugins")?;
    tokio::spawn(accept(shared, listener));
    Ok(Listening { plugins, socket: Some(socket), patience })
}

/// Makes a socket that only its owner may open, in place of one on which nobody listens any more.
async fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(parent) = socket.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    match UnixStream::connect(socket).await {
        Ok(_another) => return Err(std::io::Error::from(ErrorKind::AddrInUse)),
        Err(_nobody) => {
            let socket = socket.to_owned();
            tokio::task::spawn_blocking(move || wharf_sys::socket::remove(&socket)).await??;
        }
    }
    let listener = UnixListener::bind(socket)?;
    tokio::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).await?;
    Ok(listener)
}

/// Has plugins told of each container that has stopped. A plugin that is slow about one of them holds up no other.
async fn tell_stopped(node: Arc<dyn Node>, mut stopped: mpsc::Receiver<ContainerId>) {
    while let Some(container) = stopped.recv().await {
        let node = Arc::clone(&node);
        tokio::spawn(async move { node.stopped(container).await });
    }
}

async fn accept(shared: Arc<Shared>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _unnamed)) => match Arc::clone(&shared.room).try_acquire_owned() {
                Ok(permit) => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move { welcome(&shared, (stream, None), permit).await });
                }
                Err(_full) => tracing::warn!("an NRI plugin is refused: {PLUGINS_MAX} are connected"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the socket for NRI plugins");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn launch_all(shared: &Arc<Shared>) {
    let Settings { plugin_dir, plugin_config_dir, .. } = shared.settings.clone();
    let shown = plugin_dir.display().to_string();
    let found = tokio::task::spawn_blocking(move || launch::installed(&plugin_dir, &plugin_config_dir)).await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return tracing::warn!(%error, directory = shown, "no NRI plugin is started"),
        Err(error) => return tracing::warn!(%error, directory = shown, "no NRI plugin is started"),
    };
    futures_util::future::join_all(found.into_iter().map(|plugin| launch_one(shared, plugin))).await;
}

async fn launch_one(shared: &Arc<Shared>, plugin: Installed) {
    let name = plugin.program.display().to_string();
    let Ok(permit) = Arc::clone(&shared.room).try_acquire_owned() else {
        return tracing::warn!(plugin = name, "an NRI plugin is not started: {PLUGINS_MAX} are connected");
    };
    let start = move || launch::start(&plugin).map(|(process, stream)| (plugin, process, stream));
    let started = match tokio::task::spawn_blocking(start).await {
        Ok(started) => started,
        Err(panicked) => Err(std::io::Error::other(panicked)),
    };
    match started.and_then(|(plugin, process, stream)| Ok((plugin, process, UnixStream::from_std(stream)?))) {
        Ok((plugin, process, stream)) => {
            welcome(shared, (stream, Some((plugin, process))), permit).await;
        }
        Err(error) => tracing::warn!(plugin = name, %error, "an NRI plugin cannot be started"),
    }
}

/// A plugin's socket, and what is known of the plugin if wharfd started it.
type Arrival = (UnixStream, Option<(Installed, Process)>);

/// Registers the plugin at the other end of a connection, and serves it in the background from then on.
async fn welcome(shared: &Arc<Shared>, arrival: Arrival, permit: OwnedSemaphorePermit) {
    let program = arrival.1.as_ref().map(|(installed, _process)| installed.program.display().to_string());
    match register(shared, arrival).await {
        Ok((plugin, requests)) => {
            tracing::info!(plugin = plugin.name, "an NRI plugin is connected");
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let _permit = permit;
                serve(&shared, &plugin, requests).await;
                shared.plugins.remove(&plugin);
                tracing::info!(plugin = plugin.name, "an NRI plugin is gone");
            });
        }
        Err(error) => {
            let program = program.as_deref().unwrap_or("one that connected by itself");
            tracing::warn!(program, error = chain(&error), "an NRI plugin is refused");
        }
    }
}

async fn register(
    shared: &Shared,
    (stream, launched): Arrival,
) -> Result<(Arc<Plugin>, mpsc::Receiver<Request>), Unfit> {
    let (connection, mut requests) = Connection::start(stream, Side::Runtime);
    let patience = shared.settings.registration_timeout;
    let request = timeout(patience, requests.recv()).await.map_err(|_elapsed| Unfit::Late(patience))?;
    let (index, base) = introduce(request.ok_or(Unfit::Ended)?, launched.as_ref()).await?;
    let (config, process) = match launched {
        Some((installed, process)) => (installed.config, Some(process)),
        None => (String::new(), None),
    };
    let ConfigureResponse { events, failure_policy } = configure(shared, &connection, config).await?;
    if events & !ALL_EVENTS != 0 {
        return Err(Unfit::Events(events & !ALL_EVENTS));
    }
    let events = if events == 0 { ALL_EVENTS } else { events };
    let policy = failure_policy.unwrap_or_default();
    let registration = Registration { index, base, events, policy, process };
    let plugin = Arc::new(Plugin::new(connection, registration, shared.settings.request_timeout));
    let joined = join(shared, &plugin).await;
    if joined.is_err() {
        plugin.connection().close();
        shared.plugins.remove(&plugin);
    }
    joined.map(|()| (plugin, requests))
}

/// Takes a plugin's first request, which says who it is, and returns its index and name.
async fn introduce(
    request: Request,
    launched: Option<&(Installed, Process)>,
) -> Result<(String, String), Unfit> {
    let content = &request.content;
    if content.service != RUNTIME_SERVICE || content.method != "RegisterPlugin" {
        let problem = format!("its first call is {} and not RegisterPlugin", content.method);
        request.fail(code::FAILED_PRECONDITION, problem.clone()).await;
        return Err(Unfit::Name(problem));
    }
    let Ok(named) = RegisterPluginRequest::decode(content.payload.as_slice()) else {
        return Err(Unfit::Name("its registration cannot be understood".to_owned()));
    };
    let (index, base) = match launched {
        Some((installed, _)) => (installed.index.clone(), installed.base.clone()),
        None => (named.plugin_idx, named.plugin_name),
    };
    if let Err(problem) = launch::check_index(&index).and_then(|()| launch::check_name(&base)) {
        request.fail(code::INVALID_ARGUMENT, problem.clone()).await;
        return Err(Unfit::Name(problem));
    }
    tracing::debug!(index, base, version = named.nri_version, "an NRI plugin registers");
    request.succeed(&Empty {}).await;
    Ok((index, base))
}

async fn configure(
    shared: &Shared,
    connection: &Connection,
    config: String,
) -> Result<ConfigureResponse, Unfit> {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let request = ConfigureRequest {
        config,
        runtime_name: "wharf".to_owned(),
        runtime_version: shared.settings.version.clone(),
        registration_timeout: ms(shared.settings.registration_timeout),
        request_timeout: ms(shared.settings.request_timeout),
        nri_version: NRI_VERSION.to_owned(),
    };
    call(connection, "Configure", &request, shared.settings.request_timeout).await
}

async fn call<R: prost::Message + Default>(
    connection: &Connection,
    method: &'static str,
    message: &impl prost::Message,
    patience: Duration,
) -> Result<R, Unfit> {
    let call = connection.call((PLUGIN_SERVICE, method), message, patience);
    let called = timeout(patience, call).await.map_err(|_elapsed| Unfit::Silent { method, patience })?;
    called.map_err(|source| Unfit::Call { method, source })
}

/// Adds a plugin to the list, and synchronises it with what exists. Requests to it wait meanwhile.
///
/// Synchronisation is part of the registration and has its deadline, not that of a request, for which a pod waits.
async fn join(shared: &Shared, plugin: &Arc<Plugin>) -> Result<(), Unfit> {
    let _lane = plugin.occupy().await;
    let (pods, containers) = enlist(shared, plugin).await?;
    let patience = shared.settings.registration_timeout;
    let mut updates = Vec::new();
    for message in messages(pods, containers)? {
        let response: SynchronizeResponse =
            call(plugin.connection(), "Synchronize", &message, patience).await?;
        if message.more && !(response.more && response.update.is_empty()) {
            return Err(Unfit::Whole);
        }
        updates = response.update;
    }
    change(shared, plugin, UpdateContainersRequest { update: updates, evict: Vec::new() }).await;
    Ok(())
}

/// Waits for a moment in which nothing is being made, adds the plugin to the list, and returns what exists then.
async fn enlist(shared: &Shared, plugin: &Arc<Plugin>) -> Result<Existing, Unfit> {
    loop {
        match timeout(GATE.0, shared.plugins.close_gate()).await {
            Ok(_closed) => {
                let creating = shared.plugins.add(Arc::clone(plugin));
                let existing = timeout(GATE.0, shared.plugins.existing(creating)).await;
                return existing.ok().flatten().ok_or(Unfit::Unclear);
            }
            // Something hangs: others must not wait for it, too.
            Err(_elapsed) => tokio::select! {
                () = sleep(GATE.1) => {}
                () = plugin.connection().ended() => return Err(Unfit::Ended),
            },
        }
    }
}

/// The existing pods and containers, in messages within the limit.
fn messages(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Result<Vec<SynchronizeRequest>, Unfit> {
    let limit = MESSAGE_LIMIT_BYTES - SLACK_BYTES;
    let mut all = Vec::new();
    let (mut message, mut bytes) = (SynchronizeRequest::default(), 0);
    let mut take = |message: &mut SynchronizeRequest, length: usize| {
        // A tag and a length beside each.
        let length = length + 8;
        if bytes + length > limit {
            all.push(SynchronizeRequest { more: true, ..std::mem::take(message) });
            bytes = 0;
        }
        bytes += length;
        if length > limit { Err(Unfit::TooLong) } else { Ok(()) }
    };
    for pod in pods {
        take(&mut message, pod.encoded_len())?;
        message.pods.push(pod);
    }
    for container in containers {
        take(&mut message, container.encoded_len())?;
        message.containers.push(container);
    }
    all.push(message);
    Ok(all)
}

/// Handles a plugin's requests until its connection ends.
async fn serve(shared: &Shared, plugin: &Plugin, mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        let content = &request.content;
        if content.service != RUNTIME_SERVICE || content.method != "UpdateContainers" {
            let problem = format!("{}: no such method now", content.method);
            request.fail(code::UNIMPLEMENTED, problem).await;
            continue;
        }
        let Ok(wanted) = UpdateContainersRequest::decode(content.payload.as_slice()) else {
            request.fail(code::INVALID_ARGUMENT, "the request cannot be understood".to_owned()).await;
            continue;
        };
        let failed = change(shared, plugin, wanted).await;
        request.succeed(&UpdateContainersResponse { failed }).await;
    }
    plugin.connection().ended().await;
}

async fn change(
    shared: &Shared,
    plugin: &Plugin,
    UpdateContainersRequest { update, evict }: UpdateContainersRequest,
) -> Vec<ContainerUpdate> {
    shared.plugins.obey(&plugin.name, update, evict).await
}

#[cfg(test)]
mod tests;
