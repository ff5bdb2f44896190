//! ExecSync: output, exits, deadlines, and callers that go away.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tonic::Code;
use wharf_cri_api::v1::{ExecSyncRequest, NamespaceMode};
use wharf_sys::socket;

use crate::client::{pod_security, security, words};
use crate::daemon::process_with;
use crate::defaults::configured;
use crate::streams::{Session, Speech, TERMINAL};
use crate::world::{run, run_on, until};

#[test]
fn output_and_code_are_the_commands() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("exec")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let table = [
            ("echo out; echo err >&2", "out\n", "err\n", 0),
            ("exit 9", "", "", 9),
            ("kill -TERM $$", "", "", 143),
            ("cat", "", "", 0),
            // Descriptors that a child keeps open are not waited for.
            ("(sleep 1001 &); echo done", "done\n", "", 0),
        ];
        for (script, stdout, stderr, code) in table {
            let start = Instant::now();
            let response = client.exec(&id, script, 10).await.unwrap();
            let got = (&*response.stdout, &*response.stderr, response.exit_code);
            assert_eq!(got, (stdout.as_bytes(), stderr.as_bytes(), code), "{script}");
            assert!(start.elapsed() < Duration::from_secs(5), "{script}");
        }
    });
}

#[test]
fn arguments_may_be_as_long_as_the_kernel_takes() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("long")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        for (count, length) in [(1, 100_000), (10, 100_000), (5000, 100)] {
            let mut cmd = words(&["sh", "-c", "printf %s \"$@\" | wc -c", "sh"]);
            cmd.extend((0..count).map(|_| "x".repeat(length)));
            let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
            let response = client.runtime.clone().exec_sync(request).await.unwrap().into_inner();
            assert_eq!(String::from_utf8_lossy(&response.stdout).trim(), (count * length).to_string());
        }
    });
}

#[test]
fn output_that_no_message_holds_is_cut() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("much")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let script = "head -c 20000000 /dev/zero | tee /dev/stderr; exit 3";
        let response = client.exec(&id, script, 30).await.unwrap();
        assert_eq!(response.exit_code, 3, "the command went on to its end");
        assert!(response.stdout.len() > 1 << 20 && response.stderr.len() > 1 << 20);
    });
}

#[test]
fn a_deadline_ends_everything_that_the_command_started() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("deadline")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let script = "sleep 1001 & setsid sleep 1002 & trap '' TERM INT HUP; (sleep 1003; sleep 1004)";
        let start = Instant::now();
        let error = client.exec(&id, script, 1).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(
            (Duration::from_secs(1)..Duration::from_secs(4)).contains(&start.elapsed()),
            "{:?}",
            start.elapsed()
        );
        for sleeper in ["sleep 1001", "sleep 1002", "sleep 1003", "sleep 1004"] {
            until("it is killed", async || process_with(sleeper).is_none().then_some(())).await;
        }
        assert_eq!(client.output(&id, "echo fine").await, "fine", "the container is not touched");
    });
}

#[test]
fn a_caller_that_goes_away_takes_its_command_along() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("gone")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let exec = client.exec(&id, "sleep 1001", 0);
        let started = until("the command runs", async || process_with("sleep 1001"));
        tokio::select! {
            answer = exec => panic!("it ended: {answer:?}"),
            _ = started => {}
        }
        until("the command is killed", async || process_with("sleep 1001").is_none().then_some(())).await;
    });
}

#[test]
fn what_cannot_be_executed_is_an_error_with_the_reason() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("not")).await.unwrap();
        let id = client.create(&pod, &client.container("main", "exit 0")).await.unwrap();
        let error = client.exec(&id, "true", 1).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "created: {error}");
        client.start(&id).await.unwrap();
        client.exited(&id).await;
        let error = client.exec(&id, "true", 1).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "exited: {error}");
        assert_eq!(client.exec("nobody", "true", 1).await.unwrap_err().code(), Code::NotFound);

        let id = client.launch(&pod, &client.container("next", "sleep 1000")).await.unwrap();
        for program in ["/no/such/program", "no-such-program", "/etc/passwd"] {
            let request = ExecSyncRequest { container_id: id.clone(), cmd: words(&[program]), timeout: 5 };
            let error = client.runtime.clone().exec_sync(request).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            assert!(error.message().contains(program), "{error}");
        }
        // The kernel accepts no argument longer than 128 KiB.
        let long = vec!["true".to_owned(), "x".repeat(200_000)];
        for (cmd, code) in [(Vec::new(), Code::InvalidArgument), (long, Code::InvalidArgument)] {
            let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 5 };
            let error = client.runtime.clone().exec_sync(request).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
        }
    });
}

#[test]
fn what_commands_leave_running_does_not_add_up() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("left")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        for _ in 0..10 {
            client.output(&id, "(until [ -e /end ]; do sleep 0.01; done) >/dev/null 2>&1 &").await;
        }
        assert_eq!(world.cgroups("/exec-"), 10, "each has a cgroup as long as something runs in it");
        client.output(&id, "touch /end").await;
        until("the cgroups go", async || {
            client.output(&id, "true").await;
            (world.cgroups("/exec-") == 0).then_some(())
        })
        .await;
    });
}

#[test]
fn many_commands_at_once_while_the_container_ends() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("many")).await.unwrap();
        let id = client
            .launch(&pod, &client.container("main", "until [ -e /end ]; do sleep 0.01; done; exit 6"))
            .await
            .unwrap();
        let execs = join_all((0..60).map(|number| {
            let id = &id;
            async move {
                let script = if number == 30 { "touch /end" } else { "exit 5" };
                client.exec(id, script, 20).await
            }
        }));
        for answer in execs.await {
            match answer {
                Ok(response) => assert!(matches!(response.exit_code, 0 | 5 | 137), "{response:?}"),
                Err(error) => {
                    assert!(matches!(error.code(), Code::FailedPrecondition | Code::NotFound), "{error}")
                }
            }
        }
        assert_eq!(client.exited(&id).await.exit_code, 6);
    });
}

/// The kernel counts the descriptors that a user has sent and nobody has received, in whatever container, and lets a
/// process without privileges send no more than its limit of open files. Root is the user of most containers.
#[test]
fn descriptors_that_others_have_on_their_way_are_in_no_commands_way() {
    run_on(configured("[containers]\ndefault_ulimits = [\"nofile=64:64\"]\n"), async |world| {
        let client = &world.client;
        let null = fs::File::open("/dev/null").unwrap();
        let (sent, _unread) = socket::pair().unwrap();
        for _ in 0..40 {
            socket::send(sent.as_fd(), b"x", &[null.as_fd(); 10]).unwrap();
        }
        for mode in [NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Node] {
            let name = format!("{mode:?}").to_lowercase();
            let mut config = client.pod(&name);
            pod_security(&mut config).namespace_options.get_or_insert_default().pid = mode.into();
            let pod = client.run(&config).await.unwrap();
            let mut config = client.container(&name, "sleep 1000");
            security(&mut config).namespace_options.get_or_insert_default().pid = mode.into();
            let id = client.launch(&pod, &config).await.unwrap();
            assert_eq!(client.output(&id, "ulimit -Sn").await, "64");
            let ended =
                Session::exec(client, Speech::WebSocket, &id, "tty && exit 3", TERMINAL).await.ended().await;
            assert_eq!(ended.code(), 3, "{ended:?}");
        }
    });
}
