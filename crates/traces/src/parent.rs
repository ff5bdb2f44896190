//! Where a trace comes from: the W3C's trace context in the header of a call, and the decision whether to record.

use http::HeaderMap;

/// The header with the caller's span.
const TRACEPARENT: &str = "traceparent";

/// The bit of the flags that says that the caller records its span.
const SAMPLED: u8 = 1;

/// The rate at which every trace is recorded.
pub const ALL_PER_MILLION: u32 = 1_000_000;

/// A trace and the span in it of whoever called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The trace, which is not all zeros.
    pub trace_id: [u8; 16],
    /// The caller's span, which is not all zeros.
    pub span_id: [u8; 8],
    /// Whether the caller records it.
    pub is_sampled: bool,
}

impl Parent {
    /// The parent that a call names. One that is not well formed, or one of several, is none: the specification demands
    /// that the trace begins anew.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        match (all.next(), all.next()) {
            (Some(one), None) => Self::parse(one.as_bytes()),
            _ => None,
        }
    }

    /// Parses a `traceparent`: version, trace, span and flags in lower-case hexadecimal digits, with dashes in between.
    /// Version 0 has nothing else; later ones may have more after another dash.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = text.split(|byte| *byte == b'-');
        let [version] = hex(parts.next()?)?;
        let (trace_id, span_id, [flags]) = (hex(parts.next()?)?, hex(parts.next()?)?, hex(parts.next()?)?);
        let is_whole = match version {
            0 => parts.next().is_none(),
            other => other != u8::MAX,
        };
        let is_valid = is_whole && trace_id != [0; 16] && span_id != [0; 8];
        is_valid.then_some(Self { trace_id, span_id, is_sampled: flags & SAMPLED != 0 })
    }
}

/// Exactly so many bytes in lower-case hexadecimal digits.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Whether a trace that begins here is recorded, at a rate in a million. All programs that see the trace's id decide in
/// the same way, by the last seven bytes of it, which the specification demands to be random.
#[must_use]
pub fn is_sampled(trace_id: [u8; 16], rate_per_million: u32) -> bool {
    let [.., a, b, c, d, e, f, g] = trace_id;
    let random = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
    let (random, range) = (u128::from(random), 1_u128 << 56);
    random * u128::from(ALL_PER_MILLION) < range * u128::from(rate_per_million)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_parent_is_read_as_the_specification_writes_it() {
        let parent = Parent::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(parent.trace_id[..3], [0x0a, 0xf7, 0x65]);
        assert_eq!(parent.span_id[6..], [0x33, 0x31]);
        assert!(parent.is_sampled);
        let unsampled = GOOD.replace("-01", "-fe");
        assert_eq!(
            Parent::parse(unsampled.as_bytes()),
            Some(Parent { is_sampled: false, ..parent }),
            "only the last bit counts"
        );
        for later in
            [GOOD.replace("00-", "cc-"), GOOD.replace("00-", "cc-") + "-what-the-future-will-be-like"]
        {
            assert_eq!(Parent::parse(later.as_bytes()), Some(parent), "{later}");
        }
    }

    #[test]
    fn what_is_not_well_formed_is_no_parent() {
        let zeros = |count: usize| "0".repeat(count);
        for bad in [
            String::new(),
            "-".repeat(60),
            GOOD.to_uppercase(),
            GOOD.replace("00-", "ff-"),
            GOOD.replace("00-", "0-"),
            GOOD.replace("00-", "000-"),
            format!("{GOOD}-"),
            format!("{GOOD}-00"),
            format!(" {GOOD}"),
            GOOD.replace("-01", ""),
            GOOD.replace("-01", "-1"),
            GOOD.replace("-01", "-0g"),
            GOOD.replace("0af", "0a"),
            GOOD.replace("0af", "0aff"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &zeros(32)),
            GOOD.replace("b7ad6b7169203331", &zeros(16)),
            GOOD.replace('-', "_"),
            GOOD.replace("0af", "ö"),
        ] {
            assert_eq!(Parent::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn one_parent_is_one_and_two_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(Parent::of(&headers), None);
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(Parent::of(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(Parent::of(&headers), None);
        headers.insert(TRACEPARENT, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(Parent::of(&headers), None);
    }

    #[test]
    fn the_rate_is_that_of_random_ids() {
        let id = |random: u64| {
            let mut id = [0xff; 16];
            id[8..].copy_from_slice(&random.to_be_bytes());
            id
        };
        let largest = id(u64::MAX);
        assert!(is_sampled(largest, ALL_PER_MILLION) && !is_sampled(largest, ALL_PER_MILLION - 1));
        assert!(!is_sampled(id(0), 0) && is_sampled(id(0), 1));
        let half = 1 << 55;
        assert!(is_sampled(id(half - 1), ALL_PER_MILLION / 2) && !is_sampled(id(half), ALL_PER_MILLION / 2));
    }
}
