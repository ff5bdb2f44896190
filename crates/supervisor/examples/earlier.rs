//! `earlier DIRECTORY`: a stand-in for the supervisor of a pod that an earlier release made. It replies like that
//! supervisor, which holds nothing for its pod, but creates no process: it appends the plan of each requested container
//! to the file `plans` in the pod's directory.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wharf_state::Layout;
use wharf_sys::socket;
use wharf_types::signal::SIGKILL;
use wharf_wire::v1::{self, Message, Reply, Request, message, reply, request::Body};

/// The features of the last release before supervisors held namespaces.
const FEATURES: [&str; 3] = ["deadlines", "read-only-last", "volumes"];

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<(), Failed> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("no directory")?);
    let listener = socket::listen(&Layout::supervisor_socket(&directory))?;
    let mut pod = Earlier { directory: &directory, containers: BTreeSet::new() };
    loop {
        poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        let (daemon, _) = socket::accept(listener.as_fd())?;
        while let Some((request, descriptors)) = wharf_wire::receive::<Request>(daemon.as_fd())? {
            let is_last = matches!(request.body, Some(Body::Shutdown(_)));
            pod.serve(daemon.as_fd(), request, descriptors)?;
            if is_last {
                return Ok(());
            }
        }
    }
}

struct Earlier<'a> {
    directory: &'a Path,
    containers: BTreeSet<String>,
}

impl Earlier<'_> {
    fn serve(
        &mut self,
        daemon: BorrowedFd<'_>,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), Failed> {
        let result = self.result(request.body.as_ref(), descriptors)?;
        send(daemon, message::Body::Reply(Reply { id: request.id, result: Some(result) }))?;
        match request.body {
            Some(Body::Signal(signal)) if self.containers.remove(&signal.container) => {
                let exit =
                    Some(v1::Exit { kind: v1::exit::Kind::Signal.into(), value: SIGKILL.into(), oom: false });
                let exited = v1::ContainerExited { container: signal.container, exit, finished_at_ns: 1 };
                send(daemon, message::Body::ContainerExited(exited))
            }
            _ => Ok(()),
        }
    }

    fn result(&mut self, body: Option<&Body>, descriptors: Vec<OwnedFd>) -> Result<reply::Result, Failed> {
        Ok(match body {
            Some(Body::Hello(_)) => reply::Result::State(self.state()),
            Some(Body::Create(create)) => {
                let plan = descriptors.first().ok_or("no plan")?;
                self.note(&wharf_wire::from_file::<v1::Plan>(plan)?)?;
                self.containers.insert(create.container.clone());
                let pid = std::process::id().cast_signed();
                reply::Result::Created(v1::Created {
                    pid,
                    identity: Some(v1::Identity::default()),
                    stages: vec![],
                })
            }
            Some(Body::Start(_) | Body::Exec(_) | Body::Attach(_)) | None => {
                let message = "an earlier release does not know this".to_owned();
                reply::Result::Failure(v1::Failure { message, ..v1::Failure::default() })
            }
            _ => reply::Result::Done(v1::Done {}),
        })
    }

    fn state(&self) -> v1::State {
        v1::State {
            version: wharf_wire::VERSION,
            pid: std::process::id().cast_signed(),
            features: FEATURES.map(str::to_owned).to_vec(),
            ..v1::State::default()
        }
    }

    fn note(&self, plan: &v1::Plan) -> Result<(), Failed> {
        let mut plans = OpenOptions::new().create(true).append(true).open(self.directory.join("plans"))?;
        let profile = plan.process.as_ref().map(|process| &process.apparmor_profile);
        Ok(writeln!(plans, "{:?}\n{:?}\n{profile:?}", plan.namespaces, plan.mounts)?)
    }
}

fn send(daemon: BorrowedFd<'_>, body: message::Body) -> Result<(), Failed> {
    Ok(wharf_wire::send(daemon, &Message { body: Some(body) }, &[])?)
}
