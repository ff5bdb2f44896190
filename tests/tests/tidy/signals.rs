//! Signals have names: `wharf_types::signal` has those that the code knows by itself.

use super::{File, check, file};

/// What stands before the number of a signal, or before the arguments of which it is the last.
const BEFORE: [&str; 4] = ["signal(", "Signal(", "Signal::First(", "Signal { number: "];

/// Whether a line has the number of a signal as digits. 0 is none: it only asks whether a process exists.
fn has_a_number(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    let after = BEFORE.into_iter().flat_map(|before| code.split(before).skip(1));
    after.map(last_of_call).any(|last| last != "0" && last.parse::<u32>().is_ok())
}

/// The last argument of a call, or the first field of a structure, from what follows its opening bracket.
fn last_of_call(rest: &str) -> &str {
    let (mut depth, mut begin) = (0_usize, 0);
    for (at, sign) in rest.char_indices() {
        match sign {
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            ')' | '}' => return rest[begin..at].trim(),
            ',' if depth == 0 && rest.contains('}') => return rest[..at].trim(),
            ',' if depth == 0 => begin = at + 1,
            _ => {}
        }
    }
    rest[begin..].trim()
}

fn numbered_signal(file: &File) -> Vec<String> {
    if !file.is_rust() || file.is_generated() {
        return Vec::new();
    }
    file.lines_where("a signal by its number: take its name from `wharf_types::signal`", has_a_number)
}

#[test]
fn signals_have_their_names() {
    check(numbered_signal);
}

#[test]
fn a_number_of_a_signal_is_found() {
    let found = |code: &str| numbered_signal(&file("crates/a/src/a.rs", code)).len();
    // Put together here, so that this file has none.
    for (before, after) in [
        ("process::signal(child.as_fd(), ", ")?;"),
        ("    rig.signal(", ").unwrap();"),
        ("Some(Ended::Signal(", "))"),
        ("Signal::First(", ")"),
        ("Exit::Signal { number: ", ", oom: true }"),
        ("Exit::Signal { number: ", " }"),
    ] {
        assert_eq!(found(&format!("{before}{}{after}", 9)), 1, "{before}");
        assert_eq!(found(&format!("{before}SIGKILL{after}")), 0, "{before}");
        assert_eq!(found(&format!("{before}0{after}")), 0, "{before}");
    }
    assert_eq!(found("// Not signal(fd, 9)"), 0);
    assert_eq!(found("signal(number(9), name)"), 0);
}
