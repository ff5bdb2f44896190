//! Finds where the last lines of a log begin.

use std::io::{self, Read, Seek, SeekFrom};

use super::line::Record;
use crate::output::Stream;

/// The first window that is read from the end; each next one is twice as long.
const WINDOW_BYTES: u64 = 64 * 1024;

/// The offset of the first of the last `lines` lines. A line made of several records counts once.
pub(crate) fn start(file: &mut (impl Read + Seek), lines: usize) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut window = WINDOW_BYTES;
    loop {
        let from = end.saturating_sub(window);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.by_ref().take(end - from).read_to_end(&mut bytes)?;
        let begins = beginnings(&bytes, from);
        // One more than needed: the first in the window may be the end of a longer line.
        if from == 0 || begins.len() > lines {
            let first = begins.len().saturating_sub(lines);
            return Ok(begins.get(first).copied().unwrap_or(end));
        }
        window *= 2;
    }
}

/// The offsets at which lines begin in the part of a file that begins at `from`.
fn beginnings(bytes: &[u8], from: u64) -> Vec<u64> {
    let mut begins = Vec::new();
    let mut at = from;
    // For each stream, because the parts of both may alternate, and a stream's last line may be incomplete.
    let mut open = [false; 2];
    // In the middle of a file it is not known what the first bytes belong to.
    let mut is_known = from == 0;
    for bytes in bytes.split_inclusive(|&byte| byte == b'\n') {
        let begins_line = match Record::parse(bytes) {
            Some(record) => {
                !std::mem::replace(&mut open[usize::from(record.stream == Stream::Stderr)], record.partial)
            }
            None => true,
        };
        if begins_line && is_known {
            begins.push(at);
        }
        // A record that follows a part is still in the middle of a line.
        is_known |= begins_line;
        at += bytes.len() as u64;
    }
    begins
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn tail(log: &str, lines: usize) -> String {
        let at = start(&mut Cursor::new(log.as_bytes()), lines).unwrap();
        log[usize::try_from(at).unwrap()..].to_owned()
    }

    #[test]
    fn the_last_lines_are_found() {
        let log = "t stdout F a\nt stdout P b\nt stdout P c\nt stdout F d\nt stderr F e\n";
        assert_eq!(tail(log, 0), "");
        assert_eq!(tail(log, 1), "t stderr F e\n");
        assert_eq!(tail(log, 2), "t stdout P b\nt stdout P c\nt stdout F d\nt stderr F e\n");
        assert_eq!(tail(log, 3), log);
        assert_eq!((tail(log, 99), tail("", 5)), (log.into(), String::new()));
    }

    #[test]
    fn a_last_line_without_an_end_is_a_line_of_its_stream() {
        let log = "t stdout F a\nt stdout P end\nt stderr F b\nt stderr P c\nt stderr F d\n";
        assert_eq!(tail(log, 1), "t stderr P c\nt stderr F d\n");
        assert_eq!(tail(log, 2), "t stderr F b\nt stderr P c\nt stderr F d\n");
        assert_eq!(tail(log, 4), log);
    }

    #[test]
    fn a_long_log_is_read_from_its_end() {
        let line = |number: usize| format!("t stdout F {number:0>200}\n");
        let log: String = (0..5000).map(line).collect();
        for lines in [1, 100, 300, 4999, 5000] {
            let want: String = (5000 - lines..5000).map(line).collect();
            assert!(tail(&log, lines) == want, "{lines}");
        }
    }

    #[test]
    fn a_line_longer_than_the_window_is_whole() {
        let part = format!("t stdout P {}\n", "x".repeat(16 * 1024));
        let log = format!("t stdout F before\n{}t stdout F end\n", part.repeat(20));
        assert!(tail(&log, 1) == log["t stdout F before\n".len()..]);
    }
}
