//! Mounts through descriptors: new file systems, copies of trees, attributes, attachment.
//!
//! A mount is made detached, finished, and attached as a whole, so nobody ever sees it half made. Nothing here takes a
//! path of a container.

mod propagation;

use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::error::{Error, Named, Result};

pub use propagation::propagation_of;

/// The option of any file system for the SELinux label that all of its files have, whatever is on disk.
pub const LABEL: &str = "context";

/// The restrictions of a mount, with the kernel's values `MOUNT_ATTR_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes(u32);

impl Attributes {
    /// No restriction.
    pub const NONE: Self = Self(0);
    /// No writing.
    pub const READ_ONLY: Self = Self(1);
    /// Set-user-ID bits have no effect.
    pub const NO_SUID: Self = Self(2);
    /// Device nodes cannot be opened.
    pub const NO_DEV: Self = Self(4);
    /// Programs cannot be executed.
    pub const NO_EXEC: Self = Self(8);
    /// Symbolic links are not followed. It is none of the four, and only shown.
    pub const NO_LINKS: Self = Self(0x20_0000);

    /// The union of two sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether this set includes all of `other`.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The four bits, for the wire.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Makes a set from the four bits; other bits are dropped.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & 15)
    }

    /// The restrictions that the kernel shows for the mount to which an open descriptor refers, its file system's own
    /// included.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn shown(mount: BorrowedFd<'_>) -> Result<Self> {
        /// `ST_NOSYMFOLLOW`.
        const NO_LINKS: u64 = 0x2000;
        let stat = rustix::fs::fstatvfs(mount).named("fstatfs", || "a mount".into())?;
        let flags = stat.f_flag.bits();
        // The others have the same values here and there.
        let four = Self::from_bits(u32::try_from(flags & 15).unwrap_or_default());
        Ok(if flags & NO_LINKS == 0 { four } else { four.and(Self::NO_LINKS) })
    }

    /// The options of mount(8) for this set.
    pub fn options(self) -> impl Iterator<Item = &'static str> {
        let words = [
            (Self::READ_ONLY, "ro"),
            (Self::NO_SUID, "nosuid"),
            (Self::NO_DEV, "nodev"),
            (Self::NO_EXEC, "noexec"),
            (Self::NO_LINKS, "nosymfollow"),
        ];
        words.into_iter().filter(move |(attribute, _)| self.has(*attribute)).map(|(_, word)| word)
    }
}

/// Whether mounts made later on one side appear on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// In neither direction.
    Private,
    /// From the host only.
    Slave,
    /// In both directions.
    Shared,
}

impl Propagation {
    /// The option of mount(8) for it.
    #[must_use]
    pub const fn option(self, depth: Depth) -> &'static str {
        match (self, depth) {
            (Self::Private, Depth::One) => "private",
            (Self::Private, Depth::Recursive) => "rprivate",
            (Self::Slave, Depth::One) => "slave",
            (Self::Slave, Depth::Recursive) => "rslave",
            (Self::Shared, Depth::One) => "shared",
            (Self::Shared, Depth::Recursive) => "rshared",
        }
    }
}

/// Makes a file system with options (an empty value is a flag), as a detached mount.
///
/// # Errors
/// The kernel's error, with the option that it refused.
pub fn new_filesystem(kind: &str, options: &[(&str, &str)], attributes: Attributes) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).named("fsopen", || kind.into())?;
    for (key, value) in options {
        let set = if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *key)
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)
        };
        set.named("fsconfig", || format!("{kind}, {key}={value}"))?;
    }
    finish(&context, kind, attributes)
}

/// Makes a procfs of another process's PID namespace, as a detached mount.
///
/// # Errors
/// EINVAL before Linux 6.17.
pub fn new_procfs(namespace: BorrowedFd<'_>, attributes: Attributes) -> Result<OwnedFd> {
    let context =
        rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).named("fsopen", || "proc".into())?;
    rustix::mount::fsconfig_set_fd(context.as_fd(), "pidns", namespace)
        .named("fsconfig", || "proc, pidns".into())?;
    finish(&context, "proc", attributes)
}

pub(crate) fn finish(context: &OwnedFd, kind: &str, attributes: Attributes) -> Result<OwnedFd> {
    rustix::mount::fsconfig_create(context.as_fd()).named("fsconfig(CREATE)", || kind.into())?;
    let flags = MountAttrFlags::from_bits_retain(attributes.0);
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
        .named("fsmount", || kind.into())
}

/// How much of a tree is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The mount alone.
    One,
    /// The mount and everything below it.
    Recursive,
}

/// Copies the mount at a path of the host as a detached tree; follows links.
///
/// # Errors
/// The kernel's error; ENOENT if the source is missing.
pub fn copy_tree(path: &Path, depth: Depth) -> Result<OwnedFd> {
    rustix::mount::open_tree(rustix::fs::CWD, path, tree_flags(depth))
        .named("open_tree", || path.display().to_string())
}

