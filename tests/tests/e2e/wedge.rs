//! Supervisors that are stopped, disconnected or unkillable: they affect nobody else, and their own containers only as
//! far as calls for them are concerned.

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::Code;
use wharf_cri_api::v1::{ContainerState, LinuxContainerResources, Mount, PodSandboxState, VersionRequest};

use crate::client::Client;
use crate::daemon::{Daemon, is_alive, process_with};
use crate::world::{World, run, until};

/// A pod's supervisor.
pub(crate) struct Supervisor(Pid);

impl Supervisor {
    pub(crate) async fn of(pod: &str) -> Self {
        Self(Pid::from_raw(until("the supervisor is there", async || process_with(pod)).await))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.as_raw()
    }

    pub(crate) fn stop(&self) {
        kill(self.0, Signal::SIGSTOP).unwrap();
    }

    pub(crate) fn go_on(&self) {
        kill(self.0, Signal::SIGCONT).unwrap();
    }
}

#[test]
fn execs_that_wait_for_a_stopped_supervisor_hold_up_nobody_else() {
    run(async |world| {
        let client = &world.client;
        let stuck = client.run(&client.pod("stuck")).await.unwrap();
        let waits = client.launch(&stuck, &client.container("main", "sleep 1000")).await.unwrap();
        let other = client.run(&client.pod("other")).await.unwrap();
        let runs = client.launch(&other, &client.container("main", "sleep 1001")).await.unwrap();
        let supervisor = Supervisor::of(&stuck).await;
        supervisor.stop();
        let over = AtomicUsize::new(0);
        let execs = join_all((0..200).map(async |_| {
            let error = client.exec(&waits, "true", 1).await.unwrap_err();
            over.fetch_add(1, Ordering::Relaxed);
            error.code()
        }));
        let others = async {
            let version = VersionRequest::default();
            client.runtime.clone().version(version).await.unwrap();
            assert_eq!(client.output(&runs, "echo fine").await, "fine");
            assert_eq!(over.load(Ordering::Relaxed), 0, "answered while all of them wait");
        };
        let (codes, ()) = tokio::join!(execs, others);
        // The kubelet would take DeadlineExceeded for a failed probe, and restart a healthy container.
        assert!(codes.iter().all(|code| *code == Code::Unavailable), "{codes:?}");
        supervisor.go_on();
        assert_eq!(client.output(&waits, "echo still").await, "still");
    });
}

#[test]
fn a_stop_of_one_container_of_a_stopped_supervisor_spares_the_others() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("stuck")).await.unwrap();
        let spared = client.launch(&pod, &client.container("spared", "sleep 1001")).await.unwrap();
        let ended = client.launch(&pod, &client.container("ended", "sleep 1000")).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        client.stop_container(&ended, 1).await.unwrap();
        assert_eq!(client.exited(&ended).await.reason, "Unknown", "nobody saw its end yet");
        assert!(process_with("sleep 1000").is_none() && process_with("sleep 1001").is_some());
        let status = client.status(&spared).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
        // An exited container can be removed without the supervisor's help; the supervisor forgets it later.
        let error = client.create(&pod, &client.container("waits", "true")).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        for timeout_s in [1, 60] {
            let error = client.exec(&spared, "true", timeout_s).await.unwrap_err();
            assert_eq!(error.code(), Code::Unavailable, "{error}");
        }
        client.remove_container(&ended).await.unwrap();
        supervisor.go_on();
        assert_eq!(client.output(&spared, "echo fine").await, "fine");
        let record = world.dir.join("state/pods").join(&pod).join("exits").join(&ended);
        until("no exit record of it is left", async || (!record.exists()).then_some(())).await;
        client.down(&pod).await.unwrap();
        world.is_clean().await;
    });
}

/// The caller was told that it failed, and may have made another one since.
#[test]
fn what_was_given_up_is_not_done_later() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("stuck")).await.unwrap();
        let runs = client.launch(&pod, &client.container("runs", "sleep 1000")).await.unwrap();
        let made = client.create(&pod, &client.container("made", "sleep 1001")).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        let (start, create, exec) = tokio::join!(
            client.start(&made),
            async { client.create(&pod, &client.container("late", "true")).await.unwrap_err() },
            async { client.exec(&runs, "touch /late", 60).await.unwrap_err() }
        );
        let codes = [start.unwrap_err().code(), create.code(), exec.code()];
        assert_eq!(codes, [Code::Unavailable; 3]);
        supervisor.go_on();
        // It handles requests in order: when this one is answered, those before it have been carried out or refused.
        let files = client.output(&runs, "ls /late 2>&1; true").await;
        assert!(files.contains("No such file"), "{files}");
        assert_eq!(client.status(&made).await.unwrap().state(), ContainerState::ContainerCreated);
        assert!(process_with("sleep 1001").is_none());
        client.start(&made).await.unwrap();
        assert_eq!(client.output(&made, "echo begun").await, "begun");
        client.down(&pod).await.unwrap();
        world.is_clean().await;
    });
}

