//! Layers in a table of mounts that comes in pieces.
//!
//! A container decides how long a line is: the root of a mount may be any number of directories deep. So no line is
//! kept. Of each field there is at most as much as is compared with anything: of an overlay's source one mark, and of
//! its options one word.

use wharf_sys::overlay::marks::{MARKED, Mark};

use super::{Candidates, Place};

/// The fields of proc_pid_mountinfo(5) that matter: two at fixed places, and three after the dash that ends the
/// optional ones.
const DEVICE: Field = Field::First(2);
const ROOT: Field = Field::First(3);
const KIND: Field = Field::Last(0);
const SOURCE: Field = Field::Last(1);
const OPTIONS: Field = Field::Last(2);
/// How many fields come before the optional ones.
const FIXED: usize = 6;
/// The option that is followed by the layers of an overlay, if they are not given one by one.
const LAYERS: &[u8] = b"lowerdir";

/// Takes the mounted layers out of the candidates.
pub(super) struct Scanner<'a, 'b> {
    place: &'a Place,
    candidates: &'a mut Candidates<'b>,
    at: Field,
    /// Whether the line goes on with something that matters: after the device its root, after the kind its source and
    /// its options.
    matters: bool,
    /// What the source of the present overlay is.
    source: Source,
    /// What the present word of the options is.
    word: Word,
    /// What the overlays so far say of their layers.
    layers: Layers,
    /// The beginning of the present field, the present mark of an overlay's source, or the present word of its options.
    kept: Vec<u8>,
    kept_limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// The first layer of an overlay.
    FirstLayer,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    Named,
    /// Those of at least one are numbers, without marks.
    Numbered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Not known yet.
    Begun,
    Marks,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    First(usize),
    Last(usize),
}

impl<'a, 'b> Scanner<'a, 'b> {
    pub(super) fn new(place: &'a Place, candidates: &'a mut Candidates<'b>) -> Self {
        // One more, so that what is longer is not taken for what it begins with. `overlay`, devices and marks are
        // shorter.
        let kept_limit = (place.directory.len() + candidates.longest() + 1).max(64);
        Self {
            place,
            candidates,
            at: Field::First(0),
            matters: false,
            source: Source::Begun,
            word: Word::Other,
            layers: Layers::Named,
            kept: Vec::with_capacity(kept_limit),
            kept_limit,
        }
    }

    /// Whether any layer may be mounted: there was an overlay that says of its layers nothing but numbers.
    pub(super) fn is_unnamed(&self) -> bool {
        self.layers == Layers::Numbered
    }

