//! Disks and daemons that are slow, full or stopped: nobody else waits, and nothing that was promised is lost.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_cri_api::v1::{
    ContainerState, ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest, NamespaceMode, StatusRequest,
};

use crate::client::{Client, pod_security, security};
use crate::daemon::process_with;
use crate::logs;
use crate::paused::processes_of;
use crate::people;
use crate::place::{self, command};
use crate::world::{World, run, run_on, until};

/// How many commands exit while the daemon is stopped: more than the kernel queues messages for.
const COMMANDS: usize = 400;

#[test]
fn a_daemon_that_is_stopped_for_a_while_loses_no_container_and_no_answer() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("overflow")).await.unwrap();
        let id =
            client.launch(&pod, &client.container("main", "mkfifo /gate; exec sleep 1000")).await.unwrap();
        let other = client.launch(&pod, &client.container("other", "sleep 1001")).await.unwrap();
        let first = until("it runs", async || process_with("sleep 1000")).await;
        let exec =
            |client: Client, id: String| async move { client.exec(&id, "read x </gate; exit 3", 100).await };
        let commands: Vec<_> =
            (0..COMMANDS).map(|_| tokio::spawn(exec(client.clone(), id.clone()))).collect();
        let all = async || (processes_of(&id) == COMMANDS + 1).then_some(());
        until("every command waits at the gate", all).await;
        world.daemon.stop();
        // Whoever waits at the gate sees it open and close.
        let mut gate = fs::File::options();
        gate.write(true).custom_flags(nix::libc::O_NONBLOCK);
        until("every command ends", async || {
            // Without a reader this is an error.
            gate.open(format!("/proc/{first}/root/gate")).ok();
            (processes_of(&id) == 1).then_some(())
        })
        .await;
        world.daemon.go_on();
        for command in commands {
            assert_eq!(command.await.unwrap().unwrap().exit_code, 3);
        }
        assert_eq!(client.output(&id, "echo still").await, "still");
        assert_eq!(client.output(&other, "echo still").await, "still");
    });
}

/// A file system that stalls until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn freeze(path: &Path) -> Self {
        fsfreeze("--freeze", path);
        Self(path.to_owned())
    }
}

impl Drop for Frozen {
    /// Whatever fails, no process is left behind that nobody can kill.
    fn drop(&mut self) {
        fsfreeze("--unfreeze", &self.0);
    }
}

fn fsfreeze(how: &str, path: &Path) {
    let output = command(Path::new("fsfreeze")).arg(how).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_disk_of_logs_that_stalls_stops_nobody() {
    run_on(ext4_for_logs, async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("frozen")).await.unwrap();
        let count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.005; done";
        let counts = client.launch(&pod, &client.container("counts", count)).await.unwrap();
        let quiet = client.launch(&pod, &client.container("quiet", "sleep 1000")).await.unwrap();
        let log = client.log_path("frozen", "counts");
        until("lines are logged", async || (logs::texts(&log).len() > 5).then_some(())).await;
        let frozen = Frozen::freeze(&world.dir.join("logs"));
        until("a write to the log stalls", async || stalled_writer().then_some(())).await;
        assert_eq!(client.output(&counts, "echo fine").await, "fine");

        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        for id in [&counts, &quiet] {
            assert_eq!(client.status(id).await.unwrap().state(), ContainerState::ContainerRunning);
        }
        assert_eq!(client.output(&counts, "echo fine").await, "fine");
        client.stop_container(&quiet, 0).await.unwrap();
        assert_eq!(client.exited(&quiet).await.exit_code, 137);
        assert_eq!(client.output(&counts, "echo fine").await, "fine");
        client.stop_container(&counts, 0).await.unwrap();
        assert_eq!(client.exited(&counts).await.exit_code, 137);

        let before = last_size(&log);
        drop(frozen);
        until("what waited is logged", async || (last_size(&log) > before).then_some(())).await;
        let complete = async || {
            let lines = logs::texts(&log);
            let expected: Vec<String> = (1..=lines.len()).map(|number| number.to_string()).collect();
            assert_eq!(lines, expected, "each line once and in order");
            Some(())
        };
        until("the log is whole", complete).await;
    });
}

#[test]
fn an_end_is_explained_without_its_log_if_the_disk_of_that_stalls() {
    run_on(ext4_for_logs, async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("why")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "echo bye; exit 3")).await.unwrap();
        client.exited(&id).await;
        let frozen = Frozen::freeze(&world.dir.join("logs"));
        let told = people::printed(world, "explain why");
        for words in ["with exit code 3", "its log's disk does not respond", "STAGE"] {
            assert!(told.contains(words) && !told.contains("bye"), "{words:?} in {told}");
        }
        drop(frozen);
    });
}

