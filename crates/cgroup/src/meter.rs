//! The state of a cgroup's counters from one reading to the next, for all callers.
//!
//! It makes rates out of totals, keeps counters from falling when a cgroup was made anew, and remembers limits, which
//! rarely change and cost a file each to read. It reads nothing by itself.

use std::time::{Duration, Instant};

use crate::stats::{Bound, Stats};

/// The shortest window for a rate. A caller that comes sooner gets the last rate: over the millisecond between two
/// callers it would mean nothing.
const WINDOW_NS: i64 = 1_000_000_000;
/// How long limits are remembered: somebody else may change them.
const LIMITS_AGE: Duration = Duration::from_mins(1);

/// The remembered readings of one cgroup.
#[derive(Debug, Default)]
pub struct Meter {
    cpu_ns: u64,
    page_faults: u64,
    major_page_faults: u64,
    /// When the window began, and the CPU time at that moment.
    window: Option<(i64, u64)>,
    cpu_ns_a_second: Option<u64>,
    limits: Option<Remembered>,
}

/// The limits on memory, alone and with swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryLimits {
    pub(crate) memory: Option<Bound>,
    pub(crate) both: Option<Bound>,
}

/// The limits of the cgroup, as they were read while the lowest ones of it and its ancestors were these.
#[derive(Debug)]
struct Remembered {
    at: Instant,
    least: MemoryLimits,
    own: MemoryLimits,
}

impl Meter {
    /// The cgroup's own limits: remembered ones, unless the lowest limits of it and its ancestors are others now.
    pub(crate) fn limits(
        &mut self,
        least: MemoryLimits,
        read: impl FnOnce() -> MemoryLimits,
    ) -> MemoryLimits {
        let is_known = |known: &&Remembered| known.least == least && known.at.elapsed() < LIMITS_AGE;
        if let Some(known) = self.limits.as_ref().filter(is_known) {
            return known.own;
        }
        let (at, own) = (Instant::now(), read());
        self.limits = Some(Remembered { at, least, own });
        own
    }

    /// Has the limits read again, because they may have been changed.
    pub fn forget_limits(&mut self) {
        self.limits = None;
    }

    /// Takes a reading and keeps its counters from falling below earlier ones, even if the cgroup was made anew or is
    /// gone.
    pub fn steady(&mut self, stats: &mut Stats) {
        let counters = [
            (&mut self.cpu_ns, &mut stats.cpu.usage_ns),
            (&mut self.page_faults, &mut stats.memory.page_faults),
            (&mut self.major_page_faults, &mut stats.memory.major_page_faults),
        ];
        for (highest, value) in counters {
            if let Some(value) = value {
                *highest = (*highest).max(*value);
                *value = *highest;
            }
        }
    }

    /// Nanoseconds of CPU time per second in the last window, once there was one.
    pub fn rate(&mut self, now_ns: i64, cpu_ns: Option<u64>) -> Option<u64> {
        let cpu_ns = cpu_ns?;
        let (then_ns, before_ns) = *self.window.get_or_insert((now_ns, cpu_ns));
        let elapsed_ns = now_ns - then_ns;
        if elapsed_ns >= WINDOW_NS {
            let used = u128::from(cpu_ns.saturating_sub(before_ns)) * 1_000_000_000;
            self.cpu_ns_a_second = u64::try_from(used / u128::from(elapsed_ns.unsigned_abs())).ok();
        }
        // This includes a clock that was set back.
        if !(0..WINDOW_NS).contains(&elapsed_ns) {
            self.window = Some((now_ns, cpu_ns));
        }
        self.cpu_ns_a_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(cpu_ns: u64) -> Stats {
        let mut stats = Stats::default();
        stats.cpu.usage_ns = Some(cpu_ns);
        stats
    }

    #[test]
    fn a_counter_does_not_fall() {
        let mut meter = Meter::default();
        for (read, shown) in [(5, 5), (3, 5), (9, 9), (0, 9)] {
            let mut stats = reading(read);
            meter.steady(&mut stats);
            assert_eq!(stats.cpu.usage_ns, Some(shown));
            assert_eq!(stats.memory.page_faults, None, "what is not told is not made up");
        }
    }

    #[test]
    fn a_rate_is_of_a_second_at_least_whoever_asks() {
        let second = 1_000_000_000;
        let mut meter = Meter::default();
        let table = [
            (100, 0, None),
            // A second caller right after the first.
            (101, 1, None),
            (100 + second, 500_000_000, Some(500_000_000)),
            (101 + second, 900_000_000, Some(500_000_000)),
            (100 + 3 * second, 1_500_000_000, Some(500_000_000)),
            // The clock was set back: a new window begins.
            (50, 1_600_000_000, Some(500_000_000)),
            (50 + second, 1_700_000_000, Some(100_000_000)),
        ];
        for (now, used, expected) in table {
            assert_eq!(meter.rate(now, Some(used)), expected, "at {now}");
        }
        assert_eq!(Meter::default().rate(1, None), None);
    }
}
