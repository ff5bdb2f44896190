//! Each end, as a table of what is said of it.

use wharf_cri_api::v1::{ContainerResources, LinuxContainerResources};
use wharf_types::program::{DENIED, FOREIGN, FORMAT, INTERPRETER, MISSING};

use super::*;

const SECOND_NS: i64 = 1_000_000_000;
const STOP: Asked = Asked::Once(Stop { asked_at_ns: 50 * SECOND_NS, grace_ms: 10_000 });

/// A container that ran from second 40 to second 52.
fn exited(reason: &str, exit_code: i32, message: &str) -> ContainerStatus {
    let linux = LinuxContainerResources { memory_limit_in_bytes: 8 << 20, ..Default::default() };
    ContainerStatus {
        id: "c1".to_owned(),
        state: ContainerState::ContainerExited.into(),
        started_at: 40 * SECOND_NS,
        finished_at: 52 * SECOND_NS + 1,
        exit_code,
        reason: reason.to_owned(),
        message: message.to_owned(),
        resources: Some(ContainerResources { linux: Some(linux), windows: None }),
        ..ContainerStatus::default()
    }
}

fn facts<'a>(status: &'a ContainerStatus, asked: Asked, kernel: &'a Kernel) -> Facts<'a> {
    Facts { name: "web/main", maker: Maker::Person, status, asked, last_stage: None, kernel }
}

fn kill(limited: Option<&str>) -> Kernel {
    let kill = OomKill {
        victim: "eater".to_owned(),
        pid: 7,
        limited: limited.map(str::to_owned),
        of: "/wharf/p1/c1".to_owned(),
        anonymous_bytes: Some(9 << 20),
    };
    Kernel { oom_kills: vec![kill], refusals: Vec::new() }
}

#[test]
fn nothing_that_others_choose_begins_a_line() {
    let status = exited("Error", 1, "it failed\nweb/other runs since yesterday");
    let kernel = Kernel::default();
    let facts = Facts { name: "web/a\nweb/b runs", ..facts(&status, Asked::Never, &kernel) };
    let log = vec!["x\nweb/other runs".to_owned()];
    let text = Verdict { log, ..of_container(&facts) }.text();
    assert!(text.lines().skip(1).all(|line| line.starts_with("  ")), "{text}");
    assert!(text.starts_with("web/a\\nweb/b runs ended"), "{text}");
}

fn says(facts: &Facts<'_>, words: &str) {
    let text = of_container(facts).text();
    assert!(text.contains(words), "{words:?} is not in:\n{text}");
}

#[test]
fn a_program_that_could_not_be_executed_says_what_to_change() {
    let kernel = Kernel::default();
    for (why, words) in [
        (&*format!("{FOREIGN} arm64, and this machine is amd64: {FORMAT}"), "use an image for this machine"),
        (&format!("{INTERPRETER}, \"/x\", is not in the container: {MISSING}"), "add the interpreter"),
        (MISSING, "check the program's name"),
        (DENIED, "chmod +x"),
        (FORMAT, "begin a script with #!"),
        ("the container's seccomp profile refuses execve", "change the container's seccomp profile"),
        ("?", "journalctl -u wharfd"),
    ] {
        let status = exited("StartError", 128, &format!("exec of \"x\" failed: {why}"));
        says(&facts(&status, Asked::Never, &kernel), words);
    }
}

#[test]
fn a_lack_of_memory_names_the_limit_and_the_victim() {
    let [own, above, machine] = [Some("/wharf/p1/c1"), Some("/wharf/p1"), None].map(kill);
    for (reason, code, kernel, words) in [
        ("OOMKilled", 137, &own, "its memory limit (8.0 MiB) was reached, so"),
        ("OOMKilled", 137, &own, "killed eater (pid 7), which had 9.0 MiB\n"),
        ("OOMKilled", 137, &own, "raise the limit"),
        ("OOMKilled", 137, &above, "above it, such as the pod's (/wharf/p1), was reached"),
        ("OOMKilled", 137, &machine, "the machine's memory ran out"),
        ("OOMKilled", 137, &machine, "see what takes the machine's memory"),
        ("OOMKilled", 137, &Kernel::default(), "its memory limit (8.0 MiB), or one above it"),
        ("Error", 1, &own, "before that, its memory limit (8.0 MiB) was reached"),
    ] {
        says(&facts(&exited(reason, code, ""), Asked::Never, kernel), words);
    }
}

