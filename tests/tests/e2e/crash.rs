//! Daemons and supervisors that are killed: what runs goes on, what was asked can be asked again, nothing is left.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;
use tonic::{Code, Status};
use wharf_cri_api::v1::{ContainerState, GetEventsRequest, PodSandboxState};

use crate::client::Client;
use crate::daemon::{is_alive, process_with};
use crate::image::{Content, noise, plain};
use crate::logs;
use crate::server::{Server, Then, honest};
use crate::world::{World, run, until};

#[test]
fn containers_go_on_without_a_daemon() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("goes-on")).await.unwrap();
        let count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
        let counts = client.launch(&pod, &client.container("counts", count)).await.unwrap();
        let ends = client
            .launch(
                &pod,
                &client.container("ends", "until [ -e /end ]; do sleep 0.01; done; echo over; exit 9"),
            )
            .await
            .unwrap();
        let before = client.status(&counts).await.unwrap();
        let address = client.pod_status(&pod).await.unwrap().network;
        // The command is at work when the daemon dies, and is not needed any more then.
        let asked = client.clone();
        let of = ends.clone();
        let exec =
            tokio::spawn(async move { asked.exec(&of, "sleep 0.2; touch /end; sleep 1000", 60).await });
        let root = until("the command runs", async || process_with("sleep 0.2; touch /end")).await;
        world.daemon.kill();
        assert!(exec.await.unwrap().is_err());
        until("a command without a caller ends", async || (!is_alive(root)).then_some(())).await;

        let log = client.log_path("goes-on", "counts");
        let seen = logs::texts(&log).len();
        until("lines are logged without a daemon", async || {
            (logs::texts(&log).len() > seen + 10).then_some(())
        })
        .await;
        world.start_again().await;
        let client = &world.client;
        let after = client.status(&counts).await.unwrap();
        assert_eq!((after.state(), after.started_at), (ContainerState::ContainerRunning, before.started_at));
        assert_eq!(client.pod_status(&pod).await.unwrap().network, address);
        assert_eq!(client.output(&counts, "echo still here").await, "still here");
        client.exec(&ends, "touch /end", 10).await.unwrap();
        client.stop_container(&counts, 0).await.unwrap();
        let lines = logs::texts(&log);
        let expected: Vec<String> = (1..=lines.len()).map(|n| n.to_string()).collect();
        assert_eq!(lines, expected, "each line once and in order");
    });
}

#[test]
fn an_end_without_a_daemon_is_not_lost() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("unseen")).await.unwrap();
        let ends =
            client.launch(&pod, &client.container("ends", "sleep 0.3; echo over; exit 9")).await.unwrap();
        let killed = client.launch(&pod, &client.container("killed", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        let sleeper = until("the process is there", async || process_with("sleep 1000")).await;
        kill(Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
        let log = client.log_path("unseen", "ends");
        until("it ends", async || (!is_alive(sleeper) && logs::texts(&log) == ["over"]).then_some(())).await;
        world.start_again().await;
        let client = &world.client;
        let status = client.exited(&ends).await;
        assert_eq!((status.exit_code, &*status.reason), (9, "Error"));
        assert!(status.finished_at > status.started_at && status.started_at > 0);
        assert_eq!(client.exited(&killed).await.exit_code, 137);
        assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    });
}

#[test]
fn a_daemon_ends_though_someone_listens_for_events() {
    run(async |world| {
        let mut client = world.client.runtime.clone();
        let mut events = client.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let status = world.daemon.end().await;
        assert!(status.success(), "{status}");
        assert!(!matches!(events.message().await, Ok(Some(_))));
        world.start_again().await;
    });
}

#[test]
fn a_dead_supervisor_is_seen_and_cleared_away() {
    run(async |world| {
        for daemon_too in [false, true] {
            let client = &world.client;
            let pod = client.run(&client.pod("orphaned")).await.unwrap();
            let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
            let shim = until("the supervisor is there", async || process_with(&pod)).await;
            if daemon_too {
                world.daemon.kill();
            }
            kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
            if daemon_too {
                world.start_again().await;
            }
            let client = &world.client;
            let status = client.exited(&id).await;
            assert_eq!((status.exit_code, &*status.reason), (255, "Unknown"));
            until("its process is killed", async || process_with("sleep 1000").is_none().then_some(())).await;
            let error = client.create(&pod, &client.container("next", "true")).await.unwrap_err();
            assert!(matches!(error.code(), Code::FailedPrecondition | Code::Unavailable), "{error}");
            assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
            client.down(&pod).await.unwrap();
            world.is_clean().await;
        }
    });
}

