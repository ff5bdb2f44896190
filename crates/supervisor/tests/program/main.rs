//! The supervisor as a program, called through its connection: processes, descriptors, logs and records are real. What
//! it decides is played in `machine`; here is whether that is done.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

mod daemons;
mod execs;
mod rig;
#[path = "../../../isolation/tests/rig/plan.rs"]
mod rig_plan;
mod streams;

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_isolation::{LogFile, LogLimits, PidNamespace, Plan, Source};
use wharf_state::{ExitRecord, Layout};
use wharf_types::Exit;
use wharf_types::signal::{SIGKILL, SIGTERM};
use wharf_wire::exit_of;
use wharf_wire::v1::{self, container_status::Phase, failure::Kind, message, reply, request};

use rig::{Supervisor, create, has_text, hello};
use rig_plan::{host, mount, plan};

/// A container of this supervisor that runs a line of shell, and logs to `0.log`.
fn container(supervisor: &Supervisor, script: &str) -> Plan {
    let directory = supervisor.directory.path();
    let mut plan = plan(directory, script);
    plan.stdio.log =
        Some(LogFile { directory: host(directory), name: "0.log".into(), limits: LogLimits::default() });
    plan
}

fn signal(plan: &Plan, number: u8) -> request::Body {
    request::Body::Signal(v1::Signal {
        container: plan.container.to_string(),
        number: number.into(),
        all: false,
    })
}

fn kill_all(plan: &Plan) -> request::Body {
    request::Body::Signal(v1::Signal {
        container: plan.container.to_string(),
        number: SIGKILL.into(),
        all: true,
    })
}

fn remove(plan: &Plan) -> request::Body {
    request::Body::Remove(v1::Remove { container: plan.container.to_string() })
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (File::from(read), write)
}

#[test]
fn a_container_lives_from_its_creation_to_its_removal() {
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "echo begun; exit 3");
    assert_eq!(supervisor.create(&plan).identity, Some(v1::Identity { uid: 0, gid: 0, groups: vec![0] }));
    let state = supervisor.state();
    let [status] = &state.containers[..] else { panic!("{state:?}") };
    assert_eq!((status.phase(), status.id.as_str()), (Phase::Created, plan.container.as_str()));
    supervisor.start_container(&plan);
    assert!(matches!(supervisor.event(), message::Body::ContainerStarted(_)));
    let exited = supervisor.exit();
    assert_eq!(exit_of(exited.exit), Exit::Code(3));
    has_text(&supervisor.directory.path().join("0.log"), "stdout F begun\n");
    let record = Layout::exits(&supervisor.pod()).join(plan.container.as_str());
    let recorded = ExitRecord::load(&record).unwrap();
    assert_eq!((recorded.exit, recorded.finished_at_ns), (Exit::Code(3), exited.finished_at_ns));
    supervisor.done(remove(&plan));
    assert!(supervisor.state().containers.is_empty());
    assert_eq!(ExitRecord::load(&record).unwrap(), recorded, "the daemon removes it, last of all");
    assert!(supervisor.end().success());
}

/// Waits until a process is in a state, by its letter in procfs.
fn is_in_state(pid: i32, wanted: &str) {
    while wharf_sys::process::stat_field(pid, 3).unwrap().as_deref() != Some(wanted) {
        std::thread::yield_now();
    }
}

/// A zombie whose exit is not on disk yet hides those after it. That they are there is said at the same moment, and
/// only once.
#[test]
fn what_a_container_leaves_is_reaped_with_it() {
    let mut supervisor = Supervisor::start();
    let mut plan = container(&supervisor, "true & exec sleep 1000");
    plan.namespaces.pid = PidNamespace::Host;
    let first = supervisor.create(&plan).pid;
    supervisor.start_container(&plan);
    let children = format!("/proc/{first}/task/{first}/children");
    has_text(Path::new(&children), " ");
    let child: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    is_in_state(child, "Z");
    let shim = Pid::from_raw(supervisor.pid().cast_signed());
    kill(shim, Signal::SIGSTOP).unwrap();
    is_in_state(shim.as_raw(), "T");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    is_in_state(first, "Z");
    kill(shim, Signal::SIGCONT).unwrap();
    supervisor.exit();
    assert!(!Path::new(&format!("/proc/{child}")).exists(), "it is a zombie for good");
}

