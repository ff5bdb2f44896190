//! Daemons and supervisors that are killed: what runs continues, calls can be repeated, nothing is left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;
use wharf_cri_api::admin::PullProgressRequest;
use wharf_cri_api::admin::admin_client::AdminClient;
use wharf_cri_api::admin::layer::Phase;
use wharf_cri_api::v1::{ContainerState, GetEventsRequest, PodSandboxState, RemoveContainerRequest};
use wharf_tests::connect::connect;

use crate::daemon::{is_alive, process_with};
use crate::image::{Content, noise, plain};
use crate::logs;
use crate::server::{Server, Then, honest};
use crate::world::{run, until};

#[test]
fn containers_go_on_without_a_daemon() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("goes-on")).await.unwrap();
        let count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
        let counts = client.launch(&pod, &client.container("counts", count)).await.unwrap();
        let ends = client
            .launch(
                &pod,
                &client.container("ends", "until [ -e /end ]; do sleep 0.01; done; echo over; exit 9"),
            )
            .await
            .unwrap();
        let before = client.status(&counts).await.unwrap();
        let address = client.pod_status(&pod).await.unwrap().network;
        // The command is running when the daemon dies, and is then no longer needed.
        let asked = client.clone();
        let of = ends.clone();
        let exec =
            tokio::spawn(async move { asked.exec(&of, "sleep 0.2; touch /end; sleep 1000", 60).await });
        let root = until("the command runs", async || process_with("sleep 0.2; touch /end")).await;
        world.daemon.kill();
        assert!(exec.await.unwrap().is_err());
        until("a command without a caller ends", async || (!is_alive(root)).then_some(())).await;

        let log = client.log_path("goes-on", "counts");
        let seen = logs::texts(&log).len();
        until("lines are logged without a daemon", async || {
            (logs::texts(&log).len() > seen + 10).then_some(())
        })
        .await;
        world.start_again().await;
        let client = &world.client;
        let after = client.status(&counts).await.unwrap();
        assert_eq!((after.state(), after.started_at), (ContainerState::ContainerRunning, before.started_at));
        assert_eq!(client.pod_status(&pod).await.unwrap().network, address);
        assert_eq!(client.output(&counts, "echo still here").await, "still here");
        client.exec(&ends, "touch /end", 10).await.unwrap();
        client.stop_container(&counts, 0).await.unwrap();
        let lines = logs::texts(&log);
        let expected: Vec<String> = (1..=lines.len()).map(|n| n.to_string()).collect();
        assert_eq!(lines, expected, "each line once and in order");
    });
}

#[test]
fn an_end_without_a_daemon_is_not_lost() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("unseen")).await.unwrap();
        let ends =
            client.launch(&pod, &client.container("ends", "sleep 0.3; echo over; exit 9")).await.unwrap();
        let killed = client.launch(&pod, &client.container("killed", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        let sleeper = until("the process is there", async || process_with("sleep 1000")).await;
        kill(Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
        let log = client.log_path("unseen", "ends");
        until("it ends", async || (!is_alive(sleeper) && logs::texts(&log) == ["over"]).then_some(())).await;
        world.start_again().await;
        let client = &world.client;
        let status = client.exited(&ends).await;
        assert_eq!((status.exit_code, &*status.reason), (9, "Error"));
        assert!(status.finished_at > status.started_at && status.started_at > 0);
        assert_eq!(client.exited(&killed).await.exit_code, 137);
        assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    });
}

#[test]
fn a_daemon_ends_though_someone_listens_for_events() {
    run(async |world| {
        let mut client = world.client.runtime.clone();
        let mut events = client.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let status = world.daemon.end().await;
        assert!(status.success(), "{status}");
        assert!(!matches!(events.message().await, Ok(Some(_))));
        world.start_again().await;
    });
}

/// To the kubelet, the newest container of a name is the one that counts.
#[test]
fn a_container_is_newer_than_those_of_a_daemon_whose_clock_was_ahead() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("ahead")).await.unwrap();
        let old = client.launch(&pod, &client.container("main", "exit 1")).await.unwrap();
        let ahead = client.exited(&old).await.created_at + 3_600_000_000_000;
        world.daemon.kill();
        set_creation_time(&world.dir.join("state/pods").join(&pod).join("containers").join(&old), ahead);
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.status(&old).await.unwrap().created_at, ahead);
        let mut next = client.container("main", "exit 2");
        next.metadata.as_mut().unwrap().attempt = 1;
        let next = client.launch(&pod, &next).await.unwrap();
        assert!(client.status(&next).await.unwrap().created_at > ahead);
    });
}

