//! The number of a user or of a group.

use std::fmt;

use crate::{ErrorKind, Failure};

/// The number of a user or of a group. It is never `u32::MAX`, which the kernel takes for "leave it as it is": what
/// should become that user would stay root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct OwnerId(u32);

impl OwnerId {
    /// The root user, and its group.
    pub const ROOT: Self = Self(0);

    /// Takes every number that a user or a group can have.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == u32::MAX { None } else { Some(Self(number)) }
    }

    /// Reads decimal digits, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).and_then(Self::new)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// The number is nobody's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{number} is not the number of a user or a group")]
pub struct OwnerIdError {
    number: u32,
}

impl Failure for OwnerIdError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

impl TryFrom<u32> for OwnerId {
    type Error = OwnerIdError;

    fn try_from(number: u32) -> Result<Self, OwnerIdError> {
        Self::new(number).ok_or(OwnerIdError { number })
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_word_for_no_change_is_nobody() {
        for (text, number) in [("0", 0), ("00", 0), ("4294967294", u32::MAX - 1)] {
            assert_eq!(OwnerId::parse(text).map(OwnerId::number), Some(number));
        }
        for text in ["", "4294967295", "4294967296", "-1", "+1", " 1", "1 ", "0x1", "a"] {
            assert_eq!(OwnerId::parse(text), None, "{text:?}");
        }
        assert_eq!((OwnerId::new(0), OwnerId::new(u32::MAX)), (Some(OwnerId::ROOT), None));
        let refused = OwnerId::try_from(u32::MAX).unwrap_err();
        assert_eq!(refused.to_string(), "4294967295 is not the number of a user or a group");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }
}
