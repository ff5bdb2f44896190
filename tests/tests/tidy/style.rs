//! `crates/STYLE.md` is true of the code: what it names exists, and its figures are those at which a gate closes.

use super::{File, LINES_LIMIT, file, files, has_word};

/// The numbers that the text writes as words.
const WORDS: [&str; 11] =
    ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/// What is in backticks and is to be written. What is not to be written stands in the first column of the table, or
/// after "no"; a form of a text has spaces in it, and is no name.
fn names(style: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for line in style.lines() {
        let text = line.strip_prefix("| ").and_then(|row| row.split_once(" | ")).map_or(line, |row| row.1);
        let pieces: Vec<&str> = text.split('`').collect();
        let quoted = pieces.windows(2).step_by(2).filter(|piece| !piece[0].ends_with("no "));
        names.extend(quoted.map(|piece| piece[1]).filter(|name| name.contains('(') || !name.contains(' ')));
    }
    names
}

/// Whether there is a file, a crate, an item or a module of a crate, a call in these words, or a word of code or of a
/// configuration with the name.
fn exists(name: &str, files: &[File]) -> bool {
    let is_code = |file: &&File| file.path.starts_with("crates/") && file.is_rust();
    let mut code = files.iter().filter(is_code);
    if name.contains('(') || name.ends_with(':') {
        return code.any(|file| file.text.contains(name));
    }
    if let Some((owner, item)) = name.split_once("::") {
        let kinds = ["struct", "enum", "trait", "fn", "mod"];
        let defined = |file: &File| kinds.iter().any(|kind| has_word(&file.text, &format!("{kind} {item}")));
        return code.any(|file| file.path.starts_with(&format!("crates/{owner}/src/")) && defined(file));
    }
    let roots = [format!("crates/{name}/"), format!("{name}/")];
    if files.iter().any(|file| roots.iter().any(|root| file.path.starts_with(root))) {
        return true;
    }
    let is_set = files.iter().any(|file| file.kind() == "toml" && has_word(&file.text, name));
    let is_written = |line: &str| !line.trim_start().starts_with("//") && has_word(line, name);
    is_set || code.any(|file| file.text.lines().any(is_written))
}

/// What the text must say, so that its figures are those of the gates: `tidy`'s, and those of `clippy.toml`.
fn untrue_figures(style: &str, clippy: &str) -> Vec<String> {
    let words = style.split_whitespace().collect::<Vec<_>>().join(" ");
    let setting = |name: &str| {
        let value = clippy.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        value.and_then(|value| value.parse::<usize>().ok()).unwrap_or(usize::MAX)
    };
    let word = |number: usize| WORDS.get(number).copied().unwrap_or("more than ten");
    let said = [
        format!("{LINES_LIMIT} is an error (`tests/tests/tidy`)"),
        format!("{} lines are an error (clippy)", setting("too-many-lines-threshold")),
        format!("at most {} parameters", word(setting("too-many-arguments-threshold"))),
        format!("{} bool parameters", word(setting("max-fn-params-bools"))),
    ];
    let unsaid = said.into_iter().filter(|said| !words.to_lowercase().contains(said));
    unsaid.map(|said| format!("crates/STYLE.md:1: does not say {said:?}")).collect()
}

fn text<'a>(files: &'a [File], path: &str) -> &'a str {
    files.iter().find(|file| file.path == path).map_or("", |file| &file.text)
}

#[test]
fn what_the_style_names_exists() {
    let files = files();
    let names = names(text(&files, "crates/STYLE.md"));
    assert!(names.len() > 20, "the text names too little: {names:?}");
    let gone: Vec<&str> = names.into_iter().filter(|name| !exists(name, &files)).collect();
    assert!(gone.is_empty(), "crates/STYLE.md names what does not exist: {gone:?}");
}

#[test]
fn the_figures_of_the_style_are_those_of_the_gates() {
    let files = files();
    let untrue = untrue_figures(text(&files, "crates/STYLE.md"), text(&files, "clippy.toml"));
    assert!(untrue.is_empty(), "\n{}", untrue.join("\n"));
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let style = "A `limit_bytes`, no `get_`, `a form of words`.\n\
        | instead of | write |\n| `drop(x\\|y)` | `.stage(\"making it\")`, and `open_below` |\n";
    let names = names(style);
    assert_eq!(names, ["limit_bytes", ".stage(\"making it\")", "open_below"]);
    let code = file("crates/a/src/b.rs", "// no open_below\nf(limit_bytes).stage(\"making it\")?;\n");
    let other = file("crates/types/src/c.rs", "pub trait Failure {}\n");
    let files = [code, other, file("Cargo.toml", "anyhow = \"1\"\n"), file("tests/a/b.rs", "")];
    let gone: Vec<&str> = names.into_iter().filter(|name| !exists(name, &files)).collect();
    assert_eq!(gone, ["open_below"], "a comment is no code");
    for (name, is_there) in [
        ("types::Failure", true),
        ("a::Failure", false),
        (".stage(\"making\")", false),
        ("a::f(limit_bytes)", false),
        ("anyhow", true),
        ("tests/a", true),
        ("tests/b", false),
        ("types", true),
        ("limit", false),
    ] {
        assert_eq!(exists(name, &files), is_there, "{name}");
    }
}

#[test]
fn a_figure_that_is_untrue_is_found() {
    let clippy = "too-many-lines-threshold = 70\ntoo-many-arguments-threshold = 5\nmax-fn-params-bools = 0\n";
    let true_style = format!(
        "{LINES_LIMIT} is an error (`tests/tests/tidy`); 70 lines are\nan error (clippy). No bool parameters, at most \
         five parameters."
    );
    assert!(untrue_figures(&true_style, clippy).is_empty());
    for (from, to) in [("70", "80"), ("five", "six"), ("No bool", "Two bool"), ("is an error", "is much")] {
        assert_eq!(untrue_figures(&true_style.replacen(from, to, 1), clippy).len(), 1, "{to}");
    }
    assert_eq!(untrue_figures(&true_style, &clippy.replace("= 5", "= 6")).len(), 1);
}