#[test]
fn people_are_told_of_a_disk_of_logs_that_stalls_and_need_not_wait_for_it() {
    let logs = Path::new("/var/log");
    run_on(
        |dir| ext4_at(dir, logs),
        async |world| {
            world.daemon.end().await;
            fs::create_dir_all("/var/log/wharf/web-1").unwrap();
            let frozen = Frozen::freeze(logs);
            world.start_again().await;
            let told = world.dir.join("told");
            let has_told = |words: &str| fs::read_to_string(&told).unwrap().contains(words).then_some(());
            let tell = || fs::File::create(&told).unwrap();
            let mut doctor = people::command(world, "doctor").stdout(tell()).spawn().unwrap();
            until("the doctor ends", async || doctor.try_wait().unwrap()).await;
            has_told("/var/log does not respond").unwrap();

            world.daemon.end().await;
            let clean = async || {
                let file = tell();
                let mut clean = command(&place::built().wharfd);
                clean.arg("--config").arg(world.dir.join("config.toml")).arg("clean");
                let mut clean = clean.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
                until("it ends", async || clean.try_wait().unwrap()).await
            };
            assert!(clean().await.success(), "it ends, and has removed what it can know of");
            has_told("removed everything").unwrap();
            has_told("logs in /var/log/wharf, if there are any, stay: their disk does not respond").unwrap();
            drop(frozen);
            assert!(clean().await.success() && !Path::new("/var/log/wharf").exists());
            world.start_again().await;
        },
    );
}

#[test]
fn pods_can_be_ended_beside_a_daemon_that_was_killed_and_waits_for_its_disk() {
    can_be_ended_beside("root", |_pid| "it does not respond: check its disk".to_owned());
}

#[test]
fn a_data_root_that_a_killed_daemon_keeps_is_done_without() {
    can_be_ended_beside("root/snapshots", |pid| format!("wharfd (pid {pid}) was killed or told to exit"));
}

/// The daemon keeps its claims, its store and its connections as long as the disk at this place stalls.
fn can_be_ended_beside(place: &str, why: impl FnOnce(u32) -> String) {
    let prepare = |dir: &Path| {
        fs::create_dir_all(dir.join(place)).unwrap();
        // By this wharf knows its data root.
        fs::write(dir.join("root/lock"), "").unwrap();
        ext4_at(dir, &dir.join(place));
    };
    run_on(prepare, async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        client.launch(&pod, &client.container("c", "sleep 1000 & exec sleep 1001")).await.unwrap();
        let frozen = Frozen::freeze(&world.dir.join(place));
        let (other, into, late) = (client.clone(), pod.clone(), client.container("late", "sleep 1002"));
        let stuck = tokio::spawn(async move { other.create(&into, &late).await });
        until("a thread waits for the disk", async || world.daemon.has_stuck_thread().then_some(())).await;
        let pid = world.daemon.pid();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        until("its first thread has ended", async || stat().contains(") Z ").then_some(())).await;
        stuck.abort();
        // It waits until the other one might have ended.
        let next = start_wharfd(world, &[]);
        let doctor = people::command(world, "doctor").output().unwrap();
        let told = String::from_utf8_lossy(&doctor.stdout);
        let can_continue = told.contains(&format!("-CONT {pid}"));
        assert!(told.contains("was killed or told to exit, but cannot end") && !can_continue, "{told}");
        let (success, told) = outcome(next);
        assert!(!success && told.contains(&format!("wharfd (pid {pid}) was killed")), "{told}");
        let begin = Instant::now();
        let (success, told) = outcome(start_wharfd(world, &["clean", "--force"]));
        assert!(begin.elapsed() < Duration::from_secs(20), "it waits for what it passes over: {told}");
        assert!(!success && told.contains("everything else is removed"), "{told}");
        assert!(told.contains(&format!("which cannot be used: {}", why(pid))), "{told}");
        for untrue in ["stop that one first", "cannot be recorded", "clean --force"] {
            assert!(!told.contains(untrue), "{told}");
        }
        for process in [pod.as_str(), "sleep 1000", "sleep 1001"] {
            assert!(process_with(process).is_none(), "{process}");
        }
        assert!(!world.dir.join("state").exists());
        drop(frozen);
        world.daemon.end().await;
        world.start_again().await;
    });
}