/// Copies the mount to which an open descriptor refers.
///
/// # Errors
/// The kernel's error.
pub fn copy_tree_fd(fd: BorrowedFd<'_>, depth: Depth) -> Result<OwnedFd> {
    rustix::mount::open_tree(fd, c"", tree_flags(depth) | OpenTreeFlags::AT_EMPTY_PATH)
        .named("open_tree", || format!("descriptor {}", fd.as_raw_fd()))
}

fn tree_flags(depth: Depth) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    match depth {
        Depth::One => flags,
        Depth::Recursive => flags | OpenTreeFlags::AT_RECURSIVE,
    }
}

/// Attaches a detached mount over the file or directory to which `target` refers.
///
/// # Errors
/// The kernel's error.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
        .named("move_mount", || format!("descriptors {} and {}", mount.as_raw_fd(), target.as_raw_fd()))
}

/// Has a detached mount attached over this mount namespace's root for a while. Before Linux 6.15 nothing can be copied
/// out of one that is attached nowhere. The working directory is `/` afterwards.
///
/// # Errors
/// That of the work, or the kernel's.
pub fn while_attached<T>(mount: BorrowedFd<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    attach(mount, root()?.as_fd())?;
    let done = work();
    nix::unistd::fchdir(mount).named("fchdir", || "a mount over the root".into())?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)
        .named("umount2", || "a mount over the root".into())?;
    nix::unistd::fchdir(&root()?).named("fchdir", || "/".into())?;
    done
}

/// Adds restrictions to a mount, and with `depth` to everything below it.
///
/// # Errors
/// The kernel's error; ENOSYS before Linux 5.12.
pub fn forbid(mount: BorrowedFd<'_>, attributes: Attributes, depth: Depth) -> Result<()> {
    set_attributes(mount, depth, attributes, 0)
}

/// Lifts restrictions of a mount.
///
/// # Errors
/// The kernel's error; EPERM for a restriction that the mount has from another user namespace.
pub fn permit(mount: BorrowedFd<'_>, attributes: Attributes) -> Result<()> {
    let attr =
        libc::mount_attr { attr_set: 0, attr_clr: u64::from(attributes.0), propagation: 0, userns_fd: 0 };
    change(mount, Depth::One, &attr)
}

/// Sets the propagation of a mount, and with `depth` of everything below it.
///
/// # Errors
/// The kernel's error.
pub fn propagate(mount: BorrowedFd<'_>, propagation: Propagation, depth: Depth) -> Result<()> {
    set_attributes(mount, depth, Attributes::NONE, flag_of(propagation))
}

/// Adds restrictions to a mount and sets its propagation.
///
/// # Errors
/// The kernel's error.
pub fn forbid_and_propagate(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: Propagation,
) -> Result<()> {
    set_attributes(mount, Depth::One, attributes, flag_of(propagation))
}

fn flag_of(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
    }
}

/// Makes a detached mount show the ids of its files as those of a user namespace: what belongs to user 7 on the file
/// system belongs to user 7 of the namespace.
///
/// # Errors
/// EINVAL if the file system cannot do this, or before Linux 5.12; EPERM for a mount that does so already.
pub fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<()> {
    let userns_fd = u64::try_from(user_namespace.as_raw_fd()).unwrap_or_default();
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    change(mount, Depth::One, &attr)
}

fn set_attributes(mount: BorrowedFd<'_>, depth: Depth, set: Attributes, propagation: u64) -> Result<()> {
    let attr = libc::mount_attr { attr_set: u64::from(set.0), attr_clr: 0, propagation, userns_fd: 0 };
    change(mount, depth, &attr)
}

fn change(mount: BorrowedFd<'_>, depth: Depth, attr: &libc::mount_attr) -> Result<()> {
    let flags = match depth {
        Depth::One => libc::AT_EMPTY_PATH,
        Depth::Recursive => libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    };
    // SAFETY: the path is a C string, `attr` is a struct of the size given, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop).map_err(|errno| Error::new("mount_setattr", format!("{attr:?}"), errno))
}

/// Makes a detached mount the root of this process, which so far has the kernel's own root, alone in its mount
/// namespace. There is nothing that pivot_root(2) could exchange.
///
/// # Errors
/// The kernel's error.
pub fn take_root(mount: BorrowedFd<'_>) -> Result<()> {
    attach(mount, root()?.as_fd())?;
    nix::unistd::fchdir(mount).named("fchdir", || "the new root".into())?;
    nix::unistd::chroot(".").named("chroot", || "the new root".into())
}

fn root() -> Result<OwnedFd> {
    crate::fs::open("/", nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY)
}

/// Drops the root of this process and everything below it from its mount namespace.
fn drop_root() -> Result<()> {
    nix::mount::umount2("/", nix::mount::MntFlags::MNT_DETACH).named("umount2", || "/".into())
}

