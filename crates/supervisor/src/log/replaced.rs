//! What becomes of a log whose file is replaced: it goes on in the one that is there. What the present one has is gone:
//! somebody may have removed it on purpose, to hide a secret or to free its space.
//!
//! But a kubelet that gets no answer when it has a log reopened, because wharfd was killed, puts the renamed file back
//! over the new one. What the new one has is then added to the old one. The log writer looks at each log once a second,
//! before the kubelet may rotate it again.

use std::fs::{File, Metadata};
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use wharf_isolation::open_existing_log;
use wharf_sys::fs::proc_path;

use super::Log;
use crate::diagnostics::{self, OrWarn as _};

/// The file that had the log's name before a reopening found none of this name and made a new one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renamed {
    /// Device and inode; `None` if it was not open.
    id: Option<(u64, u64)>,
    /// Nobody has written to it since then. If it is removed, another file may soon have its inode.
    written_until: (i64, i64),
}

fn id_of(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn written_at(file: &Metadata) -> (i64, i64) {
    (file.mtime(), file.mtime_nsec())
}

impl Renamed {
    /// The one that was open before a new file was made.
    pub(super) fn before(made: &File, open: Option<&File>) -> Option<Self> {
        let open = open.map(File::metadata).transpose().ok()?;
        // One that is removed cannot be put back.
        let is_removed = open.as_ref().is_some_and(|open| open.nlink() == 0);
        let written_until = written_at(&made.metadata().ok()?);
        (!is_removed).then(|| Self { id: open.as_ref().map(id_of), written_until })
    }

    fn is(self, file: &Metadata) -> bool {
        self.id.is_none_or(|id| id == id_of(file)) && written_at(file) <= self.written_until
    }
}

impl Log {
    /// Goes on in the file that has replaced the present one, if one has.
    pub(super) fn follow(&mut self) {
        let is_gone = |file: &File| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0);
        if !self.file.as_ref().is_some_and(is_gone) {
            return;
        }
        match self.replacement() {
            Ok(file) => {
                self.renamed = None;
                self.switch_to(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.is_astray = false,
            // Once for each: it is looked again each second, and the supervisor's own log has a bound.
            Err(error) => {
                if !std::mem::replace(&mut self.is_astray, true) {
                    diagnostics::warn(format_args!(
                        "log {} was replaced, and the file in its place cannot be used: {error}",
                        self.name
                    ));
                }
            }
        }
    }

    /// The file with the log's name; if the kubelet has put it back, with what the present one has. What the disk does
    /// not accept of that is lost: a file that nobody can remove would keep it full.
    fn replacement(&mut self) -> io::Result<File> {
        let file = open_existing_log(self.directory.as_fd(), &self.name).map_err(|error| error.errno)?;
        let mut file = File::from(file);
        let metadata = file.metadata()?;
        if self.renamed.is_some_and(|renamed| renamed.is(&metadata))
            && let Err(error) = self.add_to(&mut file)
        {
            file.set_len(metadata.len()).or_warn(format_args!("log {} has a part twice", self.name));
            self.lose(self.count_records(), &error.to_string());
        }
        Ok(file)
    }

    /// Adds what the present file has to another one.
    fn add_to(&mut self, file: &mut File) -> io::Result<()> {
        self.mend()?;
        self.read_present().and_then(|mut present| io::copy(&mut present, file)).map(drop)
    }

    /// How many records the present file has; 1 if it cannot be read.
    fn count_records(&self) -> u64 {
        let lines = self.read_present().map(|present| BufReader::new(present).split(b'\n'));
        lines.map_or(1, |lines| lines.map_while(Result::ok).count().max(1) as u64)
    }

    fn read_present(&self) -> io::Result<File> {
        let present = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        File::open(proc_path(present.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use wharf_isolation::LogLimits;
    use wharf_sys::mount::{self, Attributes};

    use super::super::Stream;
    use super::super::tests::{log, open_directory, records};
    use super::*;

    fn texts(dir: &Path) -> Vec<String> {
        records(dir).into_iter().map(|(_, text)| text).collect()
    }

    /// A file with a text; whoever has written it has done so after all that has happened to the log.
    fn write_later(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
        File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
    }

    #[test]
    fn each_thing_that_cannot_be_used_in_place_of_a_log_is_told_of() {
        let (dir, mut log) = log();
        let path = dir.path().join("0.log");
        std::fs::remove_file(&path).unwrap();
        for number in 0..2 {
            std::fs::create_dir(&path).unwrap();
            log.follow();
            assert!(log.is_astray, "{number}");
            std::fs::remove_dir(&path).unwrap();
            log.follow();
            assert!(!log.is_astray, "{number}: it is gone, and the next one is another");
        }
    }

    /// As an editor, `sed -i` and `rm` with `touch` do it.
    #[test]
    fn what_somebody_has_removed_from_a_log_stays_removed() {
        const EDITED: &str = "1970-01-01T00:00:00.000000000Z stdout F edited\n";
        for rotations in 0..2 {
            for text in [EDITED, ""] {
                let (dir, mut log) = log();
                let [path, new] = ["0.log", "new"].map(|name| dir.path().join(name));
                log.write(Stream::Stdout, 0, b"secret\n");
                for _ in 0..rotations {
                    std::fs::rename(&path, dir.path().join("rotated")).unwrap();
                    log.reopen(0).unwrap();
                    log.write(Stream::Stdout, 0, b"secret\n");
                }
                write_later(&new, text);
                std::fs::rename(&new, &path).unwrap();
                log.follow();
                log.write(Stream::Stdout, 0, b"next\n");
                let expected = [&["edited"][..text.len().min(1)], &["next"]].concat();
                assert_eq!(texts(dir.path()), expected, "{rotations}");
            }
        }
    }

    #[test]
    fn only_the_file_that_was_renamed_is_taken_for_one_that_was_put_back() {
        type Replace = fn(&Path, &Path, &Path);
        let rows: [(&str, Replace); 3] = [
            ("another one, which is older", |older, _, path| std::fs::rename(older, path).unwrap()),
            ("one that may have its inode", |_, rotated, path| {
                write_later(rotated, "");
                std::fs::rename(rotated, path).unwrap();
            }),
            ("a log that was rotated once more and removed", |_, rotated, path| {
                std::fs::rename(path, rotated).unwrap();
                std::fs::write(path, "").unwrap();
                std::fs::remove_file(rotated).unwrap();
            }),
        ];
        for (what, replace) in rows {
            let (dir, mut log) = log();
            let [path, rotated, older] = ["0.log", "rotated", "older"].map(|name| dir.path().join(name));
            std::fs::write(&older, "").unwrap();
            std::fs::rename(&path, &rotated).unwrap();
            log.reopen(0).unwrap();
            log.write(Stream::Stdout, 0, b"gone\n");
            replace(&older, &rotated, &path);
            log.follow();
            log.write(Stream::Stdout, 0, b"next\n");
            assert_eq!(texts(dir.path()), ["next"], "{what}");
        }
    }

    /// A log writer that has begun with the reopening has not had the old file open.
    #[test]
    fn a_file_that_was_renamed_before_the_log_was_open_can_be_put_back() {
        let (dir, mut first) = log();
        first.write(Stream::Stdout, 0, b"one\n");
        let [path, rotated] = ["0.log", "rotated"].map(|name| dir.path().join(name));
        std::fs::rename(&path, &rotated).unwrap();
        let mut log = Log::closed(open_directory(dir.path()), "0.log".into(), LogLimits::default());
        log.reopen(0).unwrap();
        log.write(Stream::Stdout, 0, b"two\n");
        std::fs::rename(&rotated, &path).unwrap();
        assert!(log.settle(0));
        assert_eq!(texts(dir.path()), ["one", "two"]);
    }

    /// The disk has room for two blocks, and what is to be added does not fit into the rest of the first.
    #[test]
    fn what_a_full_disk_does_not_accept_is_counted_and_its_space_is_free() {
        let disk = mount::new_filesystem("tmpfs", &[("size", "8k")], Attributes::NONE).unwrap();
        let dir = proc_path(disk.as_fd());
        let [path, rotated] = ["0.log", "rotated"].map(|name| dir.join(name));
        let mut log = Log::open(open_directory(&dir), "0.log".into(), LogLimits::default()).unwrap();
        let long = "x".repeat(3900);
        log.write(Stream::Stdout, 0, format!("{long}\n").as_bytes());
        std::fs::rename(&path, &rotated).unwrap();
        log.reopen(0).unwrap();
        log.write(Stream::Stdout, 0, format!("{0}\n{0}\n", "y".repeat(100)).as_bytes());
        std::fs::rename(&rotated, &path).unwrap();
        log.follow();
        log.write(Stream::Stdout, 0, b"next\n");
        let [first, note, next] = texts(&dir).try_into().unwrap();
        assert_eq!((first, next.as_str()), (long, "next"));
        assert!(note.starts_with("!wharf: 2 records of this log are lost here: No space"), "{note}");
    }

    /// As the kubelet does it if its call to reopen the log has no answer.
    #[test]
    fn what_was_written_before_the_old_file_was_put_back_is_kept() {
        for writes_more in [true, false] {
            let (dir, mut log) = log();
            let [path, rotated] = ["0.log", "rotated"].map(|name| dir.path().join(name));
            log.write(Stream::Stdout, 0, b"one\n");
            std::fs::rename(&path, &rotated).unwrap();
            log.reopen(0).unwrap();
            log.write(Stream::Stdout, 1, b"two\n");
            std::fs::rename(&rotated, &path).unwrap();
            if writes_more {
                log.write(Stream::Stdout, 1, b"three\n");
            }
            assert!(log.settle(1));
            let texts: Vec<_> = records(dir.path()).into_iter().map(|(_, text)| text).collect();
            assert_eq!(texts, &["one", "two", "three"][..2 + usize::from(writes_more)]);
            // One that somebody has removed stays so.
            std::fs::remove_file(&path).unwrap();
            log.write(Stream::Stdout, 1, b"four\n");
            assert!(log.settle(1) && !path.exists());
        }
    }
}