#[test]
fn a_disk_that_stalls_is_told_by_all_commands_and_keeps_one_process() {
    run_on(ext4_for_root, async |world| {
        world.daemon.end().await;
        let frozen = Frozen::freeze(&world.dir.join("root"));
        for (words, told_of) in [
            (&["config", "check"][..], "does not respond"),
            (&["clean"], "wait until its disk responds, or use --force"),
        ] {
            let (success, told) = outcome(start_wharfd(world, words));
            assert!(!success && told.contains(told_of), "{words:?}: {told}");
            assert_eq!(touches(), 1, "{words:?}");
        }
        let (success, told) = outcome(start_wharfd(world, &["config", "dump"]));
        assert!(success, "it needs no disk: {told}");
        drop(frozen);
        world.start_again().await;
    });
}

/// Nothing can be done without it: what it has of pods, nobody else knows.
#[test]
fn a_state_that_stalls_is_not_waited_for_not_even_by_force() {
    run_on(ext4_for_state, async |world| {
        world.daemon.end().await;
        let frozen = Frozen::freeze(&world.dir.join("state"));
        for words in [&["clean"][..], &["clean", "--force"], &["clean"]] {
            let mut clean = start_wharfd(world, words);
            until("it ends", async || clean.try_wait().unwrap()).await;
            let (success, told) = outcome(clean);
            let says = told
                .contains("state/pods, which says what pods there are, does not respond: check its disk")
                && told.contains("if it has failed, a restart of the machine ends the pods");
            assert!(!success && says, "{words:?}: {told}");
            assert_eq!(touches(), 1, "{words:?}");
        }
        drop(frozen);
        world.start_again().await;
    });
}

#[test]
fn a_pod_is_removed_though_the_disk_of_its_logs_stalls() {
    let logs = Path::new("/var/log");
    run_on(
        |dir| ext4_at(dir, logs),
        async |world| {
            for name in ["web", "db", "late"] {
                people::printed(world, &format!("run -d --name {name} IMAGE sleep 1000"));
            }
            let frozen = Frozen::freeze(logs);
            for names in ["web db", "late"] {
                let mut rm = people::command(world, &format!("rm --force {names}"));
                let mut rm = rm.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
                until("it ends", async || rm.try_wait().unwrap()).await;
                let (success, told) = outcome(rm);
                let stays = "the pod is removed; its logs in /var/log/wharf/";
                let count = names.split(' ').count();
                assert!(success && told.matches(stays).count() == count, "{told}");
                assert_eq!(touches(), 1);
            }
            assert!(world.client.pods().await.is_empty());
            drop(frozen);
            fs::remove_dir_all("/var/log/wharf").unwrap();
        },
    );
}

#[test]
fn a_daemon_that_was_told_to_exit_and_waits_for_its_disk_is_told_from_none() {
    run_on(ext4_for_root, async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        let frozen = Frozen::freeze(&world.dir.join("root"));
        let (other, late) = (client.clone(), client.container("late", "sleep 1002"));
        let stuck = tokio::spawn(async move { other.create(&pod, &late).await });
        until("a thread waits for the disk", async || world.daemon.has_stuck_thread().then_some(())).await;
        world.daemon.ask_to_exit();
        let pid = world.daemon.pid();
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        until("its first thread has ended", async || stat().contains(") Z ").then_some(())).await;
        stuck.abort();
        let (_, told) = people::refused(world, "ps");
        let says = told.contains(&format!("wharfd (pid {pid}) does not respond"))
            && told.contains("killed or told to exit, but cannot end before its disk responds");
        assert!(says, "{told}");
        drop(frozen);
        world.daemon.end().await;
        world.start_again().await;
    });
}

fn ext4_for_root(dir: &Path) {
    let root = dir.join("root");
    fs::create_dir(&root).unwrap();
    ext4_at(dir, &root);
}

fn ext4_for_state(dir: &Path) {
    let state = dir.join("state");
    fs::create_dir(&state).unwrap();
    ext4_at(dir, &state);
}

fn start_wharfd(world: &World, words: &[&str]) -> Child {
    let mut wharfd = command(&place::built().wharfd);
    wharfd.arg("--config").arg(world.dir.join("config.toml")).args(words);
    wharfd.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether a command has succeeded, and what it has said.
fn outcome(command: Child) -> (bool, String) {
    let output = command.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

/// How many processes touch a directory to find out whether its disk responds.
fn touches() -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"touch-directory")).count()
}

