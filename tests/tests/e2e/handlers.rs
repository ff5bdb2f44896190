//! Containers that runc and crun make, by the runtime handler of their pod: the same as wharf's own, seen from outside.

mod faults;
mod gvisor;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::{Code, Status};
use wharf_cri_api::v1::*;

use crate::client::{Client, image, own_processes, pod_security, processes, security, words};
use crate::daemon::process_with;
use crate::host_mounts::host_mounts;
use crate::logs;
use crate::streams::{ALL, SPEECHES, Session, Speech, TERMINAL};
use crate::userns;
use crate::world::{World, run_on, until};

const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// crun refuses to work where cgroup v2 has controllers beside v1, so it gets a view of the machine without v2.
const CRUN: &str = "#!/bin/sh
exec unshare --mount --propagation slave sh -c '
    ! mountpoint -q /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup/unified
    exec /usr/bin/crun \"$@\"' crun \"$@\"
";

/// Runs a test with a daemon that has both runtimes.
fn run(test: impl AsyncFnOnce(&mut World)) {
    run_on(configure, test);
}

fn configure(dir: &Path) {
    let crun = dir.join("crun");
    fs::write(&crun, CRUN).unwrap();
    fs::set_permissions(&crun, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.join("config.toml.d")).unwrap();
    let config = format!(
        "[handlers.runc]\npath = \"/usr/sbin/runc\"\n[handlers.crun]\npath = \"{}\"\n",
        crun.display()
    );
    fs::write(dir.join("config.toml.d/handlers.toml"), config).unwrap();
}

