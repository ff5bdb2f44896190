//! What clients make of responses: their own deadlines, retries, and messages that their code takes for granted.

use std::path::Path;

use futures_util::StreamExt;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::{Code, Request};
use wharf_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use wharf_cri_api::v1::*;

use crate::client::{pod_security, security, words};
use crate::daemon::process_with;
use crate::place;
use crate::world::{run, run_on, until};

/// A request with a deadline that is sent to the server.
fn within<T>(patience: &'static str, request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert("grpc-timeout", patience.parse().unwrap());
    request
}

#[test]
fn a_clients_deadline_is_told_as_one() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("deadline")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        // The library's own channel would end the call by its own clock; this one waits for the response.
        let path = client.socket.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
        });
        let http = HttpClient::builder(TokioExecutor::new()).http2_only(true).build(connector);
        let mut runtime = RuntimeServiceClient::with_origin(http, http::Uri::from_static("http://localhost"));
        for patience in ["1m", "20m", "300m"] {
            let cmd = words(&["sleep", "4321"]);
            let exec = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 };
            let late = runtime.exec_sync(within(patience, exec)).await.unwrap_err();
            assert_eq!(late.code(), Code::DeadlineExceeded, "{patience}: {late}");
        }
        until("the command is killed", async || process_with("sleep 4321").is_none().then_some(())).await;
        let events = runtime.get_container_events(within("300m", GetEventsRequest::default())).await.unwrap();
        let last = events.into_inner().next().await.unwrap().unwrap_err();
        assert_eq!(last.code(), Code::DeadlineExceeded, "{last}");
    });
}

#[test]
fn a_timeout_beyond_all_clocks_is_none() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("far")).await.unwrap();
        let id = client
            .launch(&pod, &client.container("main", "trap exit TERM; sleep 1000 & wait"))
            .await
            .unwrap();
        assert_eq!(client.exec(&id, "exit 3", i64::MAX).await.unwrap().exit_code, 3);
        client.stop_container(&id, i64::MAX).await.unwrap();
    });
}

#[test]
fn what_has_ended_is_not_handed_out_as_new() {
    run(async |world| {
        let client = &world.client;
        let config = client.pod("again");
        let pod = client.run(&config).await.unwrap();
        let container = client.container("main", "true");
        let ended = client.to_end(&pod, "main", "true").await.id;
        let refused = client.create(&pod, &container).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(&ended), "{refused}");
        client.remove_container(&ended).await.unwrap();
        assert_ne!(client.create(&pod, &container).await.unwrap(), ended);
        client.stop(&pod).await.unwrap();
        let refused = client.run(&config).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(&pod), "{refused}");
        client.remove(&pod).await.unwrap();
        let next = client.run(&config).await.unwrap();
        assert_ne!(next, pod);
        assert_eq!(client.run(&config).await.unwrap(), next, "a retry gets the same");
    });
}

#[test]
fn a_pod_without_interfaces_has_no_network_figures() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("bare");
        pod_security(&mut config).privileged = true;
        let pod = client.run(&config).await.unwrap();
        let mut container = client.container("main", "sleep 1000");
        security(&mut container).privileged = true;
        let id = client.launch(&pod, &container).await.unwrap();
        assert!(client.pod_stats(&pod).await.network.unwrap().default_interface.is_some());
        client.output(&id, "ip link del eth0").await;
        // Clients dereference the default interface of any network they get.
        let gone = async || client.pod_stats(&pod).await.network.is_none().then_some(());
        until("the pod has no network figures", gone).await;
    });
}

/// A pod that has completed exists until the kubelet removes it.
#[test]
fn a_stopped_pod_is_not_among_those_with_figures() {
    run(async |world| {
        let client = &world.client;
        let pods =
            [client.run(&client.pod("over")).await.unwrap(), client.run(&client.pod("up")).await.unwrap()];
        client.stop(&pods[0]).await.unwrap();
        let list = client.runtime.clone().list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await;
        let listed: Vec<_> =
            list.unwrap().into_inner().stats.into_iter().map(|one| one.attributes.unwrap().id).collect();
        assert!(listed.contains(&pods[1]) && !listed.contains(&pods[0]), "{listed:?}");
    });
}

