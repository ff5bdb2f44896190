//! wharfd as a service: its limits and those of what it starts, its signals, its exit.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_cri_api::admin::admin_client::AdminClient;
use wharf_cri_api::admin::{InfoRequest, PullProgressRequest};
use wharf_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use wharf_cri_api::v1::{GetEventsRequest, StatusRequest, VersionRequest};
use wharf_tests::connect::connect;

use crate::daemon::process_with;
use crate::place;
use crate::world::{self, World, until};

/// The soft and the hard limit on a process's open files.
fn open_files(pid: u32) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

#[test]
fn the_daemon_may_open_many_files_and_containers_as_many_as_it_was_given() {
    let few = |_dir: &Path| {
        let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 300, hard).unwrap();
    };
    world::run_on(few, async |world| {
        let (soft, hard) = open_files(world.daemon.pid());
        assert_eq!(soft, hard);
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        let container = client.container("c", "ulimit -Sn; ulimit -Hn; sleep 1000");
        let id = client.launch(&pod, &container).await.unwrap();
        assert_eq!(client.output(&id, "ulimit -Sn; ulimit -Hn").await, format!("300\n{hard}"));
        let log = client.log_path("p", "c");
        let lines = until("both are logged", async || {
            let text = fs::read_to_string(&log).ok()?;
            (text.lines().count() == 2).then_some(text)
        });
        assert!(lines.await.lines().next().unwrap().ends_with(" 300"));
    });
}

/// `wharf doctor` counts with two.
#[test]
fn a_container_takes_two_of_the_daemons_descriptors_while_it_is_measured() {
    const CONTAINERS: usize = 8;
    world::run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        let measured = async |name: &str| {
            let id = client.launch(&pod, &client.container(name, "sleep 1000")).await.unwrap();
            client.container_stats(&id).await;
        };
        measured("first").await;
        let before = world.daemon.descriptors().len();
        for number in 0..CONTAINERS {
            measured(&format!("c{number}")).await;
        }
        until("it has closed what it had opened", async || {
            (world.daemon.descriptors().len() <= before + 2 * CONTAINERS).then_some(())
        })
        .await;
    });
}

#[test]
fn a_hangup_changes_the_level_of_the_log_and_nothing_else() {
    world::run(async |world| {
        let file = world.dir.join("config.toml");
        let config = fs::read_to_string(&file).unwrap();
        let hangup = async |world: &world::World, text: &str, said: &str| {
            fs::write(&file, text).unwrap();
            kill(Pid::from_raw(world.daemon.pid().cast_signed()), Signal::SIGHUP).unwrap();
            until(said, async || world.daemon.has_logged(said).then_some(())).await;
        };
        hangup(world, &config.replace("level = \"debug", "level = \"trace"), "reloaded the log level").await;
        assert!(world.daemon.has_logged_value("trace,h2=warn"));
        hangup(world, "no configuration", "cannot reload the configuration").await;
        fs::write(&file, config).unwrap();
        assert!(world.client.pods().await.is_empty(), "it serves");
    });
}

/// Two daemons would each remove what belongs to the other's pods.
#[test]
fn a_second_daemon_takes_nothing_of_the_first_ones_pods() {
    world::run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        let id = client.launch(&pod, &client.container("c", "sleep 1000")).await.unwrap();
        let of_pods = format!("another wharfd (pid {}) has the pods of", world.daemon.pid());
        let seconds = [
            (&["root", "wharf.sock", "nri.sock"][..], "true", of_pods.as_str()),
            (&["root", "state", "wharf.sock", "nri.sock"], "true", "has the network of this machine"),
            (
                &["root", "state", "wharf.sock", "nri.sock"],
                "mount -t tmpfs run /run",
                "with mounts of its own",
            ),
        ];
        let mut started = Vec::new();
        for (number, (names, prepare, words)) in seconds.into_iter().enumerate() {
            let file = other_config(&world.dir, &format!("second-{number}"), names);
            let mut second = place::command(Path::new("unshare"));
            let script = format!("{prepare} && exec \"$0\" --config \"$1\"");
            let second = second.args(["--mount", "sh", "-c", &script]).arg(place::built().wharfd).arg(file);
            let second = second.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            started.push((second.spawn().unwrap(), words));
        }
        for (second, words) in started {
            let output = second.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && told.contains(words), "{words}: {told}");
        }
        assert_eq!(client.output(&id, PING).await, "reached");
    });
}