/// So the text of a panic, too, is found in the log.
#[test]
fn what_goes_wrong_is_written_to_the_log_to_the_end() {
    let supervisor = Supervisor::start();
    let stderr = std::fs::read_link(format!("/proc/{}/fd/2", supervisor.pid())).unwrap();
    assert_eq!(stderr, Layout::supervisor_log(&supervisor.pod()));
}

#[test]
fn a_program_that_is_not_there_ends_its_container_with_a_record() {
    let mut supervisor = Supervisor::start();
    let mut plan = container(&supervisor, "");
    plan.process.args = vec![b"no-such".to_vec()];
    supervisor.create(&plan);
    let start = request::Body::Start(v1::Start { container: plan.container.to_string() });
    let (kind, message) = supervisor.refused(start, &[]);
    assert!(
        matches!(kind, Kind::Precondition | Kind::NotStarted) && message.contains("\"no-such\""),
        "{message}"
    );
    assert_eq!(exit_of(supervisor.exit().exit), Exit::NotStarted);
    let record = Layout::exits(&supervisor.pod()).join(plan.container.as_str());
    assert_eq!(ExitRecord::load(&record).unwrap().exit, Exit::NotStarted);
}

#[test]
fn a_signal_is_for_the_first_process_and_a_kill_for_all() {
    let mut supervisor = Supervisor::start();
    let plan =
        container(&supervisor, "trap 'exit 7' TERM; echo ready; while :; do read line </dev/zero; done");
    supervisor.create(&plan);
    supervisor.start_container(&plan);
    has_text(&supervisor.directory.path().join("0.log"), "ready");
    supervisor.done(signal(&plan, SIGTERM));
    assert_eq!(exit_of(supervisor.exit().exit), Exit::Code(7));
    supervisor.done(signal(&plan, SIGTERM));
    supervisor.done(remove(&plan));
    let (kind, message) = supervisor.refused(signal(&plan, SIGTERM), &[]);
    assert!(kind == Kind::NotFound && message.contains(plan.container.as_str()), "{message}");
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    supervisor.create(&plan);
    supervisor.start_container(&plan);
    supervisor.done(kill_all(&plan));
    assert_eq!(exit_of(supervisor.exit().exit), Exit::Signal { number: SIGKILL, oom: false });
}

#[test]
fn a_container_that_is_being_set_up_has_no_phase_yet() {
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    let file = wharf_wire::to_file(&v1::Plan::from(&plan)).unwrap();
    supervisor.send(create(&plan), &[file.as_fd()]);
    supervisor.send(hello(), &[]);
    let mut is_made = false;
    for _ in 0..2 {
        match supervisor.answer().0 {
            reply::Result::Created(_) => is_made = true,
            reply::Result::State(state) => {
                assert!([Phase::Unknown, Phase::Created].contains(&state.containers[0].phase()), "{state:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(is_made && supervisor.state().containers[0].phase() == Phase::Created);
}

/// Creating it is refused, with the place at fault, and by the reply to its removal nothing is left of it.
#[track_caller]
fn cannot_be_made(supervisor: &mut Supervisor, bad: &Plan, place: &str) {
    let file = wharf_wire::to_file(&v1::Plan::from(bad)).unwrap();
    let (kind, message) = supervisor.refused(create(bad), &[file.as_fd()]);
    assert!(kind == Kind::Invalid && message.contains(place), "{message}");
    supervisor.done(remove(bad));
    assert!(supervisor.state().containers.is_empty());
}

#[test]
fn a_container_that_cannot_be_made_is_refused_with_the_place_at_fault() {
    let mut supervisor = Supervisor::start();
    let mut bad = container(&supervisor, "true");
    bad.mounts.push(mount("/there", Source::Tree(host("/no/such/source"))));
    cannot_be_made(&mut supervisor, &bad, "/no/such/source");
    let mut supervisor = Supervisor::start();
    let mut bad = container(&supervisor, "true");
    bad.stdio.log = Some(LogFile {
        directory: host("/no/such/logs"),
        name: "0.log".into(),
        limits: LogLimits::default(),
    });
    cannot_be_made(&mut supervisor, &bad, "/no/such/logs");
    // A container that is gone counts as removed.
    supervisor.done(remove(&bad));
    assert!(supervisor.end().success());
}
