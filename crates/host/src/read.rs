//! Reading files that somebody else has written, without waiting and within bounds.
//!
//! Such files come and go at any time, and may be fifos, huge, or half written. A file with a fault is kept with the
//! fault: whoever may have needed it can name it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use wharf_planner::Refusal;
use wharf_sys::fs::read_regular;
use wharf_types::lock::lock;
use wharf_types::{ErrorKind as Class, Failure};

/// What a file says, or why it is of no use.
pub(crate) type Content<T> = Arc<Result<T, String>>;

/// A file, and what it says.
pub(crate) type Found<T> = (PathBuf, Content<T>);

/// The files of a look, as they were then.
type Known<T> = HashMap<PathBuf, (Stamp, Content<T>)>;

/// How files of one kind are found and parsed.
#[derive(Debug)]
pub(crate) struct Kind<T> {
    /// What their names end in.
    pub(crate) extensions: &'static [&'static str],
    /// The longest file, in bytes.
    pub(crate) limit_bytes: usize,
    pub(crate) parse: fn(&Path, Vec<u8>) -> Result<T, String>,
}

/// Files of one kind in some directories, which others write at any time. A file that has not changed since the last
/// look is not read again.
#[derive(Debug)]
pub(crate) struct Files<T> {
    kind: Kind<T>,
    pub(crate) directories: Vec<PathBuf>,
    /// What the last look has found.
    known: Mutex<Known<T>>,
}

/// What one look at them has shown.
#[derive(Debug)]
pub(crate) struct Look<T> {
    /// The files of each directory, sorted by name.
    pub(crate) directories: Vec<Vec<Found<T>>>,
    /// Directories that cannot be read, and why.
    unreadable: Vec<String>,
}

impl<T> Files<T> {
    /// Files in these directories. Nothing is read yet.
    pub(crate) fn new(kind: Kind<T>, directories: Vec<PathBuf>) -> Self {
        Self { kind, directories, known: Mutex::default() }
    }

    /// Looks at all files. The lock is not held meanwhile: a disk may stall.
    ///
    /// # Errors
    /// The machine is short of something, which says nothing about the files: they are read again at the next look.
    pub(crate) fn look(&self) -> Result<Look<T>, Refusal> {
        self.look_with(read_regular)
    }

    fn look_with(&self, read: impl Fn(&Path, usize) -> io::Result<Vec<u8>>) -> Result<Look<T>, Refusal> {
        let known = lock(&self.known).clone();
        let mut now = HashMap::new();
        let mut look = Look { directories: Vec::new(), unreadable: Vec::new() };
        for directory in &self.directories {
            let paths = match not_short(directory, files(directory, self.kind.extensions))? {
                Ok(paths) => paths,
                Err(error) => {
                    look.unreadable.push(format!("{}: {error}", directory.display()));
                    Vec::new()
                }
            };
            let mut found = Vec::new();
            for path in paths {
                // Before it is read: what is written meanwhile is seen at the next look.
                let stamp = Stamp::of(&path);
                let content = match known.get(&path).filter(|(old, _)| Some(*old) == stamp) {
                    Some((_, content)) => Arc::clone(content),
                    None => {
                        let read = not_short(&path, read(&path, self.kind.limit_bytes))?;
                        self.parse(&path, read)
                    }
                };
                now.extend(stamp.map(|stamp| (path.clone(), (stamp, Arc::clone(&content)))));
                found.push((path, content));
            }
            look.directories.push(found);
        }
        *lock(&self.known) = now;
        Ok(look)
    }

    /// Problems in the files, as text.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.look().map_or_else(|short| vec![short.to_string()], |look| look.damaged())
    }

    fn parse(&self, path: &Path, read: io::Result<Vec<u8>>) -> Content<T> {
        let content = read.map_err(|error| error.to_string());
        let parsed = content.and_then(|content| (self.kind.parse)(path, content));
        Arc::new(parsed.map_err(|problem| problem.chars().take(PROBLEM_LEN).collect()))
    }
}

/// The class of an error on a file that somebody else has written: theirs, unless the machine is short of something.
pub(crate) fn class_of(error: &io::Error) -> Class {
    match Failure::kind(error) {
        Class::ResourceExhausted => Class::ResourceExhausted,
        _ => Class::FailedPrecondition,
    }
}

