//! Measures container runtimes side by side through the CRI, and prints one table of medians and ratios.
//!
//! It is only a client: `hack/bench` starts the runtimes, all with the same images, in an isolated place, and passes
//! their sockets. The runtimes take turns at every measurement, so that a change in the machine's load affects both.

mod client;
mod crowd;
mod floor;
mod grow;
mod images;
mod logs;
mod memory;
mod pods;
mod results;
mod streams;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

use crate::client::{Endpoint, Runtime};
use crate::floor::{Floor, FloorOptions};
use crate::grow::GrowOptions;
use crate::results::Results;

/// What to measure and how often.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// NAME=SOCKET=PID of a running runtime. The first is compared with the others.
    #[arg(long = "runtime", required = true)]
    runtimes: Vec<Endpoint>,
    /// An empty directory for the container logs.
    #[arg(long)]
    logs: PathBuf,
    /// Pods made one after the other.
    #[arg(long, default_value_t = 30)]
    pods: usize,
    /// Pods made at once.
    #[arg(long, default_value_t = 50)]
    burst: usize,
    /// How many times that is repeated.
    #[arg(long, default_value_t = 3)]
    bursts: usize,
    /// Pods that run while lists and memory are measured.
    #[arg(long, default_value_t = 100)]
    crowd: usize,
    /// Calls of each list.
    #[arg(long, default_value_t = 20)]
    lists: usize,
    /// Commands executed for a client that holds their streams.
    #[arg(long, default_value_t = 100)]
    execs: usize,
    /// MiB of output from such a command.
    #[arg(long, default_value_t = 1024)]
    output: u64,
    /// Pulls of the large image.
    #[arg(long, default_value_t = 5)]
    pulls: usize,
    /// Lines that one container logs.
    #[arg(long, default_value_t = 5_000_000)]
    lines: u64,
    /// Containers that log at the same time.
    #[arg(long, default_value_t = 3)]
    floods: usize,
    #[command(flatten)]
    floor: FloorOptions,
    #[command(flatten)]
    grow: GrowOptions,
    /// Also write every sample to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut runtimes = Vec::new();
    for endpoint in &options.runtimes {
        runtimes.push(Runtime::connect(endpoint, &options.logs).await?);
    }
    let (text, json) = if options.grow.wanted() {
        let endpoints = options.runtimes.iter().cloned().zip(runtimes).collect();
        let growth = grow::measure(&options.grow, &options.floor, endpoints).await?;
        options.grow.draw(&growth)?;
        (growth.table(), serde_json::to_string_pretty(&growth)?)
    } else {
        let mut floor = Floor::default();
        let results = measure(&options, &runtimes, &mut floor).await?;
        let text = format!("{}\n{}\n{}\n", results.table(), floor.distances(&results), counts(&options));
        (text, results.json()?)
    };
    if let Some(path) = &options.json {
        std::fs::write(path, json).with_context(|| format!("write {}", path.display()))?;
    }
    std::io::stdout().write_all(text.as_bytes()).context("print the table")
}

async fn measure(options: &Options, runtimes: &[Runtime], floor: &mut Floor) -> anyhow::Result<Results> {
    let mut results = Results::new(runtimes.iter().map(|runtime| runtime.name.clone()).collect());
    memory::idle(runtimes, &mut results)?;
    images::prepare(runtimes).await?;
    progress("pods, one by one")?;
    floor.measure(&options.floor)?;
    pods::one_by_one(options.pods, runtimes, &mut results).await?;
    floor.measure(&options.floor)?;
    progress("pods, at once")?;
    for _ in 0..options.bursts {
        pods::at_once(options.burst, runtimes, &mut results).await?;
    }
    progress("a crowd of pods")?;
    crowd::measure(options, runtimes, &mut results).await?;
    progress("execs")?;
    streams::measure(options, runtimes, &mut results).await?;
    progress("pulls")?;
    images::pulls(options.pulls, runtimes, &mut results).await?;
    progress("logs")?;
    logs::floods(options, runtimes, &mut results).await?;
    Ok(results)
}

/// What "many" means in the table, and how many samples each row has.
fn counts(options: &Options) -> String {
    format!(
        "{} pods one by one; {} at once, {} times; {} in lists, {} times; {} execs; {} MiB of output; {} pulls; {} lines logged, {} times.",
        options.pods,
        options.burst,
        options.bursts,
        options.crowd,
        options.lists,
        options.execs,
        options.output,
        options.pulls,
        options.lines,
        options.floods,
    )
}

/// Reports progress on standard error: a run takes minutes.
pub(crate) fn progress(what: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "bench: {what}").context("print progress")
}
