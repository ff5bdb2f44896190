//! A label of SELinux.

use std::fmt;

use crate::{ErrorKind, Failure};

/// The longest label, in bytes: fsconfig(2) takes no longer option.
const LIMIT_BYTES: usize = 255;

/// A label of SELinux, `user:role:type` or `user:role:type:level`. Whether the policy knows it, only the kernel can
/// say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabel(String);

/// The parts of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelParts<'a> {
    /// Whom it belongs to, in the policy's words: `system_u`.
    pub user: &'a str,
    /// The role: `system_r`, or `object_r` for files.
    pub role: &'a str,
    /// The type: `container_t`.
    pub kind: &'a str,
    /// The level or range of levels: `s0:c1,c2`. A policy without levels has none.
    pub level: Option<&'a str>,
}

/// Why a text is no label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelinuxLabelError {
    /// It lacks a part, or a part has a character that no part can have.
    #[error("{label:?} is not a label of the form user:role:type:level")]
    Malformed {
        /// The text.
        label: String,
    },
    /// It is too long.
    #[error("the label is {bytes} bytes long; the maximum is {LIMIT_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl Failure for SelinuxLabelError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

impl SelinuxLabel {
    /// Takes a label.
    ///
    /// # Errors
    /// [`SelinuxLabelError`] for what no policy can have; also for what would be more than one option of a mount.
    pub fn new(label: &str) -> Result<Self, SelinuxLabelError> {
        if label.len() > LIMIT_BYTES {
            return Err(SelinuxLabelError::TooLong { bytes: label.len() });
        }
        let malformed = || SelinuxLabelError::Malformed { label: label.to_owned() };
        let LabelParts { user, role, kind, level } = split(label).ok_or_else(malformed)?;
        let is_name = |text: &str, more: &str| {
            let is_part = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !text.is_empty() && text.chars().all(is_part)
        };
        let is_label = [user, role, kind].into_iter().all(|name| is_name(name, "_.-"))
            && level.is_none_or(|level| is_name(level, "_.-:,"));
        if is_label { Ok(Self(label.to_owned())) } else { Err(malformed()) }
    }

    /// Makes a label of its parts.
    ///
    /// # Errors
    /// [`SelinuxLabelError`].
    pub fn of(parts: LabelParts<'_>) -> Result<Self, SelinuxLabelError> {
        let LabelParts { user, role, kind, level } = parts;
        let label = match level {
            Some(level) => format!("{user}:{role}:{kind}:{level}"),
            None => format!("{user}:{role}:{kind}"),
        };
        let made = Self::new(&label)?;
        // A colon in a part would make another one of what follows.
        if made.parts() == parts { Ok(made) } else { Err(SelinuxLabelError::Malformed { label }) }
    }

    /// Its parts.
    #[must_use]
    pub fn parts(&self) -> LabelParts<'_> {
        split(&self.0).unwrap_or(LabelParts { user: "", role: "", kind: "", level: None })
    }

    /// The label as the kernel has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn split(label: &str) -> Option<LabelParts<'_>> {
    let mut parts = label.splitn(4, ':');
    Some(LabelParts { user: parts.next()?, role: parts.next()?, kind: parts.next()?, level: parts.next() })
}

impl fmt::Display for SelinuxLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_its_parts() {
        let label = SelinuxLabel::new("system_u:system_r:container_t:s0:c1,c2").unwrap();
        let parts = label.parts();
        assert_eq!((parts.user, parts.role, parts.kind), ("system_u", "system_r", "container_t"));
        assert_eq!(parts.level, Some("s0:c1,c2"));
        assert_eq!(SelinuxLabel::of(parts), Ok(label));
        let plain = SelinuxLabel::new("u:r:t").unwrap();
        assert_eq!(plain.parts().level, None);
        assert_eq!(SelinuxLabel::of(plain.parts()).unwrap().as_str(), "u:r:t");
        for good in ["u:r:t:s0-s0:c0.c1023", "user-1:r.x:t_t:SystemLow-SystemHigh"] {
            assert_eq!(SelinuxLabel::new(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn what_could_end_an_option_or_a_part_is_no_label() {
        for bad in
            ["", "u", "u:r", "u:r:", ":r:t:s0", "u:r:t:", "u r:r:t", "u:r:t\n", "u:r:t:s0\"", "u:r:t,ro"]
        {
            assert_eq!(SelinuxLabel::new(bad), Err(SelinuxLabelError::Malformed { label: bad.to_owned() }));
        }
        let long = format!("u:r:t:{}", "s".repeat(LIMIT_BYTES));
        assert_eq!(SelinuxLabel::new(&long), Err(SelinuxLabelError::TooLong { bytes: LIMIT_BYTES + 6 }));
        let parts = LabelParts { user: "u", role: "r", kind: "t:s0", level: None };
        assert!(SelinuxLabel::of(parts).is_err());
    }
}
