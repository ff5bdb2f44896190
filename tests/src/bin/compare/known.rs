//! The accepted differences, each with its reason: `tests/compare/differences.toml`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use crate::facts::Difference;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    #[serde(default)]
    difference: Vec<Entry>,
}

/// An accepted difference. In every text except the reason, `*` matches anything.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    fact: String,
    /// Without it, anything matches.
    #[serde(default = "anything")]
    wharf: String,
    #[serde(default = "anything")]
    containerd: String,
    /// Names of requests; without them, all.
    #[serde(default)]
    requests: Vec<String>,
    reason: String,
}

fn anything() -> String {
    "*".to_owned()
}

impl Known {
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let known: Self = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        let empty = known.difference.iter().find(|entry| entry.reason.trim().is_empty());
        anyhow::ensure!(empty.is_none(), "{}: {empty:?} has no reason", path.display());
        Ok(known)
    }

    /// Separates the differences that no entry matches from the others, and names the entries that match none.
    pub(crate) fn sort(&self, all: &[Difference]) -> Sorted {
        let of = |difference: &Difference| self.difference.iter().any(|entry| entry.covers(difference));
        let (excused, new) = all.iter().cloned().partition(of);
        Sorted { excused, new, gone: self.difference.iter().flat_map(|entry| entry.gone(all)).collect() }
    }
}

impl Entry {
    fn covers(&self, difference: &Difference) -> bool {
        let named = |pattern: &String| is_like(pattern, difference.request);
        self.tells(difference) && (self.requests.is_empty() || self.requests.iter().any(named))
    }

    /// Whether it matches, whatever the request.
    fn tells(&self, difference: &Difference) -> bool {
        is_like(&self.fact, &difference.fact)
            && is_like(&self.wharf, &difference.wharf)
            && is_like(&self.containerd, &difference.containerd)
    }

    /// What in the entry no difference matches: some of its requests, or all of it.
    fn gone(&self, all: &[Difference]) -> Vec<String> {
        let told: Vec<&Difference> = all.iter().filter(|one| self.tells(one)).collect();
        let text = format!("{} (wharf {}, containerd {})", self.fact, self.wharf, self.containerd);
        if told.is_empty() {
            return vec![text];
        }
        let idle = |name: &&String| !told.iter().any(|one| is_like(name, one.request));
        self.requests.iter().filter(idle).map(|name| format!("{text} in {name}")).collect()
    }
}

/// Whether a text matches a pattern, in which `*` stands for anything.
fn is_like(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut rest) = text.strip_prefix(before) else { return false };
    loop {
        if is_like(after, rest) {
            return true;
        }
        let mut characters = rest.chars();
        if characters.next().is_none() {
            return false;
        }
        rest = characters.as_str();
    }
}

/// All differences of a run.
#[derive(Debug)]
pub(crate) struct Sorted {
    pub(crate) excused: Vec<Difference>,
    pub(crate) new: Vec<Difference>,
    /// Entries that no difference matches, and such requests of other entries.
    pub(crate) gone: Vec<String>,
}

/// The differences as a text: each once, with the requests in which it occurred.
pub(crate) fn listing(differences: &[Difference], requests: usize) -> String {
    let mut seen: Vec<(&Difference, Vec<&str>)> = Vec::new();
    for difference in differences {
        let same = |(one, _): &&mut (&Difference, Vec<&str>)| {
            (&one.fact, &one.wharf, &one.containerd)
                == (&difference.fact, &difference.wharf, &difference.containerd)
        };
        match seen.iter_mut().find(same) {
            Some((_, names)) => names.push(difference.request),
            None => seen.push((difference, vec![difference.request])),
        }
    }
    seen.sort_by(|(one, _), (other, _)| one.fact.cmp(&other.fact));
    let mut text = String::new();
    for (one, names) in seen {
        let place =
            if names.len() == requests { format!("all {requests} requests") } else { names.join(", ") };
        let _never_fails = writeln!(
            text,
            "{}\n    wharf       {}\n    containerd  {}\n    in {place}",
            one.fact, one.wharf, one.containerd
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(request: &'static str, fact: &str, wharf: &str) -> Difference {
        Difference { request, fact: fact.into(), wharf: wharf.into(), containerd: "y".into() }
    }

    #[test]
    fn patterns_have_stars() {
        for (pattern, text) in [("a", "a"), ("a*", "a"), ("*", ""), ("a*c*", "abc d"), ("*b*c", "abbc")] {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*c", "ab"), ("", "a"), ("*a", "ab")] {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_has_no_entry_is_new_and_an_entry_without_any_is_gone() {
        let known: Known = toml::from_str(
            "[[difference]]\nfact = \"a *\"\nwharf = \"1\"\nrequests = [\"r\"]\nreason = \"so\"\n\
             [[difference]]\nfact = \"z\"\nreason = \"so\"\n\
             [[difference]]\nfact = \"a b\"\nwharf = \"1\"\nrequests = [\"r\", \"t\"]\nreason = \"so\"\n",
        )
        .unwrap();
        let all = [difference("r", "a b", "1"), difference("r", "a b", "2"), difference("s", "a b", "1")];
        let sorted = known.sort(&all);
        assert_eq!(sorted.excused, all[..1]);
        assert_eq!(sorted.new, all[1..]);
        assert_eq!(sorted.gone, ["z (wharf *, containerd *)", "a b (wharf 1, containerd *) in t"]);
    }

    #[test]
    fn a_difference_of_many_requests_is_listed_once() {
        let all = [difference("r", "a", "1"), difference("s", "a", "1"), difference("s", "b", "1")];
        let text = listing(&all, 2);
        assert!(text.contains("in all 2 requests") && text.contains("in s\n"), "{text}");
        assert_eq!(text.matches("wharf       1").count(), 2, "{text}");
    }

    #[test]
    fn an_entry_needs_a_reason() {
        let dir = std::env::temp_dir().join(format!("wharf-compare-{}", std::process::id()));
        std::fs::write(&dir, "[[difference]]\nfact = \"a\"\nreason = \" \"\n").unwrap();
        let refused = Known::load(&dir).unwrap_err().to_string();
        std::fs::remove_file(&dir).unwrap();
        assert!(refused.contains("no reason"), "{refused}");
    }
}