#[test]
fn an_end_that_is_told_late_is_told_in_full() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("late")).await.unwrap();
        let script = "trap 'exit 7' TERM; while :; do sleep 0.01; done";
        let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        client.stop_container(&id, 0).await.unwrap();
        assert_eq!(client.exited(&id).await.reason, "Unknown");
        supervisor.go_on();
        let told = until("its supervisor tells of the end", async || {
            let status = client.status(&id).await.unwrap();
            (status.reason != "Unknown").then_some(status)
        })
        .await;
        assert_eq!((told.exit_code, &*told.reason), (137, "Error"));
    });
}

#[test]
fn a_stopped_supervisor_is_waited_for_by_the_next_daemon() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("stuck")).await.unwrap();
        let runs = client.launch(&pod, &client.container("runs", "sleep 1000")).await.unwrap();
        let made = client.create(&pod, &client.container("made", "sleep 1001")).await.unwrap();
        let before = client.status(&runs).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
        assert_eq!(client.status(&runs).await.unwrap().state(), ContainerState::ContainerRunning);
        let other = client.run(&client.pod("other")).await.unwrap();
        assert_eq!(client.to_end(&other, "main", "exit 3").await.exit_code, 3);
        supervisor.go_on();
        until("the supervisor has told what it holds", async || {
            let status = client.status(&made).await.unwrap();
            (status.state() == ContainerState::ContainerCreated).then_some(())
        })
        .await;
        assert_eq!(client.status(&runs).await.unwrap(), before);
        assert_eq!(client.output(&runs, "echo still").await, "still");
        client.start(&made).await.unwrap();
        assert_eq!(client.output(&made, "echo begun").await, "begun");
    });
}

/// While a supervisor is silent, its containers are listed as running, and nobody is told more than that.
#[test]
fn what_only_a_silent_supervisor_knows_is_not_answered() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("silent")).await.unwrap();
        let made = client.create(&pod, &client.container("made", "sleep 1000")).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.status(&made).await.unwrap().state(), ContainerState::ContainerRunning);
        let limits = LinuxContainerResources { cpu_shares: 100, ..LinuxContainerResources::default() };
        let (start, update, exec, create) = tokio::join!(
            client.start(&made),
            client.update(&made, limits),
            client.exec(&made, "true", 1),
            async { client.create(&pod, &client.container("made", "sleep 1000")).await }
        );
        let errors = [start.unwrap_err(), update.unwrap_err(), exec.unwrap_err(), create.unwrap_err()];
        assert_eq!(errors.map(|error| error.code()), [Code::Unavailable; 4]);
        supervisor.go_on();
        let started = until("it is started", async || client.start(&made).await.ok());
        started.await;
        assert_eq!(client.output(&made, "echo begun").await, "begun");
        assert_eq!(client.create(&pod, &client.container("made", "sleep 1000")).await.unwrap(), made);
    });
}

#[test]
fn a_container_that_nobody_was_told_of_is_not_handed_out_by_the_next_daemon() {
    killed_after(Duration::ZERO);
}

/// Now its request has reached the supervisor, which carries it out.
#[test]
fn a_container_that_was_made_after_its_daemon_died_is_not_handed_out_by_the_next_one() {
    killed_after(Duration::from_millis(500));
}

/// The daemon is killed so long after the creation of a container begins, in the pod of a supervisor that is stopped.
fn killed_after(delay: Duration) {
    run(async |world| {
        let client = world.client.clone();
        let pod = client.run(&client.pod("half")).await.unwrap();
        let config = client.container("main", "sleep 1000");
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        let records = world.dir.join("state/pods").join(&pod).join("containers");
        let half = async {
            let half = until("it is begun", async || fs::read_dir(&records).unwrap().next()).await;
            tokio::time::sleep(delay).await;
            world.daemon.kill();
            half.unwrap().path()
        };
        let (cut_off, half) = tokio::join!(client.create(&pod, &config), half);
        cut_off.unwrap_err();
        world.start_again().await;
        let client = &world.client;
        let error = client.create(&pod, &config).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        supervisor.go_on();
        let id = until("it is made anew", async || client.create(&pod, &config).await.ok()).await;
        assert_ne!(half.file_name().unwrap().to_str().unwrap().get(..id.len()), Some(&*id));
        client.start(&id).await.unwrap();
        assert_eq!(client.output(&id, "echo begun").await, "begun");
        until("the half is gone", async || (client.containers().await.len() == 1).then_some(())).await;
    });
}

