//! Containers that somebody paused with the cgroup freezer: requests for them in the meantime, and their end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::Code;
use wharf_cri_api::v1::{Int64Value, NamespaceMode};

use crate::client::{pod_security, security};
use crate::daemon::process_with;
use crate::limits::unconfined;
use crate::streams::{ALL, Session, Speech, TERMINAL};
use crate::world::{run, until};

/// How long wharfd waits for a supervisor to kill a container before it does so itself.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// The files that freeze and thaw a process's cgroup, and the values for them.
pub(crate) struct Freezer {
    file: PathBuf,
    frozen: &'static str,
    thawed: &'static str,
}

impl Freezer {
    /// Those of all hierarchies that have a freezer.
    pub(crate) fn all(pid: i32) -> Vec<Self> {
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let paths = table.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let known = paths.filter_map(|fields| {
            let [_, controllers, path] = fields[..] else { panic!("{fields:?}") };
            let (mount, file, frozen, thawed) = match controllers {
                "freezer" => ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"),
                "" if Path::new("/sys/fs/cgroup/unified").exists() => {
                    ("/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0")
                }
                "" => ("/sys/fs/cgroup", "cgroup.freeze", "1", "0"),
                _ => return None,
            };
            assert!(path.len() > 1, "a container has a cgroup of its own");
            Some(Self { file: PathBuf::from(format!("{mount}{path}/{file}")), frozen, thawed })
        });
        known.collect()
    }

    pub(crate) fn freeze(&self) {
        fs::write(&self.file, self.frozen).unwrap();
    }

    fn is_frozen(&self) -> bool {
        fs::read_to_string(&self.file).unwrap().trim_end() == self.frozen
    }

    pub(crate) fn thaw(&self) {
        fs::write(&self.file, self.thawed).unwrap();
    }
}

impl Drop for Freezer {
    /// Not even the end of the rig kills a process that v1 keeps frozen.
    fn drop(&mut self) {
        fs::write(&self.file, self.thawed).ok();
    }
}

#[test]
fn a_paused_container_holds_up_nobody_else() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("paused")).await.unwrap();
        let other = client.launch(&pod, &client.container("other", "sleep 1001")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let main = until("it runs", async || process_with("sleep 1000")).await;
        let freezers = Freezer::all(main);
        assert!(!freezers.is_empty());
        for freezer in &freezers {
            for wanted in [ALL, TERMINAL] {
                freezer.freeze();
                let url = async || {
                    client.exec_url(&id, &["sh", "-c", "echo went on; exit 3"], wanted).await.unwrap()
                };
                let mut waits = Session::deaf(&url().await, Speech::Spdy, wanted).await;
                let leaves = Session::deaf(&url().await, Speech::WebSocket, wanted).await;
                // Alternately, so that it is tried more than once while both wait.
                for _ in 0..3 {
                    assert_eq!(client.output(&other, "echo fine").await, "fine");
                    let session = Session::exec(client, Speech::Spdy, &other, "exit 4", wanted).await;
                    assert_eq!(session.ended().await.code(), 4);
                }
                drop(leaves);
                freezer.thaw();
                waits.listen().await;
                let ended = waits.ended().await;
                assert!(ended.code() == 3 && ended.text().starts_with("went on"), "{ended:?}");
            }
            freezer.freeze();
            let start = Instant::now();
            let error = client.exec(&id, "true", 1).await.unwrap_err();
            assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
            assert!(start.elapsed() < Duration::from_secs(10), "the deadline counts from the call");
            freezer.thaw();
        }
    });
}

/// v1's freezer holds back even SIGKILL, and a container may freeze itself: the commands of its probes would pile up.
#[test]
fn commands_of_a_frozen_container_are_gone_after_their_deadline() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("frozen")).await.unwrap();
        // It can reach its own cgroup.
        let id = client.launch(&pod, &unconfined(client, "main", "sleep 1000")).await.unwrap();
        let main = until("it runs", async || process_with("sleep 1000")).await;
        let before = processes_of(&id);
        let freezers = Freezer::all(main);
        assert!(!freezers.is_empty());
        for freezer in &freezers {
            for _ in 0..2 {
                freezer.freeze();
                let error = client.exec(&id, "true", 1).await.unwrap_err();
                assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
                until("it is gone", async || (processes_of(&id) == before).then_some(())).await;
            }
        }
    });
}

