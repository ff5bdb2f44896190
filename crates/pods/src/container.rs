//! A container in memory: its request and what was resolved from it, its state, its cgroup.
//!
//! The state is what its supervisor has reported, or what is on disk of its end. It only moves forward, and the methods
//! that note a change say whether it is news, because each change is reported once. The state of a container that an
//! earlier daemon left may be unknown for a while: lists then show a guess ([`Container::shown`]), and code that
//! decides something waits ([`Pod::state_of`]).

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, MutexGuard};

use tokio::runtime::Handle;
use tokio::sync::watch;
use wharf_cgroup::{Cgroup, Meter};
use wharf_cri_api::v1::ContainerConfig;
use wharf_images::{LayerLease, Store, Tenancy};
use wharf_records::{ContainerFacts, ContainerRecord, Recovered, Word, decide, lost_at};
use wharf_state::ExitRecord;
use wharf_tasks::Stopping;
use wharf_types::{ContainerId, ContainerState, Exit, PodId, Timing, Timings};

use crate::error::Error;
use crate::lock::{Mutex, RwLock};
use crate::pod::Pod;

/// A container. Its state is a watch channel, on which callers wait for its end.
#[derive(Debug)]
pub struct Container {
    id: ContainerId,
    pod: PodId,
    /// The request, and what was resolved from it; updates change the limits.
    record: RwLock<ContainerRecord>,
    /// `None` while it is unknown: an earlier daemon left the container, and its supervisor has not responded yet.
    state: watch::Sender<Option<ContainerState>>,
    cgroup: Option<Cgroup>,
    pid: AtomicI32,
    /// What earlier readings of its cgroup have shown. Held while the kernel's files are read.
    meter: Mutex<Meter>,
    log_path: String,
    /// Held by a change of the container, so that changes come one after another. See `lock` for the order.
    changing: tokio::sync::Mutex<()>,
    /// Its calls to stop.
    stopping: Stopping,
    timings: Timings,
    /// Keeps the images' layers while they may be mounted.
    _layers: Layers,
}

/// Leased layers. A layer that no image needs any more is removed with its last container: by a sweep, which waits for
/// the disk, and must not do so in the task that happens to drop the container last.
#[derive(Debug)]
pub(crate) struct Layers(Option<(Tenancy, Vec<LayerLease>, Arc<Store>)>);

impl Layers {
    /// Those of a container: all that it has mounted.
    pub(crate) fn leased(container: &ContainerId, leases: Vec<LayerLease>, store: Arc<Store>) -> Self {
        Self(Some((store.tenancy(container.as_str()), leases, store)))
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if let (Some((tenancy, leases, store)), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || {
                drop(tenancy);
                drop(leases);
                store.sweep_and_log();
            });
        }
    }
}

/// What a container has on this host as long as it is listed.
#[derive(Debug)]
pub(crate) struct Belongings {
    /// Its cgroup, if there is one.
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) layers: Layers,
}

impl Container {
    /// A container that was just created.
    pub(crate) fn created(
        pod: &Pod,
        id: ContainerId,
        record: ContainerRecord,
        belongings: Belongings,
    ) -> Self {
        Self::new(pod, id, record, Some(ContainerState::Created), belongings)
    }

    /// A container that an earlier daemon left. It has exited if its exit record is on disk; otherwise its state is
    /// unknown until its supervisor reports it.
    pub(crate) fn found(
        pod: &Pod,
        id: ContainerId,
        record: ContainerRecord,
        exit: Option<ExitRecord>,
        belongings: Belongings,
    ) -> Self {
        let state = match decide(&record, exit, Word::NoneYet) {
            Recovered::Ended(ExitRecord { exit, started_at_ns, finished_at_ns }) => {
                let message = record.explanation(exit);
                Some(ContainerState::Exited { started_at_ns, finished_at_ns, exit, message })
            }
            _ => None,
        };
        Self::new(pod, id, record, state, belongings)
    }

    fn new(
        pod: &Pod,
        id: ContainerId,
        record: ContainerRecord,
        state: Option<ContainerState>,
        Belongings { cgroup, layers }: Belongings,
    ) -> Self {
        Self {
            id,
            pod: pod.id().clone(),
            log_path: record.log_path(&pod.config().log_directory),
            record: RwLock::new(record),
            state: watch::Sender::new(state),
            cgroup,
            pid: AtomicI32::new(0),
            meter: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
            stopping: Stopping::default(),
            timings: Timings::default(),
            _layers: layers,
        }
    }

