//! The lives of pods and containers: states, repeated calls, lists, events, exits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::words;
use crate::world::{run, until};

#[test]
fn a_pod_lives_and_dies() {
    run(async |world| {
        let client = &world.client;
        let config = client.pod("life");
        let pod = client.run(&config).await.unwrap();
        let status = client.pod_status(&pod).await.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        let id = client
            .create(&pod, &client.container("main", "trap 'exit 3' TERM; while :; do sleep 0.05; done"))
            .await
            .unwrap();
        assert_eq!(client.status(&id).await.unwrap().state(), ContainerState::ContainerCreated);
        client.start(&id).await.unwrap();
        let running = client.status(&id).await.unwrap();
        assert_eq!(running.state(), ContainerState::ContainerRunning);
        assert!(running.created_at <= running.started_at && running.finished_at == 0);
        assert_eq!(client.output(&id, "hostname").await, "life");
        client.stop_container(&id, 10).await.unwrap();
        let ended = client.status(&id).await.unwrap();
        assert_eq!(
            (ended.state(), ended.exit_code, &*ended.reason),
            (ContainerState::ContainerExited, 3, "Error")
        );
        assert!(ended.started_at == running.started_at && ended.finished_at > ended.started_at);
        client.stop(&pod).await.unwrap();
        assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
        assert_eq!(
            client.status(&id).await.unwrap().exit_code,
            3,
            "a stopped pod's containers keep their end"
        );
        client.remove(&pod).await.unwrap();
        assert_eq!(client.pod_status(&pod).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(client.status(&id).await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn repeated_calls_have_the_first_ones_effect() {
    run(async |world| {
        let client = &world.client;
        let config = client.pod("again");
        let container = client.container("main", "sleep 1000");
        let pod = client.run(&config).await.unwrap();
        assert_eq!(client.run(&config).await.unwrap(), pod);
        let id = client.create(&pod, &container).await.unwrap();
        assert_eq!(client.create(&pod, &container).await.unwrap(), id);
        client.start(&id).await.unwrap();
        client.start(&id).await.unwrap();
        for _ in 0..2 {
            client.stop_container(&id, 0).await.unwrap();
        }
        for _ in 0..2 {
            client.remove_container(&id).await.unwrap();
        }
        let is_silent = world.daemon.has_logged("the pod's supervisor will remove the container later");
        assert!(!is_silent, "the supervisor has not answered");
        assert_ne!(client.create(&pod, &container).await.unwrap(), id, "a removed container's name is free");
        for _ in 0..2 {
            client.stop(&pod).await.unwrap();
        }
        for _ in 0..2 {
            client.remove(&pod).await.unwrap();
        }
        client.stop_container(&id, 0).await.unwrap();
        client.remove_container("nobody").await.unwrap();
        let next = client.run(&config).await.unwrap();
        assert_ne!(next, pod, "a removed pod's name is free");
    });
}

#[test]
fn ends_have_their_code_and_reason() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("ends")).await.unwrap();
        let table = [
            ("zero", "exit 0", 0, "Completed"),
            ("seven", "exit 7", 7, "Error"),
            ("signal", "kill -USR1 $$; sleep 9", 138, "Error"),
            ("killed", "kill -KILL $$; sleep 9", 137, "Error"),
        ];
        for (name, script, code, reason) in table {
            let mut config = client.container(name, script);
            // The first process of a PID namespace ignores signals from within.
            crate::client::security(&mut config).namespace_options =
                Some(NamespaceOption { pid: NamespaceMode::Pod.into(), ..NamespaceOption::default() });
            let id = client.launch(&pod, &config).await.unwrap();
            let status = client.exited(&id).await;
            assert_eq!((status.exit_code, &*status.reason), (code, reason), "{name}");
        }
        let mut greedy = client.container("greedy", "exec tail /dev/zero");
        greedy.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            ..LinuxContainerResources::default()
        });
        let id = client.launch(&pod, &greedy).await.unwrap();
        let status = client.exited(&id).await;
        assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    });
}

#[test]
fn a_program_that_cannot_start_is_a_start_error() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("unstarted")).await.unwrap();
        for (name, program) in
            [("missing", "/no/such/program"), ("unnamed", "no-such-program"), ("text", "/etc/passwd")]
        {
            let mut config = client.container(name, "");
            config.command = words(&[program]);
            let id = client.create(&pod, &config).await.unwrap();
            let error = client.start(&id).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            assert!(error.message().contains(program), "{error}");
            let status = client.status(&id).await.unwrap();
            assert_eq!((status.exit_code, &*status.reason), (128, "StartError"));
            assert!(status.message.contains(program), "{}", status.message);
        }
    });
}

#[test]
fn stop_gives_the_grace_and_then_kills() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("grace")).await.unwrap();
        let deaf = client
            .launch(
                &pod,
                &client.container("deaf", "trap '' TERM; touch /tmp/deaf; while :; do sleep 0.05; done"),
            )
            .await
            .unwrap();
        until("the trap is set", async || {
            client.exec(&deaf, "test -e /tmp/deaf", 5).await.ok().filter(|done| done.exit_code == 0)
        })
        .await;
        let start = Instant::now();
        client.stop_container(&deaf, 1).await.unwrap();
        assert!(
            (Duration::from_secs(1)..Duration::from_secs(5)).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(client.status(&deaf).await.unwrap().exit_code, 137);

        let mut asked =
            client.container("asked", "trap 'exit 5' USR2; touch /tmp/asked; while :; do sleep 0.05; done");
        asked.stop_signal = Signal::Sigusr2.into();
        let asked = client.launch(&pod, &asked).await.unwrap();
        until("the trap is set", async || {
            client.exec(&asked, "test -e /tmp/asked", 5).await.ok().filter(|done| done.exit_code == 0)
        })
        .await;
        client.stop_container(&asked, 10).await.unwrap();
        assert_eq!(client.status(&asked).await.unwrap().exit_code, 5, "the request's own signal was sent");
    });
}

