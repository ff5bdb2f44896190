//! Failures that can be told to nobody else: lines in the pod's `shim.log`, which is standard error.
//!
//! The file has a limit, because it is on a small file system that all pods share. Whatever fails without a reply to a
//! request is noted here; nothing is dropped silently.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::clock;

/// How much a supervisor may write in its life.
const LIMIT_BYTES: usize = 64 * 1024;
/// The longest line.
const LINE_BYTES: usize = 1024;

static WRITTEN_BYTES: AtomicUsize = AtomicUsize::new(0);
/// How many lines could not be written because the disk was full.
static UNTOLD: AtomicUsize = AtomicUsize::new(0);

/// Notes a failure.
pub(crate) fn tell(what: impl Display) {
    let untold = UNTOLD.swap(0, Ordering::Relaxed);
    let what =
        if untold == 0 { what.to_string() } else { format!("{what} ({untold} lines are missing here)") };
    let Some(line) = line(&WRITTEN_BYTES, &what) else { return };
    if std::io::stderr().write_all(&line).is_err() {
        // The next line says so.
        UNTOLD.fetch_add(untold + 1, Ordering::Relaxed);
    }
}

/// The line to write, if there is still room for it.
fn line(written_bytes: &AtomicUsize, what: &str) -> Option<Vec<u8>> {
    let mut line = clock::stamp(wharf_sys::clock::now_ns()).to_vec();
    line.push(b' ');
    line.extend(what.bytes().map(|byte| if byte == b'\n' { b' ' } else { byte }).take(LINE_BYTES));
    line.push(b'\n');
    let before = written_bytes.fetch_add(line.len(), Ordering::Relaxed);
    match before + line.len() {
        0..=LIMIT_BYTES => Some(line),
        _ if before <= LIMIT_BYTES => Some(b"no more is noted here\n".to_vec()),
        _ => None,
    }
}

/// For operations that may fail without stopping anything.
pub(crate) trait OrTell {
    /// Notes a failure, with the operation that failed.
    fn or_tell(self, doing: impl Display);
}

impl<E: std::error::Error> OrTell for Result<(), E> {
    fn or_tell(self, doing: impl Display) {
        if let Err(error) = self {
            tell(format_args!("{doing}: {}", wharf_types::chain(&error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_all_of_them_are_bounded() {
        let written = AtomicUsize::new(0);
        let first = String::from_utf8(line(&written, "one\ntwo").unwrap()).unwrap();
        assert!(first.ends_with("Z one two\n"), "{first}");
        let lines: Vec<_> = (0..1000).map_while(|_| line(&written, &"x".repeat(5000))).collect();
        assert!(lines.iter().map(Vec::len).sum::<usize>() <= LIMIT_BYTES);
        assert_eq!(lines.last().unwrap(), b"no more is noted here\n");
        assert!(line(&written, "").is_none());
    }
}