/// Changes the time in a container's record.
fn set_creation_time(record: &Path, created_at_ns: i64) {
    let file = fs::read(record).unwrap();
    let end = file.iter().position(|&byte| byte == b'\n').unwrap();
    let header = String::from_utf8(file[..end].to_vec()).unwrap();
    let mut content = file[end + 1..].to_vec();
    // The second field, as a number. If a message has a field twice, the last one counts.
    content.push(2 << 3);
    let mut rest = created_at_ns.unsigned_abs();
    while rest >= 0x80 {
        content.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    content.push(u8::try_from(rest).unwrap());
    let mut sum = flate2::Crc::new();
    sum.update(&content);
    let kind = header.rsplitn(3, ' ').last().unwrap();
    let header = format!("{kind} {} {:08x}\n", content.len(), sum.sum());
    fs::write(record, [header.into_bytes(), content].concat()).unwrap();
}

#[test]
fn a_dead_supervisor_is_seen_and_cleared_away() {
    run(async |world| {
        for daemon_too in [false, true] {
            let client = &world.client;
            let pod = client.run(&client.pod("orphaned")).await.unwrap();
            let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
            let supervisor = until("the supervisor is there", async || process_with(&pod)).await;
            if daemon_too {
                world.daemon.kill();
            }
            kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
            if daemon_too {
                world.start_again().await;
            }
            let client = &world.client;
            let status = client.exited(&id).await;
            assert_eq!((status.exit_code, &*status.reason), (255, "Unknown"));
            assert!(0 < status.started_at && status.started_at <= status.finished_at, "{status:?}");
            world.daemon.kill();
            world.start_again().await;
            let client = &world.client;
            let later = client.exited(&id).await;
            let [before, after] = [&status, &later].map(|status| (status.started_at, status.finished_at));
            assert_eq!(after, before, "it has ended once");
            until("its process is killed", async || process_with("sleep 1000").is_none().then_some(())).await;
            let error = client.create(&pod, &client.container("next", "true")).await.unwrap_err();
            assert!(matches!(error.code(), Code::FailedPrecondition | Code::Unavailable), "{error}");
            assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
            client.down(&pod).await.unwrap();
            world.is_clean().await;
        }
    });
}

/// Their makers will make them anew, and each must run once.
#[test]
fn pods_do_not_outlive_the_loss_of_their_records() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("lost")).await.unwrap();
        client.launch(&pod, &client.container("main", "sleep 1000 & exec sleep 1001")).await.unwrap();
        world.daemon.kill();
        for entry in fs::read_dir(world.dir.join("state")).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        world.start_again().await;
        assert!(world.daemon.has_logged("ended a pod whose directory somebody has removed"));
        for process in [pod.as_str(), "sleep 1000", "sleep 1001"] {
            until("it has ended", async || process_with(process).is_none().then_some(())).await;
        }
        world.is_clean().await;
    });
}

