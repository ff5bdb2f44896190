//! `wharfd`: reads its configuration, opens its state on disk, takes over the pods of an earlier daemon, and serves the
//! CRI. On SIGTERM it exits without touching a container.

mod admin;
mod claims;
mod clean;
mod config;
mod figures;
mod journal;
mod killed;
mod listener;
mod log;
mod reload;
mod runtime;
mod serve;
mod slow;
mod stderr;
mod systemd;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use wharf_cgroup::Controller;
use wharf_cri::Observers;
use wharf_images::{Store, StoreError};
use wharf_metrics::{Calls, Metrics, Serving};
use wharf_nri::Plugins;
use wharf_pods::{Engine, Options, Parts};
use wharf_registry::Puller;
use wharf_state::Layout;
use wharf_traces::{Exporting, Tracer};
use wharf_types::failure;

use crate::claims::{Claims, OfKilled, Unclaimed};
use crate::config::{Config, Log, LogFormat};
use crate::figures::Figures;
use crate::killed::Killed;
use crate::serve::Services;
use crate::slow::work_in;
use crate::stderr::Stderr;

/// The daemon of wharf, a Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "wharfd", version)]
struct Arguments {
    /// The configuration file; /etc/wharf/config.toml by default, if it exists.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print or check the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Remove what wharf left on this machine: pods, network, cgroups and state; stop wharfd first.
    Clean(clean::Arguments),
    /// For this program alone: see `slow`.
    #[command(name = slow::TOUCH, hide = true)]
    Touch { directory: PathBuf },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration in effect as TOML.
    Dump,
    /// Check whether the configuration can be used on this machine; if not, the exit code is 1. It is 2 if the output
    /// cannot be written.
    Check,
}

/// The exit code if the output cannot be written.
const UNWRITTEN: u8 = 2;

/// As many parts of the heap as tasks run at once.
const HEAP_ARENAS: i32 = 2;

/// How long threads that are at work are waited for at the end. A disk may never respond to them; the next daemon
/// undoes what they leave half done, as after a kill.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    wharf_sys::heap::share(HEAP_ARENAS);
    let error = match perform() {
        Ok(code) => return code,
        Err(error) => error,
    };
    // A pipe that nobody reads must not keep the process, whose claims the next one waits for.
    let text = format!("Error: {}\n", advised(wharf_types::chain(error.as_ref())));
    let written = Stderr::new(|_lost| String::new()).and_then(|mut stderr| stderr.write_all(text.as_bytes()));
    // Nobody is left who could be told.
    drop(written);
    ExitCode::FAILURE
}

/// An error's words, after which the user knows what to do about a disk that has failed.
fn advised(error: String) -> String {
    let is_said = error.contains("(dmesg)");
    match failure::of_disk(&error) {
        Some(advice) if !is_said => format!("{error}\n  {advice}"),
        _ => error,
    }
}

fn perform() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Command::Touch { directory }) = &arguments.command {
        slow::touch(directory);
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(arguments.config.as_deref())?;
    if let Some(Command::Config(command)) = &arguments.command {
        let text = match command {
            ConfigCommand::Dump => config.to_toml()?,
            ConfigCommand::Check => {
                config.check_disks(slow::responds)?;
                config.check_apart(|_path, resolve| resolve())?;
                for without in config.check_machine()? {
                    // Who does not read it is told on standard output, or by the exit code.
                    writeln!(std::io::stderr(), "Warning: {without}").ok();
                }
                "wharfd can start with this configuration\n".to_owned()
            }
        };
        return Ok(print(std::io::stdout(), &text));
    }
    let level = match arguments.command {
        // Somebody waits for it at a terminal.
        Some(Command::Clean(_)) => log::start(&Log { format: LogFormat::Text, ..config.log.clone() }),
        _ => log::start(&config.log),
    }?;
    let open_files = wharf_sys::open_files::raise().context("raising the limit of open files")?;
    tracing::debug!(open_files, "raised the limit of open files");
    let runtime = runtime::start()?;
    let ended = match arguments.command {
        Some(Command::Clean(clean)) => runtime.block_on(clean::clean(&config, clean)),
        _ => runtime.block_on(async {
            reload::at_hangup(arguments.config, level)?;
            run(config).await
        }),
    };
    runtime.shutdown_timeout(LEAVE_LIMIT);
    ended.map(|()| ExitCode::SUCCESS)
}

