//! One record: a header line and the content, replaced whole by a rename.
//!
//! The header is `wharf <kind> <version> <bytes> <crc32>`. The caller chooses the kind.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use wharf_sys::fs::read_regular;
use wharf_types::{ErrorKind, Failure};

/// Why a record could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system returned an error.
    #[error("{operation} of record {path} failed", path = .path.display())]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The record.
        path: PathBuf,
        /// The file system's error.
        #[source]
        source: io::Error,
    },
    /// More was to be saved than could be loaded again.
    #[error("record {path} would have {bytes} bytes; at most {} MiB can be kept", LIMIT_BYTES >> 20, path = .path.display())]
    TooLong {
        /// The record.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The file is not a record, or not as it was saved.
    #[error("record {path} is damaged: {what}", path = .path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The record is whole, but its content is not what this build writes.
    #[error("the content of record {path} is not valid", path = .path.display())]
    Content {
        /// The record.
        path: PathBuf,
        /// The error of the content's decoder.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The record is of a kind or version that this build does not know.
    #[error("record {path} is a {found}; this build reads {wanted}", path = .path.display())]
    Foreign {
        /// The record.
        path: PathBuf,
        /// Its kind and version.
        found: String,
        /// What this build reads.
        wanted: String,
    },
}

impl Failure for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => Failure::kind(source),
            Self::TooLong { .. } => ErrorKind::ResourceExhausted,
            Self::Damaged { .. } | Self::Content { .. } => ErrorKind::DataLoss,
            Self::Foreign { .. } => ErrorKind::Unimplemented,
        }
    }
}

impl Error {
    /// Whether the record does not exist.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether another attempt may succeed: the disk fails, or the machine is short of something.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        let is_there = |source: &io::Error| source.kind() != io::ErrorKind::IsADirectory;
        matches!(self, Self::Io { source, .. } if is_there(source)) && !self.is_missing()
    }

    /// Whether the record is certainly not what was saved. An I/O error may not come back, and what a newer release
    /// wrote may be whole.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Content { .. }) || self.is_missing()
    }
}

/// Whether a record must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It describes something that does not survive a power cut either.
    Volatile,
    /// The file and its directory are synced before the call returns.
    Durable,
}

/// The kind and version of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// One word.
    pub kind: &'static str,
    /// Raised when older builds must no longer write the record. They still find what they need to know of its subject
    /// in the same place.
    pub version: u32,
}

/// A record that is written but not yet in its place. Only a rename is left, which needs no disk space.
#[derive(Debug)]
#[must_use = "dropped, it is removed"]
pub struct Staged {
    path: PathBuf,
    durability: Durability,
    state: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Written,
    InPlace,
}

/// Saves a record in place of an older one: a reader finds one of them whole.
///
/// # Errors
/// [`Error::Io`], [`Error::TooLong`]; as in [`Staged::commit`].
pub fn save(path: &Path, format: Format, content: &[u8], durability: Durability) -> Result<(), Error> {
    stage(path, format, content, durability)?.commit()
}

/// Writes a record beside its place, for a caller that must know that it can be saved before doing what it records.
///
/// # Errors
/// [`Error::Io`], [`Error::TooLong`]; nothing is left on disk.
pub fn stage(path: &Path, format: Format, content: &[u8], durability: Durability) -> Result<Staged, Error> {
    let fail = |operation| move |source| Error::Io { operation, path: path.to_owned(), source };
    let header =
        format!("wharf {} {} {} {:08x}\n", format.kind, format.version, content.len(), crc32(content));
    // Who starts next would take it for damaged.
    let bytes = header.len() + content.len();
    if bytes > LIMIT_BYTES {
        return Err(Error::TooLong { path: path.to_owned(), bytes });
    }
    let staged = Staged { path: path.to_owned(), durability, state: Stage::Written };
    let mut file = create(&staged.temporary()).map_err(fail("creation"))?;
    file.write_all(&[header.as_bytes(), content].concat()).map_err(fail("writing"))?;
    if durability == Durability::Durable {
        file.sync_all().map_err(fail("syncing"))?;
    }
    Ok(staged)
}

/// Makes a file. What a crash has left in its place goes first, or what somebody has put there: a FIFO would be waited
/// for.
fn create(path: &Path) -> io::Result<fs::File> {
    match fs::File::create_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            fs::File::create_new(path)
        }
        created => created,
    }
}

impl Staged {
    /// Puts the record in place of the older one.
    ///
    /// # Errors
    /// [`Error::Io`]. The older record is still there, or, if only the directory could not be synced, the new one until
    /// a power cut.
    pub fn commit(mut self) -> Result<(), Error> {
        let fail = |operation| {
            let path = self.path.clone();
            move |source| Error::Io { operation, path, source }
        };
        fs::rename(self.temporary(), &self.path).map_err(fail("renaming"))?;
        self.state = Stage::InPlace;
        if let (Durability::Durable, Some(parent)) = (self.durability, self.path.parent()) {
            fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(fail("syncing"))?;
        }
        Ok(())
    }

