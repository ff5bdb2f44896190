//! What a container can reach of the host: nothing, whatever it puts in the way of processes that enter it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::Pid;
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, processes, security};
use crate::daemon::{is_alive, process_with};
use crate::steps::Tracer;
use crate::streams::{Session, Speech, TERMINAL};
use crate::world::{run, until};

#[test]
fn a_working_directory_that_leads_out_is_refused() {
    run(async |world| {
        let client = &world.client;
        let modes = [("pods", NamespaceMode::Pod), ("hosts", NamespaceMode::Node)];
        for (name, pid) in modes {
            let mut config = client.pod(name);
            pod_security(&mut config).namespace_options = Some(processes(pid));
            let pod = client.run(&config).await.unwrap();
            for link in ["/proc/1/root", "/proc/1/cwd", "/proc/self/root/proc/1/root"] {
                Box::pin(leads_out(client, &pod, pid, link)).await;
            }
        }
    });
}

/// Creates a container that replaces its working directory with a link, and runs a command in it.
async fn leads_out(client: &Client, pod: &str, pid: NamespaceMode, link: &str) {
    let script = format!("rmdir /w; ln -s {link} /w; exec sleep 1000");
    let mut config = client.container(&link.replace('/', "-"), &script);
    config.working_dir = "/w".to_owned();
    security(&mut config).namespace_options = Some(processes(pid));
    let id = client.launch(pod, &config).await.unwrap();
    let error = until("the link is there", async || {
        match client.exec(&id, "cat etc/shadow", 10).await {
            // This was before the link was made.
            Ok(response) if response.stdout.is_empty() => None,
            other => Some(other.expect_err(link)),
        }
    })
    .await;
    assert!(error.message().contains("working directory /w"), "{link}: {error}");
}

/// The lines of a file in /proc that begin with these words, without them.
fn fields<const N: usize>(pid: i32, names: [&str; N]) -> [String; N] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    names.map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    })
}

/// A pod with its own PID namespace, and a container in it.
async fn shared(client: &Client, name: &str) -> (String, String, i32) {
    let pod = client.run(&client.pod(name)).await.unwrap();
    let id = client.launch(&pod, &in_pod(client, "main")).await.unwrap();
    let reaper = until("the reaper is there", async || process_with("wharf-pod-reaper")).await;
    (pod, id, reaper)
}

fn in_pod(client: &Client, name: &str) -> ContainerConfig {
    let mut config = client.container(name, "sleep 1000");
    let security = security(&mut config);
    security.namespace_options = Some(processes(NamespaceMode::Pod));
    let add_capabilities = vec!["SYS_PTRACE".to_owned()];
    security.capabilities = Some(Capability { add_capabilities, ..Capability::default() });
    config
}

#[test]
fn a_pods_reaper_is_nobody_in_an_empty_place() {
    run(async |world| {
        let client = &world.client;
        let (pod, id, reaper) = shared(client, "reaper").await;
        let names =
            ["Uid", "Gid", "Groups", "CapBnd", "CapEff", "CapPrm", "NoNewPrivs", "Seccomp", "Threads"];
        let nobody = "65534\t65534\t65534\t65534";
        let none = "0000000000000000";
        assert_eq!(fields(reaper, names), [nobody, nobody, "", none, none, none, "1", "2", "1"]);
        let of = |what: &str| Path::new("/proc").join(reaper.to_string()).join(what);
        for empty in ["root", "cwd", "fd"] {
            assert_eq!(fs::read_dir(of(empty)).unwrap().count(), 0, "{empty}");
        }
        for other in ["mnt", "net", "ipc", "uts", "cgroup", "pid"] {
            let own = fs::read_link(Path::new("/proc/self/ns").join(other)).unwrap();
            assert_ne!(fs::read_link(of("ns").join(other)).unwrap(), own, "{other}");
        }
        // What a container with the right to trace can do with it.
        assert_eq!(client.output(&id, "ls -A /proc/1/root/ /proc/1/cwd/ /proc/1/fd | grep -v :").await, "");
        for change in
            ["chmod 0 /proc/1/exe", "chown 1 /proc/1/exe", "echo x >/proc/1/exe", "touch /proc/1/root/x"]
        {
            let answer = client.exec(&id, change, 10).await.unwrap();
            assert_ne!(answer.exit_code, 0, "{change}");
        }
        client.run(&client.pod("another")).await.unwrap();
        // It does its work.
        client.output(&id, "(sleep 0 &) ; (sh -c 'sleep 0 & exec true' &)").await;
        until("orphans are reaped", async || {
            let states = client.output(&id, "grep -h ^State /proc/[0-9]*/status 2>/dev/null; true").await;
            (!states.contains('Z')).then_some(())
        })
        .await;
        client.down(&pod).await.unwrap();
        until("it ends with the pod", async || (!is_alive(reaper)).then_some(())).await;
    });
}

