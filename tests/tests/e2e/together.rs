//! Concurrent calls, on many pods and on one, and callers that do not wait.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tonic::{Code, Status};
use wharf_cri_api::v1::PodSandboxState;
use wharf_pods::BLOCKING_THREADS;

use crate::client::Client;
use crate::world::{run, until};

/// How many pods are made and removed at the same moment.
const PODS: usize = 20;
/// The threads of wharfd that do other work than the pool and the makers of pods: among them its workers, and those
/// that empty the trash.
const OTHER_THREADS: usize = 10;

#[test]
fn many_pods_come_and_go_together() {
    run(async |world| {
        let client = &world.client;
        for round in 0..2 {
            let up = |number: usize| async move {
                let name = format!("many-{round}-{number}");
                let pod = client.run(&client.pod(&name)).await?;
                client.launch(&pod, &client.container("main", "sleep 1000")).await?;
                Ok::<_, Status>(pod)
            };
            let pods = try_join_all((0..PODS).map(up)).await.unwrap();
            let mut addresses = Vec::new();
            for pod in &pods {
                addresses.push(client.pod_status(pod).await.unwrap().network.unwrap().ip);
            }
            addresses.sort();
            addresses.dedup();
            assert_eq!(addresses.len(), PODS, "each has an address of its own: {addresses:?}");
            try_join_all(pods.iter().map(|pod| client.down(pod))).await.unwrap();
            world.is_clean().await;
            let threads = world.daemon.threads();
            assert!(
                threads <= BLOCKING_THREADS + OTHER_THREADS,
                "those that made pods have ended: {threads}"
            );
        }
    });
}

#[test]
fn the_same_calls_at_once_are_one() {
    run(async |world| {
        let client = &world.client;
        let config = client.pod("same");
        let pods = try_join_all((0..8).map(|_| client.run(&config))).await.unwrap();
        assert!(pods.iter().all(|pod| *pod == pods[0]), "{pods:?}");
        let container = client.container("main", "echo once; sleep 1000");
        let ids = try_join_all((0..8).map(|_| client.create(&pods[0], &container))).await.unwrap();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        try_join_all((0..8).map(|_| client.start(&ids[0]))).await.unwrap();
        let log = client.log_path("same", "main");
        let written = || std::fs::read_to_string(&log).unwrap();
        until("its line", async || (!written().is_empty()).then_some(())).await;
        try_join_all((0..8).map(|_| client.stop_container(&ids[0], 0))).await.unwrap();
        assert_eq!(written().lines().count(), 1, "{}", written());
        try_join_all((0..8).map(|_| client.remove_container(&ids[0]))).await.unwrap();
        try_join_all((0..8).map(|_| client.down(&pods[0]))).await.unwrap();
        assert_eq!(client.pods().await, []);
    });
}

#[test]
fn a_pod_can_be_removed_while_it_is_worked_on() {
    run(async |world| {
        let client = &world.client;
        for round in 0..5 {
            let pod = client.run(&client.pod(&format!("busy-{round}"))).await.unwrap();
            let work = join_all((0..6).map(|number| {
                let pod = &pod;
                async move {
                    let container = client.container(&format!("c{number}"), "sleep 1000");
                    let id = client.launch(pod, &container).await?;
                    client.exec(&id, "true", 5).await?;
                    client.remove_container(&id).await
                }
            }));
            let removal = async {
                tokio::time::sleep(Duration::from_millis(10 * round)).await;
                client.down(&pod).await
            };
            let (worked, removed) = tokio::join!(work, removal);
            removed.unwrap();
            let fine = [Code::NotFound, Code::FailedPrecondition, Code::Unavailable];
            for error in worked.into_iter().filter_map(Result::err) {
                assert!(fine.contains(&error.code()), "{error}");
            }
            assert_eq!(client.pods().await, []);
            assert_eq!(client.containers().await, []);
        }
        world.is_clean().await;
    });
}

#[test]
fn a_caller_that_goes_away_leaves_a_whole_or_nothing() {
    run(async |world| {
        let client = &world.client;
        for after_ms in [0, 1, 2, 4, 8, 16, 32] {
            let patience = Duration::from_millis(after_ms);
            let config = client.pod(&format!("cancelled-{after_ms}"));
            let container = client.container("main", "echo once; sleep 1000");
            drop(tokio::time::timeout(patience, client.run(&config)).await);
            let pod = client.run(&config).await.unwrap();
            assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
            drop(tokio::time::timeout(patience, client.create(&pod, &container)).await);
            let id = client.create(&pod, &container).await.unwrap();
            drop(tokio::time::timeout(patience, client.start(&id)).await);
            client.start(&id).await.unwrap();
            assert_eq!((client.pods().await.len(), client.containers().await.len()), (1, 1));
            drop(tokio::time::timeout(patience, client.stop(&pod)).await);
            drop(tokio::time::timeout(patience, client.remove(&pod)).await);
            down(client, &pod).await;
        }
        world.is_clean().await;
    });
}

async fn down(client: &Client, pod: &str) {
    client.down(pod).await.unwrap();
    assert_eq!((client.pods().await, client.containers().await), (vec![], vec![]));
}