    /// The same, with what is known of how it was made.
    pub(crate) fn made_by(self, timings: Timings) -> Self {
        Self { timings, ..self }
    }

    /// How it was made and started; nothing if an earlier daemon made it.
    #[must_use]
    pub fn stages(&self) -> Vec<Timing> {
        self.timings.all()
    }

    /// Where its start is noted.
    pub(crate) fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The pod it is in.
    #[must_use]
    pub fn pod_id(&self) -> &PodId {
        &self.pod
    }

    /// Waits for its turn to change the container. See `lock` for the order.
    pub(crate) async fn change(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Those who want it to stop.
    #[must_use]
    pub fn stopping(&self) -> &Stopping {
        &self.stopping
    }

    /// Its cgroup, if there is one.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    pub(crate) fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock()
    }

    /// The facts about it at this moment.
    #[must_use]
    pub fn facts(&self) -> ContainerFacts {
        ContainerFacts {
            id: self.id.clone(),
            pod: self.pod.clone(),
            state: self.shown(),
            record: self.record(),
            log_path: self.log_path.clone(),
        }
    }

    /// Takes something from its request, which is large as a whole.
    pub fn with_config<T>(&self, take: impl FnOnce(&ContainerConfig) -> T) -> T {
        self.with_record(|record| take(&record.config))
    }

    /// Its image, by digest if that is known.
    #[must_use]
    pub fn image_ref(&self) -> String {
        self.with_record(|record| record.image_ref.clone())
    }

    /// The error of a call for which it is in the wrong state.
    pub(crate) fn wrong_state(&self, state: &'static str) -> Error {
        Error::State { what: "container", id: self.id.to_string(), state }
    }

    /// The state, if it is known. Code that decides by it calls `Pod::state_of`.
    pub fn known(&self) -> Option<ContainerState> {
        self.state.borrow().clone()
    }

    /// How it has ended if nobody saw that.
    pub(crate) fn lost(&self) -> ExitRecord {
        let now = wharf_sys::clock::now_ns();
        self.with_record(|record| lost_at(now, record, self.known().as_ref()))
    }

    /// The state for lists. An unknown one is shown as running, so that nobody starts another container in its place.
    #[must_use]
    pub fn shown(&self) -> ContainerState {
        let guess =
            || ContainerState::Running { started_at_ns: self.with_record(|record| record.created_at_ns) };
        self.known().unwrap_or_else(guess)
    }

    /// Whether its first process is known to have exited.
    #[must_use]
    pub fn is_exited(&self) -> bool {
        matches!(*self.state.borrow(), Some(ContainerState::Exited { .. }))
    }

    /// Whether it has exited, and somebody knows how.
    pub(crate) fn end_is_known(&self) -> bool {
        let state = self.state.borrow();
        matches!(&*state, Some(ContainerState::Exited { exit, .. }) if *exit != Exit::Lost)
    }

    pub(crate) fn record(&self) -> ContainerRecord {
        self.with_record(ContainerRecord::clone)
    }

    /// Takes something from the record, which is large as a whole.
    pub fn with_record<T>(&self, take: impl FnOnce(&ContainerRecord) -> T) -> T {
        take(&self.record.read())
    }

    /// Changes the record in memory, and returns the result for saving.
    pub(crate) fn change_record(&self, change: impl FnOnce(&mut ContainerRecord)) -> ContainerRecord {
        let mut record = self.record.write();
        change(&mut record);
        record.clone()
    }

