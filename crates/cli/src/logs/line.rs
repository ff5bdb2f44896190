//! Records of a log in the CRI's format, `<time> <stream> <P|F> <text>`, and how they are shown.

use crate::error::Error;
use crate::output::Stream;
use crate::time;

use super::Selection;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) stamp: &'a str,
    pub(crate) stream: Stream,
    /// Whether the line continues in the stream's next record.
    pub(crate) partial: bool,
    pub(crate) text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Parses a record, with or without its line feed.
    pub(crate) fn parse(record: &'a [u8]) -> Option<Self> {
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let mut fields = record.splitn(4, |&byte| byte == b' ');
        let stamp = std::str::from_utf8(fields.next()?).ok()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // After the first tag more may follow, separated by colons.
        let partial = match fields.next()?.split(|&byte| byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { stamp, stream, partial, text: fields.next()? })
    }
}

/// Shows records, and joins the parts of a line.
#[derive(Debug)]
pub(crate) struct Printer {
    since_ns: Option<i64>,
    timestamps: bool,
    /// Whether the last record of standard output and of standard error ended in the middle of a line.
    open: [bool; 2],
}

impl Printer {
    pub(crate) fn new(selection: &Selection) -> Self {
        Self { since_ns: selection.since_ns, timestamps: selection.timestamps, open: [false; 2] }
    }

    pub(crate) fn print(&mut self, record: &[u8]) -> Result<(), Error> {
        let (stream, text) = self.render(record);
        if text.is_empty() { Ok(()) } else { super::show(stream, &text) }
    }

    /// What is shown of a record, and on which stream. Bytes that are not a record are shown unchanged.
    pub(super) fn render(&mut self, bytes: &[u8]) -> (Stream, Vec<u8>) {
        let Some(record) = Record::parse(bytes) else { return (Stream::Stdout, bytes.to_vec()) };
        let open = &mut self.open[usize::from(record.stream == Stream::Stderr)];
        let begins = !std::mem::replace(open, record.partial);
        if self.since_ns.is_some_and(|since| time::parse(record.stamp).is_some_and(|at| at < since)) {
            return (record.stream, Vec::new());
        }
        let mut text = Vec::with_capacity(record.text.len() + 32);
        if begins && self.timestamps {
            text.extend_from_slice(record.stamp.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(record.text);
        if !record.partial {
            text.push(b'\n');
        }
        (record.stream, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(selection: &Selection, records: &[&str]) -> String {
        let mut printer = Printer::new(selection);
        let render = |record: &&str| {
            let (stream, text) = printer.render(record.as_bytes());
            let mark = if stream == Stream::Stderr { "!" } else { "" };
            format!("{mark}{}", String::from_utf8(text).unwrap())
        };
        records.iter().map(render).collect()
    }

    const RECORDS: [&str; 5] = [
        "2026-01-01T00:00:01.5Z stdout F one\n",
        "2026-01-01T00:00:02Z stdout P tw\n",
        "2026-01-01T00:00:03Z stderr F  oops\n",
        "2026-01-01T00:00:04Z stdout F:x o\n",
        "2026-01-01T00:00:05Z stdout F \n",
    ];

    #[test]
    fn parts_of_a_line_are_joined() {
        assert_eq!(shown(&Selection::default(), &RECORDS), "one\ntw! oops\no\n\n");
    }

    #[test]
    fn a_last_line_without_an_end_is_shown_without_one() {
        let records = ["t stderr F b\n", "t stdout P DONE\n", "t stderr F a\n"];
        assert_eq!(shown(&Selection::default(), &records), "!b\nDONE!a\n");
    }

    #[test]
    fn each_line_has_one_time() {
        let selection = Selection { timestamps: true, ..Selection::default() };
        let want = "2026-01-01T00:00:02Z tw!2026-01-01T00:00:03Z  oops\no\n2026-01-01T00:00:05Z \n";
        assert_eq!(shown(&selection, &RECORDS[1..]), want);
    }

    #[test]
    fn old_lines_are_left_out() {
        let since_ns = time::parse("2026-01-01T00:00:03Z");
        assert_eq!(shown(&Selection { since_ns, ..Selection::default() }, &RECORDS), "! oops\no\n\n");
    }

    #[test]
    fn what_is_no_record_is_shown_as_it_is() {
        for odd in ["", "\n", "hello", "t stdout F", "t stdin F x", "t stdout X x"] {
            assert_eq!(Record::parse(odd.as_bytes()), None, "{odd}");
            assert_eq!(shown(&Selection::default(), &[odd]), odd);
        }
    }
}
