//! NRI plugins: what they are told and asked, what they change, and what they cannot hold up.

mod changes;
mod faults;
mod plugin;

use tonic::Code;
use wharf_cri_api::v1::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};
use wharf_nri::api::{ContainerState, SynchronizeRequest, UpdatePodSandboxRequest};

use crate::client::Client;
use crate::world::{run, until};
use plugin::{Plan, Reply};

async fn update_pod(client: &Client, pod: &str) {
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.to_owned(),
        overhead: Some(LinuxContainerResources { cpu_shares: 7, ..Default::default() }),
        resources: None,
    };
    client.runtime.clone().update_pod_sandbox_resources(request).await.unwrap();
}

#[test]
fn each_event_comes_once_and_in_order() {
    run(async |world| {
        let (dir, client) = (world.dir.clone(), &world.client);
        let plugin = Plan::new("10", "a", |_| Reply::Nothing).connect(&dir).await;
        let pod = client.run(&client.pod("told")).await.unwrap();
        update_pod(client, &pod).await;
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        client.update(&id, LinuxContainerResources { cpu_shares: 512, ..Default::default() }).await.unwrap();
        let status = client.to_end(&pod, "short", "exit 3").await;
        let ended = || plugin.events("told").contains(&"StopContainer short".to_owned());
        until("plugins are told of an end that nobody asked for", async || ended().then_some(())).await;
        client.stop_container(&id, 0).await.unwrap();
        client.stop_container(&id, 0).await.unwrap();
        client.remove_container(&status.id).await.unwrap();
        client.stop(&pod).await.unwrap();
        client.stop(&pod).await.unwrap();
        client.remove(&pod).await.unwrap();
        let expected = [
            "RunPodSandbox told",
            "UpdatePodSandbox told",
            "PostUpdatePodSandbox told",
            "CreateContainer main",
            "PostCreateContainer main",
            "StartContainer main",
            "PostStartContainer main",
            "UpdateContainer main",
            "PostUpdateContainer main",
            "CreateContainer short",
            "PostCreateContainer short",
            "StartContainer short",
            "PostStartContainer short",
            "StopContainer short",
            "StopContainer main",
            "RemoveContainer short",
            "StopPodSandbox told",
            "RemoveContainer main",
            "RemovePodSandbox told",
        ];
        let mut events = plugin.events("told");
        // Everyone who creates a container is validated.
        events.retain(|event| !event.starts_with("ValidateContainerAdjustment"));
        assert_eq!(events, expected);
        let told: UpdatePodSandboxRequest = plugin.last("UpdatePodSandbox");
        let shares = told.overhead_linux_resources.unwrap().cpu.unwrap().shares;
        assert_eq!((shares.unwrap().value, told.linux_resources), (7, None));
    });
}

#[test]
fn a_late_plugin_learns_what_exists_also_of_a_later_daemon() {
    run(async |world| {
        let dir = world.dir.clone();
        let pod = world.client.run(&world.client.pod("early")).await.unwrap();
        let running =
            world.client.launch(&pod, &world.client.container("running", "sleep 1000")).await.unwrap();
        let ended = world.client.to_end(&pod, "ended", "exit 3").await;
        let look = async || {
            let plugin = Plan::new("10", "a", |_| Reply::Nothing).connect(&dir).await;
            let known: SynchronizeRequest = plugin.last("Synchronize");
            assert_eq!(known.pods.iter().map(|pod| &*pod.name).collect::<Vec<_>>(), ["early"]);
            assert!(known.pods[0].ips.len() == 2 && !known.more);
            let state = |id: &str| known.containers.iter().find(|known| known.id == id).unwrap().clone();
            let (running, ended) = (state(&running), state(&ended.id));
            assert_eq!(running.state(), ContainerState::ContainerRunning);
            assert!(running.pid > 0 && running.args == ["sh", "-c", "sleep 1000"]);
            assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerStopped, 3));
            plugin
        };
        let first = look().await;
        assert!(world.daemon.end().await.success());
        first.connection.ended().await;
        assert!(first.has("Shutdown"));
        world.start_again().await;
        let second = look().await;
        world.client.down(&pod).await.unwrap();
        let mut removed = second.events("early");
        removed.retain(|event| event.starts_with("Remove"));
        removed.sort();
        assert_eq!(removed, ["RemoveContainer ended", "RemoveContainer running", "RemovePodSandbox early"]);
    });
}

/// What a plugin refuses is not made, leaves nothing, and is made by the next try.
#[test]
fn what_a_plugin_refuses_is_not_made() {
    run(async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        for method in ["RunPodSandbox", "CreateContainer", "StartContainer"] {
            let respond = move |(asked, _): plugin::Asked<'_>| match asked == method {
                true => Reply::Fail("not on this node"),
                false => Reply::Nothing,
            };
            let willing = Plan::new("05", "willing", |_| Reply::Nothing).connect(&dir).await;
            let refusing = Plan::new("10", "refusing", respond).connect(&dir).await;
            let name = method.to_lowercase();
            let up = async || {
                let pod = client.run(&client.pod(&name)).await?;
                client.launch(&pod, &client.container("main", "sleep 1000")).await?;
                Ok::<_, tonic::Status>(pod)
            };
            let refused = up().await.unwrap_err();
            let words = format!("10-refusing refuses {method}: not on this node");
            assert!(refused.message().contains(&words), "{refused}");
            assert_eq!(refused.code(), Code::FailedPrecondition);
            let (made, events) = (client.containers().await, willing.events(&name));
            match method {
                "RunPodSandbox" => {
                    assert_eq!(client.pods().await, []);
                    assert_eq!(
                        events[1..],
                        ["StopPodSandbox runpodsandbox", "RemovePodSandbox runpodsandbox"]
                    );
                }
                "CreateContainer" => {
                    assert_eq!(made, []);
                    assert_eq!(events[2..], ["StopContainer main", "RemoveContainer main"]);
                }
                _ => assert_eq!(made.len(), 1),
            }
            refusing.connection.close();
            until("the refusing plugin is gone", async || up().await.ok()).await;
            world.clear().await;
            willing.connection.close();
        }
    });
}