/// The next daemon does not know yet whether it runs.
#[test]
fn a_stop_waits_for_a_silent_supervisor_as_long_as_the_program_may_take() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("silent")).await.unwrap();
        let script = "trap 'exit 7' TERM; while :; do sleep 0.01; done";
        let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        let (stopped, ()) = tokio::join!(client.stop_container(&id, 60), async {
            // Calls on one connection are handled in order.
            client.runtime.clone().version(VersionRequest::default()).await.unwrap();
            supervisor.go_on();
        });
        stopped.unwrap();
        assert_eq!(client.exited(&id).await.exit_code, 7);
    });
}

#[test]
fn a_supervisor_that_never_answers_ends_with_its_pod() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("stuck")).await.unwrap();
        client.launch(&pod, &client.container("runs", "sleep 1000")).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        world.daemon.kill();
        world.start_again().await;
        assert!(is_alive(supervisor.0.as_raw()) && process_with("sleep 1000").is_some());
        world.client.down(&pod).await.unwrap();
        assert!(!is_alive(supervisor.0.as_raw()) && process_with("sleep 1000").is_none());
        world.is_clean().await;
    });
}

/// Connects as a new daemon would: the supervisor turns to it, and the old connection ends.
pub(crate) fn cut_off(world: &World, pod: &str) -> OwnedFd {
    // Through a short path, because an address holds only 107 bytes.
    let directory = fs::File::open(world.dir.join("state/pods").join(pod)).unwrap();
    let address =
        UnixAddr::new(Path::new(&format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd()))).unwrap();
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    connect(socket.as_raw_fd(), &address).unwrap();
    socket
}

#[test]
fn a_link_that_breaks_is_made_anew() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("cut-off")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        for round in 0..5 {
            let short = client.launch(&pod, &client.container(&format!("short-{round}"), "exit 5")).await;
            let cut = cut_off(world, &pod);
            until("commands are executed again", async || client.exec(&id, "true", 10).await.ok()).await;
            drop(cut);
            let status = client.exited(&short.unwrap()).await;
            assert_eq!((status.exit_code, &*status.reason), (5, "Error"));
            assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
        }
        assert!(is_alive(supervisor.0.as_raw()));
        client.down(&pod).await.unwrap();
    });
}

/// A cgroup in v1's freezer, which keeps its processes even from dying.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn new(pid: Pid) -> Self {
        let directory = Path::new("/sys/fs/cgroup/freezer/stuck").to_owned();
        fs::create_dir(&directory).expect("this test needs the freezer of cgroup v1");
        let frozen = Self(directory);
        fs::write(frozen.0.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(frozen.0.join("freezer.state"), "FROZEN").unwrap();
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        fs::write(self.0.join("freezer.state"), "THAWED").ok();
    }
}

#[test]
fn a_supervisor_that_cannot_die_makes_a_stop_fail_in_time() {
    run(async |world| {
        let client = &world.client;
        let stuck = client.run(&client.pod("stuck")).await.unwrap();
        let supervisor = Supervisor::of(&stuck).await;
        let frozen = Frozen::new(supervisor.0);
        // More than one attempt: none may hold what the next one needs.
        for _attempt in 0..2 {
            let error = client.stop(&stuck).await.unwrap_err();
            assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        }
        let other = client.run(&client.pod("other")).await.unwrap();
        client.down(&other).await.unwrap();
        let directory = frozen.0.clone();
        drop(frozen);
        client.down(&stuck).await.unwrap();
        fs::remove_dir(directory).unwrap();
        world.is_clean().await;
    });
}

/// A file system whose server never responds, until this is dropped.
struct Unresponsive {
    _server: OwnedFd,
    place: PathBuf,
}

impl Unresponsive {
    fn mount(place: PathBuf) -> Self {
        fs::create_dir(&place).unwrap();
        let server: OwnedFd = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap().into();
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0", server.as_raw_fd());
        let none = MsFlags::empty();
        nix::mount::mount(Some("silent"), &place, Some("fuse"), none, Some(&*options)).unwrap();
        Self { _server: server, place }
    }
}

