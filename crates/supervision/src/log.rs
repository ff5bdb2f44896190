//! The last lines of a supervisor's log: what failed without a reply to a request. The supervisor itself keeps it
//! short.

use std::path::Path;

use wharf_state::Layout;
use wharf_types::{Stage as _, StageError};

/// More than a supervisor writes in its life.
const LIMIT_BYTES: usize = 128 * 1024;
/// How many lines are shown.
const LINES: usize = 20;

/// The last lines of the log of the supervisor in a pod's directory; usually there are none. Blocking.
///
/// # Errors
/// The log cannot be read, or is longer than any supervisor makes it.
pub fn last_lines(directory: &Path) -> Result<Vec<String>, StageError> {
    read(&Layout::supervisor_log(directory)).stage("reading the log of the pod's supervisor")
}

fn read(path: &Path) -> wharf_sys::Result<Vec<String>> {
    let file = match wharf_sys::fs::open(path, nix::fcntl::OFlag::O_RDONLY) {
        // A pod that was stopped long ago may have none.
        Err(error) if error.errno == nix::errno::Errno::ENOENT => return Ok(Vec::new()),
        opened => opened?,
    };
    let bytes = wharf_sys::fs::read_bounded(&file, LIMIT_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LINES)..].iter().map(ToString::to_string).collect())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may wait")]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown_and_a_giant_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(read(&path).unwrap(), Vec::<String>::new());
        let text: String = (0..30).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let lines = read(&path).unwrap();
        assert_eq!((lines.len(), &*lines[0], &*lines[19]), (20, "line 10", "line 29"));
        std::fs::write(&path, vec![b'x'; LIMIT_BYTES + 1]).unwrap();
        assert!(read(&path).is_err());
    }
}
