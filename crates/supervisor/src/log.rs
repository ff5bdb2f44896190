//! The log file of a container in the CRI's format: `<time> <stream> <P|F> <text>`.
//!
//! A line is split at 16 KiB: all parts but the last are marked `P`. A line whose end has not come yet is held back,
//! so that parts are marked right; what is held is bounded by that same limit. If the disk refuses, the lines are
//! counted as lost and the container goes on.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use wharf_isolation::LogFile;
use wharf_sys::fs::{Resolve, open, open_below_mode};

use crate::clock;

/// The longest text of one record, as containerd splits it.
const LINE_LIMIT_BYTES: usize = 16 * 1024;
/// When the gathered records are written.
const BATCH_BYTES: usize = 48 * 1024;

/// Which stream a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Log {
    place: LogFile,
    file: File,
    lost_records: u64,
}

/// What a stream holds back: the beginning of a line.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<u8>);

impl Log {
    /// Opens the log at its place, making the file where it is missing.
    pub(crate) fn open(place: &LogFile) -> wharf_sys::Result<Self> {
        Ok(Self { file: open_file(place)?, place: place.clone(), lost_records: 0 })
    }

    /// Opens the file anew after it was renamed; if that fails, the old one stays in use.
    pub(crate) fn reopen(&mut self) -> wharf_sys::Result<()> {
        self.file = open_file(&self.place)?;
        Ok(())
    }

    /// Writes all complete lines of `bytes`, and holds back the rest.
    pub(crate) fn write(&mut self, stream: Stream, held: &mut Held, bytes: &[u8]) {
        let mut batch = Batch::new(stream);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = LINE_LIMIT_BYTES - held.0.len();
            let window = &rest[..rest.len().min(room)];
            let (end, tag) = match window.iter().position(|&b| b == b'\n') {
                Some(end) => (end, b'F'),
                None if window.len() == room && rest.get(room) != Some(&b'\n') => (room, b'P'),
                None if window.len() == room => (room, b'F'),
                None => break,
            };
            batch.record(tag, &held.0, &rest[..end]);
            held.0.clear();
            rest = &rest[(end + usize::from(tag == b'F')).min(rest.len())..];
            if batch.bytes.len() > BATCH_BYTES {
                self.flush(&mut batch);
            }
        }
        held.0.extend_from_slice(rest);
        if held.0.is_empty() {
            held.0 = Vec::new();
        }
        self.flush(&mut batch);
    }

    /// Writes what is held back as a last line: the stream has ended.
    pub(crate) fn finish(&mut self, stream: Stream, held: &mut Held) {
        if held.0.is_empty() {
            return;
        }
        let mut batch = Batch::new(stream);
        batch.record(b'F', &std::mem::take(&mut held.0), &[]);
        self.flush(&mut batch);
    }

    fn flush(&mut self, batch: &mut Batch) {
        if batch.bytes.is_empty() {
            return;
        }
        if self.file.write_all(&batch.bytes).is_err() {
            self.lost_records += batch.records;
        }
        batch.bytes.clear();
        batch.records = 0;
    }
}

/// Records that are written together and bear one time.
struct Batch {
    header: [u8; clock::STAMP_LENGTH + 10],
    bytes: Vec<u8>,
    records: u64,
}

impl Batch {
    fn new(stream: Stream) -> Self {
        let mut header = [b' '; clock::STAMP_LENGTH + 10];
        header[..clock::STAMP_LENGTH].copy_from_slice(&clock::stamp(wharf_sys::clock::now_ns()));
        let name = match stream {
            Stream::Stdout => b" stdout F ",
            Stream::Stderr => b" stderr F ",
        };
        header[clock::STAMP_LENGTH..].copy_from_slice(name);
        Self { header, bytes: Vec::new(), records: 0 }
    }

    fn record(&mut self, tag: u8, before: &[u8], text: &[u8]) {
        self.header[clock::STAMP_LENGTH + 8] = tag;
        self.bytes.extend_from_slice(&self.header);
        self.bytes.extend_from_slice(before);
        self.bytes.extend_from_slice(text);
        self.bytes.push(b'\n');
        self.records += 1;
    }
}