#[test]
fn a_reaper_ends_with_its_supervisor_and_a_supervisor_gets_another_one() {
    run(async |world| {
        let client = &world.client;
        let (pod, id, reaper) = shared(client, "ends").await;
        kill(Pid::from_raw(reaper), Signal::SIGKILL).unwrap();
        assert_eq!(client.exited(&id).await.exit_code, 137);
        until("it is reaped", async || (!is_alive(reaper)).then_some(())).await;
        let next = client.launch(&pod, &in_pod(client, "next")).await.unwrap();
        assert_eq!(client.output(&next, "tr '\\0' ' ' </proc/1/cmdline").await.trim(), "wharf-pod-reaper");
        let reaper = until("there is another", async || process_with("wharf-pod-reaper")).await;
        let supervisor = until("the supervisor is there", async || {
            process_with(&format!("wharf-shim {}", world.dir.display()))
        });
        kill(Pid::from_raw(supervisor.await), Signal::SIGKILL).unwrap();
        until("it ends with the supervisor", async || (!is_alive(reaper)).then_some(())).await;
        client.down(&pod).await.unwrap();
    });
}

/// As on kernels before Linux 6.11, on which a PID namespace has no descriptor with which a procfs could be made.
#[test]
fn a_procfs_of_others_is_made_by_one_among_them_if_need_be() {
    run(async |world| {
        let client = &world.client;
        let (pod, _first, _reaper) = shared(client, "procfs").await;
        let name = format!("wharf-shim {}", world.dir.display());
        let supervisor = until("the supervisor is there", async || process_with(&name)).await;
        let mut tracer = Tracer::attach_failing(world, supervisor, "ioctl", "ENOTTY");
        let other = client.launch(&pod, &in_pod(client, "other")).await.unwrap();
        tracer.end_all();
        assert!(tracer.has_met(), "it was made by name");
        let seen =
            client.output(&other, "tr '\\0' ' ' </proc/1/cmdline; grep -c ' /proc proc ' /proc/mounts").await;
        assert_eq!(seen, "wharf-pod-reaper 1");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn the_null_device_of_a_container_is_its_own() {
    run(async |world| {
        let client = &world.client;
        let host = fs::metadata("/dev/null").unwrap();
        let mode = host.mode();
        let pod = client.run(&client.pod("null")).await.unwrap();
        let mut config = client.container("main", "stat -L -c %d:%i /dev/stdin >/first; sleep 1000");
        security(&mut config).masked_paths = ["/proc/keys", "/proc/timer_list"].map(str::to_owned).to_vec();
        let id = client.launch(&pod, &config).await.unwrap();
        let own = client.output(&id, "stat -c %d:%i /dev/null").await;
        assert_ne!(own, format!("{}:{}", host.dev(), host.ino()));
        until("the first process has looked", async || {
            (client.output(&id, "cat /first").await == own).then_some(())
        })
        .await;
        assert_eq!(client.output(&id, "stat -L -c %d:%i /dev/stdin").await, own);
        for masked in ["/proc/keys", "/proc/timer_list"] {
            assert_eq!(
                client
                    .output(&id, &format!("stat -c %d:%i {masked}; wc -c <{masked}; echo x >{masked}"))
                    .await,
                format!("{own}\n0")
            );
            let script = format!("chmod 600 {masked} || chown 1 {masked}");
            let answer = client.exec(&id, &script, 10).await.unwrap();
            let why = String::from_utf8(answer.stderr).unwrap();
            assert!(answer.exit_code != 0 && why.matches("Read-only").count() == 2, "{why}");
        }
        assert_eq!(fs::metadata("/dev/null").unwrap().mode(), mode);
        // Whatever a container puts in its place is not written to.
        client.output(&id, "rm /dev/null; ln -s /victim /dev/null; echo kept >/victim").await;
        assert!(client.exec(&id, "true", 10).await.is_err());
    });
}

#[test]
fn streams_and_terminals_are_the_users() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("users")).await.unwrap();
        let speak = "echo out >/dev/stdout; echo err >/dev/stderr";
        let mut config = client.container("main", &format!("{speak}; sleep 1000"));
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        let id = client.launch(&pod, &config).await.unwrap();
        until("it has spoken", async || {
            let log = fs::read_to_string(client.log_path("users", "main")).unwrap_or_default();
            (log.contains("stdout F out\n") && log.contains("stderr F err\n")).then_some(())
        })
        .await;
        let answer = client.exec(&id, speak, 10).await.unwrap();
        assert_eq!((&*answer.stdout, &*answer.stderr), (&b"out\n"[..], &b"err\n"[..]));
        let script = "echo to $(tty) >$(tty); stat -c %u:%g $(tty)";
        let ended = Session::exec(client, Speech::Spdy, &id, script, TERMINAL).await.ended().await;
        assert_eq!((ended.code(), &*ended.text()), (0, "to /dev/pts/0\r\n1000:5\r\n"));
        let mut config =
            client.container("terminal", "echo word >/dev/console; echo word >$(tty); sleep 1000");
        config.tty = true;
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        client.launch(&pod, &config).await.unwrap();
        until("it has spoken on its terminal", async || {
            let log = fs::read_to_string(client.log_path("users", "terminal")).unwrap_or_default();
            (log.matches("word").count() == 2).then_some(())
        })
        .await;
    });
}

