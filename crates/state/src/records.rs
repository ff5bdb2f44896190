//! Records with a known content: one file, or a directory of files of one kind, and the quarantine.
//!
//! A file that is not what was saved is put into quarantine, where a person can look at it and nothing else does. One that
//! cannot be read now, or that a newer release wrote, is left alone: it may be whole. Nothing here logs; who opens records
//! tells of both.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use crate::record::{self, Durability, Error, Format, Staged};

/// How many files of one name are kept in quarantine.
const SAME_NAME_LIMIT: usize = 1000;

/// Why bytes are not the content of a record.
pub type ContentError = Box<dyn std::error::Error + Send + Sync>;

/// What a record holds, and how it is written.
pub trait Content: Sized {
    /// The kind and version that this build writes and reads.
    const FORMAT: Format;

    /// The bytes behind the header.
    ///
    /// # Errors
    /// The content has what cannot be written.
    fn encode(&self) -> Result<Vec<u8>, ContentError>;

    /// Reads those bytes.
    ///
    /// # Errors
    /// The bytes are not what [`Content::encode`] gives.
    fn decode(bytes: &[u8]) -> Result<Self, ContentError>;

    /// Reads a file without a header, as older builds wrote some kinds; `None` for what was never so.
    #[must_use]
    fn decode_bare(_file: &[u8]) -> Option<Self> {
        None
    }
}

/// Saves a record in place of an older one.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`]; then the older one is still there.
pub fn save<T: Content>(path: &Path, content: &T, durability: Durability) -> Result<(), Error> {
    stage(path, content, durability)?.commit()
}

