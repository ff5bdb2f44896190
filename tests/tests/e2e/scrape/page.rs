//! A page in the format of OpenMetrics 1.0, read strictly: whatever a lenient reader would overlook is a panic.

use std::collections::{BTreeMap, BTreeSet};

/// The samples of a page.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Page {
    samples: BTreeMap<Key, f64>,
    /// The kind of each family.
    pub(crate) families: BTreeMap<String, String>,
}

type Labels = Vec<(String, String)>;

/// A name, and the labels in their order.
type Key = (String, Labels);

/// A family whose samples come next.
#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: String,
    help: String,
}

impl Page {
    pub(crate) fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        let (mut samples, mut families, mut family) = (BTreeMap::new(), BTreeMap::new(), Family::default());
        for line in body.lines() {
            assert!(!line.is_empty() && line.trim() == line, "{line:?}");
            if let Some(comment) = line.strip_prefix("# ") {
                family = family.describe(comment, &mut families);
                continue;
            }
            let (key, value) = sample(line);
            assert!(family.has(&key), "{line:?} is no sample of {family:?}");
            assert!(!(family.kind != "gauge" && value < 0.0), "{line:?}");
            assert!(samples.insert(key, value).is_none(), "{line:?} is there twice");
        }
        let page = Self { samples, families };
        page.families.iter().filter(|(_, kind)| *kind == "histogram").for_each(|(name, _)| page.check(name));
        page
    }

    /// The sample with a name and just these labels.
    pub(crate) fn of(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }

    /// The sum of all samples with a name.
    pub(crate) fn all(&self, name: &str) -> f64 {
        self.samples.iter().filter(|((of, _), _)| of == name).map(|(_, value)| value).sum()
    }

    /// All values of labels, apart from the ends of ranges.
    pub(crate) fn values(&self) -> BTreeSet<&str> {
        let labels = self.samples.keys().flat_map(|(_, labels)| labels);
        labels.filter(|(key, _)| key != "le").map(|(_, value)| value.as_str()).collect()
    }

    /// Counters of an earlier page that have gone down or away.
    pub(crate) fn decreased(&self, earlier: &Self) -> Vec<String> {
        let counts =
            |name: &str| ["_total", "_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end));
        let before = earlier.samples.iter().filter(|((name, _), _)| counts(name));
        let less = before.filter(|(key, value)| self.samples.get(*key).is_none_or(|now| now < value));
        less.map(|(key, value)| format!("{key:?} was {value}")).collect()
    }

    /// The ranges of a histogram are ordered, count up, and end with all.
    fn check(&self, name: &str) {
        let mut ranges: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        for ((of, labels), value) in &self.samples {
            if *of == format!("{name}_bucket") {
                let (mut labels, at) = (labels.clone(), labels.iter().position(|(key, _)| key == "le"));
                let end = labels.remove(at.expect("a bucket has an end")).1;
                let end = if end == "+Inf" { f64::INFINITY } else { end.parse().unwrap() };
                ranges.entry(labels).or_default().push((end, *value));
            }
        }
        assert!(!ranges.is_empty(), "{name} is shown without a range");
        for (labels, mut ranges) in ranges {
            ranges.sort_by(|(one, _), (other, _)| one.total_cmp(other));
            assert!(ranges.is_sorted_by(|(_, less), (_, more)| less <= more), "{name}{labels:?}: {ranges:?}");
            let count = self.samples[&(format!("{name}_count"), labels.clone())];
            assert_eq!(ranges.last(), Some(&(f64::INFINITY, count)), "{name}{labels:?}");
            assert!(self.samples.contains_key(&(format!("{name}_sum"), labels)), "{name}");
        }
    }
}

impl Family {
    /// The family after a line about one.
    fn describe(mut self, comment: &str, families: &mut BTreeMap<String, String>) -> Self {
        let [word, name, rest] = comment.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            panic!("{comment:?}")
        };
        match word {
            "HELP" => {
                assert!(rest.len() > 1 && rest.ends_with('.') && !rest.ends_with(".."), "{comment:?}");
                assert!(!families.contains_key(name), "{name} is there twice");
                Self { name: name.to_owned(), kind: String::new(), help: rest.to_owned() }
            }
            "TYPE" => {
                assert!(self.name == name && self.kind.is_empty() && !self.help.is_empty(), "{comment:?}");
                assert!(["counter", "gauge", "histogram", "info"].contains(&rest), "{comment:?}");
                let is_ours = name.starts_with("wharf_") || name.starts_with("process_");
                assert!(is_ours && !name.ends_with("_total"), "{name}");
                families.insert(name.to_owned(), rest.to_owned());
                self.kind = rest.to_owned();
                self
            }
            _ => panic!("{comment:?}"),
        }
    }

    /// Whether a sample may be one of this family.
    fn has(&self, (name, labels): &Key) -> bool {
        let end = name.strip_prefix(&self.name);
        let has_range = labels.iter().any(|(key, _)| key == "le");
        match (self.kind.as_str(), end) {
            ("counter", Some("_total")) | ("gauge", Some("")) | ("info", Some("_info")) => !has_range,
            ("histogram", Some("_bucket")) => has_range,
            ("histogram", Some("_sum" | "_count")) => !has_range,
            _ => false,
        }
    }
}

/// A line such as `name{a="b"} 1`.
fn sample(line: &str) -> (Key, f64) {
    let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
    assert!(value.is_finite(), "{line:?}");
    let (name, labels) = match head.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line:?}"))),
        None => (head, ""),
    };
    let mut read = Vec::new();
    let mut left = labels;
    while !left.is_empty() {
        let (key, rest) = left.split_once("=\"").unwrap_or_else(|| panic!("{line:?}"));
        // No value here has anything in it that would have to be escaped.
        let (value, rest) = rest.split_once('"').unwrap_or_else(|| panic!("{line:?}"));
        assert!(is_name(key) && !value.contains('\\'), "{line:?}");
        assert!(read.iter().all(|(other, _)| other != key), "{line:?}");
        read.push((key.to_owned(), value.to_owned()));
        left = rest.strip_prefix(',').unwrap_or(rest);
        assert!(left.is_empty() != rest.starts_with(','), "{line:?}");
    }
    assert!(is_name(name), "{line:?}");
    ((name.to_owned(), read), value)
}

fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
}

#[test]
fn what_a_lenient_reader_overlooks_is_a_panic() {
    let good = "# HELP wharf_a A.\n# TYPE wharf_a counter\nwharf_a_total{b=\"c\",d=\"e\"} 1\n# EOF\n";
    assert_eq!(Page::parse(good).of("wharf_a_total", &[("b", "c"), ("d", "e")]), Some(1.0));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let faults = [
        ("# EOF\n", ""),
        ("counter", "gauge"),
        ("counter", "count"),
        ("_total{", "{"),
        ("A.", ""),
        ("} 1\n", "} 1\nwharf_a_total{b=\"c\",d=\"e\"} 2\n"),
        ("} 1\n", "} -1\n"),
        ("} 1\n", "} x\n"),
        ("} 1\n", " 1\n"),
        ("\",d", "\"d"),
        ("d=", "b="),
        ("d=\"e\"", "d=\"e\","),
        ("wharf_a_total", "wharf_b_total"),
        ("# HELP wharf_a A.\n", ""),
        ("wharf_a", "other_a"),
    ];
    let passed = faults.map(|(this, that)| {
        let text = good.replace(this, that);
        std::panic::catch_unwind(|| Page::parse(&text)).is_ok()
    });
    std::panic::set_hook(hook);
    assert_eq!(passed, [false; 15]);
}