    fn temporary(&self) -> PathBuf {
        temporary(&self.path)
    }
}

impl Drop for Staged {
    /// A half-written file uses space, and a lack of space may be why it is half written.
    fn drop(&mut self) {
        if self.state == Stage::Written {
            // It does not exist if it could not even be made.
            fs::remove_file(self.temporary()).unwrap_or_default();
        }
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// The longest record.
const LIMIT_BYTES: usize = 16 << 20;

/// Loads a record of at most 16 MiB.
///
/// # Errors
/// [`Error`]; see [`Error::is_missing`].
pub fn load(path: &Path, format: Format) -> Result<Vec<u8>, Error> {
    match read(path, format.kind)? {
        (version, content) if version == format.version.to_string() => content,
        (version, _) => Err(foreign(path, format, &version)),
    }
}

/// Loads a record of this kind that a newer release wrote, if it is laid out as records are today. The caller uses what
/// it understands, and does not change the record.
///
/// # Errors
/// [`Error`].
pub fn load_newer(path: &Path, format: Format) -> Result<Vec<u8>, Error> {
    let (version, content) = read(path, format.kind)?;
    match version.parse::<u32>() {
        Ok(number) if number > format.version => content,
        _ => Err(foreign(path, format, &version)),
    }
}

/// Checks that a record may be replaced. A newer release's record may not: it says more than this build could write.
///
/// # Errors
/// [`Error::Foreign`].
pub fn check_replaceable(path: &Path, format: Format) -> Result<(), Error> {
    match load(path, format) {
        Err(newer @ Error::Foreign { .. }) => Err(newer),
        _ => Ok(()),
    }
}

fn foreign(path: &Path, format: Format, version: &str) -> Error {
    let found = format!("{} {version}", format.kind);
    Error::Foreign { path: path.to_owned(), found, wanted: format!("{} {}", format.kind, format.version) }
}

/// A record's content, or why it cannot be used.
type Content = Result<Vec<u8>, Error>;

fn read(path: &Path, kind: &'static str) -> Result<(String, Content), Error> {
    let damaged = |what| Error::Damaged { path: path.to_owned(), what };
    let mut bytes = read_file(path)?;
    let end = bytes.iter().position(|&b| b == b'\n').ok_or_else(|| damaged("it has no header"))?;
    let header = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let content = bytes.split_off(end + 1);
    let words: Vec<&str> = header.split(' ').collect();
    let ["wharf", found, version, length, crc] = words[..] else { return Err(damaged("it has no header")) };
    if found != kind {
        let (found, wanted) = (format!("{found} {version}"), kind.to_owned());
        return Err(Error::Foreign { path: path.to_owned(), found, wanted });
    }
    let content = if length != content.len().to_string() {
        Err(damaged("its length does not match"))
    } else if crc != format!("{:08x}", crc32(&content)) {
        Err(damaged("its checksum does not match"))
    } else {
        Ok(content)
    };
    Ok((version.to_owned(), content))
}

/// Reads a record's file, header included, or a file beside the records. Nothing in its place is waited for, such as a
/// FIFO.
///
/// # Errors
/// [`Error::Io`]; [`Error::Damaged`] if it is no regular file, or longer than a record.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let fail = |source| Error::Io { operation: "reading", path: path.to_owned(), source };
    let is_directory = fs::metadata(path).map_err(fail)?.is_dir();
    if is_directory {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    let damaged = |what| Error::Damaged { path: path.to_owned(), what };
    read_regular(path, LIMIT_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => damaged("it is not a regular file"),
        io::ErrorKind::FileTooLarge => damaged("it is longer than 16 MiB"),
        _ => fail(error),
    })
}

/// Removes a record, and what a crash left of its replacement. A missing record is success. Whatever else is in the
/// place of one is removed as well.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(path: &Path) -> Result<(), Error> {
    for path in [temporary(path), path.to_owned()] {
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(&path),
            removed => removed,
        };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Io { operation: "removal", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The CRC-32 of IEEE 802.3, bit by bit: records are short.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _bit| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { kind: "test", version: 3 };

    #[test]
    fn the_checksum_is_the_common_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        for (content, durability) in [(&b"one\n\0"[..], Durability::Volatile), (b"", Durability::Durable)] {
            save(&path, FORMAT, content, durability).unwrap();
            assert_eq!(load(&path, FORMAT).unwrap(), content);
        }
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(load(&path, FORMAT).unwrap_err().is_missing());
        fs::create_dir_all(path.join("in its place")).unwrap();
        remove(&path).unwrap();
        assert!(load(&path, FORMAT).unwrap_err().is_missing());
    }