#[test]
fn a_damaged_record_costs_its_pod_and_no_other() {
    run(async |world| {
        let client = &world.client;
        let kept = client.run(&client.pod("kept")).await.unwrap();
        let mut config = client.pod("damaged");
        // As the kubelet has it: the pod's cgroup is not wharf's own.
        config.linux.as_mut().unwrap().cgroup_parent = "/kube/pod".to_owned();
        let damaged = client.run(&config).await.unwrap();
        client.launch(&damaged, &client.container("main", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        std::fs::write(world.dir.join("state/pods").join(&damaged).join("record"), b"no record").unwrap();
        world.start_again().await;
        let ids: Vec<String> = world.client.pods().await.into_iter().map(|pod| pod.id).collect();
        assert_eq!(ids, [kept]);
        assert!(process_with("sleep 1000").is_none(), "its processes are gone with it");
        std::fs::remove_dir_all(world.dir.join("state/quarantine"))
            .expect("the record was kept for a look at it");
    });
}

/// Kills of the daemon in one storm.
const KILLS: u32 = 20;
/// Pods that are taken through their lives at once.
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
        // Different moments of the lives, which take some tens of milliseconds.
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

/// What is listed is whole: no name twice, and a pod that is ready has an address.
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

/// What the workers know of the daemon.
struct Storm {
    up: watch::Sender<bool>,
    kills: AtomicU32,
    over: AtomicBool,
}

impl Storm {
    /// Calls until there is an answer. Only a kill meanwhile excuses a failure.
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

/// Takes pods through their lives, one after the other; returns how many.
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
    let container = client.container("main", &format!("echo once; sleep 0.02; exit {code}"));
    let pod = storm.call("RunPodSandbox", async || client.run(&client.pod(name)).await).await;
    let status = storm.call("PodSandboxStatus", async || client.pod_status(&pod).await).await;
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_ne!(status.network.unwrap().ip, "");
    let id = storm.call("CreateContainer", async || client.create(&pod, &container).await).await;
    let start = async || match client.start(&id).await {
        // Started by the call that was cut off, and at its end by now.
        Err(error) if error.code() == Code::FailedPrecondition && error.message().ends_with("is exited") => {
            Ok(())
        }
        other => other,
    };
    storm.call("StartContainer", start).await;
    let ended = async || {
        let status = storm.call("ContainerStatus", async || client.status(&id).await).await;
        (status.state() == ContainerState::ContainerExited).then_some(status)
    };
    let status = until("the container ends", ended).await;
    assert_eq!((status.exit_code, &*status.reason), (code, "Error"), "{name}");
    assert!(status.started_at > 0 && status.finished_at >= status.started_at, "{status:?}");
    assert_eq!(
        logs::texts(&client.log_path(name, "main")),
        ["once"],
        "{name}: it ran once, and its line is not lost"
    );
    storm.call("RemoveContainer", async || client.remove_container(&id).await).await;
    storm.call("StopPodSandbox", async || client.stop(&pod).await).await;
    storm.call("RemovePodSandbox", async || client.remove(&pod).await).await;
}

#[test]
fn a_pull_that_a_kill_cut_off_can_be_repeated() {
    run(async |world| {
        let layer = plain("file", &noise(100_000));
        let path = layer.path();
        let content = Content::oci("1", &[layer]);
        let (shown, stalled) = (content.clone(), path.clone());
        // The first request for the layer is never answered in full.
        let server = Server::start(content, move |asked| {
            let first = asked.path() == stalled && asked.nth == 0;
            first.then(|| honest(&shown, asked).cut(50_000).then(Then::Stall))
        })
        .await;
        let name = format!("{}/app:1", server.address);
        let pull = tokio::spawn({
            let (client, name) = (world.client.clone(), name.clone());
            async move { client.pull(&name).await }
        });
        server.until(&path, 1).await;
        world.daemon.kill();
        assert!(pull.await.unwrap().is_err());
        world.start_again().await;
        assert_eq!(world.client.image_list().await.len(), 1);
        world.is_clean().await;
        world.client.pull(&name).await.unwrap();
        assert_eq!(world.client.image_list().await.len(), 2);
    });
}
