//! The last lines of a supervisor's log: what failed without a reply to a request. The supervisor itself keeps it
//! short.

use std::io::ErrorKind;
use std::path::Path;

use wharf_state::Layout;
use wharf_sys::fs::read_regular;
use wharf_types::{Stage as _, StageError};

/// More than a supervisor writes in its life.
const LIMIT_BYTES: usize = 128 * 1024;
/// How many lines are shown.
const LINES: usize = 20;

/// The last lines of the log of the supervisor in a pod's directory; usually there are none. Blocking.
///
/// # Errors
/// The log cannot be read, is no regular file, or is longer than any supervisor makes it.
pub fn last_lines(directory: &Path) -> Result<Vec<String>, StageError> {
    read(&Layout::supervisor_log(directory)).stage("reading the log of the pod's supervisor")
}

fn read(path: &Path) -> std::io::Result<Vec<String>> {
    let bytes = match read_regular(path, LIMIT_BYTES) {
        // A pod that was stopped long ago may have none.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
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

    #[test]
    fn a_fifo_in_place_of_the_log_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("log");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(read(&fifo).unwrap_err().to_string()));
        let error = told.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
