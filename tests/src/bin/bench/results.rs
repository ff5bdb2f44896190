//! Samples, their medians and the table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use serde::Serialize;

/// The unit of a number, and whether more or less of it is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// Milliseconds. Less is better.
    Ms,
    /// KiB of memory. Less is better.
    KiB,
    /// Thousands of lines per second. More is better.
    KLines,
    /// Megabytes per second. More is better.
    MBs,
    /// Megabytes that went over the network: reported, not compared.
    Megabytes,
    /// A count: reported, not compared.
    Count,
}

impl Unit {
    fn label(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::KiB => "KiB",
            Self::KLines => "k lines/s",
            Self::MBs => "MB/s",
            Self::Megabytes => "MB",
            Self::Count => "",
        }
    }

    /// How many times better `ours` is than `theirs`.
    fn gain(self, ours: f64, theirs: f64) -> Option<f64> {
        match self {
            Self::Ms | Self::KiB => (ours > 0.0).then(|| theirs / ours),
            Self::KLines | Self::MBs => (theirs > 0.0).then(|| ours / theirs),
            Self::Megabytes | Self::Count => None,
        }
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    unit: Unit,
    samples: BTreeMap<String, Vec<f64>>,
}

/// Everything that was measured, in the order of first measurement.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    runtimes: Vec<String>,
    rows: Vec<Row>,
}

impl Results {
    /// No samples yet, for these runtimes.
    pub(crate) fn new(runtimes: Vec<String>) -> Self {
        Self { runtimes, rows: Vec::new() }
    }

    /// The runtimes that may have samples.
    pub(crate) fn runtimes(&self) -> &[String] {
        &self.runtimes
    }

    /// Adds a sample.
    pub(crate) fn add(&mut self, what: &'static str, unit: Unit, runtime: &str, value: f64) {
        let index = self.rows.iter().position(|row| row.what == what).unwrap_or_else(|| {
            self.rows.push(Row { what, unit, samples: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[index].samples.entry(runtime.to_owned()).or_default().push(value);
    }

    /// Adds a duration.
    pub(crate) fn time(&mut self, what: &'static str, runtime: &str, duration: Duration) {
        self.add(what, Unit::Ms, runtime, duration.as_secs_f64() * 1000.0);
    }

    /// The median of a row's samples of one runtime.
    pub(crate) fn median(&self, what: &str, runtime: &str) -> Option<f64> {
        self.quantile(what, runtime, 0.5)
    }

    /// The value that this fraction of a runtime's samples in a row does not exceed.
    pub(crate) fn quantile(&self, what: &str, runtime: &str, fraction: f64) -> Option<f64> {
        self.rows.iter().find(|row| row.what == what)?.quantile(runtime, fraction)
    }

    /// Every sample.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Medians (with 95th percentiles for times), and by what factor the first runtime is better than each of the
    /// others.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("| {:<34} | {:<9} ", "median (p95)", "");
        let mut rule = format!("|{:-<36}|{:-<11}", "", "");
        for name in &self.runtimes {
            pushed(&mut text, format_args!("| {name:>19} "));
            pushed(&mut rule, format_args!("|{:-<20}:", ""));
        }
        for name in self.runtimes.iter().skip(1) {
            pushed(&mut text, format_args!("| {:>16} ", format!("than {name}")));
            pushed(&mut rule, format_args!("|{:-<17}:", ""));
        }
        pushed(&mut text, format_args!("|\n{rule}|\n"));
        for row in &self.rows {
            self.line(row, &mut text);
        }
        text
    }

    fn line(&self, row: &Row, text: &mut String) {
        pushed(text, format_args!("| {:<34} | {:<9} ", row.what, row.unit.label()));
        let medians: Vec<_> = self.runtimes.iter().map(|name| row.quantile(name, 0.5)).collect();
        for (name, median) in self.runtimes.iter().zip(&medians) {
            let cell = match (median, row.quantile(name, 0.95)) {
                (Some(median), Some(p95)) if row.unit == Unit::Ms => {
                    format!("{} ({})", number(*median), number(p95))
                }
                (Some(median), _) => number(*median),
                (None, _) => "-".to_owned(),
            };
            pushed(text, format_args!("| {cell:>19} "));
        }
        for theirs in medians.iter().skip(1) {
            let gain = medians[0].zip(*theirs).and_then(|(ours, theirs)| row.unit.gain(ours, theirs));
            let cell = gain.map_or_else(String::new, |gain| format!("{} x better", number(gain)));
            pushed(text, format_args!("| {cell:>16} "));
        }
        text.push_str("|\n");
    }
}

impl Row {
    /// By nearest rank.
    fn quantile(&self, runtime: &str, fraction: f64) -> Option<f64> {
        let mut samples = self.samples.get(runtime)?.clone();
        samples.sort_by(f64::total_cmp);
        let below = samples.len() as f64 * fraction;
        (0_u32..).zip(&samples).find(|(rank, _)| f64::from(*rank) + 1.0 >= below).map(|(_, sample)| *sample)
    }
}

/// Formats a number with three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// Writing to a string cannot fail.
pub(crate) fn pushed(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    if text.write_fmt(arguments).is_err() {
        text.push('?');
    }
}

/// Measures the parts of a whole.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    start: Instant,
    lap: Instant,
}

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self { start: now, lap: now }
    }

    /// The time since the last lap.
    pub(crate) fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now - self.lap;
        self.lap = now;
        lap
    }

    /// The time from the start to the last lap.
    pub(crate) fn total(&self) -> Duration {
        self.lap - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::{Results, Unit};

    fn two() -> Results {
        Results::new(vec!["ours".to_owned(), "theirs".to_owned()])
    }

    #[test]
    fn medians_and_gain_by_the_sense_of_the_unit() {
        let mut results = two();
        for (ours, theirs) in [(1.0, 10.0), (2.0, 20.0), (9.0, 30.0)] {
            results.add("pod up", Unit::Ms, "ours", ours);
            results.add("pod up", Unit::Ms, "theirs", theirs);
            results.add("lines", Unit::KLines, "ours", theirs);
            results.add("lines", Unit::KLines, "theirs", ours);
        }
        let table = results.table();
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[2].contains("2.00 (9.00)") && lines[2].contains("20.0 (30.0)"), "{table}");
        assert!(lines[2].contains("10.0 x better") && lines[3].contains("10.0 x better"), "{table}");
    }

    #[test]
    fn a_runtime_without_samples_is_a_dash() {
        let mut results = two();
        results.add("pod up", Unit::Ms, "theirs", 3.0);
        let table = results.table();
        assert!(table.contains(" - |") && !table.contains("better"), "{table}");
    }

    #[test]
    fn nothing_is_no_gain() {
        let mut results = two();
        results.add("memory", Unit::KiB, "ours", 0.0);
        results.add("memory", Unit::KiB, "theirs", 5.0);
        assert!(!results.table().contains("better"));
    }
}