/// Below the pod's log directory and through no link, so that a name cannot lead elsewhere; only a regular file, so
/// that no reader of a FIFO can stop the supervisor.
fn open_file(place: &LogFile) -> wharf_sys::Result<File> {
    let directory: OwnedFd = open(place.directory.as_path(), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open_below_mode(directory.as_fd(), &place.name, flags, 0o640, Resolve::BeneathNoLinks)?;
    let named = |errno| wharf_sys::Error::new("open", place.name.as_str(), errno);
    let stat = nix::sys::stat::fstat(&file).map_err(named)?;
    if stat.st_mode & nix::libc::S_IFMT != nix::libc::S_IFREG {
        return Err(named(nix::errno::Errno::EINVAL));
    }
    Ok(File::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_types::HostPath;

    fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let directory = HostPath::new(dir.path().to_str().unwrap()).unwrap();
        let log = Log::open(&LogFile { directory, name: "0.log".into() }).unwrap();
        (dir, log)
    }

    /// Tag and text of each record.
    fn records(dir: &tempfile::TempDir) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(dir.path().join("0.log")).unwrap();
        text.lines()
            .map(|line| {
                let mut words = line.splitn(4, ' ');
                let (stamp, stream) = (words.next().unwrap(), words.next().unwrap());
                assert_eq!((stamp.len(), stream), (30, "stdout"));
                (words.next().unwrap().to_owned(), words.next().unwrap().to_owned())
            })
            .collect()
    }

    #[test]
    fn lines_come_out_whole_however_they_come_in() {
        let input = b"one\n\ntwo with \x01 bytes\nthree\n";
        for cut in 0..input.len() {
            let (dir, mut log) = log();
            let mut held = Held::default();
            log.write(Stream::Stdout, &mut held, &input[..cut]);
            log.write(Stream::Stdout, &mut held, &input[cut..]);
            let texts: Vec<_> =
                records(&dir).into_iter().map(|(tag, text)| format!("{tag} {text}")).collect();
            assert_eq!(texts, ["F one", "F ", "F two with \x01 bytes", "F three"], "cut at {cut}");
        }
    }

    #[test]
    fn long_lines_are_split_and_the_last_part_is_marked() {
        for length in [LINE_LIMIT_BYTES - 1, LINE_LIMIT_BYTES, LINE_LIMIT_BYTES + 1, 3 * LINE_LIMIT_BYTES] {
            for chunk in [1000, LINE_LIMIT_BYTES, 1 << 20] {
                let (dir, mut log) = log();
                let mut held = Held::default();
                let line = ["x".repeat(length).as_bytes(), b"\n"].concat();
                line.chunks(chunk).for_each(|part| log.write(Stream::Stdout, &mut held, part));
                log.finish(Stream::Stdout, &mut held);
                let records = records(&dir);
                let whole: usize = records.iter().map(|(_, text)| text.len()).sum();
                assert_eq!(whole, length, "{length} in {chunk}");
                let (last, parts) = records.split_last().unwrap();
                assert_eq!(last.0, "F", "{length} in {chunk}");
                assert!(parts.iter().all(|(tag, text)| tag == "P" && text.len() == LINE_LIMIT_BYTES));
            }
        }
    }

    #[test]
    fn an_unfinished_line_is_written_at_the_end() {
        let (dir, mut log) = log();
        let mut held = Held::default();
        log.write(Stream::Stdout, &mut held, b"half");
        assert_eq!(records(&dir), []);
        log.finish(Stream::Stdout, &mut held);
        assert_eq!(records(&dir), [("F".into(), "half".into())]);
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        let (dir, mut log) = log();
        let directory = HostPath::new(dir.path().to_str().unwrap()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["../x", "link", "fifo", "missing/x"] {
            assert!(
                Log::open(&LogFile { directory: directory.clone(), name: name.into() }).is_err(),
                "{name}"
            );
        }
        std::fs::rename(dir.path().join("0.log"), dir.path().join("old")).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stdout, &mut Held::default(), b"new\n");
        assert_eq!(records(&dir), [("F".into(), "new".into())]);
    }
}
