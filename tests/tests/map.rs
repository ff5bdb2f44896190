//! `crates/README.md` is the map of the code: the places that it names exist, and every crate and every invariant has
//! what a stranger looks for. `tests/README.md` lists every module of the end-to-end tests.
//!
//! A place in the code is written `PATH.rs:NAME` in backticks; the path is relative to `crates/`, `tests/tests/` or the
//! root. Each rule is a function over texts, so that the unit tests at the end can give it a map that breaks it.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is nothing but tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The directories to which the path of a place may be relative.
const ROOTS: [&str; 3] = ["crates", "tests/tests", ""];

/// The keywords that may precede the name of a place in its file.
const DEFINITIONS: [&str; 7] = ["fn", "struct", "enum", "trait", "type", "const", "mod"];

/// A place named on the map.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place<'a> {
    path: &'a str,
    name: &'a str,
}

fn places(text: &str) -> BTreeSet<Place<'_>> {
    let quoted = text.split('`').skip(1).step_by(2);
    let places = quoted.filter_map(|word| word.rsplit_once(':'));
    places.filter(|(path, _)| path.ends_with(".rs")).map(|(path, name)| Place { path, name }).collect()
}

/// Whether a source file defines the name.
fn defines(source: &str, name: &str) -> bool {
    DEFINITIONS.iter().any(|keyword| {
        let definition = format!("{keyword} {name}");
        source.match_indices(&definition).any(|(at, _)| {
            let follows = source[at + definition.len()..].chars().next();
            !follows.is_some_and(|next| next.is_alphanumeric() || next == '_')
        })
    })
}

/// Places that do not exist.
fn missing(text: &str, source: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let is_there = |place: &Place| source(place.path).is_some_and(|source| defines(&source, place.name));
    let gone = places(text).into_iter().filter(|place| !is_there(place));
    gone.map(|place| format!("`{}:{}` is not there", place.path, place.name)).collect()
}

/// The part of the map below a heading, up to the next heading of the same level or above.
fn section(text: &str, heading: &str) -> String {
    let depth = |line: &str| line.bytes().take_while(|&byte| byte == b'#').count();
    let is_next = |line: &&str| (1..=depth(heading)).contains(&depth(line));
    let below = text.lines().skip_while(|line| *line != heading).skip(1);
    below.take_while(|line| !is_next(line)).flat_map(|line| [line, "\n"]).collect()
}

/// Crates without a section, or whose section has no invariant or does not say what keeps it: tests, or a row of the
/// table of invariants.
fn uncharted<'a>(text: &str, crates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let sections = crates.into_iter().map(|name| (name, section(text, &format!("### `{name}`"))));
    let is_kept = |section: &str| {
        let kept =
            section.split_once("**Invariant**").and_then(|(_, invariant)| invariant.split_once("\nKept"));
        kept.is_some_and(|(_, by)| by.contains(": see invariant") || by.starts_with(" by `"))
    };
    let wanting = sections.filter(|(_, section)| !is_kept(section));
    wanting.map(|(name, _)| format!("`{name}` has no section with an invariant, and what keeps it")).collect()
}

/// Rows of the table of invariants without a test.
fn unproven(text: &str) -> Vec<String> {
    let section = section(text, "## Invariants");
    let rows = section.lines().filter(|line| line.starts_with("| **"));
    let bare = rows.filter(|row| {
        !places(row).iter().any(|place| place.path.contains("tests") || place.path.starts_with("e2e/"))
    });
    bare.map(|row| format!("no test: {row}")).collect()
}

/// Walks that are not as long as they say: they begin with a name in bold and a number of functions, and each function
/// but the first comes after an arrow or after the sign for another process.
fn miscounted(text: &str) -> Vec<String> {
    let walks = text.split("\n\n").filter_map(|walk| {
        let (name, walk) = walk.strip_prefix("**")?.split_once("**, ")?;
        let (said, walk) = walk.split_once(" functions")?;
        Some((name, said, walk.matches(['→', '‖']).count() + 1))
    });
    let wrong = walks.filter(|(_, said, counted)| said.parse() != Ok(*counted));
    wrong.map(|(name, said, counted)| format!("{name} has {counted} functions, not {said}")).collect()
}

