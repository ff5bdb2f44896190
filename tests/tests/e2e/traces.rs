//! Traces: a call is a span below its client's, the stages of its work are below it, and no collector holds up a call.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use wharf_cri_api::v1::*;
use wharf_traces::otlp;
use wharf_traces::otlp::any_value::Value;
use wharf_traces::otlp::span::SpanKind;
use wharf_traces::otlp::trace_service_server::{TraceService, TraceServiceServer};
use wharf_traces::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse, Span};

use crate::scrape::{self, scrape};
use crate::world::{World, run_on, until};

/// Each test has its own loopback.
const ADDRESS: &str = "127.0.0.1:4317";

const RUNTIME: &str = "runtime.v1.RuntimeService";

/// The trace and the span of a kubelet.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// What must be in no span: passwords, a variable and a command.
const SECRETS: [&str; 2] = ["hunter2", "secret-word"];

/// Has the daemon that starts in a directory trace so many of a million calls.
fn trace(dir: &Path, rate_per_million: u32) {
    let text = format!(
        "[tracing]\nendpoint = \"http://{ADDRESS}\"\nsampling_rate_per_million = {rate_per_million}\n"
    );
    fs::create_dir_all(dir.join("config.toml.d")).unwrap();
    fs::write(dir.join("config.toml.d/tracing.toml"), text).unwrap();
}

/// A collector of spans, and of all bytes that it was sent.
#[derive(Debug, Clone, Default)]
struct Received(Arc<Mutex<(Vec<Span>, Vec<u8>)>>);

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        let mut received = self.0.lock().unwrap();
        received.1.extend(request.encode_to_vec());
        let scopes = request.resource_spans.into_iter().flat_map(|of_process| of_process.scope_spans);
        received.0.extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

struct Collector {
    received: Received,
    end: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let received = Received::default();
        let incoming = TcpListenerStream::new(TcpListener::bind(ADDRESS).await.unwrap());
        let (end, ended) = oneshot::channel();
        let server = Server::builder().add_service(TraceServiceServer::new(received.clone()));
        let serving = tokio::spawn(async move {
            server.serve_with_incoming_shutdown(incoming, async { drop(ended.await) }).await.unwrap();
        });
        Self { received, end, serving }
    }

    fn spans(&self) -> Vec<Span> {
        self.received.0.lock().unwrap().0.clone()
    }

    /// The span of a call, once it is there.
    async fn server(&self, method: &str) -> Span {
        let name = format!("{RUNTIME}/{method}");
        let found = async || self.spans().into_iter().find(|span| span.name == name);
        until(&format!("{method} has a span"), found).await
    }

    fn stages(&self, of: &Span) -> Vec<Span> {
        let mut stages = self.spans();
        stages.retain(|span| span.parent_span_id == of.span_id);
        stages
    }

    /// Closes its connections.
    async fn end(self) {
        self.end.send(()).unwrap();
        self.serving.await.unwrap();
    }
}

/// A request of a client that traces.
fn traced<T>(message: T, traceparent: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(attribute: &otlp::KeyValue) -> (&str, &str) {
    match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(value)) => (&attribute.key, value),
        other => panic!("{other:?}"),
    }
}

fn attributes(span: &Span) -> BTreeMap<&str, &str> {
    span.attributes.iter().map(text).collect()
}

/// Checks that a call is below its client's span, and has these stages, each within its time.
fn check(collector: &Collector, server: &Span, stages: &[&str]) {
    assert_eq!((hex(&server.trace_id).as_str(), hex(&server.parent_span_id).as_str()), (TRACE, SPAN));
    assert_eq!((server.kind(), attributes(server)["rpc.response.status_code"]), (SpanKind::Server, "OK"));
    let told = collector.stages(server);
    let missing: Vec<_> =
        stages.iter().filter(|name| told.iter().all(|stage| stage.name != **name)).collect();
    assert!(missing.is_empty(), "{missing:?} of {}: {told:#?}", server.name);
    for stage in told {
        assert_eq!(stage.trace_id, server.trace_id);
        assert!(stage.start_time_unix_nano >= server.start_time_unix_nano, "{stage:?}");
        assert!(stage.end_time_unix_nano <= server.end_time_unix_nano, "{stage:?}");
    }
}

