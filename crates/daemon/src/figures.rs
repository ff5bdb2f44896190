//! The figures of the daemon's parts, for Prometheus. All are in memory.

use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;
use wharf_images::Store;
use wharf_metrics::{Page, Source};
use wharf_pods::{BLOCKING_THREADS, Container, Engine, Load, Pod, STANDINGS};
use wharf_registry::Puller;
use wharf_streaming::OpenSessions;
use wharf_traces::Tracer;
use wharf_types::ContainerState;

/// The parts that have figures.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) engine: Arc<Engine>,
    pub(crate) images: Arc<Store>,
    pub(crate) puller: Arc<Puller>,
    pub(crate) sessions: OpenSessions,
    /// What traces calls, if anything does.
    pub(crate) tracer: Option<Tracer>,
    /// The runtime of the tasks of all these.
    pub(crate) runtime: Handle,
}

impl Source for Figures {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        let load = self.engine.load();
        self.pods(page, &load)?;
        self.clients(page, &load)?;
        self.pulls(page)?;
        self.store(page)?;
        self.traces(page)?;
        self.threads(page, &load)
    }
}

/// How many there are of each of these words.
fn count<'w, const N: usize>(
    words: [&'w str; N],
    all: impl IntoIterator<Item = &'w str>,
) -> [(&'w str, usize); N] {
    let mut counts = words.map(|word| (word, 0));
    for one in all {
        counts.iter_mut().filter(|(word, _)| *word == one).for_each(|(_, count)| *count += 1);
    }
    counts
}

fn readiness(pod: &Pod) -> &'static str {
    if pod.is_ready() { "ready" } else { "not_ready" }
}

fn state(container: &Container) -> &'static str {
    match container.known() {
        Some(ContainerState::Created) => "created",
        Some(ContainerState::Running { .. }) => "running",
        Some(ContainerState::Exited { .. }) => "exited",
        // Its supervisor has yet to say it.
        None => "unknown",
    }
}

impl Figures {
    fn pods(&self, page: &mut Page<'_>, load: &Load) -> fmt::Result {
        let (all, containers) = (self.engine.pods(), self.engine.containers());
        let pods = count(["ready", "not_ready"], all.iter().map(|pod| readiness(pod)));
        page.gauges(("wharf_pods", "state"), "Pods", pods)?;
        let states = ["created", "running", "exited", "unknown"];
        let containers = count(states, containers.iter().map(|container| state(container)));
        page.gauges(("wharf_containers", "state"), "Containers", containers)?;
        let supervisors = count(STANDINGS, all.iter().filter_map(|pod| pod.standing()));
        let help = "Supervisors of pods, by what wharfd hears of them";
        page.gauges(("wharf_supervisors", "contact"), help, supervisors)?;
        let help = "Pods and containers that are being made";
        page.gauge("wharf_creations_in_progress", help, load.in_the_making)
    }

    fn clients(&self, page: &mut Page<'_>, load: &Load) -> fmt::Result {
        page.gauge("wharf_exec_syncs_in_progress", "Commands of ExecSync that run", load.exec_syncs)?;
        let help = "Open sessions of exec, attach and port-forward";
        page.gauges(("wharf_streaming_sessions", "kind"), help, self.sessions.counts())?;
        let (listeners, missed) = self.engine.listeners();
        page.gauge("wharf_event_listeners", "Clients that are sent events", listeners)?;
        page.counter("wharf_events_missed", "Events that slow clients missed", missed)
    }

    fn pulls(&self, page: &mut Page<'_>) -> fmt::Result {
        let pulls = self.puller.figures();
        page.counter("wharf_image_pulls_started", "Pulls of images that have begun", pulls.started)?;
        let ended = [("succeeded", pulls.succeeded), ("failed", pulls.failed), ("given_up", pulls.given_up)];
        page.counters(("wharf_image_pulls", "result"), "Pulls of images that have ended", ended)?;
        let ended = pulls.succeeded + pulls.failed + pulls.given_up;
        let running = pulls.started.saturating_sub(ended);
        page.gauge("wharf_image_pulls_in_progress", "Image pulls in progress", running)?;
        let help = "Bytes of layers that registries have sent, compressed";
        page.counter("wharf_image_pull_fetched_bytes", help, pulls.fetched_bytes)?;
        let help = "How long pulls took that have succeeded";
        page.histogram("wharf_image_pull_duration_seconds", help, &pulls.durations)
    }

    fn store(&self, page: &mut Page<'_>) -> fmt::Result {
        let store = self.images.figures();
        page.gauge("wharf_images", "Images in the store", store.images)?;
        page.gauge("wharf_image_layers", "Layers in the store", store.layers)?;
        page.gauge("wharf_image_store_bytes", "What the store takes on the disk", store.usage.bytes)?;
        page.gauge("wharf_image_store_inodes", "Files and directories of the store", store.usage.inodes)?;
        let sweeps = store.sweeps;
        let ended = [("succeeded", sweeps.succeeded), ("failed", sweeps.failed)];
        page.counters(("wharf_image_sweeps", "result"), "Removals of layers that nobody uses", ended)?;
        let help = "Bytes of layers that were removed because nobody used them";
        page.counter("wharf_image_sweep_freed_bytes", help, sweeps.freed_bytes)?;
        let help = "When the last sweep that succeeded has ended, since 1970; 0 if there was none";
        page.gauge(
            "wharf_image_sweep_last_success_timestamp_seconds",
            help,
            seconds(sweeps.succeeded_at_ns),
        )?;
        let help = "When the last sweep that failed has ended, since 1970; 0 if there was none";
        page.gauge("wharf_image_sweep_last_failure_timestamp_seconds", help, seconds(sweeps.failed_at_ns))
    }

    fn traces(&self, page: &mut Page<'_>) -> fmt::Result {
        let traces = self.tracer.as_ref().map(Tracer::figures).unwrap_or_default();
        let ended =
            [("exported", traces.exported), ("no_room", traces.no_room), ("not_accepted", traces.failed)];
        page.counters(
            ("wharf_trace_spans", "result"),
            "Spans of traced calls that have been dealt with",
            ended,
        )?;
        page.gauge("wharf_trace_spans_waiting", "Spans that wait to be exported", traces.waiting)
    }

    fn threads(&self, page: &mut Page<'_>, load: &Load) -> fmt::Result {
        let used = load.pool.map(|(work, used, _limit)| (work, used));
        let help = "Threads of the pool in use by work that may hang";
        page.gauges(("wharf_pool_places_used", "work"), help, used)?;
        let limits = load.pool.map(|(work, _used, limit)| (work, limit));
        page.gauges(("wharf_pool_places_limit", "work"), "The most that it may have", limits)?;
        page.gauge("wharf_pool_threads_limit", "The most threads of the pool", BLOCKING_THREADS)?;
        let runtime = self.runtime.metrics();
        page.gauge("wharf_tasks", "Tasks of the workers", runtime.num_alive_tasks())?;
        let queued = runtime.global_queue_depth();
        page.gauge("wharf_tasks_queued", "Tasks that wait for a worker and belong to none yet", queued)?;
        page.counter("wharf_log_lines_lost", "Lines of wharfd's own log that had no room", crate::log::lost())
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is shown in seconds")]
fn seconds(ns: i64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_counted_and_so_is_what_never_came() {
        assert_eq!(count(["a", "b", "c"], ["b", "a", "b"]), [("a", 1), ("b", 2), ("c", 0)]);
    }
}
