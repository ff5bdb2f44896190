//! Containers' outputs: logs, the log writer, and attached clients.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use wharf_isolation::{Input, Plan};
use wharf_state::Layout;
use wharf_wire::v1::{self, failure::Kind, message, reply, request};

use crate::rig::{Supervisor, has_text};
use crate::{container, pipe};

/// A request to attach to the container's input alone.
fn attach(plan: &Plan) -> v1::Attach {
    v1::Attach { container: plan.container.to_string(), attach: 5, stdin: true, ..Default::default() }
}

/// Creates and starts a container, and returns its input.
fn start(supervisor: &mut Supervisor, script: &str) -> (Plan, File) {
    let mut plan = container(supervisor, script);
    plan.stdio.input = Input::Kept;
    supervisor.create(&plan);
    let (_, input) = supervisor.ask(request::Body::Attach(attach(&plan)), &[]);
    supervisor.start_container(&plan);
    (plan, File::from(input.into_iter().next().unwrap()))
}

/// Attaches to both outputs, and returns the other ends of the pipes, with the input.
fn attach_to_all(supervisor: &mut Supervisor, plan: &Plan) -> [File; 3] {
    let ((output, stdout), (errors, stderr)) = (pipe(), pipe());
    let attach = request::Body::Attach(v1::Attach { stdout: true, stderr: true, ..attach(plan) });
    let (answer, input) = supervisor.ask(attach, &[stdout.as_fd(), stderr.as_fd()]);
    assert_eq!(answer, reply::Result::Done(v1::Done {}));
    let [input] = <[OwnedFd; 1]>::try_from(input).unwrap();
    [File::from(input), output, errors]
}

#[test]
fn an_attached_client_has_the_containers_streams() {
    let mut supervisor = Supervisor::start();
    let mut plan = container(&supervisor, "read line; echo \"heard $line\"; echo gone >&2");
    plan.stdio.input = Input::Kept;
    supervisor.create(&plan);
    let [mut input, mut output, mut errors] = attach_to_all(&mut supervisor, &plan);
    supervisor.start_container(&plan);
    input.write_all(b"me\n").unwrap();
    let (mut heard, mut gone) = (String::new(), String::new());
    output.read_to_string(&mut heard).unwrap();
    errors.read_to_string(&mut gone).unwrap();
    assert_eq!((heard.as_str(), gone.as_str()), ("heard me\n", "gone\n"));
    supervisor.exit();
    let (_read, stdout) = pipe();
    let late = request::Body::Attach(v1::Attach { stdout: true, ..attach(&plan) });
    let (kind, _) = supervisor.refused(late, &[stdout.as_fd()]);
    assert_eq!(kind, Kind::Precondition, "it has ended");
}

#[test]
fn a_client_that_does_not_read_is_detached_and_the_container_goes_on() {
    let mut supervisor = Supervisor::start();
    // More than a pipe holds, then a line for the log.
    let (plan, mut go) = start(&mut supervisor, "read go; yes | head -c 300000; echo done");
    assert!(matches!(supervisor.event(), message::Body::ContainerStarted(_)));
    let (_output, stdout) = pipe();
    let attach = v1::Attach { attach: 6, stdin: false, stdout: true, ..attach(&plan) };
    let (answer, _) = supervisor.ask(request::Body::Attach(attach), &[stdout.as_fd()]);
    assert_eq!(answer, reply::Result::Done(v1::Done {}));
    go.write_all(b"\n").unwrap();
    assert_eq!(supervisor.event(), message::Body::Detached(v1::Detached { attach: 6 }));
    has_text(&supervisor.directory.path().join("0.log"), "stdout F done\n");
    supervisor.exit();
}

#[test]
fn a_container_that_floods_its_log_holds_up_no_request() {
    let mut supervisor = Supervisor::start();
    let (_plan, _input) = start(&mut supervisor, "exec yes");
    has_text(&supervisor.directory.path().join("0.log"), "stdout F y\n");
    for _ in 0..100 {
        assert_eq!(supervisor.state().containers.len(), 1);
    }
    assert!(supervisor.end().success());
}

#[test]
fn a_log_that_was_renamed_goes_on_in_a_new_file() {
    let mut supervisor = Supervisor::start();
    let (plan, mut input) = start(&mut supervisor, "echo before; read line; echo after; sleep 1000");
    let log = supervisor.directory.path().join("0.log");
    has_text(&log, "before");
    fs::rename(&log, log.with_extension("old")).unwrap();
    let reopen = request::Body::ReopenLog(v1::ReopenLog { container: plan.container.to_string() });
    supervisor.done(reopen.clone());
    input.write_all(b"\n").unwrap();
    has_text(&log, "after");
    assert!(!fs::read_to_string(&log).unwrap().contains("before"));
    // A directory in its place is the machine's fault, not the request's, which does not name it.
    fs::rename(&log, log.with_extension("older")).unwrap();
    fs::create_dir(&log).unwrap();
    let (kind, message) = supervisor.refused(reopen, &[]);
    assert!(kind == Kind::Internal && message.contains("0.log"), "{message}");
}

/// What the children of a supervisor have as their standard error, by their programs.
fn standard_errors(supervisor: &Supervisor) -> Vec<(String, PathBuf)> {
    let pid = supervisor.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children = children.split_whitespace().map(|child| {
        let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap().trim_end().to_owned();
        (name, fs::read_link(format!("/proc/{child}/fd/2")).unwrap())
    });
    children.collect()
}

#[test]
fn the_log_writer_has_the_supervisors_own_log_and_no_other_child_has() {
    let mut supervisor = Supervisor::start();
    let (_plan, _input) = start(&mut supervisor, "echo begun; exec sleep 1000");
    has_text(&supervisor.directory.path().join("0.log"), "begun");
    let own = Layout::supervisor_log(&supervisor.pod());
    let children = standard_errors(&supervisor);
    assert_eq!(children.len(), 2, "{children:?}");
    for (name, errors) in children {
        assert_eq!(name == "wharf-shim", errors == own, "{name} has {errors:?}");
    }
}
