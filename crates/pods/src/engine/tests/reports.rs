//! What supervisors report, and what commands and attached clients learn of it.

use std::time::Duration;

use wharf_state::ExitRecord;
use wharf_types::{ContainerId, ContainerState, ErrorKind, Exit, Failure as _, StreamOptions};
use wharf_wire::v1::container_status::Phase;
use wharf_wire::v1::failure::Kind;
use wharf_wire::v1::{ContainerStarted, Detached};

use super::supervisor::{Body, COMMAND_CODE, Supervisor, exited};
use super::world::{alone, until};
use crate::container::Container;
use crate::pod::Pod;

fn id(byte: u8) -> ContainerId {
    ContainerId::from_random([byte; 32])
}

/// A container that an earlier daemon left, listed.
fn unknown(pod: &Pod, byte: u8) -> std::sync::Arc<Container> {
    let container = std::sync::Arc::new(Container::unknown(pod, byte));
    pod.insert(std::sync::Arc::clone(&container));
    container
}

#[test]
fn a_supervisor_that_is_back_says_what_became_of_each_container() {
    alone(async |world| {
        let (pod, first) = world.pod().await;
        let own = world.create(&pod).await;
        let (running, waiting) = (unknown(&pod, 1), unknown(&pod, 2));
        let (supervisor, socket) = Supervisor::start();
        supervisor.hold(own.id(), Phase::Exited);
        supervisor.hold(running.id(), Phase::Running);
        supervisor.hold(waiting.id(), Phase::Created);
        world.watch(&pod, socket).await;
        assert_eq!(own.exit(), Exit::Lost, "it reports no exit, and none is on disk");
        assert_eq!(running.known(), Some(ContainerState::Running { started_at_ns: 10 }));
        assert_eq!(waiting.known(), Some(ContainerState::Created));
        drop(first);
    });
}

/// It was killed without its supervisor, whose connection was just being made anew.
#[test]
fn an_end_that_counted_as_lost_is_known_once_the_supervisor_is_back() {
    alone(async |world| {
        let (pod, first) = world.pod().await;
        let own = world.create(&pod).await;
        let end = |exit| ExitRecord { exit, started_at_ns: 1, finished_at_ns: 2 };
        assert!(own.note_exit(end(Exit::Lost)));
        end(Exit::Code(5)).save(&world.layout().exit_record(pod.id(), own.id())).unwrap();
        let (supervisor, socket) = Supervisor::start();
        supervisor.hold(own.id(), Phase::Exited);
        world.watch(&pod, socket).await;
        assert_eq!(own.exit(), Exit::Code(5));
        drop(first);
    });
}

/// The connection broke after the first process was made, and is back before the container is listed.
#[test]
fn an_end_that_came_while_the_container_was_being_made_and_nobody_listened_is_not_lost() {
    alone(async |world| {
        let (pod, first) = world.pod().await;
        let own = world.create(&pod).await;
        world.engine.table.remove_container(&pod, &own);
        pod.making().insert(own.id().clone(), None);
        let (supervisor, socket) = Supervisor::start();
        supervisor.hold_ended(own.id(), Exit::Code(5));
        world.watch(&pod, socket).await;
        world.engine.publish(&pod, &own).unwrap();
        assert!(own.is_exited() && own.exit() == Exit::Code(5));
        assert_eq!(supervisor.asked(), [""; 0], "nobody disowned it");
        drop(first);
    });
}

/// As if it had been listed just after a report was compared with the list.
#[test]
fn a_container_that_was_made_meanwhile_is_not_disowned() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let own = world.create(&pod).await;
        let connection = pod.connection().unwrap();
        for container in [own.id(), &id(9)] {
            world.engine.disown_unknown(&pod, &connection, container.as_str());
        }
        until(|| supervisor.asked().ends_with(&["remove".to_owned()])).await;
        assert_eq!(supervisor.asked(), ["create", "kill", "remove"], "of the other one");
    });
}

#[test]
fn a_container_that_is_nobodys_is_ended() {
    alone(async |world| {
        let (pod, _first) = world.pod().await;
        pod.leave_alone(id(3));
        let (supervisor, socket) = Supervisor::start();
        supervisor.hold(&id(3), Phase::Running);
        supervisor.hold(&id(4), Phase::Running);
        world.watch(&pod, socket).await;
        until(|| supervisor.asked() == ["kill", "remove"]).await;
        supervisor.report(exited(id(5).as_str(), Exit::Code(0)));
        until(|| supervisor.asked().len() == 4).await;
    });
}

