//! House rules that no compiler checks: sizes, leftovers, whitespace, headers, and where `unsafe` may be.
//!
//! The files are those that git tracks or would add: new and not ignored. Each rule is a function from a file to its
//! complaints, so that the unit tests at the end can give it files that break it.
#![expect(
    clippy::tests_outside_test_module,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

mod measures;
mod results;
mod signals;
mod style;
mod threads;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The longest a source file may be.
const LINES_LIMIT: usize = 600;

/// The longest a comment's line may be, in characters.
const COMMENT_COLUMNS: usize = 120;

/// The kinds of files that are checked for whitespace and leftovers.
const TEXT_KINDS: &[&str] = &["rs", "md", "toml", "sh", "proto"];

/// Marks of unfinished work; split here, so that this file has none.
const LEFTOVERS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// What no Rust file may contain; split for the same reason.
const FORBIDDEN_CODE: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
    concat!("allow(dead", "_code"),
];

/// Directories of one person's machine.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ho", "me/")];

/// Files in which such a path is inside an image or a container.
const MACHINE_PATHS_FINE_IN: &[&str] = &["crates/isolation/src/identity.rs", "tests/images/images.sh"];

/// A file of the repository.
struct File {
    /// Relative to the root.
    path: String,
    text: String,
    executable: bool,
}

impl File {
    fn kind(&self) -> &str {
        Path::new(&self.path).extension().and_then(|kind| kind.to_str()).unwrap_or("")
    }

    fn is_rust(&self) -> bool {
        self.kind() == "rs"
    }

    /// A generator wrote it, so its form is not ours to choose.
    fn is_generated(&self) -> bool {
        self.path.ends_with("/generated.rs")
    }

    /// A shell script: by its name, or because it is in `hack/` without another extension.
    fn is_script(&self) -> bool {
        self.kind() == "sh" || self.path.starts_with("hack/") && self.kind().is_empty()
    }

    /// A complaint for every line that matches.
    fn lines_where(&self, what: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let lines = self.text.split('\n').enumerate();
        lines.filter(|(_, line)| fits(line)).map(|(at, _)| self.complaint(at + 1, what)).collect()
    }

    fn complaint(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

// ---- The rules ----

fn too_long(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if !file.is_rust() || file.is_generated() || lines <= LINES_LIMIT {
        return Vec::new();
    }
    vec![
        file.complaint(LINES_LIMIT + 1, &format!("{lines} lines, {LINES_LIMIT} are the end; split the file")),
    ]
}

fn old_style_module(file: &File) -> Vec<String> {
    if Path::new(&file.path).file_name().is_none_or(|name| name != "mod.rs") {
        return Vec::new();
    }
    vec![file.complaint(1, "use foo.rs beside foo/ instead of foo/mod.rs")]
}

fn leftovers(file: &File) -> Vec<String> {
    let marks = LEFTOVERS.iter().filter(|_| TEXT_KINDS.contains(&file.kind()));
    let code = FORBIDDEN_CODE.iter().filter(|_| file.is_rust());
    let marks =
        marks.flat_map(|mark| file.lines_where(&format!("unfinished: {mark}"), |line| has_word(line, mark)));
    let code = code.flat_map(|code| file.lines_where(&format!("has `{code}`"), |line| line.contains(code)));
    marks.chain(code).collect()
}

/// Whether a line contains a word on its own: names of temporary files end in the same letters, but in more of them.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(part_of_word) && !line[at + word.len()..].starts_with(part_of_word)
    })
}

/// What the kernel shows has names in it that anybody may choose. The command line has no `sys`, and decides nothing by
/// what it reads so, apart from `wharf doctor`.
fn strict_about_names(file: &File) -> Vec<String> {
    let of_cli = file.path.starts_with("crates/cli/") && !file.path.starts_with("crates/cli/src/doctor");
    let is_exempt = of_cli || file.path.ends_with("/tests.rs");
    let is_shipped = file.path.starts_with("crates/") && file.path.contains("/src/");
    if is_exempt || !is_shipped || file.path.contains("/tests/") {
        return Vec::new();
    }
    let what = "a name in it need not be UTF-8: read it with `wharf_sys::fs::kernel_text`, or `source::text` of the doctor";
    let text = measures::without_tests(&file.text);
    let reads = |line: &str| line.contains("read_to_string(") && line.contains("/proc/");
    File { path: file.path.clone(), text, executable: false }.lines_where(what, reads)
}

