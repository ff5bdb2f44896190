//! Sessions whose container, client or daemon ends, and so many of them that a leak in one would add up.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::{Code, Status};
use wharf_cri_api::v1::{ContainerConfig, ContainerState, NamespaceMode};

use crate::client::{Client, pod_security, security};
use crate::daemon::process_with;
use crate::line::{Farewell, Line};
use crate::people::{self, command, printed};
use crate::streams::{ALL, Ended, Forward, OUTPUT, SPEECHES, Session, Speech, TERMINAL};
use crate::world::{World, run, run_on, until};

/// Sessions of every kind with a container, each with a process that does not exit by itself.
async fn sessions_of_all_kinds(client: &Client, id: &str, count: usize) -> Vec<Session> {
    let open = (0..count).map(|number| async move {
        let (speech, wanted) = (SPEECHES[number % 2], [ALL, TERMINAL][number / 2 % 2]);
        let session = Session::exec(client, speech, id, "echo on; sleep 1001", wanted).await;
        session.until("on").await;
        session
    });
    join_all(open).await
}

#[test]
fn a_stop_ends_all_sessions_with_a_status() {
    run(async |world| Box::pin(stop_with_sessions(&world.client)).await);
}

#[test]
fn a_stop_ends_all_sessions_without_a_unified_hierarchy_too() {
    let prepare = |_: &Path| {
        nix::mount::umount("/sys/fs/cgroup/unified").expect("this test needs v1 hierarchies");
        fs::remove_dir("/sys/fs/cgroup/unified").unwrap();
    };
    run_on(prepare, async |world| Box::pin(stop_with_sessions(&world.client)).await);
}

async fn stop_with_sessions(client: &Client) {
    for mode in [NamespaceMode::Container, NamespaceMode::Pod, NamespaceMode::Node] {
        let mut config = client.pod(&format!("stop-{}", i32::from(mode)));
        pod_security(&mut config).namespace_options.get_or_insert_default().pid = mode.into();
        let pod = client.run(&config).await.unwrap();
        let mut config = client.container("main", "sleep 1000 & while :; do echo on; sleep 0.05; done");
        security(&mut config).namespace_options.get_or_insert_default().pid = mode.into();
        let id = client.launch(&pod, &config).await.unwrap();
        // One that is over, except for what it started.
        client.output(&id, "sleep 1002 >/dev/null 2>&1 &").await;
        let mut sessions = sessions_of_all_kinds(client, &id, 50).await;
        let attached = Session::attach(client, Speech::Spdy, &id, OUTPUT).await;
        attached.until("on").await;
        sessions.push(attached);
        client.stop_container(&id, 0).await.unwrap();
        for ended in join_all(sessions.into_iter().map(Session::ended)).await {
            assert_eq!(ended.code(), 137, "{mode:?}: {ended:?}");
        }
        for process in ["sleep 1000", "sleep 1001", "sleep 1002"] {
            until("it is killed", async || process_with(process).is_none().then_some(())).await;
        }
    }
}

#[test]
fn exec_into_what_is_about_to_end_ends() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("dying")).await.unwrap();
        for round in 0..10 {
            let script = "trap 'sleep 0.05; exit 6' TERM; touch /ready; while :; do sleep 0.01; done";
            let id = client.launch(&pod, &client.container(&format!("c{round}"), script)).await.unwrap();
            client.output(&id, "until [ -e /ready ]; do sleep 0.01; done").await;
            let sessions = join_all((0..24).map(|number| {
                let id = &id;
                async move {
                    let command = if number % 3 == 0 { "sleep 1001" } else { "true" };
                    let (speech, wanted) = (SPEECHES[number % 2], [ALL, TERMINAL][number / 2 % 2]);
                    let url = client.exec_url(id, &["sh", "-c", command], wanted).await?;
                    Ok::<_, Status>(Session::deaf(&url, speech, wanted).await)
                }
            }));
            let end = async {
                if round % 2 == 0 {
                    return client.stop_container(&id, 10).await.unwrap();
                }
                let first = process_with(script).unwrap();
                tokio::time::sleep(Duration::from_millis(2 * round)).await;
                kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
            };
            let (sessions, ()) = tokio::join!(sessions, end);
            for session in sessions {
                let mut session = match session {
                    Ok(session) => session,
                    Err(error) => {
                        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
                        continue;
                    }
                };
                session.listen().await;
                let ended = session.ended().await;
                assert!(matches!(ended.exit(), Some(0 | 137)) || ended.failure().is_some(), "{ended:?}");
            }
            assert_eq!(client.exited(&id).await.exit_code, if round % 2 == 0 { 6 } else { 137 });
            assert!(process_with("sleep 1001").is_none());
        }
    });
}