#[test]
fn reports_come_in_any_order_and_count_once() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        let name = container.id().to_string();
        let mut events = world.engine.subscribe();
        let started = ContainerStarted { container: name.clone(), started_at_ns: 9 };
        supervisor.report(Body::ContainerStarted(started.clone()));
        supervisor.report(exited(&name, Exit::Code(5)));
        supervisor.report(exited(&name, Exit::Code(6)));
        supervisor.report(Body::ContainerStarted(started));
        // These are in order, so the rest has been noted when this has.
        supervisor.report(exited(id(9).as_str(), Exit::Lost));
        until(|| supervisor.asked().ends_with(&["kill".to_owned(), "remove".to_owned()])).await;
        assert_eq!(container.exit(), Exit::Code(5));
        let told = std::iter::from_fn(|| events.try_recv().ok()).count();
        assert_eq!(told, 2, "its start and its end");
    });
}

#[test]
fn a_supervisor_that_dies_ends_all_that_is_in_its_pod() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let waiting = pod.execs().add(77);
        supervisor.die();
        container.exited().await;
        assert_eq!(container.exit(), Exit::Lost);
        assert!(waiting.await.is_err(), "a command ended with it");
        assert!(!pod.facts().is_ready);
        assert_eq!(pod.connected().await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        world.engine.remove_container(container.id().as_str()).await.unwrap();
        world.assert_no_container(&pod, "removed without a supervisor");
    });
}

#[test]
fn a_command_gives_its_output_and_its_exit_code() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let run = || world.engine.exec_sync(container.id().as_str(), vec!["/probe".to_owned()], None);
        let output = run().await.unwrap();
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"output"[..], &b"problems"[..]));
        assert_eq!(output.exit_code, i32::from(COMMAND_CODE));
        supervisor.refuse("exec", Kind::Precondition);
        assert_eq!(run().await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    });
}

#[test]
fn a_command_that_is_too_long_for_the_kernel_is_not_passed_on() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let command = vec!["x".to_owned(); 1 << 20];
        let refused = world.engine.exec_sync(container.id().as_str(), command, None).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(!supervisor.asked().contains(&"exec".to_owned()));
    });
}

#[test]
fn a_command_that_does_not_end_in_time_is_killed() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        supervisor.ignore("exec");
        let limit = Some(Duration::from_millis(1));
        let run = world.engine.exec_sync(container.id().as_str(), vec!["/probe".to_owned()], limit);
        assert_eq!(run.await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        until(|| supervisor.asked().contains(&"kill exec".to_owned())).await;
    });
}

#[test]
fn only_what_runs_executes_commands() {
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.create(&pod).await;
        let name = container.id().as_str();
        let run = || world.engine.exec_sync(name, vec!["/probe".to_owned()], None);
        assert_eq!(run().await.unwrap_err().kind(), ErrorKind::FailedPrecondition, "it waits for its start");
        assert!(world.engine.running_container(name).is_err() && world.engine.live_container(name).is_ok());
        supervisor.report(exited(name, Exit::Code(0)));
        container.exited().await;
        assert_eq!(run().await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert!(world.engine.live_container(name).is_err());
        assert_eq!(world.engine.reopen_log(name).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
        assert_eq!(supervisor.asked(), ["create"], "nobody was asked");
    });
}

#[test]
fn an_attached_client_learns_of_the_end_or_that_it_was_too_slow() {
    const OUTPUT: StreamOptions = StreamOptions { stdin: false, stdout: true, stderr: true, terminal: false };
    alone(async |world| {
        let (pod, supervisor) = world.pod().await;
        let container = world.start(&pod).await;
        let name = container.id().as_str();
        let terminal = StreamOptions { terminal: true, ..OUTPUT };
        let refused = world.engine.attach(name, terminal).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        let slow = world.engine.attach(name, OUTPUT).await.unwrap();
        let number = supervisor.attached().pop().unwrap();
        supervisor.report(Body::Detached(Detached { attach: number }));
        assert_eq!(slow.exit.await.unwrap_err().kind(), ErrorKind::ResourceExhausted);
        let attached = world.engine.attach(name, OUTPUT).await.unwrap();
        assert!(attached.stdin.is_none() && attached.stdout.is_some() && attached.stderr.is_some());
        supervisor.report(exited(name, Exit::Code(4)));
        assert_eq!(attached.exit.await.unwrap(), Exit::Code(4));
    });
}
