//! How far each runtime is from the floor: what the kernel alone takes for the same work, measured by the program
//! `floor` in the same run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::Args;
use serde::Deserialize;

use crate::results::{Results, number, pushed};

/// The rows that have a floor, and what the floor program calls each.
const ROWS: [(&str, &str); 3] = [("pod up", "pod up"), ("ExecSync true", "exec"), ("pod down", "pod down")];

/// The wholes of which the floor program measures the kernel's part.
pub(crate) const WHOLES: [&str; 3] = ["pod up", "exec", "pod down"];

/// The floor program and its arguments.
#[derive(Clone, Debug, Args)]
pub(crate) struct FloorOptions {
    /// The program `floor`; without it no distances are printed.
    #[arg(long, requires_all = ["floor_root", "floor_dir"])]
    floor: Option<PathBuf>,
    /// The unpacked root file system for its containers.
    #[arg(long)]
    floor_root: Option<PathBuf>,
    /// An empty directory for its writable layers.
    #[arg(long)]
    floor_dir: Option<PathBuf>,
}

/// What the floor program measured, over several runs.
#[derive(Debug, Default)]
pub(crate) struct Floor(Vec<Sums>);

/// The part of its JSON that is used here.
#[derive(Debug, Deserialize)]
struct Measured {
    sums: Vec<Sums>,
}

/// The sum of each whole, in milliseconds.
#[derive(Debug, Deserialize)]
struct Sums {
    #[serde(rename = "pod up")]
    pod_up: f64,
    exec: f64,
    #[serde(rename = "pod down")]
    pod_down: f64,
}

impl Sums {
    fn of(&self, whole: &str) -> f64 {
        match whole {
            "pod up" => self.pod_up,
            "exec" => self.exec,
            _ => self.pod_down,
        }
    }
}

impl Floor {
    /// Runs the floor program once more, if there is one. Called before and after the runtimes, because the machine's
    /// load changes.
    pub(crate) fn measure(&mut self, options: &FloorOptions) -> anyhow::Result<()> {
        let (Some(program), Some(root), Some(dir)) =
            (&options.floor, &options.floor_root, &options.floor_dir)
        else {
            return Ok(());
        };
        let output = run(program, root, dir).with_context(|| format!("run {}", program.display()))?;
        let measured: Measured =
            serde_json::from_slice(&output).context("read what the floor program printed")?;
        self.0.extend(measured.sums.into_iter().next());
        Ok(())
    }

    /// The mean of the runs, in milliseconds.
    pub(crate) fn of(&self, whole: &str) -> Option<f64> {
        let sum = self.0.iter().map(|sums| sums.of(whole)).reduce(|sum, next| sum + next)?;
        Some(sum / self.0.len() as f64)
    }

    /// A table of how many times the floor each runtime takes. Empty if the floor was not measured.
    pub(crate) fn distances(&self, results: &Results) -> String {
        let mut text = String::new();
        for (row, whole) in ROWS {
            let Some(floor) = self.of(whole) else { continue };
            if text.is_empty() {
                heading(&mut text, results.runtimes());
            }
            pushed(&mut text, format_args!("| {row:<34} | {:>8}", number(floor)));
            for name in results.runtimes() {
                let times = results.median(row, name).map(|median| number(median / floor));
                pushed(&mut text, format_args!(" | {:>10} x", times.as_deref().unwrap_or("-")));
            }
            text.push_str(" |\n");
        }
        text
    }
}

fn heading(text: &mut String, runtimes: &[String]) {
    pushed(text, format_args!("| {:<34} | floor ms", "times the floor of this run"));
    let mut rule = format!("|{:-<36}|{:->9}:", "", "");
    for name in runtimes {
        pushed(text, format_args!(" | {name:>12}"));
        pushed(&mut rule, format_args!("|{:->13}:", ""));
    }
    pushed(text, format_args!(" |\n{rule}|\n"));
}

#[expect(
    clippy::disallowed_methods,
    reason = "wharf itself starts only supervisors and plugins; the bench is not part of it"
)]
fn run(program: &Path, root: &Path, dir: &Path) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.arg("--json").arg("--root").arg(root).arg("--dir").arg(dir);
    let output = command.output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::{Floor, Sums};
    use crate::results::{Results, Unit};

    #[test]
    fn the_distance_is_to_the_mean_of_all_runs() {
        let mut results = Results::new(vec!["ours".to_owned(), "theirs".to_owned()]);
        results.add("pod up", Unit::Ms, "ours", 6.0);
        let sums = |pod_up| Sums { pod_up, exec: 1.0, pod_down: 1.0 };
        let table = Floor(vec![sums(2.0), sums(4.0)]).distances(&results);
        let line = table.lines().nth(2).unwrap();
        assert!(line.contains(" 3.00 ") && line.contains(" 2.00 x |") && line.contains(" - x |"), "{table}");
        assert_eq!(Floor::default().distances(&results), "");
    }
}
