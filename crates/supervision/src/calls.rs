//! The requests to a supervisor: one method each, which returns the reply's content.
//!
//! Only here are requests built and replies taken apart, so that the rest of the daemon does not see the protocol. A
//! reply to something else is a bug of ours, not the caller's mistake.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use wharf_isolation::{Plan, Source};
use wharf_types::signal::SIGKILL;
use wharf_types::{ContainerId, Stage as _, StageError, Timings};
use wharf_wire::v1::{self, reply, request};

use crate::BRIEF_PATIENCE;
use crate::connection::Connection;
use crate::error::SupervisorError;
use crate::stages::note;

/// How long the creation of a container may take if files of its image are copied: an image may have many, the
/// container's CPU limit holds for the copying, and what was not done in time is begun anew. The kubelet waits for two
/// minutes.
const COPY_PATIENCE: Duration = Duration::from_secs(100);

/// What is said of a creation that fails.
const CREATING: &str = "creating the container";

/// A signal and its recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The signal with this number, for the first process.
    First(i32),
    /// SIGKILL, for every process.
    KillAll,
}

impl Signal {
    /// The signal with a number. Only the kernel acts on SIGKILL, so it may kill every process.
    pub fn of_number(number: i32) -> Self {
        if number == i32::from(SIGKILL) { Self::KillAll } else { Self::First(number) }
    }
}

impl Connection {
    /// Creates a container's first process, which waits for its start. `log` is the directory of the container's log,
    /// if the file already exists. What the supervisor tells of its own stages is noted with the others.
    pub async fn create(
        &self,
        plan: &Plan,
        log: Option<&OwnedFd>,
        timings: &Timings,
    ) -> Result<v1::Created, StageError> {
        let file = wharf_wire::to_file(&v1::Plan::from(plan)).stage(CREATING)?;
        let files: Vec<_> = [&file].into_iter().chain(log).map(OwnedFd::as_fd).collect();
        let is_filled = |source: &Source| matches!(source, Source::Volume(_));
        let volumes = plan.mounts.iter().filter(|mount| is_filled(&mount.source)).count();
        let body = request::Body::Create(v1::Create { container: plan.container.to_string() });
        let answer = match volumes {
            0 => self.call(CREATING, body, &files).await,
            _ => self.call_to_copy(volumes, body, &files).await,
        };
        match answer? {
            (reply::Result::Created(created), _) => {
                note(timings, &created.stages);
                Ok(created)
            }
            _ => Err(other(CREATING, "the container's first process")),
        }
    }

