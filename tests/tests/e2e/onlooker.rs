//! A process in a container that inspects every other process it sees, while commands, containers and pods come and go:
//! it never finds one that has anything of the host.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use futures_util::future::join_all;
use wharf_cri_api::v1::*;

use crate::client::{Client, processes, security};
use crate::daemon::process_with;
use crate::place;
use crate::world::{World, run, until};

/// The halves of a secret that one container of the pod, and no other, has in its environment.
const SECRET: [&str; 2] = ["swordfish-", "in-the-keeper"];

/// A container with its own processes and a secret.
async fn keep_secret(client: &Client, pod: &str) {
    let mut config = client.container("keeper", "sleep 1000");
    config.envs.push(KeyValue { key: "SECRET".to_owned(), value: SECRET.concat().into_bytes() });
    security(&mut config).namespace_options = in_processes_of(NamespaceMode::Container, "");
    client.launch(pod, &config).await.unwrap();
}

/// A container in which the onlooker runs; its findings are in `/seen`.
async fn look(world: &World, pod: &str, name: &str, change: impl FnOnce(&mut ContainerConfig)) -> String {
    let client = &world.client;
    let namespace = fs::read_link("/proc/self/ns/mnt").unwrap();
    let [first, second] = SECRET;
    let line = format!("/onlooker '{}' {first} {second} {} >/seen", namespace.display(), devices());
    let script = format!("cp /mnt/onlooker / && touch /ready && {line}; exec sleep 1000");
    let mut config = client.container(name, &script);
    config.mounts.push(Mount {
        host_path: place::built().onlooker.parent().unwrap().display().to_string(),
        container_path: "/mnt".to_owned(),
        readonly: true,
        ..Mount::default()
    });
    change(&mut config);
    let id = client.launch(pod, &config).await.unwrap();
    until("the onlooker looks", async || (client.output(&id, "ls /").await.contains("ready")).then_some(()))
        .await;
    id
}

/// The devices of everything that is mounted on the host.
fn devices() -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let devices: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert!(devices.len() > 3, "{table}");
    devices.join(" ")
}

/// An onlooker's findings, and how many processes it saw.
async fn found(client: &Client, onlooker: &str) -> (Vec<String>, usize) {
    client.output(onlooker, "touch /stop").await;
    let seen = until("it stops", async || {
        let seen = client.output(onlooker, "cat /seen").await;
        seen.contains("seen ").then_some(seen)
    })
    .await;
    let mut lines: Vec<String> = seen.lines().map(str::to_owned).collect();
    let last = lines.pop().unwrap();
    (lines, last.strip_prefix("seen ").unwrap().parse().unwrap())
}

fn in_processes_of(pid: NamespaceMode, target: &str) -> Option<NamespaceOption> {
    Some(NamespaceOption { target_id: target.to_owned(), ..processes(pid) })
}

fn may_trace(config: &mut ContainerConfig) {
    let add_capabilities = vec!["SYS_PTRACE".to_owned()];
    security(config).capabilities = Some(Capability { add_capabilities, ..Capability::default() });
}

/// Executes commands in a container, several at a time.
async fn come_and_go(client: &Client, container: &str, times: usize) {
    for _ in 0..times / 3 {
        let execs = (0..3).map(|_| client.exec(container, "true", 20));
        for answer in join_all(execs).await {
            assert_eq!(answer.unwrap().exit_code, 0);
        }
    }
}

/// How many commands each onlooker can inspect.
const TIMES: usize = 84;

/// Runs two onlookers, one of which may trace, while `happen` does its work; neither finds anything.
async fn finds_nothing(
    world: &World,
    pod: &str,
    processes: Option<NamespaceOption>,
    happen: impl AsyncFn(&str),
) {
    keep_secret(&world.client, pod).await;
    for trace in [true, false] {
        let name = if trace { "tracer" } else { "onlooker" };
        let onlooker = look(world, pod, name, |config| {
            security(config).namespace_options = processes.clone();
            if trace {
                may_trace(config);
            }
        })
        .await;
        Box::pin(happen(&onlooker)).await;
        let (found, seen) = found(&world.client, &onlooker).await;
        assert_eq!(found, Vec::<String>::new(), "{name}");
        assert!(seen >= TIMES / 8, "{name} saw {seen} processes");
    }
}

#[test]
fn commands_show_nothing_of_the_host() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("own-processes")).await.unwrap();
        let processes = in_processes_of(NamespaceMode::Container, "");
        finds_nothing(world, &pod, processes, async |onlooker| come_and_go(client, onlooker, TIMES).await)
            .await;
    });
}

#[test]
fn containers_of_a_pod_show_each_other_nothing_of_the_host() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("shared-processes")).await.unwrap();
        let processes = in_processes_of(NamespaceMode::Pod, "");
        finds_nothing(world, &pod, processes.clone(), async |onlooker| {
            for round in 0..4 {
                let mut config = client.container(&format!("other-{round}-{}", &onlooker[..8]), "sleep 1000");
                security(&mut config).namespace_options = processes.clone();
                let other = client.launch(&pod, &config).await.unwrap();
                let both = (come_and_go(client, onlooker, TIMES / 8), come_and_go(client, &other, TIMES / 8));
                tokio::join!(both.0, both.1);
                client.stop_container(&other, 0).await.unwrap();
            }
        })
        .await;
    });
}

#[test]
fn a_container_shows_nothing_of_the_host_to_one_that_looks_into_it() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("target")).await.unwrap();
        let target = client.launch(&pod, &client.container("target", "sleep 1000")).await.unwrap();
        let processes = in_processes_of(NamespaceMode::Target, &target);
        finds_nothing(world, &pod, processes, async |_onlooker| come_and_go(client, &target, TIMES).await)
            .await;
        // A container that is not started has a first process that is still setting it up.
        let created = client.create(&pod, &client.container("created", "sleep 1000")).await.unwrap();
        let mut config = client.container("early", "true");
        security(&mut config).namespace_options = in_processes_of(NamespaceMode::Target, &created);
        let error = client.create(&pod, &config).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{error}");
    });
}

/// A check that cannot fail proves nothing: a process that enters the PID namespace first, and the others later or
/// never, is detected.
#[test]
fn a_careless_way_in_is_seen() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("careless")).await.unwrap();
        let onlooker = look(world, &pod, "tracer", may_trace).await;
        let pid = until("its number is known", async || process_with("/onlooker mnt:")).await;
        until("something of the host is found", async || {
            let mut enter = place::command(Path::new("nsenter"));
            // It belongs to this process, which has files of the host open.
            let (line, _other) = UnixStream::pair().unwrap();
            let entered = enter
                .env("SECRET", SECRET.concat())
                .stdin(Stdio::from(OwnedFd::from(line)))
                .args(["--target", &pid.to_string(), "--pid", "--no-fork", "sh", "-c", "/bin/true; exit 0"])
                .output()
                .unwrap();
            assert!(entered.status.success(), "{entered:?}");
            let seen = client.output(&onlooker, "cat /seen").await;
            let host = ["/root is", "/cwd is", "/exe is", "/fd/", "in the host's mount namespace", " r-xp "];
            let mut all = host.into_iter().chain(["the secret is in its memory", "socket 0 leads to "]);
            all.all(|kind| seen.contains(kind)).then_some(())
        })
        .await;
    });
}
