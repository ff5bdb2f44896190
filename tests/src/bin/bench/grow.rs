//! How every figure grows with the number of pods: pods are added up to a given number, and everything is measured at
//! some steps on the way.

mod daemon;
mod figures;
mod graph;
mod lists;
mod node;
mod step;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Endpoint, Pod, Runtime};
use crate::floor::FloorOptions;
use crate::grow::step::{Beside, Step};
use crate::images;
use crate::progress;

/// Clients that add pods at the same time.
const CLIENTS: usize = 8;

/// A pod that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The numbers of pods at which everything is measured; after the last one, every thousand.
const STEPS: [usize; 4] = [0, 100, 300, 500];
const THEN_EACH: usize = 1000;

/// What to measure while pods are added.
#[derive(Clone, Debug, Args)]
pub(crate) struct GrowOptions {
    /// Instead of everything else, add up to this many pods, and measure at 0, 100, 300, 500 and every thousand.
    #[arg(long)]
    grow: Option<usize>,
    /// The largest number of pods for every runtime but the first: the others may take long.
    #[arg(long, default_value_t = 100)]
    grow_others: usize,
    /// Pods made one at a time at each step.
    #[arg(long, default_value_t = 10)]
    pub(crate) grow_pods: usize,
    /// Calls of each list at each step.
    #[arg(long, default_value_t = 100)]
    pub(crate) grow_lists: usize,
    /// Seconds to leave the node alone, to see what it does when idle.
    #[arg(long, default_value_t = 10)]
    pub(crate) grow_idle: u64,
    /// Draw the graphs into this directory.
    #[arg(long, requires = "font")]
    graphs: Option<PathBuf>,
    /// The TrueType font for the text in the graphs.
    #[arg(long)]
    font: Option<PathBuf>,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Growth {
    runtimes: Vec<Grown>,
}

/// One runtime at each number of pods.
#[derive(Debug, Serialize)]
pub(crate) struct Grown {
    name: String,
    steps: Vec<Step>,
    /// Why the run stopped early.
    stopped: Option<String>,
}

impl GrowOptions {
    /// Whether the growth is to be measured at all.
    pub(crate) fn wanted(&self) -> bool {
        self.grow.is_some()
    }

    /// The numbers of pods at which to measure.
    fn steps(&self, index: usize) -> Vec<usize> {
        let all = self.grow.unwrap_or_default();
        let last = if index == 0 { all } else { all.min(self.grow_others) };
        let thousands = (1..).map(|count| count * THEN_EACH);
        let mut steps: Vec<_> = STEPS.into_iter().chain(thousands).take_while(|step| *step < last).collect();
        steps.push(last);
        steps
    }

