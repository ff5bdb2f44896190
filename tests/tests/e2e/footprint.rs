//! A runtime's footprint on the machine: compared before and after, it shows what was left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::{place, world};

/// What stays when all pods are gone because it belongs to the node and not to a pod. It is made with the first pod. A
/// cgroup parent in a request is the kubelet's.
const OF_THE_NODE: &[&str] = &[
    "link wharf0",
    "nft table inet wharf",
    "cgroup /wharf",
    "cgroup /wharf/supervisors",
    "cgroup /kube",
    "cgroup /kube/pod",
];

/// Everything that a pod, a container or an image can leave, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Takes it in this rig: all processes except the given ones, and the files below `dirs`.
    pub(crate) fn take(own: &[u32], dirs: &[&Path]) -> Self {
        let mut all = BTreeSet::new();
        all.extend(processes(own));
        all.extend(mounts());
        all.extend(links());
        all.extend(rules());
        all.extend(cgroups());
        for dir in dirs {
            walk(dir, &mut |path, _kind| all.extend([format!("file {}", path.display())]));
        }
        Self(all)
    }

    /// How many lines contain all of these words.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        self.0.iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// What is here and was not before.
    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        let new = self.0.difference(&before.0);
        new.filter(|line| !OF_THE_NODE.contains(&line.as_str())).cloned().collect()
    }
}

fn processes(own: &[u32]) -> Vec<String> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = pids.filter(|pid| *pid != 1 && *pid != std::process::id() && !own.contains(pid));
    others
        .filter_map(|pid| {
            Some(format!("process {pid} {}", fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim()))
        })
        .collect()
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.map(|fields| format!("mount {} at {}", fields[3], fields[4])).collect()
}

/// Links that lead into other namespaces: a namespace that nobody holds takes its end with it.
fn links() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap();
    table
        .lines()
        .skip(2)
        .filter_map(|line| Some(format!("link {}", line.split_once(':')?.0.trim())))
        .collect()
}

/// Tables, and the content of their sets and maps; chains and rules belong to the table.
fn rules() -> Vec<String> {
    let output = place::command(Path::new("nft")).args(["--json", "list", "ruleset"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let ruleset: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut all = Vec::new();
    for item in ruleset["nftables"].as_array().unwrap() {
        if let Some(table) = item.get("table") {
            all.push(format!(
                "nft table {} {}",
                table["family"].as_str().unwrap(),
                table["name"].as_str().unwrap()
            ));
        }
        for kind in ["map", "set"] {
            let elements =
                item.get(kind).and_then(|set| set.get("elem")).and_then(|elements| elements.as_array());
            all.extend(elements.into_iter().flatten().map(|element| format!("nft element {element}")));
        }
    }
    all
}

/// The cgroups of every hierarchy, without the hierarchy's name: what is left is left in several.
fn cgroups() -> Vec<String> {
    let mut all = Vec::new();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for line in table.lines() {
        let (Some(point), Some((_, kind))) = (line.split(' ').nth(4), line.split_once(" - ")) else {
            continue;
        };
        if kind.starts_with("cgroup") {
            walk(Path::new(point), &mut |path, kind| {
                let below = path.strip_prefix(point).unwrap();
                all.extend(kind.is_dir().then(|| format!("cgroup /{}", below.display())));
            });
        }
    }
    all
}

/// Visits everything below a directory, which need not exist.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path, fs::FileType)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        visit(&entry.path(), kind);
        if kind.is_dir() {
            walk(&entry.path(), visit);
        }
    }
}

/// A check that cannot fail proves nothing: one thing of each kind is left behind, seen, and removed.
#[test]
fn every_kind_of_leftover_is_seen() {
    world::run(async |world| {
        let dir = world.dir.join("state");
        let take = || Footprint::take(&[world.daemon.pid()], &[&dir]);
        let run = |line: &str| {
            let output = place::command(Path::new("sh")).args(["-c", line]).output().unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
        };
        let before = take();
        let mut process = place::command(Path::new("sleep")).arg("1000").spawn().unwrap();
        fs::write(dir.join("left"), "").unwrap();
        run(&format!("mkdir {0} && mount -t tmpfs left {0}", world.dir.join("left").display()));
        run("ip link add left0 type veth peer name left1");
        run("nft add table inet left; nft add set inet left s '{ type ipv4_addr; elements = { 1.2.3.4 }; }'");
        let hierarchies = "$(awk '/ - cgroup/ { print $5 }' /proc/self/mountinfo)";
        run(&format!("for hierarchy in {hierarchies}; do mkdir $hierarchy/left; done"));
        let left = take().beyond(&before);
        let kinds = [
            "process",
            "file",
            "mount",
            "link left0",
            "link left1",
            "nft table",
            "nft element",
            "cgroup /left",
        ];
        for kind in kinds {
            assert!(left.iter().any(|line| line.starts_with(kind)), "{kind} is missing in {left:#?}");
        }
        assert_eq!(left.len(), kinds.len(), "{left:#?}");
        process.kill().unwrap();
        process.wait().unwrap();
        fs::remove_file(dir.join("left")).unwrap();
        run(&format!("umount {0} && rmdir {0}", world.dir.join("left").display()));
        run("ip link del left0; nft delete table inet left");
        run(&format!("for hierarchy in {hierarchies}; do rmdir $hierarchy/left; done"));
        assert_eq!(take().beyond(&before), Vec::<String>::new());
    });
}
