//! What could go wrong between wharf and a runtime: restrictions that get lost, names that come too late, runtimes that
//! are slow, killed, or gone.

use serde_json::{Value, json};

use super::*;
use crate::daemon::is_alive;

/// Runs a test with a daemon of whose handlers one is runc behind a script, which is in the test's directory `$D`.
fn run_behind(script: &'static str, test: impl AsyncFnOnce(&mut World)) {
    let configure = move |dir: &Path| {
        let path = dir.join("behind");
        let text = format!("#!/bin/sh\nD={}\n{script}\nexec /usr/sbin/runc \"$@\"\n", dir.display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.join("config.toml.d")).unwrap();
        let config = format!("[handlers.behind]\npath = \"{}\"\n", path.display());
        fs::write(dir.join("config.toml.d/handlers.toml"), config).unwrap();
    };
    run_on(configure, test);
}

async fn is_gone(words: &str) {
    until(&format!("{words} is gone"), async || process_with(words).is_none().then_some(())).await;
}

#[test]
fn restrictions_of_the_hosts_mounts_stay() {
    run(async |world| {
        let client = &world.client;
        let source = world.dir.join("restricted");
        fs::create_dir(&source).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("restricted"), &source, Some("tmpfs"), flags, None::<&str>).unwrap();
        let bind = |target: &str, readonly| Mount {
            container_path: target.to_owned(),
            host_path: source.display().to_string(),
            readonly,
            ..Mount::default()
        };
        let mut seen = Vec::new();
        for runtime in ["", "runc", "crun"] {
            let pod = run_pod(client, &client.pod(&format!("flags-{runtime}")), runtime).await.unwrap();
            let mut config = client.container("main", "sleep 1000");
            config.mounts = vec![bind("/of/host", true), bind("/written", false)];
            let id = client.launch(&pod, &config).await.unwrap();
            let show =
                "grep -E ' (/of/host|/written|/etc/hosts|/dev/shm) ' /proc/mounts | cut -d' ' -f2,4 | sort";
            let mounts = client.output(&id, show).await;
            for start in ["/of/host ro,nosuid,nodev,noexec", "/written rw,nosuid,nodev,noexec"] {
                assert!(mounts.lines().any(|line| line.starts_with(start)), "{runtime}: {mounts}");
            }
            seen.push(mounts);
            client.down(&pod).await.unwrap();
        }
        assert!(seen.iter().all(|one| *one == seen[0]), "{seen:#?}");
        umount(&source).unwrap();
    });
}

#[test]
fn names_are_those_of_the_mounted_files() {
    run(async |world| {
        let client = &world.client;
        fs::write(world.dir.join("passwd"), "me:x:4321:4322::/place/of/me:/bin/sh\n").unwrap();
        fs::write(world.dir.join("group"), "some:x:4323:me\n").unwrap();
        for runtime in ["", "runc", "crun"] {
            let pod = run_pod(client, &client.pod(&format!("names-{runtime}")), runtime).await.unwrap();
            let mut config = client.container("main", "id -u; id -G; echo $HOME; ls /inner");
            let mounted = |name: &str| Mount {
                container_path: format!("/etc/{name}"),
                host_path: world.dir.join(name).display().to_string(),
                readonly: true,
                ..Mount::default()
            };
            let inner = Mount { container_path: "/dev/shm/inner".to_owned(), ..mounted("passwd") };
            config.mounts = vec![mounted("passwd"), mounted("group"), inner];
            security(&mut config).run_as_username = "me".to_owned();
            let before = host_mounts();
            let id = client.launch(&pod, &config).await.unwrap();
            client.exited(&id).await;
            let texts = logs::texts(&client.log_path(&format!("names-{runtime}"), "main"));
            assert_eq!(texts[..3], ["4321", "4322 4323", "/place/of/me"], "{runtime}");
            assert_eq!(host_mounts(), before, "{runtime}");
            let status = client.status(&id).await.unwrap();
            assert_eq!(status.user.unwrap().linux.unwrap().uid, 4321, "{runtime}");
            client.down(&pod).await.unwrap();
        }
    });
}

/// Kills its guard's parent, the caller, at the start of a container or a command, if it is asked to, and notes it.
const DEADLY: &str = r#"caller=$(cut -d' ' -f4 /proc/$PPID/stat)
case " $* " in
*" create "*) echo $caller >$D/caller ;;
*" start "* | *" exec "*) [ ! -e $D/deadly ] || kill -9 $caller ;;
esac"#;

