//! The command line `wharf` as people use it: on a terminal, with its exit codes, and with what it does not do without
//! confirmation.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::socket::{MsgFlags, send};
use wharf_cri_api::v1::ContainerState;

use crate::daemon::process_with;
use crate::image::{Content, plain};
use crate::place;
use crate::server::Server;
use crate::wedge::{Supervisor, cut_off};
use crate::world::{self, World, until};

/// How long anything on a terminal may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test, and removes its logs below `/var/log/wharf` with it.
pub(crate) fn run(test: impl AsyncFnOnce(&mut World)) {
    let own_logs = |_dir: &Path| {
        mount(Some("tmpfs"), "/var/log", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    };
    world::run_on(own_logs, test);
}

pub(crate) fn command(world: &World, line: &str) -> std::process::Command {
    let mut command = place::command(&place::built().wharf);
    let image = &world.client.image;
    command.arg("--socket").arg(world.daemon.socket());
    command.args(line.split_whitespace().map(|word| if word == "IMAGE" { image } else { word }));
    command
}

/// Runs `wharf` with the words of a line until it exits.
pub(crate) fn wharf(world: &World, line: &str) -> Output {
    command(world, line).stdin(Stdio::null()).output().unwrap()
}

/// Its output, if it succeeds.
pub(crate) fn printed(world: &World, line: &str) -> String {
    let output = wharf(world, line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Its exit code and its error, if it fails.
pub(crate) fn refused(world: &World, line: &str) -> (Option<i32>, String) {
    let output = wharf(world, line);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// `wharf` on a terminal on which a person looks and types.
struct Person {
    child: Child,
    master: File,
    /// The program's end of the terminal, kept open so that the terminal outlives the program.
    slave: OwnedFd,
    seen: String,
}

impl Person {
    fn at(world: &World, line: &str) -> Self {
        let size = Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None::<&nix::sys::termios::Termios>).unwrap();
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        let child = command(world, line).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { child, master: File::from(pair.master), slave: pair.slave, seen: String::new() }
    }

    fn types(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Waits until the words appear.
    fn sees(&mut self, words: &str) {
        let start = Instant::now();
        while !self.seen.contains(words) {
            assert!(start.elapsed() < PATIENCE, "{words:?} is not to be seen in {:?}", self.seen);
            let mut wait = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, PollTimeout::from(100_u8)).unwrap() > 0 {
                let mut bytes = [0; 4096];
                let count = self.master.read(&mut bytes).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        }
    }

    /// Its exit code.
    async fn ends(mut self) -> Option<i32> {
        let status = world::until("wharf ends", async || self.child.try_wait().unwrap()).await;
        drop(self.slave);
        status.code()
    }
}

#[test]
fn a_person_runs_a_shell_on_a_terminal() {
    run(async |world| {
        let mut person = Person::at(world, "run --rm -it IMAGE sh");
        person.sees("/ # ");
        person.types(b"stty size; tty; exit 7\n");
        person.sees("31 97");
        person.sees("/dev/pts/0");
        assert_eq!(person.ends().await, Some(7));
        assert!(world.client.pods().await.is_empty(), "--rm");
    });
}

#[test]
fn an_archive_is_neither_typed_nor_shown() {
    run(async |world| {
        for (line, words) in
            [("load", "standard input is a terminal"), ("save IMAGE", "standard output is a terminal")]
        {
            let mut person = Person::at(world, line);
            person.sees(words);
            assert_eq!(person.ends().await, Some(1));
        }
    });
}

#[test]
fn input_reaches_a_program_without_a_terminal_and_ends() {
    run(async |world| {
        let mut child = command(world, "run --rm -i IMAGE wc -c");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"12345").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "5");
    });
}

#[test]
fn two_keys_leave_an_attached_terminal_and_the_program_goes_on() {
    run(async |world| {
        printed(world, "run -d -it --name shell IMAGE sh");
        let mut person = Person::at(world, "attach shell");
        person.types(b"echo $((40 + 2))\n");
        person.sees("42");
        person.types(b"\x10");
        person.types(b"\x11");
        person.sees("shell keeps running");
        assert_eq!(person.ends().await, Some(0));
        let containers = world.client.containers().await;
        assert_eq!(containers[0].state(), ContainerState::ContainerRunning);
        let mut person = Person::at(world, "attach shell");
        person.types(b"exit 9\n");
        assert_eq!(person.ends().await, Some(9));
        printed(world, "rm shell");
    });
}

#[test]
fn a_command_on_a_terminal_gets_the_two_keys_too() {
    run(async |world| {
        printed(world, "run -d --name idle IMAGE sleep 1000");
        let mut person = Person::at(world, "exec -it idle sh");
        person.types(b"stty raw; echo re''ady; head -c 2 | od -An -tx1; exit 4\n");
        person.sees("ready");
        person.types(b"\x10\x11");
        person.sees("10 11");
        assert_eq!(person.ends().await, Some(4));
        printed(world, "rm --force idle");
    });
}

#[test]
fn what_has_ended_is_started_again() {
    run(async |world| {
        let first = wharf(world, "run --name once IMAGE sh -c echo${IFS}said;exit${IFS}3");
        assert_eq!(first.status.code(), Some(3), "{first:?}");
        let id = world.client.containers().await[0].id.clone();
        assert_eq!(printed(world, "start once"), "once\n");
        let containers = world.client.containers().await;
        assert!(containers.len() == 1 && containers[0].id != id, "{containers:#?}");
        assert_eq!(world.client.exited(&containers[0].id).await.exit_code, 3);
        assert_eq!(printed(world, "logs once"), "said\nsaid\n");
        // The pod is running now, so only the container is recreated in it.
        assert_eq!(printed(world, "start once/once"), "once/once\n");
        assert_eq!(world.client.containers().await.len(), 1);
        printed(world, "rm --force once");
        let pod = world.client.run(&world.client.pod("theirs")).await.unwrap();
        let (code, words) = refused(world, "start theirs");
        assert!(code == Some(1) && words.contains("was not created by wharf run"), "{words}");
        world.client.down(&pod).await.unwrap();
    });
}

#[test]
fn an_image_in_use_and_what_others_made_are_not_removed_unasked() {
    run(async |world| {
        printed(world, "run -d --name own IMAGE sleep 1000");
        let logs = fs::read_dir("/var/log/wharf").unwrap().next().unwrap().unwrap().path();
        let mut posing = world.client.pod("theirs");
        posing.annotations.insert("wharf.dev/log-directory".to_owned(), logs.display().to_string());
        let theirs = world.client.run(&posing).await.unwrap();
        let (code, words) = refused(world, "rmi IMAGE");
        assert!(code == Some(1) && words.contains("own/own"), "{words}");
        let (code, words) = refused(world, "rm --force --all");
        assert!(code == Some(1) && words.contains("1 of 2 pods (own)") && words.contains("--yes"), "{words}");
        assert!(!printed(world, "explain theirs").contains("wharf run"), "the kubelet is to make it");
        printed(world, "rm --force --all --yes");
        let pods = world.client.pods().await;
        assert!(pods.len() == 1 && pods[0].id == theirs, "{pods:?}");
        fs::create_dir_all(&logs).unwrap();
        printed(world, "rm --force --namespace e2e --yes");
        assert!(world.client.pods().await.is_empty() && logs.exists(), "its annotation names another's logs");
        printed(world, "rmi --force IMAGE");
    });
}

#[test]
fn an_image_is_pulled_to_be_mounted() {
    run(async |world| {
        let content = Content::oci("1", &[plain("etc/word", b"mounted")]);
        let server = Server::honest(content).await;
        let mount = format!("type=image,source={}/app:1,target=/x", server.address);
        let seen = printed(world, &format!("run --rm --mount {mount},subpath=etc IMAGE cat /x/word"));
        assert_eq!(seen, "mounted");
        let (code, error) = refused(world, &format!("run --rm --mount {mount},subpath=no IMAGE true"));
        assert_eq!(code, Some(125), "{error}");
        assert!(error.contains("sub path \"no\" of the image cannot be used"), "{error}");
    });
}

#[test]
fn programs_that_cannot_be_run_have_the_codes_of_shells() {
    run(async |world| {
        printed(world, "run -d --name idle IMAGE sleep 1000");
        for (line, want) in [
            ("run --rm IMAGE no-such-program", 127),
            ("run --rm IMAGE /etc/passwd", 126),
            ("exec idle no-such-program", 127),
            ("exec idle /etc/passwd", 126),
            ("exec nobody true", 125),
        ] {
            let (code, words) = refused(world, line);
            assert_eq!(code, Some(want), "{line}: {words}");
        }
        let (code, words) = refused(world, "--json exec idle true");
        assert!(code == Some(125) && words.contains("nothing to print as JSON"), "{words}");
        assert_eq!(world.client.pods().await.len(), 1, "what could not be run is gone");
        printed(world, "rm --force idle");
    });
}

/// It has no caller that could be told that a daemon does not speak its protocol.
#[test]
fn what_a_supervisor_could_tell_nobody_is_shown() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("garbled")).await.unwrap();
        let told = until("the supervisor has told of it", async || {
            // The real daemon connects again, possibly before this is read.
            let noise = cut_off(world, &pod);
            send(noise.as_raw_fd(), b"\xff\xff\xff", MsgFlags::MSG_NOSIGNAL).ok();
            let value: serde_json::Value =
                serde_json::from_str(&printed(world, &format!("inspect {pod}"))).unwrap();
            value["info"]["supervisorLog"][0].as_str().map(str::to_owned)
        });
        let line = told.await;
        assert!(line.contains("the daemon's connection: a message of 3 bytes"), "{line}");
        let doctor = String::from_utf8(wharf(world, "--json doctor").stdout).unwrap();
        assert!(doctor.contains("the daemon's connection: a message of 3 bytes"), "{doctor}");
        // A log that no supervisor would write does not hide the others.
        let log = world.dir.join("state/pods").join(&pod).join("shim.log");
        std::fs::write(log, vec![b'x'; 1 << 20]).unwrap();
        let value: serde_json::Value =
            serde_json::from_str(&printed(world, &format!("inspect {pod}"))).unwrap();
        let why = value["info"]["supervisorLog"][0].as_str().unwrap();
        assert!(why.starts_with("reading the log of the pod's supervisor"), "{why}");
        client.down(&pod).await.unwrap();
    });
}

