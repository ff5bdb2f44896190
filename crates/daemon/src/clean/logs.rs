//! What is left of the logs of `wharf run`: directories without a log go, and logs stay.

use std::path::Path;

use wharf_types::POD_LOGS;

use super::{remove_empty, tell};
use crate::slow::{responds, work_in};

/// Removes what is left of logs, and says that logs stay, if there are any. A disk that does not respond, which alone
/// knows whether there are, is not waited for: this process could not be ended meanwhile.
pub(super) fn clean() -> anyhow::Result<()> {
    let logs = Path::new(POD_LOGS);
    if !responds(logs) {
        return tell(&format!("logs in {POD_LOGS}, if there are any, stay: their disk does not respond\n"));
    }
    work_in(logs, || {
        remove_unused(logs)?;
        if logs.exists() { tell(&format!("the logs in {POD_LOGS} stay\n")) } else { Ok(()) }
    })
}

/// Whether there are directories that are left of logs. Their disk may be another one, and may not respond.
pub(super) fn are_any_unused() -> bool {
    let logs = Path::new(POD_LOGS);
    responds(logs) && work_in(logs, || has_unused(logs))
}

fn has_unused(logs: &Path) -> bool {
    let is_empty = |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let mut pods = std::fs::read_dir(logs).into_iter().flatten().flatten();
    is_empty(logs) || pods.any(|pod| is_empty(&pod.path()))
}

/// Removes the directories that are left of logs. Logs themselves stay: whose pods these were may need them.
fn remove_unused(logs: &Path) -> anyhow::Result<()> {
    for pod in std::fs::read_dir(logs).into_iter().flatten().flatten() {
        remove_empty(&pod.path())?;
    }
    remove_empty(logs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_logs_only_what_is_empty_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        std::fs::create_dir_all(logs.join("empty")).unwrap();
        std::fs::create_dir(logs.join("web-1")).unwrap();
        std::fs::write(logs.join("web-1/web.log"), "").unwrap();
        assert!(has_unused(&logs));
        remove_unused(&logs).unwrap();
        assert!(!logs.join("empty").exists() && logs.join("web-1/web.log").exists());
        assert!(!has_unused(&logs), "a log that stays is nothing to remove");
        std::fs::remove_file(logs.join("web-1/web.log")).unwrap();
        for has_more in [true, false] {
            assert_eq!(has_unused(&logs), has_more);
            remove_unused(&logs).unwrap();
            assert!(!logs.exists());
        }
    }
}