#[test]
fn a_pods_figures_are_its_cgroups_and_never_fall() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("figures")).await.unwrap();
        let used = async || {
            let cpu = client.pod_stats(&pod).await.cpu.unwrap();
            (cpu.usage_core_nano_seconds.unwrap().value, cpu.usage_nano_cores.map(|rate| rate.value))
        };
        assert_eq!(used().await, (0, None), "nothing ran yet");
        let sleeper = client.launch(&pod, &client.container("sleeper", "sleep 1000")).await.unwrap();
        let busy = client.launch(&pod, &client.container("busy", "while :; do :; done")).await.unwrap();
        // Even with constant requests, a rate is over at least a second.
        let rate = until("the rate is told", async || used().await.1.filter(|rate| *rate > 0)).await;
        assert!(rate < 64_000_000_000, "{rate}");
        let (before, _rate) = used().await;
        assert!(before > 100_000_000, "{before}");
        for end in ["busy stopped", "busy removed", "all removed", "stopped"] {
            match end {
                "busy stopped" => client.stop_container(&busy, 0).await.unwrap(),
                "busy removed" => client.remove_container(&busy).await.unwrap(),
                "all removed" => client.remove_container(&sleeper).await.unwrap(),
                _ => client.stop(&pod).await.unwrap(),
            }
            let stats = client.pod_stats(&pod).await;
            assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value >= before, "{end}");
            assert!(stats.memory.unwrap().usage_bytes.is_some() && stats.io.is_some(), "{end}");
            assert!(stats.process.unwrap().process_count.is_some(), "{end}");
        }
    });
}

#[test]
fn containers_that_have_ended_have_no_figures() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("successors")).await.unwrap();
        let ended = client.to_end(&pod, "main", "exit 1").await.id;
        let mut successor = client.container("main", "sleep 1000");
        successor.metadata.as_mut().unwrap().attempt = 1;
        let id = client.launch(&pod, &successor).await.unwrap();
        let filter = ContainerStatsFilter { pod_sandbox_id: pod.clone(), ..ContainerStatsFilter::default() };
        let request = ListContainerStatsRequest { filter: Some(filter) };
        let listed = client.runtime.clone().list_container_stats(request).await.unwrap().into_inner().stats;
        // A kubelet that lowers a limit looks for the usage of `main` in each of these.
        for stats in [listed, client.pod_stats(&pod).await.containers] {
            let [only] = &stats[..] else { panic!("{stats:?}, and {ended} has ended") };
            assert_eq!(only.attributes.as_ref().unwrap().id, id);
            assert!(only.memory.as_ref().unwrap().usage_bytes.is_some(), "{only:?}");
        }
    });
}

#[test]
fn the_newest_container_of_a_pod_comes_first() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("attempts")).await.unwrap();
        let mut created = Vec::new();
        for attempt in 0..6 {
            let mut container = client.container("main", "sleep 1000");
            container.metadata.as_mut().unwrap().attempt = attempt;
            created.insert(0, client.create(&pod, &container).await.unwrap());
        }
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod, ..PodSandboxStatusRequest::default() };
        let found = client.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
        let listed: Vec<_> = found.containers_statuses.into_iter().map(|status| status.id).collect();
        assert_eq!(listed, created);
        assert_eq!(found.timestamp, 0, "told a time, a kubelet that watches events would rely on this list");
    });
}

#[test]
fn a_pod_may_have_a_privileged_container_that_was_added_later() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("debugged");
        let pod = client.run(&config).await.unwrap();
        let mut debugger = client.container("debugger", "sleep 1000");
        security(&mut debugger).privileged = true;
        assert_eq!(client.create(&pod, &debugger).await.unwrap_err().code(), Code::InvalidArgument);
        // As the kubelet sends it for an ephemeral container: the pod's request as it would be today.
        pod_security(&mut config).privileged = true;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod,
            config: Some(debugger),
            sandbox_config: Some(config),
        };
        let created = client.runtime.clone().create_container(request).await.unwrap().into_inner();
        client.start(&created.container_id).await.unwrap();
        assert!(client.output(&created.container_id, "ls /dev").await.contains("kmsg"));
    });
}

#[test]
fn a_stopped_pod_has_no_address() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("address")).await.unwrap();
        let address = async || client.pod_status(&pod).await.unwrap().network.unwrap().ip;
        assert_ne!(address().await, "");
        client.stop(&pod).await.unwrap();
        assert_eq!(address().await, "", "another pod may have it by now");
    });
}

/// The JSON in a verbose status.
fn info(info: &std::collections::BTreeMap<String, String>) -> Value {
    serde_json::from_str(&info["info"]).unwrap()
}

