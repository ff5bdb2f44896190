//! What a supervisor could tell to nobody: the last lines of its log, which it keeps short by itself.

use std::path::Path;

use wharf_state::Layout;

use crate::engine::Engine;
use crate::error::{Error, Stage, blocking};
use crate::pod::Pod;

/// More than a supervisor writes in its life.
const LIMIT_BYTES: usize = 128 * 1024;
/// How many lines are shown.
const LINES: usize = 20;

impl Engine {
    /// The last lines of the log of a pod's supervisor; mostly there are none.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn supervisor_log(&self, pod: &Pod) -> Result<Vec<String>, Error> {
        let path = Layout::supervisor_log(&self.parts.layout.pod(pod.id()));
        blocking(move || last_lines(&path).stage("reading the log of the pod's supervisor")).await
    }
}

fn last_lines(path: &Path) -> wharf_sys::Result<Vec<String>> {
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
        assert_eq!(last_lines(&path).unwrap(), Vec::<String>::new());
        let text: String = (0..30).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let lines = last_lines(&path).unwrap();
        assert_eq!((lines.len(), &*lines[0], &*lines[19]), (20, "line 10", "line 29"));
        std::fs::write(&path, vec![b'x'; LIMIT_BYTES + 1]).unwrap();
        assert!(last_lines(&path).is_err());
    }
}
