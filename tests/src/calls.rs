//! The calls that make and remove pods, for any runtime.

use std::path::Path;

use tonic::Status;
use tonic::transport::Channel;
use wharf_cri_api::v1::image_service_client::ImageServiceClient;
use wharf_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use wharf_cri_api::v1::{
    ContainerConfig, CreateContainerRequest, ImageSpec, PodSandboxConfig, PullImageRequest,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};

use crate::connect::{MESSAGE_LIMIT_BYTES, connect};

/// A client of one runtime; its clones share a connection.
#[derive(Clone, Debug)]
pub struct Calls {
    /// For all other calls about pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// For all other calls about images.
    pub images: ImageServiceClient<Channel>,
}

/// All errors are the runtime's.
#[expect(clippy::missing_errors_doc, reason = "the sentence above says it of all")]
impl Calls {
    /// Connects to the runtime that listens at a path.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let channel = connect(socket).await?;
        let runtime = RuntimeServiceClient::new(channel.clone());
        Ok(Self {
            runtime: runtime.max_decoding_message_size(MESSAGE_LIMIT_BYTES),
            images: ImageServiceClient::new(channel),
        })
    }

    /// Runs a pod and returns its id.
    pub async fn run(&self, pod: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
        // Boxed, here and below, because such requests are too large for a caller's future.
        let mut runtime = self.runtime.clone();
        Ok(Box::pin(runtime.run_pod_sandbox(request)).await?.into_inner().pod_sandbox_id)
    }

    /// Creates a container in the pod with this id and config, and returns its id.
    pub async fn create(
        &self,
        pod_id: &str,
        pod: &PodSandboxConfig,
        container: ContainerConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(container),
            sandbox_config: Some(pod.clone()),
        };
        let mut runtime = self.runtime.clone();
        Ok(Box::pin(runtime.create_container(request)).await?.into_inner().container_id)
    }

    /// Starts a created container.
    pub async fn start(&self, container: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// Kills a container.
    pub async fn stop_container(&self, container: &str) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: 0 };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// Removes a stopped container.
    pub async fn remove_container(&self, container: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    /// Stops a pod.
    pub async fn stop(&self, pod: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// Removes a stopped pod.
    pub async fn remove(&self, pod: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// Pulls an image and returns its id.
    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        let image = Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() });
        let request = PullImageRequest { image, ..PullImageRequest::default() };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }
}
