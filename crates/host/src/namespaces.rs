//! A pod's own namespaces: made by a thread that is thrown away, pinned as files, set up from inside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use wharf_planner::Refusal;
use wharf_types::{Stage as _, StageError};

use crate::error::Error;

const STAGE: &str = "making the pod's namespaces";

/// Which namespaces a pod has of its own, and what is set in them.
#[derive(Debug, Clone, Default)]
pub struct NamespacePlan {
    /// Where the network namespace is pinned.
    pub net: Option<PathBuf>,
    /// Where the IPC namespace is.
    pub ipc: Option<PathBuf>,
    /// Where the UTS namespace is.
    pub uts: Option<PathBuf>,
    /// The hostname, set if the UTS namespace is its own.
    pub hostname: String,
    /// Sysctls of these namespaces, by key.
    pub sysctls: BTreeMap<String, String>,
}

/// Makes and pins the namespaces.
///
/// # Errors
/// A sysctl cannot be set to its value, or the kernel refuses one of the steps.
pub fn make(plan: &NamespacePlan) -> Result<(), Error> {
    let pins = [
        (&plan.net, CloneFlags::CLONE_NEWNET, "net"),
        (&plan.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
        (&plan.uts, CloneFlags::CLONE_NEWUTS, "uts"),
    ];
    let flags = pins
        .iter()
        .filter(|(path, ..)| path.is_some())
        .fold(CloneFlags::empty(), |all, (_, one, _)| all | *one);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(flags).stage(STAGE)?;
            set_up(plan)?;
            let mut own = pins.iter().filter_map(|(path, _, kind)| Some((kind, path.as_ref()?)));
            Ok(own.try_for_each(|(kind, path)| pin(kind, path))?)
        });
        let died = || StageError::at(STAGE, std::io::Error::other("the thread that makes them panicked"));
        thread.join().unwrap_or_else(|_panic| Err(died().into()))
    })
}

/// Sets what is to be set, from inside.
fn set_up(plan: &NamespacePlan) -> Result<(), Error> {
    if plan.uts.is_some() && !plan.hostname.is_empty() {
        nix::unistd::sethostname(&plan.hostname).stage("setting the pod's hostname")?;
    }
    Ok(plan.sysctls.iter().try_for_each(|(key, value)| set_sysctl(key, value))?)
}

fn pin(kind: &str, path: &Path) -> Result<(), StageError> {
    fs::File::create(path).stage(STAGE)?;
    let source = format!("/proc/thread-self/ns/{kind}");
    mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).stage(STAGE)
}

/// Lets go of a pinned namespace, or of any mount of the pod's; the kernel drops it with its last process.
///
/// # Errors
/// The kernel refuses; what is not there is let go.
pub fn unpin(path: &Path) -> Result<(), StageError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => return Err(StageError::at("unpinning the pod's namespaces", errno)),
    }
    match fs::remove_file(path) {
        Err(error)
            if !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::IsADirectory) =>
        {
            Err(StageError::at("unpinning the pod's namespaces", error))
        }
        _ => Ok(()),
    }
}

/// Which namespace a sysctl belongs to; `None` for those of the whole machine, which no pod may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlScope {
    /// The network namespace.
    Net,
    /// The IPC namespace.
    Ipc,
}

/// Checks a key and says where it belongs.
pub fn sysctl_scope(key: &str) -> Option<SysctlScope> {
    let clean = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
    if !clean || key.split(['.', '/']).any(str::is_empty) {
        return None;
    }
    let key = key.replace('/', ".");
    let ipc =
        ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"];
    if key.starts_with("net.") {
        Some(SysctlScope::Net)
    } else if key.starts_with("fs.mqueue.")
        || ipc.contains(&key.as_str())
        || matches!(key.as_str(), "kernel.shmmni" | "kernel.shm_rmid_forced")
    {
        Some(SysctlScope::Ipc)
    } else {
        None
    }
}

fn set_sysctl(key: &str, value: &str) -> Result<(), Refusal> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let written = wharf_sys::fs::write_value(&path, value);
    written.map_err(|error| Refusal::Field {
        field: "sysctls",
        problem: format!("{key} cannot be set to {value:?}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_have_a_scope() {
        assert_eq!(sysctl_scope("net.ipv4.ip_forward"), Some(SysctlScope::Net));
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

    #[test]
    fn namespaces_are_pinned_and_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = |kind: &str| Some(dir.path().join(kind));
        let sysctls = BTreeMap::from([("kernel.shm_rmid_forced".to_owned(), "1".to_owned())]);
        let plan = NamespacePlan {
            net: path("net"),
            ipc: path("ipc"),
            uts: path("uts"),
            hostname: "pod".into(),
            sysctls,
        };
        make(&plan).unwrap();
        let own = fs::metadata("/proc/self/ns/net").unwrap();
        let pinned = fs::metadata(dir.path().join("net")).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_ne!(own.ino(), pinned.ino());
        for kind in ["net", "ipc", "uts"] {
            unpin(&dir.path().join(kind)).unwrap();
            unpin(&dir.path().join(kind)).unwrap();
        }
        assert_eq!(fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap().trim(), "0");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
