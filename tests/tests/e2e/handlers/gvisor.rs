//! Pods that gVisor runs: each is a sandbox, with a kernel of its own for all its containers.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use super::*;
use crate::daemon::is_alive;
use crate::place::repository;

/// The program, which is built once for each state of its pins, by one test for all.
#[expect(clippy::disallowed_methods, reason = "a script of the repository")]
static RUNSC: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut command = Command::new(repository().join("hack/clients"));
    let output = command.arg("gvisor").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()).join("runsc")
});

/// Runs a test with a daemon of whose handlers one is gVisor behind a script, which is in the test's directory `$D`.
fn run_behind(script: &'static str, test: impl AsyncFnOnce(&mut World)) {
    let runsc = &*RUNSC;
    let configure = move |dir: &Path| {
        let path = dir.join("runsc");
        let text = format!(
            "#!/bin/sh\nD={}\nRUNSC={}\n{script}\nexec $RUNSC \"$@\"\n",
            dir.display(),
            runsc.display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.join("config.toml.d")).unwrap();
        let config = format!("[handlers.runsc]\npath = \"{}\"\n", path.display());
        fs::write(dir.join("config.toml.d/handlers.toml"), config).unwrap();
    };
    run_on(configure, test);
}

fn run(test: impl AsyncFnOnce(&mut World)) {
    run_behind("", test);
}

/// A pod with an idle container.
async fn idle(client: &Client) -> (String, String) {
    let pod = pod(client, "runsc").await;
    let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
    (pod, id)
}

/// The processes of sandboxes on the host.
fn sandbox() -> Option<i32> {
    process_with("runsc-sandbox")
}

async fn is_not_ready(client: &Client, pod: &str) {
    let not_ready = async || {
        let status = client.pod_status(pod).await.unwrap();
        (status.state() == PodSandboxState::SandboxNotready).then_some(())
    };
    until("the pod is not ready", not_ready).await;
}