async fn run_pod(client: &Client, config: &PodSandboxConfig, handler: &str) -> Result<String, Status> {
    let (config, runtime_handler) = (Some(config.clone()), handler.to_owned());
    let request = RunPodSandboxRequest { config, runtime_handler };
    Ok(client.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

/// A pod of a runtime, named after it.
async fn pod(client: &Client, runtime: &str) -> String {
    run_pod(client, &client.pod(runtime), runtime).await.unwrap()
}

#[test]
fn a_pod_lives_and_dies_in_another_runtime() {
    run(async |world| {
        let client = &world.client;
        for runtime in RUNTIMES {
            let pod = pod(client, runtime).await;
            let script = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.05; done";
            let id = client.create(&pod, &client.container("main", script)).await.unwrap();
            assert_eq!(client.status(&id).await.unwrap().state(), ContainerState::ContainerCreated);
            let state = world.dir.join("state/pods").join(&pod).join("runtime/state");
            assert!(state.join(&id).is_dir(), "{runtime} has made it");
            client.start(&id).await.unwrap();
            assert_eq!(client.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
            let log = client.log_path(runtime, "main");
            until("it has written", async || (logs::texts(&log).len() == 2).then_some(())).await;
            client.stop_container(&id, 10).await.unwrap();
            let ended = client.status(&id).await.unwrap();
            assert_eq!(
                (ended.state(), ended.exit_code, &*ended.reason),
                (ContainerState::ContainerExited, 3, "Error"),
                "{runtime}"
            );
            client.remove_container(&id).await.unwrap();
            assert!(!state.join(&id).exists(), "{runtime} has forgotten it");
            let next = client.launch(&pod, &client.container("main", "exit 7")).await.unwrap();
            assert_eq!(client.exited(&next).await.exit_code, 7);
            client.down(&pod).await.unwrap();
        }
    });
}

/// The supervisor blocks signals and raises its limits, and a runtime hands on what it has got.
#[test]
fn programs_begin_as_those_of_the_built_in_runtime() {
    run(async |world| {
        let client = &world.client;
        let mut seen = Vec::new();
        for runtime in ["", "runc", "crun"] {
            let name = format!("begin-{runtime}");
            let pod = run_pod(client, &client.pod(&name), runtime).await.unwrap();
            let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
            let script =
                "for p in 1 $$; do grep SigBlk: /proc/$p/status; grep 'open files' /proc/$p/limits; done";
            seen.push(client.output(&id, script).await);
        }
        assert!(seen[0].contains("SigBlk:\t0000000000000000"), "{seen:?}");
        assert!(seen.iter().all(|one| *one == seen[0]), "{seen:#?}");
    });
}

#[test]
fn handlers_are_listed_and_others_refused() {
    run(async |world| {
        let client = &world.client;
        let status = client.runtime.clone().status(StatusRequest { verbose: true }).await.unwrap();
        let status = status.into_inner();
        let features = |name: &str| {
            let handler = status.runtime_handlers.iter().find(|handler| handler.name == name);
            handler.unwrap_or_else(|| panic!("{name:?} is missing")).features.unwrap()
        };
        let own = features("");
        assert_eq!(features("wharf"), own);
        for runtime in RUNTIMES {
            let expected = RuntimeHandlerFeatures { user_namespaces: false, ..own };
            assert_eq!(features(runtime), expected, "{runtime}");
        }
        let said: serde_json::Value = serde_json::from_str(&status.info["runtimes"]).unwrap();
        assert!(said["runc"]["ociVersionMax"].is_string(), "{said}");
        let unknown = run_pod(client, &client.pod("unknown"), "kata").await.unwrap_err();
        assert_eq!(unknown.code(), Code::InvalidArgument);
        assert!(unknown.message().contains("crun, runc, wharf"), "{unknown}");
        let users = run_pod(client, &userns::pod(client, "users"), "runc").await.unwrap_err();
        assert_eq!(users.code(), Code::InvalidArgument);
        assert!(users.message().contains("runc") && users.message().contains("user namespace"), "{users}");
    });
}

#[test]
fn what_a_runtime_refuses_is_said_and_leaves_nothing() {
    run(async |world| {
        let client = &world.client;
        for runtime in RUNTIMES {
            let pod = pod(client, runtime).await;
            let mut config = client.container("main", "");
            config.command = words(&["/no/such/program"]);
            let made = client.create(&pod, &config).await;
            let error = match made {
                Ok(id) => client.start(&id).await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            assert!(error.message().contains("/no/such/program"), "{error}");
            client.down(&pod).await.unwrap();
        }
    });
}

/// An idle container with a user, a variable, a working directory and a file of the host.
fn with_a_user(client: &Client, dir: &Path) -> ContainerConfig {
    fs::write(dir.join("file"), "of the host").unwrap();
    let mut config = client.container("main", "sleep 1000");
    config.envs = vec![KeyValue { key: "WORD".to_owned(), value: "a \"b\" \\ ü".into() }];
    config.working_dir = "/made/for/it".to_owned();
    config.mounts = vec![Mount {
        container_path: "/of/host".to_owned(),
        host_path: dir.join("file").display().to_string(),
        readonly: true,
        ..Mount::default()
    }];
    let user = security(&mut config);
    user.run_as_user = Some(Int64Value { value: 1234 });
    user.run_as_group = Some(Int64Value { value: 567 });
    user.supplemental_groups = vec![89];
    config
}

/// What a container is made with, as its programs see it.
#[test]
fn a_container_has_what_its_request_says() {
    run(async |world| {
        let client = &world.client;
        for runtime in RUNTIMES {
            let pod = pod(client, runtime).await;
            let mut config = with_a_user(client, &world.dir);
            config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                ..LinuxContainerResources::default()
            });
            let id = client.launch(&pod, &config).await.unwrap();
            let status = client.status(&id).await.unwrap();
            assert_eq!(status.user.unwrap().linux.unwrap().uid, 1234);
            for (script, expected) in [
                ("hostname", runtime),
                ("id -u; id -g; id -G", "1234\n567\n567 89"),
                ("echo \"$WORD\"; pwd", "a \"b\" \\ ü\n/made/for/it"),
                ("cat /of/host; echo x 2>/dev/null >/of/host || echo ' refused'", "of the host refused"),
                ("grep -c hosts /proc/mounts; grep -q localhost /etc/hosts && echo named", "1\nnamed"),
                ("cat /sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864"),
                // What crun does not see is not in the container's cgroup namespace either.
                ("grep -v ^0: /proc/1/cgroup | cut -d: -f3 | sort -u", "/"),
                ("grep Seccomp: /proc/self/status", "Seccomp:\t2"),
            ] {
                assert_eq!(client.output(&id, script).await, expected, "{runtime}: {script}");
            }
            client.down(&pod).await.unwrap();
        }
    });
}

/// A pod of a runtime with an idle container.
async fn idle(client: &Client, runtime: &str) -> (String, String) {
    let pod = pod(client, runtime).await;
    let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
    (pod, id)
}

#[test]
fn commands_are_like_those_of_any_container() {
    run(async |world| {
        let client = &world.client;
        for runtime in RUNTIMES {
            let (pod, id) = idle(client, runtime).await;
            let table = [
                ("echo out; echo err >&2; exit 9", "out\n", "err\n", 9),
                ("kill -TERM $$", "", "", 143),
                ("cat", "", "", 0),
                ("(sleep 1001 &); echo done", "done\n", "", 0),
            ];
            for (script, stdout, stderr, code) in table {
                let response = client.exec(&id, script, 10).await.unwrap();
                let got = (&*response.stdout, &*response.stderr, response.exit_code);
                assert_eq!(got, (stdout.as_bytes(), stderr.as_bytes(), code), "{runtime}: {script}");
            }
            let cmd = words(&["/no/such/program"]);
            let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
            let error = client.runtime.clone().exec_sync(request).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            assert!(error.message().contains("/no/such/program"), "{error}");
            let late = client.exec(&id, "sleep 1002 & sleep 1003", 1).await.unwrap_err();
            assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
            for sleeper in ["sleep 1002", "sleep 1003"] {
                until("it is killed", async || process_with(sleeper).is_none().then_some(())).await;
            }
            client.down(&pod).await.unwrap();
        }
    });
}

#[test]
fn streams_and_terminals_are_like_those_of_any_container() {
    run(async |world| {
        let client = &world.client;
        for runtime in RUNTIMES {
            let (pod, id) = idle(client, runtime).await;
            for speech in SPEECHES {
                let mut session = Session::exec(client, speech, &id, "cat; echo end >&2; exit 4", ALL).await;
                session.send(b"sent").await.unwrap();
                session.end_input().await.unwrap();
                let ended = session.ended().await;
                assert_eq!((ended.code(), &*ended.stdout, &*ended.stderr), (4, &b"sent"[..], &b"end\n"[..]));
                let script = "trap 'stty size' WINCH; trap 'exit 3' INT; echo $TERM; stty size; while :; do sleep 0.01; done";
                let mut session = Session::exec(client, speech, &id, script, TERMINAL).await;
                session.until("xterm\r\n").await;
                session.resize(132, 43).await;
                session.until("43 132\r\n").await;
                session.send(b"\x03").await.unwrap();
                assert_eq!(session.ended().await.code(), 3, "{runtime}");
            }
            let container = ContainerConfig {
                tty: true,
                stdin: true,
                ..client.container("terminal", "tty; read -r word; echo \"got $word\"; exit 6")
            };
            let terminal = client.launch(&pod, &container).await.unwrap();
            let mut session = Session::attach(client, Speech::WebSocket, &terminal, TERMINAL).await;
            // Else its echo may come first.
            let log = client.log_path(runtime, "terminal");
            until("it has written", async || (!logs::texts(&log).is_empty()).then_some(())).await;
            session.send(b"word\n").await.unwrap();
            assert_eq!(session.ended().await.code(), 6, "{runtime}");
            let texts = logs::texts(&client.log_path(runtime, "terminal"));
            assert!(texts[0].starts_with("/dev/") && texts.last().unwrap() == "got word", "{texts:?}");
            let reader = ContainerConfig {
                stdin: true,
                stdin_once: true,
                ..client.container("reader", "cat; exit 5")
            };
            let reader = client.launch(&pod, &reader).await.unwrap();
            let mut session = Session::attach(client, Speech::Spdy, &reader, ALL).await;
            session.send(b"all of it").await.unwrap();
            session.end_input().await.unwrap();
            let ended = session.ended().await;
            assert_eq!((ended.code(), &*ended.text()), (5, "all of it"), "{runtime}");
            client.down(&pod).await.unwrap();
        }
    });
}

#[test]
fn limits_and_statistics_are_those_of_the_cgroup() {
    run(async |world| {
        let client = &world.client;
        for runtime in RUNTIMES {
            let (pod, id) = idle(client, runtime).await;
            let limit = |mib: i64| LinuxContainerResources {
                memory_limit_in_bytes: mib << 20,
                ..LinuxContainerResources::default()
            };
            client.update(&id, limit(48)).await.unwrap();
            let show = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
            assert_eq!(client.output(&id, show).await, (48 << 20).to_string(), "{runtime}");
            let stats = client.container_stats(&id).await;
            assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0, "{runtime}");
            // A command is charged to the container, too.
            let greedy = client.exec(&id, "dd if=/dev/zero of=/dev/null bs=100M count=1", 30).await.unwrap();
            assert_eq!(greedy.exit_code, 137, "{runtime}");
            let mut greedy = client.container("greedy", "exec tail /dev/zero");
            greedy.linux.as_mut().unwrap().resources = Some(limit(32));
            let greedy = client.launch(&pod, &greedy).await.unwrap();
            let ended = client.exited(&greedy).await;
            assert_eq!((ended.exit_code, &*ended.reason), (137, "OOMKilled"), "{runtime}");
            client.down(&pod).await.unwrap();
        }
    });
}

#[test]
fn processes_of_a_pod_are_shared_if_it_says_so() {
    run(async |world| {
        let client = &world.client;
        for runtime in RUNTIMES {
            let mut config = client.pod(runtime);
            pod_security(&mut config).namespace_options = Some(processes(NamespaceMode::Pod));
            let pod = run_pod(client, &config, runtime).await.unwrap();
            let mut first = client.container("first", "exec sleep 1234");
            security(&mut first).namespace_options = Some(processes(NamespaceMode::Pod));
            client.launch(&pod, &first).await.unwrap();
            let mut second = client.container("second", "sleep 1000");
            security(&mut second).namespace_options = Some(processes(NamespaceMode::Pod));
            let id = client.launch(&pod, &second).await.unwrap();
            assert_eq!(client.output(&id, "ps | grep -c '[s]leep 1234'").await, "1", "{runtime}");
            let mut alone = client.container("alone", "echo $$");
            security(&mut alone).namespace_options = Some(own_processes());
            let alone = client.launch(&pod, &alone).await.unwrap();
            client.exited(&alone).await;
            assert_eq!(logs::texts(&client.log_path(runtime, "alone")), ["1"], "{runtime}");
            client.down(&pod).await.unwrap();
        }
    });
}

#[test]
fn nothing_is_left_of_daemons_and_supervisors_that_are_killed() {
    run(async |world| {
        for runtime in RUNTIMES {
            let client = &world.client;
            let pod = pod(client, runtime).await;
            let ends = client.container("ends", "until [ -e /end ]; do sleep 0.01; done; exit 9");
            let ends = client.launch(&pod, &ends).await.unwrap();
            let waits = client.create(&pod, &client.container("waits", "exit 8")).await.unwrap();
            world.daemon.kill();
            world.start_again().await;
            let client = &world.client;
            client.start(&waits).await.unwrap();
            assert_eq!(client.exited(&waits).await.exit_code, 8, "{runtime}");
            client.exec(&ends, "touch /end", 10).await.unwrap();
            assert_eq!(client.exited(&ends).await.exit_code, 9, "{runtime}");
            let script = "sleep 1001 & sleep 1002";
            client.launch(&pod, &client.container("runs", script)).await.unwrap();
            client.create(&pod, &client.container("made", "exit 0")).await.unwrap();
            let supervisor = process_with(&format!("wharf-shim {}", world.dir.display())).unwrap();
            kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
            let not_ready = async || {
                let status = client.pod_status(&pod).await.unwrap();
                (status.state() == PodSandboxState::SandboxNotready).then_some(())
            };
            until("the pod is not ready", not_ready).await;
            for sleeper in ["sleep 1001", "sleep 1002"] {
                until("it is killed", async || process_with(sleeper).is_none().then_some(())).await;
            }
            client.down(&pod).await.unwrap();
        }
    });
}

#[test]
fn mounts_are_opened_by_wharf_and_propagate_as_asked() {
    run(async |world| {
        let client = &world.client;
        let source = world.dir.join("source");
        fs::create_dir_all(source.join("below")).unwrap();
        let bind = |target: &str, propagation: MountPropagation| Mount {
            container_path: target.to_owned(),
            host_path: source.display().to_string(),
            propagation: propagation.into(),
            ..Mount::default()
        };
        for runtime in RUNTIMES {
            let mut config = client.pod(runtime);
            pod_security(&mut config).privileged = true;
            let before = host_mounts();
            let pod = run_pod(client, &config, runtime).await.unwrap();
            let mut config = client.container("main", "sleep 1000");
            config.mounts = vec![
                bind("/private", MountPropagation::PropagationPrivate),
                bind("/slave", MountPropagation::PropagationHostToContainer),
                Mount {
                    readonly: true,
                    recursive_read_only: true,
                    ..bind("/rro", MountPropagation::PropagationPrivate)
                },
                Mount {
                    container_path: "/image".to_owned(),
                    readonly: true,
                    image: Some(image(&client.image)),
                    image_sub_path: "bin".to_owned(),
                    ..Mount::default()
                },
            ];
            let id = client.launch(&pod, &config).await.unwrap();
            assert_eq!(host_mounts(), before, "{runtime}: nothing is mounted on the host");
            assert_eq!(client.output(&id, "/image/busybox echo run").await, "run");
            let refused = "touch /rro/no /image/no 2>&1 | grep -c Read-only";
            assert_eq!(client.output(&id, refused).await, "2", "{runtime}");
            let below = source.join("below");
            mount(Some("later"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            fs::write(below.join("later"), "").unwrap();
            assert_eq!(client.output(&id, "ls /slave/below /private/below").await, LISTED, "{runtime}");
            umount(&below).unwrap();
            // crun is in a namespace of its own here, from which nothing propagates.
            if runtime == "runc" {
                let mut config = client.container("back", "sleep 1000");
                security(&mut config).privileged = true;
                config.mounts = vec![bind("/both", MountPropagation::PropagationBidirectional)];
                let id = client.launch(&pod, &config).await.unwrap();
                client.output(&id, "mount -t tmpfs inside /both/below && touch /both/below/inside").await;
                assert!(below.join("inside").exists());
                umount(&below).unwrap();
            }
            client.down(&pod).await.unwrap();
        }
    });
}

/// A mount that was made later, as a container with a slave and a private mount sees it.
const LISTED: &str = "/private/below:\n\n/slave/below:\nlater";

/// A runtime's own rules for devices do not widen wharf's.
#[test]
fn devices_are_those_of_wharfs_own_containers() {
    run(async |world| {
        let client = &world.client;
        let list = async |runtime: &str| {
            let mut config = client.pod(if runtime.is_empty() { "own" } else { runtime });
            pod_security(&mut config).privileged = true;
            let pod = run_pod(client, &config, runtime).await.unwrap();
            let mut lists = Vec::new();
            for name in ["usual", "enclosed", "privileged"] {
                let mut config = client.container(name, "sleep 1000");
                match name {
                    "privileged" => security(&mut config).privileged = true,
                    "enclosed" => {
                        let resources = config.linux.as_mut().unwrap().resources.as_mut().unwrap();
                        resources.memory_limit_in_bytes = 64 << 20;
                        security(&mut config).seccomp = None;
                    }
                    _ => {}
                }
                let id = client.launch(&pod, &config).await.unwrap();
                let list = client.output(&id, "sort /sys/fs/cgroup/devices/devices.list").await;
                let nodes = client.output(&id, "stat -c '%n %t:%T %a %u' /dev/null /dev/zero /dev/tty").await;
                lists.push((list, nodes));
            }
            client.down(&pod).await.unwrap();
            lists
        };
        let own = list("").await;
        for runtime in RUNTIMES {
            assert_eq!(list(runtime).await, own, "{runtime}");
        }
    });
}