/// It knows none of their pods: what belongs to them would look like what a crash has left.
#[test]
fn a_daemon_with_another_state_directory_takes_nothing_of_the_pods_that_are_there() {
    world::run(async |world| {
        let pod = world.client.run(&world.client.pod("p")).await.unwrap();
        let id = world.client.launch(&pod, &world.client.container("c", "sleep 1000")).await.unwrap();
        world.daemon.end().await;
        let file = other_config(&world.dir, "wrong", &["root", "state"]);
        for command in [&[][..], &["clean", "--force"]] {
            let mut wrong = place::command(&place::built().wharfd);
            let output = wrong.arg("--config").arg(&file).args(command).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            let words = format!("belongs to the pods in {}/state", world.dir.display());
            assert!(!output.status.success() && told.contains(&words), "{told}");
        }
        world.start_again().await;
        assert_eq!(world.client.output(&id, PING).await, "reached");
    });
}

/// A disk that fails, or a release of before, cannot tell what such a pod is, but it runs.
#[test]
fn a_clean_ends_a_pod_whose_record_cannot_be_used_only_by_force() {
    run_clean(async |world, clean| {
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        let id = client.launch(&pod, &client.container("c", "sleep 1000 & exec sleep 1001")).await.unwrap();
        world.daemon.end().await;
        let (record, aside) =
            (world.dir.join("state/pods").join(&pod).join("record"), world.dir.join("aside"));
        fs::rename(&record, &aside).unwrap();
        fs::create_dir(&record).unwrap();
        let (success, told) = clean(&[]);
        assert!(!success && told.contains(&pod[..13]) && told.contains("--force"), "{told}");
        fs::remove_dir(&record).unwrap();
        fs::rename(&aside, &record).unwrap();
        world.start_again().await;
        assert_eq!(world.client.output(&id, PING).await, "reached", "nothing was touched");
        world.daemon.end().await;
        fs::remove_file(&record).unwrap();
        fs::create_dir(&record).unwrap();
        let (success, told) = clean(&["--force"]);
        assert!(success, "{told}");
        for process in [pod.as_str(), "sleep 1000", "sleep 1001"] {
            assert!(process_with(process).is_none(), "{process}");
        }
        world.start_again().await;
    });
}

/// The disk of the data root may have failed, while the pods on it go on.
#[test]
fn a_clean_by_force_ends_pods_without_the_data_root() {
    run_clean(async |world, clean| {
        let client = &world.client;
        let pod = client.run(&client.pod("p")).await.unwrap();
        client.launch(&pod, &client.container("c", "sleep 1000 & exec sleep 1001")).await.unwrap();
        world.daemon.end().await;
        let lock = world.dir.join("root/lock");
        fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink("nowhere", &lock).unwrap();
        let (success, told) = clean(&[]);
        assert!(!success && told.contains("--force") && process_with("sleep 1000").is_some(), "{told}");
        let (success, told) = clean(&["--force"]);
        let left = format!("the data root {}/root, which cannot be used", world.dir.display());
        assert!(!success && told.contains(&left), "{told}");
        for process in [pod.as_str(), "sleep 1000", "sleep 1001"] {
            assert!(process_with(process).is_none(), "{process}");
        }
        assert!(!world.dir.join("state").exists());
        let cgroup = wharf_cgroup::CgroupPath::new("/wharf").unwrap();
        assert!(wharf_cgroup::Cgroups::detect().unwrap().open(&cgroup).is_err());
        fs::remove_file(&lock).unwrap();
        fs::write(&lock, "").unwrap();
        world.start_again().await;
    });
}