    pub(crate) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// The pid of its first process; 0 once that has exited, because the pid may belong to another process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        if self.is_exited() { 0 } else { self.pid.load(Ordering::Relaxed) }
    }

    /// How it ended; `Lost` until it has.
    pub(crate) fn exit(&self) -> Exit {
        match *self.state.borrow() {
            Some(ContainerState::Exited { exit, .. }) => exit,
            Some(ContainerState::Created | ContainerState::Running { .. }) | None => Exit::Lost,
        }
    }

    /// Waits until its first process has exited.
    pub(crate) async fn exited(&self) {
        self.until(|state| matches!(state, ContainerState::Exited { .. })).await;
    }

    /// Waits until it is known whether it was started, and returns that.
    pub(crate) async fn was_started(&self) -> bool {
        self.until(|_any| true).await;
        self.known() != Some(ContainerState::Created)
    }

    async fn until(&self, is_it: impl Fn(&ContainerState) -> bool) {
        let mut states = self.state.subscribe();
        // The sender belongs to this container, so it lives as long as the wait.
        drop(states.wait_for(|state| state.as_ref().is_some_and(&is_it)).await);
    }

    /// Notes a start; returns false if it is not news. If the state was unknown, an earlier daemon has reported the
    /// start.
    pub(crate) fn note_start(&self, started_at_ns: i64) -> bool {
        let mut is_news = false;
        self.state.send_if_modified(|state| {
            is_news = *state == Some(ContainerState::Created);
            let changes = is_news || state.is_none();
            if changes {
                *state = Some(ContainerState::Running { started_at_ns });
            }
            changes
        });
        is_news
    }

    /// Notes that it has not been started, if that was unknown.
    pub(crate) fn note_created(&self) {
        self.state.send_if_modified(|state| {
            let changes = state.is_none();
            state.get_or_insert(ContainerState::Created);
            changes
        });
    }

    /// Notes an exit; returns false if it is not news. A report of the exit itself says more than the discovery that
    /// the process is gone.
    pub(crate) fn note_exit(&self, ExitRecord { exit, started_at_ns, finished_at_ns }: ExitRecord) -> bool {
        let message = self.with_record(|record| record.explanation(exit));
        self.state.send_if_modified(|state| {
            let (first, started_at_ns) = match *state {
                Some(ContainerState::Exited { exit: Exit::Lost, started_at_ns, .. })
                    if exit != Exit::Lost =>
                {
                    (false, started_at_ns)
                }
                Some(ContainerState::Exited { .. }) => return false,
                Some(ContainerState::Running { started_at_ns }) => (true, started_at_ns),
                Some(ContainerState::Created) | None => (true, started_at_ns),
            };
            *state = Some(ContainerState::Exited { started_at_ns, finished_at_ns, exit, message });
            first
        })
    }

    /// Adds the record's message to an exit: the exit of a program that did not start may be noted before its reason.
    pub(crate) fn explain_exit(&self) {
        let why = self.record().message;
        self.state.send_if_modified(|state| match state {
            Some(ContainerState::Exited { message, .. }) if *message != why => {
                *message = why;
                true
            }
            _ => false,
        });
    }
}

/// A container, with the pod that it is in.
pub(crate) type InPod = (Arc<Pod>, Arc<Container>);

#[cfg(test)]
const NOTHING: Belongings = Belongings { cgroup: None, layers: Layers(None) };

#[cfg(test)]
impl Container {
    /// A container without a cgroup and without anything on disk.
    pub(crate) fn bare(pod: &Pod, byte: u8, record: ContainerRecord) -> Self {
        let id = ContainerId::from_random([byte; 32]);
        Self::new(pod, id, record, Some(ContainerState::Created), NOTHING)
    }

