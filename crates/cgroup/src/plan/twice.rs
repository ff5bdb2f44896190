//! The same limits for both cgroups of an enclosed one, in an order in which neither refuses those of the other.
//!
//! A container that could lift its limits is one cgroup further down (`planner/src/enclosure.rs:is_enclosed`): the
//! outer limits hold, and its programs see the inner ones. The kernel checks some of them against each other, from one
//! level to the next. So a new cgroup has them from above, and in one that is in use their order depends on the file.

use super::{Place, Step, Write};

/// The steps of a new cgroup, above or inside.
pub(crate) fn at(place: Place, steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().map(|step| step.at(place)).collect()
}

/// The steps of one in use: above and inside. `cpuset` is what v1's cpuset above has in the file of a write; nothing if
/// that cpuset is v2's.
pub(crate) fn change(step: Step, cpuset: Option<&str>) -> Vec<Step> {
    let (above, inside) = (step.clone().at(Place::Above), step.at(Place::Inside));
    match (&above, cpuset) {
        // On v1 a cpuset must have everything that those below it have.
        (Step::One(new), Some(held)) => {
            let value = format!("{},{}", held.trim(), new.value);
            vec![Step::One(Write { value, ..new.clone() }), inside, above]
        }
        // On v1 no cgroup may have a greater part of a CPU than the one above it. One without a quota has the same.
        (Step::Pair(_, quota), None) if quota.file == "cpu.cfs_quota_us" => {
            let none = Write { value: "-1".to_owned(), place: Place::Inside, ..quota.clone() };
            vec![Step::One(none), above, inside]
        }
        _ => vec![above, inside],
    }
}

impl Step {
    fn at(self, place: Place) -> Self {
        match self {
            Self::One(only) => Self::One(only.at(place)),
            Self::Pair(first, second) => Self::Pair(first.at(place), second.at(place)),
        }
    }
}

impl Write {
    fn at(self, place: Place) -> Self {
        // Seen from above, the cgroup inside is one more, and one level more.
        let value = match self.value.parse::<u32>() {
            Ok(bound) if place == Place::Above && self.file.starts_with("cgroup.max.") => {
                bound.saturating_add(1).to_string()
            }
            _ => self.value,
        };
        Self { place, value, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Controller;

    fn show(planned: Step, cpuset: Option<&str>) -> Vec<String> {
        let write = |write: Write| format!("{:?} {}={}", write.place, write.file, write.value);
        let step = |step| match step {
            Step::One(only) => write(only),
            Step::Pair(first, second) => format!("{} | {}", write(first), write(second)),
        };
        change(planned, cpuset).into_iter().map(step).collect()
    }

    #[test]
    fn a_limit_is_changed_above_and_then_inside() {
        let pids = Step::One(Write::new(Controller::Pids, "pids.max", 7));
        assert_eq!(show(pids, None), ["Above pids.max=7", "Inside pids.max=7"]);
        let depth = Step::One(Write::unified("cgroup.max.depth", 0));
        assert_eq!(show(depth, None), ["Above cgroup.max.depth=1", "Inside cgroup.max.depth=0"]);
    }

    #[test]
    fn no_quota_is_inside_while_the_one_above_is_changed() {
        let cpu = |file, value| Write::new(Controller::Cpu, file, value);
        let pair = Step::Pair(cpu("cpu.cfs_period_us", 100), cpu("cpu.cfs_quota_us", 50));
        let expected = [
            "Inside cpu.cfs_quota_us=-1",
            "Above cpu.cfs_period_us=100 | Above cpu.cfs_quota_us=50",
            "Inside cpu.cfs_period_us=100 | Inside cpu.cfs_quota_us=50",
        ];
        assert_eq!(show(pair, None), expected);
    }

    #[test]
    fn cpus_are_exchanged_by_way_of_all_of_them() {
        let cpus = Step::One(Write::new(Controller::Cpuset, "cpuset.cpus", "1"));
        let expected = ["Above cpuset.cpus=0,2,1", "Inside cpuset.cpus=1", "Above cpuset.cpus=1"];
        assert_eq!(show(cpus.clone(), Some("0,2\n")), expected);
        assert_eq!(show(cpus, None), ["Above cpuset.cpus=1", "Inside cpuset.cpus=1"]);
    }
}