/// Makes a mount namespace without mounts. Only the root that the kernel itself mounted first is left, since no
/// namespace can do without it. Copying it costs the same on every machine, while copying the caller's namespace, as is
/// done once here, costs more with each mount.
///
/// # Errors
/// The kernel's error.
pub fn empty_namespace() -> Result<OwnedFd> {
    new_namespace(drop_root)
}

/// Makes a copy of this process's mount namespace, changed from inside.
fn new_namespace(change: impl FnOnce() -> Result<()> + Send) -> Result<OwnedFd> {
    use nix::sched::{CloneFlags, unshare};
    let make = || {
        let thread = OwnThread::open()?;
        unshare(CloneFlags::CLONE_NEWNS).named("unshare", || "CLONE_NEWNS".into())?;
        // Otherwise the mounts that are dropped next would also be dropped in the original namespace.
        propagate(root()?.as_fd(), Propagation::Private, Depth::Recursive)?;
        change()?;
        thread.namespace("mnt")
    };
    crate::thread::apart(make)
}

/// Opens the table of all mounts of a mount namespace (proc_pid_mountinfo(5)), as its root shows them: a process with a
/// root of its own sees only what is below that.
///
/// # Errors
/// The kernel's error.
pub fn table_of(namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    use nix::sched::{CloneFlags, setns, unshare};
    let open = || {
        let thread = OwnThread::open()?;
        // Only a thread whose root is its own may have another one.
        unshare(CloneFlags::CLONE_FS).named("unshare", || "CLONE_FS".into())?;
        setns(namespace, CloneFlags::CLONE_NEWNS).named("setns", || "CLONE_NEWNS".into())?;
        thread.table()
    };
    crate::thread::apart(open)
}

/// The directory of the opening thread in procfs. It works even where procfs is no longer mounted.
#[derive(Debug)]
pub struct OwnThread(OwnedFd);

impl OwnThread {
    /// Opens this thread's directory.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open() -> Result<Self> {
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
        crate::fs::open("/proc/thread-self", flags).map(Self)
    }

    /// Reads the table of the mounts in the thread's current mount namespace, as far as its root shows them. Its paths
    /// are [`escaped`](unescaped).
    ///
    /// # Errors
    /// The kernel's error.
    pub fn mounts(&self) -> Result<Vec<u8>> {
        let mut table = Vec::new();
        let read = std::fs::File::from(self.table()?).read_to_end(&mut table);
        read.map(|_length| table).named("read", || "mountinfo".into())
    }

    fn table(&self) -> Result<OwnedFd> {
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
        nix::fcntl::openat(&self.0, "mountinfo", flags, nix::sys::stat::Mode::empty())
            .named("openat", || "mountinfo".into())
    }

    /// Opens the thread's current namespace of a kind: `mnt`, `net`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn namespace(&self, kind: &str) -> Result<OwnedFd> {
        let name = format!("ns/{kind}");
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
        nix::fcntl::openat(&self.0, &*name, flags, nix::sys::stat::Mode::empty())
            .named("openat", || name.clone())
    }
}

/// A path of a table of mounts as it is: the kernel shows spaces, tabs, newlines and backslashes as three octal digits.
#[must_use]
pub fn unescaped(shown: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = shown;
    while let [first, left @ ..] = rest {
        let digits = left.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &left[3..] } else { left };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use nix::mount::MsFlags;
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_table_has_what_a_process_with_another_root_does_not_see() {
        let temp = tempfile::tempdir().unwrap();
        let (above, below) = (temp.path().join("above"), temp.path().join("below"));
        std::fs::create_dir(&above).unwrap();
        std::fs::create_dir(&below).unwrap();
        let look = || {
            let thread = OwnThread::open().unwrap();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            propagate(root().unwrap().as_fd(), Propagation::Private, Depth::Recursive).unwrap();
            let mount = |at: &Path, name| {
                nix::mount::mount(Some(name), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            };
            mount(&above, "hidden");
            mount(&below, "own-root");
            let namespace = thread.namespace("mnt").unwrap();
            nix::unistd::chroot(&below).unwrap();
            (thread.mounts().unwrap(), namespace)
        };
        let (own, namespace) = std::thread::scope(|scope| scope.spawn(look).join()).unwrap();
        let whole = table_of(namespace.as_fd()).unwrap();
        let own = String::from_utf8(own).unwrap();
        assert!(own.contains("own-root") && !own.contains("hidden"));
        let whole = std::io::read_to_string(std::fs::File::from(whole)).unwrap();
        assert!(whole.contains(" - tmpfs hidden ") && whole.contains(" - tmpfs own-root "), "{whole}");
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains("hidden"));
        assert_eq!(table_of(root().unwrap().as_fd()).unwrap_err().errno, Errno::EBADF);
    }
}
