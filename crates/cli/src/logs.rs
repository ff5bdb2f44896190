//! `wharf logs`, and the log that `wharf run` shows: reads the file that the supervisor writes.

mod last;
mod line;
mod tail;

use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wharf_cri_api::v1::{ContainerStatus, PodSandboxStatusRequest};

use crate::args::Logs;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output;
use crate::{regular, remove, time, wait};

pub(crate) use last::last_lines;
use line::Printer;

/// How often a growing file is read again.
const LOOK_AGAIN: Duration = Duration::from_millis(30);
const CHUNK_BYTES: usize = 64 * 1024;
/// As much of a record is held until its end is there. The supervisor's are far shorter; others are shown in pieces.
const RECORD_LIMIT_BYTES: usize = 1024 * 1024;

/// Which part of a log to show, and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Only this many lines from the end.
    pub(crate) tail: Option<usize>,
    /// Only lines that are no older than this.
    pub(crate) since_ns: Option<i64>,
    pub(crate) timestamps: bool,
}

pub(crate) async fn logs(daemon: &mut Daemon, logs: Logs) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let container = listing.container(&logs.name)?;
    let status = daemon.container_status(&container.id).await?;
    let selection = Selection { tail: logs.tail, since_ns: logs.since, timestamps: logs.timestamps };
    let mut reader = Reader::of(&status, &logs.name, &selection)?;
    if logs.follow {
        reader.follow(wait::for_end(daemon.clone(), container.id.clone())).await?;
    } else {
        reader.read_all()?;
    }
    // A kubelet's containers each have a directory, in which all logs have the same names.
    let is_alone = listing.pod_of(container).is_some_and(|pod| listing.containers_of(pod).count() == 1);
    if is_alone || Path::new(&status.log_path).parent().is_some_and(remove::is_of_a_pod) {
        report_loss(daemon, &container.pod_sandbox_id, &status).await;
    }
    Ok(())
}

/// Says on standard error what a log could not even say that it lost, as on a disk that is still full. The pod's
/// supervisor has noted it.
pub(crate) async fn report_loss(daemon: &mut Daemon, pod_id: &str, container: &ContainerStatus) {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod_id.to_owned(), verbose: true };
    // Without an answer nothing is known to be lost.
    let Ok(answer) = daemon.runtime.pod_sandbox_status(request).await else { return };
    let noted = answer.into_inner().info.remove("supervisorLog").unwrap_or_default();
    let lines: Vec<String> = serde_json::from_str(&noted).unwrap_or_default();
    let shown = &container.log_path;
    for loss in lines.iter().filter_map(|line| loss(line, container)) {
        output::report(&format!(
            "some output is missing: {loss}\n  make room on the disk of {shown}, and run it again"
        ));
    }
}

/// What a line of a supervisor's log, which begins with its time, says that the log of this container lost. An earlier
/// container may have had a log of the same name.
fn loss<'a>(line: &'a str, container: &ContainerStatus) -> Option<&'a str> {
    let (at, text) = line.split_once(' ')?;
    let log = Path::new(&container.log_path).file_name()?.to_str()?;
    let words = format!(" records of the log {log} are lost: ");
    (time::parse(at)? >= container.created_at && text.contains(&words)).then_some(text)
}

/// A log that is being read.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    /// The beginning of a record whose end has not been written yet.
    rest: Vec<u8>,
    printer: Printer,
}

