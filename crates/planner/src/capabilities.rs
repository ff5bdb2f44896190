//! Capabilities: their names, sets of them as the kernel's bits and in the spec's form, and the default set.
//!
//! A request adds to the node's set and drops from it. What the daemon itself may not do cannot be granted: its own
//! bounding set is applied where a container is described, not here.

use oci_spec::runtime::{Capabilities, Capability};

use wharf_types::capability::NAMES;

/// The 14 of moby and containerd.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A name that is not a capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a capability")]
pub(crate) struct UnknownCapability {
    /// The name, shortened to 40 characters.
    pub name: String,
}

/// A list of names. `ALL` does not just mean every capability: names in this list, or in the other one, are applied on
/// top of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Names {
    all: bool,
    named: u64,
}

impl Names {
    /// Every capability that the list includes.
    #[must_use]
    pub(crate) fn bits(self) -> u64 {
        if self.all { ALL } else { self.named }
    }
}

const ALL: u64 = (1 << NAMES.len()) - 1;

/// Parses a list of names, with or without `CAP_`, in any case.
///
/// # Errors
/// The first name that is not a capability.
pub(crate) fn parse(names: &[String]) -> Result<Names, UnknownCapability> {
    names.iter().try_fold(Names::default(), |list, name| {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if short == "ALL" {
            return Ok(Names { all: true, ..list });
        }
        let bit = bit(short).ok_or_else(|| UnknownCapability { name: name.chars().take(40).collect() })?;
        Ok(Names { named: list.named | bit, ..list })
    })
}

/// A node's set with a request's changes: add all, drop all, then add the named ones, then drop the named ones.
#[must_use]
pub(crate) fn changed(nodes: u64, add: Names, drop: Names) -> u64 {
    let base = match (add.all, drop.all) {
        (_, true) => 0,
        (true, false) => ALL,
        (false, false) => nodes,
    };
    (base | add.named) & !drop.named
}

fn bit(short: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == short).map(|number| 1 << number)
}

/// The mask of the capability with exactly this name, including `CAP_`, as seccomp profiles write it.
pub(crate) fn mask(name: &str) -> Option<u64> {
    bit(name.strip_prefix("CAP_")?)
}

/// The capabilities of a container unless the node or the request changes them.
pub(crate) fn default_set() -> u64 {
    NAMES
        .iter()
        .enumerate()
        .filter(|(_, name)| DEFAULT.contains(name))
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

/// The set of these bits. The spec has no names for the unnamed ones of newer kernels.
pub(crate) fn set_of(bits: u64) -> Capabilities {
    let named = NAMES.iter().enumerate().filter(|(number, _)| bits & 1 << number != 0);
    named.filter_map(|(_, name)| name.parse::<Capability>().ok()).collect()
}

/// The bits of a set; 0 for a missing one.
pub(crate) fn bits_of(set: &Option<Capabilities>) -> u64 {
    let bits = |capability: &Capability| bit(&capability.to_string()).unwrap_or(0);
    set.iter().flatten().fold(0, |all, capability| all | bits(capability))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Names {
        parse(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn lists_change_the_default_set() {
        let admin = list(&["SYS_ADMIN"]).bits();
        let cases: [(&[&str], &[&str], u64); 8] = [
            (&[], &[], default_set()),
            (&["SYS_ADMIN"], &[], default_set() | admin),
            (&[], &["CHOWN"], default_set() & !1),
            (&["SYS_ADMIN"], &["ALL"], admin),
            (&["ALL"], &["SYS_ADMIN"], ALL & !admin),
            (&["ALL"], &["ALL"], 0),
            (&["ALL", "SYS_ADMIN"], &["ALL"], admin),
            (&["SYS_ADMIN"], &["ALL", "SYS_ADMIN"], 0),
        ];
        for (add, drop, want) in cases {
            assert_eq!(changed(default_set(), list(add), list(drop)), want, "add {add:?}, drop {drop:?}");
        }
        assert_eq!(changed(default_set(), list(&["CHOWN"]), list(&NAMES)), 0, "every name is not ALL");
        assert_eq!(changed(admin, list(&["CHOWN"]), list(&[])), admin | 1, "the node's own set");
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(list(&["CHOWN"]).bits(), 1);
        assert_eq!(list(&["cap_sys_admin"]).bits(), 1 << 21);
        assert_eq!(list(&["CAP_CHECKPOINT_RESTORE"]).bits(), 1 << 40);
        assert_eq!(list(&["ALL"]).bits(), ALL);
        assert_eq!(default_set(), 0xa804_25fb);
    }

    #[test]
    fn an_unknown_name_is_named() {
        assert_eq!(parse(&["SYS_MAGIC".into()]).unwrap_err().name, "SYS_MAGIC");
    }

    #[test]
    fn every_name_is_a_word_of_the_spec() {
        assert_eq!(set_of(ALL).len(), NAMES.len());
        for bits in [0, 1, 1 << 40, 0xa804_25fb, ALL] {
            assert_eq!(bits_of(&Some(set_of(bits))), bits);
        }
        assert_eq!(bits_of(&Some(set_of(1 << 63))), 0);
        assert_eq!(bits_of(&None), 0);
    }
}