/// The kubelet repeats the call when the grace period changes, and after its own timeout.
#[test]
fn a_container_gets_its_stop_signal_once_and_the_newest_grace() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("again")).await.unwrap();
        let script = "trap 'echo asked >>/tmp/asked' TERM; touch /tmp/asked; while :; do sleep 0.05; done";
        let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
        let asked = async |times: usize| {
            until("the signal has arrived", async || {
                let asked =
                    client.exec(&id, "cat /tmp/asked", 5).await.ok().filter(|done| done.exit_code == 0)?;
                (asked.stdout == b"asked\n".repeat(times)).then_some(())
            })
            .await;
        };
        asked(0).await;
        let start = Instant::now();
        let gone = tokio::time::timeout(Duration::from_millis(500), client.stop_container(&id, 2)).await;
        assert!(gone.is_err(), "its caller went away");
        let (kept, ()) = tokio::join!(client.stop_container(&id, 1000), async {
            asked(1).await;
            tokio::time::sleep_until((start + Duration::from_secs(4)).into()).await;
            // The call with a grace of two seconds has killed nothing, and nobody has sent another signal.
            asked(1).await;
            client.stop_container(&id, 1).await.unwrap();
        });
        kept.unwrap();
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_eq!(client.status(&id).await.unwrap().exit_code, 137);
    });
}

#[test]
fn lists_are_filtered() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("one");
        config.labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
        let one = client.run(&config).await.unwrap();
        let two = client.run(&client.pod("two")).await.unwrap();
        client.stop(&two).await.unwrap();
        let running = client.launch(&one, &client.container("running", "sleep 1000")).await.unwrap();
        let created = client.create(&one, &client.container("created", "sleep 1000")).await.unwrap();

        let pods = async |filter: PodSandboxFilter| {
            let request = ListPodSandboxRequest { filter: Some(filter) };
            let items = client.runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items;
            items.into_iter().map(|item| item.id).collect::<Vec<_>>()
        };
        let state = PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() };
        assert_eq!(pods(PodSandboxFilter { state: Some(state), ..Default::default() }).await, [&*two]);
        assert_eq!(pods(PodSandboxFilter { id: one[..8].to_owned(), ..Default::default() }).await, [&*one]);
        assert_eq!(
            pods(PodSandboxFilter { label_selector: config.labels, ..Default::default() }).await,
            [&*one]
        );
        assert!(
            pods(PodSandboxFilter { id: "0123nothing".to_owned(), ..Default::default() }).await.is_empty()
        );

        let containers = async |filter: ContainerFilter| {
            let request = ListContainersRequest { filter: Some(filter) };
            let items =
                client.runtime.clone().list_containers(request).await.unwrap().into_inner().containers;
            items.into_iter().map(|item| item.id).collect::<Vec<_>>()
        };
        let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        assert_eq!(
            containers(ContainerFilter { state: Some(state), ..Default::default() }).await,
            [&*running]
        );
        let label = BTreeMap::from([("name".to_owned(), "created".to_owned())]);
        assert_eq!(
            containers(ContainerFilter { label_selector: label, ..Default::default() }).await,
            [&*created]
        );
        assert_eq!(
            containers(ContainerFilter { pod_sandbox_id: two, ..Default::default() }).await,
            Vec::<String>::new()
        );
    });
}

#[test]
fn events_come_in_the_order_of_things() {
    run(async |world| {
        let client = &world.client;
        let mut events =
            client.runtime.clone().get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let pod = client.run(&client.pod("told")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "exit 4")).await.unwrap();
        client.exited(&id).await;
        client.remove_container(&id).await.unwrap();
        client.down(&pod).await.unwrap();
        use ContainerEventType::{
            ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
            ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
        };
        let expected = [
            (&pod, Created),
            (&pod, Started),
            (&id, Created),
            (&id, Started),
            (&id, Stopped),
            (&id, Deleted),
            (&pod, Stopped),
            (&pod, Deleted),
        ];
        let mut last = 0;
        for (of, kind) in expected {
            let event = events.message().await.unwrap().unwrap();
            assert_eq!((&event.container_id, event.container_event_type()), (of, kind));
            assert!(event.created_at >= last);
            last = event.created_at;
            if kind == Stopped && *of == id {
                assert_eq!(event.containers_statuses[0].exit_code, 4, "the event has the end in it");
            }
        }
    });
}

/// As with other runtimes: tools such as cAdvisor take a cgroup for a container that runs.
#[test]
fn an_ended_container_has_no_cgroup_whether_or_not_a_daemon_sees_its_end() {
    run(async |world| {
        let client = world.client.clone();
        let pod = client.run(&client.pod("ends")).await.unwrap();
        let (seen, missed) = ("exit 3", "while ! test -e /end; do sleep 0.05; done; exit 4");
        let seen = client.launch(&pod, &client.container("seen", seen)).await.unwrap();
        client.exited(&seen).await;
        until("its cgroup is gone", async || (world.cgroups(&seen) == 0).then_some(())).await;
        let missed = client.launch(&pod, &client.container("missed", missed)).await.unwrap();
        assert_ne!(world.cgroups(&missed), 0);
        assert_eq!(client.output(&missed, "touch /end").await, "");
        world.daemon.kill();
        world.start_again().await;
        until("the other's is gone, too", async || (world.cgroups(&missed) == 0).then_some(())).await;
        let client = &world.client;
        let codes = [client.exited(&seen).await.exit_code, client.exited(&missed).await.exit_code];
        assert_eq!(codes, [3, 4]);
    });
}
