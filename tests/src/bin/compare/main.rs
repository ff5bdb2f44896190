//! Sends the same requests to wharf and to containerd, examines the results from inside and over the CRI, and lists the
//! differences.
//!
//! It is only a client: `hack/compare` starts both runtimes in a rig, with the same images and the same network.

mod facts;
mod known;
mod observe;
mod process;
mod request;
mod requests;
mod spec;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::known::{Known, Sorted, listing};
use crate::observe::Runtime;

/// What to compare, and by what list.
#[derive(Debug, Parser)]
struct Options {
    /// Where wharf listens, in a directory that has all of its state.
    #[arg(long)]
    wharf: PathBuf,
    /// Where containerd listens, likewise.
    #[arg(long)]
    containerd: PathBuf,
    /// The directory with the files that mounts name.
    #[arg(long)]
    files: PathBuf,
    /// The differences that stay.
    #[arg(long)]
    known: PathBuf,
    /// Only the requests whose names have these words.
    #[arg(long, default_value = "")]
    only: String,
    /// Also list the differences that stay.
    #[arg(long)]
    all: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let known = Known::load(&options.known)?;
    let wharf = Runtime::connect(&options.wharf, &options.files).await?;
    let containerd = Runtime::connect(&options.containerd, &options.files).await?;
    let mut requests = requests::all();
    requests.retain(|request| request.name.contains(&options.only));
    anyhow::ensure!(!requests.is_empty(), "no request has the words {:?}", options.only);
    let (mut count, mut differences) = (0, Vec::new());
    for request in &requests {
        writeln!(std::io::stderr(), "compare: {}", request.name).context("print progress")?;
        let ours = wharf.observe(request).await.context("wharf")?;
        let theirs = containerd.observe(request).await.context("containerd")?;
        count += ours.len();
        differences.extend(ours.differences(&theirs, request.name));
    }
    let mut sorted = known.sort(&differences);
    if !options.only.is_empty() {
        // The other requests may have them.
        sorted.gone.clear();
    }
    let text = report(&options, &sorted, [requests.len(), count]);
    std::io::stdout().write_all(text.as_bytes()).context("print the differences")?;
    Ok(if sorted.new.is_empty() && sorted.gone.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(options: &Options, sorted: &Sorted, [requests, facts]: [usize; 2]) -> String {
    let mut text = String::new();
    if options.all {
        text += &format!("Differences that stay, for reasons:\n\n{}\n", listing(&sorted.excused, requests));
    }
    if !sorted.new.is_empty() {
        text += &format!("Differences without a reason:\n\n{}\n", listing(&sorted.new, requests));
    }
    for fact in &sorted.gone {
        text += &format!(
            "{fact}: there is no such difference any more: remove it from {}\n",
            options.known.display()
        );
    }
    text + &format!(
        "{requests} requests, {facts} facts: {} differences that stay, {} without a reason, {} reasons without a difference\n",
        sorted.excused.len(),
        sorted.new.len(),
        sorted.gone.len()
    )
}