#[test]
fn a_pod_lives_and_dies_in_a_sandbox() {
    run(async |world| {
        let client = &world.client;
        let pod = pod(client, "runsc").await;
        let script = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.05; done";
        let id = client.create(&pod, &client.container("main", script)).await.unwrap();
        assert_eq!(client.status(&id).await.unwrap().state(), ContainerState::ContainerCreated);
        client.start(&id).await.unwrap();
        assert_eq!(client.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
        let log = client.log_path("runsc", "main");
        until("it has written", async || (logs::texts(&log).len() == 2).then_some(())).await;
        assert!(client.output(&id, "uname -a").await.contains("gvisor"));
        let sandbox_before = sandbox();
        client.stop_container(&id, 10).await.unwrap();
        let ended = client.status(&id).await.unwrap();
        let seen = (ended.state(), ended.exit_code, &*ended.reason);
        assert_eq!(seen, (ContainerState::ContainerExited, 3, "Error"));
        client.remove_container(&id).await.unwrap();
        let next = client.launch(&pod, &client.container("main", "exit 7")).await.unwrap();
        assert_eq!(client.exited(&next).await.exit_code, 7);
        let killed = client.launch(&pod, &client.container("killed", "sleep 1000")).await.unwrap();
        client.stop_container(&killed, 0).await.unwrap();
        assert_eq!(client.status(&killed).await.unwrap().exit_code, 137);
        let waits = client.create(&pod, &client.container("waits", "exit 8")).await.unwrap();
        client.remove_container(&waits).await.unwrap();
        assert!(sandbox_before.is_some() && sandbox() == sandbox_before, "one for all of them");
        client.down(&pod).await.unwrap();
        until("the sandbox is gone", async || sandbox().is_none().then_some(())).await;
    });
}

#[test]
fn a_container_in_a_sandbox_has_what_its_request_says() {
    run(async |world| {
        let client = &world.client;
        let pod = pod(client, "runsc").await;
        let config = with_a_user(client, &world.dir);
        let before = host_mounts();
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(host_mounts(), before, "nothing is mounted on the host");
        for (script, expected) in [
            ("hostname", "runsc"),
            ("id -u; id -g; id -G", "1234\n567\n567 89"),
            ("echo \"$WORD\"; pwd", "a \"b\" \\ ü\n/made/for/it"),
            ("cat /of/host; echo x 2>/dev/null >/of/host || echo ' refused'", "of the host refused"),
            ("grep -q localhost /etc/hosts && echo named", "named"),
            ("tr '\\0' ' ' </proc/1/cmdline", "sleep 1000"),
        ] {
            assert_eq!(client.output(&id, script).await, expected, "{script}");
        }
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn commands_in_a_sandbox_are_like_those_of_any_container() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = idle(client).await;
        for (script, stdout, stderr, code) in [
            ("echo out; echo err >&2; exit 9", "out\n", "err\n", 9),
            ("kill -TERM $$", "", "", 143),
            ("cat", "", "", 0),
        ] {
            let response = client.exec(&id, script, 20).await.unwrap();
            let got = (&*response.stdout, &*response.stderr, response.exit_code);
            assert_eq!(got, (stdout.as_bytes(), stderr.as_bytes(), code), "{script}");
        }
        let cmd = words(&["/no/such/program"]);
        let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 20 };
        let error = client.runtime.clone().exec_sync(request).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("/no/such/program"), "{error}");
        let late = client.exec(&id, "sleep 1002 & sleep 1003", 1).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        let rest = async || {
            let left = client.exec(&id, "ps | grep -c 'sleep 100[23]'", 20).await.unwrap();
            (left.stdout == b"1\n" || left.stdout == b"0\n").then_some(())
        };
        until("what has started in it is killed", rest).await;
        let mut config = client.container("none", "");
        config.command = words(&["/no/such/program"]);
        let made = client.create(&pod, &config).await.unwrap();
        let error = client.start(&made).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("/no/such/program"), "{error}");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn streams_and_terminals_reach_into_a_sandbox() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = idle(client).await;
        for speech in SPEECHES {
            let mut session = Session::exec(client, speech, &id, "cat; echo end >&2; exit 4", ALL).await;
            session.send(b"sent").await.unwrap();
            session.end_input().await.unwrap();
            let ended = session.ended().await;
            assert_eq!((ended.code(), &*ended.stdout, &*ended.stderr), (4, &b"sent"[..], &b"end\n"[..]));
        }
        let script = "trap 'exit 3' INT; echo $TERM; while :; do sleep 0.01; done";
        let mut session = Session::exec(client, Speech::WebSocket, &id, script, TERMINAL).await;
        session.until("xterm\r\n").await;
        session.send(b"\x03").await.unwrap();
        assert_eq!(session.ended().await.code(), 3);
        let script = "[ -t 0 ] && echo terminal; read -r word; echo \"got $word\"; exit 6";
        let container = ContainerConfig { tty: true, stdin: true, ..client.container("terminal", script) };
        let terminal = client.launch(&pod, &container).await.unwrap();
        let mut session = Session::attach(client, Speech::WebSocket, &terminal, TERMINAL).await;
        let log = client.log_path("runsc", "terminal");
        until("it has written", async || (!logs::texts(&log).is_empty()).then_some(())).await;
        session.send(b"word\n").await.unwrap();
        assert_eq!(session.ended().await.code(), 6);
        let texts = logs::texts(&log);
        assert!(texts[0] == "terminal" && texts.last().unwrap() == "got word", "{texts:?}");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn containers_of_a_sandbox_share_what_the_pod_says() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("runsc");
        pod_security(&mut config).namespace_options = Some(processes(NamespaceMode::Pod));
        let pod = run_pod(client, &config, "runsc").await.unwrap();
        let mut first = client.container("first", "exec sleep 1234");
        security(&mut first).namespace_options = Some(processes(NamespaceMode::Pod));
        client.launch(&pod, &first).await.unwrap();
        let mut second = client.container("second", "sleep 1000");
        security(&mut second).namespace_options = Some(processes(NamespaceMode::Pod));
        let id = client.launch(&pod, &second).await.unwrap();
        assert_eq!(client.output(&id, "ps | grep -c '[s]leep 1234'").await, "1");
        let alone = client.launch(&pod, &client.container("alone", "echo $$; sleep 1000")).await.unwrap();
        assert_eq!(client.output(&alone, "ps | grep -c '[s]leep 1234' || true").await, "0");
        let target = NamespaceOption { target_id: alone.clone(), ..processes(NamespaceMode::Target) };
        let mut beside = client.container("beside", "sleep 1000");
        security(&mut beside).namespace_options = Some(target);
        let beside = client.launch(&pod, &beside).await.unwrap();
        assert_eq!(client.output(&beside, "ps | grep -c '[s]leep 1000'").await, "2");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_sandbox_has_the_pods_address() {
    run(async |world| {
        let client = &world.client;
        let pod = pod(client, "runsc").await;
        let script = "nc -lk -p 8080 -e echo heard";
        let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
        let ip = client.pod_status(&pod).await.unwrap().network.unwrap().ip;
        let address: SocketAddr = format!("{ip}:8080").parse().unwrap();
        let answer = async || {
            let mut stream = TcpStream::connect(address).ok()?;
            let mut heard = String::new();
            std::io::Read::read_to_string(&mut stream, &mut heard).ok()?;
            (heard == "heard\n").then_some(())
        };
        until("the server answers", answer).await;
        let error = client.port_forward_url(&pod).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("each of its pods is a sandbox"), "{error}");
        let error = client.update(&id, LinuxContainerResources::default()).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn what_a_sandbox_cannot_have_is_refused() {
    run(async |world| {
        let client = &world.client;
        let refused = async |what: &str, change: &dyn Fn(&mut PodSandboxConfig)| {
            let mut config = client.pod("refused");
            change(&mut config);
            let error = run_pod(client, &config, "runsc").await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains(what) && error.message().contains("runsc"), "{what}: {error}");
        };
        let on_host = |option: fn(&mut NamespaceOption)| {
            move |config: &mut PodSandboxConfig| {
                let options = pod_security(config).namespace_options.get_or_insert_default();
                option(options);
            }
        };
        refused("host's network", &on_host(|options| options.network = NamespaceMode::Node.into())).await;
        refused("host's PID", &on_host(|options| options.pid = NamespaceMode::Node.into())).await;
        refused("host's IPC", &on_host(|options| options.ipc = NamespaceMode::Node.into())).await;
        refused("sysctls", &|config| {
            let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
            sysctls.insert("net.core.somaxconn".to_owned(), "100".to_owned());
        })
        .await;
        let users = run_pod(client, &userns::pod(client, "users"), "runsc").await.unwrap_err();
        assert!(users.message().contains("user namespace"), "{users}");
        let mut config = client.pod("runsc");
        pod_security(&mut config).privileged = true;
        let pod = run_pod(client, &config, "runsc").await.unwrap();
        let refused = async |what: &str, change: &dyn Fn(&mut ContainerConfig)| {
            let mut config = client.container("refused", "true");
            change(&mut config);
            let error = client.create(&pod, &config).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains(what) && error.message().contains("runsc"), "{what}: {error}");
        };
        refused("devices of the machine", &|config| security(config).privileged = true).await;
        refused("/dev/loop-control", &|config| {
            config.devices = vec![Device {
                container_path: "/dev/loop-control".to_owned(),
                host_path: "/dev/null".to_owned(),
                permissions: "r".to_owned(),
            }];
        })
        .await;
        assert!(sandbox().is_none(), "nothing was made");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_pod_ends_with_its_sandbox() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = idle(client).await;
        let waits = client.create(&pod, &client.container("waits", "exit 8")).await.unwrap();
        kill(Pid::from_raw(sandbox().unwrap()), Signal::SIGKILL).unwrap();
        assert_eq!(client.exited(&id).await.exit_code, 137);
        assert_eq!(client.exited(&waits).await.started_at, 0);
        is_not_ready(client, &pod).await;
        assert!(client.create(&pod, &client.container("next", "true")).await.is_err());
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn nothing_is_left_of_a_sandbox_whose_supervisor_is_killed() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = idle(client).await;
        let waits = client.create(&pod, &client.container("waits", "exit 8")).await.unwrap();
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        client.start(&waits).await.unwrap();
        assert_eq!(client.exited(&waits).await.exit_code, 8);
        assert_eq!(client.exec(&id, "exit 5", 20).await.unwrap().exit_code, 5);
        let gone = sandbox().unwrap();
        let supervisor = process_with(&format!("wharf-shim {}", world.dir.display())).unwrap();
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
        is_not_ready(client, &pod).await;
        until("the sandbox is gone", async || (!is_alive(gone)).then_some(())).await;
        until("no runtime is left", async || process_with("--ignore-cgroups").is_none().then_some(())).await;
        client.down(&pod).await.unwrap();
    });
}

/// Notes the attendant of the container that was created last.
const NOTING: &str = r#"case " $* " in
*" create "*) cut -d' ' -f4 /proc/$PPID/stat >$D/attendant ;;
esac"#;