fn headless(file: &File) -> Vec<String> {
    if !file.is_rust() || file.is_generated() || file.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![file.complaint(1, "begin with a `//!` that says what this is")]
}

fn bad_whitespace(file: &File) -> Vec<String> {
    if !TEXT_KINDS.contains(&file.kind()) {
        return Vec::new();
    }
    let mut found = file.lines_where("tab", |line| line.contains('\t'));
    found.extend(file.lines_where("trailing whitespace", |line| line.ends_with([' ', '\t', '\r'])));
    found
}

/// Comments in which an edit left a piece of the old text: a line that says again what the lines above it end with, or
/// that begins with five words of the line above.
fn torn_comment(file: &File) -> Vec<String> {
    if !file.is_rust() || file.is_generated() {
        return Vec::new();
    }
    let (mut above, mut found) = (Vec::new(), Vec::new());
    for (at, line) in file.text.split('\n').enumerate() {
        match comment(line) {
            Some(text) if repeats(text, &above) => {
                found.push(file.complaint(at + 1, "repeats what stands above it"));
            }
            Some(text) => above.push(text),
            None => above.clear(),
        }
    }
    found
}

fn wide_comment(file: &File) -> Vec<String> {
    if !file.is_rust() || file.is_generated() {
        return Vec::new();
    }
    let is_wide = |line: &str| comment(line).is_some() && line.chars().count() > COMMENT_COLUMNS;
    file.lines_where(&format!("a comment of more than {COMMENT_COLUMNS} columns"), is_wide)
}

/// The error of a call names its arguments, or where there are none, what it was for.
fn nameless_call(file: &File) -> Vec<String> {
    if !file.is_rust() {
        return Vec::new();
    }
    let empty = [concat!("\", String", "::new)"), concat!("\", |", "| String::new())")];
    let is_nameless = |line: &str| {
        let named = line.contains(".named(") && empty.iter().any(|empty| line.contains(empty));
        named || line.contains("Error::new(") && line.contains(concat!(", \"", "\", "))
    };
    file.lines_where("a failed call without its arguments", is_nameless)
}

/// The text of a line that is nothing but a comment.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    text.trim_start_matches(['/', '!']).strip_prefix(' ').map(str::trim_start)
}

fn repeats(text: &str, above: &[&str]) -> bool {
    let beginning: Vec<&str> = text.split(' ').take(5).collect();
    let begins_again =
        beginning.len() == 5 && above.last().is_some_and(|last| last.contains(&beginning.join(" ")));
    text.contains(' ') && above.join(" ").ends_with(text) || begins_again
}

fn machine_paths(file: &File) -> Vec<String> {
    if MACHINE_PATHS_FINE_IN.contains(&file.path.as_str()) {
        return Vec::new();
    }
    let path =
        |path: &&str| file.lines_where(&format!("{path} exists on one machine"), |l| l.contains(*path));
    MACHINE_PATHS.iter().flat_map(path).collect()
}

/// A script is executable, or it is sourced and says so in its first line.
fn bad_script(file: &File) -> Vec<String> {
    if !file.is_script() {
        return Vec::new();
    }
    let mut lines = file.text.lines();
    let (first, second) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let sourced = first.starts_with("# ") && first.to_lowercase().contains("sourced");
    let mut found = Vec::new();
    if !sourced && !first.starts_with("#!/") {
        found.push(file.complaint(1, "begin with `#!`, or with a comment that says who sources this"));
    }
    if !sourced && !second.starts_with("# ") {
        found.push(file.complaint(2, "describe the script in a comment below its first line"));
    }
    match (sourced, file.executable) {
        (true, true) => found.push(file.complaint(1, "is sourced, so it should not be executable")),
        (false, false) => found.push(file.complaint(1, "is not executable")),
        _ => {}
    }
    found
}

fn stray_unsafe(file: &File) -> Vec<String> {
    if !file.is_rust() || file.path.starts_with("crates/sys/") {
        return Vec::new();
    }
    file.lines_where("unsafe code outside of crates/sys", has_unsafe_code)
}

