//! The layers of the workspace, and which crate may depend on which.
//!
//! The edges are those that `cargo metadata` reports. Each rule is a function over plain graphs, so that the unit tests
//! at the end can give it graphs that break it. A new edge between crates of one level must be added to [`SAME_LEVEL`],
//! in a commit that gives the reason.
#![expect(
    clippy::tests_outside_test_module,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The crates of each level, lowest first, without the prefix `wharf-`.
const LEVELS: &[&[&str]] = &[
    &["types", "sys"],
    &["wire", "state", "cri-api", "programs"],
    &["isolation", "cgroup", "snapshots", "images", "network"],
    &[
        "tasks",
        "metrics",
        "traces",
        "planner",
        "records",
        "host",
        "runtimes",
        "supervisor",
        "supervision",
        "registry",
        "test-registry",
        "nri",
        "pods",
        "streaming",
        "cri",
        "daemon",
        "cli",
    ],
    &["tests"],
];

/// The first level that may be asynchronous.
const ASYNC_LEVEL: usize = 3;

/// The only edges between two crates of one level, from and to.
const SAME_LEVEL: &[(&str, &str)] = &[
    ("sys", "types"),
    ("images", "snapshots"),
    ("host", "planner"),
    // One run of a program is for all containers that wait for it, and takes nobody's thread.
    ("host", "tasks"),
    // What a record says is told in the planner's words.
    ("records", "planner"),
    ("nri", "records"),
    // What plugins adjust is a container's description.
    ("nri", "planner"),
    ("pods", "nri"),
    ("pods", "tasks"),
    ("pods", "host"),
    ("pods", "planner"),
    ("pods", "records"),
    ("pods", "supervision"),
    // What makes containers in its children, in the place of isolation.
    ("supervisor", "runtimes"),
    ("registry", "tasks"),
    // For its tests.
    ("registry", "test-registry"),
    // Its connections are limited in number as those for sessions are.
    ("metrics", "tasks"),
    // Its sessions are limited in number like everything that clients begin.
    ("streaming", "tasks"),
    // Only a profile that can be planned with is kept.
    ("registry", "planner"),
    ("cri", "pods"),
    // Lists and statuses are made of what a record holds.
    ("cri", "records"),
    ("cri", "registry"),
    ("cri", "streaming"),
    // Each call is counted where it gets its answer.
    ("cri", "metrics"),
    // And traced.
    ("cri", "traces"),
    // An archive of images waits for its client in a thread of its own.
    ("cri", "tasks"),
    ("daemon", "cri"),
    ("daemon", "metrics"),
    ("daemon", "traces"),
    ("daemon", "nri"),
    // The defaults for requests are part of the configuration, and whether they are right is decided there.
    ("daemon", "planner"),
    ("daemon", "pods"),
    ("daemon", "registry"),
    ("daemon", "streaming"),
];

/// The only crates of this workspace that the command line may use.
const CLI_MAY_USE: &[&str] = &["cri-api", "types"];

/// The only crates that the planner may use. It decides and does nothing: from `sys` it takes only types, from
/// `isolation`, `cgroup` and `network` those and lists, and its `clippy.toml` bans files, clocks and the environment.
const PLANNER_MAY_NAME: &[&str] = &[
    "wharf-types",
    "wharf-sys",
    "wharf-isolation",
    "wharf-cri-api",
    "wharf-cgroup",
    "wharf-network",
    "oci-spec",
    "regex-lite",
    "serde",
    "serde_json",
    "thiserror",
    "proptest",
];

/// What the supervisor must not contain: one runs for each pod, and every page of it counts.
const NOT_IN_SUPERVISOR: &[&str] =
    &["tokio", "tonic", "oci-spec", "cgroups-rs", "tracing-subscriber", "regex"];

/// Third-party crates that only a few crates may use directly, and which ones.
const DIRECT_ONLY_IN: &[(&str, &[&str])] = &[
    ("libc", &["sys"]),
    ("rustix", &["sys"]),
    ("anyhow", &["daemon", "cli", "tests"]),
    ("oci-spec", &["images", "nri", "planner"]),
];

