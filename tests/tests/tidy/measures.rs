//! Figures that the code keeps: how much a function may hold, how much code `pods` may have, and how much of the core
//! is tests.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

use super::{File, files};

/// The most words and signs in a function of [`DENSE`] crates: beyond that nobody reads it at a glance.
const FUNCTION_TOKENS_LIMIT: usize = 300;

/// The crates whose functions are held to that.
const DENSE: &[&str] = &["pods", "supervisor"];

/// The most lines of code that the largest crate of the core may have; another idea gets another crate.
const CRATE_LINES_LIMITS: &[(&str, usize)] = &[("pods", 3200)];

/// The crates of which at least a quarter is tests within the crate.
const TESTED: &[&str] = &["pods", "isolation", "supervisor", "cri"];

/// The sources of a crate, split into code and tests.
struct Sources<'a> {
    code: Vec<(&'a File, String)>,
    code_lines: usize,
    test_lines: usize,
}

impl<'a> Sources<'a> {
    fn of(name: &str, files: &'a [File]) -> Self {
        let (roots, tests) =
            ([format!("crates/{name}/src/"), format!("crates/{name}/tests/")], test_modules(files));
        let mut sources = Self { code: Vec::new(), code_lines: 0, test_lines: 0 };
        // Examples are neither.
        let own = files.iter().filter(|file| roots.iter().any(|root| file.path.starts_with(root)));
        for file in own.filter(|file| file.is_rust() && !file.is_generated()) {
            let whole = lines(&file.text);
            if file.path.contains("/tests/") || is_below(&file.path, &tests) {
                sources.test_lines += whole;
                continue;
            }
            let code = without_tests(&file.text);
            sources.code_lines += lines(&code);
            sources.test_lines += whole - lines(&code);
            sources.code.push((file, code));
        }
        sources
    }
}

/// The lines that are neither empty nor only a comment.
fn lines(text: &str) -> usize {
    text.lines().filter(|line| !is_bare(line)).count()
}

fn is_bare(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with("//")
}

/// The modules that exist only for tests and have files of their own, as paths without `.rs`.
pub(super) fn test_modules(files: &[File]) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let path = file.path.trim_end_matches(".rs");
        let directory = ["lib", "main"].iter().find_map(|root| path.strip_suffix(&format!("/{root}")));
        let declared = file.text.split("#[cfg(test)]\n").skip(1).filter_map(|text| {
            let name = text.lines().next()?.trim().strip_suffix(';')?.rsplit_once("mod ")?.1;
            Some(format!("{}/{name}", directory.unwrap_or(path)))
        });
        modules.extend(declared);
    }
    modules
}

pub(super) fn is_below(path: &str, modules: &BTreeSet<String>) -> bool {
    let path = path.trim_end_matches(".rs");
    path.match_indices('/').any(|(end, _)| modules.contains(&path[..end])) || modules.contains(path)
}

/// The text with an empty line for each line of a test. As rustfmt writes it, an item ends with the first line that is
/// indented like its beginning and closes it.
pub(super) fn without_tests(text: &str) -> String {
    let mut ends_at = None;
    let code = text.split('\n').map(|line| {
        let indent = line.len() - line.trim_start().len();
        match ends_at {
            Some(of) => {
                let ends = indent == of && !line.is_empty() && line.ends_with(['}', ';']);
                ends_at = ends_at.filter(|_| !ends);
                ""
            }
            None if line.trim() == "#[cfg(test)]" => {
                ends_at = Some(indent);
                ""
            }
            None => line,
        }
    });
    code.collect::<Vec<_>>().join("\n")
}

/// The functions in Rust code, each with the number of its tokens. Comments are none.
fn functions(code: &str) -> Vec<(String, usize)> {
    // A comment of documentation would count as an attribute.
    let code: Vec<&str> = code.lines().filter(|line| !is_bare(line)).collect();
    let tokens = code.join("\n").parse().unwrap_or_else(|error| panic!("not Rust: {error}"));
    let mut found = Vec::new();
    find_functions(tokens, &mut found);
    found
}

fn find_functions(tokens: TokenStream, found: &mut Vec<(String, usize)>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    for tree in &trees {
        if let TokenTree::Group(group) = tree {
            find_functions(group.stream(), found);
        }
    }
    for (at, pair) in trees.windows(2).enumerate() {
        let [TokenTree::Ident(word), TokenTree::Ident(name)] = pair else { continue };
        let is_body =
            |tree: &TokenTree| matches!(tree, TokenTree::Group(it) if it.delimiter() == Delimiter::Brace);
        let is_end = |tree: &TokenTree| is_body(tree) || is_sign(tree, ';');
        let end = trees[at..].iter().position(is_end).filter(|_| *word == "fn");
        if let Some(end) = end.map(|end| at + end).filter(|end| is_body(&trees[*end])) {
            found.push((name.to_string(), size(&trees[at..=end])));
        }
    }
}

fn is_sign(tree: &TokenTree, sign: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == sign)
}

/// How many words and signs these are; a sign of several characters counts once, and a lifetime, too.
fn size(trees: &[TokenTree]) -> usize {
    const SIGNS: [&str; 15] =
        ["::", "->", "=>", "==", "!=", "<=", ">=", "&&", "||", "..", ".=", "+=", "-=", "*=", "|="];
    let one = |(at, tree): (usize, &TokenTree)| match tree {
        TokenTree::Group(group) => 2 + size(&group.stream().into_iter().collect::<Vec<_>>()),
        TokenTree::Punct(sign) if sign.as_char() == '\'' => 0,
        TokenTree::Punct(sign) => {
            let goes_on = |next: &str| sign.spacing() == Spacing::Joint && is_next(&trees[at + 1..], next);
            let mut rests = SIGNS.iter().filter_map(|long| long.strip_prefix(sign.as_char()));
            usize::from(!rests.any(goes_on))
        }
        TokenTree::Ident(_) | TokenTree::Literal(_) => 1,
    };
    trees.iter().enumerate().map(one).sum()
}

