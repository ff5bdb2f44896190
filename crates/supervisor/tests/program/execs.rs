//! Commands in containers.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};

use wharf_isolation::{Plan, Source};
use wharf_types::Exit;
use wharf_types::signal::SIGKILL;
use wharf_wire::exit_of;
use wharf_wire::v1::{self, failure::Kind, message, reply, request};

use crate::rig::{Fresh, Supervisor};
use crate::rig_plan::mount;
use crate::{container, pipe, remove};

fn exec(plan: &Plan, script: &str) -> v1::Exec {
    let args = ["sh", "-c", script].map(|word| word.as_bytes().to_vec()).to_vec();
    v1::Exec { container: plan.container.to_string(), exec: 7, args, ..Default::default() }
}

/// A supervisor with a container that runs, in a cgroup in which commands can have theirs.
struct Running {
    supervisor: Supervisor,
    plan: Plan,
    output: File,
    stream: OwnedFd,
    _cgroup: Fresh,
}

impl Running {
    fn new(name: &str) -> Self {
        let cgroup = Fresh::new(name);
        let mut supervisor = Supervisor::start();
        let mut plan = container(&supervisor, "sleep 1000");
        let options = vec![("ptmxmode".to_owned(), "0666".to_owned())];
        plan.mounts.push(mount("/dev/pts", Source::Filesystem { kind: "devpts".to_owned(), options }));
        plan.cgroup = cgroup.plan();
        supervisor.create(&plan);
        supervisor.start_container(&plan);
        assert!(matches!(supervisor.event(), message::Body::ContainerStarted(_)));
        let (output, stream) = pipe();
        Self { supervisor, plan, output, stream, _cgroup: cgroup }
    }

    /// Executes a command, whose output is in the pipe, and returns what came with the reply.
    #[track_caller]
    fn exec(&mut self, exec: v1::Exec) -> Vec<OwnedFd> {
        let null = File::open("/dev/null").unwrap();
        let streams = [null.as_fd(), self.stream.as_fd(), self.stream.as_fd()];
        let (answer, descriptors) = self.supervisor.ask(request::Body::Exec(exec), &streams);
        assert_eq!(answer, reply::Result::Done(v1::Done {}), "{}", self.supervisor.log());
        descriptors
    }

    /// How the command ended, once it has.
    #[track_caller]
    fn exit(&mut self) -> Exit {
        match self.supervisor.event() {
            message::Body::ExecExited(exited) => {
                assert_eq!(exited.exec, 7);
                exit_of(exited.exit)
            }
            other => panic!("{other:?} is no end of a command"),
        }
    }

    /// Everything that was written to the pipe, once nobody has it open any more.
    fn printed(self) -> String {
        let Self { mut supervisor, plan, mut output, stream, _cgroup } = self;
        drop(stream);
        let mut printed = String::new();
        output.read_to_string(&mut printed).unwrap();
        supervisor.done(remove(&plan));
        assert!(supervisor.end().success());
        printed
    }
}

#[test]
fn a_command_runs_in_its_container_and_its_end_is_notified() {
    let mut running = Running::new("exec");
    running.exec(exec(&running.plan, "tr '\\0' ' ' </proc/1/cmdline; exit 4"));
    assert_eq!(running.exit(), Exit::Code(4));
    assert_eq!(running.printed(), "sh -c sleep 1000 ");
}

#[test]
fn a_command_is_killed_with_all_that_it_started() {
    let mut running = Running::new("kill");
    // The pipe closes only when the child in the background is gone as well.
    running.exec(exec(&running.plan, "sleep 1001 & sleep 1002"));
    running.supervisor.done(request::Body::KillExec(v1::KillExec { exec: 7 }));
    assert_eq!(running.exit(), Exit::Signal { number: SIGKILL, oom: false });
    assert_eq!(running.printed(), "");
}

#[test]
fn a_command_ends_with_the_daemon_that_requested_it() {
    let mut running = Running::new("orphan");
    running.exec(exec(&running.plan, "echo begun; sleep 1001"));
    let mut begun = [0; 6];
    running.output.read_exact(&mut begun).unwrap();
    running.supervisor.take_over();
    assert_eq!(running.supervisor.state().containers.len(), 1, "the container lives on");
    assert_eq!(running.printed(), "");
}

#[test]
fn a_command_has_its_own_terminal() {
    let mut running = Running::new("terminal");
    let size = Some(v1::TerminalSize { width: 80, height: 25 });
    let script = "stty size; echo $TERM";
    let terminal = running.exec(v1::Exec { terminal: true, size, ..exec(&running.plan, script) });
    let [terminal] = <[OwnedFd; 1]>::try_from(terminal).unwrap();
    assert_eq!(running.exit(), Exit::Code(0));
    let mut shown = Vec::new();
    // After the last byte the end of a terminal is an error.
    File::from(terminal).read_to_end(&mut shown).unwrap_err();
    assert_eq!(String::from_utf8(shown).unwrap(), "25 80\r\nxterm\r\n");
    assert_eq!(running.printed(), "");
}

#[test]
fn a_program_that_is_missing_is_refused_and_exits_as_not_started() {
    let mut running = Running::new("missing");
    let missing = v1::Exec { args: vec![b"no-such".to_vec()], ..exec(&running.plan, "") };
    let null = File::open("/dev/null").unwrap();
    let (_, message) = running.supervisor.refused(request::Body::Exec(missing), &[null.as_fd(); 3]);
    assert!(message.contains("\"no-such\""), "{message}");
    assert!(matches!(running.supervisor.event(), message::Body::ExecExited(_)));
}

#[test]
fn a_command_without_a_cgroup_of_its_own_is_refused_with_the_place() {
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    supervisor.create(&plan);
    let null = File::open("/dev/null").unwrap();
    let exec = request::Body::Exec(exec(&plan, "true"));
    let (kind, message) = supervisor.refused(exec.clone(), &[null.as_fd(); 3]);
    assert!(kind == Kind::Precondition && message.contains("does not run"), "{message}");
    supervisor.start_container(&plan);
    let (kind, message) = supervisor.refused(exec, &[null.as_fd(); 3]);
    assert!(kind == Kind::Internal && message.contains("/nowhere"), "{message}");
}
