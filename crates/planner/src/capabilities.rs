//! Capabilities: their names, sets of them as the kernel's bits and as the spec's words, and the default set.

use oci_spec::runtime::{Capabilities, Capability};

use wharf_types::capability::NAMES;

/// What a container has unless the request says otherwise: the 14 of moby and containerd.
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

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a capability")]
pub(crate) struct UnknownCapability {
    /// The name, shortened to 40 characters.
    pub name: String,
}

/// A list of names. `ALL` is not all of them: it is what names in the same list, or the other one, come on top of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Names {
    all: bool,
    named: u64,
}

impl Names {
    /// Every capability that the list stands for.
    #[must_use]
    pub(crate) fn bits(self) -> u64 {
        if self.all { ALL } else { self.named }
    }
}

const ALL: u64 = (1 << NAMES.len()) - 1;

/// Reads a list of names, with or without `CAP_`, in any case.
///
/// # Errors
/// The first name that is no capability.
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

/// The default set as a request changes it: all are added, all are dropped, then the named ones are added, and dropped.
#[must_use]
pub(crate) fn changed(add: Names, drop: Names) -> u64 {
    let base = match (add.all, drop.all) {
        (_, true) => 0,
        (true, false) => ALL,
        (false, false) => default_set(),
    };
    (base | add.named) & !drop.named
}

fn bit(short: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == short).map(|number| 1 << number)
}

/// The mask of the capability of exactly this name, `CAP_` and all, as seccomp profiles write it.
pub(crate) fn mask(name: &str) -> Option<u64> {
    bit(name.strip_prefix("CAP_")?)
}

fn default_set() -> u64 {
    NAMES
        .iter()
        .enumerate()
        .filter(|(_, name)| DEFAULT.contains(name))
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

/// The set of these bits. Those without a name, of a newer kernel, have no word.
pub(crate) fn set_of(bits: u64) -> Capabilities {
    let named = NAMES.iter().enumerate().filter(|(number, _)| bits & 1 << number != 0);
    named.filter_map(|(_, name)| name.parse::<Capability>().ok()).collect()
}

/// The bits of a set; none of a missing one.
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
            assert_eq!(changed(list(add), list(drop)), want, "add {add:?}, drop {drop:?}");
        }
        assert_eq!(changed(list(&["CHOWN"]), list(&NAMES)), 0, "every name is not ALL");
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
