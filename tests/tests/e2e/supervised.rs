//! A pod's supervisor, with a fault at each of its steps in turn and at each step of the processes that it creates: it
//! is killed right before a system call, or the call fails. Every call gets a response, the pod can be removed, and
//! nothing is left. After a call that failed, the same supervisor continues.

use tonic::{Code, Status};

use crate::client::Client;
use crate::steps::{Fault, Tracer};
use crate::wedge::Supervisor;
use crate::world::{World, run, until};

/// Calls that make a container or remove it, and the error with which each fails.
type Changes = [(&'static str, Option<&'static str>)];

const PROCESSES: &Changes = &[
    ("clone3", Some("EAGAIN")),
    ("unshare", Some("ENOSPC")),
    ("setns", Some("EPERM")),
    ("pidfd_send_signal", Some("EPERM")),
    ("write", None),
    ("sendmsg", None),
];
const OPENED: &Changes = &[("openat2", Some("EMFILE")), ("openat", Some("ENFILE"))];
const FILES: &Changes = &[
    ("mkdirat", Some("ENOSPC")),
    ("mknodat", Some("ENOSPC")),
    ("symlinkat", Some("ENOSPC")),
    ("pipe2", Some("EMFILE")),
    ("socketpair", Some("EMFILE")),
];
const MOUNTS: &Changes = &[
    ("open_tree", Some("ENOMEM")),
    ("fsopen", Some("ENOMEM")),
    ("fsconfig", Some("ENOMEM")),
    ("fsmount", Some("ENOSPC")),
    ("move_mount", Some("ENOSPC")),
    ("mount_setattr", Some("ENOMEM")),
    ("chroot", Some("ENOMEM")),
];
const RIGHTS: &Changes = &[
    ("capset", Some("EPERM")),
    ("setgroups", Some("ENOMEM")),
    ("setresuid", Some("EAGAIN")),
    ("seccomp", Some("ENOMEM")),
    ("prlimit64", Some("EPERM")),
    ("fchdir", Some("ENOMEM")),
];

/// The codes that would tell the caller that the request was wrong, or that would tell nothing.
const BLAMES_THE_CALLER: [Code; 4] =
    [Code::InvalidArgument, Code::Unimplemented, Code::Unknown, Code::DeadlineExceeded];

#[test]
fn a_kill_at_any_step_of_processes_leaves_nothing_but_answers() {
    run(async |world| kill_at_each(world, PROCESSES).await);
}

#[test]
fn a_kill_at_any_step_of_files_leaves_nothing_but_answers() {
    run(async |world| kill_at_each(world, FILES).await);
}

#[test]
fn a_kill_where_a_file_is_opened_leaves_nothing_but_answers() {
    run(async |world| kill_at_each(world, OPENED).await);
}

#[test]
fn a_kill_at_any_step_of_mounts_leaves_nothing_but_answers() {
    run(async |world| kill_at_each(world, MOUNTS).await);
}

#[test]
fn a_kill_at_any_step_of_rights_leaves_nothing_but_answers() {
    run(async |world| kill_at_each(world, RIGHTS).await);
}

#[test]
fn a_supervisor_goes_on_whatever_step_of_processes_failed() {
    run(async |world| fail_each(world, PROCESSES).await);
}

#[test]
fn a_supervisor_goes_on_whatever_step_of_files_failed() {
    run(async |world| fail_each(world, FILES).await);
}

#[test]
fn a_supervisor_goes_on_whatever_file_could_not_be_opened() {
    run(async |world| fail_each(world, OPENED).await);
}

#[test]
fn a_supervisor_goes_on_whatever_step_of_mounts_failed() {
    run(async |world| fail_each(world, MOUNTS).await);
}

#[test]
fn a_supervisor_goes_on_whatever_step_of_rights_failed() {
    run(async |world| fail_each(world, RIGHTS).await);
}

async fn kill_at_each(world: &World, changes: &Changes) {
    let mut steps = Vec::new();
    for (change, _) in changes {
        steps.push((change, faults(world, change, Fault::Kill).await));
    }
    assert_met(&steps);
}

async fn fail_each(world: &World, changes: &Changes) {
    let mut steps = Vec::new();
    for (change, error) in changes {
        let Some(error) = error else { continue };
        steps.push((change, faults(world, change, Fault::Error(error)).await));
    }
    assert_met(&steps);
}

/// A call that is never made would test nothing.
fn assert_met(steps: &[(&&str, usize)]) {
    println!("{steps:?}");
    assert!(steps.iter().all(|(_, count)| *count > 0), "some were never met: {steps:?}");
}

/// Injects a fault into the first call of a kind, the second, and so on, each in its own pod; returns how many there
/// are.
async fn faults(world: &World, change: &str, fault: Fault) -> usize {
    let daemon = world.daemon.pid();
    let mut nth = 1;
    loop {
        let name = format!("{change}-{nth}");
        let pod = world.client.run(&world.client.pod(&name)).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        let mut tracer = Tracer::attach_to(world, supervisor.pid(), change, fault, nth);
        let lived = live(&world.client, &pod, "main").await;
        if let Err(error) = &lived {
            assert!(!BLAMES_THE_CALLER.contains(&error.code()), "{name}: {error}");
        }
        if matches!((fault, &lived), (Fault::Kill, Err(_) | Ok(Exec::Failed))) {
            // The supervisor's end is known here before strace has written what it saw.
            until("strace has recorded the kill", async || tracer.has_met().then_some(())).await;
        }
        tracer.end(fault);
        if matches!(fault, Fault::Error(_)) {
            live(&world.client, &pod, "next").await.unwrap_or_else(|error| panic!("after {name}: {error}"));
        }
        world.client.down(&pod).await.unwrap_or_else(|error| panic!("after {name}: {error}"));
        world.is_clean().await;
        assert_eq!(world.daemon.pid(), daemon, "it never ended");
        if !tracer.has_met() {
            return nth - 1;
        }
        nth += 1;
    }
}

/// What became of a command.
enum Exec {
    Succeeded,
    Failed,
}

/// A container's life; returns its first error, if any, and removes the container in any case.
async fn live(client: &Client, pod: &str, name: &str) -> Result<Exec, Status> {
    let container = client.create(pod, &client.container(name, "echo begun; sleep 1000")).await?;
    let lived = work(client, &container).await;
    let removed = client.remove_container(&container).await;
    lived.and_then(|exec| removed.map(|()| exec))
}

async fn work(client: &Client, container: &str) -> Result<Exec, Status> {
    client.start(container).await?;
    let output = client.exec(container, "echo fine", 20).await?;
    assert!(output.exit_code != 0 || output.stdout == b"fine\n", "{output:?}");
    client.stop_container(container, 0).await?;
    Ok(if output.exit_code == 0 { Exec::Succeeded } else { Exec::Failed })
}
