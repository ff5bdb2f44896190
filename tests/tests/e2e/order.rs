//! Events: each exactly once, and in order.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tonic::Streaming;
use wharf_cri_api::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, ContainerStatus, GetEventsRequest,
};

use crate::client::Client;
use crate::world::run;

const CREATED: ContainerEventType = ContainerEventType::ContainerCreatedEvent;
const STARTED: ContainerEventType = ContainerEventType::ContainerStartedEvent;
const STOPPED: ContainerEventType = ContainerEventType::ContainerStoppedEvent;
const DELETED: ContainerEventType = ContainerEventType::ContainerDeletedEvent;

async fn listen(client: &Client) -> Streaming<ContainerEventResponse> {
    client.runtime.clone().get_container_events(GetEventsRequest {}).await.unwrap().into_inner()
}

/// The events about each pod and container, until the end of `last` is reported.
async fn told(
    events: &mut Streaming<ContainerEventResponse>,
    last: &str,
) -> BTreeMap<String, Vec<ContainerEventType>> {
    let mut all: BTreeMap<String, Vec<_>> = BTreeMap::new();
    loop {
        let event = events.message().await.unwrap().expect("events go on");
        let (id, kind) = (event.container_id.clone(), event.container_event_type());
        let shown = |status: &ContainerStatus| status.id == id;
        assert!(event.pod_sandbox_status.is_some() && event.created_at > 0, "{event:?}");
        if let (Some(status), STARTED) = (event.containers_statuses.iter().find(|one| shown(one)), kind) {
            assert_ne!(status.state(), ContainerState::ContainerCreated, "it says it has started");
        }
        all.entry(id.clone()).or_default().push(kind);
        if id == last && kind == DELETED {
            return all;
        }
    }
}

#[test]
fn short_lives_are_told_once_and_in_order() {
    run(async |world| {
        let client = &world.client;
        let mut events = listen(client).await;
        let lives = (0..16).map(async |number| {
            let pod = client.run(&client.pod(&format!("short-{number}"))).await.unwrap();
            for round in 0..3 {
                let container = client.container(&format!("c{round}"), "true");
                let id = client.launch(&pod, &container).await.unwrap();
                client.remove_container(&id).await.unwrap();
            }
            client.down(&pod).await.unwrap();
        });
        join_all(lives).await;
        let last = client.run(&client.pod("last")).await.unwrap();
        client.down(&last).await.unwrap();
        let all = told(&mut events, &last).await;
        assert_eq!(all.len(), 16 * 4 + 1);
        for (id, kinds) in all {
            assert_eq!(kinds, [CREATED, STARTED, STOPPED, DELETED], "{id}");
        }
    });
}

#[test]
fn listeners_that_are_slow_miss_nothing() {
    run(async |world| {
        let client = &world.client;
        let mut listeners = join_all((0..8).map(|_| listen(client))).await;
        for number in 0..16 {
            let pod = client.run(&client.pod(&format!("heard-{number}"))).await.unwrap();
            client.launch(&pod, &client.container("main", "true")).await.unwrap();
            client.down(&pod).await.unwrap();
        }
        let last = client.run(&client.pod("last")).await.unwrap();
        client.down(&last).await.unwrap();
        // Nobody has read anything until now.
        for events in &mut listeners {
            let all = told(events, &last).await;
            assert_eq!(all.len(), 16 * 2 + 1);
            for (id, kinds) in all {
                assert_eq!(kinds, [CREATED, STARTED, STOPPED, DELETED], "{id}");
            }
        }
    });
}

#[test]
fn removals_at_once_are_one() {
    run(async |world| {
        let client = &world.client;
        let mut events = listen(client).await;
        for round in 0..8 {
            let pod = client.run(&client.pod(&format!("twice-{round}"))).await.unwrap();
            let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
            let removals = join_all((0..4).map(|_| client.remove_container(&id)));
            let (removed, downed) = tokio::join!(removals, client.down(&pod));
            removed.into_iter().chain([downed]).for_each(|one| one.unwrap());
        }
        let last = client.run(&client.pod("last")).await.unwrap();
        client.down(&last).await.unwrap();
        for (id, kinds) in told(&mut events, &last).await {
            assert_eq!(kinds, [CREATED, STARTED, STOPPED, DELETED], "{id}");
        }
    });
}

#[test]
fn a_pod_whose_supervisor_dies_is_told_to_have_stopped() {
    run(async |world| {
        let client = &world.client;
        let mut events = listen(client).await;
        let pod = client.run(&client.pod("orphaned")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let supervisor = crate::world::until("it is there", async || crate::daemon::process_with(&pod)).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        client.exited(&id).await;
        client.down(&pod).await.unwrap();
        let all = told(&mut events, &pod).await;
        assert_eq!(all[&id], [CREATED, STARTED, STOPPED, DELETED]);
        assert_eq!(all[&pod], [CREATED, STARTED, STOPPED, DELETED]);
    });
}
