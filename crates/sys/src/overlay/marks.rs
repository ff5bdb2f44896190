//! Marks, for a table of mounts that does not name layers.
//!
//! Before Linux 6.8 the layers of an overlay are named by descriptors, so all that its line in the table shows of them
//! is numbers. But the line also has the mount's source, which means nothing to an overlay: there a few digits stand
//! for each layer. Two layers may have the same mark, so whoever looks for layers in use finds one too many, and never
//! one too few.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// What the source of such an overlay begins with; the marks follow without anything between them.
pub const MARKED: &str = "layers-";

/// What stands for a layer: hexadecimal digits.
pub type Mark = [u8; 4];

/// The mark of a layer by its name, that of the directory in which it is. It is the same in every release, because
/// mounts outlive daemons: the halves of the name's FNV-1a hash of 32 bits, by exclusive or.
#[must_use]
pub fn mark(name: &OsStr) -> Mark {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = name.as_bytes().iter().fold(0x811c_9dc5, step);
    [12, 8, 4, 0].map(|shift| HEX[((hash ^ (hash >> 16)) >> shift) as usize & 15])
}

/// The source of an overlay of these layers.
pub(super) fn source(lowers: &[&Path]) -> String {
    let name = |lower: &&Path| lower.parent().and_then(Path::file_name).unwrap_or_default().to_owned();
    let marks = lowers.iter().flat_map(|lower| mark(&name(lower))).map(char::from);
    MARKED.chars().chain(marks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_what_they_are() {
        // The published hashes of these two are 811c9dc5 and bf9cf968.
        assert_eq!((mark(OsStr::new("")), mark(OsStr::new("foobar"))), (*b"1cd9", *b"46f4"));
        let lowers = ["/l/foobar/fs", "/l/foobar/fs", "/"].map(Path::new);
        assert_eq!(source(&lowers), "layers-46f446f41cd9");
    }
}
