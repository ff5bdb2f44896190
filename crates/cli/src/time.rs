//! Points in time, as nanoseconds since the epoch and as RFC 3339 in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const NS_A_SECOND: i64 = 1_000_000_000;

/// The present time.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `2026-01-31T12:00:00.25Z`, to the nanosecond; empty for 0, which means "never".
pub(crate) fn text(ns: i64) -> String {
    if ns == 0 {
        return String::new();
    }
    let seconds = ns.div_euclid(NS_A_SECOND);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match ns.rem_euclid(NS_A_SECOND) {
        0 => String::new(),
        ns => format!(".{ns:09}").trim_end_matches('0').to_owned(),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Parses RFC 3339: date, `T`, time, an optional fraction, and `Z` or an offset.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u16>().ok().map(i64::from);
    let marks = [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':')];
    if marks.iter().any(|&(at, mark)| text.get(at..=at).and_then(|c| c.chars().next()) != Some(mark)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Not every month has 31 days.
    let day_of_all = days(year, month, day);
    if date(day_of_all) != (year, month, day) {
        return None;
    }
    let rest = text.get(19..)?;
    let zone_at = rest.find(['Z', '+', '-'])?;
    let (fraction, zone) = rest.split_at(zone_at);
    let seconds = day_of_all * 86_400 + hour * 3600 + minute * 60 + second - offset_s(zone)?;
    seconds.checked_mul(NS_A_SECOND)?.checked_add(fraction_ns(fraction)?)
}

/// `Z` or `+02:00`, in seconds.
fn offset_s(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    Some(sign * (i64::from(hours.parse::<u8>().ok()?) * 3600 + i64::from(minutes.parse::<u8>().ok()?) * 60))
}

/// An empty text, or `.` and digits.
fn fraction_ns(text: &str) -> Option<i64> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix('.')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{digits:0<9}").get(..9)?.parse().ok()
}

/// A point in time, or its age: `90s`, `10m`, `2h`, `1d`.
pub(crate) fn since(text: &str) -> Result<i64, String> {
    if let Some(ns) = parse(text) {
        return Ok(ns);
    }
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err("write a time such as 2026-01-31T12:00:00Z, or 90s, 10m, 2h or 1d".into()),
    };
    let number = text[..text.len() - 1].parse::<u32>();
    let number = number.map_err(|_malformed| "write a whole number and a unit, such as 10m".to_owned())?;
    Ok(now_ns() - i64::from(number) * unit_s * NS_A_SECOND)
}

/// The number of days from the epoch to a date of the Gregorian calendar. Years are counted from March, so that a leap
/// day is the last day of a year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date that is this many days from the epoch.
fn date(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = (from_march + 2) % 12 + 1;
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back() {
        for text in
            ["1970-01-01T00:00:01Z", "2000-02-29T23:59:59Z", "2026-12-31T12:34:56Z", "1969-07-20T20:17:40Z"]
        {
            assert_eq!(super::text(parse(text).unwrap()), text);
        }
        assert_eq!(text(0), "");
        for day in (-1_000_000..1_000_000).step_by(997) {
            let (year, month, of_month) = date(day);
            assert_eq!(days(year, month, of_month), day);
        }
    }

    #[test]
    fn fractions_and_zones_are_read() {
        assert_eq!(parse("1970-01-01T00:00:00.000000001Z"), Some(1));
        assert_eq!(parse("1970-01-01T01:00:00.5+01:00"), Some(500_000_000));
        assert_eq!(parse("1970-01-01T00:00:00-01:30"), Some(5_400 * NS_A_SECOND));
        for bad in [
            "",
            "1970-01-01",
            "1970-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "1970-01-01T00:00:00",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00ü",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_may_be_told_from_now() {
        let ago = now_ns() - since("10m").unwrap();
        assert!((600 * NS_A_SECOND - ago).abs() < 5 * NS_A_SECOND);
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(NS_A_SECOND));
        for bad in ["", "m", "10", "-1m", "1.5h", "10ü"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