#[test]
fn a_url_is_good_once_and_for_its_kind() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("urls")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let refused = async |url: &str| Line::spdy(url, "v4.channel.k8s.io").await.unwrap_err();
        let url = client.exec_url(&id, &["true"], OUTPUT).await.unwrap();
        assert_eq!(Session::open(&url, Speech::Spdy, OUTPUT).await.ended().await.code(), 0);
        assert_eq!(refused(&url).await, 404);
        let url = client.exec_url(&id, &["true"], OUTPUT).await.unwrap();
        assert_eq!(refused(&url.replace("/exec/", "/attach/")).await, 404);
        let url = client.port_forward_url(&pod).await.unwrap();
        assert_eq!(refused(&url).await, 403, "the protocols of commands are not those of ports");
        let url = client.attach_url(&id, OUTPUT).await.unwrap();
        assert_eq!(refused(&format!("{url}x")).await, 404);
    });
}

#[test]
fn clients_that_crash_leave_nothing_behind() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("crash")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        for wanted in [ALL, TERMINAL] {
            let url = async |script| client.exec_url(&id, &["sh", "-c", script], wanted).await.unwrap();
            // Before the request, during it, and before the streams exist.
            let address = url("true").await.split('/').nth(2).unwrap().to_owned();
            for part in ["", "POST /exec/"] {
                let mut socket = TcpStream::connect(&address).await.unwrap();
                socket.write_all(part.as_bytes()).await.unwrap();
                socket.set_zero_linger().unwrap();
            }
            let mut line = Line::spdy(&url("true").await, "v4.channel.k8s.io").await.unwrap();
            line.open(&[("streamtype", "error")]).await;
            line.reset();
            for speech in SPEECHES {
                // While the command may be starting, ...
                for _ in 0..10 {
                    Session::deaf(&url("sleep 1001").await, speech, wanted).await.reset();
                }
                // ... in the middle of its output, and of its input.
                let session = Session::exec(client, speech, &id, "echo on; exec yes 1002", wanted).await;
                session.until("1002").await;
                session.reset();
                let mut deaf = Session::deaf(&url("exec yes 1003").await, speech, wanted).await;
                until("it writes", async || process_with("yes 1003")).await;
                deaf.send(b"input").await.unwrap();
                deaf.reset();
                let mut session =
                    Session::exec(client, speech, &id, "echo on; exec sleep 1004", wanted).await;
                session.until("on").await;
                session.send(&[b'x'; 100_000]).await.unwrap();
                session.reset();
            }
            for process in ["sleep 1001", "yes 1002", "yes 1003", "sleep 1004"] {
                until("it is killed", async || process_with(process).is_none().then_some(())).await;
            }
        }
        assert_eq!(client.output(&id, "echo fine").await, "fine");
    });
}

#[test]
fn a_client_that_leaves_while_its_input_is_stuck_takes_its_command_with_it() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("stuck")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let ways: [fn(Session); 2] = [Session::reset, drop];
        for (speech, leave) in SPEECHES.into_iter().flat_map(|speech| ways.map(|leave| (speech, leave))) {
            let mut session = Session::exec(client, speech, &id, "echo on; exec sleep 1005", ALL).await;
            session.until("on").await;
            // Until there is no more room on the way.
            let stuff = async { while session.send(&[b'x'; 32 << 10]).await.is_ok() {} };
            tokio::time::timeout(Duration::from_secs(1), stuff).await.unwrap_err();
            leave(session);
            until("it is killed", async || process_with("sleep 1005").is_none().then_some(())).await;
        }
    });
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(pid: u32) -> Self {
        let count = |name: &str| fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count();
        Self { descriptors: count("fd"), threads: count("task") }
    }
}

