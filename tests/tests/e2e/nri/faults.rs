//! Plugins that hang, die, lie, or never were plugins: they hold up nobody for longer than their time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use wharf_nri::api::{self, ConfigureResponse, FailurePolicy, SynchronizeRequest};

use super::plugin::{Asked, Plan, Reply};
use crate::wedge::Supervisor;
use crate::world::{run, run_on, until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A plugin's time for a request is a second here.
fn impatient(dir: &Path) {
    fs::create_dir(dir.join("config.toml.d")).unwrap();
    let text = "[nri]\nrequest_timeout_s = 1\nregistration_timeout_s = 1\n";
    fs::write(dir.join("config.toml.d/10-impatient.toml"), text).unwrap();
}

fn at(method: &'static str, reply: Reply) -> impl Fn(Asked<'_>) -> Reply + Send + 'static {
    move |(asked, _)| if asked == method { reply.clone() } else { Reply::Nothing }
}

#[test]
fn a_plugin_that_hangs_or_dies_is_closed_and_the_pod_goes_on() {
    run_on(impatient, async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        for (number, reply) in [Reply::Hang, Reply::Die].into_iter().enumerate() {
            for method in
                ["RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemovePodSandbox"]
            {
                let name = format!("{method}-{number}").to_lowercase();
                let stuck = Plan::new("10", "stuck", at(method, reply.clone())).connect(&dir).await;
                let after = Plan::new("20", "after", |_| Reply::Nothing).connect(&dir).await;
                let pod = client.run(&client.pod(&name)).await.unwrap();
                client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
                client.down(&pod).await.unwrap();
                tokio::time::timeout(PATIENCE, stuck.connection.ended()).await.expect("it is closed");
                assert_eq!(after.events(&name).last(), Some(&format!("RemovePodSandbox {name}")));
                after.connection.close();
            }
        }
    });
}

/// Whoever is not asked about a pod does not delay it, and whoever is delays that pod alone.
#[test]
fn a_slow_plugin_delays_only_what_it_is_asked_about() {
    run(async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        // Of all events only the creation of containers.
        let respond = |(method, _): Asked<'_>| match method {
            "Configure" => Reply::Configure(ConfigureResponse { events: 1 << 3, failure_policy: None }),
            "CreateContainer" => Reply::Hang,
            _ => Reply::Nothing,
        };
        let slow = Plan::new("10", "slow", respond).connect(&dir).await;
        let pod = client.run(&client.pod("slowed")).await.unwrap();
        let creating = {
            let (client, pod) = (client.clone(), pod.clone());
            tokio::spawn(async move { client.create(&pod, &client.container("main", "true")).await })
        };
        until("the plugin is asked", async || slow.has("CreateContainer").then_some(())).await;
        let start = Instant::now();
        let other = client.run(&client.pod("other")).await.unwrap();
        client.down(&other).await.unwrap();
        assert!(!creating.is_finished(), "after {:?}", start.elapsed());
        creating.await.unwrap().unwrap();
        assert_eq!(slow.events("other"), [] as [&str; 0]);
    });
}

/// What holds up creations, here supervisors that are stopped, holds up neither those of other pods nor a plugin.
#[test]
fn creations_that_last_keep_no_other_and_no_plugin_waiting() {
    const STUCK: usize = 20;
    run(async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let early = Plan::new("10", "early", |_| Reply::Nothing).connect(&dir).await;
        let (mut supervisors, mut creations) = (Vec::new(), Vec::new());
        for number in 0..STUCK {
            let pod = client.run(&client.pod(&format!("stuck-{number}"))).await.unwrap();
            let supervisor = Supervisor::of(&pod).await;
            supervisor.stop();
            supervisors.push(supervisor);
            let client = client.clone();
            creations.push(tokio::spawn(async move {
                client.create(&pod, &client.container("main", "true")).await
            }));
        }
        let is_asked = |number: usize| {
            early.events(&format!("stuck-{number}")).contains(&"CreateContainer main".to_owned())
        };
        until("each is asked about", async || (0..STUCK).all(is_asked).then_some(())).await;
        let other = client.run(&client.pod("other")).await.unwrap();
        let created = client.create(&other, &client.container("main", "true")).await.unwrap();
        let late = Plan::new("20", "late", |_| Reply::Nothing).connect(&dir).await;
        assert!(creations.iter().all(|creation| !creation.is_finished()));
        let known: SynchronizeRequest = late.last("Synchronize");
        assert_eq!(known.containers.len(), STUCK + 1);
        supervisors.iter().for_each(Supervisor::go_on);
        for (number, creation) in creations.into_iter().enumerate() {
            let id = creation.await.unwrap().unwrap();
            let shown = known.containers.iter().find(|shown| shown.id == id).expect("it is shown");
            assert_eq!(shown.state(), api::ContainerState::ContainerUnknown);
            assert_eq!(late.events(&format!("stuck-{number}")), ["PostCreateContainer main"]);
        }
        let shown = known.containers.iter().find(|shown| shown.id == created).unwrap();
        assert_eq!(shown.state(), api::ContainerState::ContainerCreated);
    });
}

