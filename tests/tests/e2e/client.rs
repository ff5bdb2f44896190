//! A client of one daemon: the CRI calls beyond [`Calls`], and the requests with which most tests begin.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use tonic::Status;
use wharf_cri_api::v1::*;
use wharf_tests::calls::Calls;
use wharf_types::StreamOptions;

use crate::world::until;

/// A client of one daemon; clones share its connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    calls: Calls,
    /// The image used by [`Client::container`].
    pub(crate) image: String,
    pub(crate) socket: PathBuf,
    logs: PathBuf,
}

impl Deref for Client {
    type Target = Calls;

    fn deref(&self) -> &Calls {
        &self.calls
    }
}

impl Client {
    /// Connects as soon as a daemon listens.
    pub(crate) async fn connect(socket: &Path, image: &str, logs: &Path) -> Self {
        Self {
            calls: until("wharfd listens", async || Calls::connect(socket).await.ok()).await,
            image: image.to_owned(),
            socket: socket.to_owned(),
            logs: logs.to_owned(),
        }
    }

    // ---- Requests ----

    /// A pod on the built-in network. Its name distinguishes it, and its logs go to a directory of that name.
    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "e2e".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.logs.join(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(own_processes()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// A container that runs a line of shell and logs to `<name>.log`.
    pub(crate) fn container(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image(&self.image)),
            command: words(&["sh", "-c", script]),
            log_path: format!("{name}.log"),
            labels: BTreeMap::from([("name".to_owned(), name.to_owned())]),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(own_processes()),
                    seccomp: Some(SecurityProfile::default()),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        }
    }

    /// The path of the log of a container from [`Client::container`].
    pub(crate) fn log_path(&self, pod: &str, container: &str) -> PathBuf {
        self.logs.join(pod).join(format!("{container}.log"))
    }

    // ---- Calls ----

    pub(crate) async fn create(&self, pod: &str, config: &ContainerConfig) -> Result<String, Status> {
        self.calls.create(pod, &PodSandboxConfig::default(), config.clone()).await
    }

    /// Creates and starts a container.
    pub(crate) async fn launch(&self, pod: &str, config: &ContainerConfig) -> Result<String, Status> {
        let id = self.create(pod, config).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// Runs a line of shell in a container of its own until it exits.
    pub(crate) async fn to_end(&self, pod: &str, name: &str, script: &str) -> ContainerStatus {
        let id = self.launch(pod, &self.container(name, script)).await.unwrap();
        self.exited(&id).await
    }

    pub(crate) async fn stop_container(&self, container: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// Ends a pod as the kubelet does.
    pub(crate) async fn down(&self, pod: &str) -> Result<(), Status> {
        self.stop(pod).await?;
        self.remove(pod).await
    }

    pub(crate) async fn exec(
        &self,
        container: &str,
        script: &str,
        timeout: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let cmd = words(&["sh", "-c", script]);
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// The URL of a command's streams.
    pub(crate) async fn exec_url(
        &self,
        container: &str,
        command: &[&str],
        wanted: StreamOptions,
    ) -> Result<String, Status> {
        let StreamOptions { stdin, stdout, stderr, terminal: tty } = wanted;
        let (container_id, cmd) = (container.to_owned(), words(command));
        let request = ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
        Ok(self.runtime.clone().exec(request).await?.into_inner().url)
    }

    /// The URL of a container's own streams.
    pub(crate) async fn attach_url(&self, container: &str, wanted: StreamOptions) -> Result<String, Status> {
        let StreamOptions { stdin, stdout, stderr, terminal: tty } = wanted;
        let request = AttachRequest { container_id: container.to_owned(), tty, stdin, stdout, stderr };
        Ok(self.runtime.clone().attach(request).await?.into_inner().url)
    }

    /// The URL for connections into a pod.
    pub(crate) async fn port_forward_url(&self, pod: &str) -> Result<String, Status> {
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: Vec::new() };
        Ok(self.runtime.clone().port_forward(request).await?.into_inner().url)
    }

    /// The output of a line of shell in a container.
    pub(crate) async fn output(&self, container: &str, script: &str) -> String {
        let response = self.exec(container, script, 10).await.unwrap();
        let error = String::from_utf8_lossy(&response.stderr);
        assert_eq!((response.exit_code, &*error), (0, ""), "{script}");
        String::from_utf8(response.stdout).unwrap().trim_end().to_owned()
    }

    pub(crate) async fn status(&self, container: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        Ok(self.runtime.clone().container_status(request).await?.into_inner().status.unwrap())
    }

    /// The status of a container once it has exited.
    pub(crate) async fn exited(&self, container: &str) -> ContainerStatus {
        let exited = async || {
            let status = self.status(container).await.unwrap();
            (status.state() == ContainerState::ContainerExited).then_some(status)
        };
        until("the container ends", exited).await
    }

    pub(crate) async fn pod_status(&self, pod: &str) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        Ok(self.runtime.clone().pod_sandbox_status(request).await?.into_inner().status.unwrap())
    }

    pub(crate) async fn container_stats(&self, container: &str) -> ContainerStats {
        let request = ContainerStatsRequest { container_id: container.to_owned() };
        self.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap()
    }

    pub(crate) async fn pod_stats(&self, pod: &str) -> LinuxPodSandboxStats {
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
        let stats = self.runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats;
        stats.unwrap().linux.unwrap()
    }

    /// Updates a container's limits.
    pub(crate) async fn update(&self, container: &str, linux: LinuxContainerResources) -> Result<(), Status> {
        let request = UpdateContainerResourcesRequest {
            container_id: container.to_owned(),
            linux: Some(linux),
            ..UpdateContainerResourcesRequest::default()
        };
        self.runtime.clone().update_container_resources(request).await.map(drop)
    }

    pub(crate) async fn pods(&self) -> Vec<PodSandbox> {
        let request = ListPodSandboxRequest::default();
        self.runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items
    }

    pub(crate) async fn containers(&self) -> Vec<Container> {
        let request = ListContainersRequest::default();
        self.runtime.clone().list_containers(request).await.unwrap().into_inner().containers
    }

    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), Status> {
        let request = RemoveImageRequest { image: Some(image(name)) };
        self.images.clone().remove_image(request).await.map(drop)
    }

    pub(crate) async fn image_list(&self) -> Vec<Image> {
        self.images.clone().list_images(ListImagesRequest::default()).await.unwrap().into_inner().images
    }
}

pub(crate) fn image(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_owned(), ..ImageSpec::default() }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The pod's namespaces, with this mode for PIDs.
pub(crate) fn processes(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption { pid: pid.into(), ..NamespaceOption::default() }
}

/// A PID namespace for each container.
pub(crate) fn own_processes() -> NamespaceOption {
    processes(NamespaceMode::Container)
}

/// The security context of a container's request, for changes.
pub(crate) fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The security context of a pod's request, for changes.
pub(crate) fn pod_security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}