/// The private memory of a process, in KiB.
fn private_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn many_sessions_leave_nothing() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("many")).await.unwrap();
        let id = client.launch(&pod, &reader(client)).await.unwrap();
        let pids = [world.daemon.pid(), u32::try_from(process_with(&pod).unwrap()).unwrap()];
        let exec = async |number: usize| {
            let (speech, wanted) = (SPEECHES[number % 2], [OUTPUT, ALL, TERMINAL][number % 3]);
            let url = client.exec_url(&id, &["echo", "hello"], wanted).await.unwrap();
            let ended = Session::open(&url, speech, wanted).await.ended().await;
            assert!(ended.code() == 0 && ended.text().trim_end() == "hello", "{ended:?}");
        };
        // The cgroup files of a container stay open from its first command on.
        exec(0).await;
        let before = pids.map(Held::by);
        let as_before = async || {
            until("all is as before", async || {
                let now = pids.map(Held::by);
                let fine = now.iter().zip(&before).all(|(now, before)| {
                    now.descriptors <= before.descriptors && now.threads <= before.threads + 64
                });
                fine.then_some(())
            })
            .await;
        };
        join_all((0..200).map(exec)).await;
        as_before().await;
        for number in 0..100 {
            let mut session = Session::attach(client, SPEECHES[number % 2], &id, ALL).await;
            session.send(format!("{number}\n").as_bytes()).await.unwrap();
            session.until(&format!("{number}\n")).await;
            let mut forward = Forward::open(client, &pod).await;
            let connection = forward.connect(9).await;
            forward.over(connection).await.unwrap_err();
        }
        let mut private = Vec::new();
        for count in [500, 1500] {
            for number in 0..count {
                exec(number).await;
            }
            as_before().await;
            private.push(pids.map(private_kib));
        }
        let [early, late] = private[..] else { panic!("{private:?}") };
        for (early, late) in early.into_iter().zip(late) {
            assert!(late < early + 1024, "memory grows with sessions: {private:?} KiB");
        }
    });
}

/// A container that writes what it reads.
fn reader(client: &Client) -> ContainerConfig {
    ContainerConfig { stdin: true, ..client.container("main", "exec cat") }
}

/// Whether a session ended as it must when the daemon exits.
fn is_told_of_the_end(ended: &Ended) -> bool {
    ended.failure().is_some_and(|why| why.contains("is being stopped or restarted"))
}

#[test]
fn a_daemon_that_ends_tells_its_clients() {
    run(async |world| {
        let client = world.client.clone();
        let pod = client.run(&client.pod("told")).await.unwrap();
        let id = client.launch(&pod, &reader(&client)).await.unwrap();
        let first = client.status(&id).await.unwrap();
        let mut sessions = sessions_of_all_kinds(&client, &id, 8).await;
        for speech in SPEECHES {
            let mut session = Session::attach(&client, speech, &id, ALL).await;
            session.send(b"on\n").await.unwrap();
            session.until("on\n").await;
            sessions.push(session);
        }
        let forward = Forward::open(&client, &pod).await;
        // A client that does not listen does not keep the daemon from exiting.
        let url = client.exec_url(&id, &["yes", "1002"], OUTPUT).await.unwrap();
        let deaf = Session::deaf(&url, Speech::Spdy, OUTPUT).await;
        until("it writes", async || process_with("yes 1002")).await;
        let status = world.daemon.end().await;
        assert!(status.success(), "{status}");
        for session in sessions {
            let ended = session.ended().await;
            assert!(is_told_of_the_end(&ended) && ended.text().starts_with("on"), "{ended:?}");
        }
        assert!(matches!(forward.ended().await, Some(Farewell::GoAway(_))));
        drop(deaf);
        for process in ["sleep 1001", "yes 1002"] {
            until("a command without a client ends", async || process_with(process).is_none().then_some(()))
                .await;
        }
        world.start_again().await;
        goes_on(world, &id, first.started_at).await;
    });
}