/// Whether a line opens an unsafe block or item; prose about it and the names of lints do not count.
fn has_unsafe_code(line: &str) -> bool {
    let word = concat!("un", "safe");
    let code = line.split("//").next().unwrap_or("");
    code.match_indices(word).any(|(at, _)| {
        let follows = code[at + word.len()..].trim_start();
        let opens =
            ["{", "fn ", "impl", "extern", "trait ", "("].iter().any(|next| follows.starts_with(next));
        // At the end of a longer name it is not the keyword.
        let keyword = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        keyword && (opens || follows.is_empty())
    })
}

/// Crates that the overview does not name in backticks.
fn unnamed_crates<'a>(readme: &str, crates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let named = |name: &str| {
        ["", "wharf-", "crates/"].iter().any(|prefix| readme.contains(&format!("`{prefix}{name}`")))
    };
    let missing = crates.into_iter().filter(|name| !named(name));
    missing.map(|name| format!("crates/README.md:1: does not name the crate `{name}`")).collect()
}

/// Texts of wharfd's log that a script or a test looks for and no crate writes.
fn unsaid(script: &File, code: &str) -> Vec<String> {
    const MARKS: [(&str, &str); 3] =
        [("journal_has '", "'"), (".MESSAGE == \"", "\""), ("has_logged(\"", "\"")];
    let lines = script.text.lines().enumerate();
    let looked_for = lines.flat_map(|(at, line)| {
        let words = |(mark, end)| Some(line.split_once(mark)?.1.split_once(end)?.0);
        MARKS.into_iter().filter_map(words).map(move |words| (at, words))
    });
    let unsaid = looked_for.filter(|(_, words)| !code.contains(words));
    unsaid.map(|(at, words)| script.complaint(at + 1, &format!("no crate logs {words:?}"))).collect()
}

// ---- The repository as it is ----

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text file; a file that is not UTF-8 is not text.
fn files() -> Vec<File> {
    #[expect(clippy::disallowed_methods, reason = "only git knows which files are of the repository")]
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let output = git.output().unwrap_or_else(|error| panic!("{git:?}: {error}"));
    assert!(output.status.success(), "{git:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("names of files are UTF-8");
    let files: Vec<File> = names.split_terminator('\0').filter_map(read).collect();
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "git does not list Cargo.toml");
    files
}

fn read(path: &str) -> Option<File> {
    let full = root().join(path);
    // A file that is deleted but still tracked, or a symbolic link, has no text of its own.
    let metadata = std::fs::symlink_metadata(&full).ok().filter(std::fs::Metadata::is_file)?;
    let text = String::from_utf8(std::fs::read(&full).ok()?).ok()?;
    Some(File { path: path.to_owned(), text, executable: metadata.permissions().mode() & 0o111 != 0 })
}

fn check(rule: fn(&File) -> Vec<String>) {
    let found: Vec<String> = files().iter().flat_map(rule).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn files_are_short() {
    check(too_long);
}

#[test]
fn modules_have_names() {
    check(old_style_module);
}

#[test]
fn nothing_is_left_over() {
    check(leftovers);
}

#[test]
fn names_that_the_kernel_shows_may_be_any_bytes() {
    check(strict_about_names);
}

#[test]
fn files_say_what_they_are() {
    check(headless);
}

#[test]
fn whitespace_is_clean() {
    check(bad_whitespace);
}

#[test]
fn comments_say_a_thing_once() {
    check(torn_comment);
}

#[test]
fn comments_fit_their_columns() {
    check(wide_comment);
}

#[test]
fn errors_of_calls_name_their_arguments() {
    check(nameless_call);
}

#[test]
fn no_path_is_of_one_machine() {
    check(machine_paths);
}

#[test]
fn scripts_can_be_run_and_read() {
    check(bad_script);
}

#[test]
fn unsafe_code_is_in_one_crate() {
    check(stray_unsafe);
}

#[test]
fn what_is_looked_for_in_the_log_is_written_there() {
    let files = files();
    let is_code = |file: &&File| file.is_rust() && file.path.starts_with("crates/");
    let code: String = files.iter().filter(is_code).map(|file| file.text.as_str()).collect();
    for place in ["tests/vm/", "tests/tests/e2e/"] {
        let readers = files.iter().filter(|file| file.path.starts_with(place));
        assert!(
            readers.clone().any(|reader| !unsaid(reader, "").is_empty()),
            "{place}: nothing is looked for"
        );
        let unsaid: Vec<String> = readers.flat_map(|reader| unsaid(reader, &code)).collect();
        assert!(unsaid.is_empty(), "\n{}", unsaid.join("\n"));
    }
}

#[test]
fn the_overview_names_every_crate() {
    let files = files();
    let crates =
        files.iter().filter_map(|file| file.path.strip_prefix("crates/")?.strip_suffix("/Cargo.toml"));
    let readme = files.iter().find(|file| file.path == "crates/README.md");
    let readme = readme.map_or("", |file| file.text.as_str());
    let missing = unnamed_crates(readme, crates);
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}

#[test]
fn exceptions_are_still_needed() {
    let files = files();
    for path in MACHINE_PATHS_FINE_IN {
        let file = files.iter().find(|file| file.path == *path).unwrap_or_else(|| panic!("{path} is gone"));
        assert!(MACHINE_PATHS.iter().any(|needle| file.text.contains(needle)), "{path} needs no exception");
    }
}

// ---- Each rule can fail ----

fn file(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned(), executable: false }
}

