//! Which sysctls belong to a namespace that a pod can have of its own.

/// The namespace that a sysctl belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlScope {
    /// The network namespace.
    Network,
    /// The IPC namespace.
    Ipc,
}

/// Checks a key and returns the namespace it belongs to, or `None` for a key of the whole machine, which no pod may set.
#[must_use]
pub fn sysctl_scope(key: &str) -> Option<SysctlScope> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    let clean = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
    if !clean || key.split(['.', '/']).any(str::is_empty) {
        return None;
    }
    let key = key.replace('/', ".");
    if key.starts_with("net.") {
        Some(SysctlScope::Network)
    } else if key.starts_with("fs.mqueue.") || IPC.contains(&key.as_str()) {
        Some(SysctlScope::Ipc)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_have_a_scope() {
        assert_eq!(sysctl_scope("net.ipv4.ip_forward"), Some(SysctlScope::Network));
        assert_eq!(sysctl_scope("kernel.shm_rmid_forced"), Some(SysctlScope::Ipc));
        assert_eq!(sysctl_scope("fs.mqueue.msg_max"), Some(SysctlScope::Ipc));
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net..x",
            "net/../kernel/core_pattern",
            "",
            "net.\nx",
            "kernel",
        ] {
            assert_eq!(sysctl_scope(bad), None, "{bad:?}");
        }
    }
}