/// The asynchronous crates that may wait for a disk wherever they like: the command line serves one call, and the
/// bindings do nothing of their own.
const MAY_WAIT: &[&str] = &["cli", "cri-api", "tests", "test-registry"];

/// One declared dependency of a crate in the workspace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: String,
    to: String,
}

/// A package in the resolved graph, with the ids of those that it links.
struct Package {
    name: String,
    deps: Vec<String>,
}

/// The resolved graph, by package id.
type Graph = BTreeMap<String, Package>;

/// The name of a crate of this workspace without its prefix; `None` for any other.
fn own(name: &str) -> Option<&str> {
    name.strip_prefix("wharf-")
}

fn level(name: &str) -> Option<usize> {
    LEVELS.iter().position(|crates| crates.contains(&name))
}

// ---- The rules ----

/// Crates without a level.
fn unplaced(crates: &BTreeSet<String>) -> Vec<String> {
    let missing = crates.iter().filter(|name| level(own(name).unwrap_or(name)).is_none());
    missing.map(|name| format!("{name} has no level: enter it in LEVELS of tests/tests/layers.rs")).collect()
}

/// Edges in the workspace that go up, or sideways without being in the table.
fn wrong_edges(edges: &BTreeSet<Edge>) -> Vec<String> {
    let mut wrong = Vec::new();
    for edge in edges {
        let (Some(from), Some(to)) = (own(&edge.from), own(&edge.to)) else { continue };
        let (Some(above), Some(below)) = (level(from), level(to)) else { continue };
        if below > above {
            wrong.push(format!("{from} (level {above}) depends on {to} (level {below}), which is above it"));
        } else if below == above && !SAME_LEVEL.contains(&(from, to)) {
            wrong.push(format!("{from} depends on {to} of the same level {above}, which SAME_LEVEL lacks"));
        }
    }
    wrong
}

/// Crates of the workspace that the command line uses and may not.
fn cli_beyond_interface(edges: &BTreeSet<Edge>) -> Vec<String> {
    let used = edges.iter().filter(|edge| edge.from == "wharf-cli").filter_map(|edge| own(&edge.to));
    used.filter(|name| !CLI_MAY_USE.contains(name))
        .map(|name| format!("cli depends on {name}; it may use only {CLI_MAY_USE:?}"))
        .collect()
}

/// Crates that the planner uses and may not.
fn planner_beyond_data(edges: &BTreeSet<Edge>) -> Vec<String> {
    let named = edges.iter().filter(|edge| edge.from == "wharf-planner").map(|edge| edge.to.as_str());
    named
        .filter(|name| !PLANNER_MAY_NAME.contains(name))
        .map(|name| format!("planner depends on {name}; it may name only {PLANNER_MAY_NAME:?}"))
        .collect()
}

/// What a source of the planner names of `sys` that is no type, nor belongs to one.
fn acts_of_sys(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in source.split("wharf_sys::").skip(1) {
        let is_path = |letter: char| letter.is_alphanumeric() || "_:".contains(letter);
        let path: String = rest.chars().take_while(|letter| is_path(*letter)).collect();
        let group = rest[path.len()..].strip_prefix('{').and_then(|group| group.split_once('}'));
        let names = group.map_or(vec![""], |(group, _)| group.split_terminator(',').map(str::trim).collect());
        let wholes = names.iter().filter(|name| group.is_none() || !name.is_empty());
        let wholes = wholes.map(|name| format!("{path}{name}"));
        let is_type = |part: &str| part.starts_with(|first: char| first.is_uppercase());
        found.extend(wholes.filter(|whole| !whole.split("::").any(is_type)));
    }
    found.into_iter().map(|name| format!("the planner names wharf_sys::{name}, which is no type")).collect()
}

/// Crates that use a third-party crate reserved for others.
fn wrong_direct(edges: &BTreeSet<Edge>, banned: &str, allowed: &[&str]) -> Vec<String> {
    let users =
        edges.iter().filter(|edge| edge.to == banned).map(|edge| own(&edge.from).unwrap_or(&edge.from));
    users
        .filter(|user| !allowed.contains(user))
        .map(|user| format!("{user} depends on {banned}; only {allowed:?} may"))
        .collect()
}

