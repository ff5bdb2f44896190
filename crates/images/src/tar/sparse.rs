//! Files with holes: GNU tar's four ways to say where the content goes.

use super::header::{BLOCK, number};
use super::pax::{decimal, name};

/// The most regions of one file.
const REGIONS_LIMIT: usize = 65_536;
const TOO_MANY: &str = "has more than 65536 regions";

/// Where the content of a file goes; between the regions are holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// The size of the file with its holes.
    pub(crate) size_bytes: u64,
    /// Offset and length, ascending.
    pub(crate) regions: Vec<(u64, u64)>,
}

impl SparseMap {
    pub(super) fn new(size_bytes: u64) -> Self {
        Self { size_bytes, regions: Vec::new() }
    }

    /// Adds the pairs of a GNU header; returns whether blocks with more of them follow.
    pub(super) fn extend_from_header(&mut self, pairs: &[u8], continues: u8) -> Result<bool, &'static str> {
        for pair in pairs.chunks_exact(24) {
            if pair[0] == 0 || pair[12] == 0 {
                break;
            }
            self.push(number(&pair[..12])?, number(&pair[12..])?)?;
        }
        match continues {
            0 | b'0' => Ok(false),
            1 | b'1' => Ok(true),
            _ => Err("has a malformed map of holes"),
        }
    }

    /// Adds the pairs of a block that follows a GNU header; returns whether more follow.
    pub(super) fn extend(&mut self, block: &[u8; BLOCK]) -> Result<bool, &'static str> {
        self.extend_from_header(&block[..504], block[504])
    }

    fn push<T: TryInto<u64>>(&mut self, offset: T, length: T) -> Result<(), &'static str> {
        let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else {
            return Err("has a negative region");
        };
        if self.regions.len() == REGIONS_LIMIT {
            return Err(TOO_MANY);
        }
        self.regions.push((offset, length));
        Ok(())
    }

    /// The regions must ascend, lie within the file, and hold exactly the content.
    pub(super) fn check(&self, content_bytes: u64) -> Result<(), &'static str> {
        let bad = "has a map of holes that contradicts itself or the size";
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &self.regions {
            if *offset < end {
                return Err(bad);
            }
            end = offset.checked_add(*length).ok_or(bad)?;
            sum = sum.checked_add(*length).ok_or(bad)?;
        }
        let limit = i64::MAX.cast_unsigned();
        if end > self.size_bytes || sum != content_bytes || self.size_bytes > limit {
            Err(bad)
        } else {
            Ok(())
        }
    }
}

/// The `GNU.sparse.*` records of a PAX header.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    /// `size` of 0.x and `realsize` of 1.0.
    size: Option<u64>,
    numbers: Vec<u64>,
    count: Option<u64>,
    present: bool,
}

impl PaxSparse {
    pub(super) fn take(&mut self, key: &str, value: &[u8]) -> Result<(), &'static str> {
        self.present = true;
        match key {
            "name" => self.name = Some(name(value)?),
            "major" => self.major = Some(decimal(value)?),
            "minor" => self.minor = Some(decimal(value)?),
            "size" | "realsize" => {
                if self.size.replace(decimal(value)?).is_some() {
                    return Err("has the size of a file with holes twice");
                }
            }
            "numblocks" => self.count = Some(decimal(value)?),
            "offset" if self.numbers.len().is_multiple_of(2) => self.add(value)?,
            "numbytes" if !self.numbers.len().is_multiple_of(2) => self.add(value)?,
            "map" if self.numbers.is_empty() => {
                value.split(|byte| *byte == b',').try_for_each(|n| self.add(n))?
            }
            _ => return Err("has a malformed map of holes"),
        }
        Ok(())
    }

    fn add(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if self.numbers.len() == 2 * REGIONS_LIMIT {
            return Err(TOO_MANY);
        }
        self.numbers.push(decimal(value)?);
        Ok(())
    }

    pub(super) fn is_present(&self) -> bool {
        self.present
    }

    /// Whether the map precedes the content: format 1.0.
    pub(super) fn is_in_content(&self) -> Result<bool, &'static str> {
        match (self.major, self.minor) {
            (Some(1), Some(0)) if self.numbers.is_empty() => Ok(true),
            (None, None) | (Some(0), Some(0 | 1)) => Ok(false),
            _ => Err("has holes in an unknown format"),
        }
    }

    /// The map of format 0.0 or 0.1.
    pub(super) fn map(&self) -> Result<SparseMap, &'static str> {
        let bad = "has a malformed map of holes";
        let regions: Vec<_> = self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let whole = self.numbers.len().is_multiple_of(2);
        if !whole || self.count.is_some_and(|count| count != regions.len() as u64) {
            return Err(bad);
        }
        Ok(SparseMap { size_bytes: self.size.ok_or(bad)?, regions })
    }

    /// A reader of the map of format 1.0.
    pub(super) fn lines(&self) -> Result<MapLines, &'static str> {
        let size = self.size.ok_or("has holes and no size")?;
        Ok(MapLines { map: SparseMap::new(size), count: None, offset: None, digits: Vec::new() })
    }
}

/// A map in lines: the number of regions, then an offset and a length for each.
pub(super) struct MapLines {
    map: SparseMap,
    count: Option<u64>,
    offset: Option<u64>,
    digits: Vec<u8>,
}

impl MapLines {
    /// Takes a block; returns the map when it is complete. The rest of the last block is padding.
    pub(super) fn push(&mut self, block: &[u8; BLOCK]) -> Result<Option<SparseMap>, &'static str> {
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > 20 {
                    return Err("has a malformed map of holes");
                }
                continue;
            }
            let value = decimal(&std::mem::take(&mut self.digits))?;
            match (self.count, self.offset.take()) {
                (None, _) if value > REGIONS_LIMIT as u64 => return Err(TOO_MANY),
                (None, _) => self.count = Some(value),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.map.push(offset, value)?,
            }
            if self.count == Some(self.map.regions.len() as u64) {
                return Ok(Some(self.map.clone()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_must_fit_the_file() {
        let map = |regions: &[(u64, u64)]| SparseMap { size_bytes: 100, regions: regions.to_vec() };
        map(&[(0, 10), (20, 5), (100, 0)]).check(15).unwrap();
        for (bad, content) in [
            (map(&[(0, 10), (5, 10)]), 20),
            (map(&[(90, 20)]), 20),
            (map(&[(0, 10)]), 11),
            (map(&[(u64::MAX, 1)]), 1),
        ] {
            assert!(bad.check(content).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn too_many_regions_are_refused_before_they_are_kept() {
        let mut lines = MapLines { map: SparseMap::new(1), count: None, offset: None, digits: Vec::new() };
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(b"1000000\n");
        assert_eq!(lines.push(&block).unwrap_err(), TOO_MANY);
    }
}
