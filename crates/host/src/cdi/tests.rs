//! Which file counts for a device, and what a damaged file breaks.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

const DEVICES: &str = "cdiVersion: 0.5.0\nkind: vendor.com/gpu\ndevices:\n";

/// Two directories of files.
fn directories() -> (TempDir, [PathBuf; 2]) {
    let temp = tempfile::tempdir().unwrap();
    let both = ["low", "high"].map(|name| temp.path().join(name));
    both.iter().for_each(|directory| fs::create_dir(directory).unwrap());
    (temp, both)
}

/// A file with devices that set a variable to this value.
fn write(path: &Path, names: &[&str], value: &str) {
    let device = |name: &&str| format!("- name: {name}\n  containerEdits:\n    env: [\"A={value}\"]\n");
    let devices: Vec<_> = names.iter().map(device).collect();
    fs::write(path, format!("{DEVICES}{}containerEdits: {{env: [COMMON={value}]}}\n", devices.concat()))
        .unwrap();
}

fn names(names: &[&str]) -> Vec<DeviceName> {
    names.iter().map(|name| DeviceName::new(&format!("vendor.com/gpu={name}")).unwrap()).collect()
}

fn variables(cdi: &Cdi, devices: &[&str]) -> Result<Vec<String>, String> {
    let additions = cdi.additions(&names(devices)).map_err(|refusal| refusal.to_string())?;
    Ok(additions.into_iter().flat_map(|addition| addition.edits.env).collect())
}

#[test]
fn a_later_directory_counts_and_what_is_common_to_a_file_comes_once() {
    let (_temp, [low, high]) = directories();
    write(&low.join("a.yaml"), &["x", "y", "0"], "low");
    let cdi = Cdi::new(Switch::On, vec![low.clone(), high.clone()]);
    assert_eq!(variables(&cdi, &["x", "y", "0"]).unwrap(), ["COMMON=low", "A=low", "A=low", "A=low"]);
    write(&high.join("b.yaml"), &["y"], "high");
    assert_eq!(variables(&cdi, &["x", "y"]).unwrap(), ["COMMON=low", "A=low", "COMMON=high", "A=high"]);
    assert_eq!(cdi.problems(), [""; 0]);
    fs::remove_file(high.join("b.yaml")).unwrap();
    assert_eq!(variables(&cdi, &["y"]).unwrap(), ["COMMON=low", "A=low"]);
    assert_eq!(variables(&cdi, &[]).unwrap(), [""; 0]);
}

#[test]
fn two_files_of_one_directory_break_only_what_both_have() {
    let (_temp, [low, high]) = directories();
    write(&low.join("a.yaml"), &["x", "y"], "a");
    write(&low.join("b.yaml"), &["y", "z"], "b");
    let cdi = Cdi::new(Switch::On, vec![low.clone(), high.clone()]);
    assert_eq!(variables(&cdi, &["x", "z"]).unwrap().len(), 4);
    let refused = variables(&cdi, &["y"]).unwrap_err();
    assert!(
        refused.contains("gpu=y") && refused.contains("a.yaml") && refused.contains("b.yaml"),
        "{refused}"
    );
    assert_eq!(cdi.problems(), ["vendor.com/gpu=y is defined in several files of one directory"]);
    write(&high.join("c.yaml"), &["y"], "c");
    assert_eq!(variables(&cdi, &["y"]).unwrap(), ["COMMON=c", "A=c"]);
}

#[test]
fn an_unknown_device_is_named_with_where_it_was_looked_for() {
    let (_temp, [low, high]) = directories();
    write(&low.join("good.yaml"), &["x"], "good");
    let missing = high.join("missing");
    let cdi = Cdi::new(Switch::On, vec![low.clone(), high.clone(), missing.clone()]);
    let refused = variables(&cdi, &["x", "y"]).unwrap_err();
    assert!(refused.starts_with("CDI device \"vendor.com/gpu=y\": no file in "), "{refused}");
    for directory in [&low, &high, &missing] {
        assert!(refused.contains(directory.to_str().unwrap()), "{refused}");
    }
    let off = Cdi::new(Switch::Off, vec![low]);
    assert!(variables(&off, &["x"]).unwrap_err().contains("cdi.enabled"));
    assert_eq!(variables(&off, &[]).unwrap(), [""; 0]);
}

