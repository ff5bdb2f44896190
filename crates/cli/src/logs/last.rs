//! The last lines of a container's log, as `wharf explain` shows them: the parts of a line are together, whatever the
//! other stream has between them.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use wharf_cri_api::v1::ContainerStatus;

use super::line::Record;
use crate::output::Stream;
use crate::{regular, time};

/// How much of a log's end is read.
const END_BYTES: u64 = 64 * 1024;
/// How much of a line is shown.
const LINE_CHARS: usize = 300;
const CHAR_BYTES: usize = 4;

/// The last lines of a container's log, each cut to a bearable length; none if there is no log.
pub(crate) fn last_lines(container: &ContainerStatus, lines: usize) -> Vec<String> {
    let end = end(Path::new(&container.log_path)).unwrap_or_default();
    // A successor continues the log of the one before it.
    let mut all = cut_lines(&end, container.created_at);
    all.split_off(all.len().saturating_sub(lines))
}

/// The last records of a log.
fn end(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = regular::open(log)?;
    let from = file.metadata()?.len().saturating_sub(END_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(END_BYTES).read_to_end(&mut end)?;
    if from > 0 {
        // It begins in the middle of a record.
        let feed = end.iter().position(|&byte| byte == b'\n');
        end.drain(..feed.map_or(end.len(), |feed| feed + 1));
    }
    Ok(end)
}

/// The lines of these records that are no older than this, in the order of their beginnings.
fn cut_lines(records: &[u8], since_ns: i64) -> Vec<String> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    // The line of standard output and of standard error that goes on.
    let mut open = [None; 2];
    for bytes in records.split_inclusive(|&byte| byte == b'\n') {
        let Some(record) = Record::parse(bytes) else {
            lines.push(bytes.strip_suffix(b"\n").unwrap_or(bytes).to_vec());
            continue;
        };
        if time::parse(record.stamp).is_some_and(|at| at < since_ns) {
            continue;
        }
        let open = &mut open[usize::from(record.stream == Stream::Stderr)];
        let line = open.take().unwrap_or(lines.len());
        lines.resize(lines.len().max(line + 1), Vec::new());
        let room = (LINE_CHARS * CHAR_BYTES).saturating_sub(lines[line].len());
        lines[line].extend(record.text.iter().take(room));
        *open = record.partial.then_some(line);
    }
    let shown = |line: &Vec<u8>| {
        // A terminal ends its lines with both.
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        String::from_utf8_lossy(line).chars().take(LINE_CHARS).collect()
    };
    lines.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last ones of a log with these records.
    fn last(log: &str, lines: usize) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, log).unwrap();
        let status = ContainerStatus {
            log_path: file.path().display().to_string(),
            created_at: time::parse("2026-01-01T00:00:02Z").unwrap(),
            ..ContainerStatus::default()
        };
        last_lines(&status, lines)
    }

    #[test]
    fn the_last_lines_are_the_containers_own() {
        let log = "2026-01-01T00:00:01Z stdout F of the one before\n2026-01-01T00:00:03Z stdout P on\n\
                   2026-01-01T00:00:03Z stdout F e\n2026-01-01T00:00:04Z stderr F two\r\nodd\n";
        assert_eq!(last(log, 9), ["one", "two", "odd"]);
        assert_eq!(last(log, 2), ["two", "odd"]);
        assert_eq!(last_lines(&ContainerStatus::default(), 9), [""; 0]);
    }

    #[test]
    fn however_long_others_are_the_last_line_is_shown() {
        let record = |kind: &str, text: &str| format!("2026-01-01T00:00:03Z {kind} {text}\n");
        let long = "ü".repeat(10_000);
        let long_lines = record("stdout F", &long).repeat(9) + &record("stdout F", "the reason");
        let shown = last(&long_lines, 10);
        assert_eq!(shown.last().unwrap(), "the reason");
        assert!(shown[..shown.len() - 1].iter().all(|line| *line == "ü".repeat(LINE_CHARS)), "{shown:?}");
        let one_line = record("stdout P", &long).repeat(9);
        assert_eq!(last(&(one_line + &record("stderr F", "the reason")), 10).pop().unwrap(), "the reason");
    }

    #[test]
    fn no_more_than_the_end_is_read() {
        assert_eq!(last(&"x".repeat(1_000_000), 10), [""; 0], "it has no whole record");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "x\n".repeat(1_000_000)).unwrap();
        assert_eq!(end(file.path()).unwrap().len() as u64, END_BYTES - 2);
    }
}
