//! The kernel's part of a pod and of a command in it, stage by stage: what any runtime has to pay on this machine.
//!
//! It is a lower bound, not a runtime: it keeps no records, writes no logs, sets no limits, loads no filter and serves
//! no requests. `hack/bench` runs it beside the runtimes and prints how far they are from it; `hack/bench --floor` runs
//! it alone. Everything that it makes is gone when it ends.

mod cgroups;
mod container;
mod exec;
mod machine;
mod messages;
mod network;
mod pod;
mod stages;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

use crate::machine::Machine;
use crate::stages::Stages;

/// What to make, where and how many times.
#[derive(Debug, Parser)]
struct Options {
    /// The unpacked root file system of an image with `/bin/sleep` and `/bin/true`.
    #[arg(long)]
    root: PathBuf,
    /// An empty directory for the writable layers.
    #[arg(long)]
    dir: PathBuf,
    /// Pods made one after the other.
    #[arg(long, default_value_t = 50)]
    pods: u32,
    /// Commands executed in each pod.
    #[arg(long, default_value_t = 3)]
    execs: usize,
    /// Print the sums and every sample as JSON instead of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let machine = Machine::open(&options.root, &options.dir)?;
    let measured = measure(&options, &machine);
    machine.leave()?;
    let stages = measured?;
    let kinds = machine.cgroup_kinds();
    let text = if options.json { stages.json(&kinds)? } else { stages.table(&kinds) };
    std::io::stdout().write_all(text.as_bytes()).context("print what was measured")
}

fn measure(options: &Options, machine: &Machine) -> anyhow::Result<Stages> {
    // Pays for whatever is slow only once: modules, caches, the first pages.
    pod::live(machine, 0, options.execs, &mut Stages::default()).context("the first pod")?;
    let mut stages = Stages::default();
    for number in 1..=options.pods {
        pod::live(machine, number, options.execs, &mut stages).with_context(|| format!("pod {number}"))?;
    }
    Ok(stages)
}
