//! The only place that writes to the terminal: tables, JSON and plain lines.
//!
//! The authors of pods and images choose names, commands, labels and messages. A terminal would obey control characters
//! in them (move the cursor, rename the window, type on the user's behalf, show text in another order), and with
//! invisible ones two names look the same, so both are shown as escapes. Only a container's own output is written
//! unchanged.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::Error;

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

/// The format of the results.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: Format,
}

/// A row of a table.
pub(crate) trait Row: Serialize {
    const HEADINGS: &'static [&'static str];

    /// One cell for each heading.
    fn cells(&self) -> Vec<String>;
}

impl Output {
    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "the flag of the command line becomes a format here"
    )]
    pub(crate) fn new(json: bool) -> Self {
        Self { format: if json { Format::Json } else { Format::Table } }
    }

    /// Whether people read it.
    pub(crate) fn is_table(self) -> bool {
        self.format == Format::Table
    }

    /// A table, or a JSON array.
    pub(crate) fn rows<R: Row>(self, rows: &[R]) -> Result<(), Error> {
        match self.format {
            Format::Json => json(&rows),
            Format::Table => {
                let cells: Vec<_> = rows.iter().map(Row::cells).collect();
                text(&table(R::HEADINGS, &cells))
            }
        }
    }

    /// One result: text for people, or a JSON object.
    pub(crate) fn result(self, value: &impl Serialize, people: &str) -> Result<(), Error> {
        match self.format {
            Format::Json => json(value),
            Format::Table => text(people),
        }
    }
}

/// Writes JSON, indented so that people can read it, too.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Output { source: error.into() })?;
    let shown = escaped(&text, is_control_in_lines, json_escape);
    bytes(Stream::Stdout, format!("{shown}\n").as_bytes())
}

/// A character in JSON, which has escapes of UTF-16.
fn json_escape(c: char) -> String {
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// Writes one or more lines of text.
pub(crate) fn text(text: &str) -> Result<(), Error> {
    bytes(Stream::Stdout, lines(text).as_bytes())
}

/// Lines without the characters that a terminal would obey.
fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, is_control_in_lines, |control| control.escape_unicode().to_string())
}

fn is_control_in_lines(c: char) -> bool {
    is_control(c) && !matches!(c, '\n' | '\t')
}

/// Whether a terminal would not show a character, but might obey it: the general categories Cc, Cf, Zl and Zp of
/// Unicode, among them what changes the direction of text, and characters without a width.
fn is_control(c: char) -> bool {
    let is_format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}'
        | '\u{e0020}'..='\u{e007f}');
    c.is_control() || is_format
}

/// The text, with each character for which `is_meant` holds replaced by an escape.
fn escaped(text: &str, is_meant: fn(char) -> bool, escape: fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(is_meant) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if is_meant(c) { escape(c) } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Writes a container's output.
pub(crate) fn bytes(stream: Stream, bytes: &[u8]) -> Result<(), Error> {
    let written = match stream {
        Stream::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        Stream::Stderr => io::stderr().lock().write_all(bytes),
    };
    written.map_err(|source| Error::Output { source })
}

/// Writes an error or a note on progress; it is lost if there is no standard error.
pub(crate) fn report(text: &str) {
    let _lost = writeln!(io::stderr().lock(), "wharf: {}", lines(text));
}

/// Asks for input on the terminal; the input follows on the same line.
pub(crate) fn prompt(text: &str) {
    let _lost = write!(io::stderr().lock(), "{}", lines(text));
}

/// Asks a yes-or-no question; `None` if there is no terminal to ask on.
pub(crate) fn confirm(question: &str) -> Option<bool> {
    if !io::stdin().is_terminal() {
        return None;
    }
    prompt(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).ok()?;
    Some(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Whether standard error is a terminal, where progress can be drawn.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Clears the screen, if standard output is one.
pub(crate) fn clear() -> Result<(), Error> {
    if io::stdout().is_terminal() { bytes(Stream::Stdout, b"\x1b[2J\x1b[H") } else { Ok(()) }
}

/// The longest cell that widens its column, in characters. A longer one pushes what follows it aside.
const WIDEST: usize = 160;

/// A table whose columns are as wide as their widest cell, three spaces apart.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let headings: Vec<String> = headings.iter().map(|&heading| heading.to_owned()).collect();
    // A line break in a cell would begin a line that looks like another row.
    let cell = |cell: &String| escaped(cell, is_control, |c| c.escape_default().to_string()).into_owned();
    let rows: Vec<Vec<String>> = rows.iter().map(|cells| cells.iter().map(cell).collect()).collect();
    let lines = || std::iter::once(&headings).chain(&rows);
    let width = |column: usize| {
        let widths = lines().filter_map(|cells| cells.get(column)).map(|cell| cell.chars().count());
        widths.filter(|&width| width <= WIDEST).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut table = String::new();
    for cells in lines() {
        // By hand: the formatter takes no width of more than 16 bits.
        let padded = |(cell, &width): (&String, &usize)| {
            format!("{cell}{}", " ".repeat(width.saturating_sub(cell.chars().count())))
        };
        let padded: Vec<String> = cells.iter().zip(&widths).map(padded).collect();
        table.push_str(padded.join("   ").trim_end());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["a".to_owned(), "long one".into(), "x".into()],
            vec!["bcde".into(), "ü".into(), String::new()],
        ];
        let table = table(&["ID", "NAME", "STATE"], &rows);
        assert_eq!(table, "ID     NAME       STATE\na      long one   x\nbcde   ü\n");
    }

    #[test]
    fn a_terminal_obeys_nobodys_text() {
        let hostile = "a\x1b]0;title\x07\u{9b}2J\nb".to_owned();
        let shown = table(&["NAME"], &[vec![hostile.clone()]]);
        assert_eq!(shown, "NAME\na\\u{1b}]0;title\\u{7}\\u{9b}2J\\nb\n");
        assert_eq!(lines(&hostile), "a\\u{1b}]0;title\\u{7}\\u{9b}2J\nb");
        assert_eq!(lines("a\tb\n  ü"), "a\tb\n  ü");
    }

    #[test]
    fn what_is_invisible_or_turns_text_around_is_shown() {
        let hostile = "a\u{202e}b\u{200b}c\u{feff}\u{e0041}\u{2028}".to_owned();
        let shown = "a\\u{202e}b\\u{200b}c\\u{feff}\\u{e0041}\\u{2028}";
        assert_eq!(table(&["NAME"], &[vec![hostile.clone()]]), format!("NAME\n{shown}\n"));
        assert_eq!(lines(&hostile), shown);
        let json = escaped(&hostile, is_control_in_lines, json_escape);
        assert!(json.is_ascii(), "{json}");
        assert_eq!(serde_json::from_str::<String>(&format!("\"{json}\"")).unwrap(), hostile);
        assert_eq!(lines("ü e\u{301} क्षि مرحبا 🐳"), "ü e\u{301} क्षि مرحبا 🐳");
    }

    #[test]
    fn a_long_cell_is_shown_and_does_not_widen_its_column() {
        for long in [WIDEST + 1, 70_000].map(|width| "x".repeat(width)) {
            let rows = [vec![long.clone(), "b".into()], vec!["ü".into(), "d".into()]];
            assert_eq!(table(&["A", "B"], &rows), format!("A   B\n{long}   b\nü   d\n"));
        }
    }

    #[test]
    fn an_empty_table_has_headings() {
        assert_eq!(table(&["ID", "NAME"], &[]), "ID   NAME\n");
    }
}
