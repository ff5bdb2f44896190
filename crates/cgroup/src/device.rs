//! Which devices a container may use: rules, and their two forms for the kernel.

pub(crate) mod list;
pub(crate) mod program;

/// The kinds of device a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceType {
    /// Character and block devices.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// What is done to a device; a set of bits with the kernel's values.
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

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The letters `r`, `w` and `m`, in any order, as the CRI and OCI have them; `None` for another letter or none.
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

    /// What is in this set and not in `other`; `None` if that is nothing.
    pub(crate) fn without(self, other: Self) -> Option<Self> {
        let bits = self.0 & !other.0;
        (bits != 0).then_some(Self(bits))
    }

    /// The letters, in the order of `devices.list`.
    #[must_use]
    pub fn letters(self) -> String {
        [(2, 'r'), (4, 'w'), (1, 'm')]
            .iter()
            .filter(|(bit, _)| self.0 & bit != 0)
            .map(|(_, letter)| letter)
            .collect()
    }
}

/// One rule about devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceRule {
    /// Grants if true, else takes away.
    pub allow: bool,
    /// Which kinds.
    pub kind: DeviceType,
    /// The major number; `None` is every one.
    pub major: Option<u32>,
    /// The minor number; `None` is every one.
    pub minor: Option<u32>,
    /// What is granted or taken away.
    pub access: Access,
}

impl DeviceRule {
    /// A rule that grants.
    #[must_use]
    pub const fn allow(kind: DeviceType, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { allow: true, kind, major, minor, access }
    }

    /// A rule that takes away.
    #[must_use]
    pub const fn deny(kind: DeviceType, major: Option<u32>, minor: Option<u32>, access: Access) -> Self {
        Self { allow: false, kind, major, minor, access }
    }
}

/// What every container may use: null, zero, full, random, urandom, tty, ptmx, pseudo-terminals and tun (which needs
/// `CAP_NET_ADMIN`, and VPNs make its node themselves), and making any node (a node alone opens nothing). Everything else is
/// denied: the machine's console too, as a container's is a pseudo-terminal.
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