impl Drop for Unresponsive {
    fn drop(&mut self) {
        // Whoever waits gets an error when the server is gone, too.
        nix::mount::umount2(&self.place, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn directories_of_the_host_that_do_not_respond_hold_up_only_who_mounts_them() {
    /// More than the threads of the pool.
    const STUCK: usize = 90;
    run(async |world| {
        let client = &world.client;
        let healthy = client.run(&client.pod("healthy")).await.unwrap();
        let runs = client.launch(&healthy, &client.container("main", "sleep 1000")).await.unwrap();
        let pods = join_all(
            (0..STUCK).map(async |number| client.run(&client.pod(&format!("stuck-{number}"))).await.unwrap()),
        );
        let pods = pods.await;
        let silent = Unresponsive::mount(world.dir.join("silent"));
        let mut config = client.container("main", "sleep 1000");
        let host_path = silent.place.join("x").to_str().unwrap().to_owned();
        config.mounts.push(Mount { host_path, container_path: "/x".into(), ..Mount::default() });
        let creations = join_all(pods.iter().map(|pod| client.create(pod, &config)));
        let others = async {
            let threads = || fs::read_dir(format!("/proc/{}/task", world.daemon.pid())).unwrap().count();
            until("all of them wait", async || (threads() > STUCK).then_some(())).await;
            client.container_stats(&runs).await;
            let next = client.run(&client.pod("next")).await.unwrap();
            client.launch(&next, &client.container("main", "sleep 1001")).await.unwrap();
            client.stop_container(&runs, 0).await.unwrap();
            client.down(&next).await.unwrap();
        };
        let mut creations = std::pin::pin!(creations);
        tokio::select! {
            answers = &mut creations => panic!("{answers:?}"),
            () = others => {}
        }
        drop(silent);
        for error in creations.await {
            assert!(error.unwrap_err().message().contains("silent"));
        }
        fs::remove_dir(world.dir.join("silent")).unwrap();
    });
}

/// A pod with a container that runs, and the creation of another one that waits for a directory of the host.
async fn waiting_creation(client: &Client, daemon: &Daemon, silent: &Unresponsive) -> Waiting {
    let pod = client.run(&client.pod("waits")).await.unwrap();
    let runs = client.launch(&pod, &client.container("runs", "sleep 1000")).await.unwrap();
    let mut config = client.container("waits", "sleep 1001");
    let host_path = silent.place.join("x").to_str().unwrap().to_owned();
    config.mounts.push(Mount { host_path, container_path: "/x".into(), ..Mount::default() });
    let (asking, of) = (client.clone(), pod.clone());
    let creation = tokio::spawn(async move { asking.create(&of, &config).await });
    until("a thread of the daemon waits", async || daemon.has_stuck_thread().then_some(())).await;
    Waiting { pod, runs, creation }
}

struct Waiting {
    pod: String,
    runs: String,
    creation: tokio::task::JoinHandle<Result<String, tonic::Status>>,
}

#[test]
fn a_container_whose_creation_is_stuck_keeps_no_other_one_of_its_pod_running() {
    run(async |world| {
        let client = &world.client;
        let silent = Unresponsive::mount(world.dir.join("silent"));
        let Waiting { pod, runs, creation } = waiting_creation(client, &world.daemon, &silent).await;
        let sibling = client.launch(&pod, &client.container("sibling", "sleep 1003")).await.unwrap();
        assert_eq!(client.output(&sibling, "echo runs").await, "runs");
        for _again in 0..2 {
            client.stop(&pod).await.unwrap();
            assert_eq!(client.status(&runs).await.unwrap().state(), ContainerState::ContainerExited);
            assert!(
                client.pod_status(&pod).await.unwrap().network.is_none_or(|network| network.ip.is_empty())
            );
        }
        assert!(process_with("sleep 1000").is_none() && process_with(&pod).is_none());
        let refused = client.create(&pod, &client.container("next", "sleep 1002")).await.unwrap_err();
        assert!(refused.code() == Code::FailedPrecondition && !creation.is_finished(), "{refused}");
        let stuck = client.remove(&pod).await.unwrap_err();
        assert!(stuck.code() == Code::Unavailable && stuck.message().contains("still being made"), "{stuck}");
        drop(silent);
        creation.await.unwrap().unwrap_err();
        assert_eq!(client.containers().await.len(), 2, "what came back late was undone");
        client.down(&pod).await.unwrap();
        fs::remove_dir(world.dir.join("silent")).unwrap();
        world.is_clean().await;
    });
}

#[test]
fn a_daemon_ends_though_a_directory_of_the_host_does_not_respond() {
    run(async |world| {
        let silent = Unresponsive::mount(world.dir.join("silent"));
        let waiting = waiting_creation(&world.client, &world.daemon, &silent).await;
        let status = world.daemon.end().await;
        assert!(status.success(), "{status}");
        waiting.creation.await.unwrap().unwrap_err();
        drop(silent);
        world.start_again().await;
        assert_eq!(world.client.output(&waiting.runs, "echo still").await, "still");
        fs::remove_dir(world.dir.join("silent")).unwrap();
    });
}
