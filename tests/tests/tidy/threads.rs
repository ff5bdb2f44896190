//! No program may panic for want of a thread: a limit on processes may be reached at any moment.

use super::{File, files, measures};

/// What panics if the kernel has no room for one more thread.
const PANICS: [&str; 2] = ["thread::spawn(", "scope.spawn("];

fn panics_without_room(file: &File) -> Vec<String> {
    let text = measures::without_tests(&file.text);
    let what = "panics if no thread can be started: use `wharf_sys::thread`, or `std::thread::Builder`";
    let code = File { path: file.path.clone(), text, executable: false };
    code.lines_where(what, |line| PANICS.iter().any(|call| line.contains(call)))
}

#[test]
fn no_thread_is_taken_for_granted() {
    let files = files();
    let of_tests = measures::test_modules(&files);
    let code = files.iter().filter(|file| {
        let is_source = file.path.starts_with("crates/") && file.path.contains("/src/") && file.is_rust();
        is_source && !measures::is_below(&file.path, &of_tests)
    });
    let found: Vec<String> = code.flat_map(panics_without_room).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_thread_that_is_taken_for_granted_is_found() {
    for code in ["    std::thread::spawn(move || {", "    scope(|scope| scope.spawn(work).join())"] {
        let found = panics_without_room(&super::file("crates/a/src/a.rs", &format!("//! x\n{code}\n")));
        assert!(found.len() == 1 && found[0].starts_with("crates/a/src/a.rs:2: "), "{found:?}");
        let in_tests = format!("#[cfg(test)]\nmod tests {{\n{code}\n}}\n");
        assert!(panics_without_room(&super::file("crates/a/src/a.rs", &in_tests)).is_empty());
    }
    let fine =
        super::file("crates/a/src/a.rs", "thread::Builder::new().spawn(work)?;\ntokio::spawn(work);\n");
    assert!(panics_without_room(&fine).is_empty());
}