#[test]
fn a_long_file_is_found() {
    let text = "//! x\n".repeat(LINES_LIMIT + 1);
    assert_eq!(too_long(&file("a.rs", &text)).len(), 1);
    assert!(too_long(&file("a.rs", &text[6..])).is_empty());
    assert!(too_long(&file("crates/wire/src/generated.rs", &text)).is_empty());
}

#[test]
fn an_old_style_module_is_found() {
    assert_eq!(old_style_module(&file("crates/a/src/b/mod.rs", "")).len(), 1);
    assert!(old_style_module(&file("crates/a/src/amod.rs", "")).is_empty());
}

#[test]
fn leftovers_are_found_by_line() {
    for mark in LEFTOVERS {
        let found = leftovers(&file("a.sh", &format!("# fine\n# {mark}: later\n")));
        assert_eq!(found, [format!("a.sh:2: unfinished: {mark}")]);
    }
    for code in FORBIDDEN_CODE {
        assert_eq!(leftovers(&file("a.rs", &format!("\n\n{code}"))), [format!("a.rs:3: has `{code}`")]);
    }
    let template = format!("mktemp /tmp/{}", "X".repeat(6));
    assert!(leftovers(&file("a.sh", &template)).is_empty());
}

#[test]
fn a_strict_reader_of_the_kernels_names_is_found() {
    let code = "let text = std::fs::read_to_string(\"/proc/self/mountinfo\");";
    assert_eq!(strict_about_names(&file("crates/x/src/a.rs", code)).len(), 1);
    assert!(strict_about_names(&file("crates/cli/src/a.rs", code)).is_empty());
    assert_eq!(strict_about_names(&file("crates/cli/src/doctor/a.rs", code)).len(), 1);
    let in_tests = format!("#[cfg(test)]\nmod tests {{\n    {code}\n}}\n");
    assert!(strict_about_names(&file("crates/x/src/a.rs", &in_tests)).is_empty());
}

#[test]
fn a_file_without_a_head_is_found() {
    assert_eq!(headless(&file("a.rs", "use std::fs;\n//! late\n")).len(), 1);
    assert!(headless(&file("a.rs", "//! What it is.\n")).is_empty());
}

#[test]
fn bad_whitespace_is_found() {
    assert_eq!(bad_whitespace(&file("a.toml", "a = 1\n\tb = 2\n")), ["a.toml:2: tab"]);
    assert_eq!(bad_whitespace(&file("a.md", "a \nb\n")), ["a.md:1: trailing whitespace"]);
    assert!(bad_whitespace(&file("a.c", "\tx \n")).is_empty());
}