/// Asynchronous crates in which a call on a file is not refused.
fn unguarded(edges: &BTreeSet<Edge>, is_guarded: impl Fn(&str) -> bool) -> Vec<String> {
    let users = edges.iter().filter(|edge| edge.to == "tokio").filter_map(|edge| own(&edge.from));
    let unguarded = users.filter(|user| !MAY_WAIT.contains(user) && !is_guarded(user));
    unguarded.map(|user| format!("{user} is asynchronous: link crates/pods/clippy.toml in it")).collect()
}

/// The shortest path from a package to each banned one that it reaches.
fn reached(graph: &Graph, from: &str, banned: &[&str]) -> Vec<String> {
    let Some((start, _)) = graph.iter().find(|(_, package)| package.name == from) else {
        return vec![format!("{from} is not in the resolved graph")];
    };
    let mut came_from: BTreeMap<&str, Option<&str>> = BTreeMap::from([(start.as_str(), None)]);
    let mut queue = VecDeque::from([start.as_str()]);
    let mut found = Vec::new();
    while let Some(id) = queue.pop_front() {
        let package = &graph[id];
        if banned.contains(&package.name.as_str()) {
            found.push(format!("{from} links {}: {}", package.name, way(graph, &came_from, id)));
        }
        for dep in &package.deps {
            if !came_from.contains_key(dep.as_str()) {
                came_from.insert(dep, Some(id));
                queue.push_back(dep);
            }
        }
    }
    found
}

/// The chain of names that leads to a package.
fn way(graph: &Graph, came_from: &BTreeMap<&str, Option<&str>>, to: &str) -> String {
    let mut names = vec![graph[to].name.as_str()];
    let mut at = to;
    while let Some(before) = came_from[at] {
        names.push(&graph[before].name);
        at = before;
    }
    names.reverse();
    names.join(" -> ")
}

/// Crates below the asynchronous level that link an async runtime.
fn async_below(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    let names = graph.values().filter_map(|package| own(&package.name));
    for name in names.filter(|name| level(name).is_some_and(|level| level < ASYNC_LEVEL)) {
        // The bindings need tonic, and tonic's transport needs tokio.
        if name != "cri-api" {
            found.extend(reached(graph, &format!("wharf-{name}"), &["tokio", "tonic"]));
        }
    }
    found
}

/// Libraries that crates declare and name nowhere in their sources. The libraries are those of each crate, by the names
/// that its sources know.
fn unnamed(libraries: &BTreeMap<String, BTreeSet<String>>, sources: impl Fn(&str) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for (name, libraries) in libraries {
        let sources = sources(name);
        let words: BTreeSet<&str> =
            sources.split(|letter: char| letter != '_' && !letter.is_alphanumeric()).collect();
        let unnamed = libraries.iter().filter(|library| !words.contains(library.as_str()));
        found.extend(unnamed.map(|library| format!("{name} declares {library}, and does not use it")));
    }
    found
}

// ---- The workspace as it is ----

fn metadata(options: &[&str]) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    #[expect(clippy::disallowed_methods, reason = "only cargo knows its graph")]
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--offline"]).args(options).current_dir(root);
    let output = cargo.output().unwrap_or_else(|error| panic!("{cargo:?}: {error}"));
    assert!(
        output.status.success(),
        "{cargo:?} failed; if a package is not on this machine yet, run `cargo fetch` first\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} should be a string")).to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} should be a list"))
}

/// The crates of the workspace and their declared dependencies: normal, build and test ones, optional ones included.
fn declared() -> (BTreeSet<String>, BTreeSet<Edge>) {
    let metadata = metadata(&["--no-deps"]);
    let (mut crates, mut edges) = (BTreeSet::new(), BTreeSet::new());
    for package in list(&metadata["packages"]) {
        let from = text(&package["name"]);
        for dependency in list(&package["dependencies"]) {
            edges.insert(Edge { from: from.clone(), to: text(&dependency["name"]) });
        }
        crates.insert(from);
    }
    (crates, edges)
}

