//! RunPodSandbox: intent, namespaces, network, supervisor.

use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use wharf_cgroup::CgroupPath;
use wharf_cri_api::v1::{ContainerEventType, NamespaceMode, PodSandboxConfig, Protocol as CriProtocol};
use wharf_network::{Attachment, Dns, PodAddresses, PortMapping, Protocol, StatsSocket};
use wharf_planner::SecurityModules;
use wharf_state::Layout;
use wharf_types::PodId;

use super::Engine;
use crate::error::{Error, Stage, blocking};
use crate::key::PodKey;
use crate::namespaces::{NamespacePlan, SysctlScope, sysctl_scope};
use crate::pod::Pod;
use crate::records::Phase;
use crate::{files, namespaces, records, supervisor};

impl Engine {
    /// Makes a pod; a retry with the same metadata joins the call in flight or gets its pod.
    ///
    /// # Errors
    /// InvalidArgument, FailedPrecondition if its pod is not ready any more, or the stage that failed; then nothing is
    /// left.
    pub async fn run_pod(
        self: &Arc<Self>,
        config: PodSandboxConfig,
        handler: String,
    ) -> Result<PodId, Error> {
        self.check_handler(&handler)?;
        let key = PodKey::of(&config)?;
        check(&config, self.machine.modules)?;
        let engine = Arc::clone(self);
        let id =
            self.pod_calls.run(key, move || async move { engine.make_pod(config, handler).await }).await?;
        // A retry of a call whose pod was stopped since then: nobody may take that for a new one.
        match self.pod(id.as_str())?.is_ready() {
            true => Ok(id),
            false => Err(Error::State {
                what: "pod sandbox",
                id: id.to_string(),
                state: "not ready any more: remove it first",
            }),
        }
    }

    /// Whether a runtime handler is known; the empty name is the default one.
    ///
    /// # Errors
    /// InvalidArgument that names the known ones.
    pub fn check_handler(&self, handler: &str) -> Result<(), Error> {
        if handler.is_empty() || self.options.handlers.iter().any(|known| known == handler) {
            return Ok(());
        }
        let known = self.options.handlers.join(", ");
        Err(Error::invalid("runtime_handler", format!("{handler:?} is not known; known are: {known}")))
    }

    async fn make_pod(self: Arc<Self>, config: PodSandboxConfig, handler: String) -> Result<PodId, Error> {
        let id = PodId::from_random(wharf_sys::random::bytes().stage("making an id")?);
        let pod = Arc::new(Pod::new(id.clone(), config, handler, self.creation_time()));
        self.table.reserve(id.clone());
        match self.build_pod(&pod).await {
            Ok(()) => {
                let _order = pod.telling();
                self.table.insert(Arc::clone(&pod));
                self.events.tell(ContainerEventType::ContainerCreatedEvent, id.as_str(), &pod);
                self.events.tell(ContainerEventType::ContainerStartedEvent, id.as_str(), &pod);
                Ok(id)
            }
            Err(error) => {
                self.undo_pod(&pod).await;
                Err(error)
            }
        }
    }

    async fn build_pod(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), Error> {
        let (engine, of) = (Arc::clone(self), Arc::clone(pod));
        let socket = blocking(move || engine.build_blocking(&of)).await?;
        // The supervisor answers while the pod is connected to its network.
        self.watch_over(pod, Some(socket));
        let ips = if pod.is_host_network() { Vec::new() } else { self.join_network(pod).await?.ips };
        pod.connected().await?;
        let (engine, of) = (Arc::clone(self), Arc::clone(pod));
        blocking(move || engine.record_pod(&of, Phase::Made)).await?;
        let mut state = pod.write_state();
        state.ips = ips;
        state.ready = true;
        Ok(())
    }

    /// Connects a pod to the network, when it is its turn: the steps may be a plugin's, which hang as long as it likes.
    async fn join_network(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<PodAddresses, Error> {
        let _turn = self.connecting.acquire().await;
        let (engine, of) = (Arc::clone(self), Arc::clone(pod));
        blocking(move || engine.join_network_blocking(&of)).await
    }

    fn build_blocking(&self, pod: &Pod) -> Result<std::os::fd::OwnedFd, Error> {
        let layout = &self.parts.layout;
        let directory = layout.pod(&pod.id);
        make_directories(&directory)?;
        self.record_pod(pod, Phase::Making)?;
        if !pod.config.log_directory.is_empty() {
            make_log_directory(&pod.config.log_directory)?;
        }
        // The supervisor starts while the kernel's objects are made.
        let cgroup = supervisor::cgroup(&self.parts.cgroups, &self.options.cgroup_parent)?;
        let (process, socket) = self.program.start(&directory, cgroup.as_ref().map(AsFd::as_fd))?;
        *pod.supervisor() = Some(process);
        let plan = namespace_plan(layout, pod)?;
        make_files(layout, pod)?;
        namespaces::make(&plan)?;
        Ok(socket)
    }

    pub(crate) fn record_pod(&self, pod: &Pod, phase: Phase) -> Result<(), Error> {
        let record = records::PodRecord {
            config: pod.config.clone(),
            handler: pod.handler.clone(),
            created_at_ns: pod.created_at_ns,
            phase: phase.into(),
        };
        records::save_pod(&self.parts.layout.pod_record(&pod.id), &record)
    }

    fn join_network_blocking(&self, pod: &Pod) -> Result<PodAddresses, Error> {
        let netns = &self.parts.layout.namespace(&pod.id, "net");
        let metadata = pod.config.metadata.clone().unwrap_or_default();
        let ports = ports(&pod.config)?;
        let dns = pod.config.dns_config.clone().unwrap_or_default();
        let attachment = Attachment {
            id: &pod.id,
            name: &metadata.name,
            namespace: &metadata.namespace,
            uid: &metadata.uid,
            netns,
            ports: &ports,
            annotations: &pod.config.annotations,
            dns: Dns { servers: &dns.servers, searches: &dns.searches, options: &dns.options },
            cgroup_parent: pod.config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent),
        };
        let addresses = self.parts.network.attach(&attachment).stage("attaching the pod to the network")?;
        *pod.network_stats() = StatsSocket::open(netns).ok();
        Ok(addresses)
    }
}

