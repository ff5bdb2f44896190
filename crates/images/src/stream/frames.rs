//! Zstandard, frame by frame: the head of a frame says how much memory its window takes, before that is taken.
//!
//! A frame with a small window is decompressed as it arrives. Before one with a larger window, all that is left of the
//! blob is kept in a file first (`windows`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;
use wharf_sys::error::Named as _;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::windows::{SMALL_WINDOW_BYTES, Share, WINDOWS, Windows};
use super::{Means, PIECE_BYTES, within_io};
use crate::limits::Limits;
use crate::unpack::{Sender, UnpackError};

/// How much is kept before the disk is looked at again.
const DISK_CHECK_BYTES: u64 = 16 << 20;

/// The content of frames, one after another.
pub(crate) struct Frames<R> {
    input: Input<R>,
    // Before the share, so that it frees its window first.
    decoder: Decoder<'static>,
    share: Option<Share>,
    windows: &'static Windows,
    sender: Sender,
    limits: Limits,
    /// Where what arrives may be kept.
    directory: OwnedFd,
    /// No frame may have a larger window.
    limit_bytes: u64,
    /// Whether a frame has begun that has not ended.
    within: bool,
}

/// What is decompressed.
pub(crate) enum Input<R> {
    /// As it arrives.
    Arriving(R),
    /// From a file, after all of it has arrived.
    Whole(BufReader<File>),
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(input: R, means: &Means<'_>) -> io::Result<Self> {
        Self::with(&WINDOWS, input, means)
    }

    fn with(windows: &'static Windows, input: R, means: &Means<'_>) -> io::Result<Self> {
        let limit_bytes = 1 << means.limits.zstd_window_bytes.checked_ilog2().unwrap_or(0);
        Ok(Self {
            input: Input::Arriving(input),
            decoder: decoder(limit_bytes)?,
            share: None,
            windows,
            sender: means.sender.clone(),
            limits: means.limits.clone(),
            directory: means.directory.try_clone_to_owned()?,
            limit_bytes,
            within: false,
        })
    }

    /// What follows the frames that were read.
    pub(super) fn into_input(self) -> Input<R> {
        self.input
    }

    /// Begins the next frame, if there is one.
    fn begin(&mut self) -> io::Result<bool> {
        let mut head = Vec::new();
        while let missing @ 1.. = head_length(&head).saturating_sub(head.len()) {
            if self.input.by_ref().take(missing as u64).read_to_end(&mut head)? < missing {
                break;
            }
        }
        if head.is_empty() {
            return Ok(false);
        }
        self.make_room(window_bytes(&head)).map_err(within_io)?;
        let mut from = InBuffer::around(&head);
        while from.pos() < head.len() {
            self.decoder.run(&mut from, &mut OutBuffer::around(&mut [][..]))?;
        }
        self.within = true;
        Ok(true)
    }

    /// Takes a share for a large window, unless there is one that is large enough.
    fn make_room(&mut self, window_bytes: u64) -> Result<(), UnpackError> {
        if window_bytes > self.limit_bytes {
            return Err(UnpackError::Window { window_bytes, limit_bytes: self.limit_bytes });
        }
        let has_bytes = self.share.as_ref().map_or(SMALL_WINDOW_BYTES, |share| share.bytes);
        if window_bytes <= has_bytes {
            return Ok(());
        }
        // It keeps the memory of its largest window.
        self.decoder = decoder(self.limit_bytes).map_err(|source| UnpackError::Read { source })?;
        self.share = None;
        if let Input::Arriving(input) = &mut self.input {
            self.input = Input::Whole(keep(input, self.directory.as_fd(), &self.limits)?);
        }
        let share = self.windows.take(&self.sender, window_bytes.next_power_of_two());
        self.share = Some(share.ok_or(UnpackError::NoWindow { window_bytes })?);
        Ok(())
    }
}

/// Waits until all of the input has arrived, in a file without a name.
fn keep(
    input: &mut impl BufRead,
    directory: BorrowedFd<'_>,
    limits: &Limits,
) -> Result<BufReader<File>, UnpackError> {
    const NAME: &str = "arriving";
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(directory, NAME, flags, Mode::S_IRUSR | Mode::S_IWUSR);
    let file = file.named("openat", || NAME.into()).map_err(failed)?;
    let unlinked = nix::unistd::unlinkat(directory, NAME, UnlinkatFlags::NoRemoveDir);
    unlinked.named("unlinkat", || NAME.into()).map_err(failed)?;
    let (mut file, mut unchecked_bytes, mut due_bytes) = (File::from(file), 0, 0);
    loop {
        let piece = input.fill_buf().map_err(|source| UnpackError::Read { source })?;
        if piece.is_empty() {
            file.rewind().named("lseek", || NAME.into()).map_err(failed)?;
            return Ok(BufReader::with_capacity(PIECE_BYTES, file));
        }
        file.write_all(piece).named("write", || NAME.into()).map_err(failed)?;
        let length = piece.len();
        input.consume(length);
        unchecked_bytes += length as u64;
        if unchecked_bytes >= due_bytes {
            due_bytes = Limits::due(DISK_CHECK_BYTES, limits.check_disk(directory)?.bytes);
            unchecked_bytes = 0;
        }
    }
}