fn is_next(trees: &[TokenTree], sign: &str) -> bool {
    trees.first().zip(sign.chars().next()).is_some_and(|(tree, sign)| is_sign(tree, sign))
}

// ---- The rules ----

fn dense_functions(file: &File, code: &str) -> Vec<String> {
    let dense = functions(code).into_iter().filter(|(_, tokens)| *tokens > FUNCTION_TOKENS_LIMIT);
    dense
        .map(|(name, tokens)| {
            let at = file.text.lines().position(|line| line.contains(&format!("fn {name}"))).unwrap_or(0);
            file.complaint(
                at + 1,
                &format!("{name} has {tokens} tokens, {FUNCTION_TOKENS_LIMIT} are the end"),
            )
        })
        .collect()
}

fn too_much_code(name: &str, sources: &Sources<'_>, limit: usize) -> Option<String> {
    let lines = sources.code_lines;
    (lines > limit).then(|| format!("crates/{name}: {lines} lines of code, {limit} are the end"))
}

fn too_few_tests(name: &str, sources: &Sources<'_>) -> Option<String> {
    let (code, tests) = (sources.code_lines, sources.test_lines);
    (tests * 3 < code).then(|| format!("crates/{name}: {tests} lines of tests for {code} of code"))
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn functions_of_the_core_are_read_at_a_glance() {
    let files = files();
    let sources: Vec<_> = DENSE.iter().map(|name| Sources::of(name, &files)).collect();
    let code = sources.iter().flat_map(|sources| &sources.code);
    assert_none(&code.flat_map(|(file, code)| dense_functions(file, code)).collect::<Vec<_>>());
}

#[test]
fn the_largest_crate_does_not_grow() {
    let files = files();
    let large = |(name, limit): &(&str, usize)| too_much_code(name, &Sources::of(name, &files), *limit);
    assert_none(&CRATE_LINES_LIMITS.iter().filter_map(large).collect::<Vec<_>>());
}

#[test]
fn a_quarter_of_the_core_is_tests() {
    let files = files();
    let untested = TESTED.iter().filter_map(|name| too_few_tests(name, &Sources::of(name, &files)));
    assert_none(&untested.collect::<Vec<_>>());
}

// ---- Each rule can fail ----

const CODE: &str = "\
//! A crate.

#[cfg(test)]
mod simulation;

/// Adds.
pub fn add<'a>(one: &'a u8) -> u8 {
    // It is one more.
    one + 1
}

#[cfg(test)]
impl Sum {
    fn of() {}
}

fn last() {}

#[cfg(test)]
mod tests {
    #[test]
    fn one_and_one() {}
}
";

fn crate_of(files: &[(&str, &str)]) -> Vec<File> {
    let file = |(path, text): &(&str, &str)| super::file(&format!("crates/a/{path}"), text);
    files.iter().map(file).collect()
}

#[test]
fn code_and_tests_are_told_apart() {
    let files = crate_of(&[
        ("src/lib.rs", CODE),
        ("src/simulation.rs", "fn run() {}\n"),
        ("src/simulation/world.rs", "fn world() {}\n\n// Nothing.\n"),
        ("src/generated.rs", "fn generated() {}\n"),
        ("tests/whole.rs", "fn whole() {}\n"),
        ("examples/shown.rs", "fn shown() {}\n"),
    ]);
    let sources = Sources::of("a", &files);
    let code: Vec<&str> = sources.code[0].1.lines().filter(|line| !is_bare(line)).collect();
    assert_eq!(code, ["pub fn add<'a>(one: &'a u8) -> u8 {", "    one + 1", "}", "fn last() {}"]);
    assert_eq!((sources.code.len(), sources.code_lines, sources.test_lines), (1, 4, 2 + 4 + 5 + 3));
    assert_eq!(sources.code[0].1.lines().count(), CODE.lines().count(), "lines keep their numbers");
}

#[test]
fn a_dense_function_is_found() {
    assert_eq!(functions(&without_tests(CODE)), [("add".to_owned(), 19), ("last".to_owned(), 6)]);
    let body = |statements: usize| {
        format!("//! x\nimpl A {{\n    fn f(&self) {{\n{}    }}\n}}\n", "a();\n".repeat(statements))
    };
    let (short, long) = (body(73), body(74));
    assert!(dense_functions(&super::file("a.rs", &short), &short).is_empty());
    let found = dense_functions(&super::file("a.rs", &long), &long);
    assert_eq!(found, ["a.rs:3: f has 304 tokens, 300 are the end"]);
}

#[test]
fn a_crate_that_grew_or_is_not_tested_is_found() {
    let files = crate_of(&[("src/lib.rs", "fn a() {}\nfn b() {}\nfn c() {}\n#[cfg(test)]\nfn d() {}\n")]);
    let sources = Sources::of("a", &files);
    assert_eq!((too_much_code("a", &sources, 3), too_few_tests("a", &sources)), (None, None));
    assert_eq!(too_much_code("a", &sources, 2).unwrap(), "crates/a: 3 lines of code, 2 are the end");
    let untested = crate_of(&[("src/lib.rs", "fn a() {}\n")]);
    let complaint = too_few_tests("a", &Sources::of("a", &untested)).unwrap();
    assert_eq!(complaint, "crates/a: 0 lines of tests for 1 of code");
}