#[test]
fn a_commands_home_is_the_users() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("home")).await.unwrap();
        let id =
            client.launch(&pod, &client.container("main", "echo $HOME >/said; sleep 1000")).await.unwrap();
        until("it has said its home", async || {
            (client.exec(&id, "cat /said", 10).await.unwrap().stdout == b"/root\n").then_some(())
        })
        .await;
        assert_eq!(client.output(&id, "echo $HOME").await, "/root");
    });
}

#[test]
fn a_terminals_command_that_does_not_exist_is_named() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("nosuch")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let url = client.exec_url(&id, &["/no/such/program"], TERMINAL).await.unwrap();
        let ended = Session::open(&url, Speech::Spdy, TERMINAL).await.ended().await;
        assert!(ended.failure().is_some_and(|why| why.contains("/no/such/program")), "{ended:?}");
    });
}

#[test]
fn what_is_mounted_at_dev_is_left_alone() {
    run(async |world| {
        let client = &world.client;
        let dev = world.dir.join("dev");
        // The pod's memory is still mounted there.
        fs::create_dir_all(dev.join("shm")).unwrap();
        mknod(&dev.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
        let pod = client.run(&client.pod("dev")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        config.mounts.push(Mount {
            host_path: dev.display().to_string(),
            container_path: "/dev".to_owned(),
            ..Mount::default()
        });
        config.devices.push(Device {
            host_path: "/dev/zero".to_owned(),
            container_path: "/dev/asked".to_owned(),
            permissions: "r".to_owned(),
        });
        config.devices.push(Device { container_path: "/nodes/zero".to_owned(), ..config.devices[0].clone() });
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&id, "ls /dev; head -c 1 /nodes/zero | wc -c").await, "null\nshm\n1");
        let mut left: Vec<_> = fs::read_dir(&dev).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["null", "shm"]);
    });
}

#[test]
fn an_asked_device_replaces_a_default_one() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("asked")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        config.devices.push(Device {
            host_path: "/dev/zero".to_owned(),
            container_path: "/dev/full".to_owned(),
            permissions: "rw".to_owned(),
        });
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&id, "stat -c %t:%T /dev/full").await, "1:5");
    });
}

#[test]
fn the_directory_of_cgroups_cannot_be_written() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("cgroups")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let answer = client.exec(&id, "mkdir /sys/fs/cgroup/new", 10).await.unwrap();
        assert!(String::from_utf8(answer.stderr).unwrap().contains("Read-only file system"));
    });
}
