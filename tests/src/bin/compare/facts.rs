//! The facts about one container: texts by name, without what differs from run to run.

use std::collections::{BTreeMap, BTreeSet};

/// Names of this run, and the placeholders that are written instead.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<(String, &'static str)>);

impl Names {
    /// From now on `place` is written instead of `name`.
    pub(crate) fn add(&mut self, name: impl Into<String>, place: &'static str) {
        let name = name.into();
        if !name.is_empty() {
            self.0.push((name, place));
        }
    }

    fn replace(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, place)| text.replace(name, place))
    }
}

/// Texts by name.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) names: Names,
    facts: BTreeMap<String, String>,
}

impl Facts {
    /// Adds a fact. A second one with the same name gets a number, because mounts may cover each other.
    pub(crate) fn add(&mut self, name: impl AsRef<str>, text: impl AsRef<str>) {
        let name = self.names.replace(name.as_ref());
        let text = self.names.replace(text.as_ref().trim_end());
        let mut unique = name.clone();
        let mut number = 1;
        while self.facts.contains_key(&unique) {
            number += 1;
            unique = format!("{name} #{number}");
        }
        self.facts.insert(unique, text);
    }

    pub(crate) fn len(&self) -> usize {
        self.facts.len()
    }

    /// What differs, or is only on one side. If the outcomes differ, only that.
    pub(crate) fn differences(&self, other: &Self, request: &'static str) -> Vec<Difference> {
        let mut names: BTreeSet<&str> =
            self.facts.keys().chain(other.facts.keys()).map(String::as_str).collect();
        if self.facts.get(OUTCOME) != other.facts.get(OUTCOME) {
            names = BTreeSet::from([OUTCOME]);
        }
        let pairs = names.into_iter().map(|name| (name, self.facts.get(name), other.facts.get(name)));
        let differ = pairs.filter(|(_, ours, theirs)| ours != theirs);
        differ
            .map(|(name, ours, theirs)| Difference {
                request,
                fact: name.to_owned(),
                wharf: ours.cloned().unwrap_or_else(|| ABSENT.to_owned()),
                containerd: theirs.cloned().unwrap_or_else(|| ABSENT.to_owned()),
            })
            .collect()
    }
}

/// The fact with the outcome of a request.
pub(crate) const OUTCOME: &str = "outcome";

/// The text for a fact that one side does not have.
pub(crate) const ABSENT: &str = "(absent)";

/// A fact that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) request: &'static str,
    pub(crate) fact: String,
    pub(crate) wharf: String,
    pub(crate) containerd: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> Facts {
        let mut facts = Facts::default();
        facts.names.add("0123abcd", "ID");
        pairs.iter().for_each(|(name, text)| facts.add(name, text));
        facts
    }

    #[test]
    fn what_is_otherwise_or_on_one_side_is_a_difference() {
        let (ours, theirs) =
            (facts(&[("a", "1"), ("b", "2"), ("c", "3")]), facts(&[("a", "1"), ("b", "3"), ("d", "4")]));
        let found = ours.differences(&theirs, "r");
        let found: Vec<_> = found.iter().map(|it| (&*it.fact, &*it.wharf, &*it.containerd)).collect();
        assert_eq!(found, [("b", "2", "3"), ("c", "3", ABSENT), ("d", ABSENT, "4")]);
    }

    #[test]
    fn a_different_outcome_is_the_only_difference() {
        let (ours, theirs) = (facts(&[("a", "1"), (OUTCOME, "runs")]), facts(&[(OUTCOME, "is refused")]));
        let found = ours.differences(&theirs, "r");
        assert!(found.len() == 1 && found[0].fact == OUTCOME, "{found:?}");
    }

    #[test]
    fn names_of_a_run_are_replaced_and_equal_ones_numbered() {
        let facts = facts(&[("at 0123abcd", "x 0123abcd\n"), ("at ID", "y")]);
        assert_eq!(facts.facts["at ID"], "x ID");
        assert_eq!(facts.facts["at ID #2"], "y");
        assert_eq!(facts.len(), 2);
    }
}
