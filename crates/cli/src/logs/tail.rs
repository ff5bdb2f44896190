//! Finds where the last lines of a log begin. It is read from its end in pieces: neither a log has a bound, nor a line,
//! which may be made of many records.

use std::collections::BinaryHeap;
use std::io::{self, Read, Seek, SeekFrom};

use super::line::Record;
use crate::output::Stream;

const PIECE_BYTES: usize = 64 * 1024;
/// As much of a record as has everything before its text.
const HEAD_BYTES: usize = 256;
/// A record begins a line if this much before it has no other record of its stream.
const FAR_BYTES: u64 = 1024 * 1024;

/// The offset of the first of the last `lines` lines. A line made of several records counts once.
pub(crate) fn start(file: &mut (impl Read + Seek), lines: usize) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut search = Search { missing: lines, ..Search::default() };
    let (mut to, mut bytes) = (end, Vec::new());
    while to > 0 {
        let from = to.saturating_sub(PIECE_BYTES as u64);
        file.seek(SeekFrom::Start(from))?;
        bytes.clear();
        // A record's head may go on in the piece behind this one.
        file.by_ref().take(end.min(to + HEAD_BYTES as u64) - from).read_to_end(&mut bytes)?;
        let feed = |(at, &byte): (usize, &u8)| (byte == b'\n' && from + (at as u64) < to).then_some(at);
        let feeds = bytes.iter().enumerate().rev().filter_map(feed);
        for at in feeds.map(|feed| feed + 1).chain((from == 0).then_some(0)) {
            let rest = &bytes[at..bytes.len().min(at + HEAD_BYTES)];
            let Some(head) = rest.split_inclusive(|&byte| byte == b'\n').next() else { continue };
            if let Some(first) = search.record(from + at as u64, head) {
                return Ok(first);
            }
        }
        to = from;
    }
    search.begins.extend(search.earliest.iter_mut().filter_map(Option::take));
    Ok(search.first().unwrap_or(0))
}

/// What is known of a log from its end to some place.
#[derive(Debug, Default)]
struct Search {
    /// How many of the wanted lines are not found yet.
    missing: usize,
    /// Where lines begin that are not counted yet, because a later one may be missing.
    begins: BinaryHeap<u64>,
    /// Of each stream, because the parts of both may alternate, the record of which it is not known whether it begins a
    /// line: the one before it may be a part of the same.
    earliest: [Option<u64>; 2],
}

impl Search {
    /// Goes on with the record before all earlier ones; returns the offset of the first wanted line once it is found.
    fn record(&mut self, at: u64, head: &[u8]) -> Option<u64> {
        match Record::parse(head) {
            Some(Record { stream, partial, .. }) => {
                let next = self.earliest[usize::from(stream == Stream::Stderr)].replace(at);
                self.begins.extend(next.filter(|_| !partial));
            }
            None => self.begins.push(at),
        }
        for earliest in &mut self.earliest {
            self.begins.extend(earliest.take_if(|earliest| *earliest - at > FAR_BYTES));
        }
        self.first()
    }

    fn first(&mut self) -> Option<u64> {
        let unknown = self.earliest[0].max(self.earliest[1]);
        while self.begins.peek().copied() > unknown {
            let begin = self.begins.pop();
            self.missing -= 1;
            if self.missing == 0 {
                return begin;
            }
        }
        None
    }
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

    /// A file that notes how much is read of it at once.
    struct Noted(Cursor<Vec<u8>>, usize, usize);

    impl Read for Noted {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(bytes)?;
            self.1 += read;
            self.2 = self.2.max(self.1);
            Ok(read)
        }
    }

    impl Seek for Noted {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.1 = 0;
            self.0.seek(to)
        }
    }

    #[test]
    fn no_more_than_a_piece_is_held_however_long_a_line_is() {
        let parts = format!("t stdout P {}\n", "x".repeat(1000)).repeat(2000);
        for log in ["x".repeat(2_000_000), format!("t stdout F before\n{parts}"), "\n".repeat(300_000)] {
            let mut noted = Noted(Cursor::new(log.clone().into_bytes()), 0, 0);
            start(&mut noted, 1_000_000).unwrap();
            assert!(noted.2 <= PIECE_BYTES + HEAD_BYTES, "{} bytes", noted.2);
            noted.0 = Cursor::new(log.into_bytes());
            start(&mut noted, 1).unwrap();
            assert!(noted.2 <= PIECE_BYTES + HEAD_BYTES, "{} bytes", noted.2);
        }
    }

    #[test]
    fn a_record_is_known_wherever_a_piece_ends() {
        for length in 0..100 {
            let log =
                format!("t stderr P a\nt stdout P b\nt stderr F c\n{}\n", "x".repeat(PIECE_BYTES - length));
            assert!(tail(&log, 2) == log["t stderr P a\n".len()..], "{length}");
        }
    }

    #[test]
    fn a_line_goes_on_after_much_of_the_other_stream() {
        let others = "t stdout F other\n".repeat(10_000);
        let log = format!("t stdout F before\nt stderr P a\n{others}t stderr F b\n");
        assert_eq!(tail(&log, 1), "t stdout F other\nt stderr F b\n");
        assert!(tail(&log, 10_001) == log["t stdout F before\n".len()..]);
        let far = format!("t stderr P a\n{}t stderr F b\n", others.repeat(10));
        assert_eq!(tail(&far, 1), "t stderr F b\n", "it is not looked for that far");
    }
}