/// What links what on Linux; dependencies of tests and build scripts are left out.
fn resolved() -> Graph {
    let metadata = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let named = list(&metadata["packages"]).iter();
    let names: BTreeMap<String, String> =
        named.map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let mut graph = Graph::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let linked = |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let deps = list(&node["deps"]).iter().filter(linked).map(|dep| text(&dep["pkg"])).collect();
        let id = text(&node["id"]);
        graph.insert(id.clone(), Package { name: names[&id].clone(), deps });
    }
    graph
}

/// The libraries of each crate of the workspace, and the crate's directory.
fn libraries() -> (BTreeMap<String, BTreeSet<String>>, BTreeMap<String, PathBuf>) {
    let metadata = metadata(&["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let members: BTreeSet<_> = list(&metadata["workspace_members"]).iter().map(text).collect();
    let (mut names, mut directories) = (BTreeMap::new(), BTreeMap::new());
    for package in list(&metadata["packages"]) {
        let (name, manifest) = (text(&package["name"]), text(&package["manifest_path"]));
        names.insert(text(&package["id"]), name.clone());
        directories.insert(name, Path::new(&manifest).with_file_name(""));
    }
    let nodes =
        list(&metadata["resolve"]["nodes"]).iter().filter(|node| members.contains(&text(&node["id"])));
    let of = |node: &Value| list(&node["deps"]).iter().map(|dep| text(&dep["name"])).collect();
    (nodes.map(|node| (names[&text(&node["id"])].clone(), of(node))).collect(), directories)
}

/// The text of all Rust files below a directory.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).expect("a crate can be listed").flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("a source can be read"));
        }
    }
    text
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn what_is_declared_is_used() {
    let (libraries, directories) = libraries();
    assert!(libraries["wharf-daemon"].contains("tokio"), "the graph was read");
    assert_none(&unnamed(&libraries, |name| sources(&directories[name])));
}

#[test]
fn every_crate_has_a_level() {
    assert_none(&unplaced(&declared().0));
}

#[test]
fn edges_go_downward() {
    assert_none(&wrong_edges(&declared().1));
}

#[test]
fn the_command_line_knows_only_the_interface() {
    assert_none(&cli_beyond_interface(&declared().1));
}

#[test]
fn the_planner_knows_only_data() {
    assert_none(&planner_beyond_data(&declared().1));
}

#[test]
fn the_planner_takes_only_types_from_sys() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/planner/src"));
    assert!(sources.contains("wharf_sys::mount::Propagation"));
    assert_none(&acts_of_sys(&sources));
}

#[test]
fn nothing_below_the_services_is_asynchronous() {
    assert_none(&async_below(&resolved()));
}

#[test]
fn the_supervisor_stays_small() {
    assert_none(&reached(&resolved(), "wharf-supervisor", NOT_IN_SUPERVISOR));
}

