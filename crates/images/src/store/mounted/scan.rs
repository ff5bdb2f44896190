//! Layers in a table of mounts that comes in pieces.
//!
//! A container decides how long a line is: the root of a mount may be any number of directories deep. So no line is
//! kept. Of each field there is at most as much as is compared with anything, and of an overlay's options one word.

use std::collections::HashSet;

use super::Place;

/// The fields of proc_pid_mountinfo(5) that matter: two at fixed places, and two after the dash that ends the optional
/// ones.
const DEVICE: Field = Field::First(2);
const ROOT: Field = Field::First(3);
const KIND: Field = Field::Last(0);
const OPTIONS: Field = Field::Last(2);
/// How many fields come before the optional ones.
const FIXED: usize = 6;

/// Takes the names of mounted layers out of a set.
pub(super) struct Scanner<'a> {
    place: &'a Place,
    names: &'a mut HashSet<String>,
    at: Field,
    /// Whether the line goes on with something that matters: after the device its root, after the kind its options.
    matters: bool,
    /// The beginning of the present field, or the present word of an overlay's options.
    kept: Vec<u8>,
    kept_limit: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    First(usize),
    Last(usize),
}

impl<'a> Scanner<'a> {
    pub(super) fn new(place: &'a Place, names: &'a mut HashSet<String>) -> Self {
        let longest = names.iter().map(String::len).max().unwrap_or_default();
        // One more, so that what is longer is not taken for what it begins with. `overlay` and devices are shorter.
        let kept_limit = (place.directory.len() + longest + 1).max(64);
        let kept = Vec::with_capacity(kept_limit);
        Self { place, names, at: Field::First(0), matters: false, kept, kept_limit }
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
        if !(self.matters && self.at == OPTIONS) {
            return self.keep(text);
        }
        for part in text.split_inclusive(|byte| !is_of_name(*byte)) {
            match part.split_last() {
                Some((last, word)) if !is_of_name(*last) => {
                    self.keep(word);
                    self.end_word();
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
            KIND => self.matters = self.kept == b"overlay",
            OPTIONS if self.matters => self.end_word(),
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
            self.names.remove(name);
        }
    }

    /// Of the letters, digits and dashes that the name of a layer has.
    fn end_word(&mut self) {
        if let Ok(word) = std::str::from_utf8(&self.kept) {
            self.names.remove(word);
        }
        self.kept.clear();
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn place() -> Place {
        Place { device: b"8:1".to_vec(), directory: b"/lib\\040x/layers/".to_vec() }
    }

    const NAMES: [&str; 8] = ["attrs-0f", "12ab", "moved-77-0", "cd", "ef01", "aa", "bb", "99"];

    /// What is left of the names, with the table in pieces of a length.
    fn left(table: &str, length: usize) -> Vec<&'static str> {
        let mut names = NAMES.map(str::to_owned).into();
        let place = place();
        let mut scanner = Scanner::new(&place, &mut names);
        table.as_bytes().chunks(length).for_each(|piece| scanner.feed(piece));
        NAMES.into_iter().filter(|name| names.contains(*name)).collect()
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
    fn lines_of_any_length_are_kept_nowhere() {
        const LENGTH: u64 = 4 << 20;
        let mut names = NAMES.map(str::to_owned).into();
        let place = place();
        let mut scanner = Scanner::new(&place, &mut names);
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
            feed(&mut text("32 1 0:9 / /").chain(long()).chain(text(" rw - overlay x rw,lowerdir=")));
            feed(&mut long().chain(text(":/l/12ab/fs\n")));
        }
        feed(&mut &b"33 1 8:1 /lib\\040x/layers/cd/fs /x rw - ext4 x rw\n"[..]);
        assert!(!names.contains("12ab") && !names.contains("cd") && names.len() == NAMES.len() - 2);
    }
}