#[test]
fn each_end_says_why_and_what_to_do() {
    let kernel = Kernel::default();
    for (reason, code, asked, words) in [
        ("Unknown", 255, Asked::Never, "  see why its pod's supervisor"),
        ("Unknown", 255, Asked::Never, "start it again: wharf start web/main\n"),
        ("Completed", 0, Asked::Never, "must stay in the foreground"),
        ("Completed", 0, STOP, "asked wharfd at 1970-01-01T00:00:50Z to stop it, with 10 s"),
        ("Error", 3, Asked::Never, "wharf logs web/main\n"),
        ("Error", 126, Asked::Never, "cannot execute it"),
        ("Error", 127, Asked::Never, "has not found a command"),
        ("Error", 137, STOP, "it did not end on SIGTERM, and was killed after that time\n"),
        ("Error", 137, Asked::Never, "with exit code 137, which stands for SIGKILL\n"),
        ("Error", 137, Asked::Never, "nobody asked wharfd to stop it"),
        ("Error", 137, Asked::Never, "find out who sent it"),
        ("Error", 143, STOP, "a client, such as wharf stop, asked wharfd"),
        ("Error", 143, Asked::Unknown, "wharfd has been restarted since"),
        ("Error", 132, Asked::Never, "this processor"),
        ("Error", 134, Asked::Never, "abort"),
        ("Error", 135, Asked::Never, "/dev/shm"),
        ("Error", 136, Asked::Never, "divided by zero"),
        ("Error", 139, Asked::Never, "memory that it does not have"),
        ("Error", 152, Asked::Never, "ulimit"),
        ("Error", 159, Asked::Never, "does not say which call"),
        ("Error", 170, Asked::Never, "which stands for signal 42\n"),
    ] {
        says(&facts(&exited(reason, code, ""), asked, &kernel), words);
    }
}

#[test]
fn what_ended_by_itself_is_told_from_what_was_stopped() {
    let none = Kernel::default();
    let told = |code, reason, asked| of_container(&facts(&exited(reason, code, ""), asked, &none)).text();
    assert!(!told(0, "Completed", STOP).contains("foreground"));
    assert!(
        !told(143, "Error", STOP).contains("nobody asked")
            && !told(143, "Error", STOP).contains("killed after")
    );
    assert!(!told(1, "Error", Asked::Never).contains("asked"), "no signal, and nobody asks who sent it");
    let killed_at_once = Asked::Once(Stop { asked_at_ns: 0, grace_ms: 0 });
    assert!(!told(137, "Error", killed_at_once).contains("did not end"));
}

#[test]
fn a_start_that_failed_names_its_stage_and_its_time() {
    let (status, kernel) = (exited("StartError", 128, "x"), Kernel::default());
    let stage = Stage { stage: "start".to_owned(), began_us: 0, took_us: 1500 };
    let of = Facts { last_stage: Some(&stage), ..facts(&status, Asked::Never, &kernel) };
    assert_eq!(of_container(&of).why, ["x", "the stage that failed: start (1.500 ms)"]);
}

#[test]
fn a_pod_that_is_not_ready_says_who_is_to_make_it_anew() {
    use PodSandboxState::{SandboxNotready, SandboxReady};
    let kernel = Kernel::default();
    let [ended, lost] = [exited("Error", 143, ""), exited("Unknown", 255, "")];
    let stopped = facts(&ended, STOP, &kernel);
    let unseen = facts(&lost, Asked::Never, &kernel);
    let untold = facts(&ended, Asked::Unknown, &kernel);
    let silent = facts(&lost, STOP, &kernel);
    for (maker, state, containers, words) in [
        (Maker::Person, SandboxReady, [].as_slice(), "wharf run --pod web IMAGE"),
        (Maker::Client, SandboxReady, &[], "web is ready\n"),
        (Maker::Person, SandboxReady, &[untold], "web is ready\n"),
        (
            Maker::Person,
            SandboxNotready,
            &[stopped],
            "asked wharfd to stop it\n  start it again: wharf start web",
        ),
        (Maker::Client, SandboxNotready, &[stopped], "kubectl describe pod"),
        (Maker::Person, SandboxNotready, &[stopped, unseen], "its supervisor is gone, and its containers"),
        (Maker::Person, SandboxNotready, &[silent], "asked wharfd to stop it"),
        (Maker::Person, SandboxNotready, &[untold], "it was stopped, or its supervisor is gone"),
    ] {
        let text = of_pod("web", maker, state, containers).text();
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

#[test]
fn what_has_not_ended_is_told_as_well() {
    let kernel = Kernel::default();
    for (state, maker, words) in [
        (ContainerState::ContainerRunning, Maker::Person, "web/main runs since 1970-01-01T00:00:40Z\n"),
        (ContainerState::ContainerCreated, Maker::Person, "start it: wharf start web/main"),
        (ContainerState::ContainerCreated, Maker::Client, "whoever created it starts it"),
        (ContainerState::ContainerUnknown, Maker::Client, "not known"),
    ] {
        let status = ContainerStatus { state: state.into(), ..exited("", 0, "") };
        let verdict = of_container(&Facts { maker, ..facts(&status, Asked::Never, &kernel) });
        assert!(verdict.text().contains(words) && verdict.exit_code.is_none(), "{}", verdict.text());
    }
}