#[test]
fn a_plugin_may_ask_that_nothing_is_done_without_it() {
    run_on(impatient, async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let respond = |(method, _): Asked<'_>| match method {
            "Configure" => {
                let policy = FailurePolicy { fail_request: true, keep_connected: true };
                Reply::Configure(ConfigureResponse { events: 0, failure_policy: Some(policy) })
            }
            "RunPodSandbox" => Reply::Hang,
            _ => Reply::Nothing,
        };
        let needed = Plan::new("10", "needed", respond).connect(&dir).await;
        for _ in 0..2 {
            let refused = client.run(&client.pod("guarded")).await.unwrap_err();
            assert!(refused.message().contains("10-needed does not respond to RunPodSandbox"), "{refused}");
            assert_eq!(client.pods().await, []);
        }
        assert!(!needed.connection.is_ended());
        needed.connection.close();
        until("it is gone", async || client.run(&client.pod("guarded")).await.ok()).await;
    });
}

#[test]
fn whoever_does_not_register_is_sent_away() {
    run_on(impatient, async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        for (index, name) in [("1", "a"), ("xy", "a"), ("100", "a"), ("10", ""), ("10", "a/b")] {
            assert!(
                Plan::new(index, name, |_| Reply::Nothing).register(&dir).await.is_err(),
                "{index}-{name}"
            );
        }
        for (method, reply) in [
            ("Configure", Reply::Hang),
            ("Configure", Reply::Fail("no")),
            ("Configure", Reply::Configure(ConfigureResponse { events: 1 << 20, failure_policy: None })),
            ("Synchronize", Reply::Hang),
            ("Synchronize", Reply::Fail("no")),
        ] {
            let plugin = Plan::new("10", "a", at(method, reply.clone())).register(&dir).await.unwrap();
            let ended = tokio::time::timeout(PATIENCE, plugin.connection.ended()).await;
            assert!(ended.is_ok(), "{method} {reply:?}");
        }
        let mut silent = UnixStream::connect(dir.join("nri.sock")).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, silent.read(&mut [0])).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
        assert!(world.daemon.has_logged("did not register within"));
        let pod = client.run(&client.pod("unbothered")).await.unwrap();
        client.to_end(&pod, "main", "true").await;
    });
}

#[test]
fn what_is_no_plugin_does_no_harm() {
    run(async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let socket = dir.join("nri.sock");
        let frame = |connection: u32, len: u32| [connection.to_be_bytes(), len.to_be_bytes()].concat();
        let huge_message = [frame(2, 10), vec![0xff; 4], vec![0, 0, 0, 1, 1, 0]].concat();
        for garbage in
            [vec![0xff; 4096], b"GET / HTTP/1.1\r\n\r\n".to_vec(), frame(1, u32::MAX), huge_message]
        {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            stream.write_all(&garbage).await.unwrap();
            let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
            assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{ended:?}");
        }
        // A thousand connections that say nothing: most are closed at once, and none keeps a pod from running.
        let mut crowd = Vec::new();
        for _ in 0..1000 {
            crowd.extend(UnixStream::connect(&socket).await);
        }
        let descriptors = || world.daemon.descriptors().len();
        until("most of them are sent away", async || (descriptors() < 300).then_some(())).await;
        assert!(world.daemon.has_logged("an NRI plugin is refused"));
        let pod = client.run(&client.pod("unbothered")).await.unwrap();
        client.to_end(&pod, "main", "true").await;
        drop(crowd);
        let register = async || Plan::new("10", "a", |_| Reply::Nothing).register(&dir).await.ok();
        let plugin = until("there is room again", register).await;
        until("it is a plugin", async || plugin.has("Synchronize").then_some(())).await;
    });
}
