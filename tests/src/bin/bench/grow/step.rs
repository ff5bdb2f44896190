//! Everything that is measured at one number of pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::client::Runtime;
use crate::floor::{Floor, FloorOptions, WHOLES};
use crate::grow::node::{self, Activities};
use crate::grow::{GrowOptions, lists};
use crate::memory;
use crate::pods;
use crate::results::{Results, Unit};

pub(crate) const RATE_UP: &str = "pods a second up, 8 clients";
pub(crate) const RATE_DOWN: &str = "pods a second down, 8 clients";
pub(crate) const DESCRIPTORS: &str = "descriptors of the daemon, each container";
pub(crate) const MOUNTS: &str = "mounts of the host, each pod";
pub(crate) const RESIDENT: &str = "RSS of the daemon";
pub(crate) const PRIVATE: &str = "private memory of helpers, each pod";
pub(crate) const WHOLE: &str = "fall of MemAvailable, each pod";
pub(crate) const IDLE_CPU: &str = "CPU when idle, daemon and helpers";
pub(crate) const IDLE_WAKES: &str = "wake-ups a second when idle";
pub(crate) const READY: &str = "ready again after SIGKILL";

/// A runtime, and the state of the node before it had pods.
#[derive(Debug)]
pub(crate) struct Beside {
    pub(crate) runtime: Runtime,
    processes: BTreeSet<u32>,
    descriptors: usize,
    mounts: usize,
    available_kib: f64,
}

impl Beside {
    /// Records the state of the node without pods.
    pub(crate) fn none(runtime: Runtime) -> anyhow::Result<Self> {
        Ok(Self {
            processes: memory::processes()?,
            descriptors: node::descriptors(runtime.daemon)?,
            mounts: node::mounts()?,
            available_kib: node::available_kib()?,
            runtime,
        })
    }
}

/// What was measured at this number of pods.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) pods: usize,
    /// The kernel's part of each whole, in milliseconds.
    floor: BTreeMap<&'static str, f64>,
    results: Results,
}

impl Step {
    pub(crate) fn at(pods: usize, runtime: &str) -> Self {
        Self { pods, floor: BTreeMap::new(), results: Results::new(vec![runtime.to_owned()]) }
    }

    /// The value that this fraction of a figure's samples does not exceed, or `None` if the figure was not measured
    /// here.
    pub(crate) fn quantile(&self, figure: &str, fraction: f64) -> Option<f64> {
        self.results.quantile(figure, self.results.runtimes().first()?, fraction)
    }

    /// The floor of a whole beside these pods, in milliseconds, if it was measured.
    pub(crate) fn floor(&self, whole: &str) -> Option<f64> {
        self.floor.get(whole).copied()
    }

    /// Measures the floor beside these pods.
    pub(crate) fn measure_floor(&mut self, options: &FloorOptions) -> anyhow::Result<()> {
        let mut floor = Floor::default();
        floor.measure(options)?;
        self.floor = WHOLES.into_iter().filter_map(|whole| Some((whole, floor.of(whole)?))).collect();
        Ok(())
    }

    /// Notes how fast these pods were added, if any were.
    pub(crate) fn note_rate(&mut self, rate: f64) {
        if rate > 0.0 {
            self.note(RATE_UP, Unit::Count, rate);
        }
    }

    /// Notes how fast all pods were removed.
    pub(crate) fn note_removed(&mut self, rate: f64) {
        self.note(RATE_DOWN, Unit::Count, rate);
    }

    /// Notes how long it took from the daemon's death until the next one was ready.
    pub(crate) fn note_ready(&mut self, after: Duration) {
        self.note(READY, Unit::Ms, after.as_secs_f64() * 1000.0);
    }

    /// Measures everything except what only the whole run can show.
    pub(crate) async fn measure(&mut self, options: &GrowOptions, beside: &Beside) -> anyhow::Result<()> {
        let runtime = &beside.runtime;
        self.idle(Duration::from_secs(options.grow_idle), beside).await?;
        self.what_is_there(beside)?;
        let one = std::slice::from_ref(runtime);
        Box::pin(pods::one_by_one(options.grow_pods, one, &mut self.results)).await?;
        lists::measure(options.grow_lists, runtime, self.pods, &mut self.results).await
    }

    async fn idle(&mut self, pause: Duration, beside: &Beside) -> anyhow::Result<()> {
        let mut watched = memory::helpers(&beside.processes, beside.runtime.daemon)?;
        watched.push(beside.runtime.daemon);
        // The last pods settle first: a supervisor looks after a new log for some ten seconds.
        tokio::time::sleep(2 * pause).await;
        let before = Activities::of(&watched)?;
        tokio::time::sleep(pause).await;
        let during = Activities::of(&watched)?.since(&before);
        let seconds = pause.as_secs_f64();
        self.note(IDLE_CPU, Unit::Count, during.cpu.as_secs_f64() / seconds * 100.0);
        self.note(IDLE_WAKES, Unit::Count, during.wakes as f64 / seconds);
        Ok(())
    }

    fn what_is_there(&mut self, beside: &Beside) -> anyhow::Result<()> {
        let daemon = beside.runtime.daemon;
        let resident_kib = memory::resident_kib(daemon)?;
        self.note(RESIDENT, Unit::KiB, resident_kib);
        if self.pods == 0 {
            return Ok(());
        }
        let pods = self.pods as f64;
        let each = |now: usize, before: usize| (now as f64 - before as f64) / pods;
        let descriptors = each(node::descriptors(daemon)?, beside.descriptors);
        let mounts = each(node::mounts()?, beside.mounts);
        let private_kib = memory::private_of_new_kib(&beside.processes, daemon)? / pods;
        let whole_kib = (beside.available_kib - node::available_kib()?) / pods;
        self.note(DESCRIPTORS, Unit::Count, descriptors);
        self.note(MOUNTS, Unit::Count, mounts);
        self.note(PRIVATE, Unit::KiB, private_kib);
        self.note(WHOLE, Unit::KiB, whole_kib);
        Ok(())
    }

    /// Adds a floor, for tests of what is computed from it.
    #[cfg(test)]
    pub(crate) fn note_floor(&mut self, whole: &'static str, milliseconds: f64) {
        self.floor.insert(whole, milliseconds);
    }

    /// Adds a sample of a time, for tests of what is computed from samples.
    #[cfg(test)]
    pub(crate) fn note_sample(&mut self, figure: &'static str, milliseconds: f64) {
        self.note(figure, Unit::Ms, milliseconds);
    }

    fn note(&mut self, figure: &'static str, unit: Unit, value: f64) {
        if let Some(runtime) = self.results.runtimes().first().cloned() {
            self.results.add(figure, unit, &runtime, value);
        }
    }
}
