//! The log file of a container, in the CRI's format: `<time> <stream> <P|F> <text>`.
//!
//! A line is split at a limit, usually of 16 KiB, and all its parts except the last are marked `P`. A line that is
//! still incomplete is held back, so that its parts can be marked; the same limit bounds what is held. A last line that
//! never ends is marked `P`, too: a reader then shows it as the program wrote it.
//!
//! A file may have a limit as well. A new one then takes its place under the same name, as readers expect of a log that
//! is rotated, and what the old one had is gone.
//!
//! If somebody replaces the file, the log goes on in the one that is there ([`replaced`]).
//!
//! If the disk refuses a write, the incomplete record is removed again and the missing records are counted. As soon as
//! the disk accepts something, a record says how many are missing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use wharf_isolation::{LogLimits, open_existing_log, open_log, replace_log};

use batch::{Batch, line_end};
use replaced::Renamed;

use crate::diagnostics::{self, OrWarn as _};

mod batch;
pub(crate) mod frame;
mod process;
mod replaced;
pub(crate) mod writer;

/// Which stream a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A log.
#[derive(Debug)]
struct Log {
    directory: OwnedFd,
    name: String,
    limits: LogLimits,
    /// `None` if it could not be reopened; that is retried with each record.
    file: Option<File>,
    /// The incomplete line of each stream.
    held: [Vec<u8>; 2],
    /// Empty between two calls: kept for its memory.
    batch: Batch,
    /// How many bytes of the file are known to be there.
    file_bytes: u64,
    /// The bytes in the file of a record that was not written completely.
    torn_bytes: u64,
    /// What the kubelet may put back; `None` if the file was not made by a reopening.
    renamed: Option<Renamed>,
    /// Whether what has replaced the file cannot be used.
    is_astray: bool,
    lost: Lost,
}

/// Records that are missing from the file and not mentioned in it yet.
#[derive(Debug, Default)]
struct Lost {
    records: u64,
    why: String,
}

impl Log {
    /// Opens the log below the directory, and creates the file if it is missing.
    fn open(directory: OwnedFd, name: String, limits: LogLimits) -> wharf_sys::Result<Self> {
        let mut log = Self::closed(directory, name, limits);
        let file = open_log(log.directory.as_fd(), &log.name)?;
        log.use_file(file.into());
        Ok(log)
    }

    fn use_file(&mut self, file: File) {
        self.file_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        self.file = Some(file);
    }

    /// A log whose file is opened at the first write.
    fn closed(directory: OwnedFd, name: String, limits: LogLimits) -> Self {
        Self {
            directory,
            name,
            limits,
            file: None,
            held: Default::default(),
            batch: Batch::default(),
            file_bytes: 0,
            torn_bytes: 0,
            renamed: None,
            is_astray: false,
            lost: Lost::default(),
        }
    }

    /// Reopens the file after it was renamed; if that fails, the old one stays in use. The old one also stays in use if
    /// the disk took until after the deadline: a kubelet that was told of a failure renames the old file back, and a
    /// new file would be lost with everything written to it.
    fn reopen(&mut self, deadline_ns: u64) -> wharf_sys::Result<()> {
        self.follow();
        // First, because from the moment at which the new file is made, nobody writes to the old one.
        self.mend()
            .or_warn(format_args!("an incomplete record stays at the end of the renamed log {}", self.name));
        let (file, is_new) = match open_existing_log(self.directory.as_fd(), &self.name) {
            Err(error) if error.errno == Errno::ENOENT => {
                (open_log(self.directory.as_fd(), &self.name)?, true)
            }
            found => (found?, false),
        };
        let is_late = deadline_ns != 0 && wharf_sys::clock::monotonic_ns() >= deadline_ns;
        if is_late && self.file.is_some() {
            return Err(wharf_sys::Error::new("open", &*self.name, Errno::ETIMEDOUT));
        }
        let file = File::from(file);
        if is_new {
            self.renamed = Renamed::before(&file, self.file.as_ref());
        }
        self.switch_to(file);
        Ok(())
    }

    /// Goes on in another file.
    fn switch_to(&mut self, file: File) {
        self.torn_bytes = 0;
        self.is_astray = false;
        self.use_file(file);
    }

