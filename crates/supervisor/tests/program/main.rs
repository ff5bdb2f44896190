//! The supervisor as a program, asked through its connection: processes, descriptors, logs and records are real. What it
//! decides is played in `machine`; here is whether that is done.

#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

mod rig;
#[path = "../../../isolation/tests/rig/plan.rs"]
mod rig_plan;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use wharf_isolation::{Input, LogFile, Plan, Source};
use wharf_state::{ExitRecord, Layout};
use wharf_types::Exit;
use wharf_wire::exit_of;
use wharf_wire::v1::{self, container_status::Phase, failure::Kind, message, reply, request};

use rig::{Fresh, Supervisor, create, has_text, hello};
use rig_plan::{host, mount, plan};

/// A container of this supervisor that runs a line of shell, and logs to `0.log`.
fn container(supervisor: &Supervisor, script: &str) -> Plan {
    let directory = supervisor.directory.path();
    let mut plan = plan(directory, script);
    plan.stdio.log = Some(LogFile { directory: host(directory), name: "0.log".into() });
    plan
}

fn signal(plan: &Plan, number: u32) -> request::Body {
    request::Body::Signal(v1::Signal { container: plan.container.to_string(), number, all: false })
}

fn kill_all(plan: &Plan) -> request::Body {
    request::Body::Signal(v1::Signal { container: plan.container.to_string(), number: 9, all: true })
}

fn remove(plan: &Plan) -> request::Body {
    request::Body::Remove(v1::Remove { container: plan.container.to_string() })
}

fn exec(plan: &Plan, script: &str) -> request::Body {
    let args = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    request::Body::Exec(v1::Exec {
        container: plan.container.to_string(),
        exec: 7,
        args,
        ..Default::default()
    })
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (File::from(read), write)
}

#[test]
fn a_container_lives_from_its_making_to_its_removal() {
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
    assert!(!record.exists() && supervisor.state().containers.is_empty());
    assert!(supervisor.end().success());
}