fn ext4_for_logs(dir: &Path) {
    let logs = dir.join("logs");
    fs::create_dir(&logs).unwrap();
    ext4_at(dir, &logs);
}

fn ext4_at(dir: &Path, place: &Path) {
    let disk = dir.join("logs.ext4");
    fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    for words in [
        vec!["mkfs.ext4".into(), "-q".into(), disk.clone().into_os_string()],
        vec!["mount".into(), "-o".into(), "loop".into(), disk.into(), place.into()],
    ] {
        let output = command(Path::new(&words[0])).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Whether a process waits in the kernel and cannot be woken, as in a write to a frozen file system.
fn stalled_writer() -> bool {
    let stats = fs::read_dir("/proc").unwrap().flatten();
    let mut stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats.any(|stat| stat.contains("(wharf-shim) D "))
}

fn last_size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn an_exit_survives_a_full_state_directory_and_a_restart() {
    let small_state = |dir: &Path| place::tmpfs(&dir.join("state"), "size=4m,mode=0700");
    run_on(small_state, async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("full")).await.unwrap();
        let script = "until [ -e /end ]; do sleep 0.02; done; exit 7";
        let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
        let first = until("it runs", async || process_with("until [ -e /end ]")).await;
        let other = client.launch(&pod, &client.container("other", "sleep 1000")).await.unwrap();
        let filler = world.dir.join("state/filler");
        place::fill(&filler, 0);
        world.daemon.kill();
        fs::write(format!("/proc/{first}/root/end"), "").unwrap();
        let status = || fs::read_to_string(format!("/proc/{first}/stat")).unwrap_or_default();
        until("it ends, and is kept", async || status().contains(") Z ").then_some(())).await;
        // It takes over its pods and is not ready: no pod could be made.
        world.daemon.start_again();
        world.reach().await;
        let client = &world.client;
        let ended = client.exited(&id).await;
        assert_eq!((ended.exit_code, &*ended.reason), (7, "Error"));
        assert!(ended.started_at > 0 && ended.finished_at > ended.started_at);
        assert_eq!(client.output(&other, "echo fine").await, "fine");
        assert!(status().contains(") Z "), "its exit is not on disk, so it must not be gone");

        fs::remove_file(filler).unwrap();
        let exit = world.dir.join("state/pods").join(&pod).join("exits").join(&id);
        until("the exit is on disk", async || exit.exists().then_some(())).await;
        until("the process is reaped", async || status().is_empty().then_some(())).await;
        assert_eq!(client.exited(&id).await.exit_code, 7);
    });
}

#[test]
fn an_end_is_an_end_though_another_writes_to_its_output() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("shared");
        pod_security(&mut config).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
        let pod = client.run(&config).await.unwrap();
        let container = |name: &str, script: &str| {
            let mut config = client.container(name, script);
            security(&mut config).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
            config
        };
        let main = client.launch(&pod, &container("main", "exec sleep 1000")).await.unwrap();
        until("it runs", async || process_with("sleep 1000")).await;
        let writes = "yes >/proc/$(pidof sleep)/fd/1; exec sleep 1001";
        let other = client.launch(&pod, &container("other", writes)).await.unwrap();
        let log = client.log_path("shared", "main");
        until("the other writes", async || (last_size(&log) > 100_000).then_some(())).await;
        client.stop_container(&main, 0).await.unwrap();
        let status = client.status(&main).await.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
        until("the other writes no more", async || (!is_named("yes")).then_some(())).await;
        assert_eq!(client.output(&other, "echo fine").await, "fine");
        assert!(logs::texts(&log).iter().all(|text| "y".starts_with(&**text)));
    });
}

/// Whether a process with this name exists.
fn is_named(name: &str) -> bool {
    let names = fs::read_dir("/proc").unwrap().flatten();
    let mut names = names.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    names.any(|found| found.trim_end() == name)
}

/// A file system on which no call ever returns, until this is dropped: nobody answers the kernel.
struct Silent {
    path: PathBuf,
    _kernel: fs::File,
}