#[test]
fn a_call_that_is_killed_starts_nothing() {
    run_behind(DEADLY, async |world| {
        let client = &world.client;
        let pod = pod(client, "behind").await;
        let lives = client.launch(&pod, &client.container("lives", "sleep 1000")).await.unwrap();
        let deadly = world.dir.join("deadly");
        fs::write(&deadly, "").unwrap();
        let error = client.exec(&lives, "sleep 1007", 10).await.unwrap_err();
        assert!(error.message().contains("the process that called the runtime"), "{error}");
        let id = client.create(&pod, &client.container("main", "sleep 1008")).await.unwrap();
        let error = client.start(&id).await.unwrap_err();
        assert!(error.message().contains("the process that called the runtime"), "{error}");
        let ended = client.exited(&id).await;
        assert_eq!((ended.started_at, &*ended.reason), (0, "StartError"), "{ended:?}");
        is_gone("sleep 1007").await;
        fs::remove_file(&deadly).unwrap();
        let waits = client.create(&pod, &client.container("waits", "sleep 1009")).await.unwrap();
        let caller: i32 = fs::read_to_string(world.dir.join("caller")).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(caller), Signal::SIGKILL).unwrap();
        assert_eq!(client.exited(&waits).await.started_at, 0);
        assert!(!is_alive(caller));
        assert_eq!(client.exec(&lives, "exit 3", 10).await.unwrap().exit_code, 3);
        client.down(&pod).await.unwrap();
    });
}

/// Does not end when a command runs already, before it is told to.
const SLOW: &str = r#"case " $* " in
*" exec "*)
    /usr/sbin/runc "$@" || exit
    touch $D/made
    until [ -e $D/late ]; do sleep 0.05; done
    exit 0 ;;
esac"#;