#[test]
fn who_it_is_to_be_is_told_of_a_container_once_it_is_made() {
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
                let status = &state.containers[0];
                assert_eq!(status.identity.is_some(), status.phase() != Phase::Unknown, "{status:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(is_made && supervisor.state().containers[0].identity.is_some());
}

#[test]
fn what_cannot_be_made_is_named_and_nothing_of_it_is_left() {
    let mut supervisor = Supervisor::start();
    let mut bad = container(&supervisor, "true");
    bad.mounts.push(mount("/there", Source::Tree(host("/no/such/source"))));
    let file = wharf_wire::to_file(&v1::Plan::from(&bad)).unwrap();
    let (kind, message) = supervisor.refused(create(&bad), &[file.as_fd()]);
    assert!(kind == Kind::Invalid && message.contains("/no/such/source"), "{message}");
    // By the answer to its removal its process is gone, and its name free.
    supervisor.done(remove(&bad));
    let mut supervisor = Supervisor::start();
    let mut bad = container(&supervisor, "true");
    bad.stdio.log = Some(LogFile { directory: host("/no/such/logs"), name: "0.log".into() });
    let file = wharf_wire::to_file(&v1::Plan::from(&bad)).unwrap();
    let (kind, message) = supervisor.refused(create(&bad), &[file.as_fd()]);
    assert!(kind == Kind::Invalid && message.contains("/no/such/logs"), "{message}");
    supervisor.done(remove(&bad));
    supervisor.done(remove(&bad));
    assert!(supervisor.state().containers.is_empty());
    assert!(supervisor.end().success());
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
    supervisor.done(signal(&plan, 15));
    assert_eq!(exit_of(supervisor.exit().exit), Exit::Code(7));
    supervisor.done(signal(&plan, 15));
    supervisor.done(remove(&plan));
    let (kind, message) = supervisor.refused(signal(&plan, 15), &[]);
    assert!(kind == Kind::NotFound && message.contains(plan.container.as_str()), "{message}");
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    supervisor.create(&plan);
    supervisor.start_container(&plan);
    supervisor.done(kill_all(&plan));
    assert_eq!(exit_of(supervisor.exit().exit), Exit::Signal { number: 9, oom: false });
}

#[test]
fn an_attached_client_has_the_containers_streams() {
    let mut supervisor = Supervisor::start();
    let mut plan = container(&supervisor, "read line; echo \"heard $line\"; echo gone >&2");
    plan.stdio.input = Input::Kept;
    supervisor.create(&plan);
    let ((mut output, stdout), (mut errors, stderr)) = (pipe(), pipe());
    let attach = v1::Attach {
        container: plan.container.to_string(),
        attach: 5,
        stdin: true,
        stdout: true,
        stderr: true,
    };
    let (answer, input) =
        supervisor.ask(request::Body::Attach(attach.clone()), &[stdout.as_fd(), stderr.as_fd()]);
    assert_eq!(answer, reply::Result::Done(v1::Done {}));
    drop((stdout, stderr));
    supervisor.start_container(&plan);
    File::from(input.into_iter().next().unwrap()).write_all(b"me\n").unwrap();
    let (mut heard, mut gone) = (String::new(), String::new());
    output.read_to_string(&mut heard).unwrap();
    errors.read_to_string(&mut gone).unwrap();
    assert_eq!((heard.as_str(), gone.as_str()), ("heard me\n", "gone\n"));
    supervisor.exit();
    let (_read, stdout) = pipe();
    let attach = v1::Attach { stderr: false, ..attach };
    let (kind, _) = supervisor.refused(request::Body::Attach(attach), &[stdout.as_fd()]);
    assert_eq!(kind, Kind::Precondition, "it has ended");
}

#[test]
fn a_log_that_was_renamed_goes_on_in_a_new_file() {
    let mut supervisor = Supervisor::start();
    let mut plan = container(&supervisor, "echo before; read line; echo after; sleep 1000");
    plan.stdio.input = Input::Kept;
    supervisor.create(&plan);
    let attach =
        v1::Attach { container: plan.container.to_string(), attach: 5, stdin: true, ..Default::default() };
    let (_, input) = supervisor.ask(request::Body::Attach(attach), &[]);
    supervisor.start_container(&plan);
    let log = supervisor.directory.path().join("0.log");
    has_text(&log, "before");
    fs::rename(&log, log.with_extension("old")).unwrap();
    let reopen = request::Body::ReopenLog(v1::ReopenLog { container: plan.container.to_string() });
    supervisor.done(reopen.clone());
    File::from(input.into_iter().next().unwrap()).write_all(b"\n").unwrap();
    has_text(&log, "after");
    assert!(!fs::read_to_string(&log).unwrap().contains("before"));
    // A directory in its place is the machine's fault, not the request's, which does not name it.
    fs::rename(&log, log.with_extension("older")).unwrap();
    fs::create_dir(&log).unwrap();
    let (kind, message) = supervisor.refused(reopen, &[]);
    assert!(kind == Kind::Internal && message.contains("0.log"), "{message}");
}

#[test]
fn a_command_runs_in_its_container_and_is_told_of() {
    let cgroup = Fresh::new("exec");
    let mut supervisor = Supervisor::start();
    let mut plan = container(&supervisor, "sleep 1000");
    plan.cgroup = cgroup.plan();
    supervisor.create(&plan);
    supervisor.start_container(&plan);
    assert!(matches!(supervisor.event(), message::Body::ContainerStarted(_)));
    let (null, (mut output, write)) = (File::open("/dev/null").unwrap(), pipe());
    let streams = [null.as_fd(), write.as_fd(), write.as_fd()];
    let (answer, _) = supervisor.ask(exec(&plan, "tr '\\0' ' ' </proc/1/cmdline; exit 4"), &streams);
    assert_eq!(answer, reply::Result::Done(v1::Done {}), "{}", supervisor.log());
    let message::Body::ExecExited(exited) = supervisor.event() else { panic!("its end is told") };
    assert_eq!((exited.exec, exit_of(exited.exit)), (7, Exit::Code(4)));
    let (answer, _) = supervisor.ask(exec(&plan, "sleep 1001"), &streams);
    assert_eq!(answer, reply::Result::Done(v1::Done {}));
    supervisor.done(request::Body::KillExec(v1::KillExec { exec: 7 }));
    let message::Body::ExecExited(exited) = supervisor.event() else { panic!("its end is told") };
    assert_eq!(exit_of(exited.exit), Exit::Signal { number: 9, oom: false });
    drop(write);
    let mut printed = String::new();
    output.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "sh -c sleep 1000 ");
    supervisor.done(remove(&plan));
    assert!(supervisor.end().success());
}

#[test]
fn a_command_without_a_cgroup_of_its_own_is_refused_with_the_place() {
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    supervisor.create(&plan);
    let null = File::open("/dev/null").unwrap();
    let streams = [null.as_fd(); 3];
    let (kind, message) = supervisor.refused(exec(&plan, "true"), &streams);
    assert!(kind == Kind::Precondition && message.contains("does not run"), "{message}");
    supervisor.start_container(&plan);
    let (kind, message) = supervisor.refused(exec(&plan, "true"), &streams);
    assert!(kind == Kind::Internal && message.contains("/nowhere"), "{message}");
}

#[test]
fn the_next_daemon_finds_what_the_last_one_left() {
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    supervisor.create(&plan);
    supervisor.start_container(&plan);
    let held = supervisor.state().held;
    supervisor.take_over();
    let state = supervisor.state();
    assert_eq!((held.len(), &state.held), (1, &held), "what it holds stays");
    assert_eq!(state.containers[0].phase(), Phase::Running);
    assert!(state.containers[0].pid > 0 && state.features.contains(&"deadlines".to_owned()), "{state:?}");
    let again = request::Body::Start(v1::Start { container: plan.container.to_string() });
    assert!(matches!(supervisor.ask(again, &[]).0, reply::Result::Started(_)), "a retry is told the same");
    assert!(supervisor.end().success());
}