/// Writes a record beside its place, see [`record::stage`].
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`]; nothing is left of it.
pub fn stage<T: Content>(path: &Path, content: &T, durability: Durability) -> Result<Staged, Error> {
    let bytes = content.encode().map_err(|source| Error::Content { path: path.to_owned(), source })?;
    record::stage(path, T::FORMAT, &bytes, durability)
}

/// Loads a record. A disk that refuses is asked once more: it may not do so again.
///
/// # Errors
/// [`Error`]; see [`Error::is_damage`].
pub fn load<T: Content>(path: &Path) -> Result<T, Error> {
    match load_once(path) {
        Err(error) if !error.is_damage() => load_once(path),
        other => other,
    }
}

fn load_once<T: Content>(path: &Path) -> Result<T, Error> {
    match record::load(path, T::FORMAT) {
        Ok(bytes) => T::decode(&bytes).map_err(|source| Error::Content { path: path.to_owned(), source }),
        Err(damage @ Error::Damaged { .. }) => {
            record::read_file(path).ok().and_then(|file| T::decode_bare(&file)).ok_or(damage)
        }
        Err(error) => Err(error),
    }
}

/// A directory for what is not what was saved.
#[derive(Debug, Clone)]
pub struct Quarantine(PathBuf);

impl Quarantine {
    /// Names the directory; it is made when it is needed.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Moves a file or a directory into quarantine under a name, beside what has it already, and returns where it is now;
    /// `None` if there is nothing to be moved.
    ///
    /// # Errors
    /// [`Error::Io`]; then it stays where it is.
    pub fn put_aside(&self, path: &Path, name: impl AsRef<OsStr>) -> Result<Option<PathBuf>, Error> {
        let fail = |operation| move |source| Error::Io { operation, path: path.to_owned(), source };
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        fs::create_dir_all(&self.0).map_err(fail("quarantine"))?;
        let places = (0..SAME_NAME_LIMIT).map(|number| {
            let mut place = self.0.join(name.as_ref()).into_os_string();
            if number > 0 {
                place.push(format!(".{number}"));
            }
            PathBuf::from(place)
        });
        let free = places.into_iter().find(|place| fs::symlink_metadata(place).is_err());
        let place = free.ok_or_else(|| fail("quarantine")(io::ErrorKind::AlreadyExists.into()))?;
        fs::rename(path, &place).map_err(fail("quarantine"))?;
        Ok(Some(place))
    }

    /// How many things are in it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn count(&self) -> io::Result<usize> {
        match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            entries => Ok(entries?.count()),
        }
    }
}

/// A record that cannot be used, and what became of it.
#[derive(Debug, thiserror::Error)]
#[error("{fate}")]
pub struct Unusable {
    /// Why.
    #[source]
    pub cause: Error,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a record that cannot be used.
#[derive(Debug)]
pub enum Fate {
    /// It is not what was saved, and is here now.
    PutAside(PathBuf),
    /// It is not what was saved, and could not be moved for this reason.
    Stays(Box<Error>),
    /// It may be whole.
    LeftAlone,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutAside(place) => write!(f, "a damaged record was put aside as {}", place.display()),
            Self::Stays(error) => write!(f, "a damaged record stays where it is, since {error}"),
            Self::LeftAlone => f.write_str("a record is left alone until it can be read"),
        }
    }
}

/// A record with its name.
pub type Loaded<T> = (String, Result<T, Unusable>);

/// A directory of records of one kind, by name. One process writes to it.
#[derive(Debug)]
pub struct Records<T> {
    directory: PathBuf,
    quarantine: Quarantine,
    content: PhantomData<fn() -> T>,
}

impl<T: Content> Records<T> {
    /// Opens the directory, making it if need be, and drops what an interrupted write left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(directory: PathBuf, quarantine: Quarantine) -> Result<Self, Error> {
        let fail = |source| Error::Io { operation: "making the directory", path: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(fail)?;
        let records = Self { directory, quarantine, content: PhantomData };
        for half in records.names()?.into_iter().filter(|name| is_half_written(name)) {
            records.remove(&half)?;
        }
        Ok(records)
    }

    /// Every record with its name, in their order. What is damaged is in quarantine afterwards.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub fn load_all(&self) -> Result<Vec<Loaded<T>>, Error> {
        let names = self.names()?.into_iter().filter(|name| !is_half_written(name));
        let loaded = names.map(|name| {
            let record = load(&self.path(&name)).map_err(|cause| self.judge(&name, cause));
            (name, record)
        });
        Ok(loaded.collect())
    }

    /// One record; `None` if there is none. If it is damaged, it is in quarantine afterwards.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn load(&self, name: &str) -> Result<Option<T>, Unusable> {
        match load(&self.path(name)) {
            Err(error) if error.is_missing() => Ok(None),
            loaded => loaded.map(Some).map_err(|cause| self.judge(name, cause)),
        }
    }

    /// Saves a record in place of an older one.
    ///
    /// # Errors
    /// As of [`save`].
    pub fn save(&self, name: &str, content: &T, durability: Durability) -> Result<(), Error> {
        save(&self.path(name), content, durability)
    }

    /// Renames a record; one that is gone is fine.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        match fs::rename(self.path(from), self.path(to)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Io { operation: "renaming", path: self.path(from), source })
            }
            _ => Ok(()),
        }
    }

    /// Removes a record; one that is gone is fine.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        record::remove(&self.path(name))
    }

    /// Puts a record aside whose content makes no sense.
    #[must_use]
    pub fn reject(&self, name: &str, source: ContentError) -> Unusable {
        self.judge(name, Error::Content { path: self.path(name), source })
    }

    fn judge(&self, name: &str, cause: Error) -> Unusable {
        if !cause.is_damage() {
            return Unusable { cause, fate: Fate::LeftAlone };
        }
        let path = self.path(name);
        let fate = match self.quarantine.put_aside(&path, name) {
            Ok(place) => Fate::PutAside(place.unwrap_or(path)),
            Err(error) => Fate::Stays(Box::new(error)),
        };
        Unusable { cause, fate }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let fail = |source| Error::Io { operation: "listing", path: self.directory.clone(), source };
        let entries = fs::read_dir(&self.directory).map_err(fail)?;
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = entries.map(name).collect::<io::Result<_>>().map_err(fail)?;
        names.sort();
        Ok(names)
    }
}

/// Whether a file is one that was being written; with a dot in front older builds called some so.
fn is_half_written(name: &str) -> bool {
    name.starts_with('.') || name.ends_with(".new")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Word(String);

    impl Content for Word {
        const FORMAT: Format = Format { kind: "word", version: 2 };

        fn encode(&self) -> Result<Vec<u8>, ContentError> {
            Ok(self.0.as_bytes().to_vec())
        }

        fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
            Ok(Self(std::str::from_utf8(bytes)?.to_owned()))
        }

        fn decode_bare(file: &[u8]) -> Option<Self> {
            file.strip_prefix(b"bare ").and_then(|word| Self::decode(word).ok())
        }
    }

    fn word(text: &str) -> Word {
        Word(text.to_owned())
    }

    fn open(root: &Path) -> Records<Word> {
        Records::open(root.join("words"), Quarantine::new(root.join("quarantine"))).unwrap()
    }

    #[test]
    fn the_whole_are_loaded_the_damaged_put_aside_and_the_others_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        records.save("good", &word("a"), Durability::Durable).unwrap();
        records.save("good.draining", &word("b"), Durability::Volatile).unwrap();
        let words = dir.path().join("words");
        record::save(&words.join("content"), Word::FORMAT, b"\xff", Durability::Volatile).unwrap();
        let newer = Format { version: 3, ..Word::FORMAT };
        record::save(&words.join("newer"), newer, b"x", Durability::Volatile).unwrap();
        for (name, text) in
            [("empty", ""), ("garbage", "{{"), ("older", "bare c"), (".half", "7"), ("half.new", "7")]
        {
            fs::write(words.join(name), text).unwrap();
        }
        fs::create_dir(words.join("folder")).unwrap();
        let records = open(dir.path());
        let fate = |record: Result<Word, Unusable>| match record {
            Ok(word) => word.0,
            Err(Unusable { fate: Fate::PutAside(place), .. }) => {
                assert!(place.exists() && place.starts_with(dir.path().join("quarantine")));
                "aside".to_owned()
            }
            Err(Unusable { fate, .. }) => fate.to_string(),
        };
        let all: Vec<_> =
            records.load_all().unwrap().into_iter().map(|(name, it)| (name, fate(it))).collect();
        let alone = "a record is left alone until it can be read";
        let expected = [
            ("content", "aside"),
            ("empty", "aside"),
            ("folder", alone),
            ("garbage", "aside"),
            ("good", "a"),
            ("good.draining", "b"),
            ("newer", alone),
            ("older", "c"),
        ];
        assert_eq!(all, expected.map(|(name, fate)| (name.to_owned(), fate.to_owned())));
        assert_eq!(Quarantine::new(dir.path().join("quarantine")).count().unwrap(), 3);
        assert_eq!(records.load("garbage").unwrap(), None);
    }

    #[test]
    fn records_are_renamed_removed_and_rejected_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let records = open(dir.path());
        records.save("a", &word("1"), Durability::Volatile).unwrap();
        records.rename("a", "b").unwrap();
        records.rename("a", "b").unwrap();
        assert_eq!(records.load("b").unwrap(), Some(word("1")));
        assert!(matches!(records.reject("b", "nonsense".into()).fate, Fate::PutAside(_)));
        records.remove("b").unwrap();
        assert_eq!(records.load("b").unwrap(), None);
        fs::remove_dir(dir.path().join("words")).unwrap();
        let error = records.save("a", &word("1"), Durability::Volatile).unwrap_err();
        assert!(error.to_string().contains("words/a"), "{error}");
        assert!(records.rename("a\0", "b").is_err());
        assert!(Records::<Word>::open("/proc/none".into(), Quarantine::new("/proc/none".into())).is_err());
    }

    #[test]
    fn quarantine_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(dir.path().join("quarantine"));
        assert_eq!(quarantine.count().unwrap(), 0);
        let path = dir.path().join("record");
        assert_eq!(quarantine.put_aside(&path, "record").unwrap(), None);
        for number in ["", ".1", ".2"] {
            fs::write(&path, number).unwrap();
            let place = quarantine.put_aside(&path, "record").unwrap().unwrap();
            assert_eq!(place, dir.path().join(format!("quarantine/record{number}")));
            assert_eq!(fs::read_to_string(place).unwrap(), number);
        }
        fs::write(dir.path().join("file"), "").unwrap();
        fs::write(&path, "").unwrap();
        let blocked = Quarantine::new(dir.path().join("file/quarantine"));
        blocked.put_aside(&path, "record").unwrap_err();
        assert!(path.exists() && blocked.count().is_err());
    }
}
