//! Zstandard, frame by frame: the head of a frame says how much memory its window takes, before that is taken.
//!
//! A small window is any layer's. Larger ones share a budget, because a registry may send many layers, each just fast
//! enough not to be given up, for hours. So one registry's layers have no more of it than they leave to others, as far
//! as they can be told apart: by the registry's name, of which one may have many. Therefore who has had a window for
//! long gives it up if a registry that has none waits. A layer waits with nothing, also for a larger window than it
//! has; so none waits for another that waits.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, Read};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wharf_types::lock::lock;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::unpack::Sender;

/// The largest window that takes no share of the budget, in bytes: that of `zstd -19`. Higher levels and `--long` have
/// larger ones.
pub(crate) const SMALL_WINDOW_BYTES: u64 = 8 << 20;

/// The budget for windows of all decompressors of this process. By default one registry's half is six of 64 MiB, as
/// many layers as one pull downloads at a time: a pull waits only for others.
static WINDOWS: Windows = Windows::new(768 << 20, Duration::from_mins(10));

/// How long a layer may keep a window that a registry without any waits for. Less than that one waits.
const HOLD: Duration = Duration::from_mins(5);

/// How often it is looked whether anybody still wants a layer that waits.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why a layer is not decompressed: others had the budget for too long.
#[derive(Debug, thiserror::Error)]
#[error(
    "it needs a window (Zstandard) of more than {SMALL_WINDOW_BYTES} bytes, and other layers have the memory for such: \
     try again later"
)]
pub(crate) struct NoWindow;

/// The content of frames, one after another.
pub(crate) struct Frames<R> {
    input: R,
    // Before the share, so that it frees its window first.
    decoder: Decoder<'static>,
    share: Option<Share>,
    windows: &'static Windows,
    sender: Sender,
    /// No frame may have a larger window.
    limit_bytes: u64,
    /// Whether a frame has begun that has not ended.
    within: bool,
}

/// Memory for windows. Of those whose registry has the least, who has waited longest is the first to get some.
struct Windows {
    state: Mutex<State>,
    changed: Condvar,
    all_bytes: u64,
    patience: Duration,
    hold: Duration,
}

struct State {
    free_bytes: u64,
    /// The number of whoever comes next.
    next: u64,
    waiting: VecDeque<(u64, Arc<str>)>,
    /// What each registry has; never zero.
    of_each: BTreeMap<Arc<str>, u64>,
}

/// Memory for a window, as long as this exists.
struct Share {
    windows: &'static Windows,
    registry: Arc<str>,
    bytes: u64,
    since: Instant,
}

impl<R: BufRead> Frames<R> {
    /// Decompresses what a registry sends.
    pub(super) fn new(input: R, limit_bytes: u64, sender: &Sender) -> io::Result<Self> {
        Self::with(&WINDOWS, input, limit_bytes, sender)
    }

    fn with(windows: &'static Windows, input: R, limit_bytes: u64, sender: &Sender) -> io::Result<Self> {
        let limit_bytes = 1 << limit_bytes.checked_ilog2().unwrap_or(0);
        let (decoder, sender) = (decoder(limit_bytes)?, sender.clone());
        Ok(Self { input, decoder, share: None, windows, sender, limit_bytes, within: false })
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
        self.make_room(window_bytes(&head))?;
        let mut from = InBuffer::around(&head);
        while from.pos() < head.len() {
            self.decoder.run(&mut from, &mut OutBuffer::around(&mut [][..]))?;
        }
        self.within = true;
        Ok(true)
    }
}

impl<R> Frames<R> {
    /// Takes a share for a large window, unless there is one that is large enough.
    fn make_room(&mut self, window_bytes: u64) -> io::Result<()> {
        let has_bytes = self.share.as_ref().map_or(SMALL_WINDOW_BYTES, |share| share.bytes);
        // What is larger than the limit, the decoder refuses.
        if window_bytes <= has_bytes || window_bytes > self.limit_bytes {
            return Ok(());
        }
        // It keeps the memory of its largest window.
        self.decoder = decoder(self.limit_bytes)?;
        self.share = None;
        let share = self.windows.take(&self.sender, window_bytes.next_power_of_two());
        self.share = Some(share.ok_or_else(|| io::Error::other(NoWindow))?);
        Ok(())
    }
}