#[test]
fn guarded_crates_are_used_where_allowed() {
    let (_, edges) = declared();
    let wrong = DIRECT_ONLY_IN.iter().flat_map(|(banned, allowed)| wrong_direct(&edges, banned, allowed));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn asynchronous_crates_make_no_call_on_files_by_mistake() {
    let is_guarded = |name: &str| {
        let lints = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates").join(name).join("clippy.toml");
        std::fs::read_to_string(lints).is_ok_and(|lints| lints.contains("std::fs::File::open"))
    };
    assert_none(&unguarded(&declared().1, is_guarded));
}

// ---- Each rule can fail ----

fn edges(pairs: &[(&str, &str)]) -> BTreeSet<Edge> {
    pairs.iter().map(|(from, to)| Edge { from: (*from).into(), to: (*to).into() }).collect()
}

/// A graph whose ids are the names; a package that is not the first of a pair has no dependencies.
fn graph(pairs: &[(&str, &[&str])]) -> Graph {
    let mut graph = Graph::new();
    for (name, deps) in pairs {
        for dep in *deps {
            graph.entry((*dep).into()).or_insert(Package { name: (*dep).into(), deps: Vec::new() });
        }
        let deps = deps.iter().map(|dep| (*dep).to_owned()).collect();
        graph.insert((*name).into(), Package { name: (*name).into(), deps });
    }
    graph
}

#[test]
fn an_unused_library_is_found() {
    let libraries = BTreeMap::from([("a".to_owned(), ["libc", "nix"].map(str::to_owned).into())]);
    let found = unnamed(&libraries, |_name| "use nix::libc_like;".to_owned());
    assert_eq!(found, ["a declares libc, and does not use it"]);
}

#[test]
fn an_unplaced_crate_is_found() {
    let crates = BTreeSet::from(["wharf-types".to_owned(), "wharf-novel".to_owned()]);
    assert_eq!(unplaced(&crates).len(), 1);
    assert!(unplaced(&crates)[0].starts_with("wharf-novel"));
}

#[test]
fn upward_and_sideways_edges_are_found() {
    let fine = edges(&[("wharf-pods", "wharf-types"), ("wharf-sys", "wharf-types"), ("wharf-sys", "libc")]);
    assert_eq!(wrong_edges(&fine), Vec::<String>::new());
    let up = wrong_edges(&edges(&[("wharf-state", "wharf-images")]));
    assert!(up.len() == 1 && up[0].contains("above it"), "{up:?}");
    let sideways = wrong_edges(&edges(&[("wharf-types", "wharf-sys")]));
    assert!(sideways.len() == 1 && sideways[0].contains("SAME_LEVEL"), "{sideways:?}");
}

#[test]
fn a_nosy_command_line_is_found() {
    let nosy = edges(&[("wharf-cli", "wharf-types"), ("wharf-cli", "wharf-state"), ("wharf-cli", "clap")]);
    assert_eq!(cli_beyond_interface(&nosy).len(), 1);
}

#[test]
fn an_acting_planner_is_found() {
    let acting = edges(&[("wharf-planner", "oci-spec"), ("wharf-planner", "nix"), ("wharf-pods", "nix")]);
    assert_eq!(planner_beyond_data(&acting).len(), 1);
}

#[test]
fn a_planner_that_calls_sys_is_found() {
    let fine =
        "use wharf_sys::mount::{\n    Depth, Propagation,\n};\nwharf_sys::scheduling::Scheduling::of(1)";
    assert_eq!(acts_of_sys(fine), Vec::<String>::new());
    for acting in ["use wharf_sys::fs;", "wharf_sys::clock::now_ns()", "use wharf_sys::{Error, fs};"] {
        assert_eq!(acts_of_sys(acting).len(), 1, "{acting}");
    }
}

#[test]
fn a_guarded_crate_in_the_wrong_place_is_found() {
    let found = edges(&[("wharf-sys", "libc"), ("wharf-pods", "libc"), ("wharf-pods", "rustix")]);
    assert_eq!(wrong_direct(&found, "libc", &["sys"]), ["pods depends on libc; only [\"sys\"] may"]);
}

#[test]
fn an_unguarded_crate_is_found() {
    let edges = edges(&[
        ("wharf-pods", "tokio"),
        ("wharf-cri", "tokio"),
        ("wharf-cli", "tokio"),
        ("wharf-types", "serde"),
    ]);
    let found = unguarded(&edges, |name| name == "pods");
    assert_eq!(found, ["cri is asynchronous: link crates/pods/clippy.toml in it"]);
}

#[test]
fn a_runtime_behind_other_crates_is_found() {
    let bad = graph(&[
        ("wharf-images", &["wharf-types", "helpful"]),
        ("helpful", &["tokio"]),
        ("wharf-cri-api", &["tonic"]),
        ("wharf-pods", &["tokio"]),
    ]);
    assert_eq!(async_below(&bad), ["wharf-images links tokio: wharf-images -> helpful -> tokio"]);
}

#[test]
fn a_heavy_supervisor_is_found() {
    let heavy = graph(&[("wharf-supervisor", &["a"]), ("a", &["b", "regex"]), ("b", &["a", "oci-spec"])]);
    assert_eq!(reached(&heavy, "wharf-supervisor", NOT_IN_SUPERVISOR).len(), 2);
    let absent = reached(&heavy, "wharf-gone", NOT_IN_SUPERVISOR);
    assert_eq!(absent, ["wharf-gone is not in the resolved graph"]);
}
