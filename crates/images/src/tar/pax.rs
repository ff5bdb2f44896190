//! PAX headers: `length key=value` records.

use std::collections::HashSet;

use super::sparse::PaxSparse;

/// The keys of a PAX header that matter here.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) sparse: PaxSparse,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

impl Pax {
    pub(super) fn parse(mut text: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        let mut seen = HashSet::new();
        while !text.is_empty() {
            let (key, value, rest) = record(text)?;
            text = rest;
            // Format 0.0 of sparse files repeats these two on purpose.
            let repeats = matches!(key, "GNU.sparse.offset" | "GNU.sparse.numbytes");
            if !repeats && !seen.insert(key) {
                return Err("has a PAX key twice");
            }
            pax.take(key, value)?;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &str, value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
            self.xattrs.push((name.to_owned(), value.to_vec()));
            return Ok(());
        }
        if let Some(name) = key.strip_prefix("GNU.sparse.") {
            return self.sparse.take(name, value);
        }
        // An empty value deletes an earlier setting; here there is none to delete.
        if value.is_empty() {
            return Ok(());
        }
        match key {
            "path" => self.path = Some(name(value)?),
            "linkpath" => self.link = Some(name(value)?),
            "size" => self.size = Some(decimal(value)?),
            "uid" => self.uid = Some(decimal(value)?),
            "gid" => self.gid = Some(decimal(value)?),
            "mtime" => self.mtime = Some(time(value)?),
            _ => {}
        }
        Ok(())
    }

    /// Whether it sets something that only a single file can have.
    pub(super) fn names_a_file(&self) -> bool {
        self.path.is_some() || self.link.is_some() || self.size.is_some() || self.sparse.is_present()
    }
}

/// Splits off the first record: key, value, rest.
fn record(text: &[u8]) -> Result<(&str, &[u8], &[u8]), &'static str> {
    let bad = "has a malformed PAX header";
    let space = text.iter().take(8).position(|byte| *byte == b' ').ok_or(bad)?;
    let length = usize::try_from(decimal(&text[..space])?).map_err(|_range| bad)?;
    if length > text.len() || length < space + 3 || text[length - 1] != b'\n' {
        return Err(bad);
    }
    let record = &text[space + 1..length - 1];
    let equals = record.iter().position(|byte| *byte == b'=').ok_or(bad)?;
    let key = std::str::from_utf8(&record[..equals]).map_err(|_not_text| bad)?;
    if key.is_empty() || key.contains('\0') {
        return Err(bad);
    }
    Ok((key, &record[equals + 1..], &text[length..]))
}

pub(super) fn name(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) { Err("has a NUL byte in a PAX name") } else { Ok(value.to_vec()) }
}

/// Decimal digits and nothing else.
pub(super) fn decimal(value: &[u8]) -> Result<u64, &'static str> {
    let bad = "has a number in PAX that is not decimal or too large";
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).ok_or(bad)
}

/// `[-]seconds[.fraction]`, rounded down to nanoseconds.
fn time(value: &[u8]) -> Result<(i64, u32), &'static str> {
    let bad = "has a time in PAX that is out of range";
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let dot = value.iter().position(|byte| *byte == b'.').unwrap_or(value.len());
    let seconds = i64::try_from(decimal(&value[..dot])?).map_err(|_range| bad)?;
    let fraction = value.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |sum: u32, digit| sum * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let pax = Pax::parse(b"12 path=a/b\n14 mtime=-1.5\n22 SCHILY.xattr.u=a=b\n").unwrap();
        assert_eq!(pax.path.unwrap(), b"a/b");
        assert_eq!(pax.mtime, Some((-2, 500_000_000)));
        assert_eq!(pax.xattrs, [("u".to_owned(), b"a=b".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"12 path=a/b"[..],
            b"99 path=a/b\n",
            b"+12 path=a/b\n",
            b" 12 path=a/b\n",
            b"12 patha/b..\n",
            b"5 =a\n",
            b"0 path=a\n",
            b"14 path=a\0b...\n",
            b"12 path=a/b\n12 path=c/d\n",
            b"9 size=1\n9 size=1\n",
            b"10 size=-1\n",
            b"11 size=0x1\n",
            b"garbage",
        ] {
            assert!(Pax::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
