//! A container whose first process is a shell, without namespaces and without a cgroup of its own.
#![expect(clippy::disallowed_methods, reason = "some process is needed that is a child")]

use super::*;
use crate::child::Role;
use crate::refusing::refusing;
use crate::stages::Stages;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use wharf_isolation::{CgroupPlan, Input, Namespaces, PidNamespace, Process, Traits, User};
use wharf_sys::capabilities::Capabilities;
use wharf_sys::process::{await_end, open_pidfd};
use wharf_sys::seccomp::Call;
use wharf_types::ContainerPath;
use wharf_types::signal::SIGTERM;
use wharf_wire::exit_of;

/// A container, and the directory in which the files of its cgroup would be.
struct Rig {
    directory: tempfile::TempDir,
    container: Container,
    /// Reaped by the container.
    _process: std::process::Child,
}

fn outline(directory: &Path) -> Outline {
    let file = |name: &str| HostPath::new(directory.join(name).to_str().unwrap()).unwrap();
    Outline {
        container: ContainerId::from_random([3; 32]),
        namespaces: Namespaces {
            net: None,
            ipc: None,
            uts: None,
            user: None,
            pid: PidNamespace::Host,
            cgroup: false,
        },
        cgroup: CgroupPlan {
            directory: None,
            entries: vec![file("a/tasks"), file("b/tasks")],
            kill_directory: file("a"),
            oom_file: Some(file("oom")),
        },
        process: Process {
            args: vec![b"sh".to_vec()],
            env: vec![b"A=b".to_vec()],
            cwd: ContainerPath::new("/").unwrap(),
            user: User::default(),
            capabilities: Capabilities::default(),
            no_new_privileges: false,
            limits: Vec::new(),
            oom_score_adj: None,
            traits: Traits::default(),
            apparmor: None,
            selinux: None,
            seccomp: Vec::new(),
            seccomp_flags: 0,
        },
        stdio: wharf_isolation::Stdio { log: None, input: Input::Empty, terminal: false },
        runtime: None,
        mount_label: None,
    }
}

impl Rig {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
            std::fs::write(directory.path().join(name).join("tasks"), "").unwrap();
        }
        let process = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        let pid = process.id().cast_signed();
        let (report, _line) = wharf_sys::socket::pair().unwrap();
        std::fs::write(directory.path().join("oom"), "oom_kill 0\n").unwrap();
        let child = Child::new(pid, open_pidfd(pid).unwrap(), report, Role::Program);
        let container = Container::new(outline(directory.path()), None, child, Stages::begin());
        Self { directory, container, _process: process }
    }

    /// The kernel has killed processes of this container.
    fn oom_kill(&self) {
        std::fs::write(self.directory.path().join("oom"), "low 0\noom_kill 2\n").unwrap();
    }

    /// How the container ended, once it has.
    fn exit(mut self) -> Exit {
        await_end(self.container.child.pidfd.as_fd()).unwrap();
        let exit = self.container.ended().unwrap();
        assert_eq!(self.container.ended(), Some(exit), "it stays a zombie");
        assert_eq!(self.container.number(), Some(self.container.child.pid));
        self.container.reap();
        assert_eq!(self.container.number(), None, "a stray with the same number is to be reaped");
        assert_eq!(self.container.ended(), Some(Exit::Lost));
        exit
    }
}

#[test]
fn an_end_by_sigkill_is_oom_if_the_kernel_counted_one() {
    let killed = |oom| Exit::Signal { number: SIGKILL, oom };
    let asked_to_end = Exit::Signal { number: SIGTERM, oom: false };
    for (script, oom, quiet) in [
        ("kill -KILL $$", killed(true), killed(false)),
        // A shell reports the SIGKILL of its child like this.
        ("exit 137", killed(true), Exit::Code(SHELL_OF_KILLED)),
        ("kill -TERM $$", asked_to_end, asked_to_end),
        ("exit 1", Exit::Code(1), Exit::Code(1)),
    ] {
        let rig = Rig::new(script);
        rig.oom_kill();
        assert_eq!((rig.exit(), Rig::new(script).exit()), (oom, quiet), "{script}");
    }
}

#[test]
fn a_kill_on_request_is_no_oom_kill_although_one_was_counted_before() {
    let mut rig = Rig::new("read forever </dev/zero");
    rig.oom_kill();
    rig.container.signal(SIGKILL.into()).unwrap();
    assert_eq!(rig.exit(), Exit::Signal { number: SIGKILL, oom: false });
}

/// It may be as long as an image likes, and the container may stay for as long as its pod.
#[test]
fn of_a_container_that_has_ended_no_text_of_its_image_is_kept() {
    let mut rig = Rig::new("true");
    let process = &rig.container.plan.process;
    assert_eq!((process.args.len(), process.env.len()), (0, 1), "commands have arguments of their own");
    rig.container.end();
    assert_eq!((rig.container.plan.process.env.capacity(), rig.container.first), (0, First::Ended));
    rig.exit();
}

