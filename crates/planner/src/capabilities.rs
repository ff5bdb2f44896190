//! Capability names and the default set.

/// The capabilities by number, without `CAP_`: capabilities(7).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

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

/// Every capability this build knows.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a capability")]
pub struct UnknownCapability {
    /// The name, shortened to 40 characters.
    pub name: String,
}

/// The bits of a list of names, with or without `CAP_`, in any case; `ALL` is every one.
///
/// # Errors
/// The first name that is no capability.
pub fn parse(names: &[String]) -> Result<u64, UnknownCapability> {
    names.iter().try_fold(0, |bits, name| Ok(bits | parse_one(name)?))
}

fn parse_one(name: &str) -> Result<u64, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(ALL);
    }
    bit(short).ok_or_else(|| UnknownCapability { name: name.chars().take(40).collect() })
}

fn bit(short: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == short).map(|number| 1 << number)
}

/// The mask of the capability of exactly this name, `CAP_` and all, as seccomp profiles write it.
pub(crate) fn mask(name: &str) -> Option<u64> {
    bit(name.strip_prefix("CAP_")?)
}

/// The default set.
#[must_use]
pub fn default_set() -> u64 {
    NAMES
        .iter()
        .enumerate()
        .filter(|(_, name)| DEFAULT.contains(name))
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(parse(&["CHOWN".into()]).unwrap(), 1);
        assert_eq!(parse(&["cap_sys_admin".into()]).unwrap(), 1 << 21);
        assert_eq!(parse(&["CAP_CHECKPOINT_RESTORE".into()]).unwrap(), 1 << 40);
        assert_eq!(parse(&["ALL".into()]).unwrap(), ALL);
        assert_eq!(default_set(), 0xa804_25fb);
    }

    #[test]
    fn an_unknown_name_is_named() {
        assert_eq!(parse(&["SYS_MAGIC".into()]).unwrap_err().name, "SYS_MAGIC");
    }
}