/// A log on a disk that stays full cannot even say what it lost.
#[test]
fn a_run_whose_log_has_no_room_says_that_output_is_missing() {
    let small = |_dir: &Path| {
        mount(Some("tmpfs"), "/var/log", Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    };
    world::run_on(small, async |world| {
        place::fill(Path::new("/var/log/filler"), 0);
        let full = wharf(world, "run --rm --name web IMAGE sh -c echo${IFS}said;exit${IFS}3");
        let told = String::from_utf8_lossy(&full.stderr);
        assert_eq!(full.status.code(), Some(3), "{told}");
        let words = "some output is missing: 1 records of the log web.log are lost: No space left on device";
        assert!(told.contains(words) && full.stdout.is_empty(), "{full:?}");

        std::fs::remove_file("/var/log/filler").unwrap();
        printed(world, "run -d --name pod IMAGE sleep 1000");
        place::fill(Path::new("/var/log/filler"), 0);
        let run = "run --pod pod --name job IMAGE echo said";
        let told = wharf(world, run);
        assert!(String::from_utf8_lossy(&told.stderr).contains("some output is missing"), "{told:?}");
        let told = wharf(world, "logs pod/job");
        assert!(String::from_utf8_lossy(&told.stderr).contains("some output is missing"), "{told:?}");
        // With room again, a later one of the same name has lost nothing.
        std::fs::remove_file("/var/log/filler").unwrap();
        printed(world, "rm pod/job");
        let later = wharf(world, run);
        assert!(later.stdout == b"said\n" && later.stderr.is_empty(), "{later:?}");
        let told = wharf(world, "logs pod/job");
        assert!(told.stdout == b"said\n" && told.stderr.is_empty(), "{told:?}");
        printed(world, "rm --force pod");
    });
}

#[test]
fn a_run_whose_terminal_is_gone_removes_its_container() {
    run(async |world| {
        let mut run = command(world, "run --rm IMAGE sleep 1000").stdin(Stdio::null()).spawn().unwrap();
        until("it runs", async || process_with("sleep 1000")).await;
        let pid = nix::unistd::Pid::from_raw(run.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        until("it ends", async || run.try_wait().unwrap()).await;
        assert!(world.client.pods().await.is_empty());
    });
}

#[test]
fn a_run_that_is_ended_while_it_begins_leaves_no_pod() {
    run(async |world| {
        let mut run = command(world, "run --rm IMAGE sleep 1000").stdin(Stdio::null()).spawn().unwrap();
        until("its pod is being made", async || process_with("wharf-shim")).await;
        let pid = nix::unistd::Pid::from_raw(run.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let ended = until("it ends", async || run.try_wait().unwrap()).await;
        assert!(!ended.success() && world.client.pods().await.is_empty(), "{ended}");
    });
}

#[test]
fn a_run_in_a_pod_shows_nothing_of_an_earlier_container_of_its_name() {
    run(async |world| {
        printed(world, "run -d --name web IMAGE sleep 1000");
        for said in ["one", "two"] {
            let shown = printed(world, &format!("run --rm --pod web --name job IMAGE echo {said}"));
            assert_eq!(shown, format!("{said}\n"));
        }
        printed(world, "run --pod web --name job IMAGE echo three");
        assert_eq!(printed(world, "logs web/job"), "three\n");
        let logs = || {
            let pods = std::fs::read_dir("/var/log/wharf").unwrap();
            pods.flat_map(|pod| std::fs::read_dir(pod.unwrap().path()).unwrap()).count()
        };
        assert_eq!(logs(), 2, "a log is removed with its container");
        // A successor goes on with it.
        printed(world, "start web/job");
        until("it has ended again", async || {
            (printed(world, "logs web/job") == "three\nthree\n").then_some(())
        })
        .await;
        printed(world, "rm --force web/job");
        assert_eq!(logs(), 1);
        printed(world, "rm --force web");
    });
}

/// Runs `wharf` with the words of each line, all at once.
fn at_once(world: &World, lines: impl IntoIterator<Item = String>) -> Vec<Output> {
    let spawn = |line: String| {
        let mut command = command(world, &line);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let all: Vec<Child> = lines.into_iter().map(spawn).collect();
    all.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

/// Checks that one of several runs at once has succeeded, and that the name was taken for all others.
fn one_wins(outputs: &[Output], name: &str) {
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1, "{outputs:?}");
    for refused in outputs.iter().filter(|output| !output.status.success()) {
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(told.contains(&format!("{name} already exists")), "{told}");
    }
}

#[test]
fn of_runs_at_once_with_one_name_one_makes_its_pod() {
    run(async |world| {
        for _round in 0..3 {
            let lines = (0..4).map(|number| format!("run -d --name web IMAGE sleep 200{number}"));
            let outputs = at_once(world, lines);
            one_wins(&outputs, "web");
            let winner = outputs.iter().position(|output| output.status.success()).unwrap();
            let (pods, containers) = (world.client.pods().await, world.client.containers().await);
            assert_eq!((pods.len(), containers.len()), (1, 1), "{pods:#?} {containers:#?}");
            assert!(process_with(&format!("sleep 200{winner}")).is_some(), "the losers leave it alone");
            printed(world, "rm --force web");
        }
    });
}

#[test]
fn runs_at_once_in_a_pod_have_a_container_each() {
    run(async |world| {
        printed(world, "run -d --name pod IMAGE sleep 1000");
        let outputs =
            at_once(world, (0..5).map(|number| format!("run -d --pod pod IMAGE sleep 200{number}")));
        assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
        let all = (0..5).map(|number| format!("sleep 200{number}"));
        assert!(all.clone().all(|program| process_with(&program).is_some()), "{outputs:?}");
        let containers = world.client.containers().await;
        let names: BTreeSet<String> =
            containers.iter().map(|container| container.metadata.clone().unwrap().name).collect();
        assert_eq!((containers.len(), names.len()), (6, 6), "{names:?}");
        // Those that end soon leave their names to others, and show nothing of these.
        for options in ["--rm", ""] {
            let line = |number| format!("run {options} --pod pod IMAGE echo said-{number}");
            for (number, output) in at_once(world, (0..6).map(line)).iter().enumerate() {
                let said = String::from_utf8_lossy(&output.stdout);
                assert_eq!(said, format!("said-{number}\n"), "{output:?}");
            }
        }
        one_wins(&at_once(world, vec!["run -d --pod pod --name job IMAGE sleep 1000".into(); 4]), "pod/job");
        printed(world, "rm --force pod");
    });
}

#[test]
fn a_start_leaves_alone_what_another_command_has_made_meanwhile() {
    run(async |world| {
        let client = &world.client;
        printed(world, "run -d --name web IMAGE sleep 1000");
        printed(world, "run --pod web --name job IMAGE true");
        let named = async || {
            let mut jobs = client.containers().await;
            jobs.retain(|container| container.metadata.as_ref().is_some_and(|of| of.name == "job"));
            jobs
        };
        let ended = named().await.remove(0);
        let mut successor = client.container("job", "sleep 2000");
        successor.metadata.as_mut().unwrap().attempt = 1;
        let theirs = client.create(&ended.pod_sandbox_id, &successor).await.unwrap();
        for state in [ContainerState::ContainerCreated, ContainerState::ContainerExited] {
            let (code, words) = refused(world, &format!("start {}", ended.id));
            assert!(code == Some(1) && words.contains("another command starts job"), "{words}");
            let found = named().await;
            assert_eq!(found.len(), 2, "{found:#?}");
            let left = found.iter().find(|container| container.id == theirs).unwrap();
            assert_eq!(left.state(), state);
            client.start(&theirs).await.ok();
            client.stop_container(&theirs, 0).await.unwrap();
        }
        printed(world, "rm --force web");
    });
}

#[test]
fn how_a_pod_was_made_is_told_until_its_daemon_ends() {
    run(async |world| {
        printed(world, "run -d --name web IMAGE sleep 1000");
        let told: serde_json::Value = serde_json::from_str(&printed(world, "--json explain web")).unwrap();
        let stages = told["stages"].as_array().unwrap();
        let of = |container: Option<&str>| -> Vec<&str> {
            let own = stages.iter().filter(|row| row["container"].as_str() == container);
            own.map(|row| row["stage"].as_str().unwrap()).collect()
        };
        assert_eq!(of(None).first(), Some(&"record and directories"), "{stages:#?}");
        assert!(of(None).contains(&"network") && of(None).contains(&"end of the namespaces"), "{stages:#?}");
        assert_eq!(of(Some("web")).first(), Some(&"description and plan"), "{stages:#?}");
        let (first, last) =
            ("first process: mounts", "supervisor: from the order until the program was executed");
        assert!(of(Some("web")).contains(&first), "{stages:#?}");
        assert_eq!(of(Some("web")).last(), Some(&last), "{stages:#?}");
        let took_us: u64 = stages.iter().map(|row| row["tookUs"].as_u64().unwrap()).sum();
        assert!(took_us > 0, "{stages:#?}");
        let table = printed(world, "explain web/web");
        assert!(table.contains(" ms") && !table.contains("network"), "{table}");

        world.daemon.kill();
        world.start_again().await;
        let told = printed(world, "explain web");
        assert!(told.contains("there are no timings: wharfd has been restarted since"), "{told}");
        printed(world, "rm --force web");
    });
}

#[test]
fn lists_and_inspections_tell_what_was_asked_for() {
    run(async |world| {
        printed(world, "run -d --name web -p 18080:80 -e COLOUR=blue IMAGE sleep 1000");
        let row = printed(world, "ps");
        for word in ["web", "sleep 1000", "18080->80/tcp", "default", "running"] {
            assert!(row.contains(word), "{word} in {row}");
        }
        let value: serde_json::Value = serde_json::from_str(&printed(world, "inspect web/web web")).unwrap();
        assert_eq!(value[0]["request"]["environment"]["COLOUR"], "blue", "{value:#}");
        assert_eq!(value[1]["request"]["ports"][0], "18080->80/tcp", "{value:#}");
        let doctor: serde_json::Value =
            serde_json::from_slice(&wharf(world, "--json doctor").stdout).unwrap();
        let verdict = |what: &str| {
            let check = doctor.as_array().unwrap().iter().find(|check| check["what"] == what);
            check.map(|check| check["verdict"].as_str().unwrap().to_owned())
        };
        // How much space this machine has is not wharf's doing.
        assert!(verdict("state").is_some() && verdict("open files").is_some(), "{doctor:#}");
        assert_eq!(
            [verdict("quarantine"), verdict("orphans")],
            ["ok", "ok"].map(|ok| Some(ok.to_owned())),
            "{doctor:#}"
        );
        printed(world, "rm --force web");
    });
}

#[test]
fn the_doctor_names_a_stopped_supervisor_and_continues_it() {
    run(async |world| {
        printed(world, "run -d --name web IMAGE sleep 1000");
        let pod = world.client.pods().await.remove(0).id;
        let check = || {
            let checks: serde_json::Value =
                serde_json::from_slice(&wharf(world, "--json doctor").stdout).unwrap();
            let all = checks.as_array().unwrap();
            all.iter().find(|check| check["what"] == "stopped supervisors").unwrap().clone()
        };
        assert_eq!(check()["verdict"], "ok");
        let supervisor = Supervisor::of(&pod).await;
        supervisor.stop();
        let told = check();
        assert_eq!(told["verdict"], "warn", "{told:#}");
        assert!(told["advice"].as_str().unwrap().ends_with(&supervisor.pid().to_string()), "{told:#}");
        let fixed: serde_json::Value =
            serde_json::from_slice(&wharf(world, "--json doctor --fix").stdout).unwrap();
        let fixes = fixed["fixes"].as_array().unwrap();
        let fix = fixes.iter().find(|fix| fix["what"] == "stopped supervisors").unwrap();
        let command = format!("kill -CONT {}", supervisor.pid());
        assert_eq!((&fix["outcome"], &fix["told"]), (&"done".into(), &command.into()), "{fixed:#}");
        let checks = fixed["checks"].as_array().unwrap();
        assert!(checks.contains(&check()) && check()["verdict"] == "ok", "{fixed:#}");
        printed(world, "rm --force web");
    });
}

#[test]
fn a_daemon_that_does_not_respond_is_named() {
    run(async |world| {
        world.daemon.stop();
        let checks: serde_json::Value =
            serde_json::from_slice(&wharf(world, "--json doctor").stdout).unwrap();
        let told = checks.as_array().unwrap().iter().find(|check| check["what"] == "wharfd").unwrap();
        let silence = format!("wharfd (pid {}) does not respond", world.daemon.pid());
        assert_eq!((&told["verdict"], told["found"].as_str()), (&"fail".into(), Some(&*silence)), "{told:#}");
        let mut waits = command(world, "pods").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(waits.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains(&silence), "{said}");
        world.daemon.go_on();
        assert!(waits.wait().unwrap().success());
    });
}

#[test]
fn a_forwarded_client_that_ends_its_direction_gets_the_answer() {
    run(async |world| {
        // It answers only when it knows that nothing more comes.
        printed(world, "run -d --name count IMAGE nc -l -p 7000 -e wc -c");
        let mut forward = command(world, "forward count 0:7000");
        let mut forward = forward.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        BufReader::new(forward.stderr.as_mut().unwrap()).read_line(&mut told).unwrap();
        let address = told.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap().to_owned();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"12345").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.trim(), "5");
        forward.kill().unwrap();
        forward.wait().unwrap();
        printed(world, "rm --force count");
    });
}