    /// Writes all complete lines of `bytes`, and holds back the rest.
    fn write(&mut self, stream: Stream, now_ns: i64, bytes: &[u8]) {
        let mut held = std::mem::take(&mut self.held[stream as usize]);
        let mut batch = std::mem::take(&mut self.batch);
        batch.begin(stream, now_ns);
        let mut rest = bytes;
        let limit = self.limits.line_bytes as usize;
        while let Some((end, tag)) = next_part(rest, limit - held.len()) {
            batch.record(tag, &held, rest, end);
            held.clear();
            rest = &rest[(end + usize::from(tag == b'F')).min(rest.len())..];
            if batch.is_full() {
                self.append(&mut batch);
            }
        }
        held.extend_from_slice(rest);
        if !held.is_empty() {
            self.held[stream as usize] = held;
        }
        self.append(&mut batch);
        self.batch = batch;
    }

    /// Writes what is held back: the stream has ended in the middle of its last line.
    fn finish(&mut self, stream: Stream, now_ns: i64) {
        let held = std::mem::take(&mut self.held[stream as usize]);
        if !held.is_empty() {
            let mut batch = Batch::new(stream, now_ns);
            batch.record(b'P', &held, &[], 0);
            self.append(&mut batch);
        }
    }

    /// Counts records that were lost before they reached this process.
    fn lose(&mut self, records: u64, why: &str) {
        self.lost.records += records;
        why.clone_into(&mut self.lost.why);
    }

    /// Records what was lost if the disk accepts it now; returns whether nothing is left to record.
    fn settle(&mut self, now_ns: i64) -> bool {
        self.follow();
        self.mend().is_ok() && self.append_loss(now_ns).is_ok() && self.held.iter().all(Vec::is_empty)
    }

    /// Notes in the supervisor's own log what this one cannot even say that it lost. `wharf run` looks for these words.
    fn note_loss(&self) {
        let Lost { records, why } = &self.lost;
        if *records > 0 {
            diagnostics::warn(format_args!("{records} records of the log {} are lost: {why}", self.name));
        }
    }

    fn append(&mut self, batch: &mut Batch) {
        if !batch.records().is_empty() {
            let appended = self.append_loss(batch.now_ns()).map_err(|error| (0, error));
            if let Err((end, error)) = appended.and_then(|()| self.append_records(batch.records())) {
                let left = batch.records()[end..].iter().filter(|&&byte| byte == b'\n').count();
                self.lose(left as u64, &error.to_string());
            }
            batch.clear();
        }
    }

    /// Appends a record that says what is missing, if anything is.
    fn append_loss(&mut self, now_ns: i64) -> io::Result<()> {
        if self.lost.records == 0 {
            return Ok(());
        }
        let Lost { records, why } = &self.lost;
        let note = format!("wharf: {records} records of this log are lost here: {why}");
        let mut batch = Batch::new(Stream::Stderr, now_ns);
        batch.record(b'F', &[], note.as_bytes(), note.len());
        self.append_records(batch.records()).map_err(|(_none, error)| error)?;
        self.lost = Lost::default();
        Ok(())
    }