fn failed(source: wharf_sys::Error) -> UnpackError {
    UnpackError::System { path: String::new(), source }
}

fn decoder(limit_bytes: u64) -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(limit_bytes.ilog2()))?;
    Ok(decoder)
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !into.is_empty() && (self.within || self.begin()?) {
            let input = self.input.fill_buf()?;
            let ended = input.is_empty();
            let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(&mut *into));
            self.within = self.decoder.run(&mut from, &mut to)? != 0;
            let (read, written) = (from.pos(), to.pos());
            self.input.consume(read);
            if written > 0 {
                return Ok(written);
            }
            if ended && self.within {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a frame is not complete"));
            }
        }
        Ok(0)
    }
}

impl<R: BufRead> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Arriving(input) => input.fill_buf(),
            Self::Whole(file) => file.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        match self {
            Self::Arriving(input) => input.consume(amount),
            Self::Whole(file) => file.consume(amount),
        }
    }
}

impl<R: BufRead> Read for Input<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Arriving(input) => input.read(into),
            Self::Whole(file) => file.read(into),
        }
    }
}

/// How many bytes of a frame's head must be known to know its window, or to know that more must be known.
fn head_length(head: &[u8]) -> usize {
    match head {
        [0x28, 0xb5, 0x2f, 0xfd, flags, ..] if flags & SINGLE_SEGMENT == 0 => 6,
        [0x28, 0xb5, 0x2f, 0xfd, flags, ..] => 5 + dictionary_length(*flags) + size_length(*flags),
        // A skippable frame has 8, and what is shorter is none.
        _ => 5,
    }
}

/// The flag of a frame whose window is its whole content.
const SINGLE_SEGMENT: u8 = 0x20;

/// The length of a dictionary's id in the head.
fn dictionary_length(flags: u8) -> usize {
    [0, 1, 2, 4][usize::from(flags & 3)]
}

/// The length of the content's size in the head, if that is the window.
fn size_length(flags: u8) -> usize {
    1 << (flags >> 6)
}

