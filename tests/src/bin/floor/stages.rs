//! Samples of each stage, their medians, and the sums.

use std::fmt::Write;
use std::time::{Duration, Instant};

use serde_json::json;

/// The whole that a stage is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whole {
    /// From nothing to a program executed in its container.
    PodUp,
    /// From a command to its end.
    Exec,
    /// From a running pod to nothing.
    PodDown,
}

impl Whole {
    const ALL: [Self; 3] = [Self::PodUp, Self::Exec, Self::PodDown];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PodUp => "pod up",
            Self::Exec => "exec",
            Self::PodDown => "pod down",
        }
    }
}

/// The machines that have a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Everywhere,
    /// Only machines with v1 cgroups.
    V1,
    /// Only machines with v2 cgroups.
    V2,
}

/// How a machine's cgroups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CgroupKind {
    V1,
    Hybrid,
    V2,
}

impl CgroupKind {
    const fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        }
    }

    const fn has(self, place: Where) -> bool {
        match place {
            Where::Everywhere => true,
            Where::V1 => matches!(self, Self::V1 | Self::Hybrid),
            Where::V2 => matches!(self, Self::V2 | Self::Hybrid),
        }
    }
}

/// One step of a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    whole: Whole,
    name: &'static str,
    place: Where,
}

/// A stage that every machine has.
pub(crate) const fn stage(whole: Whole, name: &'static str) -> Stage {
    Stage { whole, name, place: Where::Everywhere }
}

/// A stage that depends on the cgroup version.
pub(crate) const fn stage_of(place: Where, whole: Whole, name: &'static str) -> Stage {
    Stage { whole, name, place }
}

/// Everything that was measured, in the order of first measurement.
#[derive(Debug, Default)]
pub(crate) struct Stages(Vec<(Stage, Vec<f64>)>);

impl Stages {
    /// Adds a sample.
    pub(crate) fn add(&mut self, stage: Stage, duration: Duration) {
        let milliseconds = duration.as_secs_f64() * 1000.0;
        match self.0.iter_mut().find(|(known, _)| *known == stage) {
            Some((_, samples)) => samples.push(milliseconds),
            None => self.0.push((stage, vec![milliseconds])),
        }
    }

    /// The median of each stage and their sums, for people.
    pub(crate) fn table(&self, kinds: &[CgroupKind]) -> String {
        let mut text = format!("| {:<54} | median ms |\n|{:-<56}|----------:|\n", "the kernel's part", "");
        for whole in Whole::ALL {
            for (stage, samples) in self.0.iter().filter(|(stage, _)| stage.whole == whole) {
                line(&mut text, &format!("{}: {}", whole.name(), stage.name), median(samples));
            }
            for kind in kinds {
                line(
                    &mut text,
                    &format!("**{}, cgroups {}**", whole.name(), kind.name()),
                    self.sum(whole, *kind),
                );
            }
        }
        text
    }

    /// The sums for this machine as it is (the first kind), and every sample.
    pub(crate) fn json(&self, kinds: &[CgroupKind]) -> anyhow::Result<String> {
        let sums = |kind: &CgroupKind| {
            let of = |whole| self.sum(whole, *kind);
            json!({
                "cgroups": kind.name(), "pod up": of(Whole::PodUp), "exec": of(Whole::Exec), "pod down": of(Whole::PodDown),
            })
        };
        let stage = |(stage, samples): &(Stage, Vec<f64>)| json!({ "whole": stage.whole.name(), "stage": stage.name, "median": median(samples), "samples": samples });
        let sums: Vec<_> = kinds.iter().map(sums).collect();
        let stages: Vec<_> = self.0.iter().map(stage).collect();
        Ok(serde_json::to_string_pretty(&json!({ "unit": "ms", "sums": sums, "stages": stages }))? + "\n")
    }

    fn sum(&self, whole: Whole, kind: CgroupKind) -> f64 {
        let parts = self.0.iter().filter(|(stage, _)| stage.whole == whole && kind.has(stage.place));
        parts.map(|(_, samples)| median(samples)).sum()
    }
}

fn line(text: &mut String, name: &str, milliseconds: f64) {
    // Writing to a string cannot fail.
    if writeln!(text, "| {name:<54} | {milliseconds:>9.3} |").is_err() {
        text.push('?');
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Times consecutive stages.
#[derive(Debug)]
pub(crate) struct Laps<'a> {
    stages: &'a mut Stages,
    last: Instant,
}

impl<'a> Laps<'a> {
    /// Begins the first stage now.
    pub(crate) fn begin(stages: &'a mut Stages) -> Self {
        Self { stages, last: Instant::now() }
    }

    /// Ends a stage and begins the next.
    pub(crate) fn ended(&mut self, stage: Stage) {
        let now = Instant::now();
        self.stages.add(stage, now - self.last);
        self.last = now;
    }

    /// Leaves the time since the last stage out.
    pub(crate) fn skip(&mut self) {
        self.last = Instant::now();
    }

    /// Adds a child's stages with their lengths. The next stage begins when the last of them ended.
    pub(crate) fn of_child(&mut self, lengths: impl IntoIterator<Item = (Stage, Duration)>) {
        for (stage, length) in lengths {
            self.stages.add(stage, length);
            self.last += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CgroupKind, Laps, Stages, Where, Whole, stage, stage_of};

    fn measured() -> Stages {
        let mut stages = Stages::default();
        for milliseconds in [9, 1, 2] {
            stages.add(stage(Whole::PodUp, "clone"), Duration::from_millis(milliseconds));
        }
        stages.add(stage_of(Where::V1, Whole::PodUp, "entered"), Duration::from_millis(10));
        stages.add(stage_of(Where::V2, Whole::PodUp, "made"), Duration::from_millis(100));
        stages.add(stage(Whole::Exec, "joined"), Duration::from_millis(7));
        stages
    }

    #[test]
    fn a_sum_has_the_medians_of_what_such_a_machine_has() {
        let stages = measured();
        let sums =
            [CgroupKind::V1, CgroupKind::V2, CgroupKind::Hybrid].map(|kind| stages.sum(Whole::PodUp, kind));
        assert_eq!(sums, [12.0, 102.0, 112.0]);
        assert_eq!(stages.sum(Whole::Exec, CgroupKind::V1), 7.0);
        assert_eq!(stages.sum(Whole::PodDown, CgroupKind::V1), 0.0);
    }

    #[test]
    fn the_first_sum_of_the_json_is_the_machine_as_it_is() {
        let text = measured().json(&[CgroupKind::Hybrid, CgroupKind::V2]).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&json["sums"][0]["cgroups"], &json["sums"][0]["pod up"]),
            (&"hybrid".into(), &112.0.into())
        );
        assert_eq!(json["stages"][0]["median"], 2.0);
    }

    #[test]
    fn what_a_child_reported_is_not_counted_again() {
        let mut stages = Stages::default();
        let mut laps = Laps::begin(&mut stages);
        let (before, long) = (laps.last, Duration::from_secs(5));
        laps.of_child([(stage(Whole::Exec, "clone"), long)]);
        assert_eq!(laps.last, before + long);
        assert_eq!(stages.sum(Whole::Exec, CgroupKind::V2), 5000.0);
    }
}