    /// Appends records. On an error a prefix of whole records is written, and the position of the rest is returned.
    fn append_records(&mut self, records: &[u8]) -> Result<(), (usize, io::Error)> {
        self.mend().map_err(|error| (0, error))?;
        if self.file.is_none() {
            let file = open_log(self.directory.as_fd(), &self.name);
            self.use_file(file.map_err(|error| (0, error.errno.into()))?.into());
        }
        self.keep_within(records.len() as u64);
        let Some(file) = &mut self.file else { return Ok(()) };
        let Err((written, error)) = write_all(file, records) else {
            self.file_bytes += records.len() as u64;
            return Ok(());
        };
        self.file_bytes += written as u64;
        let whole = records[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.torn_bytes = (written - whole) as u64;
        self.mend().or_warn(format_args!("log {} stays torn until its next record", self.name));
        Err((whole, error))
    }

    /// Begins a new file if these bytes would make the present one longer than it may be. If that is not possible, the
    /// present one goes on.
    fn keep_within(&mut self, bytes: u64) {
        let limit = self.limits.file_bytes;
        if limit != 0 && self.file_bytes > 0 && self.file_bytes + bytes > limit {
            match replace_log(self.directory.as_fd(), &self.name) {
                Ok(file) => self.use_file(file.into()),
                Err(error) => diagnostics::warn(format_args!("log {} cannot begin anew: {error}", self.name)),
            }
        }
    }

    /// Removes the beginning of a record that the disk did not accept completely.
    fn mend(&mut self) -> io::Result<()> {
        if let (Some(file), 1..) = (&self.file, self.torn_bytes) {
            file.set_len(file.metadata()?.len().saturating_sub(self.torn_bytes))?;
            self.file_bytes = self.file_bytes.saturating_sub(self.torn_bytes);
            self.torn_bytes = 0;
        }
        Ok(())
    }
}

/// The length and the tag of the next record: the rest of a line, or as much of it as there is room for. `None` if the
/// line may still go on.
fn next_part(bytes: &[u8], room: usize) -> Option<(usize, u8)> {
    let window = &bytes[..bytes.len().min(room)];
    match line_end(window) {
        Some(end) => Some((end, b'F')),
        None if window.len() < room => None,
        // The line ends with this part, although its end is not in the window.
        None if bytes.get(room) == Some(&b'\n') => Some((room, b'F')),
        None => Some((room, b'P')),
    }
}

/// Writes everything, or returns how much was written before the error.
fn write_all(file: &mut File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use std::path::Path;

    pub(super) fn open_directory(path: &Path) -> OwnedFd {
        wharf_sys::fs::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY).unwrap()
    }