/// Without a way to its own cgroup it has not frozen itself: whoever paused it does not want it to go on for a probe.
#[test]
fn a_container_that_somebody_else_paused_stays_so_after_a_commands_deadline() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("paused")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        let user = Int64Value { value: 1000 };
        security(&mut config).run_as_user = Some(user);
        let id = client.launch(&pod, &config).await.unwrap();
        let main = until("it runs", async || process_with("sleep 1000")).await;
        let before = processes_of(&id);
        let freezers = Freezer::all(main);
        assert!(!freezers.is_empty());
        for freezer in &freezers {
            freezer.freeze();
            let error = client.exec(&id, "true", 1).await.unwrap_err();
            assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
            assert!(freezer.is_frozen());
            freezer.thaw();
            until("the command is gone", async || (processes_of(&id) == before).then_some(())).await;
        }
    });
}

#[test]
fn a_paused_container_can_be_stopped() {
    run(async |world| {
        let client = &world.client;
        // Here only wharf ends a process of the container.
        let mut config = client.pod("stop-paused");
        pod_security(&mut config).namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
        let pod = client.run(&config).await.unwrap();
        for number in 0..2 {
            let mut config = client.container(&format!("c{number}"), "exec sleep 1000");
            security(&mut config).namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
            let id = client.launch(&pod, &config).await.unwrap();
            let first = until("it runs", async || process_with("sleep 1000")).await;
            let freezers = Freezer::all(first);
            let Some(freezer) = freezers.get(number) else { continue };
            freezer.freeze();
            let url = client.exec_url(&id, &["sleep", "1001"], ALL).await.unwrap();
            let mut session = Session::deaf(&url, Speech::Spdy, ALL).await;
            until("the command is on its way in", async || (processes_of(&id) == 2).then_some(())).await;
            client.stop_container(&id, 0).await.unwrap();
            session.listen().await;
            let ended = session.ended().await;
            assert!(ended.exit() == Some(137) || ended.failure().is_some(), "{ended:?}");
            assert_eq!(client.status(&id).await.unwrap().exit_code, 137);
            assert_eq!(processes_of(&id), 0);
        }
    });
}

/// The cgroup around its own is in v1's freezer, too, also where its processes are killed by the unified hierarchy.
#[test]
fn a_container_that_is_paused_from_around_its_cgroup_can_be_stopped() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("around")).await.unwrap();
        let mut config = unconfined(client, "main", "sleep 1000");
        config.mounts.clear();
        let id = client.launch(&pod, &config).await.unwrap();
        let directory = PathBuf::from(format!("/sys/fs/cgroup/freezer/wharf/{pod}/{id}"));
        assert!(directory.join("container").exists());
        let freezer = Freezer { file: directory.join("freezer.state"), frozen: "FROZEN", thawed: "THAWED" };
        freezer.freeze();
        let start = Instant::now();
        client.stop_container(&id, 0).await.unwrap();
        assert!(start.elapsed() < KILL_WAIT, "nothing holds back SIGKILL");
        assert_eq!(client.status(&id).await.unwrap().exit_code, 137);
        drop(freezer);
    });
}

/// A container may make cgroups below its own, and freeze its processes there. Its first process ends only after them.
#[test]
fn a_container_that_froze_its_processes_below_its_cgroup_is_stopped_at_once() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("below")).await.unwrap();
        let script = "mkdir -p /m
            libraries=/host/lib/x86_64-linux-gnu
            exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries /host/usr/bin/unshare -U -r -C -m sh -c '
                mount -t cgroup -o freezer none /m && mkdir -p /m/a/b && (sleep 1001 & echo $! >/m/a/b/cgroup.procs) &&
                echo FROZEN >/m/a/b/freezer.state && exec sleep 1000'";
        let id = client.launch(&pod, &unconfined(client, "main", script)).await.unwrap();
        let state = format!("/sys/fs/cgroup/freezer/wharf/{pod}/{id}/container/a/b/freezer.state");
        let freezer = Freezer { file: state.into(), frozen: "FROZEN", thawed: "THAWED" };
        until("it is frozen", async || (freezer.file.exists() && freezer.is_frozen()).then_some(())).await;
        let start = Instant::now();
        client.stop_container(&id, 0).await.unwrap();
        assert!(start.elapsed() < KILL_WAIT, "nothing holds back SIGKILL");
        assert_eq!(client.status(&id).await.unwrap().exit_code, 137);
    });
}

/// How many processes are in the cgroups of a container.
pub(crate) fn processes_of(id: &str) -> usize {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let cgroups = pids.filter_map(|pid| fs::read_to_string(pid.path().join("cgroup")).ok());
    cgroups.filter(|cgroups| cgroups.contains(id)).count()
}
