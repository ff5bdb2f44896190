//! Daemons that come and go, and what they may send.

use std::fs;
use std::os::fd::AsFd as _;

use wharf_state::Layout;
use wharf_wire::v1::{self, container_status::Phase, failure::Kind, reply, request};

use crate::container;
use crate::rig::{Supervisor, create};

#[test]
fn the_next_daemon_finds_what_the_last_one_left() {
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    supervisor.create(&plan);
    supervisor.start_container(&plan);
    let held = supervisor.state().held;
    supervisor.take_over();
    let state = supervisor.state();
    assert_eq!((held.len(), &state.held), (2, &held), "what it holds stays");
    assert_eq!(state.containers[0].phase(), Phase::Running);
    assert!(state.containers[0].pid > 0 && state.features.contains(&"deadlines".to_owned()), "{state:?}");
    let again = request::Body::Start(v1::Start { container: plan.container.to_string() });
    assert!(matches!(supervisor.ask(again, &[]).0, reply::Result::Started(_)), "a retry is told the same");
    assert!(supervisor.end().success());
}

/// systemd-shutdown waits 90 s for whoever stays.
#[test]
fn it_ends_with_the_machine_if_no_process_is_left() {
    let mut supervisor = Supervisor::start_below_init();
    supervisor.end_machine();
    assert!(supervisor.ended().success(), "{}", supervisor.log());
}

#[test]
fn nobody_but_init_ends_it_by_a_signal() {
    let mut supervisor = Supervisor::start();
    let pid = nix::unistd::Pid::from_raw(supervisor.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(supervisor.state().containers.is_empty());
    assert!(supervisor.end().success());
}

#[test]
fn a_held_descriptor_is_lent_and_others_are_refused() {
    let mut supervisor = Supervisor::start();
    let lend = |held: v1::Held| request::Body::Lend(v1::Lend { held: held.into() });
    let (answer, lent) = supervisor.ask(lend(v1::Held::Mounts), &[]);
    assert_eq!((answer, lent.len()), (reply::Result::Done(v1::Done {}), 1));
    let (kind, message) = supervisor.refused(lend(v1::Held::Network), &[]);
    assert!(kind == Kind::Precondition && message.contains("no Network"), "{message}");
}

#[test]
fn a_request_whose_caller_has_given_up_does_nothing() {
    let mut supervisor = Supervisor::start();
    let plan = container(&supervisor, "sleep 1000");
    let file = wharf_wire::to_file(&v1::Plan::from(&plan)).unwrap();
    supervisor.send_until(1, create(&plan), &[file.as_fd()]);
    let (reply::Result::Failure(failure), _) = supervisor.answer() else { panic!("it is refused") };
    assert_eq!(failure.kind(), Kind::Expired);
    assert!(supervisor.state().containers.is_empty());
}

#[test]
fn the_supervisors_own_log_is_bounded_whatever_daemons_send() {
    let mut supervisor = Supervisor::start();
    let log = Layout::supervisor_log(&supervisor.pod());
    // Each connection ends with a line in the log.
    while !fs::read_to_string(&log).unwrap().ends_with("no more is noted here\n") {
        supervisor.take_over();
        supervisor.send_bytes(&[0xff; 100]);
        assert!(supervisor.is_disconnected());
    }
    let full = fs::metadata(&log).unwrap().len();
    assert!((60_000..70_000).contains(&full), "{full}");
    supervisor.take_over();
    supervisor.send_bytes(&[0xff; 100]);
    assert!(supervisor.is_disconnected());
    assert_eq!(fs::metadata(&log).unwrap().len(), full);
    supervisor.take_over();
    assert!(supervisor.state().containers.is_empty());
}
