//! What images take of the daemon's memory.

use crate::support::{Rig, Tar, documents_with};

const IMAGES: usize = 12;
/// Each config takes more than that if it is kept.
const EACH_BYTES: usize = 1 << 20;
/// Set in the process that measures.
const ALONE: &str = "WHARF_TEST_ALONE";

fn used_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn assert_that_configs_take_none() {
    let mut rig = Rig::new();
    let mut before = None;
    for n in 0..IMAGES {
        let archives = [Tar::new().file("f", &n.to_string()).end()];
        let labels: Vec<_> = (0..20_000).map(|m| format!(r#""image-{n}-label-{m:06}":"a value""#)).collect();
        let documents = documents_with(&archives, &format!(r#"{{"Labels":{{{}}}}}"#, labels.join(",")));
        drop(labels);
        let layer = rig.unpack_plain(&archives[0]).unwrap();
        rig.commit_documents(&format!("a.b/c:{n}"), documents, vec![layer.into()]).unwrap();
        // What the first takes while it is committed is taken again by each.
        before.get_or_insert_with(used_bytes);
    }
    for when in ["after their commits", "after a start"] {
        let more = used_bytes().saturating_sub(before.unwrap());
        assert!(more < IMAGES * EACH_BYTES, "{when}, {IMAGES} images take {more} bytes");
        rig = rig.reopened();
        assert_eq!(rig.store.list().len(), IMAGES);
    }
}

/// In a process of its own, because the other tests need memory, too.
#[test]
fn configs_are_not_kept_in_memory() {
    if std::env::var_os(ALONE).is_some() {
        return assert_that_configs_take_none();
    }
    #[expect(clippy::disallowed_methods, reason = "the test's own program again")]
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let run =
        command.args(["--exact", "memory::configs_are_not_kept_in_memory", "--nocapture"]).env(ALONE, "1");
    let output = run.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
