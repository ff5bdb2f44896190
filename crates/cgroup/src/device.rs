//! Which devices a container may use: the rules, which have one form for v1 and one for v2.
//!
//! The last rule that matches an access wins, as in the OCI's list. v1 has a list of exceptions in the kernel, into
//! which not every list of rules can be brought (`list`), and v2 a program that is asked for each access (`program`).

pub(crate) mod list;
pub(crate) mod program;

/// The kinds of device that a rule can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceType {
    /// Character and block devices.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// Kinds of access to a device, as a set of bits with the kernel's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access(u8);

impl Access {
    /// Making a node.
    pub const MKNOD: Self = Self(1);
    /// Reading.
    pub const READ: Self = Self(2);
    /// Writing.
    pub const WRITE: Self = Self(4);
    /// All three.
    pub const ALL: Self = Self(7);

    /// The union of two sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Parses the letters `r`, `w` and `m` in any order, as the CRI and OCI write them; `None` for any other letter or
    /// for none.
    #[must_use]
    pub fn parse(letters: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in letters.chars() {
            bits |= match letter {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => return None,
            };
        }
        (bits != 0).then_some(Self(bits))
    }

    /// The three bits: 1 mknod, 2 read, 4 write.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// This set without `other`; `None` if nothing is left.
    pub(crate) fn without(self, other: Self) -> Option<Self> {
        let bits = self.0 & !other.0;
        (bits != 0).then_some(Self(bits))
    }

    /// The letters, in the order that `devices.list` uses.
    #[must_use]
    pub fn letters(self) -> String {
        [(2, 'r'), (4, 'w'), (1, 'm')]
            .iter()
            .filter(|(bit, _)| self.0 & bit != 0)
            .map(|(_, letter)| letter)
            .collect()
    }
}

/// A device rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// The kind of device.
    pub kind: DeviceType,
    /// The major number; `None` matches all.
    pub major: Option<u32>,
    /// The minor number; `None` matches all.
    pub minor: Option<u32>,
    /// The access that it allows or denies.
    pub access: Access,
}

impl DeviceRule {
    /// A rule that allows.
    #[must_use]
    pub const fn allow(kind: DeviceType, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { allow: true, kind, major, minor, access }
    }

    /// A rule that denies.
    #[must_use]
    pub const fn deny(kind: DeviceType, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { allow: false, kind, major, minor, access }
    }
}

/// The devices that every container may use: null, zero, full, random, urandom, tty, ptmx, pseudo-terminals and tun,
/// and mknod for every device. (Tun needs `CAP_NET_ADMIN`, and VPNs make its node themselves; a device node alone gives
/// no access.) Everything else is denied, the machine's console included: a container's console is a pseudo-terminal.
#[must_use]
pub fn default_devices() -> Vec<DeviceRule> {
    let character = |major, minor| DeviceRule::allow(DeviceType::Char, Some(major), minor, Access::ALL);
    vec![
        DeviceRule::deny(DeviceType::All, None, None, Access::ALL),
        DeviceRule::allow(DeviceType::Char, None, None, Access::MKNOD),
        DeviceRule::allow(DeviceType::Block, None, None, Access::MKNOD),
        character(1, Some(3)),
        character(1, Some(5)),
        character(1, Some(7)),
        character(1, Some(8)),
        character(1, Some(9)),
        character(5, Some(0)),
        character(5, Some(2)),
        character(136, None),
        character(10, Some(200)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_read_and_written_as_letters() {
        assert_eq!(Access::parse("mrw"), Some(Access::ALL));
        assert_eq!(Access::parse("wr").unwrap().letters(), "rw");
        assert_eq!(Access::READ.and(Access::MKNOD).letters(), "rm");
        for text in ["", "x", "rwx", "R"] {
            assert_eq!(Access::parse(text), None, "{text:?}");
        }
        assert_eq!(Access::ALL.without(Access::ALL), None);
        assert_eq!(Access::ALL.without(Access::READ).unwrap().letters(), "wm");
    }
}
