//! A reader of tar archives that gives each archive one meaning or refuses it.
//!
//! It reads POSIX ustar with PAX, GNU's long names and sparse files (old, 0.0, 0.1, 1.0), and V7. It is wharf's own
//! because existing readers interpret contradictory archives differently, and most of their advisories came from that.
//! Here a contradiction is an error. So are a bad checksum, a PAX size that differs from the header's where both could
//! express it, a duplicate key in one PAX header, a global `path`, `linkpath` or `size`, volumes, and unknown types.
//! What real programs write is read as Go's library, and so every other runtime, reads it: a size on an entry that has
//! no content is ignored, a GNU long name takes precedence over a PAX path, and a file stays a file even if its name
//! ends in a slash.
//!
//! Two zero blocks end the archive. So does the end of input between two entries, because the digest of the whole shows
//! whether something is missing. What follows two zero blocks is not parsed. A single zero block is an error unless it
//! is the last.

mod header;
mod pax;
mod sparse;

use std::io::BufRead;

use header::{BLOCK, Header};
use pax::Pax;
pub(crate) use sparse::SparseMap;

/// The longest PAX header or GNU long name, in bytes.
const EXTENSION_LIMIT_BYTES: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The input failed or ended too early.
    #[error("cannot read the archive at byte {at_bytes}")]
    Read {
        /// The position in the archive.
        at_bytes: u64,
        /// The reader's error.
        #[source]
        source: std::io::Error,
    },
    /// It is malformed, contradicts itself, or uses a feature that is refused.
    #[error("the archive's entry at byte {at_bytes} {reason}")]
    Malformed {
        /// The position of the entry's header in the archive.
        at_bytes: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry, with its extensions applied.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As in the archive, not normalised.
    pub(crate) path: Vec<u8>,
    /// The target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(crate) mtime: (i64, u32),
    /// Major and minor.
    pub(crate) device: (u32, u32),
    /// The bytes of content in the archive.
    pub(crate) size_bytes: u64,
    /// Where the content goes in the file, if not simply from 0 on.
    pub(crate) sparse: Option<SparseMap>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// An archive that is being read.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    input: R,
    at: u64,
    /// Unread content of the current entry, and the padding after it.
    left: u64,
    padding: u64,
    entry_at: u64,
    done: bool,
}