fn decoder(limit_bytes: u64) -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(limit_bytes.ilog2()))?;
    Ok(decoder)
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !into.is_empty() && (self.within || self.begin()?) {
            if self.share.as_ref().is_some_and(Share::is_overdue) {
                return Err(io::Error::other(NoWindow));
            }
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
        let state =
            State { free_bytes: all_bytes, next: 0, waiting: VecDeque::new(), of_each: BTreeMap::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), all_bytes, patience, hold: HOLD }
    }

    /// So much memory, or half of what there is, as soon as it is free; `None` if that takes too long, or once nobody
    /// wants the layer any more: a thread waits here.
    fn take(&'static self, sender: &Sender, bytes: u64) -> Option<Share> {
        let (registry, bytes) = (&sender.registry, bytes.min(self.all_bytes / 2));
        let deadline = Instant::now() + self.patience;
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, Arc::clone(registry)));
        let is_free = loop {
            if state.first() == Some(number) && state.leaves_enough(registry, bytes) {
                break true;
            }
            let left = deadline.saturating_duration_since(Instant::now()).min(LOOK_AGAIN);
            if left.is_zero() || sender.is_given_up.load(Relaxed) {
                break false;
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        };
        state.waiting.retain(|(other, _)| *other != number);
        if is_free {
            state.free_bytes -= bytes;
            *state.of_each.entry(Arc::clone(registry)).or_default() += bytes;
        }
        drop(state);
        self.changed.notify_all();
        is_free.then(|| Share { windows: self, registry: Arc::clone(registry), bytes, since: Instant::now() })
    }
}

impl State {
    fn of(&self, registry: &Arc<str>) -> u64 {
        self.of_each.get(registry).copied().unwrap_or(0)
    }

    /// The number of whoever is the first to get some.
    fn first(&self) -> Option<u64> {
        let first = self.waiting.iter().min_by_key(|(_, registry)| self.of(registry));
        first.map(|(number, _)| *number)
    }

    /// Whether a registry that gets so much more leaves as much to others as it had.
    fn leaves_enough(&self, registry: &Arc<str>, bytes: u64) -> bool {
        self.of(registry) + bytes <= self.free_bytes
    }
}

