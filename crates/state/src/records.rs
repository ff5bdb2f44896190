//! Records whose content has a type: single files, directories of files of one kind, and the quarantine.
//!
//! A damaged file is moved to the quarantine, where only a person looks at it. A file that cannot be read now, or that
//! a newer release wrote, is left alone, because it may be whole. Nothing here logs: the caller that opens records
//! reports both.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use crate::record::{self, Durability, Error, Format, Staged};

/// How many files of the same name the quarantine holds.
const SAME_NAME_LIMIT: usize = 1000;

/// Why bytes are not the content of a record.
pub type ContentError = Box<dyn std::error::Error + Send + Sync>;

/// A type that can be saved as a record.
pub trait Content: Sized {
    /// The kind and version that this build writes and reads.
    const FORMAT: Format;

    /// The bytes that follow the header.
    ///
    /// # Errors
    /// The value cannot be written.
    fn encode(&self) -> Result<Vec<u8>, ContentError>;

    /// Reads those bytes.
    ///
    /// # Errors
    /// The bytes are not what [`Content::encode`] returns.
    fn decode(bytes: &[u8]) -> Result<Self, ContentError>;

    /// Reads a file without a header, as older builds wrote some kinds of record; `None` for every other kind.
    #[must_use]
    fn decode_bare(_file: &[u8]) -> Option<Self> {
        None
    }
}

/// Saves a record in place of an older one.
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`]; the older record is still there.
pub fn save<T: Content>(path: &Path, content: &T, durability: Durability) -> Result<(), Error> {
    stage(path, content, durability)?.commit()
}

/// Writes a record beside its place; see [`record::stage`].
///
/// # Errors
/// [`Error::Io`] or [`Error::Content`]; nothing is left on disk.
pub fn stage<T: Content>(path: &Path, content: &T, durability: Durability) -> Result<Staged, Error> {
    let bytes = content.encode().map_err(|source| Error::Content { path: path.to_owned(), source })?;
    record::stage(path, T::FORMAT, &bytes, durability)
}

/// Loads a record. An I/O error is retried once, because it may not come back.
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

/// The ids among the names in a directory; none if it does not exist.
///
/// # Errors
/// [`Error::Io`]. The directory may be full of records then, so nobody may act as if it were empty.
pub fn ids<Id: FromStr>(directory: &Path) -> Result<Vec<Id>, Error> {
    let fail = |source| Error::Io { operation: "listing", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        ids.extend(entry.map_err(fail)?.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(ids)
}

/// The directory for damaged files.
#[derive(Debug, Clone)]
pub struct Quarantine(PathBuf);

impl Quarantine {
    /// Takes the directory's path. The directory is made when it is first needed.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Moves a file or a directory into the quarantine as `name`, with a number if the name is taken, and returns its
    /// new path; `None` if there is nothing to move.
    ///
    /// # Errors
    /// [`Error::Io`]; the file stays where it is.
    pub fn put_aside(&self, path: &Path, name: impl AsRef<OsStr>) -> Result<Option<PathBuf>, Error> {
        self.take(path, name.as_ref(), |path, place| fs::rename(path, place))
    }

    /// The same for a file that also stays where it is, and is the caller's to remove. One that is there already is not
    /// kept twice.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn keep(&self, path: &Path, name: impl AsRef<OsStr>) -> Result<Option<PathBuf>, Error> {
        if fs::symlink_metadata(path).is_ok_and(|file| file.nlink() > 1) {
            return Ok(None);
        }
        self.take(path, name.as_ref(), |path, place| fs::hard_link(path, place))
    }

    fn take(
        &self,
        path: &Path,
        name: &OsStr,
        take: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> Result<Option<PathBuf>, Error> {
        let fail = |operation| move |source| Error::Io { operation, path: path.to_owned(), source };
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        fs::create_dir_all(&self.0).map_err(fail("quarantine"))?;
        let places = (0..SAME_NAME_LIMIT).map(|number| {
            let mut place = self.0.join(name).into_os_string();
            if number > 0 {
                place.push(format!(".{number}"));
            }
            PathBuf::from(place)
        });
        let free = places.into_iter().find(|place| fs::symlink_metadata(place).is_err());
        let place = free.ok_or_else(|| fail("quarantine")(io::ErrorKind::AlreadyExists.into()))?;
        take(path, &place).map_err(fail("quarantine"))?;
        Ok(Some(place))
    }

    /// The number of entries.
    ///
    /// # Errors
    /// The file system's error.
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
    /// Why it cannot be used.
    #[source]
    pub cause: Error,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a record that cannot be used.
#[derive(Debug)]
pub enum Fate {
    /// It was damaged, and is now at this path.
    PutAside(PathBuf),
    /// It is damaged, and this error kept it from being moved.
    Stays(Box<Error>),
    /// It may be whole, and stays where it is.
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

/// A record's name, and the record.
pub type Loaded<T> = (String, Result<T, Unusable>);

/// A directory of records of one kind, by name. Only one process writes to it.
#[derive(Debug)]
pub struct Records<T> {
    directory: PathBuf,
    quarantine: Quarantine,
    content: PhantomData<fn() -> T>,
}

impl<T: Content> Records<T> {
    /// Opens the directory, makes it if it does not exist, and removes what an interrupted write left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(directory: PathBuf, quarantine: Quarantine) -> Result<Self, Error> {
        let fail = |source| Error::Io { operation: "making the directory", path: directory.clone(), source };
        fs::create_dir_all(&directory).map_err(fail)?;
        let records = Self { directory, quarantine, content: PhantomData };
        for half in records.names()?.into_iter().filter(|name| is_half_written(name)) {
            // One that stays, for example because the file system has become read-only, is never read.
            drop(records.remove(&half));
        }
        Ok(records)
    }

    /// All records, sorted by name. Damaged ones are moved to the quarantine.
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

    /// One record; `None` if it does not exist. A damaged one is moved to the quarantine.
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
    /// Those of [`save`].
    pub fn save(&self, name: &str, content: &T, durability: Durability) -> Result<(), Error> {
        save(&self.path(name), content, durability)
    }

    /// When a record was last saved; `None` if that cannot be read.
    #[must_use]
    pub fn saved_at(&self, name: &str) -> Option<SystemTime> {
        fs::metadata(self.path(name)).and_then(|file| file.modified()).ok()
    }

    /// Renames a record. A missing record is success.
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

    /// Removes a record. A missing record is success.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        record::remove(&self.path(name))
    }

    /// Moves a record whose content makes no sense to the quarantine.
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

/// Whether a file is a record that was being written. Older builds put a dot in front of some of those names.
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
    fn what_cannot_be_listed_is_not_taken_for_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ids::<u8>(&dir.path().join("none")).unwrap(), []);
        for name in ["7", "no-id"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(ids::<u8>(dir.path()).unwrap(), [7]);
        assert!(matches!(ids::<u8>(&dir.path().join("7")), Err(Error::Io { operation: "listing", .. })));
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
        assert_eq!(quarantine.keep(&path, "record").unwrap(), None);
        fs::write(&path, ".3").unwrap();
        let place = quarantine.keep(&path, "record").unwrap().unwrap();
        assert_eq!(place, dir.path().join("quarantine/record.3"));
        assert!(path.exists() && fs::read_to_string(place).unwrap() == ".3");
        assert_eq!(quarantine.keep(&path, "record").unwrap(), None, "it is kept");
        fs::write(dir.path().join("file"), "").unwrap();
        let blocked = Quarantine::new(dir.path().join("file/quarantine"));
        blocked.put_aside(&path, "record").unwrap_err();
        assert!(path.exists() && blocked.count().is_err());
    }
}