    /// Has a container created in which so many of the image's volumes are to be filled.
    async fn call_to_copy(
        &self,
        volumes: usize,
        body: request::Body,
        files: &[BorrowedFd<'_>],
    ) -> Result<(reply::Result, Vec<OwnedFd>), StageError> {
        if self.is_silent() {
            return self.call(CREATING, body, files).await;
        }
        let answer = self.answer_within(COPY_PATIENCE, CREATING, body, files).await;
        let late = SupervisorError::Copying { volumes, patience: COPY_PATIENCE };
        answer.unwrap_or_else(|| Err(StageError::at(CREATING, late)))
    }

    /// Executes a created container's program. What the supervisor tells of its own stage is noted with the others.
    pub async fn start(&self, container: &ContainerId, timings: &Timings) -> Result<v1::Started, StageError> {
        const STAGE: &str = "starting the container";
        let body = request::Body::Start(v1::Start { container: container.to_string() });
        match self.call(STAGE, body, &[]).await? {
            (reply::Result::Started(started), _) => {
                note(timings, &started.stage);
                Ok(started)
            }
            _ => Err(other(STAGE, "the time of the start")),
        }
    }

    /// Sends a signal to a container.
    pub async fn signal(&self, container: &ContainerId, signal: Signal) -> Result<(), StageError> {
        let (number, all) = match signal {
            Signal::First(number) => (number.unsigned_abs(), false),
            Signal::KillAll => (SIGKILL.into(), true),
        };
        let signal = v1::Signal { container: container.to_string(), number, all };
        self.call_briefly("signalling the container", request::Body::Signal(signal)).await
    }

    /// Has it forget a container, and kills what is left of it.
    pub async fn remove(&self, container: &ContainerId) -> Result<(), StageError> {
        let body = request::Body::Remove(v1::Remove { container: container.to_string() });
        self.call_briefly("removing the container", body).await
    }

    /// Reopens a container's log.
    pub async fn reopen_log(&self, container: &ContainerId) -> Result<(), StageError> {
        const STAGE: &str = "reopening the log";
        let body = request::Body::ReopenLog(v1::ReopenLog { container: container.to_string() });
        done(STAGE, self.call(STAGE, body, &[]).await?).map(drop)
    }

    /// Kills a command and everything that it started.
    pub async fn kill_exec(&self, exec: u64) -> Result<(), StageError> {
        const STAGE: &str = "killing a command";
        let body = request::Body::KillExec(v1::KillExec { exec });
        done(STAGE, self.call(STAGE, body, &[]).await?).map(drop)
    }

    /// Attaches a client to a container's streams; `outputs` are what the client reads. Returns the container's input
    /// or its terminal, if it has one.
    pub async fn attach(
        &self,
        attach: v1::Attach,
        outputs: &[BorrowedFd<'_>],
    ) -> Result<Option<OwnedFd>, StageError> {
        const STAGE: &str = "attach";
        done(STAGE, self.call(STAGE, request::Body::Attach(attach), outputs).await?)
    }

    /// Asks for a copy of a descriptor that the supervisor holds for the pod.
    pub async fn lend(&self, held: v1::Held) -> Result<OwnedFd, StageError> {
        const STAGE: &str = "asking for what the pod's supervisor holds";
        let body = request::Body::Lend(v1::Lend { held: held.into() });
        let lent = done(STAGE, self.within(BRIEF_PATIENCE, STAGE, body, &[]).await?)?;
        lent.ok_or_else(|| other(STAGE, "a descriptor"))
    }

    /// Has it exit, with every process of its pod.
    pub async fn shut_down(&self, patience: Duration) -> Result<(), StageError> {
        const STAGE: &str = "ending the supervisor";
        let body = request::Body::Shutdown(v1::Shutdown {});
        done(STAGE, self.within(patience, STAGE, body, &[]).await?).map(drop)
    }

    /// For requests that are handled at once.
    async fn call_briefly(&self, stage: &'static str, body: request::Body) -> Result<(), StageError> {
        done(stage, self.within(BRIEF_PATIENCE, stage, body, &[]).await?).map(drop)
    }
}

pub(crate) fn done(
    stage: &'static str,
    (answer, descriptors): (reply::Result, Vec<OwnedFd>),
) -> Result<Option<OwnedFd>, StageError> {
    match answer {
        reply::Result::Done(v1::Done {}) => Ok(descriptors.into_iter().next()),
        _ => Err(other(stage, "that it is done")),
    }
}

fn other(stage: &'static str, expected: &'static str) -> StageError {
    StageError::at(stage, SupervisorError::Protocol { expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::signal::SIGTERM;
    use wharf_types::{ErrorKind, Failure as _, chain};
    use wharf_wire::v1::{Message, Reply, Request, message};

    /// A supervisor that sends this reply to one request.
    fn supervisor(theirs: OwnedFd, answer: reply::Result) -> std::thread::JoinHandle<request::Body> {
        std::thread::spawn(move || {
            let (request, _) = wharf_wire::receive::<Request>(theirs.as_fd()).unwrap().unwrap();
            let reply = Reply { id: request.id, result: Some(answer) };
            let message = Message { body: Some(message::Body::Reply(reply)) };
            wharf_wire::send(theirs.as_fd(), &message, &[]).unwrap();
            request.body.unwrap()
        })
    }

    fn container() -> ContainerId {
        ContainerId::from_random([7; 32])
    }

    async fn start(answer: reply::Result) -> Result<v1::Started, StageError> {
        let (ours, theirs) = wharf_sys::socket::pair().unwrap();
        let (connection, _events) = Connection::new(ours).unwrap();
        let supervisor = supervisor(theirs, answer);
        let started = connection.start(&container(), &Timings::default()).await;
        let asked = request::Body::Start(v1::Start { container: container().to_string() });
        assert_eq!(supervisor.join().unwrap(), asked);
        started
    }

    #[tokio::test]
    async fn an_answer_is_what_was_asked_for() {
        let started = v1::Started { started_at_ns: 7, pid: 8, stage: None };
        assert_eq!(start(reply::Result::Started(started)).await.unwrap(), started);
    }

    #[tokio::test]
    async fn an_answer_to_something_else_is_a_fault_of_ours() {
        let error = start(reply::Result::Done(v1::Done {})).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    }

    #[tokio::test]
    async fn a_failure_keeps_what_the_supervisor_says_of_it() {
        use v1::failure::Kind;
        let table = [
            (Kind::Internal, ErrorKind::Internal),
            (Kind::Invalid, ErrorKind::InvalidArgument),
            (Kind::Precondition, ErrorKind::FailedPrecondition),
            (Kind::NotStarted, ErrorKind::FailedPrecondition),
            // The daemon knew the container, so to its caller it is not gone.
            (Kind::NotFound, ErrorKind::Internal),
        ];
        for (kind, expected) in table {
            let failure = v1::Failure {
                kind: kind.into(),
                message: "exec of \"x\" failed".to_owned(),
                ..Default::default()
            };
            let error = start(reply::Result::Failure(failure)).await.unwrap_err();
            assert_eq!((error.kind(), chain(&error.cause).as_str()), (expected, "exec of \"x\" failed"));
        }
    }

    /// Nobody answers.
    #[tokio::test(start_paused = true)]
    async fn what_is_copied_has_its_own_time_and_is_named_if_that_is_not_enough() {
        let message = "the container was not created within 100s, in which the content of 2 of the image's volumes is copied";
        let (ours, _theirs) = wharf_sys::socket::pair().unwrap();
        let (connection, _events) = Connection::new(ours).unwrap();
        let begin = tokio::time::Instant::now();
        let body = request::Body::Create(v1::Create { container: container().to_string() });
        let error = connection.call_to_copy(2, body, &[]).await.unwrap_err();
        assert!(chain(&error.cause).starts_with(message), "{}", chain(&error));
        assert_eq!((begin.elapsed(), error.kind()), (COPY_PATIENCE, ErrorKind::Unavailable));
    }

    #[tokio::test]
    async fn the_stop_signal_is_for_the_first_process_and_a_kill_for_all() {
        let stop = Signal::First(SIGTERM.into());
        for (signal, number, all) in [(stop, SIGTERM, false), (Signal::KillAll, SIGKILL, true)] {
            let (ours, theirs) = wharf_sys::socket::pair().unwrap();
            let (connection, _events) = Connection::new(ours).unwrap();
            let supervisor = supervisor(theirs, reply::Result::Done(v1::Done {}));
            connection.signal(&container(), signal).await.unwrap();
            let sent = v1::Signal { container: container().to_string(), number: number.into(), all };
            assert_eq!(supervisor.join().unwrap(), request::Body::Signal(sent));
        }
    }
}