/// Modules of the end-to-end tests, each a file name and its text, that have tests and no row in the README beside
/// them.
fn unlisted<'a>(readme: &str, modules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let tests = modules.into_iter().filter(|(_, text)| text.contains("\n#[test]\n"));
    let names = tests.filter_map(|(name, _)| name.strip_suffix(".rs"));
    let missing =
        names.filter(|name| !["", ".rs"].iter().any(|end| readme.contains(&format!("`{name}{end}`"))));
    missing.map(|name| format!("`{name}` has no row")).collect()
}

// ---- The map as it is ----

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn map() -> String {
    fs::read_to_string(root().join("crates/README.md")).expect("the map can be read")
}

fn source(path: &str) -> Option<String> {
    ROOTS.iter().find_map(|start| fs::read_to_string(root().join(start).join(path)).ok())
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "crates/README.md:\n{}", found.join("\n"));
}

#[test]
fn every_place_is_there() {
    let map = map();
    assert!(places(&map).len() > 50, "the map names too little");
    assert_none(&missing(&map, source));
}

#[test]
fn walks_are_as_long_as_they_say() {
    let map = map();
    assert!(map.matches(" functions to the ").count() >= 4, "the map has too few walks");
    assert_none(&miscounted(&map));
}

#[test]
fn every_crate_has_an_invariant() {
    let crates =
        fs::read_dir(root().join("crates")).expect("crates can be listed").map(|entry| entry.unwrap().path());
    let crates = crates.filter(|path| path.join("Cargo.toml").exists());
    let names: Vec<String> =
        crates.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_none(&uncharted(&map(), names.iter().map(String::as_str)));
}

#[test]
fn every_invariant_has_a_test() {
    let map = map();
    assert!(
        section(&map, "## Invariants").matches("| **").count() >= 15,
        "the table of invariants is too short"
    );
    assert_none(&unproven(&map));
}

#[test]
fn every_module_of_tests_is_listed() {
    let readme = fs::read_to_string(root().join("tests/README.md")).expect("the list can be read");
    let files = fs::read_dir(root().join("tests/tests/e2e")).expect("modules can be listed");
    let files = files.map(|file| file.unwrap().path()).filter(|path| path.is_file());
    let modules: Vec<(String, String)> = files
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    assert!(modules.len() > 30, "the modules are elsewhere");
    let found = unlisted(&readme, modules.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    assert!(found.is_empty(), "tests/README.md:\n{}", found.join("\n"));
}

// ---- Each rule can fail ----

#[test]
fn a_place_that_is_not_there_is_found() {
    let source = |path: &str| (path == "a/src/b.rs").then(|| "pub(crate) fn walks(".to_owned());
    let text = "`a/src/b.rs:walks`, `a/src/b.rs:walk`, `a/src/c.rs:walks` and `x:y`";
    let found = missing(text, source);
    assert_eq!(found, ["`a/src/b.rs:walk` is not there", "`a/src/c.rs:walks` is not there"]);
}

#[test]
fn a_walk_of_another_length_is_found() {
    let text = "**Right**, 3 functions to x. a → b ‖\nc.\n\n**Wrong**, 3 functions to x. a → b.\n\n**Other**: a → b.";
    assert_eq!(miscounted(text), ["Wrong has 2 functions, not 3"]);
}

#[test]
fn a_crate_without_an_invariant_is_found() {
    let text = "### `one`\n**Invariant**: so.\nKept by `a.rs:b`.\n### `two`\nNothing.\n### `four`\n**Invariant**: so.\n\
        ## End\n**Invariant**\n";
    let found = uncharted(text, ["one", "two", "three", "four"]);
    let expected = ["`two`", "`three`", "`four`"]
        .map(|name| format!("{name} has no section with an invariant, and what keeps it"));
    assert_eq!(found, expected);
}

#[test]
fn an_invariant_without_a_test_is_found() {
    let text = "## Invariants\n| **1** so | `e2e/a.rs:it_is` |\n| **2** thus | `pods/src/a.rs:f` |\n## End\n| **3** |\n";
    assert_eq!(unproven(text), ["no test: | **2** thus | `pods/src/a.rs:f` |"]);
}

#[test]
fn a_module_that_is_not_listed_is_found() {
    let modules = [
        ("a.rs", "//! A.\n\n#[test]\nfn a() {}\n"),
        ("b.rs", "#[test]\nfn b() {}\n\n#[test]\n"),
        ("c.rs", "//! C.\n"),
    ];
    assert_eq!(unlisted("| `a`, `aa` | so |\n", modules), ["`b` has no row"]);
}