#[test]
fn a_command_does_not_outlive_its_timeout_in_a_slow_runtime() {
    run_behind(SLOW, async |world| {
        let client = &world.client;
        let (pod, id) = idle(client, "behind").await;
        let late = client.exec(&id, "sleep 1006", 5).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        let made = world.dir.join("made");
        until("the runtime has made it", async || made.exists().then_some(())).await;
        fs::write(world.dir.join("late"), "").unwrap();
        is_gone("sleep 1006").await;
        assert_eq!(client.exec(&id, "exit 4", 20).await.unwrap().exit_code, 4);
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn pods_of_a_handler_that_is_gone_can_be_stopped_and_removed() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = idle(client, "runc").await;
        let waits = client.create(&pod, &client.container("waits", "exit 8")).await.unwrap();
        world.daemon.kill();
        fs::remove_file(world.dir.join("config.toml.d/handlers.toml")).unwrap();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.exec(&id, "exit 5", 10).await.unwrap().exit_code, 5);
        client.start(&waits).await.unwrap();
        assert_eq!(client.exited(&waits).await.exit_code, 8);
        client.remove_container(&waits).await.unwrap();
        let refused = client.create(&pod, &client.container("next", "true")).await.unwrap_err();
        for words in ["\"runc\" is not known", "[handlers.runc]"] {
            assert!(refused.message().contains(words), "{refused}");
        }
        client.stop_container(&id, 0).await.unwrap();
        client.remove_container(&id).await.unwrap();
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn hooks_are_executed_as_for_any_container() {
    run(async |world| {
        let client = &world.client;
        let place = world.dir.join("hooks.d");
        fs::create_dir(&place).unwrap();
        let script = world.dir.join("note");
        let body = format!("#!/bin/sh\necho \"$1\" >>{0}/order\ncat >{0}/$1.state\n", world.dir.display());
        fs::write(&script, body).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        for point in POINTS {
            let hook = json!({"path": script, "args": ["hook", point], "timeout": 10});
            let file = json!({"version": "1.0.0", "hook": hook, "when": {"always": true}, "stages": [point]});
            fs::write(place.join(format!("{point}.json")), file.to_string()).unwrap();
        }
        for runtime in RUNTIMES {
            let (pod, id) = idle(client, runtime).await;
            let state = fs::read(world.dir.join("createRuntime.state")).unwrap();
            let state: Value = serde_json::from_slice(&state).unwrap();
            assert_eq!((state["id"].as_str(), state["status"].as_str()), (Some(&*id), Some("creating")));
            let program = fs::read_to_string(format!("/proc/{}/cmdline", state["pid"])).unwrap();
            let program = program.replace('\0', " ");
            assert!(program.contains("sleep 1000"), "{runtime}: the container's own process, not {program}");
            client.remove_container(&id).await.unwrap();
            let order = fs::read_to_string(world.dir.join("order")).unwrap();
            assert_eq!(order.lines().collect::<Vec<_>>(), POINTS, "{runtime}");
            fs::remove_file(world.dir.join("order")).unwrap();
            client.down(&pod).await.unwrap();
        }
        let fails = json!({"path": "/bin/false", "args": ["false"], "timeout": 10});
        let file =
            json!({"version": "1.0.0", "hook": fails, "when": {"always": true}, "stages": ["createRuntime"]});
        fs::write(place.join("fails.json"), file.to_string()).unwrap();
        for runtime in RUNTIMES {
            let pod = pod(client, runtime).await;
            let error = client.create(&pod, &client.container("main", "sleep 1000")).await.unwrap_err();
            assert!(error.message().contains("/bin/false"), "{error}");
            client.down(&pod).await.unwrap();
        }
    });
}

/// The points of a container's life in their order.
const POINTS: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

/// Hangs in a container's creation, with a process that has left it, or only says why it fails.
const STUCK: &str = r#"case " $* " in
*" create "*)
    echo "no hypervisor" >&2
    [ ! -e $D/fails ] || exit 3
    (setsid sleep 1011 &)
    sleep 1012 ;;
esac"#;

#[test]
fn a_runtime_that_hangs_or_fails_is_quoted_and_leaves_no_process() {
    run_behind(STUCK, async |world| {
        let client = &world.client;
        let pod = pod(client, "behind").await;
        let late = client.create(&pod, &client.container("late", "true")).await.unwrap_err();
        let words = late.message();
        assert!(words.contains("did not end") && words.contains("no hypervisor"), "{late}");
        is_gone("sleep 1011").await;
        is_gone("sleep 1012").await;
        fs::write(world.dir.join("fails"), "").unwrap();
        for terminal in [false, true] {
            let mut config = client.container("fails", "true");
            config.tty = terminal;
            let error = client.create(&pod, &config).await.unwrap_err();
            assert!(error.message().contains("no hypervisor"), "{error}");
        }
        client.down(&pod).await.unwrap();
    });
}

/// Somebody waits until the FIFO is opened for reading, and goes on as soon as it is.
#[test]
fn what_is_no_regular_file_is_not_opened_for_names() {
    run(async |world| {
        let client = &world.client;
        let fifo = world.dir.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let path = fifo.clone();
        let writer = std::thread::spawn(move || fs::OpenOptions::new().write(true).open(path).map(drop));
        for runtime in ["", "runc", "crun"] {
            let pod = run_pod(client, &client.pod(&format!("fifo-{runtime}")), runtime).await.unwrap();
            let mut config = client.container("main", "true");
            config.mounts = vec![Mount {
                container_path: "/etc/passwd".to_owned(),
                host_path: fifo.display().to_string(),
                ..Mount::default()
            }];
            let error = client.create(&pod, &config).await.unwrap_err();
            assert!(error.message().contains("not a regular file"), "{runtime}: {error}");
            client.down(&pod).await.unwrap();
        }
        assert!(!writer.is_finished(), "the FIFO was opened");
        drop(fs::File::open(&fifo).unwrap());
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn a_command_that_hangs_in_its_runtime_ends_with_its_timeout() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = idle(client, "runc").await;
        client.output(&id, "rm -f /etc/passwd; mkfifo /etc/passwd").await;
        let late = client.exec(&id, "sleep 1013", 1).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        is_gone("runc init").await;
        client.down(&pod).await.unwrap();
    });
}

/// Notes what the container's cgroups were charged before its runtime was called.
const CHARGED: &str = r#"case " $* " in
*" create "*)
    for id; do :; done
    find /sys/fs/cgroup -path "*$id*" -name cpuacct.usage -exec cat {} + >$D/charged
    find /sys/fs/cgroup -path "*$id*" -name cpu.stat -exec grep -h usage_usec {} + >>$D/charged ;;
esac"#;

#[test]
fn what_an_image_has_is_read_in_its_containers_cgroup() {
    run_behind(CHARGED, async |world| {
        let client = &world.client;
        let pod = pod(client, "behind").await;
        client.create(&pod, &client.container("main", "true")).await.unwrap();
        let charged = fs::read_to_string(world.dir.join("charged")).unwrap();
        assert!(charged.contains(|digit| ('1'..='9').contains(&digit)), "{charged:?}");
        client.down(&pod).await.unwrap();
    });
}