#[test]
fn a_torn_comment_is_found() {
    let found = |text: &str| torn_comment(&file("a.rs", text)).len();
    assert_eq!(found("/// Nobody may enter before the\n/// program runs.\n/// program runs.\n"), 1);
    assert_eq!(found("// If it is gone, the rest is\n// dropped.\n// the rest is dropped.\n"), 1);
    assert_eq!(found("//! only later is filled in: who it is.\n//! later is filled in: who they are.\n"), 1);
    assert_eq!(found("/// Its id.\na: Id,\n/// Its id.\nb: Id,\n"), 0);
    assert_eq!(found("/// The first of the pod.\n///\n/// The second of the pod.\n"), 0);
}

#[test]
fn a_wide_comment_is_found() {
    let wide = format!("    /// {}", "é".repeat(COMMENT_COLUMNS - 7));
    assert_eq!(wide_comment(&file("a.rs", &format!("\n{wide}"))).len(), 1);
    assert!(wide_comment(&file("a.rs", &wide[..wide.len() - 'é'.len_utf8()])).is_empty());
    assert!(wide_comment(&file("a.rs", &format!("let text = \"{wide}\";"))).is_empty());
}

#[test]
fn a_call_without_its_arguments_is_found() {
    let empty = concat!("String", "::new");
    for code in [
        format!("fstat(fd).named(\"fstat\", {empty})?;"),
        format!("dup(fd).named(\"dup\", || {empty}())?;"),
        concat!("Err(Error::new(\"open\", \"", "\", errno))").to_owned(),
    ] {
        assert_eq!(nameless_call(&file("a.rs", &code)).len(), 1, "{code}");
    }
    for code in ["fstat(fd).named(\"fstat\", || path.to_string())?;", "name.map_or_else(String::new, show)"] {
        assert!(nameless_call(&file("a.rs", code)).is_empty(), "{code}");
    }
}

#[test]
fn a_path_of_one_machine_is_found() {
    for path in MACHINE_PATHS {
        assert_eq!(machine_paths(&file("a.service", &format!("\nExecStart={path}x"))).len(), 1);
    }
    assert!(machine_paths(&file("a.service", "ExecStart=/usr/bin/wharfd")).is_empty());
}

#[test]
fn bad_scripts_are_found() {
    let script = |text: &str, executable| bad_script(&File { executable, ..file("hack/run", text) }).len();
    assert_eq!(script("#!/bin/sh\n# Runs it.\n", true), 0);
    assert_eq!(script("#!/bin/sh\n# Runs it.\n", false), 1);
    assert_eq!(script("#!/bin/sh\nset -e\n", true), 1);
    assert_eq!(script("set -e\n", false), 3);
    assert_eq!(script("# Sourced by run.\n", false), 0);
    assert_eq!(script("# Sourced by run.\n", true), 1);
}

#[test]
fn stray_unsafe_is_found() {
    let word = concat!("un", "safe");
    for code in [format!("{word} {{ f() }}"), format!("pub {word} fn f()"), format!("#[{word}(no_mangle)]")] {
        assert_eq!(stray_unsafe(&file("crates/a/src/lib.rs", &code)).len(), 1, "{code}");
        assert!(stray_unsafe(&file("crates/sys/src/lib.rs", &code)).is_empty(), "{code}");
    }
    let names = [format!("#![deny({word}_code)]"), format!("fn stray_{word}() {{")];
    for prose in [format!("// {word} {{"), format!("\"{word} path\"")].into_iter().chain(names) {
        assert!(stray_unsafe(&file("crates/a/src/lib.rs", &prose)).is_empty(), "{prose}");
    }
}

#[test]
fn a_text_that_nobody_writes_is_found() {
    let text = "attempt 5 journal_has 'wharfd is ready'\nany(.MESSAGE == \"wharfd ends\")\n";
    let found = unsaid(&file("tests/vm/a.sh", text), "info!(\"wharfd is ready\")");
    assert_eq!(found, ["tests/vm/a.sh:2: no crate logs \"wharfd ends\""]);
    let test = file("tests/tests/e2e/a.rs", "assert!(!daemon.has_logged(\"it was late\"));\n");
    assert_eq!(unsaid(&test, "warn!(\"it is late\")").len(), 1);
}

#[test]
fn an_unnamed_crate_is_found() {
    let readme = "`sys` is for system calls, `crates/state` for state, and wire is not named.";
    assert_eq!(
        unnamed_crates(readme, ["sys", "state", "wire"]),
        ["crates/README.md:1: does not name the crate `wire`"]
    );
}