impl Reader {
    /// Opens a container's log.
    pub(crate) fn of(container: &ContainerStatus, name: &str, selection: &Selection) -> Result<Self, Error> {
        match Self::open(PathBuf::from(&container.log_path), selection) {
            // A container without a log has a path all the same, at which there never is a file.
            Err(Error::File { cause, .. })
                if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Err(Error::NoLog { name: name.to_owned() })
            }
            opened => opened,
        }
    }

    fn open(path: PathBuf, selection: &Selection) -> Result<Self, Error> {
        let mut file = open(&path)?;
        if let Some(lines) = selection.tail {
            let start = tail::start(&mut file, lines);
            start.and_then(|start| file.seek(SeekFrom::Start(start))).map_err(failed(&path))?;
        }
        Ok(Self { path, file, rest: Vec::new(), printer: Printer::new(selection) })
    }

    /// Shows everything in the file.
    pub(crate) fn read_all(&mut self) -> Result<(), Error> {
        while self.read_some()? {}
        Ok(())
    }

    /// Shows what is written until `end` completes, and returns its result.
    pub(crate) async fn follow<T>(
        &mut self,
        end: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::pin!(end);
        loop {
            self.read_all()?;
            self.turn_over()?;
            tokio::select! {
                ended = &mut end => {
                    // The supervisor has written everything before it reports the end.
                    self.read_all()?;
                    // The last lines may be in a file that was opened since the last read.
                    self.turn_over()?;
                    return ended;
                }
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Shows the next chunk; returns false at the end of the file.
    fn read_some(&mut self) -> Result<bool, Error> {
        let held = self.rest.len();
        self.rest.resize(held + CHUNK_BYTES, 0);
        let read = self.file.read(&mut self.rest[held..]).map_err(failed(&self.path));
        self.rest.truncate(held + *read.as_ref().unwrap_or(&0));
        let shown = shown_bytes(&self.rest);
        for record in self.rest[..shown].split_inclusive(|&byte| byte == b'\n') {
            self.printer.print(record)?;
        }
        self.rest.drain(..shown);
        read.map(|read| read > 0)
    }

    /// At the end of a file that was renamed or truncated, continues with the file in its place.
    fn turn_over(&mut self) -> Result<(), Error> {
        let now = match std::fs::metadata(&self.path) {
            Ok(now) => now,
            // Between the rename and the reopening there is no file.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(&self.path)(error)),
        };
        let open_one = self.file.metadata().map_err(failed(&self.path))?;
        if now.ino() != open_one.ino() || now.dev() != open_one.dev() {
            // What was written between the last read and the rename.
            self.read_all()?;
            self.file = open(&self.path)?;
            self.read_all()?;
        } else if now.len() < self.file.stream_position().map_err(failed(&self.path))? {
            self.file.rewind().map_err(failed(&self.path))?;
            self.rest.clear();
        }
        Ok(())
    }
}

/// How much of what is held is shown: what has an end, or everything if it is too much to be held.
fn shown_bytes(held: &[u8]) -> usize {
    match held.iter().rposition(|&byte| byte == b'\n') {
        Some(feed) => feed + 1,
        None if held.len() >= RECORD_LIMIT_BYTES => held.len(),
        None => 0,
    }
}

fn open(path: &Path) -> Result<File, Error> {
    regular::open(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    |cause| Error::File { path: path.to_owned(), cause }
}

/// Writes one piece of a container's output.
fn show(stream: output::Stream, bytes: &[u8]) -> Result<(), Error> {
    output::bytes(stream, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(dir: &tempfile::TempDir, text: &str) -> (Reader, PathBuf) {
        let path = dir.path().join("x.log");
        std::fs::write(&path, text).unwrap();
        (Reader::open(path.clone(), &Selection::default()).unwrap(), path)
    }

    /// The position of a reader in its file, and the length of the incomplete record that it holds back.
    fn place(reader: &mut Reader) -> (u64, usize) {
        (reader.file.stream_position().unwrap(), reader.rest.len())
    }

    #[test]
    fn a_log_is_followed_into_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let (mut reader, path) = reader(&dir, "t stdout F one\nt std");
        reader.read_all().unwrap();
        assert_eq!(place(&mut reader), (20, 5), "an unfinished record is held back");
        std::fs::rename(&path, dir.path().join("x.log.1")).unwrap();
        reader.turn_over().unwrap();
        assert_eq!(place(&mut reader), (20, 5), "nothing is in its place yet");
        std::fs::write(dir.path().join("x.log.1"), "t stdout F one\nt stdout F two\n").unwrap();
        std::fs::write(&path, "t stdout F three\n").unwrap();
        reader.turn_over().unwrap();
        assert_eq!(place(&mut reader), (17, 0));
    }

    #[tokio::test]
    async fn what_came_into_a_successor_just_before_the_end_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (mut reader, path) = reader(&dir, "t stdout F one\n");
        let end = async {
            std::fs::rename(&path, dir.path().join("x.log.1")).unwrap();
            std::fs::write(&path, "t stdout F three\n").unwrap();
            Ok(())
        };
        reader.follow(end).await.unwrap();
        assert_eq!(place(&mut reader), (17, 0));
    }

    #[test]
    fn a_log_that_was_cut_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let (mut reader, path) = reader(&dir, "t stdout F one\nt stdout F two\n");
        reader.read_all().unwrap();
        std::fs::write(&path, "t stdout F 3\n").unwrap();
        reader.turn_over().unwrap();
        reader.read_all().unwrap();
        assert_eq!(place(&mut reader), (13, 0));
    }

    #[test]
    fn only_losses_of_the_same_log_are_told() {
        let line = "2026-01-01T00:00:01Z 3 records of the log web.log are lost: No space left on device";
        let of = |path: &str, created: &str| ContainerStatus {
            log_path: path.to_owned(),
            created_at: time::parse(created).unwrap(),
            ..ContainerStatus::default()
        };
        let (log, same, later) =
            ("/var/log/wharf/web-1/web.log", "2026-01-01T00:00:01Z", "2026-01-01T00:00:01.000000001Z");
        assert_eq!(loss(line, &of(log, same)), line.split_once(' ').map(|(_time, text)| text));
        assert_eq!(loss(line, &of(log, later)), None, "it tells of a container before this one");
        assert_eq!(loss(line, &of("/var/log/wharf/web-1/b.log", same)), None);
        assert_eq!([loss("", &of(log, same)), loss("some other words", &of(log, same))], [None; 2]);
    }

    #[test]
    fn a_record_without_an_end_is_not_held_for_ever() {
        let held = vec![b'x'; RECORD_LIMIT_BYTES];
        assert_eq!((shown_bytes(b"a\nb\nc"), shown_bytes(&held[1..])), (4, 0));
        assert_eq!(shown_bytes(&held), RECORD_LIMIT_BYTES);
    }

    #[test]
    fn a_container_without_a_log_is_an_error() {
        // An earlier wharfd tells no path.
        for path in ["", "/no/such.log", "/dev/null/no-log"] {
            let status = ContainerStatus { log_path: path.to_owned(), ..ContainerStatus::default() };
            let missing = Reader::of(&status, "x", &Selection::default());
            assert!(matches!(missing, Err(Error::NoLog { .. })), "{path}: {missing:?}");
        }
    }
}
