//! Compares descriptions and plans with the files in `golden/`: the plainest container as a whole, all others by their
//! differences. Each topic has a file of its own, so that a change of one is read alone. `UPDATE=1 cargo test -p
//! wharf-planner golden` rewrites the files; the changes must then be read.
#![expect(clippy::disallowed_methods, reason = "the files are this test's own")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::requests::CASES;
use super::{Asked, additions, defaults, labels, text};

#[test]
fn requests_become_what_is_kept() {
    let plainest = text::lines(&Asked::default());
    let mut files = BTreeMap::from([("plainest", format!("{}\n", plainest.join("\n")))]);
    for case in CASES.iter().chain(defaults::CASES).chain(additions::CASES).chain(labels::CASES) {
        let mut asked = Asked::default();
        (case.change)(&mut asked);
        let file = files.entry(case.topic).or_default();
        writeln!(file, "# {}", case.name).unwrap();
        let lines = text::lines(&asked);
        let difference = if lines.len() == 1 { lines } else { difference(&plainest, &lines) };
        difference.iter().for_each(|line| writeln!(file, "{line}").unwrap());
        file.push('\n');
    }
    for (topic, now) in &files {
        check(topic, now);
    }
    let kept = std::fs::read_dir(directory()).unwrap().count();
    assert_eq!(kept, files.len(), "a file in golden/ belongs to no topic");
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tests/golden")
}

fn check(topic: &str, now: &str) {
    let path = directory().join(format!("{topic}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let changed = difference(&lines(&kept), &lines(now));
    assert!(kept == now, "{topic}.txt is not what requests become now:\n{}", changed.join("\n"));
}

/// The lines that are only in the old text (`-`) and only in the new one (`+`), by the longest common subsequence.
fn difference(before: &[String], after: &[String]) -> Vec<String> {
    // The length of what is common to the rests after each pair of lines.
    let mut common = vec![vec![0_usize; after.len() + 1]; before.len() + 1];
    for at in (0..before.len()).rev() {
        for to in (0..after.len()).rev() {
            common[at][to] = match before[at] == after[to] {
                true => common[at + 1][to + 1] + 1,
                false => common[at + 1][to].max(common[at][to + 1]),
            };
        }
    }
    let (mut at, mut to) = (0, 0);
    let mut changed = Vec::new();
    while at < before.len() || to < after.len() {
        if at < before.len() && to < after.len() && before[at] == after[to] {
            (at, to) = (at + 1, to + 1);
        } else if to == after.len() || (at < before.len() && common[at + 1][to] >= common[at][to + 1]) {
            changed.push(format!("- {}", before[at]));
            at += 1;
        } else {
            changed.push(format!("+ {}", after[to]));
            to += 1;
        }
    }
    changed
}

#[test]
fn a_difference_is_what_is_not_common() {
    let lines = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
    assert_eq!(difference(&lines("abcd"), &lines("axcde")), ["- b", "+ x", "+ e"]);
    assert!(difference(&lines("abc"), &lines("abc")).is_empty());
}
