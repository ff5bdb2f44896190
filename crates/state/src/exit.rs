//! How a container exited: the one record that the supervisor writes and the daemon reads.
//!
//! It is what makes an exit code outlive both: the process is not reaped before the record is on disk, and whoever
//! comes later reads it there.

use std::path::Path;

use wharf_types::Exit;

use crate::record::{self, Durability, Format};

const FORMAT: Format = Format { kind: "exit", version: 1 };

/// How and when a container's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// How it ended.
    pub exit: Exit,
    /// Nanoseconds since the epoch; 0 if it never started.
    pub started_at_ns: i64,
    /// Nanoseconds since the epoch.
    pub finished_at_ns: i64,
}

impl ExitRecord {
    /// Saves the record. It must be on disk before the process is reaped.
    ///
    /// # Errors
    /// [`record::Error::Io`].
    pub fn save(&self, path: &Path) -> Result<(), record::Error> {
        let how = match self.exit {
            Exit::Code(code) => format!("code {code}"),
            Exit::Signal { number, oom: false } => format!("signal {number}"),
            Exit::Signal { number, oom: true } => format!("oom {number}"),
            Exit::NotStarted => "not-started 0".to_owned(),
            Exit::Lost => "lost 0".to_owned(),
        };
        let text = format!("{how} {} {}\n", self.started_at_ns, self.finished_at_ns);
        record::save(path, FORMAT, text.as_bytes(), Durability::Volatile)
    }

    /// Loads the record.
    ///
    /// # Errors
    /// [`record::Error`].
    pub fn load(path: &Path) -> Result<Self, record::Error> {
        let content = record::load(path, FORMAT)?;
        parse(&String::from_utf8_lossy(&content)).ok_or_else(|| record::Error::Damaged {
            path: path.to_owned(),
            what: "it does not say how it ended",
        })
    }
}

fn parse(text: &str) -> Option<ExitRecord> {
    let words: Vec<&str> = text.trim_end().split(' ').collect();
    let [how, value, started, finished] = words[..] else { return None };
    let value: u8 = value.parse().ok()?;
    let exit = match how {
        "code" => Exit::Code(value),
        "signal" => Exit::Signal { number: value, oom: false },
        "oom" => Exit::Signal { number: value, oom: true },
        "not-started" => Exit::NotStarted,
        "lost" => Exit::Lost,
        _ => return None,
    };
    Some(ExitRecord { exit, started_at_ns: started.parse().ok()?, finished_at_ns: finished.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::signal::SIGKILL;

    #[test]
    fn every_exit_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        for exit in [
            Exit::Code(0),
            Exit::Code(255),
            Exit::Signal { number: SIGKILL, oom: false },
            Exit::Signal { number: SIGKILL, oom: true },
            Exit::NotStarted,
            Exit::Lost,
        ] {
            let record = ExitRecord { exit, started_at_ns: 5, finished_at_ns: i64::MAX };
            record.save(&path).unwrap();
            assert_eq!(ExitRecord::load(&path).unwrap(), record);
        }
        assert_eq!(parse("melted 0 0 0"), None);
    }
}