/// They may be used again as soon as it is.
#[test]
fn pods_outlive_a_daemon_whose_state_directory_is_not_mounted() {
    run(async |world| {
        let pod = world.client.run(&world.client.pod("hidden")).await.unwrap();
        let main = world.client.container("main", "echo kept >/file; sleep 1000");
        let id = world.client.launch(&pod, &main).await.unwrap();
        world.daemon.kill();
        let state = world.dir.join("state");
        mount(Some("state"), &state, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        world.start_again().await;
        assert!(world.client.pods().await.is_empty());
        assert!(world.daemon.has_logged("a pod runs whose directory exists, but not here"));
        world.daemon.kill();
        umount(&state).unwrap();
        world.start_again().await;
        let reach = "cat /file; ping -c 1 -W 8 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null && echo reached";
        assert_eq!(world.client.output(&id, reach).await, "kept\nreached");
    });
}

/// Nobody can reach it any more, so its pod has ended for everybody, and nothing of it may stay.
#[test]
fn a_supervisor_whose_socket_was_removed_ends_with_its_containers() {
    run(async |world| {
        let pod = world.client.run(&world.client.pod("cut off")).await.unwrap();
        let id = world.client.launch(&pod, &world.client.container("main", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        fs::remove_file(world.dir.join("state/pods").join(&pod).join("shim.sock")).unwrap();
        world.start_again().await;
        assert_eq!(world.client.exited(&id).await.reason, "Unknown");
        for said in ["because its socket has been removed", "a pod's supervisor is gone"] {
            assert!(world.daemon.has_logged(said), "{said}");
        }
        for process in [pod.as_str(), "sleep 1000"] {
            until("it has ended", async || process_with(process).is_none().then_some(())).await;
        }
    });
}

/// A guess would last, and restart policies depend on it.
#[test]
fn an_exit_that_the_disk_does_not_give_now_is_told_later() {
    run(async |world| {
        let pod = world.client.run(&world.client.pod("p")).await.unwrap();
        let id = world.client.launch(&pod, &world.client.container("main", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        let record = world.dir.join("state/pods").join(&pod).join("exits").join(&id);
        kill(Pid::from_raw(process_with("sleep 1000").unwrap()), Signal::SIGKILL).unwrap();
        until("its exit is on disk", async || record.exists().then_some(())).await;
        kill(Pid::from_raw(process_with(&pod).unwrap()), Signal::SIGKILL).unwrap();
        let aside = world.dir.join("exit");
        fs::rename(&record, &aside).unwrap();
        fs::create_dir(&record).unwrap();
        world.start_again().await;
        assert!(world.daemon.has_logged("trying again to read how"));
        let status = world.client.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning, "nobody knows how it has ended");
        fs::remove_dir(&record).unwrap();
        fs::rename(&aside, &record).unwrap();
        assert_eq!(world.client.exited(&id).await.exit_code, 137);
    });
}

/// It would have no end, and nobody could stop or remove it.
#[test]
fn an_exit_that_the_disk_never_gives_is_lost_once_somebody_stops_the_container() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        fs::create_dir(world.dir.join("state/pods").join(&pod).join("exits").join(&id)).unwrap();
        kill(Pid::from_raw(process_with(&pod).unwrap()), Signal::SIGKILL).unwrap();
        until("it is told", async || world.daemon.has_logged("trying again to read how").then_some(())).await;
        client.stop_container(&id, 0).await.unwrap();
        let status = client.exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        let removal = RemoveContainerRequest { container_id: id };
        client.runtime.clone().remove_container(removal).await.unwrap();
        client.down(&pod).await.unwrap();
    });
}

/// If systemd runs the daemon, its unit is a cgroup, which may be killed as a whole.
#[test]
fn a_supervisor_is_not_in_the_cgroup_of_the_daemon() {
    run(async |world| {
        let pod = world.client.run(&world.client.pod("apart")).await.unwrap();
        let supervisor = until("the supervisor is there", async || process_with(&pod)).await;
        let unified = |pid: &str| {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            cgroups
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .expect("cgroup v2 is mounted")
                .to_owned()
        };
        assert_eq!(unified(&supervisor.to_string()), "/wharf/supervisors");
        assert_ne!(unified(&world.daemon.pid().to_string()), "/wharf/supervisors");
    });
}

#[test]
fn a_pod_whose_supervisor_hangs_can_be_removed() {
    run(async |world| {
        let client = &world.client;
        let hangs = client.run(&client.pod("hangs")).await.unwrap();
        let id = client.launch(&hangs, &client.container("main", "sleep 1000")).await.unwrap();
        let supervisor = until("the supervisor is there", async || process_with(&hangs)).await;
        assert_eq!(fs::read_to_string(format!("/proc/{supervisor}/comm")).unwrap(), "wharf-shim\n");
        kill(Pid::from_raw(supervisor), Signal::SIGSTOP).unwrap();
        client.stop_container(&id, 1).await.unwrap();
        assert_eq!(client.exited(&id).await.reason, "Unknown");
        assert!(process_with("sleep 1000").is_none(), "it is killed");
        client.down(&hangs).await.unwrap();
    });
}

#[test]
fn a_damaged_record_costs_its_pod_and_no_other() {
    run(async |world| {
        let client = &world.client;
        let kept = client.run(&client.pod("kept")).await.unwrap();
        let mut config = client.pod("damaged");
        // As with the kubelet: the pod's cgroup is not wharf's own.
        config.linux.as_mut().unwrap().cgroup_parent = "/kube/pod".to_owned();
        let damaged = client.run(&config).await.unwrap();
        client.launch(&damaged, &client.container("main", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        fs::write(world.dir.join("state/pods").join(&damaged).join("record"), b"no record").unwrap();
        world.start_again().await;
        let ids: Vec<String> = world.client.pods().await.into_iter().map(|pod| pod.id).collect();
        assert_eq!(ids, [kept]);
        let are_gone = async || process_with("sleep 1000").is_none().then_some(());
        until("its processes are gone with it", are_gone).await;
        fs::remove_dir_all(world.dir.join("state/quarantine")).expect("the record was kept for a look at it");
    });
}

#[test]
fn a_pull_that_a_kill_cut_off_can_be_repeated() {
    run(async |world| {
        let layer = plain("file", &noise(100_000));
        let path = layer.path();
        let content = Content::oci("1", &[layer]);
        let (shown, stalled) = (content.clone(), path.clone());
        // The first request for the layer never gets a complete response.
        let server = Server::start(content, move |asked| {
            let first = asked.path() == stalled && asked.nth == 0;
            first.then(|| honest(&shown, asked).cut(50_000).then(Then::Stall))
        })
        .await;
        let name = format!("{}/app:1", server.address);
        let pull = tokio::spawn({
            let (client, name) = (world.client.clone(), name.clone());
            async move { client.pull(&name).await }
        });
        server.until(&path, 1).await;
        world.daemon.kill();
        assert!(pull.await.unwrap().is_err());
        world.start_again().await;
        assert_eq!(world.client.image_list().await.len(), 1);
        world.is_clean().await;
        world.client.pull(&name).await.unwrap();
        assert_eq!(world.client.image_list().await.len(), 2);
    });
}

/// Waits until one layer of a running pull has arrived completely.
async fn until_a_layer_is_whole(socket: &Path) {
    let mut admin = AdminClient::new(connect(socket).await.unwrap());
    let mut progress = admin.pull_progress(PullProgressRequest::default()).await.unwrap().into_inner();
    loop {
        let told = progress.message().await.unwrap().expect("the progress of pulls has no end");
        let mut layers = told.pulls.iter().flat_map(|pull| &pull.layers);
        if layers.any(|layer| layer.phase() == Phase::Done) {
            return;
        }
    }
}

#[test]
fn a_kill_in_the_middle_of_a_pull_costs_no_layer_that_had_come() {
    run(async |world| {
        let (whole, stalled) = (plain("whole", &noise(100_000)), plain("stalled", &noise(50_000)));
        let content = Content::oci("1", &[whole.clone(), stalled.clone()]);
        let (shown, path) = (content.clone(), stalled.path());
        let server = Server::start(content, move |asked| {
            let first = asked.path() == path && asked.nth == 0;
            first.then(|| honest(&shown, asked).cut(10_000).then(Then::Stall))
        })
        .await;
        let name = format!("{}/app:1", server.address);
        let pull = tokio::spawn({
            let (client, name) = (world.client.clone(), name.clone());
            async move { client.pull(&name).await }
        });
        until_a_layer_is_whole(&world.daemon.socket()).await;
        world.daemon.kill();
        assert!(pull.await.unwrap().is_err());
        world.start_again().await;
        world.client.pull(&name).await.unwrap();
        assert_eq!((server.count(&whole.path()), server.count(&stalled.path())), (1, 2));
    });
}

#[test]
fn supervisors_that_are_killed_take_nothing_but_their_pod_along() {
    run(async |world| {
        let client = &world.client;
        let other = client.run(&client.pod("other")).await.unwrap();
        let untouched = client.launch(&other, &client.container("main", "sleep 1001")).await.unwrap();
        for round in 0..8 {
            let pod = client.run(&client.pod(&format!("doomed-{round}"))).await.unwrap();
            let supervisor = until("the supervisor is there", async || process_with(&pod)).await;
            let work = async {
                for number in 0.. {
                    let container = client.container(&format!("c{number}"), "sleep 1002");
                    let id = client.launch(&pod, &container).await?;
                    client.exec(&id, "true", 5).await?;
                }
                Ok(())
            };
            let killed = async {
                tokio::time::sleep(Duration::from_millis(15 * round)).await;
                kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
            };
            let (worked, ()) = tokio::join!(work, killed);
            let error: tonic::Status = worked.unwrap_err();
            assert!(matches!(error.code(), Code::Unavailable | Code::FailedPrecondition), "{error}");
            client.down(&pod).await.unwrap();
            assert!(process_with("sleep 1002").is_none());
        }
        assert_eq!(client.output(&untouched, "echo fine").await, "fine");
        client.down(&other).await.unwrap();
        world.is_clean().await;
    });
}

#[test]
fn after_a_reboot_there_are_images_and_no_pods() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("before")).await.unwrap();
        client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        let state = world.dir.join("state");
        for process in [process_with(&pod), process_with("sleep 1000")] {
            kill(Pid::from_raw(process.unwrap()), Signal::SIGKILL).unwrap();
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for point in table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| Path::new(at).starts_with(&state))
        {
            nix::mount::umount(point).unwrap();
        }
        fs::remove_dir_all(&state).unwrap();
        remove_cgroups("wharf");
        world.start_again().await;
        let client = &world.client;
        assert_eq!((client.pods().await, client.image_list().await.len()), (vec![], 1));
        world.is_clean().await;
        let again = client.run(&client.pod("before")).await.unwrap();
        assert_eq!(client.to_end(&again, "main", "exit 0").await.exit_code, 0);
    });
}