/// Nobody lists such a pod, nobody reports its containers, and their cgroups are not below wharf's.
#[test]
fn a_clean_by_force_ends_containers_in_a_kubelets_cgroup_whose_supervisor_is_dead() {
    run_clean(async |world, clean| {
        let client = &world.client;
        let mut config = client.pod("p");
        config.linux.as_mut().unwrap().cgroup_parent = "/kube/pod".to_owned();
        let pod = client.run(&config).await.unwrap();
        let script = "sleep 1000 & exec sleep 1001";
        let id = client.launch(&pod, &client.container("c", script)).await.unwrap();
        world.daemon.end().await;
        let record = world.dir.join("state/pods").join(&pod).join("record");
        fs::remove_file(&record).unwrap();
        fs::create_dir(&record).unwrap();
        kill(Pid::from_raw(process_with(&pod).unwrap()), Signal::SIGKILL).unwrap();
        until("it is dead", async || process_with(&pod).is_none().then_some(())).await;
        assert!(process_with("sleep 1001").is_some(), "its containers go on");
        let (success, told) = clean(&["--force"]);
        assert!(success, "{told}");
        assert!(process_with("sleep 1000").is_none() && process_with("sleep 1001").is_none());
        let cgroup = wharf_cgroup::CgroupPath::new("/kube/pod").unwrap().child(&id).unwrap();
        assert!(wharf_cgroup::Cgroups::detect().unwrap().open(&cgroup).is_err(), "its cgroup is gone");
        world.start_again().await;
    });
}

/// Processes of others in the cgroup that wharf was given are no reason to keep the rest.
#[test]
fn a_clean_goes_on_with_the_rest_and_names_what_it_leaves() {
    run_clean(async |world, clean| {
        let pod = world.client.run(&world.client.pod("p")).await.unwrap();
        world.client.launch(&pod, &world.client.container("c", "sleep 1000")).await.unwrap();
        world.daemon.end().await;
        let other = place::command(Path::new("sleep")).arg("1003").spawn();
        let mut other = other.unwrap();
        let cgroups = wharf_cgroup::Cgroups::detect().unwrap();
        let cgroup = cgroups.create(&wharf_cgroup::CgroupPath::new("/wharf/other").unwrap()).unwrap();
        let procs = cgroup.entry().directory.unwrap().join("cgroup.procs");
        fs::write(procs, other.id().to_string()).unwrap();
        let (success, told) = clean(&["--force"]);
        assert!(!success && told.contains(&format!("{} (sleep)", other.id())), "{told}");
        assert!(!world.dir.join("state/pods").exists() && !world.dir.join("root/snapshots").exists());
        other.kill().unwrap();
        other.wait().unwrap();
        cgroup.remove(std::time::Duration::from_secs(10)).unwrap();
        assert!(clean(&[]).0);
        world.start_again().await;
    });
}

/// A machine without wharf stays as it is, too.
#[test]
fn a_clean_leaves_no_directory_and_makes_none() {
    let own_logs = |_dir: &Path| {
        mount(Some("tmpfs"), "/var/log", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    };
    world::run_on(own_logs, async |world| {
        world.daemon.end().await;
        let [root, state] = ["root", "state"].map(|name| world.dir.join(name));
        let logs = PathBuf::from("/var/log/wharf");
        fs::create_dir_all(logs.join("web-1")).unwrap();
        for words in ["removed everything that wharf left on this machine\n", "there is nothing of wharf"] {
            let (success, told) = clean(&world.dir, &["--images"]);
            assert!(success && told.contains(words), "{words}: {told}");
            for path in [&root, &state, &logs, &world.daemon.socket()] {
                assert!(!path.exists(), "{}", path.display());
            }
        }
        // What it makes itself for the rest, it removes.
        fs::create_dir(&logs).unwrap();
        let (success, told) = clean(&world.dir, &[]);
        assert!(success && !logs.exists() && !root.exists() && !state.exists(), "{told}");
        // Of an earlier configuration, only these are left.
        let hierarchies = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let parent = hierarchies.into_iter().find(|path| path.is_dir()).unwrap().join("wharf");
        fs::create_dir_all(parent.join("supervisors")).unwrap();
        let file = world.dir.join("config.toml");
        let config = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("cgroup_parent = \"/other\"\n{config}")).unwrap();
        let (success, told) = clean(&world.dir, &[]);
        assert!(success && told.contains("removed everything") && !parent.exists(), "{told}");
        fs::write(&file, config).unwrap();
        world.start_again().await;
    });
}

