//! The configuration: one TOML file, and drop-ins beside it that replace single keys. Unknown keys are errors. Every
//! key has a default, so wharfd runs without any file.
#![expect(clippy::disallowed_methods, reason = "it is read at the start, or where `spawn_blocking` leads")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use wharf_cgroup::{Cgroups, Driver, Placement};
use wharf_network::{Builtin, BuiltinConfig, Config as NetworkConfig, Mode, Subnet};
use wharf_planner::Defaults;
use wharf_state::Layout;

use containers::Containers;
use handlers::Handlers;
use nri::Nri;
use traces::Tracing;

mod containers;
mod handlers;
mod keys;
mod listening;
mod machine;
mod nri;
mod pods;
mod traces;
mod values;

const DEFAULT_FILE: &str = "/etc/wharf/config.toml";

/// All settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The directory for what outlives a restart of the machine: images, snapshots.
    pub(crate) root: PathBuf,
    /// The directory for what ends with the machine's uptime: pods, leases.
    pub(crate) state: PathBuf,
    /// The CRI socket.
    pub(crate) socket: PathBuf,
    /// Further paths with the same services.
    pub(crate) extra_sockets: Vec<PathBuf>,
    /// Who makes the cgroups: `cgroupfs`, which is wharf itself, or `systemd`.
    pub(crate) cgroup_driver: Driver,
    /// The parent of the cgroups of pods whose request names none.
    pub(crate) cgroup_parent: String,
    /// Runtime handlers in addition to the default one.
    pub(crate) handlers: Handlers,
    /// The supervisor's program; if empty, the one beside wharfd. Older configurations call it `shim`.
    #[serde(alias = "shim")]
    pub(crate) supervisor: PathBuf,
    pub(crate) log: Log,
    pub(crate) containers: Containers,
    pub(crate) images: Images,
    pub(crate) registry: Registry,
    pub(crate) network: Network,
    pub(crate) streaming: Streaming,
    pub(crate) metrics: Metrics,
    pub(crate) tracing: Tracing,
    pub(crate) cdi: Cdi,
    pub(crate) hooks: Hooks,
    pub(crate) nri: Nri,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter of tracing.
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// systemd's journal if standard error leads there, else text.
    Auto,
    Text,
    Json,
    /// systemd's journal, with each value in a field of its own.
    Journald,
}

/// The limits on one layer of an image, and which images stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Images {
    /// The longest archive of one layer when unpacked, in GiB; its files with holes together may not be larger either.
    pub(crate) layer_gib: u64,
    /// The most files, directories and other entries in one layer.
    pub(crate) layer_entries: u64,
    /// The most memory for one Zstandard decompressor, in MiB.
    pub(crate) zstd_window_mib: u64,
    /// How much of the disk must stay free, in MiB, but never more than a twentieth of it.
    pub(crate) reserve_mib: u64,
    /// How many of its inodes must stay free, with the same bound.
    pub(crate) reserve_inodes: u64,
    /// The names of images that the kubelet must not remove to free space; `*` stands for anything.
    pub(crate) pinned: Vec<String>,
}

/// Where images come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registry {
    /// Directories that hold `<host>/hosts.toml` as in containerd, or `<host>/*.crt` as in Docker, separated by colons.
    pub(crate) certs_dir: String,
    /// A `registries.conf`, for hosts of which these directories have no hosts.toml; none if empty.
    pub(crate) registries_conf: PathBuf,
    /// Files with the node's own credentials, in the format of Docker's config.json.
    pub(crate) auth_files: Vec<PathBuf>,
    /// How many layers of one pull are downloaded at a time.
    pub(crate) layers_per_pull: usize,
    /// How many layers of all pulls together are downloaded at a time, beside one of each pull.
    pub(crate) layers_in_all: usize,
    /// How long a registry may send nothing, in seconds.
    pub(crate) stall_timeout_s: u64,
    /// The lowest rate over a minute, in bytes per second.
    pub(crate) rate_floor_bytes: u64,
    /// Hosts in other domains that may see a registry's credentials to issue a token, by the registry's host.
    pub(crate) token_hosts: BTreeMap<String, Vec<String>>,
}