/// Removes a cgroup and everything below it from every hierarchy.
fn remove_cgroups(name: &str) {
    fn remove(directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                remove(&entry.path());
            }
        }
        // A cgroup whose last process is still a zombie can be removed a moment later.
        for _ in 0..1000 {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => std::thread::yield_now(),
                _ => return,
            }
        }
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        remove(&hierarchy.path().join(name));
    }
    remove(&Path::new("/sys/fs/cgroup").join(name));
}

/// What is on disk for a pod with one running and one exited container.
const DAMAGED: [&str; 8] = [
    "state/pods/POD/record",
    "state/pods/POD/containers/MAIN",
    "state/pods/POD/containers/ENDED",
    "state/pods/POD/exits/ENDED",
    "FILES/hostname",
    "FILES/hosts",
    "FILES/resolv.conf",
    "state/leases/POD",
];

/// Where people find the files that a pod's containers share, taken from a container's runtime spec.
fn pods_files(dir: &Path, (pod, container): (&str, &str)) -> String {
    let spec = dir.join(format!("state/pods/{pod}/containers/{container}.json"));
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(spec).unwrap()).unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let hosts = mounts.iter().find(|mount| mount["destination"] == "/etc/hosts").unwrap();
    hosts["source"].as_str().unwrap().strip_suffix("/hosts").unwrap().to_owned()
}