#[test]
fn a_daemon_that_is_killed_takes_its_commands_along_and_nothing_else() {
    run(async |world| {
        let client = world.client.clone();
        let pod = client.run(&client.pod("killed")).await.unwrap();
        let id = client.launch(&pod, &reader(&client)).await.unwrap();
        let first = client.status(&id).await.unwrap();
        for _ in 0..3 {
            let client = world.client.clone();
            let sessions = sessions_of_all_kinds(&client, &id, 8).await;
            let mut attached = Session::attach(&client, Speech::Spdy, &id, ALL).await;
            attached.send(b"before\n").await.unwrap();
            attached.until("before\n").await;
            let forward = Forward::open(&client, &pod).await;
            world.daemon.kill();
            for session in sessions.into_iter().chain([attached]) {
                assert_eq!(session.cut_off().await, Some(Farewell::CutOff));
            }
            assert_eq!(forward.ended().await, Some(Farewell::CutOff));
            until("commands end", async || process_with("sleep 1001").is_none().then_some(())).await;
            world.start_again().await;
            goes_on(world, &id, first.started_at).await;
        }
    });
}

#[test]
fn a_run_that_loses_its_session_leaves_what_runs_and_removes_what_has_ended() {
    people::run(async |world| {
        for (options, program, end) in [
            ("-i --rm", "sleep 1003", End::Asked),
            ("-i --rm", "sleep 1003", End::Killed),
            ("-i", "sleep 1003", End::Killed),
            ("-i --rm", "cat", End::Asked),
            ("-i --rm", "cat", End::Killed),
        ] {
            let mut run = command(world, &format!("run {options} --name main IMAGE sh -c"));
            run.arg(format!("echo on; exec {program}"));
            run.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut run = run.spawn().unwrap();
            run.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
            match end {
                End::Asked => drop(world.daemon.end().await),
                End::Killed => world.daemon.kill(),
            }
            world.start_again().await;
            let status = until("the run ends", async || run.try_wait().unwrap()).await;
            let mut told = String::new();
            run.stderr.unwrap().read_to_string(&mut told).unwrap();
            assert_eq!(status.code(), Some(125), "it is not the container's: {told}");
            // It exits with its input, which ends with the session.
            if program == "cat" {
                assert!(told.contains("main has exited with code 0 since"), "{told}");
                assert!(world.client.pods().await.is_empty());
                continue;
            }
            let [left] = &*world.client.containers().await else { panic!("it was removed: {told}") };
            assert_eq!(left.state(), ContainerState::ContainerRunning, "{told}");
            for advice in ["main keeps running", "wharf attach main", "wharf logs -f main"] {
                assert!(told.contains(advice), "{told}");
            }
            printed(world, "rm --force main");
        }
    });
}

/// How a daemon ends.
#[derive(Clone, Copy)]
enum End {
    Asked,
    Killed,
}

/// A container of [`reader`] was not touched, and accepts new sessions.
async fn goes_on(world: &World, id: &str, started_at: i64) {
    let client = &world.client;
    let status = client.status(id).await.unwrap();
    assert_eq!((status.state(), status.started_at), (ContainerState::ContainerRunning, started_at));
    for speech in SPEECHES {
        let mut session = Session::attach(client, speech, id, ALL).await;
        session.send(b"goes on\n").await.unwrap();
        session.until("goes on\n").await;
        let ended = Session::exec(client, speech, id, "echo fine; exit 4", TERMINAL).await.ended().await;
        assert_eq!((ended.code(), &*ended.text()), (4, "fine\r\n"));
    }
}