    pub(super) fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(open_directory(dir.path()), "0.log".into(), LogLimits::default()).unwrap();
        (dir, log)
    }

    /// Tag and text of each record; `!` is before those of standard error.
    pub(super) fn records(dir: &Path) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(dir.join("0.log")).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "the last record is whole");
        text.lines()
            .map(|line| {
                let mut words = line.splitn(4, ' ');
                assert_eq!(words.next().unwrap().len(), 30);
                let mark = if words.next().unwrap() == "stdout" { "" } else { "!" };
                (words.next().unwrap().to_owned(), format!("{mark}{}", words.next().unwrap()))
            })
            .collect()
    }

    #[test]
    fn lines_come_out_whole_however_they_come_in() {
        let input = b"one\n\ntwo with \x01 bytes\nthree\n";
        for cut in 0..input.len() {
            let (dir, mut log) = log();
            log.write(Stream::Stdout, 0, &input[..cut]);
            log.write(Stream::Stdout, 0, &input[cut..]);
            let texts: Vec<_> =
                records(dir.path()).into_iter().map(|(tag, text)| format!("{tag} {text}")).collect();
            assert_eq!(texts, ["F one", "F ", "F two with \x01 bytes", "F three"], "cut at {cut}");
        }
    }

    #[test]
    fn long_lines_are_split_and_the_last_part_is_marked() {
        for limit in [1024, 16 << 10, 100_000] {
            for (length, chunk) in [(limit - 1, 1000), (limit, limit), (limit + 1, 1 << 20), (3 * limit, 700)]
            {
                let (dir, mut log) = log();
                log.limits.line_bytes = u32::try_from(limit).unwrap();
                let line = ["x".repeat(length).as_bytes(), b"\n"].concat();
                line.chunks(chunk).for_each(|part| log.write(Stream::Stdout, 0, part));
                log.finish(Stream::Stdout, 0);
                let records = records(dir.path());
                let whole: usize = records.iter().map(|(_, text)| text.len()).sum();
                assert_eq!(whole, length, "{length} in {chunk}");
                let (last, parts) = records.split_last().unwrap();
                assert_eq!(last.0, "F", "{length} in {chunk}");
                assert!(parts.iter().all(|(tag, text)| tag == "P" && text.len() == limit));
            }
        }
    }

    #[test]
    fn a_file_that_is_long_enough_begins_anew() {
        let (dir, mut log) = log();
        log.limits.file_bytes = 1000;
        for number in 0..100 {
            log.write(Stream::Stdout, 0, format!("{number:02}\n").as_bytes());
            let metadata = std::fs::metadata(dir.path().join("0.log")).unwrap();
            assert!(metadata.len() <= 1000, "{number}: {}", metadata.len());
        }
        let texts: Vec<_> = records(dir.path()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts.last().unwrap(), "99");
        let first: usize = texts[0].parse().unwrap();
        let expected: Vec<_> = (first..100).map(|number| format!("{number:02}")).collect();
        assert_eq!(texts, expected, "what it has is whole");
        assert!(first > 50);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_cannot_begin_anew_goes_on() {
        let (dir, mut log) = log();
        log.limits.file_bytes = 50;
        std::fs::create_dir(dir.path().join("0.log.new")).unwrap();
        for text in ["one\n", "two\n", "three\n"] {
            log.write(Stream::Stdout, 0, text.as_bytes());
        }
        assert_eq!(records(dir.path()).len(), 3);
    }

    #[test]
    fn a_last_line_without_an_end_gets_none() {
        let (dir, mut log) = log();
        log.write(Stream::Stdout, 0, b"half");
        log.write(Stream::Stderr, 0, b"other\n");
        assert_eq!(records(dir.path()), [("F".into(), "!other".into())]);
        assert!(!log.settle(0), "something is held back");
        log.finish(Stream::Stdout, 0);
        assert!(log.settle(0));
        assert_eq!(records(dir.path())[1..], [("P".into(), "half".into())]);
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        let (dir, mut log) = log();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["../x", "link", "fifo", "missing/x"] {
            let (directory, limits) = (open_directory(dir.path()), LogLimits::default());
            assert!(Log::open(directory, name.into(), limits).is_err(), "{name}");
        }
        // Nor can another directory in place of the one that was opened.
        let moved = dir.path().with_extension("moved");
        std::fs::rename(dir.path(), &moved).unwrap();
        std::fs::create_dir(dir.path()).unwrap();
        std::fs::rename(moved.join("0.log"), moved.join("old")).unwrap();
        log.reopen(0).unwrap();
        log.write(Stream::Stdout, 0, b"new\n");
        assert_eq!(records(&moved), [("F".into(), "new".into())]);
        std::fs::remove_dir_all(moved).unwrap();
    }

    #[test]
    fn lost_records_are_counted_in_the_log() {
        let (dir, mut log) = log();
        log.write(Stream::Stdout, 0, b"before\n");
        let full = File::options().append(true).open("/dev/full").unwrap();
        let file = log.file.replace(full);
        log.write(Stream::Stdout, 0, b"one\ntwo\nthr");
        assert!(!log.settle(0));
        log.write(Stream::Stdout, 0, b"ee\n");
        log.lose(4, "of another reason");
        log.file = file;
        assert!(log.settle(0));
        log.write(Stream::Stdout, 0, b"after\n");
        let note = "!wharf: 7 records of this log are lost here: of another reason";
        let texts: Vec<_> = records(dir.path()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["before", note, "after"]);
    }

    #[test]
    fn a_torn_record_is_taken_back() {
        let (dir, mut log) = log();
        log.write(Stream::Stdout, 0, b"before\n");
        let path = dir.path().join("0.log");
        File::options().append(true).open(&path).unwrap().write_all(b"2026-").unwrap();
        log.torn_bytes = 5;
        log.write(Stream::Stdout, 0, b"after\n");
        let texts: Vec<_> = records(dir.path()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["before", "after"]);
    }

    #[test]
    fn a_log_that_cannot_be_opened_again_is_tried_with_each_record() {
        let (dir, _log) = log();
        let path = dir.path().join("0.log");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let mut log = Log::closed(open_directory(dir.path()), "0.log".into(), LogLimits::default());
        log.write(Stream::Stdout, 0, b"lost\n");
        std::fs::remove_dir(&path).unwrap();
        log.write(Stream::Stdout, 0, b"there\n");
        let texts: Vec<_> = records(dir.path()).into_iter().map(|(_, text)| text).collect();
        assert!(texts[0].starts_with("!wharf: 1 records") && texts[1..] == ["there"], "{texts:?}");
    }
}