fn check(config: &PodSandboxConfig, modules: SecurityModules) -> Result<(), Error> {
    wharf_planner::check_pod(config, modules)?;
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if context.is_some_and(|context| context.run_as_group.is_some() && context.run_as_user.is_none()) {
        return Err(Error::invalid("run_as_group", "it needs run_as_user"));
    }
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
    if !parent.is_empty() {
        CgroupPath::new(parent).map_err(|error| Error::invalid("cgroup_parent", error))?;
    }
    let directory = &config.log_directory;
    if !directory.is_empty() && (!directory.starts_with('/') || directory.split('/').any(|part| part == ".."))
    {
        return Err(Error::invalid(
            "log_directory",
            format!("{directory:?} is not an absolute path without .."),
        ));
    }
    if config.hostname.len() > 64 || config.hostname.bytes().any(|b| b.is_ascii_control() || b == b'/') {
        return Err(Error::invalid(
            "hostname",
            format!("{:?} is not a host name of at most 64 bytes", config.hostname),
        ));
    }
    Ok(())
}

fn make_directories(directory: &Path) -> Result<(), Error> {
    const STAGE: &str = "making the pod's directory";
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    for path in Layout::directories(directory) {
        builder.create(path).stage(STAGE)?;
    }
    Ok(())
}

/// The request names it: what the kernel says of the name is the request's to mend, all else the machine's.
fn make_log_directory(path: &str) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOTDIR | Errno::EEXIST | Errno::ENAMETOOLONG | Errno::ELOOP | Errno::EACCES) => {
            Error::invalid("log_directory", format!("{path:?} cannot be made: {error}"))
        }
        _ => Error::at("making the directory of the pod's logs", error),
    })
}

fn make_files(layout: &Layout, pod: &Pod) -> Result<(), Error> {
    let network = if pod.is_host_network() { files::Network::Hosts } else { files::Network::Own };
    let shm = if pod.namespaces().ipc() == NamespaceMode::Node { files::Shm::Hosts } else { files::Shm::Own };
    let resolv_conf = match &pod.config.dns_config {
        Some(dns) => files::resolv_conf(dns)?,
        None => files::hosts_resolv_conf(network),
    };
    let content = files::Files { hostname: &pod.hostname(), resolv_conf: &resolv_conf, shm };
    files::make(&layout.pod_memory(&pod.id), &content)
}

fn namespace_plan(layout: &Layout, pod: &Pod) -> Result<NamespacePlan, Error> {
    let options = pod.namespaces();
    let pin = |mode: NamespaceMode, kind| -> Option<PathBuf> {
        (mode != NamespaceMode::Node).then(|| layout.namespace(&pod.id, kind))
    };
    let net = pin(options.network(), "net");
    let ipc = pin(options.ipc(), "ipc");
    let uts = pin(options.network(), "uts");
    let mut sysctls = pod.config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    for (key, value) in &sysctls {
        let home = match sysctl_scope(key) {
            Some(SysctlScope::Net) => net.is_some(),
            Some(SysctlScope::Ipc) => ipc.is_some(),
            None => false,
        };
        if !home || value.contains(['\n', '\0']) {
            let problem = format!("{key} is not a sysctl of a namespace that the pod has of its own");
            return Err(Error::invalid("sysctls", problem));
        }
    }
    if net.is_some() {
        for (key, value) in
            [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
        {
            sysctls.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    Ok(NamespacePlan { net, ipc, uts, hostname: pod.hostname(), sysctls })
}

fn ports(config: &PodSandboxConfig) -> Result<Vec<PortMapping>, Error> {
    let port = |field, value: i32| {
        u16::try_from(value).map_err(|_range| Error::invalid(field, format!("{value} is not a port")))
    };
    config
        .port_mappings
        .iter()
        .map(|mapping| {
            let host_ip = (!mapping.host_ip.is_empty()).then(|| mapping.host_ip.parse()).transpose();
            Ok(PortMapping {
                protocol: match mapping.protocol() {
                    CriProtocol::Tcp => Protocol::Tcp,
                    CriProtocol::Udp => Protocol::Udp,
                    CriProtocol::Sctp => Protocol::Sctp,
                },
                container_port: port("container_port", mapping.container_port)?,
                host_port: port("host_port", mapping.host_port)?,
                host_ip: host_ip
                    .map_err(|error| Error::invalid("host_ip", format!("{:?}: {error}", mapping.host_ip)))?,
            })
        })
        .collect()
}
