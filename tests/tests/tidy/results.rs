//! Below the daemon nobody sees a failure that is not handed on: a result is handled, noted, or dropped under a name
//! that says why it may fail (`let _caller_may_be_gone = …`).

use super::{File, check, file, measures};

/// The crates whose processes nobody watches, and those that speak to them.
const CRATES: [&str; 4] = ["supervisor", "isolation", "runtimes", "supervision"];

fn dropped_result(file: &File) -> Vec<String> {
    let is_held = |name: &str| file.path.starts_with(&format!("crates/{name}/src/"));
    if !CRATES.into_iter().any(is_held) || file.path.ends_with("/tests.rs") {
        return Vec::new();
    }
    let what =
        "a result is dropped: handle it, log it (`or_warn`), or name why it may fail (`let _reason =`)";
    let text = measures::without_tests(&file.text);
    File { path: file.path.clone(), text, executable: false }.lines_where(what, drops_a_call)
}

/// Whether a line is a statement, or a match arm, that drops the result of a call. What `?` has taken out of a result
/// is none.
fn drops_a_call(line: &str) -> bool {
    let line = line.trim();
    let arm = line.rsplit("=> ").next().unwrap_or(line);
    let dropped = arm.strip_prefix("drop(").filter(|rest| !rest.ends_with("?);"));
    let dropped = dropped.and_then(|rest| rest.split_once('('));
    let by_default = [".unwrap_or_default();", ".ok();"].iter().any(|end| line.ends_with(end));
    dropped.is_some_and(|(called, _)| !called.is_empty()) || by_default && !line.contains(" = ")
}

#[test]
fn no_result_is_dropped_unsaid() {
    check(dropped_result);
}

#[test]
fn a_dropped_result_is_found() {
    let of = |name: &str| format!("crates/{name}/src/x.rs");
    for code in [
        "    drop(self.watch.add(fd));",
        "        Err(_) => drop(send(fd)),",
        "    write(fd).unwrap_or_default();",
        "    write(fd).ok();",
    ] {
        for name in CRATES {
            let found = dropped_result(&file(&of(name), &format!("//! x\n{code}\n")));
            assert!(found.len() == 1 && found[0].starts_with(&format!("{}:2: ", of(name))), "{code}");
        }
        assert!(dropped_result(&file(&of("cli"), code)).is_empty());
        let in_a_test = format!("//! x\n#[cfg(test)]\nmod tests {{\n{code}\n}}\n");
        assert!(dropped_result(&file(&of("supervisor"), &in_a_test)).is_empty());
    }
    for code in [
        "drop(making);",
        "drop((one, other));",
        "drop(root.ensure(path)?);",
        "let text = read(fd).unwrap_or_default();",
        "let _caller_may_be_gone = waiter.send(value);",
        "raise().map(drop).or_warn(x);",
    ] {
        assert!(dropped_result(&file(&of("supervisor"), code)).is_empty(), "{code}");
    }
}