/// Extensions that precede an entry and belong to it.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, at: 0, left: 0, padding: 0, entry_at: 0, done: false }
    }

    /// The content of one entry, without an archive around it.
    pub(crate) fn of_content(input: R, size_bytes: u64) -> Self {
        Self { left: size_bytes, done: true, ..Self::new(input) }
    }

    /// The next entry; unread content of the last one is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            self.entry_at = self.at;
            let Some(header) = self.header()? else {
                let orphan =
                    extensions.pax.is_some() || extensions.name.is_some() || extensions.link.is_some();
                return if orphan { Err(self.malformed("is missing after its extension")) } else { Ok(None) };
            };
            match header.kind {
                b'x' => {
                    let pax =
                        Pax::parse(&self.extension(&header)?).map_err(|reason| self.malformed(reason))?;
                    if extensions.pax.replace(pax).is_some() {
                        return Err(self.malformed("is the second PAX header of one file"));
                    }
                }
                b'g' => {
                    let pax =
                        Pax::parse(&self.extension(&header)?).map_err(|reason| self.malformed(reason))?;
                    if pax.names_a_file() {
                        return Err(self.malformed("sets path, linkpath, size or holes globally"));
                    }
                }
                b'L' | b'K' => {
                    let text = self.long_name(&header)?;
                    let slot = if header.kind == b'L' { &mut extensions.name } else { &mut extensions.link };
                    if slot.replace(text).is_some() {
                        return Err(self.malformed("is the second GNU long name of one file"));
                    }
                }
                _ => return self.entry(header, extensions).map(Some),
            }
        }
    }

    /// Passes the content of the current entry, or what is left of it, to `sink` piece by piece.
    pub(crate) fn content<E: From<TarError>>(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.left > 0 {
            let (at, left) = (self.at, self.left);
            let piece = self.fill().map_err(|source| TarError::Read { at_bytes: at, source })?;
            let length = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if length == 0 {
                return Err(truncated(at).into());
            }
            sink(&piece[..length])?;
            self.input.consume(length);
            self.at += length as u64;
            self.left -= length as u64;
        }
        Ok(())
    }

    fn fill(&mut self) -> std::io::Result<&[u8]> {
        self.input.fill_buf()
    }

    /// The rest of the input after the archive's end, for the caller that hashes it.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        self.left += std::mem::take(&mut self.padding);
        self.content(|_piece| Ok(()))
    }

    /// Reads a block; `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let at_bytes = self.at;
        let failed = |source| TarError::Read { at_bytes, source };
        if self.input.fill_buf().map_err(failed)?.is_empty() {
            return Ok(None);
        }
        self.input.read_exact(&mut block).map_err(failed)?;
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.done {
            return Ok(None);
        }
        let Some(block) = self.block()? else {
            self.done = true;
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            if self.block()?.is_some_and(|second| second.iter().any(|byte| *byte != 0)) {
                return Err(self.malformed("is a lone zero block"));
            }
            self.done = true;
            return Ok(None);
        }
        let header = Header::parse(&block).map_err(|reason| self.malformed(reason))?;
        self.left = header.size_bytes;
        self.padding = header.size_bytes.next_multiple_of(BLOCK as u64) - header.size_bytes;
        Ok(Some(header))
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        if header.size_bytes > EXTENSION_LIMIT_BYTES {
            return Err(self.malformed("has an extension of more than 1 MiB"));
        }
        let mut text = Vec::new();
        self.content(|piece| {
            text.extend_from_slice(piece);
            Ok::<_, TarError>(())
        })?;
        Ok(text)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let mut text = self.extension(header)?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        if end == 0 || text[end..].iter().any(|byte| *byte != 0) {
            return Err(self.malformed("has a long name that is empty or has a NUL byte inside"));
        }
        text.truncate(end);
        Ok(text)
    }

    fn entry(&mut self, mut header: Header, extensions: Extensions) -> Result<Entry, TarError> {
        let mut pax = extensions.pax.unwrap_or_default();
        self.settle_size(&mut header, &pax)?;
        let plain = extensions.name.or(pax.path.take());
        let path = pax.sparse.name.take().or(plain).unwrap_or_else(|| std::mem::take(&mut header.name));
        let link = extensions.link.or(pax.link.take()).unwrap_or_else(|| std::mem::take(&mut header.link));
        let kind = kind(&header, &path).map_err(|reason| self.malformed(reason))?;
        if kind != Kind::File {
            (self.left, self.padding) = (0, 0);
        }
        let sparse = self.sparse_map(&header, &pax, kind)?;
        let id = |pax: Option<u64>, own: i64| {
            let id = pax.or_else(|| u64::try_from(own).ok()).and_then(|id| u32::try_from(id).ok());
            id.filter(|id| *id != u32::MAX)
        };
        let (Some(uid), Some(gid)) = (id(pax.uid, header.uid), id(pax.gid, header.gid)) else {
            return Err(self.malformed("has an owner or group outside 0 to 4294967294"));
        };
        let mtime = pax.mtime.unwrap_or((header.mtime, 0));
        if mtime.0.unsigned_abs() > 1 << 40 {
            return Err(self.malformed("has a time that is out of range"));
        }
        let mut device = (0, 0);
        if matches!(kind, Kind::Character | Kind::Block) {
            device =
                header.device().ok_or_else(|| self.malformed("has a device number that is out of range"))?;
        }
        let size_bytes = self.left;
        let mode = header.mode & 0o7777;
        Ok(Entry { kind, path, link, mode, uid, gid, mtime, device, size_bytes, sparse, xattrs: pax.xattrs })
    }

    /// PAX may give the size only where the header cannot, or else must give the same one.
    fn settle_size(&mut self, header: &mut Header, pax: &Pax) -> Result<(), TarError> {
        const HEADER_LIMIT: u64 = 0o777_7777_7777;
        let Some(size) = pax.size else { return Ok(()) };
        if size != header.size_bytes && size <= HEADER_LIMIT {
            return Err(self.malformed("has one size in its header and another in PAX"));
        }
        if size > i64::MAX.cast_unsigned() - BLOCK as u64 {
            return Err(self.malformed("has a size that is out of range"));
        }
        header.size_bytes = size;
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn sparse_map(&mut self, header: &Header, pax: &Pax, kind: Kind) -> Result<Option<SparseMap>, TarError> {
        let map = if let Some(old) = &header.sparse {
            if pax.sparse.is_present() {
                return Err(self.malformed("has its holes from PAX and from GNU"));
            }
            let mut map = old.clone();
            let mut more = header.sparse_continues;
            while more {
                let block = self.block()?.ok_or_else(|| truncated(self.at))?;
                more = map.extend(&block).map_err(|reason| self.malformed(reason))?;
            }
            map
        } else if pax.sparse.is_present() {
            if pax.sparse.is_in_content().map_err(|reason| self.malformed(reason))? {
                self.map_of_content(pax)?
            } else {
                pax.sparse.map().map_err(|reason| self.malformed(reason))?
            }
        } else {
            return Ok(None);
        };
        if kind != Kind::File {
            return Err(self.malformed("has holes, which its type cannot have"));
        }
        map.check(self.left).map_err(|reason| self.malformed(reason))?;
        Ok(Some(map))
    }

    /// Sparse format 1.0: the map is in decimal lines before the content, padded to a block.
    fn map_of_content(&mut self, pax: &Pax) -> Result<SparseMap, TarError> {
        let mut parser = pax.sparse.lines().map_err(|reason| self.malformed(reason))?;
        loop {
            if self.left < BLOCK as u64 {
                return Err(self.malformed("has a map of holes that does not end"));
            }
            let block = self.block()?.ok_or_else(|| truncated(self.at))?;
            self.left -= BLOCK as u64;
            if let Some(map) = parser.push(&block).map_err(|reason| self.malformed(reason))? {
                return Ok(map);
            }
        }
    }

    fn malformed(&self, reason: &'static str) -> TarError {
        TarError::Malformed { at_bytes: self.entry_at, reason }
    }
}

fn truncated(at_bytes: u64) -> TarError {
    TarError::Read { at_bytes, source: std::io::ErrorKind::UnexpectedEof.into() }
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind, &'static str> {
    let slash = path.ends_with(b"/");
    match header.kind {
        // V7 had no type for directories.
        0 if slash => Ok(Kind::Directory),
        0 | b'0' | b'7' | b'S' => Ok(Kind::File),
        b'1' => Ok(Kind::HardLink),
        b'2' => Ok(Kind::Symlink),
        b'3' => Ok(Kind::Character),
        b'4' => Ok(Kind::Block),
        b'5' => Ok(Kind::Directory),
        b'6' => Ok(Kind::Fifo),
        b'M' | b'V' => Err("belongs to an archive of several volumes, which is refused"),
        _ => Err("has an unknown type"),
    }
}