#[test]
fn a_program_does_not_outlive_its_attendant() {
    run_behind(NOTING, async |world| {
        let client = &world.client;
        let (pod, id) = idle(client).await;
        let attendant = fs::read_to_string(world.dir.join("attendant")).unwrap();
        let gone = sandbox().unwrap();
        kill(Pid::from_raw(attendant.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
        assert_eq!(client.exited(&id).await.exit_code, 137);
        until("the sandbox is gone", async || (!is_alive(gone)).then_some(())).await;
        is_not_ready(client, &pod).await;
        client.down(&pod).await.unwrap();
    });
}

/// Fails at one command, or says something else there, if it is asked to.
const FAULTY: &str = r#"case " $* " in
*" create "*) [ ! -e $D/create ] || { cat $D/create >&2; exit 1; } ;;
*" start "*) [ ! -e $D/start ] || exit 1 ;;
*" wait "*) [ ! -e $D/wait ] || { cat $D/wait; exit 0; } ;;
*" kill "*) [ ! -e $D/kill ] || exec sleep 1017 ;;
esac"#;

#[test]
fn a_faulty_runtime_makes_no_sandbox_and_leaves_nothing() {
    run_behind(FAULTY, async |world| {
        let client = &world.client;
        fs::write(world.dir.join("create"), "no\0sand\u{7f}box \"today\"").unwrap();
        let first = pod(client, "runsc").await;
        let error = client.create(&first, &client.container("main", "true")).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        for words in ["sandbox could not be made", "today"] {
            assert!(error.message().contains(words), "{error}");
        }
        is_not_ready(client, &first).await;
        client.down(&first).await.unwrap();
        fs::remove_file(world.dir.join("create")).unwrap();
        let (pod, id) = idle(client).await;
        let dies = client.create(&pod, &client.container("dies", "sleep 1000")).await.unwrap();
        fs::write(world.dir.join("start"), "").unwrap();
        let error = client.start(&dies).await.unwrap_err();
        assert!(error.message().contains("start"), "{error}");
        assert_eq!(client.exited(&dies).await.started_at, 0);
        fs::remove_file(world.dir.join("start")).unwrap();
        fs::write(world.dir.join("wait"), "{\"exitStatus\": 1e9}").unwrap();
        let unclear = client.launch(&pod, &client.container("unclear", "sleep 1000")).await.unwrap();
        assert_eq!(client.exited(&unclear).await.exit_code, 137, "nobody can say how it has ended");
        fs::remove_file(world.dir.join("wait")).unwrap();
        assert_eq!(client.exec(&id, "exit 4", 20).await.unwrap().exit_code, 4, "the others go on");
        assert_eq!(client.output(&id, "echo on").await, "on");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_container_that_cannot_be_killed_takes_its_sandbox_along() {
    run_behind(FAULTY, async |world| {
        let client = &world.client;
        let (pod, id) = idle(client).await;
        fs::write(world.dir.join("kill"), "").unwrap();
        let gone = sandbox().unwrap();
        client.stop_container(&id, 0).await.unwrap();
        until("the sandbox is gone", async || (!is_alive(gone)).then_some(())).await;
        client.down(&pod).await.unwrap();
    });
}