/// Prints what was asked for. That it cannot be written says nothing about the configuration, and has a code of its
/// own; a reader that has gone has seen enough.
fn print(mut output: impl Write, text: &str) -> ExitCode {
    match output.write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            // Nobody is left who could be told.
            writeln!(std::io::stderr(), "Error: the output cannot be written: {error}").ok();
            ExitCode::from(UNWRITTEN)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The node's state on disk and in the kernel.
struct Node {
    claims: &'static Claims,
    layout: Layout,
    images: Arc<Store>,
    network: Arc<wharf_network::Network>,
    cgroups: wharf_cgroup::Cgroups,
    plugins: Arc<Plugins>,
    engine: Arc<Engine>,
}

impl Node {
    /// Claims what only one wharfd may have at a time, until this process ends.
    async fn claim(config: &Config, of_killed: OfKilled) -> anyhow::Result<&'static Claims> {
        let layout = Layout::new(config.state.clone(), config.root.clone());
        config.check_apart(|path, resolve| work_in(path, resolve))?;
        let taken = |unclaimed: &Unclaimed| match unclaimed {
            Unclaimed::Taken(error) => {
                Some(error.downcast_ref().map_or_else(|| error.to_string(), Killed::words))
            }
            Unclaimed::Refused(_) | Unclaimed::Failed(_) => None,
        };
        let start = Instant::now();
        let claim = || {
            let of_killed = if start.elapsed() < END_PATIENCE { OfKilled::Respected } else { of_killed };
            work_in(&config.state, || Claims::make(&layout, of_killed))
        };
        let claims = patiently(claim, taken).await?.keep();
        tokio::spawn(claims.show());
        Ok(claims)
    }

    async fn open(config: &Config, claims: &'static Claims) -> anyhow::Result<Self> {
        let layout = Layout::new(config.state.clone(), config.root.clone());
        let (root, state) = (&config.root, &config.state);
        let images = Arc::new(Self::open_images(config, claims.of_killed).await?);
        let snapshots = work_in(root, || wharf_snapshots::Snapshots::open(&layout.snapshots()));
        let snapshots = snapshots.context("opening the snapshots")?;
        let network = config.network(&layout)?;
        // What must outlive a reboot is in `root`, and the leases are in `state`.
        let network = work_in(root, || work_in(state, || wharf_network::Network::open(network)));
        let network = Arc::new(network.context("opening the network")?);
        let cgroups = config.cgroups()?;
        anyhow::ensure!(
            config.containers.pids_limit == 0 || cgroups.controllers().contains(&Controller::Pids),
            "containers.pids_limit: this machine has no controller pids: set it to 0"
        );
        let plugins = Arc::new(Plugins::new(config.nri.settings().as_ref()));
        let parts = Parts {
            layout: layout.clone(),
            images: Arc::clone(&images),
            snapshots: Arc::new(snapshots),
            network: Arc::clone(&network),
            cgroups: cgroups.clone(),
            supervisor: config.supervisor()?,
            plugins: Arc::clone(&plugins),
        };
        let options = Options {
            placement: config.placement()?,
            handlers: wharf_pods::Handlers::ask(config.handlers()?),
            defaults: config.defaults()?,
            additions: config.additions(),
        };
        let engine = Engine::new(options, parts)?;
        Ok(Self { claims, layout, images, network, cgroups, plugins, engine })
    }
}

impl Node {
    /// Opens the store, which one process has at a time.
    async fn open_images(config: &Config, of_killed: OfKilled) -> anyhow::Result<Store> {
        let (root, start) = (&config.root, Instant::now());
        let [.., lock] = &Store::ENTRIES;
        let lock = root.join(lock);
        let killed = || claims::killed_holder(&lock);
        let in_use = |error: &StoreError| {
            let is_in_use = matches!(error, StoreError::InUse { .. });
            let waits = of_killed == OfKilled::Respected || start.elapsed() < END_PATIENCE;
            match killed().filter(|_| is_in_use) {
                Some(killed) => waits.then(|| killed.words()),
                None => is_in_use.then(|| format!("{error}{}", claims::holder(&lock))),
            }
        };
        let images = patiently(|| work_in(root, || Store::open_with(root, config.images())), in_use).await;
        images.map_err(|error| unopened(error, root, &lock))
    }
}

