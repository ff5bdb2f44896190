//! Sizes, ages and ids as people read them.

/// The first 13 characters of an id, without the name of the digest's algorithm.
pub(crate) fn short(id: &str) -> &str {
    let id = id.split_once(':').map_or(id, |(_algorithm, hex)| hex);
    id.get(..13).unwrap_or(id)
}

/// Bytes in the unit that leaves at most three digits before the point: `13.4 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

/// The age of something, in its two largest units: `2h05m`.
pub(crate) fn age(since_ns: i64, now_ns: i64) -> String {
    let seconds = now_ns.saturating_sub(since_ns).max(0) / 1_000_000_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shortened() {
        assert_eq!(short(&"a".repeat(64)), "a".repeat(13));
        assert_eq!(short(&format!("sha256:{}", "b".repeat(64))), "b".repeat(13));
        assert_eq!(short("abc"), "abc");
    }

    #[test]
    fn sizes_have_the_fitting_unit() {
        let sizes = [0, 999, 1000, 1024, 10 << 20, 1_500_000_000, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "0.9 KiB", "1.0 KiB", "10.0 MiB", "1.3 GiB", "16383.9 PiB"]);
    }

    #[test]
    fn ages_have_two_units() {
        let ages = [0, 59, 60, 3_725, 90_000].map(|seconds| age(5, 5 + seconds * 1_000_000_000));
        assert_eq!(ages, ["0s", "59s", "1m00s", "1h02m", "1d01h"]);
        assert_eq!(age(9, 5), "0s", "a clock that went back");
    }
}