/// Each of them would be a catastrophe for somebody who reads what he finds.
#[test]
fn a_damaged_file_breaks_only_itself_and_is_named() {
    let (_temp, [low, _high]) = directories();
    write(&low.join("good.yaml"), &["x"], "good");
    let at = |name: &str| low.join(name);
    fs::write(at("cut.json"), "{\"cdiVersion\": \"0.5.0\", ").unwrap();
    fs::write(at("more.json"), "{\"cdiVersion\": \"0.5.0\"} {}").unwrap();
    fs::write(at("text.yaml"), [0xff, 0xfe]).unwrap();
    fs::write(at("bomb.yaml"), format!("a: &a [x, x]\n{}", "b: *a\n".repeat(2))).unwrap();
    fs::write(at("deep.yaml"), "[".repeat(100_000)).unwrap();
    fs::write(at("deep.json"), "[".repeat(100_000)).unwrap();
    fs::File::create(at("huge.json")).unwrap().set_len(1 << 40).unwrap();
    nix::unistd::mkfifo(&at("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("zero.json")).unwrap();
    std::os::unix::fs::symlink("loop.json", at("loop.json")).unwrap();
    // No configuration, and no damage either.
    fs::create_dir(at("directory.json")).unwrap();
    let cdi = Cdi::new(Switch::On, vec![low.clone()]);
    let begin = Instant::now();
    assert_eq!(variables(&cdi, &["x"]).unwrap(), ["COMMON=good", "A=good"]);
    assert!(begin.elapsed() < Duration::from_secs(20));
    let refused = variables(&cdi, &["y"]).unwrap_err();
    let problems = cdi.problems();
    assert_eq!(problems.len(), 10, "{problems:#?}");
    for problem in &problems {
        assert!(refused.contains(problem.as_str()), "{problem}: {refused}");
    }
    for (file, words) in [("huge.json", "longer than 4096 KiB"), ("fifo.yaml", "not a regular file")] {
        assert!(
            problems.iter().any(|problem| problem.contains(file) && problem.contains(words)),
            "{problems:#?}"
        );
    }
}

#[test]
fn what_a_file_leaves_out_the_host_tells() {
    let (_temp, [low, _high]) = directories();
    let resolve = |node: &str, mount: &str| {
        let file =
            format!("{DEVICES}- name: x\n  containerEdits: {{deviceNodes: [{node}], mounts: [{mount}]}}\n");
        fs::write(low.join("a.yaml"), file).unwrap();
        let additions = Cdi::new(Switch::On, vec![low.clone()]).additions(&names(&["x"]));
        let node = additions.map(|mut additions| additions.remove(1).edits.device_nodes.remove(0));
        node.map_err(|refusal| refusal.to_string())
    };
    let numbers = |node: Node| (node.kind, node.major, node.minor, node.file_mode);
    let null = ("c".to_owned(), Some(1), Some(3), Some(0o666));
    assert_eq!(numbers(resolve("{path: /dev/null}", "").unwrap()), null);
    assert_eq!(numbers(resolve("{path: /dev/x, hostPath: /dev/null, type: c}", "").unwrap()), null);
    let said = resolve("{path: /dev/nowhere, type: b, major: 8}", "").unwrap();
    assert_eq!(numbers(said), ("b".to_owned(), Some(8), Some(0), None));
    for (node, mount, words) in [
        ("{path: /dev/nowhere}", "", "its node /dev/nowhere: No such file"),
        ("{path: /dev/null, type: b}", "", "another type"),
        ("{path: /dev/x, hostPath: /etc}", "", "not a device"),
        (
            "{path: /dev/null}",
            "{hostPath: /nowhere, containerPath: /x}",
            "its mount of /nowhere: No such file",
        ),
    ] {
        let refused = resolve(node, mount).unwrap_err();
        assert!(refused.contains("vendor.com/gpu=x") && refused.contains(words), "{refused}");
    }
}
