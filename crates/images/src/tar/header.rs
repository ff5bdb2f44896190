//! The 512-byte header, in its dialects.

use super::SparseMap;

pub(super) const BLOCK: usize = 512;

/// The fields of one header, without extensions.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size_bytes: u64,
    pub(super) mtime: i64,
    device: (i64, i64),
    /// Only for type `S`.
    pub(super) sparse: Option<SparseMap>,
    pub(super) sparse_continues: bool,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let sum = number(&block[148..156])?;
        let bytes =
            || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let unsigned: i64 = bytes().map(i64::from).sum();
        // Some old programs added up the bytes as signed.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if sum != unsigned && sum != signed {
            return Err("has a wrong checksum");
        }
        let (posix, gnu) = (&block[257..263] == b"ustar\0", &block[257..265] == b"ustar  \0");
        let mut name = text(&block[..100]);
        if posix {
            let star = &block[508..512] == b"tar\0";
            let prefix = text(if star { &block[345..476] } else { &block[345..500] });
            if !prefix.is_empty() {
                name = [&prefix[..], b"/", &name].concat();
            }
        }
        let kind = block[156];
        let (mut device, mut sparse, mut sparse_continues) = ((0, 0), None, false);
        if matches!(kind, b'3' | b'4') && (posix || gnu) {
            device = (number(&block[329..337])?, number(&block[337..345])?);
        }
        if kind == b'S' {
            let size = u64::try_from(number(&block[483..495])?).map_err(|_negative| "has a negative size")?;
            let mut map = SparseMap::new(size);
            sparse_continues = map.extend_from_header(&block[386..482], block[482])?;
            sparse = Some(map);
        }
        let size = number(&block[124..136])?;
        let size_bytes = u64::try_from(size).map_err(|_negative| "has a negative size")?;
        if size > i64::MAX - 1024 {
            return Err("has a size that is out of range");
        }
        let mode =
            u32::try_from(number(&block[100..108])?).map_err(|_range| "has a mode that is out of range")?;
        Ok(Self {
            kind,
            name,
            link: text(&block[157..257]),
            mode,
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            size_bytes,
            mtime: number(&block[136..148])?,
            device,
            sparse,
            sparse_continues,
        })
    }

    /// The device number, if the kernel can have it: 12 bits of major, 20 of minor.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let major = u32::try_from(self.device.0).ok().filter(|major| *major < 1 << 12)?;
        let minor = u32::try_from(self.device.1).ok().filter(|minor| *minor < 1 << 20)?;
        Some((major, minor))
    }
}

/// The bytes before the first NUL.
fn text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A number: octal digits, or GNU's base 256 if the first bit is set (then the second bit is the sign).
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let negative = field[0] & 0x40 != 0;
    let fill = if negative { 0xff } else { 0 };
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let (high, low) = field.split_at(field.len() - 8);
    let fits = high.iter().enumerate().all(|(at, byte)| if at == 0 { first == fill } else { *byte == fill });
    let mut bytes = [0; 8];
    bytes.copy_from_slice(low);
    if high.is_empty() {
        bytes[0] = first;
    }
    let value = i64::from_be_bytes(bytes);
    if fits && (value < 0) == negative { Ok(value) } else { Err("has a number that is out of range") }
}

fn octal(field: &[u8]) -> Result<i64, &'static str> {
    let digits = text(field);
    let digits = digits.trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => Ok((value << 3) | i64::from(digit - b'0')),
        _ => Err("has a number that is not octal"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_notations() {
        for (field, want) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"77777777", 0o7777_7777),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", 0x2_0000_0000),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", -1),
        ] {
            assert_eq!(number(field), Ok(want), "{field:?}");
        }
    }

    #[test]
    fn other_notations_are_refused() {
        for bad in [&b"0x1f\0\0\0\0"[..], b"-1\0\0\0\0\0\0", b"8\0\0\0\0\0\0\0", b"1 2\0\0\0\0\0"] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
        assert!(number(b"\x80\x01\0\0\0\0\0\0\0\0\0\0").is_err());
        assert!(number(b"\x80\0\0\0\xff\0\0\0\0\0\0\0").is_err());
    }
}