/// How pods are connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    /// Whether pods use the built-in network: `auto`, `on` or `off`.
    pub(crate) builtin: Builtin,
    /// How the built-in network connects pods: `routed` or `bridge`.
    pub(crate) mode: Mode,
    /// The directory of CNI configurations.
    pub(crate) cni_conf_dir: PathBuf,
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    /// How long the plugins may take to add a pod, in seconds.
    pub(crate) cni_add_timeout_s: u64,
    /// How long the plugins may take to delete a pod, in seconds.
    pub(crate) cni_delete_timeout_s: u64,
    /// The name of the bridge, in the mode `bridge`.
    pub(crate) bridge: String,
    /// The pods' addresses on the built-in network: one range for each family, the primary family first.
    pub(crate) subnets: String,
    /// Those of all nodes of the cluster.
    pub(crate) cluster_subnets: Vec<String>,
    /// The MTU of the pods' links in bytes. 0 uses that of the default route's link.
    pub(crate) mtu: u32,
}

/// Where exec, attach and port-forward are served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Streaming {
    /// An address of this node; port 0 means any. An address beyond loopback needs the three TLS files.
    pub(crate) address: SocketAddr,
    /// The PEM file with the server's certificate; empty without TLS.
    pub(crate) tls_certificate: PathBuf,
    /// The PEM file with its key.
    pub(crate) tls_key: PathBuf,
    /// The PEM file with the certificate authorities that sign client certificates.
    pub(crate) tls_client_authorities: PathBuf,
    /// How long a session may be idle, in seconds.
    pub(crate) idle_timeout_s: u64,
    /// How long a client may accept none of the bytes sent to it, in seconds.
    pub(crate) write_timeout_s: u64,
    /// How many sessions there may be at a time.
    pub(crate) sessions: usize,
    /// How many of them may be with one container, or with one pod's ports.
    pub(crate) sessions_each: usize,
}

/// Where Prometheus finds metrics.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// An address and a port; if empty, there is no server.
    pub(crate) address: String,
}

/// Devices by the Container Device Interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cdi {
    /// Whether containers can have them.
    pub(crate) enabled: bool,
    /// The directories of vendors' files; what a later one says of a device counts.
    pub(crate) spec_dirs: Vec<PathBuf>,
}

/// Hooks that the node's administrator gives to containers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Hooks {
    /// The directories of files in the format of oci-hooks(5).
    pub(crate) dirs: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/wharf".into(),
            state: "/run/wharf".into(),
            socket: "/run/wharf/wharf.sock".into(),
            extra_sockets: Vec::new(),
            cgroup_driver: Driver::Cgroupfs,
            cgroup_parent: Placement::default_parent(Driver::Cgroupfs).into(),
            handlers: Handlers::default(),
            supervisor: PathBuf::new(),
            log: Log::default(),
            containers: Containers::default(),
            images: Images::default(),
            registry: Registry::default(),
            network: Network::default(),
            streaming: Streaming::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
            cdi: Cdi::default(),
            hooks: Hooks::default(),
            nri: Nri::default(),
        }
    }
}

impl Default for Cdi {
    fn default() -> Self {
        Self { enabled: true, spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Auto }
    }
}