#[test]
fn a_daemon_starts_whatever_file_is_damaged() {
    run(async |world| {
        let client = &world.client;
        let whole = client.run(&client.pod("whole")).await.unwrap();
        let runs = client.launch(&whole, &client.container("main", "sleep 1001")).await.unwrap();
        for file in DAMAGED {
            let client = &world.client;
            let pod = client.run(&client.pod("damaged")).await.unwrap();
            let main = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
            let ended = client.launch(&pod, &client.container("ended", "exit 3")).await.unwrap();
            client.exited(&ended).await;
            world.daemon.kill();
            let files = pods_files(&world.dir, (&pod, &main));
            let path = file.replace("POD", &pod).replace("MAIN", &main).replace("ENDED", &ended);
            let path = path.replace("FILES", &files);
            let damaged = fs::File::options().write(true).open(world.dir.join(&path)).expect(&path);
            damaged.set_len(damaged.metadata().unwrap().len() / 2).unwrap();
            world.start_again().await;
            let client = &world.client;
            assert_eq!(client.output(&runs, "echo fine").await, "fine", "{path}");
            client.down(&pod).await.unwrap();
            assert!(process_with("sleep 1000").is_none(), "{path}");
        }
        // What is in quarantine is for a person to inspect and to remove.
        fs::remove_dir_all(world.dir.join("state/quarantine")).unwrap();
    });
}
