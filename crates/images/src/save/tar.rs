//! Writes tar archives: POSIX ustar, with a PAX header before an entry that needs one. Equal entries have equal bytes.

use std::io::{self, Write};

const BLOCK: usize = 512;

/// The type of an entry, as the header has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    File = b'0',
    HardLink = b'1',
    Symlink = b'2',
    Character = b'3',
    Block = b'4',
    Directory = b'5',
    Fifo = b'6',
}

/// An entry without its content.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    /// The target of a link.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size_bytes: u64,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, u32),
    /// Major and minor.
    pub(super) device: (u64, u64),
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// A file of nobody in particular.
    pub(super) fn file(path: &[u8], size_bytes: u64) -> Self {
        Self {
            kind: Kind::File,
            path: path.to_vec(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size_bytes,
            mtime: (0, 0),
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }

    /// Writes the headers. The content and its [`padding`] follow.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let pax = self.pax();
        if !pax.is_empty() {
            let own = Self { size_bytes: pax.len() as u64, ..Self::file(b"pax", 0) };
            out.write_all(&own.block(b'x'))?;
            out.write_all(&pax)?;
            out.write_all(padding(pax.len() as u64))?;
        }
        out.write_all(&self.block(self.kind as u8))
    }

    /// What the header has no room for.
    fn pax(&self) -> Vec<u8> {
        let mut pax = Vec::new();
        let mut add = |key: &str, value: &[u8]| pax.extend(record(key, value));
        if self.path.len() > 100 {
            add("path", &self.path);
        }
        if self.link.len() > 100 {
            add("linkpath", &self.link);
        }
        for (key, number, digits) in
            [("size", self.size_bytes, 11), ("uid", self.uid.into(), 7), ("gid", self.gid.into(), 7)]
        {
            if octal(number, digits).is_none() {
                add(key, number.to_string().as_bytes());
            }
        }
        if self.mtime.1 != 0 || self.seconds().is_none() {
            add("mtime", time(self.mtime).as_bytes());
        }
        for (name, value) in &self.xattrs {
            add(&format!("SCHILY.xattr.{name}"), value);
        }
        pax
    }

    fn seconds(&self) -> Option<String> {
        octal(u64::try_from(self.mtime.0).ok()?, 11)
    }

    fn block(&self, kind: u8) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        // Whoever does not know PAX sees the beginning of a name, and a number that fits.
        let number =
            |number: u64, digits| octal(number, digits).unwrap_or_else(|| "0".repeat(digits)).into_bytes();
        put(0, &self.path[..self.path.len().min(100)]);
        put(100, &number(self.mode.into(), 7));
        put(108, &number(self.uid.into(), 7));
        put(116, &number(self.gid.into(), 7));
        put(124, &number(self.size_bytes, 11));
        put(136, self.seconds().unwrap_or_else(|| "0".repeat(11)).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, &number(self.device.0, 7));
        put(337, &number(self.device.1, 7));
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// The zeros after a content of that size.
pub(super) fn padding(size_bytes: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let rest = size_bytes.next_multiple_of(BLOCK as u64) - size_bytes;
    &ZEROS[..usize::try_from(rest).unwrap_or(0)]
}

/// The end of an archive.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The number in so many octal digits, if it fits.
fn octal(number: u64, digits: usize) -> Option<String> {
    let text = format!("{number:0digits$o}");
    (text.len() == digits).then_some(text)
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &body].concat()
}

/// `[-]seconds[.fraction]`.
fn time((seconds, nanoseconds): (i64, u32)) -> String {
    let whole = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, whole) = if whole < 0 { ("-", -whole) } else { ("", whole) };
    let (seconds, fraction) = (whole / 1_000_000_000, whole % 1_000_000_000);
    if fraction == 0 { format!("{sign}{seconds}") } else { format!("{sign}{seconds}.{fraction:09}") }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::tar::{Archive, Kind as Read};

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let long = b"long/".repeat(60);
        let heads = [
            Head { mode: 0o4755, mtime: (1_600_000_000, 0), ..Head::file(b"a", 3) },
            Head { path: long.clone(), uid: 3_000_000, gid: 4_000_000_000, ..Head::file(b"", 3) },
            Head { mtime: (-2, 500_000_000), ..Head::file(b"old", 3) },
            Head { kind: Kind::HardLink, link: long.clone(), ..Head::file(b"hard", 0) },
            Head { kind: Kind::Character, device: (4095, 1_048_575), ..Head::file(b"device", 0) },
            Head { xattrs: vec![("user.a".into(), b"\0=\n\xff".to_vec())], ..Head::file(b"b", 3) },
        ];
        let mut bytes = Vec::new();
        for head in &heads {
            head.write(&mut bytes).unwrap();
            if head.size_bytes > 0 {
                bytes.extend(b"abc");
                bytes.extend(padding(3));
            }
        }
        bytes.extend(END);
        let mut archive = Archive::new(&bytes[..]);
        for head in &heads {
            let entry = archive.next_entry().unwrap().unwrap();
            assert_eq!((&entry.path, &entry.link), (&head.path, &head.link));
            assert_eq!((entry.mode, entry.uid, entry.gid), (head.mode, head.uid, head.gid));
            assert_eq!((entry.mtime, entry.size_bytes), (head.mtime, head.size_bytes));
            assert_eq!((u64::from(entry.device.0), u64::from(entry.device.1)), head.device);
            assert_eq!(entry.xattrs, head.xattrs);
            assert_eq!(entry.kind == Read::File, head.kind == Kind::File);
        }
        assert!(archive.next_entry().unwrap().is_none());
        let mut rest = Vec::new();
        archive.into_input().read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }

    #[test]
    fn times_have_one_spelling() {
        for (time_of, want) in [
            ((0, 0), "0"),
            ((5, 0), "5"),
            ((5, 1), "5.000000001"),
            ((-2, 500_000_000), "-1.500000000"),
            ((-2, 0), "-2"),
        ] {
            assert_eq!(time(time_of), want);
        }
    }

    #[test]
    fn a_large_file_has_its_size_in_pax() {
        let mut bytes = Vec::new();
        Head::file(b"large", 1 << 40).write(&mut bytes).unwrap();
        let entry = Archive::new(&bytes[..]).next_entry().unwrap().unwrap();
        assert_eq!(entry.size_bytes, 1 << 40);
    }
}