#[test]
fn a_verbose_status_leads_into_the_pods_namespaces_and_nowhere_else() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("verbose")).await.unwrap();
        let pod_info = async || {
            let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
            info(&client.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner().info)
        };
        let network = |info: &Value| {
            let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap().clone();
            let own = namespaces.into_iter().find(|namespace| namespace["type"] == "network")?;
            Some(inode(own["path"].as_str().unwrap()))
        };
        assert_eq!(pod_info().await["pid"], 0, "no process is in its namespaces yet");
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let inside = client.output(&id, "stat -L -c %i /proc/self/ns/net").await.parse().unwrap();
        let container_info = async || {
            let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
            info(&client.runtime.clone().container_status(request).await.unwrap().into_inner().info)
        };
        for found in [pod_info().await, container_info().await] {
            assert_eq!(inode(&format!("/proc/{}/ns/net", found["pid"])), inside);
            assert_eq!(network(&found), Some(inside));
        }
        client.stop_container(&id, 0).await.unwrap();
        assert_eq!(container_info().await["pid"], 0, "the number may be another process's by now");
        client.stop(&pod).await.unwrap();
        assert_eq!((pod_info().await["pid"].clone(), network(&pod_info().await)), (0.into(), None));
    });
}

fn inode(path: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap_or_else(|error| panic!("{path}: {error}")).ino()
}

#[test]
fn a_verbose_image_status_says_how_it_is_run() {
    run(async |world| {
        let client = &world.client;
        let image = Some(crate::client::image(&client.image));
        let ask = async |verbose| {
            let request = ImageStatusRequest { image: image.clone(), verbose };
            client.images.clone().image_status(request).await.unwrap().into_inner()
        };
        assert!(ask(false).await.info.is_empty());
        let found = info(&ask(true).await.info);
        assert_eq!(found["imageSpec"]["os"], "linux");
        assert!(found["imageSpec"]["config"]["Env"].is_array(), "{found}");
        assert!(!found["layers"].as_array().unwrap().is_empty(), "{found}");
    });
}

#[test]
fn a_node_whose_state_directory_is_full_starts_no_pods_and_can_be_rid_of_some() {
    let small_state = |dir: &Path| place::tmpfs(&dir.join("state"), "size=8m,mode=0700");
    run_on(small_state, async |world| {
        let client = &world.client;
        let condition = async |kind: &str| {
            let status = client.runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
            status.status.unwrap().conditions.into_iter().find(|one| one.r#type == kind).unwrap()
        };
        assert!(condition("NetworkReady").await.status);
        let (state, filler) = (world.dir.join("state"), world.dir.join("state/filler"));
        place::fill(&filler, 0);
        let full = condition("NetworkReady").await;
        assert!(!full.status && full.reason == "StateDirectoryFull", "{full:?}");
        assert!(full.message.contains(&*state.to_string_lossy()), "{full:?}");
        // A kubelet whose runtime is not ready stops and removes no pod.
        assert!(condition("RuntimeReady").await.status);
        std::fs::remove_file(&filler).unwrap();
        assert!(condition("NetworkReady").await.status);
    });
}

#[test]
fn a_verbose_status_has_what_the_container_was_made_of() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("spec")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        config.envs = vec![KeyValue { key: "COLOUR".to_owned(), value: b"green".to_vec() }];
        security(&mut config).run_as_user = Some(Int64Value { value: 1234 });
        security(&mut config).seccomp = Some(SecurityProfile {
            profile_type: security_profile::ProfileType::RuntimeDefault.into(),
            ..SecurityProfile::default()
        });
        let id = client.launch(&pod, &config).await.unwrap();
        let request = || ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let answer = client.runtime.clone().container_status(request()).await.unwrap();
        let spec = info(&answer.into_inner().info)["runtimeSpec"].clone();
        assert_eq!(spec["process"]["args"], serde_json::json!(["sh", "-c", "sleep 1000"]), "{spec}");
        let environment = spec["process"]["env"].as_array().unwrap();
        assert!(environment.contains(&"COLOUR=green".into()), "{environment:?}");
        assert_eq!(spec["process"]["user"]["uid"], 1234);
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        let mounts = spec["mounts"].as_array().unwrap();
        assert!(mounts.iter().any(|mount| mount["destination"] == "/etc/hosts"), "{mounts:?}");
        world.daemon.kill();
        world.start_again().await;
        let answer = world.client.runtime.clone().container_status(request()).await.unwrap();
        assert_eq!(info(&answer.into_inner().info)["runtimeSpec"], spec, "a new daemon shows the same");
    });
}
