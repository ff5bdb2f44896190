//! The records of pods' networks: small JSON documents, one per pod or setting.
//!
//! A record about something in the kernel is not synced, because a power cut takes both. A record that must survive one
//! is saved durably.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use wharf_state::record::{self, Format};
use wharf_state::records::{Content, ContentError, Quarantine, Records};
use wharf_types::{ErrorKind, Failure};

/// What could not be stored on disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A record.
    #[error(transparent)]
    Record(#[from] record::Error),
    /// The input of a plugin.
    #[error("cannot {operation} {}", path.display())]
    Input {
        /// The operation that failed.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

impl Failure for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Record(error) => error.kind(),
            Self::Input { source, .. } => Failure::kind(source),
        }
    }
}

/// A kind of record whose content is JSON.
pub(crate) trait Kind: Serialize + DeserializeOwned {
    const NAME: &'static str;
}

/// The record's content.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Kind> Content for Json<T> {
    /// The first version had no header.
    const FORMAT: Format = Format { kind: T::NAME, version: 2 };

    fn encode(&self) -> Result<Vec<u8>, ContentError> {
        Ok(serde_json::to_vec(&self.0)?)
    }

    fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        Ok(Self(serde_json::from_slice(bytes)?))
    }

    fn decode_bare(file: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(file).ok()?;
        let is_first = value.get("version").is_none_or(|version| *version == 1);
        if is_first { serde_json::from_value(value).ok().map(Self) } else { None }
    }
}

/// Opens a directory of records, which has the quarantine beside it.
pub(crate) fn open<T: Kind>(directory: PathBuf) -> Result<Records<Json<T>>, StoreError> {
    let quarantine = Quarantine::new(directory.with_file_name("quarantine"));
    Ok(Records::open(directory, quarantine)?)
}

/// Moves the files of a directory, which may be on another file system, to another directory unless they are there
/// already. A directory that does not exist is empty.
pub(crate) fn take_over(from: &Path, to: &Path) -> Result<(), StoreError> {
    let fail =
        |source| StoreError::Input { operation: "take over the records in", path: from.to_owned(), source };
    let entries = match std::fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(fail)?,
    };
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        if !to.join(&name).exists() {
            let mut unfinished = name.clone();
            unfinished.push(".new");
            let unfinished = to.join(unfinished);
            let lease = record::read_file(&from.join(&name))?;
            let taken = std::fs::write(&unfinished, lease);
            let taken = taken.and_then(|()| std::fs::rename(&unfinished, to.join(&name)));
            taken.map_err(|source| {
                if let Err(error) = std::fs::remove_file(&unfinished)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, file = %unfinished.display(), "an unfinished copy of a record stays");
                }
                fail(source)
            })?;
        }
    }
    std::fs::remove_dir_all(from).map_err(fail)
}

/// All records whose name is an id once `id` has stripped it. The others are logged.
pub(crate) fn load<T: Kind, Id: std::str::FromStr>(
    records: &Records<Json<T>>,
    id: impl Fn(&str) -> &str,
) -> Result<Vec<(String, Id, T)>, StoreError>
where
    Id::Err: std::error::Error + Send + Sync + 'static,
{
    let mut whole = Vec::new();
    for (name, record) in records.load_all()? {
        let named = record.and_then(|Json(record)| match id(&name).parse() {
            Ok(id) => Ok((id, record)),
            Err(error) => Err(records.reject(&name, Box::new(error))),
        });
        match named {
            Ok((id, record)) => whole.push((name, id, record)),
            Err(error) => report(&name, &error),
        }
    }
    Ok(whole)
}

/// Logs a record that cannot be used; the error says what became of it.
pub(crate) fn report(name: &str, error: &wharf_state::records::Unusable) {
    let error = wharf_types::chain(error);
    tracing::warn!(name, error, "a network record cannot be used");
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde::Deserialize;
    use wharf_state::record::Durability;
    use wharf_types::PodId;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Number {
        value: u32,
    }

    impl Kind for Number {
        const NAME: &'static str = "number";
    }

    /// The last thing that was logged.
    #[derive(Default)]
    struct Heard(Arc<Mutex<String>>);

    impl tracing::Subscriber for Heard {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = String::new();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                line += &format!("{field}={value:?} ");
            });
            *self.0.lock().unwrap() = line;
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn what_is_logged_of_a_record_is_what_became_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("numbers");
        let records = open::<Number>(directory.clone()).unwrap();
        let (id, heard) = (PodId::from_random([1; 32]), Heard::default());
        let told = Arc::clone(&heard.0);
        tracing::subscriber::with_default(heard, || {
            for (text, became, not) in [
                ("wharf number 9 0 00000000\n", "is left alone", "put aside"),
                ("{{", "was put aside", "left alone"),
            ] {
                std::fs::write(directory.join(id.as_str()), text).unwrap();
                load::<Number, PodId>(&records, |name| name).unwrap();
                let told = told.lock().unwrap();
                assert!(told.contains(became) && !told.contains(not), "{told}");
            }
        });
    }

    #[test]
    fn a_fifo_among_the_records_of_an_earlier_release_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        [&from, &to].into_iter().try_for_each(std::fs::create_dir).unwrap();
        nix::unistd::mkfifo(&from.join("lease"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(take_over(&from, &to).is_err()));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok(true));
    }

    #[test]
    fn records_of_builds_before_headers_are_read_and_the_rest_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("numbers");
        let records = open::<Number>(directory.clone()).unwrap();
        let id = |byte| PodId::from_random([byte; 32]);
        records.save(id(1).as_str(), &Json(Number { value: 1 }), Durability::Volatile).unwrap();
        records.save("nobody", &Json(Number { value: 0 }), Durability::Volatile).unwrap();
        std::fs::write(directory.join(id(2).as_str()), r#"{"version":1,"value":2}"#).unwrap();
        std::fs::write(directory.join(id(3).as_str()), r#"{"version":9,"value":3}"#).unwrap();
        std::fs::write(directory.join(id(4).as_str()), "{{").unwrap();
        let records = open::<Number>(directory).unwrap();
        let all = load::<Number, PodId>(&records, |name| name).unwrap();
        let all: Vec<_> = all.into_iter().map(|(_name, id, number)| (id, number.value)).collect();
        assert_eq!(all, [(id(1), 1), (id(2), 2)]);
        assert_eq!(Quarantine::new(dir.path().join("quarantine")).count().unwrap(), 3);
        assert!(open::<Number>("/proc/none".into()).is_err());
    }
}
