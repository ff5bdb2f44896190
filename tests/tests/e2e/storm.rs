//! Many lives of pods while the daemon is killed again and again: every call that a kill cut off is repeated, and has
//! the effect of a single call.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tonic::{Code, Status};
use wharf_cri_api::v1::{ContainerState, PodSandboxConfig, PodSandboxState, PortMapping};

use crate::client::Client;
use crate::logs;
use crate::world::{World, run, until};

/// How often the daemon is killed in one storm.
const KILLS: u32 = 25;
/// How many pods are taken through their lives at a time.
const WORKERS: usize = 4;

#[test]
fn calls_that_a_kill_cut_off_can_be_repeated() {
    run(async |world| {
        let (up, _) = watch::channel(true);
        let storm = Storm { up, kills: AtomicU32::new(0), over: AtomicBool::new(false) };
        let client = world.client.clone();
        let workers = join_all((0..WORKERS).map(|number| worker(&storm, &client, number)));
        let (lives, ()) = Box::pin(async { tokio::join!(workers, kills(&storm, world)) }).await;
        let lives: usize = lives.into_iter().sum();
        assert!(lives > WORKERS, "{lives} lives are too few to have met the kills");
        world.is_clean().await;
    });
}

async fn kills(storm: &Storm, world: &mut World) {
    for number in 0..KILLS {
        // At different moments of the lives, which take some tens of milliseconds.
        tokio::time::sleep(Duration::from_millis(u64::from(number * 37 % 101))).await;
        storm.up.send_replace(false);
        storm.kills.fetch_add(1, Ordering::SeqCst);
        world.daemon.kill();
        world.start_again().await;
        is_consistent(world).await;
        storm.up.send_replace(true);
    }
    storm.over.store(true, Ordering::SeqCst);
}

/// Checks that lists are consistent: no name occurs twice, and a ready pod has an address.
async fn is_consistent(world: &World) {
    let pods = world.client.pods().await;
    let mut names: Vec<_> = pods.iter().map(|pod| pod.metadata.clone().unwrap().name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), pods.len(), "{pods:?}");
    for pod in pods.iter().filter(|pod| pod.state() == PodSandboxState::SandboxReady) {
        let status = world.client.pod_status(&pod.id).await.unwrap();
        assert_ne!(status.network.unwrap().ip, "", "{pod:?}");
    }
}

/// What the workers know about the daemon.
struct Storm {
    up: watch::Sender<bool>,
    kills: AtomicU32,
    over: AtomicBool,
}

impl Storm {
    /// Makes a call until there is a response. Only a kill in the meantime excuses a failure.
    async fn call<T>(&self, what: &str, call: impl AsyncFn() -> Result<T, Status>) -> T {
        loop {
            self.up.subscribe().wait_for(|up| *up).await.unwrap();
            let kills = self.kills.load(Ordering::SeqCst);
            match call().await {
                Ok(answer) => return answer,
                Err(error) => assert_ne!(kills, self.kills.load(Ordering::SeqCst), "{what}: {error}"),
            }
        }
    }
}

/// Takes pods through their lives, one after another; returns how many.
async fn worker(storm: &Storm, client: &Client, number: usize) -> usize {
    let mut lives = 0;
    while !storm.over.load(Ordering::SeqCst) {
        let name = format!("storm-{number}-{lives}");
        Box::pin(life(storm, client, &name, number)).await;
        lives += 1;
    }
    lives
}

async fn life(storm: &Storm, client: &Client, name: &str, number: usize) {
    let code = i32::try_from(number).unwrap() + 40;
    let stopped = !number.is_multiple_of(2);
    let script = if stopped {
        format!("trap 'exit {code}' TERM; echo once; while :; do sleep 0.01; done")
    } else {
        format!("echo once; sleep 0.02; exit {code}")
    };
    let (config, container) = (pod(client, name, number), client.container("main", &script));
    let pod = storm.call("RunPodSandbox", async || client.run(&config).await).await;
    let status = storm.call("PodSandboxStatus", async || client.pod_status(&pod).await).await;
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_ne!(status.network.unwrap().ip, "");
    let id = storm.call("CreateContainer", async || client.create(&pod, &container).await).await;
    let start = async || match client.start(&id).await {
        // The call that was cut off has started it, and it has exited by now.
        Err(error) if error.code() == Code::FailedPrecondition && error.message().ends_with("is exited") => {
            Ok(())
        }
        other => other,
    };
    storm.call("StartContainer", start).await;
    let log = client.log_path(name, "main");
    if stopped {
        until("the container has begun", async || (logs::texts(&log) == ["once"]).then_some(())).await;
        let response = storm.call("ExecSync", async || client.exec(&id, "exit 5", 20).await).await;
        assert_eq!(response.exit_code, 5, "{name}");
        storm.call("StopContainer", async || client.stop_container(&id, 20).await).await;
    }
    let ended = async || {
        let status = storm.call("ContainerStatus", async || client.status(&id).await).await;
        (status.state() == ContainerState::ContainerExited).then_some(status)
    };
    let status = until("the container ends", ended).await;
    assert_eq!((status.exit_code, &*status.reason), (code, "Error"), "{name}");
    assert!(status.started_at > 0 && status.finished_at >= status.started_at, "{status:?}");
    assert_eq!(logs::texts(&log), ["once"], "{name}: it ran once, and its line is not lost");
    storm.call("RemoveContainer", async || client.remove_container(&id).await).await;
    storm.call("StopPodSandbox", async || client.stop(&pod).await).await;
    storm.call("RemovePodSandbox", async || client.remove(&pod).await).await;
}

/// A worker's pod: below a kubelet's cgroup, or with a host port that the next pod of the worker wants as well.
fn pod(client: &Client, name: &str, number: usize) -> PodSandboxConfig {
    let mut config = client.pod(name);
    if number.is_multiple_of(2) {
        config.linux.as_mut().unwrap().cgroup_parent = "/kube/pod".to_owned();
    } else {
        let host_port = 18_000 + i32::try_from(number).unwrap();
        config.port_mappings = vec![PortMapping { container_port: 80, host_port, ..PortMapping::default() }];
    }
    config
}