    /// Draws the graphs, if they are wanted.
    pub(crate) fn draw(&self, growth: &Growth) -> anyhow::Result<()> {
        match (&self.graphs, &self.font) {
            (Some(directory), Some(font)) => graph::draw(growth, directory, font),
            _ => Ok(()),
        }
    }
}

/// Measures one runtime after the other, and leaves each without pods.
pub(crate) async fn measure(
    options: &GrowOptions,
    floor: &FloorOptions,
    runtimes: Vec<(Endpoint, Runtime)>,
) -> anyhow::Result<Growth> {
    let mut growth = Growth::default();
    for (index, (endpoint, runtime)) in runtimes.into_iter().enumerate() {
        images::prepare(std::slice::from_ref(&runtime)).await?;
        let counts = options.steps(index);
        growth.runtimes.push(grown((options, floor), &counts, &endpoint, runtime).await?);
    }
    Ok(growth)
}

async fn grown(
    (options, floor): (&GrowOptions, &FloorOptions),
    counts: &[usize],
    endpoint: &Endpoint,
    runtime: Runtime,
) -> anyhow::Result<Grown> {
    // Pays for whatever only the first pod costs.
    runtime.down(&runtime.up().await?).await?;
    let beside = Beside::none(runtime)?;
    let mut grown = Grown { name: beside.runtime.name.clone(), steps: Vec::new(), stopped: None };
    let mut pods = Vec::new();
    for count in counts {
        progress(&format!("{} beside {count} pods", grown.name))?;
        let missing = count - pods.len();
        let begin = Instant::now();
        let more = add(missing, &beside.runtime).await;
        let rate = more.pods.len() as f64 / begin.elapsed().as_secs_f64();
        pods.extend(more.pods);
        let mut step = Step::at(pods.len(), &beside.runtime.name);
        step.note_rate(rate);
        let mut measured = Box::pin(step.measure(options, &beside)).await;
        // The kernel's own part grows as well, whoever made the pods.
        measured = measured.and_then(|()| step.measure_floor(floor));
        grown.steps.push(step);
        grown.stopped = more.failed.or_else(|| measured.err().map(|error| format!("{error:#}")));
        if let Some(reason) = &grown.stopped {
            progress(&format!("{} stopped at {} pods: {reason}", grown.name, pods.len()))?;
            break;
        }
    }
    if let Err(error) = end(&mut grown, &beside, endpoint, pods).await {
        grown.stopped = Some(format!("the end: {error:#}"));
    }
    Ok(grown)
}

/// Kills the daemon while all pods run, lets the next daemon remove them, and ends that one.
async fn end(grown: &mut Grown, beside: &Beside, endpoint: &Endpoint, pods: Vec<Pod>) -> anyhow::Result<()> {
    let Some(last) = grown.steps.last_mut() else { return Ok(()) };
    let killed = daemon::Killed::kill(beside.runtime.daemon)?;
    let next = killed.start_again(endpoint, &beside.runtime, pods.len()).await?;
    last.note_ready(next.after);
    let begin = Instant::now();
    let count = pods.len() as f64;
    match remove(pods, &next.runtime).await {
        Ok(()) if count > 0.0 => last.note_removed(count / begin.elapsed().as_secs_f64()),
        Ok(()) => {}
        Err(error) => grown.stopped = Some(format!("{error:#}")),
    }
    next.end()
}

/// The result of adding pods.
struct More {
    pods: Vec<Pod>,
    failed: Option<String>,
}

/// Adds pods from several clients until there are `count` more or one fails.
async fn add(count: usize, runtime: &Runtime) -> More {
    let left = Arc::new(AtomicUsize::new(count));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(add_by_one(Arc::clone(&left), runtime.clone()));
    }
    let mut all = More { pods: Vec::new(), failed: None };
    for more in clients.join_all().await {
        all.pods.extend(more.pods);
        all.failed = all.failed.or(more.failed);
    }
    all
}

/// One client's share of the pods to add. If one fails, nothing is left for the others to do either.
async fn add_by_one(left: Arc<AtomicUsize>, runtime: Runtime) -> More {
    let mut more = More { pods: Vec::new(), failed: None };
    while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        match timeout(PATIENCE, runtime.up()).await.context("a pod is not coming").flatten() {
            Ok(pod) => more.pods.push(pod),
            Err(error) => {
                left.store(0, Ordering::SeqCst);
                more.failed = Some(format!("{error:#}"));
            }
        }
    }
    more
}

/// Removes all pods, from as many clients.
async fn remove(pods: Vec<Pod>, runtime: &Runtime) -> anyhow::Result<()> {
    let mut clients = JoinSet::new();
    let shares = (0..CLIENTS).map(|client| pods.iter().skip(client).step_by(CLIENTS).cloned().collect());
    for share in shares.collect::<Vec<Vec<Pod>>>() {
        let runtime = runtime.clone();
        clients.spawn(async move {
            for pod in share {
                timeout(PATIENCE, runtime.down(&pod)).await.context("a pod is not going")??;
            }
            Ok(())
        });
    }
    clients.join_all().await.into_iter().collect()
}

impl Growth {
    /// A report in Markdown, for people.
    pub(crate) fn table(&self) -> String {
        table::table(self)
    }
}

#[cfg(test)]
mod tests {
    use super::GrowOptions;

    #[test]
    fn the_last_step_is_as_many_as_were_asked_for() {
        let options = |grow| GrowOptions {
            grow: Some(grow),
            grow_others: 100,
            grow_pods: 1,
            grow_lists: 1,
            grow_idle: 1,
            graphs: None,
            font: None,
        };
        assert_eq!(options(20).steps(0), [0, 20]);
        assert_eq!(options(1000).steps(0), [0, 100, 300, 500, 1000]);
        assert_eq!(options(2500).steps(0), [0, 100, 300, 500, 1000, 2000, 2500]);
        assert_eq!(options(2500).steps(1), [0, 100]);
    }
}
