//! The ids of a user namespace, and what they are outside of it.

use crate::{ErrorKind, Failure};

/// The ids from 0 on in a user namespace, which are those from another number on for the host. The kernel takes several
/// ranges for one namespace; the CRI has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    first: u32,
    count: u32,
}

/// A range that the kernel does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdRangeError {
    /// It is empty.
    #[error("the length is 0")]
    Empty,
    /// It goes past the last id, 4294967294.
    #[error("{count} ids starting at {first} go beyond 4294967294, the last id")]
    TooLong {
        /// The first id of the host.
        first: u32,
        /// The length.
        count: u32,
    },
}

impl Failure for IdRangeError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

impl IdRange {
    /// The ids from 0 to `count` in the namespace, which are those from `first` on for the host.
    ///
    /// # Errors
    /// The range is empty, or includes `u32::MAX`, which to the kernel means "no id".
    pub fn new(first: u32, count: u32) -> Result<Self, IdRangeError> {
        match (count, first.checked_add(count)) {
            (0, _) => Err(IdRangeError::Empty),
            (_, None) => Err(IdRangeError::TooLong { first, count }),
            (_, Some(_end)) => Ok(Self { first, count }),
        }
    }

    /// What 0 in the namespace is for the host.
    #[must_use]
    pub fn first(self) -> u32 {
        self.first
    }

    /// How many ids there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether an id of the host is one of them.
    #[must_use]
    pub fn has_on_host(self, id: u32) -> bool {
        id.checked_sub(self.first).is_some_and(|inside| inside < self.count)
    }

    /// What an id in the namespace is for the host; `None` if the namespace does not have it.
    #[must_use]
    pub fn on_host(self, id: u32) -> Option<u32> {
        (id < self.count).then(|| self.first + id)
    }
}

/// The users and groups of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMaps {
    /// Its users.
    pub users: IdRange,
    /// Its groups.
    pub groups: IdRange,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_namespace_are_others_outside() {
        let range = IdRange::new(100_000, 65_536).unwrap();
        assert_eq!((range.on_host(0), range.on_host(65_535)), (Some(100_000), Some(165_535)));
        assert_eq!(range.on_host(65_536), None);
        assert_eq!((range.first(), range.count()), (100_000, 65_536));
    }

    #[test]
    fn a_range_has_ids_and_ends_before_the_number_that_is_none() {
        assert_eq!(IdRange::new(0, 0), Err(IdRangeError::Empty));
        assert_eq!(IdRange::new(1, u32::MAX - 1).unwrap().on_host(u32::MAX - 2), Some(u32::MAX - 1));
        for (first, count) in [(1, u32::MAX), (u32::MAX, 1), (u32::MAX - 1, 2)] {
            assert_eq!(IdRange::new(first, count), Err(IdRangeError::TooLong { first, count }));
        }
    }
}