/// The result of a reading, which says something about what was read.
fn not_short<R>(path: &Path, read: io::Result<R>) -> Result<io::Result<R>, Refusal> {
    match read {
        Err(error) if class_of(&error) == Class::ResourceExhausted => Err(Refusal::Addition {
            kind: Class::ResourceExhausted,
            what: path.display().to_string(),
            problem: error.to_string(),
        }),
        read => Ok(read),
    }
}

impl<T> Look<T> {
    /// The files and directories that are of no use, and why.
    pub(crate) fn damaged(&self) -> Vec<String> {
        let files = self.directories.iter().flatten();
        let damaged = files.filter_map(|(path, content)| match content.as_ref() {
            Ok(_) => None,
            Err(problem) => Some(format!("{}: {problem}", path.display())),
        });
        self.unreadable.iter().cloned().chain(damaged).collect()
    }
}

/// The longest description of a problem, in characters: it may quote the file.
const PROBLEM_LEN: usize = 300;
/// The most files of one directory that are looked at.
const FILES_MAX: usize = 1024;

/// The files of a directory with one of these extensions, sorted by name; none if there is no such directory. A hidden
/// one is an editor's.
fn files(directory: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let extension = path.extension().and_then(OsStr::to_str);
        let is_hidden = entry.file_name().as_bytes().starts_with(b".");
        if !is_hidden && extension.is_some_and(|extension| extensions.contains(&extension)) && !path.is_dir()
        {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            return Err(io::Error::other(format!("it has more than {FILES_MAX} files")));
        }
    }
    files.sort();
    Ok(files)
}

/// What shows that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of the file to which a path leads; `None` if there is none.
    fn of(path: &Path) -> Option<Self> {
        let stat = std::fs::metadata(path).ok()?;
        Some(Self {
            inode: (stat.dev(), stat.ino()),
            len: stat.len(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn files_are_found_by_their_extension_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.json", "a.yaml", "c.txt", "json", ".json", ".#b.json"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("directory.json")).unwrap();
        let names = |extensions: &[&str]| {
            let files = files(dir.path(), extensions).unwrap();
            files
                .iter()
                .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&["json", "yaml"]), ["a.yaml", "b.json"]);
        assert_eq!(names(&["yaml"]), ["a.yaml"]);
        assert_eq!(files(&dir.path().join("none"), &["json"]).unwrap(), [""; 0].map(PathBuf::from));
        for number in 0..=FILES_MAX {
            std::fs::write(dir.path().join(format!("{number}.json")), "").unwrap();
        }
        assert!(files(dir.path(), &["json"]).unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn what_a_short_machine_could_not_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.json"), "").unwrap();
        let kind = Kind { extensions: &["json"], limit_bytes: 9, parse: |_path, _content| Ok(()) };
        let files = Files::new(kind, vec![dir.path().to_owned()]);
        let failing = |errno: Errno| files.look_with(|_path, _limit| Err(errno.into()));
        let damaged = || files.look().unwrap().damaged().len();
        let refusal = failing(Errno::EMFILE).unwrap_err();
        assert_eq!((refusal.kind(), damaged()), (Class::ResourceExhausted, 0));
        assert!(refusal.to_string().contains("a.json"), "{refusal}");
        std::fs::write(dir.path().join("a.json"), "x").unwrap();
        assert_eq!(
            (failing(Errno::EACCES).unwrap().damaged().len(), damaged()),
            (1, 1),
            "that is the file's"
        );
    }

    #[test]
    fn a_change_is_seen_and_what_has_not_changed_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let parse =
            |_path: &Path, content: Vec<u8>| String::from_utf8(content).map_err(|error| error.to_string());
        let kind = Kind { extensions: &["json"], limit_bytes: 9, parse };
        let files = Files::new(kind, vec![dir.path().join("none"), dir.path().to_owned()]);
        let contents = || {
            let look = files.look().unwrap();
            assert!(look.directories[0].is_empty());
            look.directories[1].iter().map(|(_, content)| Arc::clone(content)).collect::<Vec<_>>()
        };
        assert!(contents().is_empty());
        std::fs::write(dir.path().join("a.json"), "one").unwrap();
        let first = contents();
        assert_eq!(*first[0], Ok("one".to_owned()));
        assert!(Arc::ptr_eq(&first[0], &contents()[0]));
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("a.json")).unwrap();
        assert_eq!(*contents()[0], Ok("two".to_owned()));
        std::fs::write(dir.path().join("b.json"), "much too long").unwrap();
        assert!(files.look().unwrap().damaged()[0].contains("b.json: it is longer than"));
        std::fs::remove_file(dir.path().join("a.json")).unwrap();
        assert_eq!(contents().len(), 1);
    }
}
