//! RuntimeService: one call on pods or the network per method. The fields of a request become arguments, and facts
//! become messages in `view` and `stats`. What is read from the kernel on request waits for its turn (`readings`).

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::Stream;
use tokio_stream::StreamExt;
use tokio_stream::iter;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tonic::{Request, Response, Status};
use wharf_cgroup::Driver;
use wharf_cri_api::v1::runtime_service_server::RuntimeService;
use wharf_cri_api::v1::*;
use wharf_network::Network;
use wharf_pods::{self as pods, Engine, Switch};
use wharf_streaming::Urls;
use wharf_tasks::{CrowdLimits, Threads};
use wharf_types::chain;

use crate::batches::batches;
use crate::conditions::Conditions;
use crate::names::Names;
use crate::readings::{Readings, Shared};
use crate::status::Fault;
use crate::{filter, metrics, stats, status, streams, subject, view};

/// A stream of responses.
pub(crate) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Reply<T> = Result<Response<T>, Status>;

/// The service over an engine of pods.
#[derive(Debug, Clone)]
pub struct Runtime {
    engine: Arc<Engine>,
    network: Arc<Network>,
    urls: Urls,
    handlers: Vec<RuntimeHandler>,
    config: String,
    names: Names,
    readings: Readings,
    metrics: Arc<Shared<Vec<PodSandboxMetrics>>>,
    conditions: Arc<Conditions>,
    /// Writes the network's settings, one at a time: the disk may not respond, and kubelets try again.
    network_settings: Arc<Threads<()>>,
}

impl Runtime {
    /// Makes the service. `urls` issues the URLs of the streaming server; `config` is the daemon's configuration as
    /// JSON, for a verbose Status.
    #[must_use]
    pub fn new(engine: Arc<Engine>, network: Arc<Network>, names: Names, urls: Urls, config: String) -> Self {
        let handlers = runtime_handlers(&engine);
        let metrics = Arc::new(Shared::new("gathering metrics"));
        let (readings, conditions) = (Readings::new(), Arc::new(Conditions::new()));
        let network_settings = Threads::with_pool("network", CrowdLimits { of_one: 1, of_all: 1 }, 0);
        let network_settings = Arc::new(network_settings);
        Self {
            engine,
            network,
            names,
            urls,
            handlers,
            config,
            readings,
            metrics,
            conditions,
            network_settings,
        }
    }

    /// Ends the streams of events, which otherwise end only when their clients leave.
    pub fn end_events(&self) {
        self.engine.end_events();
    }

    fn pods(&self, wanted: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
        let items = self.engine.pods();
        items
            .iter()
            .filter(|pod| filter::pod_id(wanted, pod.id().as_str()))
            .map(|pod| view::pod_item(&pod.facts()))
            .filter(|item| filter::pod(wanted, item))
            .collect()
    }

    fn containers(&self, wanted: Option<&ContainerFilter>) -> Vec<Container> {
        let pods = self.engine.pods();
        pods.iter()
            .filter(|pod| filter::container_pod(wanted, pod.id().as_str()))
            .flat_map(|pod| pod.containers())
            .filter(|item| filter::container_id(wanted, item.id().as_str()))
            .map(|item| view::container_item(&item))
            .filter(|item| filter::container(wanted, item))
            .collect()
    }

