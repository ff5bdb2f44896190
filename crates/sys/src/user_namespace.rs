//! User namespaces: making one, and doing something inside it.
//!
//! A process with several threads can neither make a user namespace for itself nor enter one, and only a process
//! outside a namespace can set its ids. So short-lived processes in this one's memory do both.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid};
use wharf_types::{IdMaps, IdRange};

use crate::capabilities;
use crate::clone::{Child, clone_to_execute};
use crate::error::{Error, Named, Result};
use crate::fs::{open, write_value};
use crate::process::{Reap, await_end, child_number, wait};

/// Makes a user namespace with these users and groups. It lives as long as someone holds a descriptor of it.
///
/// # Errors
/// EPERM without `CAP_SETUID` and `CAP_SETGID`; ENOSPC at the limit on user namespaces.
pub fn make(ids: IdMaps) -> Result<OwnedFd> {
    // It exits at once. Until it is reaped, its namespace can be set up and opened.
    let first = clone_to_execute(flag(libc::CLONE_NEWUSER | libc::CLONE_FILES), None, &mut |_child| {})?;
    let made = set_up(first.as_fd(), ids);
    reap(first.as_fd())?;
    made
}

fn set_up(first: BorrowedFd<'_>, ids: IdMaps) -> Result<OwnedFd> {
    let process = format!("/proc/{}", child_number(first)?);
    let line = |ids: IdRange| format!("0 {} {}", ids.first(), ids.count());
    write_value(format!("{process}/uid_map"), &line(ids.users))?;
    write_value(format!("{process}/gid_map"), &line(ids.groups))?;
    open(format!("{process}/ns/user"), OFlag::O_RDONLY)
}

/// Does something as the root user of a user namespace, with this process's memory and descriptors, while this thread
/// waits. What is made belongs to the namespace and its root user.
///
/// # Errors
/// The kernel's error, or that of `body`.
pub fn inside<T>(namespace: BorrowedFd<'_>, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let (mut body, mut done) = (Some(body), None);
    let mut run = |_: &Child| done = body.take().map(|body| enter(namespace).and_then(|()| body()));
    let process = clone_to_execute(flag(libc::CLONE_FILES), None, &mut run)?;
    reap(process.as_fd())?;
    done.unwrap_or_else(|| {
        Err(Error::new("clone3", "the process that enters a user namespace died", Errno::EIO))
    })
}

/// Not with the calls of a C library, which would change the users of all threads of this process's parent.
fn enter(namespace: BorrowedFd<'_>) -> Result<()> {
    use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWUSER).named("setns", || "CLONE_NEWUSER".into())?;
    let (root, group) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    set_thread_res_gid(group, group, group).named("setresgid", || "0".into())?;
    set_thread_res_uid(root, root, root).named("setresuid", || "0".into())
}

/// Makes files from here on belong to a user and a group of this process's user namespace; the rights stay the same.
///
/// # Errors
/// The kernel's error.
pub fn own_files(user: u32, group: u32) -> Result<()> {
    nix::unistd::setfsgid(Gid::from_raw(group));
    nix::unistd::setfsuid(Uid::from_raw(user));
    // A user other than root loses the capabilities for files with this.
    capabilities::regain()
}

/// The user who made the user namespace to which a namespace belongs, as this process's numbers users. `None` if that
/// is the one in which this process is.
///
/// # Errors
/// EPERM if it belongs to one that is neither this process's nor below that.
pub fn maker_of(namespace: BorrowedFd<'_>) -> Result<Option<u32>> {
    /// `NS_GET_USERNS`.
    const USER_NAMESPACE: u32 = 0xb701;
    /// `NS_GET_OWNER_UID`.
    const MAKER: u32 = 0xb704;
    // SAFETY: the request takes no argument and returns a new descriptor.
    let result = unsafe { libc::ioctl(namespace.as_raw_fd(), USER_NAMESPACE as _, 0) };
    let found =
        Errno::result(result).map_err(|errno| Error::new("ioctl(NS_GET_USERNS)", "a namespace", errno))?;
    // SAFETY: a new descriptor, which nobody else knows.
    let found = unsafe { OwnedFd::from_raw_fd(found) };
    let own = open("/proc/thread-self/ns/user", OFlag::O_RDONLY)?;
    let inode = |of: &OwnedFd| fstat(of).map(|stat| stat.st_ino).named("fstat", || "a user namespace".into());
    if inode(&found)? == inode(&own)? {
        return Ok(None);
    }
    let mut maker: libc::uid_t = 0;
    // SAFETY: the place is a uid's, and lives through the call.
    let result = unsafe { libc::ioctl(found.as_raw_fd(), MAKER as _, &raw mut maker) };
    Errno::result(result)
        .map_err(|errno| Error::new("ioctl(NS_GET_OWNER_UID)", "a user namespace", errno))?;
    Ok(Some(maker))
}