impl Silent {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let kernel = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", kernel.as_raw_fd());
        mount(Some("silent"), &path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self { path, _kernel: kernel }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_daemon_whose_directory_does_not_respond_says_which_it_waits_for() {
    run(async |world| {
        world.daemon.end().await;
        let file = world.dir.join("config.toml");
        let config = fs::read_to_string(&file).unwrap();
        for kind in ["root", "state"] {
            let silent = Silent::mount(world.dir.join(format!("silent-{kind}")));
            let own = world.dir.join(kind).display().to_string();
            fs::write(&file, config.replace(&own, silent.path.to_str().unwrap())).unwrap();
            world.daemon.start_again();
            let told = |path: &Path| format!("directory=\"{}\"", path.display());
            let names = |path: &Path| world.daemon.has_logged_value(&told(path));
            until("it says so", async || names(&silent.path).then_some(())).await;
            assert!(world.daemon.has_logged("waiting for the files in this directory"));
            assert!(!names(&world.dir.join("root")), "{kind}");
            drop(silent);
            world.daemon.end().await;
        }
        fs::write(&file, config).unwrap();
        world.start_again().await;
    });
}

/// The conditions that a node's Status shows: whether each holds, and why not.
async fn conditions(client: &Client) -> Vec<(bool, String)> {
    let status = client.runtime.clone().status(StatusRequest::default()).await.unwrap();
    let conditions = status.into_inner().status.unwrap().conditions;
    conditions.into_iter().map(|condition| (condition.status, condition.reason)).collect()
}

#[test]
fn a_network_configuration_that_does_not_respond_makes_nothing_else_unready() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("counted")).await.unwrap();
        client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let well = [(true, String::new()), (true, String::new())];
        assert_eq!(conditions(client).await, well);
        let silent = Silent::mount(world.dir.join("net.d"));
        let calls: Vec<_> = (0..12)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { conditions(&client).await })
            })
            .collect();
        for call in calls {
            let stuck = (false, "NetworkConfigStuck".to_owned());
            assert_eq!(call.await.unwrap(), [(true, String::new()), stuck]);
        }
        let mut runtime = client.runtime.clone();
        let stats = runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap();
        assert_eq!(stats.into_inner().stats.len(), 1);
        let metrics = runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
        assert_eq!(metrics.into_inner().pod_metrics.len(), 1);
        drop(silent);
        fs::remove_dir(world.dir.join("net.d")).unwrap();
        let is_well = async || (conditions(&world.client).await == well).then_some(());
        until("it is ready again", is_well).await;
    });
}

#[test]
fn a_log_on_a_full_disk_has_whole_records_and_says_what_it_lost() {
    run_on(
        |dir| place::tmpfs(&dir.join("logs"), "size=2m,mode=0700"),
        async |world| {
            let client = &world.client;
            let pod = client.run(&client.pod("torn")).await.unwrap();
            let filler = world.dir.join("logs/filler");
            fs::write(&filler, vec![0; 1 << 20]).unwrap();
            let script =
                "seq 1 100000; touch /said; until [ -e /more ]; do sleep 0.02; done; echo after; sleep 1000";
            let id = client.launch(&pod, &client.container("main", script)).await.unwrap();
            until("all is said", async || {
                client.exec(&id, "test -e /said", 5).await.ok().filter(|response| response.exit_code == 0)
            })
            .await;
            fs::remove_file(filler).unwrap();
            client.exec(&id, "touch /more", 5).await.unwrap();
            let log = client.log_path("torn", "main");
            let texts = async || {
                Some(logs::texts(&log)).filter(|texts| texts.last().is_some_and(|text| text == "after"))
            };
            let texts = until("more is logged", texts).await;
            let notes = texts.iter().filter_map(|text| text.strip_prefix("wharf: ")?.split_once(' '));
            let lost: usize = notes.map(|(count, _)| count.parse::<usize>().unwrap()).sum();
            let numbers: Vec<u32> = texts.iter().filter_map(|text| text.parse().ok()).collect();
            assert!(lost > 0 && numbers.is_sorted(), "{lost}");
            assert_eq!(numbers.len() + lost, 100_000, "every line is there or counted");
        },
    );
}

#[test]
fn who_is_stopped_after_a_worker_ran_out_of_memory_was_not_killed_by_that() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("worker")).await.unwrap();
        let script = "trap '' TERM; head -c 200000000 /dev/zero | tail >/dev/null; echo over; while :; do sleep 1000; done";
        let mut config = client.container("main", script);
        let resources = config.linux.get_or_insert_default().resources.get_or_insert_default();
        resources.memory_limit_in_bytes = 32 << 20;
        let id = client.launch(&pod, &config).await.unwrap();
        let log = client.log_path("worker", "main");
        until("the worker is killed", async || logs::texts(&log).contains(&"over".to_owned()).then_some(()))
            .await;
        client.stop_container(&id, 1).await.unwrap();
        let status = client.exited(&id).await;
        assert_eq!((status.exit_code, &*status.reason), (137, "Error"));
    });
}
