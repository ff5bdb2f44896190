//! Memory for Zstandard's large windows.
//!
//! A small window is any layer's. Larger ones share a budget. Only what has arrived whole gets any of it, and gives it
//! back as fast as this machine decompresses: nobody holds it by sending slowly, and a layer that waits, waits for this
//! machine alone. One registry's layers have no more than they leave to others, as far as they can be told apart: by
//! the registry's name. A layer waits with nothing, also for a larger window than it has; so none waits for another
//! that waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wharf_types::lock::lock;

use crate::unpack::Sender;

/// The largest window that takes no share of the budget, in bytes: that of `zstd -19`. Higher levels and `--long` have
/// larger ones.
pub(crate) const SMALL_WINDOW_BYTES: u64 = 8 << 20;

/// The budget for windows of all decompressors of this process. By default one registry's half is six of 64 MiB, as
/// many layers as one pull downloads at a time: a pull waits only for others.
pub(super) static WINDOWS: Windows = Windows::new(768 << 20, Duration::from_mins(10));

/// How often it is looked whether anybody still wants a layer that waits.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Memory for windows. Of those whose registry has the least, who has waited longest is the first to get some.
pub(super) struct Windows {
    state: Mutex<State>,
    changed: Condvar,
    all_bytes: u64,
    patience: Duration,
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
pub(super) struct Share {
    windows: &'static Windows,
    registry: Arc<str>,
    pub(super) bytes: u64,
}

impl Windows {
    pub(super) const fn new(all_bytes: u64, patience: Duration) -> Self {
        let state =
            State { free_bytes: all_bytes, next: 0, waiting: VecDeque::new(), of_each: BTreeMap::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), all_bytes, patience }
    }

    /// So much memory, or half of what there is, as soon as it is free; `None` if that takes too long, or once nobody
    /// wants the layer any more: a thread waits here.
    pub(super) fn take(&'static self, sender: &Sender, bytes: u64) -> Option<Share> {
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
        is_free.then(|| Share { windows: self, registry: Arc::clone(registry), bytes })
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
pub(super) mod tests {
    use std::sync::mpsc;
    use std::thread::scope;

    use super::*;

    const LIMIT: u64 = 64 << 20;

    /// A budget of a test's own, of which one registry may have so many shares of 64 MiB.
    pub(crate) fn budget(shares: u64, patience: Duration) -> &'static Windows {
        Box::leak(Box::new(Windows::new(2 * shares * LIMIT, patience)))
    }

    /// What is free, and how many wait.
    pub(crate) fn left(windows: &Windows) -> (u64, usize) {
        let state = lock(&windows.state);
        (state.free_bytes, state.waiting.len())
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
}
