//! The supervisor's own log: lines in the pod's `shim.log`, which is standard error.
//!
//! Whatever fails without a reply to a request is noted here; nothing is dropped silently. `wharf inspect` and `wharf
//! doctor` show the file. It has a limit, because it is on a small file system that all pods share. The limit is one of
//! the file, not of a process: log writers, which are forked, have the same standard error.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::clock;

/// The length of the file from which on no line is added.
const LIMIT_BYTES: u64 = 64 * 1024;
/// The longest text of a line.
const TEXT_LIMIT_BYTES: usize = 1024;

/// How many lines could not be written because the disk was full.
static MISSING: AtomicUsize = AtomicUsize::new(0);

/// Notes a failure.
pub(crate) fn warn(what: impl Display) {
    let missing = MISSING.swap(0, Ordering::Relaxed);
    let what =
        if missing == 0 { what.to_string() } else { format!("{what} ({missing} lines are missing here)") };
    let Some(line) = line(written_bytes(), &what) else { return };
    if std::io::stderr().write_all(&line).is_err() {
        // The next line says so.
        MISSING.fetch_add(missing + 1, Ordering::Relaxed);
    }
}

/// How long the file is. What is not a file, such as a terminal, has no limit.
fn written_bytes() -> u64 {
    let status = nix::sys::stat::fstat(std::io::stderr());
    status.ok().and_then(|status| u64::try_from(status.st_size).ok()).unwrap_or(0)
}

/// The line to write, if there is still room for it; the last one says so.
fn line(written_bytes: u64, what: &str) -> Option<Vec<u8>> {
    if written_bytes >= LIMIT_BYTES {
        return None;
    }
    let mut line = clock::stamp(wharf_sys::clock::now_ns()).to_vec();
    line.push(b' ');
    line.extend(what.bytes().map(|byte| if byte == b'\n' { b' ' } else { byte }).take(TEXT_LIMIT_BYTES));
    line.push(b'\n');
    if written_bytes + line.len() as u64 >= LIMIT_BYTES {
        line.extend(b"no more is noted here\n");
    }
    Some(line)
}

/// For operations that may fail without stopping anything.
pub(crate) trait OrWarn {
    /// Notes a failure, with the operation that failed.
    fn or_warn(self, doing: impl Display);
}

impl<E: std::error::Error> OrWarn for Result<(), E> {
    fn or_warn(self, doing: impl Display) {
        if let Err(error) = self {
            warn(format_args!("{doing}: {}", wharf_types::chain(&error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_line_of_bounded_length() {
        let first = String::from_utf8(line(0, "one\ntwo").unwrap()).unwrap();
        assert!(first.ends_with("Z one two\n"), "{first}");
        assert!(line(0, &"x".repeat(70_000)).unwrap().len() < TEXT_LIMIT_BYTES + 50);
    }

    #[test]
    fn a_full_file_gets_no_more_lines_and_its_last_one_says_so() {
        for text in ["", "short", &"long".repeat(1000)] {
            let mut file = Vec::new();
            while let Some(line) = line(file.len() as u64, text) {
                file.extend(line);
            }
            let file = String::from_utf8(file).unwrap();
            let last = "no more is noted here\n";
            assert!(file.len() < 66 * 1024 && file.ends_with(last) && file.matches(last).count() == 1);
        }
    }
}