impl Default for Registry {
    fn default() -> Self {
        let limits = wharf_registry::Limits::default();
        Self {
            certs_dir: "/etc/wharf/certs.d".into(),
            registries_conf: PathBuf::new(),
            auth_files: Vec::new(),
            layers_per_pull: limits.layers_per_pull,
            layers_in_all: limits.layers_in_all,
            stall_timeout_s: limits.stall_timeout.as_secs(),
            rate_floor_bytes: limits.rate_floor_bytes,
            token_hosts: BTreeMap::new(),
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        let limits = wharf_images::Limits::default();
        Self {
            layer_gib: limits.layer_bytes >> 30,
            layer_entries: limits.entries,
            zstd_window_mib: limits.zstd_window_bytes >> 20,
            reserve_mib: limits.reserve_bytes >> 20,
            reserve_inodes: limits.reserve_inodes,
            pinned: Vec::new(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        let defaults = wharf_streaming::Config::default();
        Self {
            address: defaults.address,
            tls_certificate: PathBuf::new(),
            tls_key: PathBuf::new(),
            tls_client_authorities: PathBuf::new(),
            idle_timeout_s: defaults.idle.as_secs(),
            write_timeout_s: defaults.write.as_secs(),
            sessions: defaults.sessions,
            sessions_each: defaults.sessions_each,
        }
    }
}

impl Metrics {
    /// The port that the documentation names.
    const USUAL_PORT: u16 = 10213;

    /// Where to listen; `None` for nowhere.
    pub(crate) fn address(&self) -> anyhow::Result<Option<SocketAddr>> {
        let given = Some(self.address.as_str()).filter(|address| !address.is_empty());
        let parse = |given: &str| {
            let address = given.parse();
            address.with_context(|| format!("metrics.address: {given:?} is not an address with a port"))
        };
        given.map(parse).transpose()
    }
}

impl Network {
    fn cluster_subnets(&self) -> anyhow::Result<Vec<Subnet>> {
        self.cluster_subnets.iter().map(|text| text.parse().context("network.cluster_subnets")).collect()
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            builtin: Builtin::Auto,
            mode: Mode::Routed,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_add_timeout_s: NetworkConfig::ADD_DEADLINE.as_secs(),
            cni_delete_timeout_s: NetworkConfig::DELETE_DEADLINE.as_secs(),
            bridge: "wharf0".into(),
            subnets: "10.213.0.0/16,fd77:6861:7266::/64".into(),
            cluster_subnets: Vec::new(),
            mtu: 0,
        }
    }
}

impl Config {
    /// Reads the file, or the default one if it exists, and then `<file>.d/*.toml` in the order of their names.
    pub(crate) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let mut table = match text_of(path) {
            Ok(text) => checked(path, &text)?,
            Err(error) if file.is_none() && is_absent(path, &error) => toml::Table::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        for drop_in in drop_ins(path)? {
            let text = text_of(&drop_in).with_context(|| format!("reading {}", drop_in.display()))?;
            merge(&mut table, checked(&drop_in, &text)?);
        }
        let config: Self = table.try_into()?;
        config.check()?;
        Ok(config)
    }

    /// Finds at startup what would otherwise fail later, or with the first pod.
    fn check(&self) -> anyhow::Result<()> {
        self.defaults()?;
        crate::log::filter(&self.log)?;
        self.network(&Layout::new(self.state.clone(), self.root.clone()))?;
        values::check(self)?;
        self.placement()?;
        self.handlers()?;
        self.tracing.settings()?;
        self.nri.check()
    }

    pub(crate) fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Where the CRI is served: each path with its key.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let extra = self.extra_sockets.iter().map(|path| ("extra_sockets", path.as_path()));
        std::iter::once(("socket", self.socket.as_path())).chain(extra)
    }

    /// Where the cgroups are. The default of one driver means that of the other, too.
    pub(crate) fn placement(&self) -> anyhow::Result<Placement> {
        let parent = match self.cgroup_parent.as_str() {
            parent if parent == Placement::default_parent(Driver::Cgroupfs) => {
                Placement::default_parent(self.cgroup_driver)
            }
            parent => parent,
        };
        Placement::new(self.cgroup_driver, parent).context("cgroup_parent")
    }

    /// The machine's cgroups, made by whom the configuration says.
    pub(crate) fn cgroups(&self) -> anyhow::Result<Cgroups> {
        let cgroups = Cgroups::detect().context("finding the cgroup hierarchies")?;
        match self.cgroup_driver {
            Driver::Cgroupfs => Ok(cgroups),
            Driver::Systemd => cgroups.with_systemd(&self.supervisor()?).context("cgroup_driver"),
        }
    }

    /// The supervisor's program.
    pub(crate) fn supervisor(&self) -> anyhow::Result<PathBuf> {
        if !self.supervisor.as_os_str().is_empty() {
            return Ok(self.supervisor.clone());
        }
        let own = std::env::current_exe().context("finding this program")?;
        Ok(own.with_file_name("wharf-shim"))
    }

    pub(crate) fn network(&self, layout: &Layout) -> anyhow::Result<NetworkConfig> {
        let network = &self.network;
        let subnets = network.subnets.parse().context("network.subnets")?;
        let cluster_subnets = network.cluster_subnets()?;
        let (bridge, mtu) = (network.bridge.clone(), Some(network.mtu).filter(|mtu| *mtu > 0));
        Ok(NetworkConfig {
            state_dir: layout.network(),
            lease_dir: layout.leases(),
            cni_conf_dir: network.cni_conf_dir.clone(),
            cni_bin_dirs: network.cni_bin_dirs.clone(),
            cni_add_deadline: Duration::from_secs(network.cni_add_timeout_s),
            cni_delete_deadline: Duration::from_secs(network.cni_delete_timeout_s),
            builtin: network.builtin,
            builtin_network: BuiltinConfig { mode: network.mode, bridge, subnets, cluster_subnets, mtu },
            kubelet_files: NetworkConfig::KUBELET_FILES.map(PathBuf::from).to_vec(),
        })
    }

    pub(crate) fn streaming(&self) -> wharf_streaming::Config {
        let streaming = &self.streaming;
        let tls = wharf_streaming::TlsFiles {
            certificate: streaming.tls_certificate.clone(),
            key: streaming.tls_key.clone(),
            client_authorities: streaming.tls_client_authorities.clone(),
        };
        wharf_streaming::Config {
            address: streaming.address,
            tls: (!tls.certificate.as_os_str().is_empty()).then_some(tls),
            idle: Duration::from_secs(streaming.idle_timeout_s),
            write: Duration::from_secs(streaming.write_timeout_s),
            sessions: streaming.sessions,
            sessions_each: streaming.sessions_each,
            ..wharf_streaming::Config::default()
        }
    }

    pub(crate) fn additions(&self) -> wharf_pods::AdditionsConfig {
        wharf_pods::AdditionsConfig {
            cdi: self.cdi.enabled.into(),
            cdi_directories: self.cdi.spec_dirs.clone(),
            hook_directories: self.hooks.dirs.clone(),
        }
    }

    pub(crate) fn handlers(&self) -> anyhow::Result<BTreeMap<String, wharf_pods::HandlerConfig>> {
        self.handlers.configs()
    }

    pub(crate) fn registry(&self) -> anyhow::Result<wharf_registry::Config> {
        Ok(wharf_registry::Config {
            files: self.registry_files(),
            proxies: wharf_registry::Proxies::from_environment().context("the environment")?,
            token_hosts: self.registry.token_hosts.clone(),
            limits: wharf_registry::Limits {
                layers_per_pull: self.registry.layers_per_pull,
                layers_in_all: self.registry.layers_in_all,
                stall_timeout: Duration::from_secs(self.registry.stall_timeout_s),
                rate_floor_bytes: self.registry.rate_floor_bytes,
                ..wharf_registry::Limits::default()
            },
        })
    }

    /// The files with the settings of registries.
    pub(crate) fn registry_files(&self) -> wharf_registry::HostFiles {
        let conf = &self.registry.registries_conf;
        wharf_registry::HostFiles {
            certs_dirs: self.certs_dirs().map(Path::to_owned).collect(),
            registries_conf: Some(conf.clone()).filter(|conf| !conf.as_os_str().is_empty()),
            auth_files: self.registry.auth_files.clone(),
        }
    }

    fn certs_dirs(&self) -> impl Iterator<Item = &Path> {
        self.registry.certs_dir.split(':').filter(|dir| !dir.is_empty()).map(Path::new)
    }

    /// What requests leave open.
    pub(crate) fn defaults(&self) -> anyhow::Result<Defaults> {
        self.containers.defaults()
    }

    pub(crate) fn images(&self) -> wharf_images::Limits {
        let images = &self.images;
        wharf_images::Limits {
            layer_bytes: images.layer_gib.saturating_mul(1 << 30),
            entries: images.layer_entries,
            zstd_window_bytes: images.zstd_window_mib.saturating_mul(1 << 20),
            reserve_bytes: images.reserve_mib.saturating_mul(1 << 20),
            reserve_inodes: images.reserve_inodes,
            ..wharf_images::Limits::default()
        }
    }
}

/// Parses each file alone, so that an error has the right line.
fn checked(path: &Path, text: &str) -> anyhow::Result<toml::Table> {
    let parsed: Result<Config, _> = toml::from_str(text);
    parsed.map_err(|error| {
        let hint = keys::meant(error.message()).map(|key| format!(": did you mean `{key}`?"));
        let hint = hint.unwrap_or_default();
        anyhow::Error::new(error).context(format!("in {}{hint}", path.display()))
    })?;
    toml::from_str(text).with_context(|| format!("in {}", path.display()))
}

/// The text of a file of the configuration. A FIFO in its place would be waited for in vain; but what a shell passes as
/// a descriptor may be a pipe, and has an end.
fn text_of(path: &Path) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind};
    /// Hundreds of times as much as a configuration has.
    const LIMIT_BYTES: usize = 16 << 20;
    let bytes = if path.starts_with("/dev") || path.starts_with("/proc") {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(LIMIT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > LIMIT_BYTES {
            return Err(Error::new(ErrorKind::FileTooLarge, "it is longer than 16 MiB"));
        }
        bytes
    } else {
        wharf_sys::fs::read_regular(path, LIMIT_BYTES)?
    };
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

/// Whether nothing is at a path, not even a link that leads to nothing: its administrator meant something by that.
fn is_absent(path: &Path, error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err()
}

fn drop_ins(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if is_absent(Path::new(&directory), &error) => return Ok(Vec::new()),
        other => other.with_context(|| format!("reading {}", Path::new(&directory).display()))?,
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    // An editor's lock begins with a dot.
    let is_hidden = |file: &Path| file.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml") && !is_hidden(file));
    files.retain(|file| !file.is_dir());
    files.sort();
    Ok(files)
}

/// Replaces the keys of an earlier table with those of a later one, table by table.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests;