    #[test]
    fn what_could_not_be_loaded_again_is_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let content = vec![b'x'; LIMIT_BYTES - 40];
        save(&path, FORMAT, &content, Durability::Volatile).unwrap();
        assert!(load(&path, FORMAT).is_ok());
        let longer = vec![b'y'; LIMIT_BYTES - 10];
        let error = save(&path, FORMAT, &longer, Durability::Volatile).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
        assert_eq!(load(&path, FORMAT).unwrap(), content);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_committed_leaves_nothing_and_the_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        save(&path, FORMAT, b"old", Durability::Volatile).unwrap();
        drop(stage(&path, FORMAT, b"new", Durability::Volatile).unwrap());
        assert_eq!(load(&path, FORMAT).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        stage(&path, FORMAT, b"new", Durability::Volatile).unwrap().commit().unwrap();
        assert_eq!(load(&path, FORMAT).unwrap(), b"new");
        let nowhere = stage(&dir.path().join("no/record"), FORMAT, b"", Durability::Volatile);
        assert!(nowhere.unwrap_err().is_missing());
        fs::write(dir.path().join("record.new"), "half").unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_fifo_in_place_of_a_half_written_record_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        nix::unistd::mkfifo(&temporary(&path), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let record = path.clone();
        std::thread::spawn(move || tell.send(save(&record, FORMAT, b"new", Durability::Volatile).is_ok()));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok(true));
        assert_eq!(load(&path, FORMAT).unwrap(), b"new");
    }

    #[test]
    fn only_what_is_not_what_was_saved_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert!(load(&path, FORMAT).unwrap_err().is_damage(), "it is not there");
        fs::write(&path, "noise").unwrap();
        assert!(load(&path, FORMAT).unwrap_err().is_damage());
        save(&path, Format { kind: "test", version: 4 }, b"", Durability::Volatile).unwrap();
        assert!(!load(&path, FORMAT).unwrap_err().is_damage(), "it is newer");
        assert!(!load(dir.path(), FORMAT).unwrap_err().is_damage(), "it cannot be read");
    }

    #[test]
    fn only_what_fails_for_now_may_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let may_pass = |path: &Path| load(path, FORMAT).unwrap_err().may_pass();
        assert!(!may_pass(&path), "it is not there");
        assert!(!may_pass(dir.path()), "something else is there");
        std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        assert!(may_pass(&path), "EIO");
        fs::remove_file(&path).unwrap();
        save(&path, Format { kind: "test", version: 4 }, b"", Durability::Volatile).unwrap();
        assert!(!may_pass(&path), "it is newer");
    }

    #[test]
    fn what_is_no_regular_file_is_damage_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [fifo, link, socket] = ["fifo", "link", "socket"].map(|name| dir.path().join(name));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("fifo", &link).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [&fifo, &link, &socket] {
            let error = load(path, FORMAT).unwrap_err();
            assert!(error.is_damage() && error.to_string().contains("not a regular file"), "{error}");
        }
    }

    #[test]
    fn every_flipped_or_missing_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        save(&path, FORMAT, b"some content", Durability::Volatile).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            assert!(load(&path, FORMAT).is_err(), "byte {at} flipped");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(load(&path, FORMAT).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        save(&path, Format { kind: "test", version: 4 }, b"", Durability::Volatile).unwrap();
        let error = load(&path, FORMAT).unwrap_err().to_string();
        assert!(error.contains("test 4") && error.contains("test 3"), "{error}");
    }

    #[test]
    fn a_newer_one_is_read_as_far_as_it_goes_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert!(load_newer(&path, FORMAT).unwrap_err().is_missing());
        check_replaceable(&path, FORMAT).unwrap();
        save(&path, FORMAT, b"ours", Durability::Volatile).unwrap();
        check_replaceable(&path, FORMAT).unwrap();
        assert!(matches!(load_newer(&path, FORMAT), Err(Error::Foreign { .. })), "it is not newer");
        save(&path, Format { kind: "test", version: 4 }, b"more", Durability::Volatile).unwrap();
        assert_eq!(load_newer(&path, FORMAT).unwrap(), b"more");
        assert!(matches!(check_replaceable(&path, FORMAT), Err(Error::Foreign { .. })));
        fs::write(&path, "wharf test 4 1 00000000\nmore").unwrap();
        assert!(matches!(load_newer(&path, FORMAT), Err(Error::Damaged { .. })), "laid out in another way");
        assert!(matches!(check_replaceable(&path, FORMAT), Err(Error::Foreign { .. })));
        assert!(!load(&path, FORMAT).unwrap_err().is_damage());
    }
}