    pub(super) fn feed(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| matches!(byte, b' ' | b'\n')) {
            match part.split_last() {
                Some((b' ', text)) => {
                    self.take(text);
                    self.end_field();
                }
                Some((b'\n', text)) => {
                    self.take(text);
                    self.end_field();
                    self.at = Field::First(0);
                    self.matters = false;
                }
                _ => self.take(part),
            }
        }
    }

    fn take(&mut self, text: &[u8]) {
        match self.at {
            SOURCE if self.matters => text.iter().for_each(|byte| self.take_of_source(*byte)),
            OPTIONS if self.matters => self.take_of_options(text),
            _ => self.keep(text),
        }
    }

    fn take_of_source(&mut self, byte: u8) {
        if self.source == Source::Other {
            return;
        }
        self.kept.push(byte);
        if self.source == Source::Begun && self.kept.len() == MARKED.len() {
            self.source = if self.kept == MARKED.as_bytes() { Source::Marks } else { Source::Other };
            self.kept.clear();
        } else if self.source == Source::Marks
            && let Ok(mark) = Mark::try_from(self.kept.as_slice())
        {
            self.candidates.marked(mark);
            self.kept.clear();
        }
    }

    fn take_of_options(&mut self, text: &[u8]) {
        for part in text.split_inclusive(|byte| !is_of_name(*byte)) {
            match part.split_last() {
                Some((last, word)) if !is_of_name(*last) => {
                    self.keep(word);
                    self.end_word(*last);
                }
                _ => self.keep(part),
            }
        }
    }

    fn keep(&mut self, text: &[u8]) {
        let room = self.kept_limit.saturating_sub(self.kept.len());
        self.kept.extend(text.iter().take(room));
    }

    fn end_field(&mut self) {
        match self.at {
            DEVICE => self.matters = self.kept == self.place.device,
            ROOT if self.matters => self.end_root(),
            KIND => {
                self.matters = self.kept == b"overlay";
                self.source = Source::Begun;
            }
            OPTIONS if self.matters => self.end_word(b','),
            _ => {}
        }
        self.at = match self.at {
            Field::First(number) if number >= FIXED && self.kept == b"-" => KIND,
            Field::First(number) => Field::First(number + 1),
            Field::Last(number) => Field::Last(number + 1),
        };
        self.kept.clear();
    }

    fn end_root(&mut self) {
        let below = self.kept.strip_prefix(self.place.directory.as_slice());
        let name = below.and_then(|below| below.split(|byte| *byte == b'/').next());
        if let Some(Ok(name)) = name.map(std::str::from_utf8) {
            self.candidates.named(name);
        }
    }

    /// Of the letters, digits and dashes that the name of a layer has; `end` comes after it.
    fn end_word(&mut self, end: u8) {
        let next = if self.kept == LAYERS && end == b'=' { Word::FirstLayer } else { Word::Other };
        let is_layer = std::mem::replace(&mut self.word, next) == Word::FirstLayer;
        if is_layer && matches!(end, b':' | b',') && is_number(&self.kept) && self.source != Source::Marks {
            self.layers = Layers::Numbered;
        }
        if let Ok(word) = std::str::from_utf8(&self.kept) {
            self.candidates.named(word);
        }
        self.kept.clear();
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

fn is_number(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn place() -> Place {
        Place { device: b"8:1".to_vec(), directory: b"/lib\\040x/layers/".to_vec() }
    }

    const NAMES: [&str; 8] = ["attrs-0f", "12ab", "moved-77-0", "cd", "ef01", "aa", "bb", "99"];

    /// What is left of the names, with the table in pieces of a length; `None` if it may be any.
    fn told(table: &str, length: usize) -> Option<Vec<&'static str>> {
        let mut names = NAMES.map(str::to_owned).into();
        let (place, mut candidates) = (place(), Candidates::new(&mut names));
        let mut scanner = Scanner::new(&place, &mut candidates);
        table.as_bytes().chunks(length).for_each(|piece| scanner.feed(piece));
        let is_unnamed = scanner.is_unnamed();
        (!is_unnamed).then(|| NAMES.into_iter().filter(|name| names.contains(*name)).collect())
    }

    fn left(table: &str, length: usize) -> Vec<&'static str> {
        told(table, length).expect("no overlay has numbers alone")
    }

    /// The source of an overlay of these layers.
    fn marks(names: &[&str]) -> String {
        let marks = names.iter().flat_map(|name| wharf_sys::overlay::marks::mark(name.as_ref()));
        MARKED.chars().chain(marks.map(char::from)).collect()
    }

    #[test]
    fn layers_are_found_in_each_spelling_and_piece() {
        let table = "22 1 0:20 / /proc rw - proc proc rw\n\
            30 1 0:31 / / rw - overlay overlay rw,lowerdir=/l/attrs-0f/fs:/l/12ab/fs,upperdir=/s/1/fs\n\
            31 1 0:32 / /x ro - overlay none ro,lowerdir+=moved-77-0/fs,lowerdir+=/l/cd\n\
            33 1 8:1 /lib\\040x/layers/ef01/fs/etc /z ro shared:98 master:1 - ext4 /dev/vda1 rw\n\
            34 1 8:1 /lib\\040x/layers/aa//deleted /z ro - ext4 /dev/vda1 rw\n\
            35 1 8:1 /lib\\040x/layers/bb /z ro - ext4 /dev/vda1 rw\n";
        for length in [1, 2, 3, 7, 64, table.len()] {
            assert_eq!(left(table, length), ["99"], "in pieces of {length}");
        }
    }

    /// A container may give a directory of its own any name, and mount what it likes.
    #[test]
    fn a_name_alone_mounts_no_layer() {
        let table = "31 1 0:32 /12ab/fs /x rw - tmpfs 99 rw,size=1k\n\
            32 1 0:32 /lib\\040x/layers/cd/fs /x rw - tmpfs overlay rw\n\
            33 1 8:1 /volumes/lib\\040x/layers/ef01/fs /aa rw - ext4 /dev/vda1 rw\n\
            34 1 8:1 /lib\\040x/layers/aab /bb rw - ext4 /dev/vda1 rw,12ab\n\
            35 1 8:1 /lib\\040x/layers / rw - ext4 /dev/vda1 rw\n\
            36 1 0:31 / / rw - overlay overlay rw,lowerdir=/l/attrs-0f0/fs:/l/0aa/fs\n";
        for length in [1, 5, table.len()] {
            assert_eq!(left(table, length), NAMES, "in pieces of {length}");
        }
    }

    #[test]
    fn layers_that_are_numbers_are_found_by_their_marks() {
        let line = |source: &str, options: &str| format!("30 1 0:31 / / rw - overlay {source} rw{options}\n");
        let table = [
            line(&marks(&["12ab", "attrs-0f", "moved-77-0"]), ",lowerdir=12:5:9,upperdir=7,workdir=8"),
            line(&marks(&["aa"]), ",relatime,lowerdir=5:6"),
            line(&marks(&[]), ",lowerdir=/l/bb/fs"),
        ];
        let table = table.concat();
        for length in [1, 2, 3, 7, 64, table.len()] {
            assert_eq!(left(&table, length), ["cd", "ef01", "99"], "in pieces of {length}");
        }
        // A mark that is cut off, one in another place, and in the source of something else.
        let of_cd = marks(&["cd"]);
        let others = [
            line(&of_cd[..of_cd.len() - 1], ",lowerdir=5:6"),
            line(&format!("x{of_cd}"), ",lowerdir=/x"),
            format!("31 1 0:32 / / rw - tmpfs {of_cd} rw\n"),
        ];
        assert_eq!(left(&others.concat(), 5), NAMES);
    }

    #[test]
    fn numbers_without_marks_may_be_any_layers() {
        let line = |options: &str| format!("30 1 0:31 / / rw - overlay overlay {options}\n");
        for options in ["rw,lowerdir=12:5,upperdir=7,workdir=8", "ro,lowerdir=5", "lowerdir=5,upperdir=6"] {
            for length in [1, 4, 200] {
                assert_eq!(told(&line(options), length), None, "{options} in pieces of {length}");
            }
        }
        let marked =
            line("rw,lowerdir=5:6").replace("overlay overlay", &format!("overlay {}", marks(&["cd"])));
        assert_eq!(told(&[line("rw,lowerdir=5:6"), marked].concat(), 9), None, "one of them is enough");
        for options in [
            "rw,lowerdir=1/fs:2/fs,upperdir=3/fs",
            "rw,lowerdir=/l/5:/l/6,upperdir=7,workdir=8",
            "rw,lowerdir=l/5,x=5:6",
            "rw,lowerdir=",
            "rw,size=5,lowerdir=/5",
        ] {
            assert_eq!(left(&line(options), 3), NAMES, "{options}");
        }
        assert_eq!(left("30 1 0:31 / / rw - tmpfs x lowerdir=5:6\n", 9), NAMES);
    }

    #[test]
    fn lines_of_any_length_are_kept_nowhere() {
        const LENGTH: u64 = 4 << 20;
        let mut names = NAMES.map(str::to_owned).into();
        let (place, mut candidates) = (place(), Candidates::new(&mut names));
        let mut scanner = Scanner::new(&place, &mut candidates);
        let mut feed = |text: &mut dyn std::io::Read| {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = text.read(&mut piece) {
                scanner.feed(&piece[..length]);
                assert!(scanner.kept.len() <= scanner.kept_limit && scanner.kept.capacity() <= 128);
            }
        };
        let long = || std::io::repeat(b'd').take(LENGTH);
        for _line in 0..3 {
            let text = |text: &'static str| text.as_bytes();
            feed(&mut text("31 1 8:1 /lib\\040x/layers/").chain(long()).chain(text(" /x rw - ext4 x rw\n")));
            feed(&mut text("32 1 0:9 / /").chain(long()).chain(text(" rw - overlay x")));
            feed(&mut long().chain(text(" rw,lowerdir=")));
            feed(&mut long().chain(text(":/l/12ab/fs\n")));
            feed(&mut text("32 1 0:9 / / rw - overlay layers-").chain(long()).chain(text(" rw\n")));
        }
        feed(&mut &b"33 1 8:1 /lib\\040x/layers/cd/fs /x rw - ext4 x rw\n"[..]);
        assert!(!names.contains("12ab") && !names.contains("cd") && names.len() == NAMES.len() - 2);
    }
}