#[test]
fn a_kubelets_trace_goes_on_into_the_stages_of_a_pod() {
    run_on(
        |dir| trace(dir, 0),
        async |world| {
            let collector = Collector::start().await;
            let client = &world.client;
            let mut calls = client.runtime.clone();
            let parent = format!("00-{TRACE}-{SPAN}-01");
            for untraced in [format!("00-{TRACE}-{SPAN}-00"), format!("00-{TRACE}-{SPAN}"), "x".to_owned()] {
                calls.version(traced(VersionRequest::default(), &untraced)).await.unwrap();
            }
            let auth = AuthConfig {
                username: "u".to_owned(),
                password: "hunter2".to_owned(),
                ..AuthConfig::default()
            };
            let image = Some(ImageSpec { image: client.image.clone(), ..ImageSpec::default() });
            let pull = PullImageRequest { image, auth: Some(auth), sandbox_config: None };
            client.images.clone().pull_image(traced(pull, &parent)).await.unwrap();

            let config = Some(client.pod("traced"));
            let request = RunPodSandboxRequest { config: config.clone(), ..RunPodSandboxRequest::default() };
            let pod =
                calls.run_pod_sandbox(traced(request, &parent)).await.unwrap().into_inner().pod_sandbox_id;
            let mut container = client.container("main", "echo secret-word; exec sleep 1000");
            container.envs.push(KeyValue { key: "PASSWORD".to_owned(), value: "hunter2".into() });
            let request = CreateContainerRequest {
                pod_sandbox_id: pod.clone(),
                config: Some(container),
                sandbox_config: config,
            };
            let id =
                calls.create_container(traced(request, &parent)).await.unwrap().into_inner().container_id;
            let request = StartContainerRequest { container_id: id.clone() };
            calls.start_container(traced(request, &parent)).await.unwrap();

            let run = collector.server("RunPodSandbox").await;
            check(
                &collector,
                &run,
                &["record and directories", "start of the supervisor", "end of the namespaces", "network"],
            );
            let facts = attributes(&run);
            let expected =
                [("k8s.pod.name", "traced"), ("k8s.namespace.name", "e2e"), ("wharf.pod.id", pod.as_str())];
            assert!(expected.iter().all(|(key, value)| facts.get(key) == Some(value)), "{facts:?}");
            let create = collector.server("CreateContainer").await;
            check(
                &collector,
                &create,
                &["cgroup and limits", "writable layer and volumes", "first process: mounts"],
            );
            assert_eq!(attributes(&create)["container.id"], id);
            let start = collector.server("StartContainer").await;
            check(&collector, &start, &["start, until the program was executed"]);
            let names = collector.spans().into_iter().map(|span| span.name);
            let own: Vec<_> =
                names.filter(|name| name.starts_with("runtime.") && !name.contains("Container")).collect();
            assert_eq!(own, ["runtime.v1.ImageService/PullImage", "runtime.v1.RuntimeService/RunPodSandbox"]);
            let bytes = collector.received.0.lock().unwrap().1.clone();
            for secret in SECRETS {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
            }
            collector.end().await;
        },
    );
}

#[test]
fn a_pull_has_its_stages_and_a_failure_its_code() {
    run_on(
        |dir| trace(dir, 1_000_000),
        async |world| {
            let collector = Collector::start().await;
            let client = &world.client;
            for image in client.image_list().await {
                client.remove_image(&image.id).await.unwrap();
            }
            client.pull(&client.image).await.unwrap();
            client.status("no-such-container").await.unwrap_err();
            let refused = collector.server("ContainerStatus").await;
            assert_eq!(attributes(&refused)["rpc.response.status_code"], "NOT_FOUND");
            assert!(refused.parent_span_id.is_empty() && refused.status.is_none(), "{refused:?}");
            let pulls: Vec<_> =
                collector.spans().into_iter().filter(|span| span.name.ends_with("/PullImage")).collect();
            let pull = pulls.last().unwrap();
            let names: Vec<_> = collector.stages(pull).into_iter().map(|stage| stage.name).collect();
            for stage in ["resolve", "manifest and config", "layer", "layers", "commit"] {
                assert!(names.iter().any(|name| name == stage), "{stage}: {names:?}");
            }
            assert_eq!(attributes(pull)["container.image.name"], client.image);
            collector.end().await;
        },
    );
}

#[test]
fn what_is_left_at_the_end_is_exported() {
    run_on(
        |dir| trace(dir, 0),
        async |world| {
            let collector = Collector::start().await;
            let request = traced(StatusRequest::default(), &format!("00-{TRACE}-{SPAN}-01"));
            world.client.runtime.clone().status(request).await.unwrap();
            assert!(world.daemon.end().await.success());
            let names: Vec<_> = collector.spans().into_iter().map(|span| span.name).collect();
            assert_eq!(names, [format!("{RUNTIME}/Status")]);
            collector.end().await;
            world.start_again().await;
        },
    );
}

/// A pod comes and goes, and what has no room is counted.
async fn goes_on(world: &World) {
    let client = &world.client;
    let pod = client.run(&client.pod("untold")).await.unwrap();
    client.to_end(&pod, "short", "true").await;
    // More than the queue and what is under way.
    for _ in 0..3000 {
        client.runtime.clone().version(VersionRequest::default()).await.unwrap();
    }
    client.down(&pod).await.unwrap();
    let lost = async || {
        let page = scrape().await;
        (page.of("wharf_trace_spans_total", &[("result", "no_room")])? > 0.0).then_some(page)
    };
    let page = until("the lost spans are counted", lost).await;
    assert_eq!(page.of("wharf_trace_spans_total", &[("result", "exported")]), Some(0.0));
    assert!(page.all("wharf_trace_spans_waiting") >= 1000.0);
}

fn unheard(dir: &Path) {
    scrape::turn_on(dir);
    trace(dir, 1_000_000);
}

#[test]
fn a_collector_that_is_dead_costs_nothing() {
    run_on(unheard, async |world| {
        goes_on(world).await;
        let logged = async || world.daemon.has_logged("the collector does not accept traces").then_some(());
        until("that is logged", logged).await;
    });
}

#[test]
fn a_collector_that_says_nothing_costs_nothing() {
    run_on(unheard, async |world| {
        let silent = TcpListener::bind(ADDRESS).await.unwrap();
        goes_on(world).await;
        drop(silent);
    });
}
