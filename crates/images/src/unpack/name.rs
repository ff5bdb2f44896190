//! The meaning of an entry's name: a path below the layer's root, or a whiteout.
//!
//! Names are bytes from an image, and hostile: one that leads out of the layer is refused.

use super::{UnpackError, shown};

const PATH_LIMIT_BYTES: usize = 4096;
const COMPONENT_LIMIT_BYTES: usize = 255;
const WHITEOUT: &[u8] = b".wh.";

/// A parsed name. Paths are relative to the layer's root, without empty components and dots.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The layer's root itself.
    Root,
    /// Something in a directory.
    In { parent: Vec<u8>, name: Vec<u8> },
    /// Hides that name in the layers below.
    Whiteout { parent: Vec<u8>, name: Vec<u8> },
    /// Hides what the layers below have in that directory.
    Opaque { parent: Vec<u8> },
    /// It belongs to an old driver and has no meaning.
    Ignored,
}

impl Name {
    pub(super) fn of_entry(path: &[u8], depth_limit: usize) -> Result<Self, UnpackError> {
        let (parent, name) = split(path, depth_limit)?;
        let Some(name) = name else { return Ok(Self::Root) };
        if name == b".wh..wh..opq" {
            return Ok(Self::Opaque { parent });
        }
        if name.starts_with(b".wh..wh.") {
            return Ok(Self::Ignored);
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(Self::In { parent, name }) };
        if matches!(hidden, b"" | b"." | b"..") || hidden.contains(&b'\n') {
            return Err(error(path, "is a whiteout of an impossible name"));
        }
        Ok(Self::Whiteout { parent, name: hidden.to_vec() })
    }

    /// Parses the target of a hard link into its parent and last component.
    pub(super) fn of_link(path: &[u8], depth_limit: usize) -> Result<(Vec<u8>, Vec<u8>), UnpackError> {
        match split(path, depth_limit)? {
            (_, None) => Err(error(path, "is the target of a hard link and the root")),
            (_, Some(name)) if name.starts_with(WHITEOUT) => {
                Err(error(path, "is the target of a hard link and a whiteout"))
            }
            (parent, Some(name)) => Ok((parent, name)),
        }
    }
}

/// Normalises a path and splits off its last component; `None` for the root.
fn split(path: &[u8], depth_limit: usize) -> Result<(Vec<u8>, Option<Vec<u8>>), UnpackError> {
    if path.len() > PATH_LIMIT_BYTES {
        return Err(error(path, "has more than 4096 bytes"));
    }
    if path.is_empty() || path.contains(&0) {
        return Err(error(path, "has an empty name or a NUL byte"));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.len() > depth_limit {
        return Err(error(path, "is nested too deeply"));
    }
    for part in &parts {
        if *part == b".." {
            return Err(error(path, "has a component .."));
        }
        if part.len() > COMPONENT_LIMIT_BYTES {
            return Err(error(path, "has a component of more than 255 bytes"));
        }
    }
    let Some((last, parents)) = parts.split_last() else { return Ok((Vec::new(), None)) };
    if parents.iter().any(|part| part.starts_with(WHITEOUT) && !part.starts_with(b".wh..wh.")) {
        return Err(error(path, "lies in a whiteout"));
    }
    if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
        // It is inside a directory of the old driver.
        return Ok((Vec::new(), Some(b".wh..wh.plnk".to_vec())));
    }
    Ok((parents.join(&b'/'), Some(last.to_vec())))
}

fn error(path: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Entry { path: shown(path), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(parent: &str, name: &str) -> Name {
        Name::In { parent: parent.into(), name: name.into() }
    }

    #[test]
    fn names_are_cleaned_and_sorted() {
        let whiteout = Name::Whiteout { parent: b"a".to_vec(), name: b"b".to_vec() };
        for (path, want) in [
            ("a", inside("", "a")),
            ("/a//./b/", inside("a", "b")),
            ("./", Name::Root),
            ("/", Name::Root),
            ("a/.wh.b", whiteout),
            ("a/b/.wh..wh..opq", Name::Opaque { parent: b"a/b".to_vec() }),
            (".wh..wh.aufs", Name::Ignored),
            (".wh..wh.plnk/1.2", Name::Ignored),
            ("a/..b", inside("a", "..b")),
            (".whx", inside("", ".whx")),
        ] {
            assert_eq!(Name::of_entry(path.as_bytes(), 10).unwrap(), want, "{path}");
        }
    }

    #[test]
    fn impossible_names_are_refused() {
        let (deep, long, wide) = ("a/".repeat(11), "a".repeat(256), "a/".repeat(3000));
        for bad in [
            "", "..", "../a", "a/../b", "a/..", "a\0b", ".wh.", ".wh...", "a/.wh..", ".wh.a\nb", ".wh.a/b",
            &deep, &long, &wide,
        ] {
            assert!(Name::of_entry(bad.as_bytes(), 10).is_err(), "{bad:.20}");
        }
        for bad in ["/", "a/.wh.b", "..", ""] {
            assert!(Name::of_link(bad.as_bytes(), 10).is_err(), "{bad}");
        }
    }
}
