//! Sysctls of a pod's namespaces, set by a thread that is in them.
//!
//! Which sysctls a pod may set was decided by the planner. Whether the kernel accepts a value is found out here, so a
//! refusal here is still the request's fault.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use wharf_planner::{Refusal, is_in_user_namespace, sysctl_path};
use wharf_sys::fs::{Resolve, open_below, write_fd};
use wharf_sys::mount::{Attributes, new_filesystem};
use wharf_sys::user_namespace;
use wharf_types::failure::named;
use wharf_types::lock::lock;
use wharf_types::{ErrorKind, Stage as _, StageError};

use crate::error::Error;

const STAGE: &str = "setting the pod's sysctls";

/// How many pods' sysctls are set through the same procfs.
const PODS_OF_A_PROCFS: usize = 32;

/// The way to the sysctls of pods.
///
/// For each network namespace, a procfs has entries of its own below `/proc/sys/net`, all under the same names: a
/// lookup passes those of every namespace that was looked up before and still exists. With a thousand pods, that takes
/// the host's procfs a millisecond. Pods therefore have procfses of their own, each for a few. The lock is held while
/// one is chosen or made, not while a sysctl is set.
#[derive(Debug)]
pub(crate) struct Sysctls(Mutex<Procfs>);

/// A procfs, and how many more pods may use it.
#[derive(Debug)]
struct Procfs {
    root: Arc<OwnedFd>,
    left: usize,
}

impl Procfs {
    fn make() -> wharf_sys::Result<Self> {
        let restrictions = Attributes::NO_SUID.and(Attributes::NO_DEV).and(Attributes::NO_EXEC);
        let root = Arc::new(new_filesystem("proc", &[], restrictions)?);
        Ok(Self { root, left: PODS_OF_A_PROCFS })
    }
}

impl Sysctls {
    pub(crate) fn open() -> wharf_sys::Result<Self> {
        Procfs::make().map(|procfs| Self(Mutex::new(procfs)))
    }

    /// Sets sysctls of the namespaces of this thread, which may belong to a user namespace. Since Linux 5.19 those of
    /// IPC are for its root user alone, before that for the host's.
    pub(crate) fn set(
        &self,
        wanted: &BTreeMap<String, String>,
        user: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        if wanted.is_empty() {
            return Ok(());
        }
        let procfs = self.procfs().stage(STAGE)?;
        wanted.iter().try_for_each(|(key, value)| {
            let set = || set(procfs.as_fd(), key, value);
            let done = match user {
                Some(user) if is_in_user_namespace(key) => user_namespace::inside(user, set),
                Some(user) => set().or_else(|error| match error.errno {
                    Errno::EACCES => user_namespace::inside(user, set),
                    _ => Err(error),
                }),
                None => set(),
            };
            done.map_err(|error| not_set(key, value, error))
        })
    }

    fn procfs(&self) -> wharf_sys::Result<Arc<OwnedFd>> {
        let mut held = lock(&self.0);
        if held.left == 0 {
            *held = Procfs::make()?;
        }
        held.left -= 1;
        Ok(Arc::clone(&held.root))
    }
}

fn set(procfs: BorrowedFd<'_>, key: &str, value: &str) -> wharf_sys::Result<()> {
    let path = format!("sys/{}", sysctl_path(key));
    let written = open_below(procfs, &path, OFlag::O_WRONLY, Resolve::BeneathNoLinks)
        .and_then(|file| write_fd(file.as_fd(), value));
    written.map_err(|error| wharf_sys::Error { arguments: format!("/proc/{path}, {value:?}"), ..error })
}

/// The request is at fault, unless the machine is short of something.
fn not_set(key: &str, value: &str, error: wharf_sys::Error) -> Error {
    match named(error.errno) {
        ErrorKind::InvalidArgument => {
            let problem = format!("{key} cannot be set to {value:?}: {error}");
            Refusal::Field { field: "sysctls", problem }.into()
        }
        _ => StageError::at(STAGE, error).into(),
    }
}

#[cfg(test)]
mod tests {
    use wharf_types::Failure as _;

    use super::*;

    #[test]
    fn a_machine_that_is_short_of_something_is_not_the_requests_fault() {
        let failed = |errno| not_set("net.x", "1", wharf_sys::Error::new("open", "x".to_owned(), errno));
        assert!(matches!(failed(Errno::EINVAL), Error::Refused(_)));
        let short = failed(Errno::EMFILE);
        assert!(
            matches!(&short, Error::Stage(error) if error.kind() == ErrorKind::ResourceExhausted),
            "{short}"
        );
    }

    #[test]
    fn a_value_of_which_the_kernel_takes_a_part_is_the_requests_fault() {
        let set = |value: &str| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let wanted = BTreeMap::from([("net.core.somaxconn".to_owned(), value.to_owned())]);
            Sysctls::open().unwrap().set(&wanted, None)
        };
        // Threads of their own: they stay in their namespaces.
        let set = |value| std::thread::scope(|scope| scope.spawn(|| set(value)).join().unwrap());
        set("9").unwrap();
        let refused = set("9 8").unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::Field { .. })), "{refused}");
    }

    #[test]
    fn only_a_few_pods_share_a_procfs() {
        let sysctls = Sysctls::open().unwrap();
        let mut used: Vec<_> = (0..2 * PODS_OF_A_PROCFS + 1).map(|_pod| sysctls.procfs().unwrap()).collect();
        used.dedup_by_key(|procfs| Arc::as_ptr(procfs));
        assert_eq!(used.len(), 3);
        let descriptor = Arc::downgrade(&used.remove(0));
        assert!(descriptor.upgrade().is_none(), "nobody holds one that is used up");
    }
}