/// That the images cannot be opened, and who has them if they are in use.
fn unopened(error: StoreError, root: &Path, lock: &Path) -> anyhow::Error {
    let opening = format!("opening the images in {}", root.display());
    if !matches!(error, StoreError::InUse { .. }) {
        return anyhow::Error::new(error).context(opening);
    }
    match claims::killed_holder(lock) {
        Some(killed) => anyhow::Error::new(killed).context(opening),
        None => {
            let holder = claims::holder(lock);
            anyhow::Error::new(error).context(format!("{opening}, which another process{holder} has"))
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    // Before a disk that stalls can keep it from saying anything.
    let [root, state] = [&config.root, &config.state].map(|path| path.display());
    tracing::info!(%root, %state, "wharfd starts");
    let Node { images, network, cgroups, plugins, engine, layout, .. } =
        Node::open(&config, Node::claim(&config, OfKilled::Respected).await?).await?;
    match engine.program().supervised(&layout.pods()) {
        Ok(pods) => check_open_files(pods.len())?,
        // As far as is known, for any number of pods.
        Err(error) if error.cause.kind() == wharf_types::ErrorKind::ResourceExhausted => {
            return Err(error.into());
        }
        Err(error) => tracing::warn!(error = wharf_types::chain(&error), "running pods cannot be counted"),
    }
    let info = admin::info(&config, &cgroups)?;
    if info.bounding_capabilities & wharf_types::capability::SYS_RESOURCE == 0 {
        tracing::warn!(
            "wharfd lacks CAP_SYS_RESOURCE: it cannot lower a container's oom_score_adj or raise its limits"
        );
    }
    if let Err(error) = engine.user_namespaces() {
        tracing::warn!(error = wharf_types::chain(&*error), "pods cannot have user namespaces");
    }
    let puller = puller(&config, &images)?;
    recover(&engine).await;
    let (listening, nri) = match config.nri.settings() {
        Some(settings) => listen_for_plugins(settings, Arc::clone(&plugins), &engine).await,
        None => (None, admin::Nri::default()),
    };
    let json = serde_json::to_string(&config)?;
    let names = wharf_cri::Names::new(Arc::clone(&images), Arc::clone(&puller));
    let streams = wharf_cri::Streams::new(Arc::clone(&engine));
    let streaming = wharf_streaming::Server::bind(config.streaming(), streams).await?;
    let urls = streaming.urls();
    let (tracer, exporting) = start_traces(&config)?.unzip();
    let figures = Figures {
        engine: Arc::clone(&engine),
        images: Arc::clone(&images),
        puller: Arc::clone(&puller),
        sessions: streaming.open(),
        tracer: tracer.clone(),
        runtime: Handle::current(),
    };
    let (calls, _metrics) = serve_metrics(&config, figures)?;
    let (serving, served) = oneshot::channel::<()>();
    let sessions = tokio::spawn(streaming.serve(async { drop(served.await) }));
    let services = Services {
        observers: Observers { calls, tracer },
        admin: wharf_cri::Admin::new(
            admin::now(nri.told(info), Arc::clone(&network), Arc::clone(&engine), plugins),
            Arc::clone(&engine),
            Arc::clone(&puller),
            Arc::clone(&images),
        ),
        runtime: wharf_cri::Runtime::new(Arc::clone(&engine), network, names, urls, json),
        images: wharf_cri::Images::new(images, puller, engine, config.images.pinned.clone()),
    };
    let sockets: Vec<_> = config.sockets().map(|(_, path)| path).collect();
    serve::serve(&sockets, services).await?;
    if let Some(listening) = listening {
        listening.end().await;
    }
    drop(serving);
    sessions.await?;
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    Ok(())
}

/// Refuses to take over running pods with a limit on open files with which some could not be listed: whoever asks would
/// take them for gone.
fn check_open_files(pods: usize) -> anyhow::Result<()> {
    /// Its sockets, and a few calls.
    const TO_SERVE: usize = 8;
    /// The process and the connection of a supervisor.
    const OF_POD: usize = 2;
    #[expect(clippy::disallowed_methods, reason = "procfs waits for no disk")]
    let open = std::fs::read_dir("/proc/self/fd").context("counting open files")?.count();
    let (limit, least) = (wharf_sys::open_files::raise()?, open + TO_SERVE + pods * OF_POD);
    anyhow::ensure!(
        usize::try_from(limit).is_ok_and(|limit| limit >= least),
        "the limit on open files is {limit}, and for {pods} running pods wharfd needs at least {least}: raise \
         LimitNOFILE of wharfd.service, or the hard limit (ulimit -Hn) with which wharfd is started"
    );
    Ok(())
}

/// Takes over the pods of an earlier wharfd, and begins what goes on in the background.
async fn recover(engine: &Arc<Engine>) {
    match engine.recover().await {
        Ok(()) => drop(tokio::spawn(Arc::clone(engine).keep_tidy())),
        Err(error) => tracing::error!(
            error = wharf_types::chain(&error),
            "cannot list the pods of an earlier wharfd: nothing that it left is removed until the next start"
        ),
    }
    tokio::spawn(Arc::clone(engine).free_addresses());
    tokio::spawn(Arc::clone(engine).measure_layers());
}

/// Makes the registry client. What is wrong with the settings of registries is logged as soon as their files are read.
fn puller(config: &Config, images: &Arc<Store>) -> anyhow::Result<Arc<Puller>> {
    let puller = Arc::new(Puller::new(Arc::clone(images), config.registry()?));
    tokio::spawn(report_problems(Arc::clone(&puller)));
    Ok(puller)
}

/// Logs what is wrong with the settings of registries.
async fn report_problems(puller: Arc<Puller>) {
    match puller.problems().await {
        Ok(problems) => {
            problems.iter().for_each(|problem| tracing::error!(problem, "a setting of registries is wrong"))
        }
        Err(error) => {
            tracing::warn!(error = wharf_types::chain(&error), "the settings of registries are not checked");
        }
    }
}

/// Counts calls, and serves that and other figures, if the configuration says where, until what this returns is
/// dropped.
fn serve_metrics(config: &Config, figures: Figures) -> anyhow::Result<(Calls, Option<Serving>)> {
    let mut metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    metrics.add(figures);
    let calls = metrics.calls();
    let serve = |address| metrics.serve(address).context("starting the thread that serves metrics");
    Ok((calls, config.metrics.address()?.map(serve).transpose()?))
}

/// Traces calls, if the configuration names a collector.
fn start_traces(config: &Config) -> anyhow::Result<Option<(Tracer, Exporting)>> {
    let start = |settings| Tracer::start(settings).context("starting the thread that exports traces");
    config.tracing.settings()?.map(start).transpose()
}

/// Plugins are no reason not to serve.
async fn listen_for_plugins(
    settings: wharf_nri::Settings,
    plugins: Arc<Plugins>,
    engine: &Arc<Engine>,
) -> (Option<wharf_nri::Listening>, admin::Nri) {
    let socket = settings.socket.display().to_string();
    match wharf_nri::start(settings, plugins, Arc::clone(engine) as Arc<dyn wharf_nri::Node>).await {
        Ok(listening) => {
            let socket = listening.socket().map(|path| path.display().to_string());
            (Some(listening), admin::Nri { is_on: true, socket, problem: None })
        }
        Err(error) => {
            let problem = wharf_types::chain(&error);
            tracing::warn!(socket, error = problem, "NRI plugins cannot connect");
            let problem = Some(format!("plugins cannot connect to {socket}: {problem}"));
            (None, admin::Nri { is_on: true, socket: None, problem })
        }
    }
}

/// How long to wait for what another daemon has. A daemon that was asked to exit first finishes its in-flight calls.
/// The locks of a killed one survive in a supervisor that it was starting, until that supervisor's exec.
const LOCK_PATIENCE: Duration = serve::FINISH_LIMIT.saturating_mul(2);

/// How long a process that was killed is waited for where what it has can be passed over: most end at once.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Repeats what fails only because somebody else has it, for a limited time; `taken` says who, for people.
async fn patiently<T, E>(
    attempt: impl Fn() -> Result<T, E>,
    taken: impl Fn(&E) -> Option<String>,
) -> Result<T, E> {
    let start = Instant::now();
    let mut is_told = false;
    loop {
        let error = match attempt() {
            Err(error) if start.elapsed() < LOCK_PATIENCE => error,
            other => return other,
        };
        let Some(other) = taken(&error) else { return Err(error) };
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(other, patience = ?LOCK_PATIENCE, "waiting until another wharfd has ended");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_has_failed_is_told_with_what_to_do_once() {
        let told = |words: &str| advised(words.to_owned());
        for words in [
            "opening the images in /r: the store cannot be locked: openat(lock): I/O error",
            "EROFS: Read-only file system",
        ] {
            assert_eq!(told(words), format!("{words}\n  {}", failure::FAILED_DISK));
        }
        for words in [
            "state: check its disk, and see the kernel's log (dmesg): I/O error",
            "openat(lock): File exists",
        ] {
            assert_eq!(told(words), words);
        }
    }

    #[test]
    fn who_has_the_images_is_told_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let _first = Store::open(&root).unwrap();
        let refused = unopened(Store::open(&root).map(drop).unwrap_err(), &root, &root.join("lock"));
        assert!(matches!(refused.downcast_ref(), Some(StoreError::InUse { .. })));
        let words = format!("which another process (pid {}) has", std::process::id());
        assert!(refused.to_string().ends_with(&words), "{refused}");
    }

    #[test]
    fn an_output_that_cannot_be_written_is_not_a_configuration_that_cannot_be_used() {
        let shown = |code: ExitCode| format!("{code:?}");
        // A slice without room.
        assert_eq!(shown(print(&mut [][..], "it can\n")), shown(ExitCode::from(UNWRITTEN)));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(shown(print(writer, "it can\n")), shown(ExitCode::SUCCESS));
    }
}