    async fn container_stats_list(
        &self,
        wanted: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>, Status> {
        let mut chosen = self.engine.containers();
        // An exited container uses nothing; the kubelet would take it for its successor, which has the same name, and
        // miss figures.
        chosen.retain(|item| !item.is_exited());
        if wanted.is_some() {
            chosen.retain(|item| filter::container_stats(wanted.as_ref(), &view::container_item(item)));
        }
        self.engine.want_written().await;
        let engine = Arc::clone(&self.engine);
        self.readings.each(chosen, move |item| stats::container_stats(&engine, item)).await
    }

    async fn pod_stats_list(
        &self,
        wanted: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>, Status> {
        let mut chosen = self.engine.pods();
        // The kubelet would report what a stopped one has used for as long as that exists.
        chosen.retain(|pod| pod.is_ready());
        if wanted.is_some() {
            chosen.retain(|pod| filter::pod_stats(wanted.as_ref(), &view::pod_item(&pod.facts())));
        }
        self.engine.want_written().await;
        let (engine, traffic) = (Arc::clone(&self.engine), Arc::new(OnceLock::new()));
        let read = move |pod: &Arc<pods::Pod>| {
            stats::pod_stats(&engine, pod, traffic.get_or_init(|| engine.traffic()))
        };
        self.readings.each(chosen, read).await
    }

    async fn pod_metrics(&self) -> Result<Vec<PodSandboxMetrics>, Status> {
        self.engine.want_written().await;
        let engine = Arc::clone(&self.engine);
        self.metrics.take(move || metrics::gather(&engine)).await.map_err(status::of)
    }

    /// The handlers, with user namespaces as long as this machine can make them.
    fn handlers(&self) -> Vec<RuntimeHandler> {
        let mut handlers = self.handlers.clone();
        let has_users = self.engine.user_namespaces().is_ok();
        for features in handlers.iter_mut().filter_map(|handler| handler.features.as_mut()) {
            features.user_namespaces &= has_users;
        }
        handlers
    }

    async fn conditions(&self) -> Vec<RuntimeCondition> {
        let (engine, network) = (Arc::clone(&self.engine), Arc::clone(&self.network));
        self.conditions.read(move || network.readiness(), move || engine.unready()).await
    }

    /// The additions of a verbose pod status. If a log cannot be read, the reason is shown in its place.
    async fn pod_info(&self, pod: &pods::Pod) -> BTreeMap<String, String> {
        let mut info = view::pod_info(pod, self.engine.namespaces(pod));
        let log = self.engine.supervisor_log(pod).await;
        let log = log.unwrap_or_else(|error| vec![chain(&error)]);
        if !log.is_empty() {
            info.insert("supervisorLog".to_owned(), serde_json::json!(log).to_string());
        }
        info
    }
}

/// The default handler, which has no name, and the others. Whoever makes a container, wharf mounts what it binds; but
/// other runtimes get no user namespace.
fn runtime_handlers(engine: &Engine) -> Vec<RuntimeHandler> {
    let own = RuntimeHandlerFeatures {
        recursive_read_only_mounts: can_forbid_recursively(),
        user_namespaces: engine.user_namespaces().is_ok(),
        cgroup_namespaces: engine.machine().cgroup_namespaces == Switch::On,
    };
    let unnamed = RuntimeHandler { name: String::new(), features: Some(own) };
    let usable = engine.handlers().iter().filter(|(_, handler)| handler.problem.is_none());
    let named = usable.map(|(name, handler)| {
        let user_namespaces = own.user_namespaces && handler.runtime.is_none();
        let features = RuntimeHandlerFeatures { user_namespaces, ..own };
        RuntimeHandler { name: name.to_owned(), features: Some(features) }
    });
    std::iter::once(unnamed).chain(named).collect()
}

/// What the other runtimes say of themselves, by the names of their handlers.
fn features_of_runtimes(engine: &Engine) -> String {
    let others = engine.handlers().iter().filter_map(|(name, handler)| {
        Some((name.to_owned(), handler.runtime.as_ref()?.features.shown().clone()))
    });
    serde_json::Value::Object(others.collect()).to_string()
}

/// Whether the kernel can change the attributes of a whole tree of mounts. The test changes no attribute of the root.
#[expect(clippy::disallowed_methods, reason = "nobody is served yet")]
fn can_forbid_recursively() -> bool {
    use wharf_sys::mount::{Attributes, Depth, forbid};
    let root = std::fs::File::open("/");
    root.is_ok_and(|root| forbid(root.as_fd(), Attributes::NONE, Depth::Recursive).is_ok())
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    type StreamPodSandboxesStream = Streamed<StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = Streamed<ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = Streamed<StreamPodSandboxMetricsResponse>;

    async fn version(&self, _request: Request<VersionRequest>) -> Reply<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "wharf".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusResponse> {
        let info = if request.into_inner().verbose {
            let runtimes = features_of_runtimes(&self.engine);
            [("config", self.config.clone()), ("runtimes", runtimes)]
                .map(|(key, value)| (key.to_owned(), value))
                .into()
        } else {
            BTreeMap::new()
        };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions: self.conditions().await }),
            info,
            runtime_handlers: self.handlers(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                mount_options: true,
                user_namespaces_host_network: self.engine.user_namespaces().is_ok(),
                cgroup_mount_mode: self.engine.cgroups().can_delegate(),
                seccomp_profile_oci: self.engine.machine().seccomp == Switch::On,
            }),
        }))
    }

    async fn runtime_config(&self, _request: Request<RuntimeConfigRequest>) -> Reply<RuntimeConfigResponse> {
        let cgroup_driver = match self.engine.cgroups().driver() {
            Driver::Cgroupfs => CgroupDriver::Cgroupfs,
            Driver::Systemd => CgroupDriver::Systemd,
        };
        let linux = LinuxRuntimeConfiguration { cgroup_driver: cgroup_driver.into() };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Reply<UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(config) = config {
            let network = Arc::clone(&self.network);
            let set = move || network.set_pod_cidr(&config.pod_cidr);
            let set = self.network_settings.run_in_time(&(), "recording the pod CIDR", set).await;
            set.map_err(status::of)?.map_err(status::of)?;
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Reply<RunPodSandboxResponse> {
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| status::of(Fault::missing("config")))?;
        subject::new_pod(&config);
        let id = self.engine.run_pod(config, request.runtime_handler).await.map_err(status::of)?;
        subject::pod(id.as_str());
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: id.to_string() }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Reply<StopPodSandboxResponse> {
        subject::pod(&request.get_ref().pod_sandbox_id);
        self.engine.stop_pod(&request.into_inner().pod_sandbox_id).await.map_err(status::of)?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Reply<RemovePodSandboxResponse> {
        subject::pod(&request.get_ref().pod_sandbox_id);
        self.engine.remove_pod(&request.into_inner().pod_sandbox_id).await.map_err(status::of)?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Reply<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = self.engine.pod(&request.pod_sandbox_id).map_err(status::of)?;
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(view::pod_status(&pod.facts())),
            info: if request.verbose { self.pod_info(&pod).await } else { BTreeMap::new() },
            containers_statuses: view::container_statuses(
                pod.containers().iter().map(|container| container.facts()),
            ),
            // A kubelet that watches events takes the containers from here if it is told a time. Those of Kubernetes
            // 1.37 and 1.38 then overlook that an init container has run, and run it again and again. Without a time
            // they ask for each container.
            timestamp: 0,
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Reply<ListPodSandboxResponse> {
        Ok(Response::new(ListPodSandboxResponse { items: self.pods(request.into_inner().filter.as_ref()) }))
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let items = self.pods(request.into_inner().filter.as_ref());
        let messages =
            batches(items).into_iter().map(|pod_sandboxes| Ok(StreamPodSandboxesResponse { pod_sandboxes }));
        Ok(Response::new(Box::pin(iter(messages))))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Reply<CreateContainerResponse> {
        let request = request.into_inner();
        let mut config = request.config.ok_or_else(|| status::of(Fault::missing("config")))?;
        self.names.of_container(&mut config).await?;
        let now = request.sandbox_config.unwrap_or_default();
        subject::pod(&request.pod_sandbox_id);
        subject::new_container(&config);
        let made = self.engine.create_container(&request.pod_sandbox_id, config, &now).await;
        let id = made.map_err(status::of)?;
        subject::container(id.as_str());
        Ok(Response::new(CreateContainerResponse { container_id: id.to_string() }))
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Reply<StartContainerResponse> {
        subject::container(&request.get_ref().container_id);
        self.engine.start_container(&request.into_inner().container_id).await.map_err(status::of)?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Reply<RemoveContainerResponse> {
        subject::container(&request.get_ref().container_id);
        self.engine.remove_container(&request.into_inner().container_id).await.map_err(status::of)?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Reply<ReopenContainerLogResponse> {
        self.engine.reopen_log(&request.into_inner().container_id).await.map_err(status::of)?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Reply<StopContainerResponse> {
        let request = request.into_inner();
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        subject::container(&request.container_id);
        self.engine.stop_container(&request.container_id, grace).await.map_err(status::of)?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Reply<ListContainersResponse> {
        Ok(Response::new(ListContainersResponse {
            containers: self.containers(request.into_inner().filter.as_ref()),
        }))
    }

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let items = self.containers(request.into_inner().filter.as_ref());
        let messages =
            batches(items).into_iter().map(|containers| Ok(StreamContainersResponse { containers }));
        Ok(Response::new(Box::pin(iter(messages))))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Reply<ContainerStatusResponse> {
        let request = request.into_inner();
        let (pod, container) = self.engine.container(&request.container_id).map_err(status::of)?;
        Ok(Response::new(ContainerStatusResponse {
            status: Some(view::container_status(container.facts())),
            info: if request.verbose {
                let spec = self.engine.runtime_spec(&pod, &container).await;
                view::container_info(&container, spec)
            } else {
                BTreeMap::new()
            },
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Reply<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let linux = request.linux.unwrap_or_default();
        subject::container(&request.container_id);
        self.engine.update_container(&request.container_id, linux).await.map_err(status::of)?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Reply<ExecSyncResponse> {
        let request = request.into_inner();
        if request.cmd.is_empty() {
            return Err(status::of(Fault::empty("cmd")));
        }
        subject::container(&request.container_id);
        let timeout =
            u64::try_from(request.timeout).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs);
        let output = self.engine.exec_sync(&request.container_id, request.cmd, timeout).await;
        let output = output.map_err(status::of)?;
        Ok(Response::new(ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Reply<ContainerStatsResponse> {
        let found = self.engine.container(&request.into_inner().container_id);
        let (_pod, container) = found.map_err(status::of)?;
        self.engine.want_written().await;
        let engine = Arc::clone(&self.engine);
        let stats = self.readings.take(move || stats::container_stats(&engine, &container)).await?;
        Ok(Response::new(ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Reply<ListContainerStatsResponse> {
        Ok(Response::new(ListContainerStatsResponse {
            stats: self.container_stats_list(request.into_inner().filter).await?,
        }))
    }

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let items = self.container_stats_list(request.into_inner().filter).await?;
        let messages = batches(items)
            .into_iter()
            .map(|container_stats| Ok(StreamContainerStatsResponse { container_stats }));
        Ok(Response::new(Box::pin(iter(messages))))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Reply<PodSandboxStatsResponse> {
        let pod = self.engine.pod(&request.into_inner().pod_sandbox_id).map_err(status::of)?;
        self.engine.want_written().await;
        let engine = Arc::clone(&self.engine);
        let stats =
            self.readings.take(move || stats::pod_stats(&engine, &pod, &engine.traffic_of(&pod))).await?;
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Reply<ListPodSandboxStatsResponse> {
        Ok(Response::new(ListPodSandboxStatsResponse {
            stats: self.pod_stats_list(request.into_inner().filter).await?,
        }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let items = self.pod_stats_list(request.into_inner().filter).await?;
        let messages = batches(items)
            .into_iter()
            .map(|pod_sandbox_stats| Ok(StreamPodSandboxStatsResponse { pod_sandbox_stats }));
        Ok(Response::new(Box::pin(iter(messages))))
    }

    async fn get_container_events(
        &self,
        _request: Request<GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.engine.subscribe());
        let engine = Arc::clone(&self.engine);
        let lagged = move |BroadcastStreamRecvError::Lagged(events)| {
            engine.missed(events);
            status::of(Fault::EventsLost)
        };
        Ok(Response::new(Box::pin(events.map(move |event| event.map(view::event).map_err(&lagged)))))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Reply<UpdatePodSandboxResourcesResponse> {
        // The pod's cgroup belongs to the kubelet, which sets it afterwards: a failure means that the new size is
        // refused.
        let request = request.into_inner();
        let update = self.engine.update_pod(&request.pod_sandbox_id, [request.overhead, request.resources]);
        update.await.map_err(status::of)?;
        Ok(Response::new(UpdatePodSandboxResourcesResponse {}))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Reply<ExecResponse> {
        let url = streams::exec_url(&self.engine, &self.urls, request.into_inner())?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Reply<AttachResponse> {
        let url = streams::attach_url(&self.engine, &self.urls, request.get_ref())?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Reply<PortForwardResponse> {
        let url = streams::port_forward_url(&self.engine, &self.urls, request.get_ref())?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn checkpoint_container(
        &self,
        _request: Request<CheckpointContainerRequest>,
    ) -> Reply<CheckpointContainerResponse> {
        Err(status::of(Fault::Unimplemented { call: "CheckpointContainer" }))
    }

    async fn checkpoint_pod(&self, _request: Request<CheckpointPodRequest>) -> Reply<CheckpointPodResponse> {
        Err(status::of(Fault::Unimplemented { call: "CheckpointPod" }))
    }

    async fn restore_pod(&self, _request: Request<RestorePodRequest>) -> Reply<RestorePodResponse> {
        Err(status::of(Fault::Unimplemented { call: "RestorePod" }))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<ListMetricDescriptorsRequest>,
    ) -> Reply<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: metrics::descriptors(&self.engine) }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<ListPodSandboxMetricsRequest>,
    ) -> Reply<ListPodSandboxMetricsResponse> {
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics: self.pod_metrics().await? }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        let messages = batches(self.pod_metrics().await?)
            .into_iter()
            .map(|pod_sandbox_metrics| Ok(StreamPodSandboxMetricsResponse { pod_sandbox_metrics }));
        Ok(Response::new(Box::pin(iter(messages))))
    }
}
