//! How a container ended, for a daemon that was not told.

use std::path::Path;

use wharf_state::ExitRecord;
use wharf_state::record::Error;
use wharf_types::{Stage as _, StageError, chain};

/// Reads a container's exit record, if there is one. A damaged one is none, and neither is one that this release cannot
/// understand: neither will get better.
///
/// # Errors
/// The disk's. It may work again later, and the record may say how the container ended.
pub fn exit_at(path: &Path) -> Result<Option<ExitRecord>, StageError> {
    match ExitRecord::load(path) {
        Err(error) if error.is_missing() => Ok(None),
        Err(error @ Error::Io { .. }) => Err(error).stage("reading how a container ended"),
        Err(error) => {
            tracing::warn!(error = chain(&error), "nobody can tell how a container ended");
            Ok(None)
        }
        Ok(exit) => Ok(Some(exit)),
    }
}

/// The same for a container that has ended without a word from anybody: unless there is a record, it is lost. That is
/// recorded, so that the next daemon does not decide anew when that was.
///
/// # Errors
/// The disk's, when the record is read.
pub fn exit_or_lost(path: &Path, lost: ExitRecord) -> Result<ExitRecord, StageError> {
    if let Some(exit) = exit_at(path)? {
        return Ok(exit);
    }
    // One that nobody can read stays as it is.
    if path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        && let Err(error) = save_beside_others(path, &lost)
    {
        tracing::warn!(error = chain(&error), "that nobody knows how a container ended cannot be recorded");
    }
    Ok(lost)
}

/// Records it, unless there are no records of the pod any more: it has been removed meanwhile.
fn save_beside_others(path: &Path, lost: &ExitRecord) -> Result<(), Error> {
    match lost.save(path) {
        Err(error) if error.is_missing() => Ok(()),
        saved => saved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::Exit;

    #[test]
    fn what_is_lost_is_decided_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        let lost = |finished_at_ns| ExitRecord { exit: Exit::Lost, started_at_ns: 5, finished_at_ns };
        assert_eq!(exit_or_lost(&path, lost(6)).unwrap(), lost(6));
        assert_eq!(exit_or_lost(&path, lost(7)).unwrap(), lost(6));
        std::fs::write(&path, "of a later release").unwrap();
        assert_eq!(exit_or_lost(&path, lost(8)).unwrap(), lost(8));
        assert_eq!(std::fs::read(&path).unwrap(), b"of a later release");
        // A full disk.
        assert_eq!(exit_or_lost(&dir.path().join("no/directory"), lost(9)).unwrap(), lost(9));
        save_beside_others(&dir.path().join("no/directory"), &lost(9)).unwrap();
        assert!(save_beside_others(&path.join("in/a/file"), &lost(9)).is_err());
    }

    #[test]
    fn a_disk_that_fails_says_nothing_about_an_exit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        assert_eq!(exit_at(&path).unwrap(), None);
        let exit = ExitRecord { exit: Exit::Code(7), started_at_ns: 1, finished_at_ns: 2 };
        exit.save(&path).unwrap();
        assert_eq!(exit_at(&path).unwrap(), Some(exit));
        std::fs::write(&path, "7").unwrap();
        assert_eq!(exit_at(&path).unwrap(), None);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(exit_at(&path).unwrap_err().to_string(), "reading how a container ended");
    }
}