#[test]
fn execs_enter_all_cgroups_but_the_one_below_which_they_have_their_own() {
    let rig = Rig::new("true");
    let entries = rig.container.entries().unwrap();
    let [entry] = entries[..] else { panic!("{entries:?}") };
    let opened = std::fs::read_link(format!("/proc/self/fd/{}", entry.as_raw_fd())).unwrap();
    assert_eq!(opened, rig.directory.path().join("b/tasks"));
    let again = rig.container.entries().unwrap();
    assert_eq!(again[0].as_raw_fd(), entry.as_raw_fd(), "it stays open");
    rig.exit();
}

/// v1's freezer holds back even SIGKILL, and a container may freeze itself.
#[test]
fn a_command_that_is_to_die_is_thawed() {
    let rig = Rig::new("true");
    let leaf = rig.directory.path().join("b/exec-1.mount");
    std::fs::create_dir(&leaf).unwrap();
    let states = [&rig.directory.path().join("b"), &leaf].map(|cgroup| cgroup.join("freezer.state"));
    states.iter().for_each(|state| std::fs::write(state, "FROZEN").unwrap());
    let process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let pid = process.id().cast_signed();
    let (report, _line) = wharf_sys::socket::pair().unwrap();
    let child = Child::new(pid, open_pidfd(pid).unwrap(), report, Role::Program);
    let container = rig.container.plan.container.clone();
    let mut exec = Exec { container, child, terminal: None, leaf, condemned: false };
    let kill_directory = HostPath::new(rig.directory.path().to_str().unwrap()).unwrap();
    let enclosed = CgroupPlan { kill_directory, ..rig.container.plan.cgroup.clone() };
    exec.kill(Some(&enclosed));
    states.iter().for_each(|state| assert_eq!(std::fs::read_to_string(state).unwrap(), "THAWED"));
    await_end(exec.child.pidfd.as_fd()).unwrap();
    assert_eq!(exec.ended(), Some(Exit::Signal { number: SIGKILL, oom: false }));
    drop(process);
    rig.exit();
}

/// A command that leaves a process running leaves its cgroup, and a probe that does so may run each second for years.
#[test]
fn of_the_cgroups_that_commands_left_a_few_are_retried_at_a_time_and_all_in_the_end() {
    let mut rig = Rig::new("true");
    let leaves: Vec<_> = (0..10).map(|exec| rig.directory.path().join(format!("exec-{exec}"))).collect();
    leaves.iter().for_each(|leaf| std::fs::create_dir(leaf).unwrap());
    refusing(Call::RMDIR, nix::errno::Errno::EBUSY, || {
        leaves.iter().for_each(|leaf| rig.container.remove_leaf(leaf.clone()));
    });
    let left = || leaves.iter().filter(|leaf| leaf.exists()).count();
    assert_eq!(left(), 10, "something runs in each");
    let mut seen = vec![left()];
    while left() > 0 {
        let next = rig.directory.path().join("exec-next");
        std::fs::create_dir(&next).unwrap();
        rig.container.remove_leaf(next.clone());
        assert!(!next.exists(), "its own is removed at once");
        seen.push(left());
    }
    assert_eq!(seen, [10, 7, 4, 1, 0]);
    rig.exit();
}

/// Whether the status has a phase, and the times of the start and of the end.
#[track_caller]
fn is_shown(phase: Phase, as_phase: container_status::Phase, times: (i64, i64)) {
    let rig = Rig::new("true");
    let status = rig.container.status(phase);
    assert_eq!((status.phase(), (status.started_at_ns, status.finished_at_ns)), (as_phase, times));
    assert_eq!(status.exit.map(|exit| exit_of(Some(exit))), (times.1 > 0).then_some(Exit::Code(3)));
    rig.exit();
}

#[test]
fn the_status_has_what_is_known_in_each_phase() {
    use container_status::Phase as Wire;
    let request = crate::link::RequestId::of_test(1);
    let record = wharf_state::ExitRecord { exit: Exit::Code(3), started_at_ns: 5, finished_at_ns: 6 };
    for phase in [Phase::Failed, Phase::Removing { request }, Phase::Gone] {
        is_shown(phase, Wire::Unknown, (0, 0));
    }
    is_shown(Phase::Created, Wire::Created, (0, 0));
    for phase in [Phase::Starting { request }, Phase::NotStarted] {
        is_shown(phase, Wire::Starting, (0, 0));
    }
    is_shown(Phase::Running { started_at_ns: 5 }, Wire::Running, (5, 0));
    for phase in [Phase::Ended, Phase::Recording, Phase::Unrecorded, Phase::Exited] {
        is_shown(phase(record), Wire::Exited, (5, 6));
    }
}