fn reap(process: BorrowedFd<'_>) -> Result<()> {
    await_end(process)?;
    wait(process, Reap::Remove).map(drop)
}

fn flag(flag: libc::c_int) -> u64 {
    u64::from(flag.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn ids() -> IdMaps {
        IdMaps { users: IdRange::new(100_000, 65_536).unwrap(), groups: IdRange::new(200_000, 1000).unwrap() }
    }

    #[test]
    fn a_namespace_belongs_to_a_user_namespace_that_somebody_made() {
        let mounts = |process: &str| open(format!("/proc/{process}/ns/mnt"), OFlag::O_RDONLY);
        assert_eq!(maker_of(mounts("self").unwrap().as_fd()).unwrap(), None);
        let made_here = make(ids()).unwrap();
        let unshared = inside(made_here.as_fd(), || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS).named("unshare", || "CLONE_NEWNS".into())?;
            mounts("thread-self")
        });
        assert_eq!(maker_of(unshared.unwrap().as_fd()).unwrap(), Some(Uid::effective().as_raw()));
        #[expect(clippy::disallowed_methods, reason = "a namespace that another user makes")]
        let mut command = std::process::Command::new("unshare");
        command.args(["-U", "-m", "sh", "-c", "echo x; read -r forever"]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = std::os::unix::process::CommandExt::uid(&mut command, 4321).spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let maker = mounts(&child.id().to_string()).and_then(|mounts| maker_of(mounts.as_fd()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(maker.unwrap(), Some(4321));
    }

    fn words(text: &str) -> Vec<&str> {
        text.split_ascii_whitespace().collect()
    }

    #[test]
    fn a_namespace_has_its_ids_and_what_is_made_in_it_is_its_own() {
        let namespace = make(ids()).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            temp.path(),
            nix::sys::stat::Mode::from_bits_truncate(0o777),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )
        .unwrap();
        let name = || fs::read_link("/proc/thread-self/ns/user").unwrap();
        let look = || {
            nix::sched::unshare(CloneFlags::CLONE_NEWUTS).named("unshare", || "CLONE_NEWUTS".into())?;
            nix::unistd::sethostname("inside").named("sethostname", || "inside".into())?;
            fs::write(&file, "").named("write", || file.display().to_string())?;
            let map = |kind| fs::read_to_string(format!("/proc/thread-self/{kind}_map")).unwrap();
            Ok((map("uid"), map("gid"), name()))
        };
        let before = name();
        let (users, groups, seen) = inside(namespace.as_fd(), look).unwrap();
        assert_eq!(words(&users), ["0", "100000", "65536"]);
        assert_eq!(words(&groups), ["0", "200000", "1000"]);
        assert!(seen != before && name() == before, "this thread stayed where it is");
        assert_ne!(nix::unistd::gethostname().unwrap(), "inside");
        let owner = nix::sys::stat::stat(&file).unwrap();
        assert_eq!((owner.st_uid, owner.st_gid), (100_000, 200_000));
    }

    #[test]
    fn an_error_inside_is_returned() {
        let namespace = make(ids()).unwrap();
        let fail = || Err::<(), _>(Error::new("call", "it", Errno::EXDEV));
        assert_eq!(inside(namespace.as_fd(), fail).unwrap_err().errno, Errno::EXDEV);
        let other = open("/proc/self/ns/uts", OFlag::O_RDONLY).unwrap();
        assert_eq!(inside(other.as_fd(), || Ok(())).unwrap_err().call, "setns");
    }

    #[test]
    fn files_get_another_owner_and_no_right_is_lost() {
        let thread = std::thread::spawn(|| {
            let temp = tempfile::tempdir().unwrap();
            own_files(1234, 5678).unwrap();
            // The directory is root's, and nobody else may write in it.
            fs::write(temp.path().join("file"), "").unwrap();
            let owner = nix::sys::stat::stat(&temp.path().join("file")).unwrap();
            (owner.st_uid, owner.st_gid)
        });
        assert_eq!(thread.join().unwrap(), (1234, 5678));
    }
}