    /// A container that an earlier daemon left and whose supervisor has not responded.
    pub(crate) fn unknown(pod: &Pod, byte: u8) -> Self {
        let record =
            ContainerRecord { phase: wharf_records::Phase::Made.into(), ..ContainerRecord::default() };
        Self::found(pod, ContainerId::from_random([byte; 32]), record, None, NOTHING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use wharf_records::{UNSEEN, UNSTARTED};
    use wharf_types::PodId;

    const END: ExitRecord = ExitRecord { exit: Exit::Code(3), started_at_ns: 0, finished_at_ns: 20 };
    const UNSEEN_END: ExitRecord = ExitRecord { exit: Exit::Lost, ..END };

    fn pod() -> Pod {
        Pod::new(PodId::from_random([1; 32]), Default::default(), String::new(), 0)
    }

    fn created() -> Container {
        Container::bare(&pod(), 2, ContainerRecord::default())
    }

    fn found(exit: Option<ExitRecord>) -> Container {
        let mut record = ContainerRecord { created_at_ns: 5, ..ContainerRecord::default() };
        record.identify(wharf_wire::v1::Identity::default());
        Container::found(&pod(), ContainerId::from_random([2; 32]), record, exit, NOTHING)
    }

    fn exited(exit: Exit, started_at_ns: i64, message: &str) -> ContainerState {
        ContainerState::Exited { started_at_ns, finished_at_ns: 20, exit, message: message.to_owned() }
    }

    #[test]
    fn a_start_and_an_end_are_news_once() {
        let container = created();
        assert!(container.note_start(10));
        assert!(!container.note_start(11), "a retry of the call, or its event after its answer");
        assert_eq!(container.shown(), ContainerState::Running { started_at_ns: 10 });
        assert!(container.note_exit(END));
        assert!(!container.note_exit(ExitRecord { exit: Exit::Code(4), ..END }));
        assert!(!container.note_start(12), "nothing comes after an end");
        assert_eq!(container.shown(), exited(Exit::Code(3), 10, ""));
    }

    #[test]
    fn who_saw_an_end_knows_more_than_who_found_the_process_gone() {
        let container = created();
        assert!(container.note_start(10) && container.note_exit(UNSEEN_END));
        assert_eq!(container.shown(), exited(Exit::Lost, 10, UNSEEN));
        assert!(!container.note_exit(END), "it has ended once, and is told of once");
        assert_eq!(container.shown(), exited(Exit::Code(3), 10, ""));
        assert!(!container.note_exit(UNSEEN_END));
        assert_eq!(container.exit(), Exit::Code(3));
    }

    #[test]
    fn what_is_found_is_shown_as_running_and_known_once_its_supervisor_tells() {
        let container = found(None);
        assert_eq!(container.known(), None, "nobody may decide by a guess");
        assert_eq!(container.shown(), ContainerState::Running { started_at_ns: 5 });
        assert!(!container.note_start(10), "an earlier daemon has told of that");
        assert_eq!(container.known(), Some(ContainerState::Running { started_at_ns: 10 }));
        container.note_created();
        assert_eq!(container.known(), Some(ContainerState::Running { started_at_ns: 10 }), "it knew better");
        let container = found(None);
        container.note_created();
        assert_eq!(container.known(), Some(ContainerState::Created));
        let container = found(None);
        assert!(container.note_exit(ExitRecord { started_at_ns: 8, ..END }));
        assert_eq!(container.shown(), exited(Exit::Code(3), 8, ""), "the guess is not told as its start");
    }

    #[tokio::test]
    async fn whether_it_was_started_is_waited_for() {
        let container = found(None);
        assert!(container.was_started().now_or_never().is_none());
        let (was_started, ()) =
            tokio::join!(container.was_started(), async { assert!(!container.note_start(10)) });
        assert!(was_started);
        assert!(!created().was_started().await);
    }

    #[test]
    fn an_end_that_says_nothing_of_itself_is_explained_also_by_the_next_daemon() {
        for (exit, why) in [(Exit::Lost, UNSEEN), (Exit::NotStarted, UNSTARTED)] {
            let end = ExitRecord { exit, ..END };
            let container = created();
            assert!(container.note_exit(end));
            assert_eq!(container.shown(), exited(exit, 0, why));
            assert_eq!(found(Some(end)).shown(), exited(exit, 0, why));
        }
    }

    #[test]
    fn the_pid_of_a_process_that_is_gone_is_not_reported() {
        let container = created();
        container.set_pid(4711);
        assert_eq!(container.pid(), 4711);
        assert!(container.note_exit(END));
        assert_eq!(container.pid(), 0, "it may be another's by now");
    }

    #[test]
    fn an_end_on_disk_is_no_guess() {
        let container = found(Some(ExitRecord { started_at_ns: 8, ..END }));
        assert_eq!(container.shown(), exited(Exit::Code(3), 8, ""));
        container.note_created();
        assert!(container.is_exited());
    }

    #[test]
    fn the_reason_for_a_failed_start_is_reported_even_after_the_exit() {
        let container = created();
        assert!(container.note_exit(ExitRecord { exit: Exit::NotStarted, ..END }));
        container.change_record(|record| record.message = "no such file".to_owned());
        container.explain_exit();
        assert_eq!(container.shown(), exited(Exit::NotStarted, 0, "no such file"));
    }
}
