//! One runtime, and the calls that make and remove pods.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use tonic::Status;
use wharf_cri_api::v1::{
    CgroupDriver, ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    RuntimeConfigRequest, SecurityProfile,
};
use wharf_tests::calls::Calls;

use crate::images::SMALL;
use crate::memory::WORKLOAD;

/// A runtime's socket and its daemon's process.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    name: String,
    socket: PathBuf,
    daemon: u32,
}

impl Endpoint {
    /// The same runtime with another daemon process.
    pub(crate) fn of_process(&self, daemon: u32) -> Self {
        Self { daemon, ..self.clone() }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is not NAME=SOCKET=PID");
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (socket, daemon) = rest.rsplit_once('=').ok_or_else(wrong)?;
        let daemon = daemon.parse().map_err(|error| format!("{}: {error}", wrong()))?;
        Ok(Self { name: name.to_owned(), socket: socket.into(), daemon })
    }
}

/// A client of one runtime. Clones share one connection.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub(crate) name: String,
    pub(crate) daemon: u32,
    pub(crate) calls: Calls,
    pub(crate) logs: PathBuf,
    cgroup_parent: String,
}

/// A pod with one running container.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

impl Runtime {
    /// Connects, and asks the runtime how it names cgroups.
    pub(crate) async fn connect(endpoint: &Endpoint, logs: &Path) -> anyhow::Result<Self> {
        let mut calls = Calls::connect(&endpoint.socket).await?;
        let driver = calls.runtime.runtime_config(RuntimeConfigRequest {}).await?.into_inner().linux;
        let systemd = driver.is_some_and(|linux| linux.cgroup_driver() == CgroupDriver::Systemd);
        Ok(Self {
            name: endpoint.name.clone(),
            daemon: endpoint.daemon,
            calls,
            logs: logs.join(&endpoint.name),
            cgroup_parent: if systemd { "bench.slice" } else { "/bench" }.to_owned(),
        })
    }

    /// A pod description with a name of its own. The pod has its own network, and each container its own PID namespace.
    pub(crate) fn pod_config(&self) -> PodSandboxConfig {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-{number}");
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: format!("bench-uid-{number}"),
                namespace: "bench".to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: self.logs.join(&name).display().to_string(),
            labels: labels(&name),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    seccomp: Some(SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Creates a container that runs `command`.
    pub(crate) async fn create(
        &self,
        sandbox: &str,
        config: &PodSandboxConfig,
        command: &[&str],
    ) -> Result<String, Status> {
        self.calls.create(sandbox, config, container_config(command)).await
    }

    /// Starts a whole pod with the workload running.
    pub(crate) async fn up(&self) -> anyhow::Result<Pod> {
        let config = self.pod_config();
        let sandbox = self.calls.run(&config).await.context("RunPodSandbox")?;
        let container = self.create(&sandbox, &config, WORKLOAD).await.context("CreateContainer")?;
        self.calls.start(&container).await.context("StartContainer")?;
        Ok(Pod { sandbox, container })
    }

    /// Ends a pod, in the kubelet's order.
    pub(crate) async fn down(&self, pod: &Pod) -> anyhow::Result<()> {
        self.calls.stop_container(&pod.container).await.context("StopContainer")?;
        self.calls.remove_container(&pod.container).await.context("RemoveContainer")?;
        self.calls.stop(&pod.sandbox).await.context("StopPodSandbox")?;
        self.calls.remove(&pod.sandbox).await.context("RemovePodSandbox")
    }
}

fn container_config(command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "bench".to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: SMALL.to_owned(), ..Default::default() }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        labels: labels("bench"),
        log_path: "bench.log".to_owned(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 1024,
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                // The default of the message is RuntimeDefault; without the message it would be unconfined.
                seccomp: Some(SecurityProfile::default()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }
}

fn labels(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("io.kubernetes.pod.name".to_owned(), name.to_owned())])
}
