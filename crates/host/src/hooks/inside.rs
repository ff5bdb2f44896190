//! Where hooks at `createContainer` are executed. The runtime spec wants them in the container's namespaces before its
//! root file system becomes the root: they see the host's files, among them their own program, and the container's at
//! the bundle's `rootfs`, and what they mount there is the container's.
//!
//! Here a container's mounts are never in one namespace with the host's. So a hook gets a mount namespace of its own: a
//! copy of the host's, in which a copy of the container's tree is attached. For as long as hooks are executed, both
//! trees propagate to each other what is mounted. The network, IPC and UTS namespaces are the container's. The PID
//! namespace is the host's: what a hook leaves running has rights that no program of the container may get at.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use wharf_sys::error::Named as _;
use wharf_sys::fs::{Resolve, kernel_text, open_below};
use wharf_sys::mount::{self, Attributes, Depth, OwnThread, Propagation};
use wharf_sys::{Error, Result, process, thread};
use wharf_types::ContainerId;

/// Does something where a container's hooks are executed; `root` is the directory for its root file system.
///
/// # Errors
/// The kernel's; ESRCH if the container's first process is gone. The container is of no use afterwards.
pub(super) fn with_container<T: Send>(
    id: &ContainerId,
    pid: i32,
    root: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    let first = first_process(id, pid)?;
    // Namespaces and the working directory are the thread's own.
    thread::apart(|| visit(first.as_fd(), root, work))
}

/// The first process of a container. The number may be another process's by now, which is in another cgroup.
fn first_process(id: &ContainerId, pid: i32) -> Result<OwnedFd> {
    let process = process::open_pidfd(pid)?;
    let cgroups = kernel_text(format!("/proc/{pid}/cgroup")).named("read", || "cgroup".into())?;
    // It was this one's file if it still exists.
    process::signal(process.as_fd(), 0)?;
    if cgroups.contains(id.as_str()) {
        return Ok(process);
    }
    Err(Error::new("pidfd_open", format!("{pid}, the container's first process"), Errno::ESRCH))
}

fn visit<T>(first: BorrowedFd<'_>, root: &Path, work: impl FnOnce() -> T) -> Result<T> {
    unshare(CloneFlags::CLONE_FS).named("unshare", || "CLONE_FS".into())?;
    // While the host's procfs is in sight.
    let thread = OwnThread::open()?;
    let hosts = thread.namespace("mnt")?;
    enter(first, CloneFlags::CLONE_NEWNS)?;
    let before = share(&thread)?;
    let tree = mount::copy_tree(Path::new("/"), Depth::Recursive)?;
    // As before the runtime makes it read-only: hooks write links and caches into it.
    mount::permit(tree.as_fd(), Attributes::READ_ONLY)?;
    enter(hosts.as_fd(), CloneFlags::CLONE_NEWNS)?;
    unshare(CloneFlags::CLONE_NEWNS).named("unshare", || "CLONE_NEWNS".into())?;
    // Not private: what the host unmounts while a hook runs must not stay in use here.
    mount::propagate(open_root()?.as_fd(), Propagation::Slave, Depth::Recursive)?;
    let place = wharf_sys::fs::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    mount::attach(tree.as_fd(), place.as_fd())?;
    enter(first, CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    let done = work();
    enter(first, CloneFlags::CLONE_NEWNS)?;
    unshare_mounts(&thread, &before)?;
    Ok(done)
}

fn enter(namespaces: BorrowedFd<'_>, kinds: CloneFlags) -> Result<()> {
    setns(namespaces, kinds).named("setns", || format!("{kinds:?}"))
}

fn open_root() -> Result<OwnedFd> {
    wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// Has every private mount propagate to its copies; those with another propagation keep it. Returns the numbers of the
/// mounts that did so already.
fn share(thread: &OwnThread) -> Result<HashSet<u64>> {
    let table = thread.mounts()?;
    let all: Vec<Line> = table.split(|byte| *byte == b'\n').filter_map(Line::parse).collect();
    let private = all.iter().filter(|line| line.propagation == Propagation::Private);
    private.into_iter().try_for_each(|line| line.propagate(Propagation::Shared))?;
    let shared = all.iter().filter(|line| line.propagation == Propagation::Shared);
    Ok(shared.map(|line| line.number).collect())
}

/// Makes every mount private that propagates now and did not before; those that hooks have made are among them.
fn unshare_mounts(thread: &OwnThread, before: &HashSet<u64>) -> Result<()> {
    let table = thread.mounts()?;
    let all = table.split(|byte| *byte == b'\n').filter_map(Line::parse);
    let mut shared =
        all.filter(|line| line.propagation == Propagation::Shared && !before.contains(&line.number));
    shared.try_for_each(|line| line.propagate(Propagation::Private))
}

/// A line of the table of mounts: proc_pid_mountinfo(5).
struct Line {
    number: u64,
    target: PathBuf,
    propagation: Propagation,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ');
        let number = str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let target = mount::unescaped(words.nth(3)?);
        let tags = words.skip(1).take_while(|word| *word != b"-");
        let mut propagation = Propagation::Private;
        for tag in tags {
            match tag.split(|byte| *byte == b':').next() {
                Some(b"shared") => propagation = Propagation::Shared,
                Some(b"master") if propagation == Propagation::Private => propagation = Propagation::Slave,
                _ => {}
            }
        }
        Some(Self { number, target, propagation })
    }

    /// Through no link: another container may change what is in a volume. Where one mount is over another, only the
    /// upper one can be seen.
    fn propagate(&self, propagation: Propagation) -> Result<()> {
        let root = open_root()?;
        let below = self.target.strip_prefix("/").unwrap_or(&self.target);
        let place = match below.as_os_str().is_empty() {
            true => root,
            false => open_below(root.as_fd(), below, OFlag::O_PATH, Resolve::BeneathNoLinks)?,
        };
        match mount::propagate(place.as_fd(), propagation, Depth::One) {
            // It was moved away with a directory above it.
            Err(error) if error.errno == Errno::EINVAL => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_a_mount_is_and_how_it_propagates() {
        let line =
            |tags: &str| format!("36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime {tags}- ext3 /dev/root rw");
        let rows = [
            ("", Propagation::Private),
            ("unbindable ", Propagation::Private),
            ("shared:1 ", Propagation::Shared),
            ("master:2 propagate_from:3 ", Propagation::Slave),
            ("shared:1 master:2 ", Propagation::Shared),
        ];
        for (tags, propagation) in rows {
            let line = Line::parse(line(tags).as_bytes()).unwrap();
            assert_eq!((line.number, line.propagation), (36, propagation), "{tags}");
            assert_eq!(line.target, Path::new("/mnt 2\\x"));
        }
        assert!(Line::parse(b"nothing of a mount").is_none());
    }

    #[test]
    fn another_process_is_not_taken_for_the_containers() {
        let id = ContainerId::from_random([0xcd; 32]);
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(first_process(&id, own).unwrap_err().errno, Errno::ESRCH);
        assert_eq!(first_process(&id, i32::MAX).unwrap_err().errno, Errno::ESRCH);
        let done = with_container(&id, own, Path::new("/"), || panic!("not executed"));
        assert!(done.map_err(|error: Error| error.errno) == Err::<(), _>(Errno::ESRCH));
    }
}