/// Runs a test that calls `wharfd clean`, which returns whether it succeeded and what it said.
fn run_clean(test: impl AsyncFnOnce(&mut world::World, &dyn Fn(&[&str]) -> (bool, String))) {
    world::run(async |world| {
        let dir = world.dir.clone();
        test(world, &move |flags: &[&str]| clean(&dir, flags)).await;
    });
}

fn clean(dir: &Path, flags: &[&str]) -> (bool, String) {
    let mut wharfd = place::command(&place::built().wharfd);
    let output =
        wharfd.arg("--config").arg(dir.join("config.toml")).arg("clean").args(flags).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

/// Reaches the host from inside a pod.
const PING: &str =
    "ping -c 1 -W 8 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null && echo reached";

/// A configuration in which some paths in the test's directory begin with another word.
fn other_config(dir: &Path, word: &str, names: &[&str]) -> PathBuf {
    let shown = dir.display();
    let text = fs::read_to_string(dir.join("config.toml")).unwrap();
    let text = names
        .iter()
        .fold(text, |text, name| text.replace(&format!("{shown}/{name}"), &format!("{shown}/{word}-{name}")));
    let file = dir.join(format!("{word}.toml"));
    fs::write(&file, text).unwrap();
    file
}

/// A new cgroup in which there may be so many tasks.
fn cgroup_for_tasks(count: usize) -> PathBuf {
    let hierarchies = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
    let cgroup = hierarchies.into_iter().find(|path| path.is_dir()).unwrap().join("few");
    fs::create_dir(&cgroup).unwrap();
    fs::write(cgroup.join("pids.max"), count.to_string()).unwrap();
    cgroup
}

#[test]
fn a_daemon_without_room_for_its_threads_says_what_to_raise() {
    world::run(async |world| {
        let script = "echo $$ >\"$0/cgroup.procs\" && exec \"$1\" --config \"$2\"";
        let mut wharfd = place::command(Path::new("sh"));
        let cgroup = cgroup_for_tasks(1);
        wharfd.args(["-c", script]).arg(&cgroup).arg(place::built().wharfd);
        let output = wharfd.arg(world.dir.join("config.toml")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains("Error: cannot start threads: raise TasksMax"),
            "{told}"
        );
        assert!(!told.contains("panicked"), "{told}");
        fs::remove_dir(cgroup).unwrap();
    });
}

#[test]
fn a_daemon_that_could_not_list_all_its_pods_says_what_to_raise() {
    world::run(async |world| {
        for name in ["a", "b", "c", "d"] {
            world.client.run(&world.client.pod(name)).await.unwrap();
        }
        let few = world.daemon.descriptors().len() - 4;
        world.daemon.end().await;
        let mut wharfd = place::command(Path::new("prlimit"));
        wharfd.arg(format!("--nofile={few}")).arg(place::built().wharfd).arg("--config");
        let output = wharfd.arg(world.dir.join("config.toml")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains("for 4 running pods wharfd needs at least"),
            "{told}"
        );
        world.start_again().await;
        assert_eq!(world.client.pods().await.len(), 4);
    });
}

/// The main thread, two workers, two that delete what is thrown away, and one for blocking work.
const THREADS: usize = 6;

/// Leaves a daemon without room for one more thread.
async fn crowd(world: &World, cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), world.daemon.pid().to_string()).unwrap();
    let are_few = async || (world.daemon.threads() == THREADS).then_some(());
    until("those that did something have ended", are_few).await;
    fs::write(cgroup.join("pids.max"), THREADS.to_string()).unwrap();
}

#[test]
fn a_daemon_without_room_for_a_thread_is_ready_to_end_pods_and_says_what_is_wrong() {
    world::run(async |world| {
        let pod = world.client.run(&world.client.pod("p")).await.unwrap();
        let cgroup = cgroup_for_tasks(1000);
        crowd(world, &cgroup).await;
        let told = world.client.runtime.clone().status(StatusRequest { verbose: false }).await;
        let [runtime, network] = &told.unwrap().into_inner().status.unwrap().conditions[..] else { panic!() };
        assert!(runtime.status, "a kubelet would not even end the pod that uses up the tasks: {runtime:?}");
        assert!(!network.status && network.message.contains("no thread can be started"), "{network:?}");
        let mut admin = AdminClient::new(connect(&world.daemon.socket()).await.unwrap());
        admin.info(InfoRequest {}).await.expect("wharf doctor asks for it first");
        world.client.down(&pod).await.unwrap();
        fs::write(cgroup.join("pids.max"), "max").unwrap();
        world.daemon.end().await;
        fs::remove_dir(cgroup).unwrap();
        world.start_again().await;
    });
}

