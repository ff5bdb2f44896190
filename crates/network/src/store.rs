//! Small records as JSON files, one per pod, renamed into place.
//!
//! What describes something in the kernel is not synced, since a power cut takes both; what has to outlive one is
//! written by [`Store::save_durably`]. A file that cannot be understood is moved to `quarantine/` and reported.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// No record of wharf's is larger; a CNI configuration of 1 MiB and its result are the most.
const RECORD_LIMIT_BYTES: u64 = 8 << 20;

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct StoreError {
    /// What was tried.
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the system answered.
    pub source: std::io::Error,
}

/// A directory of records.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the directory, making it if needed, and drops what an interrupted write left.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        let store = Self { dir };
        for name in store.names()?.iter().filter(|name| name.starts_with('.')) {
            store.remove(name)?;
        }
        Ok(store)
    }

    /// Every record with its name; what is damaged is set aside.
    pub(crate) fn load<T: DeserializeOwned>(&self) -> Result<Vec<(String, T)>, StoreError> {
        let mut records = Vec::new();
        for name in self.names()? {
            match read(&self.dir.join(&name)) {
                Ok(record) => records.push((name, record)),
                Err(error) => self.quarantine(&name, &error),
            }
        }
        Ok(records)
    }

    /// One record; `None` if there is none, or if it was damaged and is now set aside.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        match read(&self.dir.join(name)) {
            Ok(record) => Some(record),
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    self.quarantine(name, &error);
                }
                None
            }
        }
    }

    /// Writes a record as a whole.
    pub(crate) fn save(&self, name: &str, record: &impl Serialize) -> Result<(), StoreError> {
        let (path, temporary) = (self.dir.join(name), self.dir.join(format!(".{name}")));
        let write = || {
            std::fs::write(&temporary, serde_json::to_vec(record)?)?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(failed("write", &path))
    }

    /// The same, and it is on the disk when this returns.
    pub(crate) fn save_durably(&self, name: &str, record: &impl Serialize) -> Result<(), StoreError> {
        let (path, temporary) = (self.dir.join(name), self.dir.join(format!(".{name}")));
        let write = || {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_data()?;
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(&self.dir)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Renames a record; one that is gone is fine.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        gone_is_fine(std::fs::rename(self.dir.join(from), self.dir.join(to)))
            .map_err(failed("rename", &self.dir.join(from)))
    }

    /// Removes a record; one that is gone is fine.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.dir.join(name);
        gone_is_fine(std::fs::remove_file(&path)).map_err(failed("remove", &path))
    }

    /// Moves a damaged record out of the way; never fails, since recovery must go on.
    pub(crate) fn quarantine(&self, name: &str, cause: &dyn std::fmt::Display) {
        let aside = self.dir.with_file_name("quarantine");
        let moved = std::fs::create_dir_all(&aside)
            .and_then(|()| std::fs::rename(self.dir.join(name), aside.join(name)));
        tracing::warn!(
            record = %self.dir.join(name).display(),
            %cause,
            moved = moved.is_ok(),
            "a network record cannot be understood and is set aside"
        );
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let entry = entry.map_err(failed("list", &self.dir))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// Reads at most `limit` bytes of a regular file; a longer one is an error, and so is a device or a pipe.
pub(crate) fn read_bounded(path: &Path, limit_bytes: u64) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= limit_bytes) {
        return Ok(bytes);
    }
    Err(std::io::Error::new(ErrorKind::FileTooLarge, format!("it is longer than {limit_bytes} bytes")))
}

fn read<T: DeserializeOwned>(path: &Path) -> std::io::Result<T> {
    Ok(serde_json::from_slice(&read_bounded(path, RECORD_LIMIT_BYTES)?)?)
}

pub(crate) fn gone_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_records_are_set_aside_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("records")).unwrap();
        store.save("good", &7).unwrap();
        for (name, content) in [("empty", ""), ("garbage", "{{"), (".half", "7")] {
            std::fs::write(dir.path().join("records").join(name), content).unwrap();
        }
        std::fs::create_dir(dir.path().join("records/folder")).unwrap();
        let store = Store::open(dir.path().join("records")).unwrap();
        assert_eq!(store.load::<u32>().unwrap(), [("good".to_owned(), 7)]);
        assert_eq!(store.names().unwrap(), ["good"]);
        assert!(dir.path().join("quarantine/garbage").exists());
    }

    #[test]
    fn what_cannot_be_written_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("records")).unwrap();
        std::fs::remove_dir(dir.path().join("records")).unwrap();
        assert!(store.save("a", &7).unwrap_err().to_string().ends_with("records/a"));
        store.remove("a").unwrap();
        assert!(Store::open("/proc/none".into()).is_err());
    }
}
