//! Zstandard, frame by frame: the head of a frame says how much memory its window takes, before that is taken.
//!
//! A small window is any layer's. Larger ones share a budget, because a registry may send many layers, each just fast
//! enough not to be given up, for hours. A layer takes all that its largest window may need, or waits with nothing; so
//! none waits for another that waits.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use wharf_types::lock::lock;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// The largest window that takes no share of the budget, in bytes: that of `zstd -19`. Higher levels and `--long` have
/// larger ones.
pub(crate) const SMALL_WINDOW_BYTES: u64 = 8 << 20;

/// The budget for windows of all decompressors of this process. By default that is six of 64 MiB, as many layers as one
/// pull downloads at a time: a pull waits only for others.
static WINDOWS: Windows = Windows::new(384 << 20, Duration::from_mins(1));

/// Why a layer is not decompressed: others had the budget for too long.
#[derive(Debug, thiserror::Error)]
#[error("a window of more than {SMALL_WINDOW_BYTES} bytes, and other layers have the memory for such")]
pub(crate) struct NoWindow;

/// The content of frames, one after another.
pub(crate) struct Frames<R> {
    input: R,
    // Before the share, so that it frees its window first.
    decoder: Decoder<'static>,
    share: Option<Share>,
    windows: &'static Windows,
    /// No frame may have a larger window.
    limit_bytes: u64,
    /// Whether a frame has begun that has not ended.
    within: bool,
}

/// Memory for windows. Whoever has waited longest is the first to get some.
struct Windows {
    state: Mutex<State>,
    changed: Condvar,
    all_bytes: u64,
    patience: Duration,
}

struct State {
    free_bytes: u64,
    /// The number of whoever comes next.
    next: u64,
    waiting: VecDeque<u64>,
}

/// Memory for a window, as long as this exists.
struct Share {
    windows: &'static Windows,
    bytes: u64,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(input: R, limit_bytes: u64) -> io::Result<Self> {
        Self::with(&WINDOWS, input, limit_bytes)
    }

    fn with(windows: &'static Windows, input: R, limit_bytes: u64) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        let log = limit_bytes.checked_ilog2().unwrap_or(0);
        decoder.set_parameter(DParameter::WindowLogMax(log))?;
        Ok(Self { input, decoder, share: None, windows, limit_bytes: 1 << log, within: false })
    }

    /// What follows the frames that were read.
    pub(super) fn into_input(self) -> R {
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
        // What is larger than the limit, the decoder refuses.
        let large = SMALL_WINDOW_BYTES.saturating_add(1)..=self.limit_bytes;
        if self.share.is_none() && large.contains(&window_bytes(&head)) {
            let share = self.windows.take(self.limit_bytes).ok_or_else(|| io::Error::other(NoWindow))?;
            self.share = Some(share);
        }
        let mut from = InBuffer::around(&head);
        while from.pos() < head.len() {
            self.decoder.run(&mut from, &mut OutBuffer::around(&mut [][..]))?;
        }
        self.within = true;
        Ok(true)
    }
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

impl Windows {
    const fn new(all_bytes: u64, patience: Duration) -> Self {
        let state = State { free_bytes: all_bytes, next: 0, waiting: VecDeque::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), all_bytes, patience }
    }

    /// So much memory, or all there is, as soon as it is free; `None` if that takes too long.
    fn take(&'static self, bytes: u64) -> Option<Share> {
        let bytes = bytes.min(self.all_bytes);
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(number);
        let waits = |state: &mut State| state.waiting.front() != Some(&number) || state.free_bytes < bytes;
        let waited = self.changed.wait_timeout_while(state, self.patience, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_free = !waits(&mut state);
        state.waiting.retain(|other| *other != number);
        if is_free {
            state.free_bytes -= bytes;
        }
        drop(state);
        self.changed.notify_all();
        is_free.then(|| Share { windows: self, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        lock(&self.windows.state).free_bytes += self.bytes;
        self.windows.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::scope;

    use super::*;

    const LIMIT: u64 = 64 << 20;

    /// A budget of a test's own.
    fn budget(shares: u64, patience: Duration) -> &'static Windows {
        Box::leak(Box::new(Windows::new(shares * LIMIT, patience)))
    }

    fn frame(log: u8, content: &[u8]) -> Vec<u8> {
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
        let block = u32::try_from(content.len()).unwrap() << 3 | 1;
        [&head[..], &block.to_le_bytes()[..3], content].concat()
    }

    fn open<'a>(windows: &'static Windows, blob: &'a [u8]) -> Frames<&'a [u8]> {
        Frames::with(windows, blob, LIMIT).unwrap()
    }

    fn is_refused(read: io::Result<usize>) -> bool {
        read.is_err_and(|error| error.get_ref().is_some_and(|error| error.is::<NoWindow>()))
    }

    #[test]
    fn large_windows_share_a_budget_and_small_ones_take_nothing_of_it() {
        let windows = budget(2, Duration::ZERO);
        let (large, small) = (frame(26, b"large"), frame(23, b"small"));
        let mut into = [0; 9];
        let mut held = [open(windows, &large), open(windows, &large)];
        for frames in &mut held {
            assert_eq!(frames.read(&mut into).unwrap(), 5);
        }
        assert_eq!(lock(&windows.state).free_bytes, 0);
        assert!(is_refused(open(windows, &large).read(&mut into)));
        assert!(is_refused(open(windows, &frame(24, b"")).read(&mut into)));
        let mut read = Vec::new();
        open(windows, &small).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"small");
        drop(held);
        assert_eq!(lock(&windows.state).free_bytes, 2 * LIMIT);
        assert!(lock(&windows.state).waiting.is_empty());
        assert!(open(windows, &large).read(&mut into).is_ok());
    }

    #[test]
    fn a_later_frame_needs_a_share_too_and_all_need_one() {
        let windows = budget(1, Duration::ZERO);
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let blob = [frame(10, b"a"), skipped, frame(26, b"b"), frame(25, b"c"), frame(10, b"d")].concat();
        let mut read = Vec::new();
        let mut frames = open(windows, &blob);
        frames.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"abcd");
        read.clear();
        assert!(is_refused(open(windows, &blob).read_to_end(&mut read)));
        assert_eq!(read, b"a");
        assert!(frames.into_input().is_empty());
        assert_eq!(lock(&windows.state).free_bytes, LIMIT);
    }

    #[test]
    fn whoever_waits_gets_what_comes_free_in_order() {
        let windows = budget(2, Duration::from_mins(1));
        let (told, order) = mpsc::channel();
        let held = windows.take(2 * LIMIT).unwrap();
        scope(|scope| {
            for (number, bytes) in [(1, 2 * LIMIT), (2, LIMIT)] {
                let told = told.clone();
                scope.spawn(move || {
                    let share = windows.take(bytes);
                    told.send((number, share.is_some())).unwrap();
                });
                while lock(&windows.state).waiting.len() < number {
                    std::thread::yield_now();
                }
            }
            // Half of it is enough for the second, who came later.
            drop(held);
        });
        assert_eq!(order.try_iter().take(2).collect::<Vec<_>>(), [(1, true), (2, true)]);
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
        let mut beyond = open(windows, &frame(27, b"")[..]).read(&mut [0]).unwrap_err();
        assert!(beyond.get_mut().is_some_and(|error| !error.is::<NoWindow>()), "{beyond}");
        let compressed = zstd::encode_all(&[7; 300_000][..], 3).unwrap();
        let mut read = Vec::new();
        open(windows, &compressed).read_to_end(&mut read).unwrap();
        assert_eq!(read, [7; 300_000]);
    }
}