#[test]
fn a_daemon_goes_on_once_there_is_room_for_its_threads_again() {
    world::run(async |world| {
        let cgroup = cgroup_for_tasks(1000);
        crowd(world, &cgroup).await;
        let client = world.client.clone();
        let config = client.pod("p");
        let call = tokio::spawn(async move { client.run(&config).await });
        let is_refused = || !fs::read_to_string(cgroup.join("pids.events")).unwrap().contains("max 0");
        until("a thread cannot be started", async || is_refused().then_some(())).await;
        fs::write(cgroup.join("pids.max"), "max").unwrap();
        // Whether that call waited or was refused, the next one is like any other.
        let at_once = tokio::time::timeout(Duration::from_secs(20), call).await;
        drop(at_once.expect("nothing waits for a thread that nobody starts").unwrap());
        let pod = world.client.run(&world.client.pod("q")).await.unwrap();
        world.client.down(&pod).await.unwrap();
        assert!(!world.daemon.has_logged_value("panicked"));
        world.daemon.end().await;
        fs::remove_dir(cgroup).unwrap();
        world.start_again().await;
    });
}

#[test]
fn clients_that_listen_do_not_hold_up_the_end() {
    world::run(async |world| {
        let mut admin = AdminClient::new(connect(&world.daemon.socket()).await.unwrap());
        let progress = admin.pull_progress(PullProgressRequest::default()).await.unwrap();
        let events = world.client.runtime.clone().get_container_events(GetEventsRequest {}).await.unwrap();
        let status = world.daemon.end().await;
        assert!(status.success(), "{status}");
        assert!(world.daemon.has_logged("wharfd is stopping"));
        assert!(!world.daemon.has_logged("stopped waiting"), "somebody held up the end");
        drop((progress, events));
        world.start_again().await;
    });
}

#[test]
fn until_the_calls_in_flight_are_answered_others_are_served() {
    world::run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("busy")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let late = async {
            let begun = async || client.exec(&id, "test -e /begun", 1).await.unwrap().exit_code == 0;
            until("it is in flight", async || begun().await.then_some(())).await;
            world.daemon.ask_to_exit();
            until("wharfd is told", async || world.daemon.has_logged("wharfd is stopping").then_some(()))
                .await;
            let new = connect(&world.daemon.socket()).await.unwrap();
            RuntimeServiceClient::new(new).version(VersionRequest::default()).await.unwrap();
        };
        let (in_flight, ()) = tokio::join!(client.output(&id, ">/begun; sleep 3; echo whole"), late);
        assert_eq!(in_flight, "whole");
        let status = world.daemon.end().await;
        assert!(status.success() && !world.daemon.has_logged("stopped waiting"), "{status}");
        world.start_again().await;
        world.client.down(&pod).await.unwrap();
    });
}

/// What systemd is told next.
fn told(systemd: &UnixDatagram) -> Option<String> {
    let mut word = [0; 64];
    systemd.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let length = systemd.recv(&mut word).ok()?;
    Some(String::from_utf8(word[..length].to_vec()).unwrap())
}

#[test]
fn systemd_is_told_that_the_daemon_makes_progress_and_nothing_while_it_does_not() {
    world::run(async |world| {
        world.daemon.end().await;
        let path = world.dir.join("systemd");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let path = path.to_str().unwrap();
        world.daemon.start_with(&[("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "150000")]);
        world.connect().await;
        let ready = until("systemd is told", async || told(&systemd)).await;
        assert_eq!(ready, "READY=1");
        for _ in 0..3 {
            assert_eq!(told(&systemd).as_deref(), Some("WATCHDOG=1"));
        }
        let pid = Pid::from_raw(i32::try_from(world.daemon.pid()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        // What it said before it stopped.
        while told(&systemd).is_some() {}
        kill(pid, Signal::SIGCONT).unwrap();
        assert_eq!(told(&systemd).as_deref(), Some("WATCHDOG=1"));
    });
}
