//! What NRI plugins are told of pods and containers, and what is done for them. Who is told, and in which order, is
//! for `wharf-nri` to say.

use std::sync::Arc;
use std::time::Duration;

use wharf_cri_api::v1::LinuxContainerResources;
use wharf_nri::api::{self, Event};
use wharf_nri::{Answer, ContainerView, Existing, Failed, Node, PodView, Shown, Update};
use wharf_records::PodRecord;
use wharf_tasks::spawn;
use wharf_types::ContainerId;

use super::Engine;
use crate::container::Container;
use crate::error::{Error, Stage};
use crate::pod::Pod;

/// The stage at which plugins refuse something.
pub(super) const ASKING: &str = "asking NRI plugins";

/// A pod's overhead and its resources.
type Resources = [Option<LinuxContainerResources>; 2];

impl Engine {
    /// Tells plugins of an event of a pod, or of a container in it.
    pub(super) async fn tell(
        self: &Arc<Self>,
        event: Event,
        pod: &Pod,
        container: Option<&Arc<Container>>,
    ) -> Result<(), Error> {
        let id = container.map_or(pod.id().as_str(), |container| container.id().as_str());
        let show = || async { Box::new(self.show(pod, container).await) };
        self.parts.plugins.tell(event, id, show).await.stage(ASKING)
    }

    /// Tells plugins of what the kubelet is about to set on a pod's own cgroup, overhead and resources, and records it.
    ///
    /// # Errors
    /// NotFound; the plugin that refuses; the disk's error. Then what was recorded before stays.
    pub async fn update_pod(self: &Arc<Self>, id: &str, resources: Resources) -> Result<(), Error> {
        let (engine, pod) = (Arc::clone(self), self.pod(id)?);
        spawn(async move {
            let _order = pod.change().await?;
            engine.parts.plugins.update_pod(show_pod(&pod), resources.clone()).await.stage(ASKING)?;
            engine.blocking(&pod, |engine, pod| engine.record_update(pod, resources)).await?;
            engine.tell(Event::PostUpdatePodSandbox, &pod, None).await
        })
        .await
    }

    /// Changes what a pod's request says, on disk and then in memory.
    fn record_update(&self, pod: &Pod, resources: Resources) -> Result<(), Error> {
        let record = PodRecord::updated(&pod.facts(), resources);
        record.update(&self.parts.layout.pod_record(pod.id()))?;
        pod.change_config(record.config);
        Ok(())
    }

    pub(super) async fn show(self: &Arc<Self>, pod: &Pod, container: Option<&Arc<Container>>) -> Shown {
        let mut shown = Shown { pod: show_pod(pod), container: None };
        if let Some(container) = container {
            let spec = serde_json::from_value(self.runtime_spec(pod, container).await).unwrap_or_default();
            let facts = container.facts();
            let view = ContainerView { facts: &facts, pid: container.pid(), spec: &spec };
            shown.container = Some(view.into());
        }
        shown
    }
}

impl Node for Engine {
    fn existing(self: Arc<Self>) -> Answer<Existing> {
        Box::pin(async move {
            let (pods, mut containers) = (self.pods(), Vec::new());
            for pod in &pods {
                for container in &pod.containers() {
                    containers.extend(self.show(pod, Some(container)).await.container);
                }
            }
            (pods.iter().map(|pod| show_pod(pod)).collect(), containers)
        })
    }

    fn update(self: Arc<Self>, container: String, update: Box<Update>) -> Answer<Result<(), Failed>> {
        Box::pin(async move {
            let (pod, container) = self.container(&container)?;
            let _order = container.change().await;
            Ok(Self::update(&self, &pod, &container, update).await?)
        })
    }

    fn evict(self: Arc<Self>, container: String) -> Answer<Result<(), Failed>> {
        Box::pin(async move { Ok(self.stop_container(&container, Duration::ZERO).await?) })
    }

    fn stopped(self: Arc<Self>, container: ContainerId) -> Answer<()> {
        Box::pin(async move {
            if let Ok((pod, container)) = self.container(container.as_str()) {
                // A failure is logged where it happens.
                drop(self.tell(Event::StopContainer, &pod, Some(&container)).await);
            }
        })
    }
}

pub(super) fn show_pod(pod: &Pod) -> api::PodSandbox {
    let facts = pod.facts();
    PodView { id: &facts.id, config: &facts.config, handler: &facts.handler, ips: &facts.ips }.into()
}