/// The window of a frame with this head, as RFC 8878 says; 0 if it has none.
fn window_bytes(head: &[u8]) -> u64 {
    match head {
        [0x28, 0xb5, 0x2f, 0xfd, flags, rest @ ..] if flags & SINGLE_SEGMENT != 0 => {
            let size = rest.iter().skip(dictionary_length(*flags)).take(size_length(*flags));
            size.rev().fold(0, |size, byte| size << 8 | u64::from(*byte))
        }
        [0x28, 0xb5, 0x2f, 0xfd, _flags, window, ..] => {
            let least = 1_u64 << (10 + (window >> 3));
            least + least / 8 * u64::from(window & 7)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wharf_types::{ErrorKind, Failure as _};

    use super::super::refusal;
    use super::super::windows::tests::{budget, left};
    use super::*;

    const LIMIT: u64 = 64 << 20;

    fn frame(log: u8, content: &[u8]) -> Vec<u8> {
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
        let block = u32::try_from(content.len()).unwrap() << 3 | 1;
        [&head[..], &block.to_le_bytes()[..3], content].concat()
    }

    thread_local! {
        /// Each test's own, as long as it runs.
        static DIRECTORY: tempfile::TempDir = tempfile::tempdir().unwrap();
    }

    fn open<R: BufRead>(windows: &'static Windows, input: R) -> Frames<R> {
        let directory = DIRECTORY.with(|directory| wharf_sys::fs::open(directory.path(), OFlag::O_RDONLY));
        let directory = directory.unwrap();
        let limits = &Limits { zstd_window_bytes: LIMIT, ..Limits::default() };
        let (sender, directory) = (&Sender::registry("a"), directory.as_fd());
        Frames::with(windows, input, &Means { limits, sender, directory }).unwrap()
    }

    fn kind<T>(read: io::Result<T>) -> Option<ErrorKind> {
        read.err().and_then(|error| Some(refusal(&error)?.kind()))
    }

    fn is_refused(read: io::Result<usize>) -> bool {
        kind(read) == Some(ErrorKind::Unavailable)
    }

    #[test]
    fn large_windows_share_a_budget_and_small_ones_take_nothing_of_it() {
        let windows = budget(2, Duration::ZERO);
        let (large, small) = (frame(26, b"large"), frame(23, b"small"));
        let mut into = [0; 9];
        let mut held = [open(windows, &large[..]), open(windows, &large[..])];
        for frames in &mut held {
            assert_eq!(frames.read(&mut into).unwrap(), 5);
        }
        assert_eq!(left(windows).0, 2 * LIMIT);
        assert!(is_refused(open(windows, &large[..]).read(&mut into)));
        assert!(is_refused(open(windows, &frame(24, b"")[..]).read(&mut into)));
        let mut read = Vec::new();
        open(windows, &small[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"small");
        drop(held);
        assert_eq!(left(windows).0, 4 * LIMIT);
        assert_eq!(left(windows).1, 0);
        assert!(open(windows, &large[..]).read(&mut into).is_ok());
    }

    #[test]
    fn a_later_frame_needs_a_share_too_and_all_need_one() {
        let windows = budget(1, Duration::ZERO);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let blob = [frame(10, b"a"), skipped, frame(26, b"b"), frame(25, b"c"), frame(10, b"d")].concat();
        let mut read = Vec::new();
        let mut frames = open(windows, &blob[..]);
        frames.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"abcd");
        read.clear();
        assert!(is_refused(open(windows, &blob[..]).read_to_end(&mut read)));
        assert_eq!(read, b"a");
        assert!(frames.into_input().fill_buf().unwrap().is_empty());
        assert_eq!(left(windows).0, 2 * LIMIT);
    }

    #[test]
    fn a_window_takes_what_it_needs_and_a_larger_one_is_waited_for_with_nothing() {
        let windows = budget(1, Duration::ZERO);
        let (medium, growing) = (frame(24, b"m"), [frame(25, b"a"), frame(26, b"b")].concat());
        let mut held: Vec<_> = (0..3).map(|_| open(windows, &medium[..])).collect();
        let mut grows = open(windows, &growing[..]);
        for frames in held.iter_mut().chain([&mut grows]) {
            assert_eq!(frames.read(&mut [0]).unwrap(), 1);
        }
        assert_eq!(left(windows).0, 3 * LIMIT / 4);
        assert!(is_refused(grows.read(&mut [0])), "the others have most of it");
        assert_eq!(left(windows).0, 5 * LIMIT / 4);
        held.clear();
        let mut grows = open(windows, &growing[..]);
        assert_eq!((grows.read(&mut [0]).unwrap(), grows.read(&mut [0]).unwrap()), (1, 1));
        assert_eq!(left(windows).0, LIMIT);
    }

    /// What arrives slowly, or never.
    struct Arriving<'a> {
        pieces: Vec<&'a [u8]>,
        windows: &'static Windows,
    }

    impl Read for Arriving<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            assert_eq!(left(self.windows), (2 * LIMIT, 0), "nobody has a window, or waits for one");
            let piece = self.pieces.pop().ok_or(io::ErrorKind::ConnectionAborted)?;
            into[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_large_window_is_taken_only_once_everything_has_arrived() {
        let windows = budget(1, Duration::ZERO);
        let blob = [frame(10, b"a"), frame(26, b"b"), frame(26, b"c")].concat();
        let (first, rest) = blob.split_at(20);
        let read = |pieces| {
            let mut read = Vec::new();
            let done = open(windows, BufReader::new(Arriving { pieces, windows })).read_to_end(&mut read);
            (done.map_err(|error| error.kind()), String::from_utf8(read).unwrap())
        };
        assert_eq!(read(vec![b"", rest, first]), (Ok(3), "abc".to_owned()));
        assert_eq!(read(vec![rest, first]), (Err(io::ErrorKind::ConnectionAborted), "a".to_owned()));
        assert_eq!(left(windows), (2 * LIMIT, 0));
    }

    #[test]
    fn the_head_says_how_large_the_window_is() {
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        let told = |rest: &[u8]| {
            let head = [&magic[..], rest].concat();
            assert_eq!(head_length(&head), head.len(), "{rest:x?}");
            window_bytes(&head)
        };
        assert_eq!(told(&[0, 0]), 1 << 10);
        assert_eq!(told(&[0, 13 << 3]), 8 << 20);
        assert_eq!(told(&[0xc4, 13 << 3 | 1]), 9 << 20);
        assert_eq!(told(&[0, 0xff]), (1 << 41) + (7 << 38));
        assert_eq!(told(&[0x20, 7]), 7);
        assert_eq!(told(&[0x61, 9, 1, 2]), 0x201);
        assert_eq!(told(&[0xa2, 9, 9, 1, 2, 3, 4]), 0x0403_0201);
        assert_eq!(told(&[0xe3, 9, 9, 9, 9, 1, 0, 0, 0, 0, 0, 0, 0x80]), (1 << 63) + 1);
        assert_eq!((head_length(b""), head_length(&magic), window_bytes(b"other")), (5, 5, 0));
    }

    #[test]
    fn what_is_cut_off_or_beyond_the_limit_is_an_error() {
        let windows = budget(1, Duration::ZERO);
        let whole = frame(26, b"content");
        for end in 1..whole.len() {
            assert!(open(windows, &whole[..end]).read_to_end(&mut Vec::new()).is_err(), "cut at {end}");
        }
        let beyond = open(windows, &frame(27, b"")[..]).read(&mut [0]);
        assert_eq!(kind(beyond), Some(ErrorKind::FailedPrecondition));
        let compressed = zstd::encode_all(&[7; 300_000][..], 3).unwrap();
        let mut read = Vec::new();
        open(windows, &compressed[..]).read_to_end(&mut read).unwrap();
        assert_eq!(read, [7; 300_000]);
    }
}