impl Share {
    /// Whether it was held for long, and a registry without any waits.
    fn is_overdue(&self) -> bool {
        self.since.elapsed() >= self.windows.hold && {
            let state = lock(&self.windows.state);
            state.waiting.iter().any(|(_, registry)| state.of(registry) == 0)
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = lock(&self.windows.state);
        state.free_bytes += self.bytes;
        if let Some(bytes) = state.of_each.get_mut(&self.registry) {
            *bytes -= self.bytes;
        }
        state.of_each.retain(|_registry, bytes| *bytes > 0);
        drop(state);
        self.windows.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::scope;

    use super::*;

    const LIMIT: u64 = 64 << 20;

    /// A budget of a test's own, of which one registry may have so many shares.
    fn budget(shares: u64, patience: Duration) -> &'static Windows {
        Box::leak(Box::new(Windows::new(2 * shares * LIMIT, patience)))
    }

    fn frame(log: u8, content: &[u8]) -> Vec<u8> {
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
        let block = u32::try_from(content.len()).unwrap() << 3 | 1;
        [&head[..], &block.to_le_bytes()[..3], content].concat()
    }

    fn open<'a>(windows: &'static Windows, blob: &'a [u8]) -> Frames<&'a [u8]> {
        Frames::with(windows, blob, LIMIT, &Sender::registry("a")).unwrap()
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
        assert_eq!(lock(&windows.state).free_bytes, 2 * LIMIT);
        assert!(is_refused(open(windows, &large).read(&mut into)));
        assert!(is_refused(open(windows, &frame(24, b"")).read(&mut into)));
        let mut read = Vec::new();
        open(windows, &small).read_to_end(&mut read).unwrap();
        assert_eq!(read, b"small");
        drop(held);
        assert_eq!(lock(&windows.state).free_bytes, 4 * LIMIT);
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
        assert_eq!(lock(&windows.state).free_bytes, 2 * LIMIT);
    }

    #[test]
    fn a_window_takes_what_it_needs_and_a_larger_one_is_waited_for_with_nothing() {
        let windows = budget(1, Duration::ZERO);
        let (medium, growing) = (frame(24, b"m"), [frame(25, b"a"), frame(26, b"b")].concat());
        let mut held: Vec<_> = (0..3).map(|_| open(windows, &medium)).collect();
        let mut grows = open(windows, &growing);
        for frames in held.iter_mut().chain([&mut grows]) {
            assert_eq!(frames.read(&mut [0]).unwrap(), 1);
        }
        assert_eq!(lock(&windows.state).free_bytes, 3 * LIMIT / 4);
        assert!(is_refused(grows.read(&mut [0])), "the others have most of it");
        assert_eq!(lock(&windows.state).free_bytes, 5 * LIMIT / 4);
        held.clear();
        let mut grows = open(windows, &growing);
        assert_eq!((grows.read(&mut [0]).unwrap(), grows.read(&mut [0]).unwrap()), (1, 1));
        assert_eq!(lock(&windows.state).free_bytes, LIMIT);
    }

    #[test]
    fn whoever_waits_gets_what_comes_free_in_order() {
        let windows = budget(2, Duration::from_mins(1));
        let (told, order) = mpsc::channel();
        let registry = &Sender::registry("a");
        let held = windows.take(registry, 2 * LIMIT).unwrap();
        scope(|scope| {
            for (number, bytes) in [(1, 2 * LIMIT), (2, LIMIT)] {
                let told = told.clone();
                scope.spawn(move || {
                    let share = windows.take(registry, bytes);
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
    fn a_layer_that_nobody_wants_any_more_does_not_wait() {
        let windows = budget(1, Duration::from_hours(1));
        let (slow, late) = (Sender::registry("slow"), Sender::registry("slow"));
        let held = windows.take(&slow, LIMIT).unwrap();
        scope(|scope| {
            let waits = scope.spawn(|| windows.take(&late, LIMIT).is_some());
            while lock(&windows.state).waiting.is_empty() {
                std::thread::yield_now();
            }
            late.give_up();
            assert!(!waits.join().unwrap());
        });
        assert!(lock(&windows.state).waiting.is_empty());
        drop(held);
    }

    #[test]
    fn who_has_had_a_window_for_long_gives_it_up_to_a_registry_without_any() {
        let mut windows = Windows::new(2 * LIMIT, Duration::from_hours(1));
        windows.hold = Duration::ZERO;
        let windows: &'static Windows = Box::leak(Box::new(windows));
        let blob = [frame(26, b"a"), frame(26, b"b"), frame(26, b"c")].concat();
        let (mut slow, mut into) = (open(windows, &blob), [0]);
        assert_eq!(slow.read(&mut into).unwrap(), 1);
        let other = windows.take(&Sender::registry("c"), LIMIT).unwrap();
        let wait = |count| {
            while lock(&windows.state).waiting.len() < count {
                std::thread::yield_now();
            }
        };
        scope(|scope| {
            let own = Sender::registry("a");
            let more = scope.spawn({
                let own = own.clone();
                move || windows.take(&own, LIMIT).is_some()
            });
            wait(1);
            assert_eq!(slow.read(&mut into).unwrap(), 1, "only its own registry waits");
            let none = scope.spawn(|| windows.take(&Sender::registry("b"), LIMIT).is_some());
            wait(2);
            assert!(is_refused(slow.read(&mut into)));
            drop(slow);
            assert!(none.join().unwrap(), "and not to its own registry's");
            own.give_up();
            more.join().unwrap();
        });
        drop(other);
    }

    #[test]
    fn one_registry_leaves_windows_to_others() {
        let windows = budget(3, Duration::ZERO);
        let mut held = Vec::new();
        for (registry, shares) in [("slow", 3), ("other", 2), ("third", 1), ("fourth", 0)] {
            let sender = Sender::registry(registry);
            let taken: Vec<_> = std::iter::from_fn(|| windows.take(&sender, LIMIT)).collect();
            assert_eq!(taken.len(), shares, "{registry}");
            held.extend(taken);
        }
        drop(held);
        let all = windows.take(&Sender::registry("large"), 9 * LIMIT).unwrap();
        assert_eq!(all.bytes, 3 * LIMIT, "even the largest window is only half");
        drop(all);
        let state = lock(&windows.state);
        assert_eq!((state.free_bytes, state.of_each.len(), state.waiting.len()), (6 * LIMIT, 0, 0));
    }

    #[test]
    fn what_comes_free_goes_to_the_registry_that_has_the_least() {
        let windows = budget(1, Duration::from_mins(1));
        let [slow, other, third] = &["slow", "other", "third"].map(Sender::registry);
        let take = |sender| windows.take(sender, LIMIT).unwrap();
        let wait_for = |count| {
            while lock(&windows.state).waiting.len() < count {
                std::thread::yield_now();
            }
        };
        let (of_slow, of_other) = (take(slow), take(other));
        scope(|scope| {
            let more = scope.spawn(|| drop(take(slow)));
            wait_for(1);
            let first = scope.spawn(|| take(third));
            wait_for(2);
            drop(of_other);
            let first = first.join().unwrap();
            assert!(!more.is_finished(), "its registry has one");
            drop((of_slow, first));
        });
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
