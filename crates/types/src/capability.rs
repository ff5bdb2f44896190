//! Linux capabilities: the only table of their numbers.

/// The names of the capabilities by number, without `CAP_`; see capabilities(7).
pub const NAMES: [&str; 41] = [
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

/// Needed to load a seccomp filter without `no_new_privs`; it allows much else.
pub const SYS_ADMIN: u64 = bit("SYS_ADMIN");

/// Allows to look into other processes and to change them.
pub const SYS_PTRACE: u64 = bit("SYS_PTRACE");

/// Needed to raise limits and to lower an `oom_score_adj`.
pub const SYS_RESOURCE: u64 = bit("SYS_RESOURCE");

/// The bit of a capability in a set. A name that is not in the table does not compile.
const fn bit(name: &str) -> u64 {
    let mut number = 0;
    while !is_same(NAMES[number].as_bytes(), name.as_bytes()) {
        number += 1;
    }
    1 << number
}

const fn is_same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_the_kernels() {
        assert_eq!((SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE, bit("CHOWN")), (1 << 19, 1 << 21, 1 << 24, 1));
        assert_eq!(bit("CHECKPOINT_RESTORE"), 1 << 40);
    }
}
