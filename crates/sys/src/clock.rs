//! The wall clock, for people and for the CRI, and the monotonic clock, for deadlines between processes.
//!
//! Numbers are for what is handed on: to the supervisor's machine, which reads no clock, to records, and to another
//! process. A wait within one process has an `Instant`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// CLOCK_MONOTONIC in nanoseconds. Nobody can set it, and it is the same in every process of the machine that is not in
/// a time namespace.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that may be written, and the call keeps no pointer to it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
    let since = seconds + Duration::from_nanos(time.tv_nsec.unsigned_abs());
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_monotonic_clock_is_the_one_that_instants_are_of() {
        let (earlier, before) = (monotonic_ns(), Instant::now());
        let start = monotonic_ns();
        while start == monotonic_ns() {}
        let (later, after) = (monotonic_ns(), Instant::now());
        assert!(
            later > earlier
                && Duration::from_nanos(later - earlier) <= after - before + Duration::from_secs(1)
        );
    }
}
