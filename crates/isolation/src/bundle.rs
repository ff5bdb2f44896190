//! A bundle: a container's root file system and what is mounted in it, for another runtime that will do the rest.
//!
//! It is attached in a mount namespace that only this process and the runtime share, on a file system in memory. So the
//! host has no mount of it, and nothing is left when both have ended. Everything of the host and of the pod is opened
//! as for wharf's own containers, with the restrictions of the plan, and the runtime binds what it finds here by
//! number.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat};
use wharf_sys::error::Named as _;
use wharf_sys::fs::Descriptors;
use wharf_sys::mount::{self, Attributes, Depth, Propagation};
use wharf_sys::process;

use crate::birth::Origin;
use crate::charged;
use crate::error::{Error, Stage as _};
use crate::identity::{self, Identity};
use crate::mounts::{self, Sources};
use crate::plan::{Plan, Runtime};
use crate::pod::PodNamespaces;
use crate::root::{Root, is_directory};
use crate::streams::Streams;

/// The root file system in a bundle.
pub const ROOT: &str = "rootfs";
/// The PID namespace in a bundle that the container shares with others.
pub const PID_NAMESPACE: &str = "pid";
/// The program of the container that stands for a sandbox, in that container's root file system.
pub const PAUSE: &str = "/pause";

/// A null device that is not the host's: a runtime may give it to the container's user.
const NULL: &str = "null";

const STAGE: &str = "making the bundle for another runtime";
/// What is written there: a spec, and what the runtime says.
const SIZE: &str = "16m";

/// The directory of a bundle, which is also this process's working directory.
#[derive(Debug)]
pub struct Bundle(OwnedFd);

/// What is found out while a bundle is made.
#[derive(Debug)]
pub struct Found {
    /// Who the container's user is.
    pub identity: Identity,
    /// What the kernel shows of each mount of the plan that is in the bundle.
    pub shown: Vec<Attributes>,
}

/// Makes the bundle of a container. Runs in a child of the supervisor, which stays in the host's other namespaces.
///
/// # Errors
/// The step that failed.
pub fn make(
    plan: &Plan,
    runtime: &Runtime,
    pod: PodNamespaces<'_>,
    origin: &Origin<'_>,
) -> Result<(Bundle, Found), Error> {
    let host = wharf_sys::fs::open("/proc/self/ns/mnt", OFlag::O_RDONLY).stage(STAGE)?;
    let mut sources = mounts::open_sources(&plan.mounts, None)?;
    // With many layers each of these leaves the host's mount namespace before Linux 6.8.
    sources.add_images(plan, None)?;
    let root = Root::make(plan, None)?;
    pod.enter_files()?;
    sources.add_pods(&plan.mounts)?;
    // The runtime is a program of the host.
    nix::sched::setns(&host, CloneFlags::CLONE_NEWNS).named("setns", || "CLONE_NEWNS".into()).stage(STAGE)?;
    leave_host()?;
    sources.narrow_images(&plan.mounts)?;
    let bundle = Bundle::enter(runtime)?;
    let shown = bundle.attach_all(plan, &root, &sources)?;
    bundle.add_pid_namespace(origin).stage(STAGE)?;
    let identity = charged::to(&plan.cgroup, origin, || {
        mounts::fill_volumes(&root, plan, &sources)?;
        bundle.identify(plan)
    })?;
    Ok((bundle, Found { identity, shown }))
}

/// Gives a container's streams to its user, as the runtime may or may not do.
///
/// # Errors
/// The kernel's error.
pub fn give_streams(streams: &Streams, identity: &Identity) -> Result<(), Error> {
    streams.give(identity.on_host(None)?)
}

/// Copies the mount namespace. What is mounted on the host is still seen here, and nothing that is mounted here there.
fn leave_host() -> Result<(), Error> {
    copy_namespace(Propagation::Slave)
}

fn copy_namespace(propagation: Propagation) -> Result<(), Error> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).named("unshare", || "CLONE_NEWNS".into()).stage(STAGE)?;
    let root = wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY).stage(STAGE)?;
    mount::propagate(root.as_fd(), propagation, Depth::Recursive).stage(STAGE)
}

impl Bundle {
    /// Makes an empty place for a command's files, in a mount namespace of this process's own.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn empty(runtime: &Runtime) -> Result<Self, Error> {
        leave_host()?;
        let bundle = Self::enter(runtime)?;
        // runc has it as its working directory.
        bundle.make_directory(ROOT).stage(STAGE)?;
        Ok(bundle)
    }

    fn enter(runtime: &Runtime) -> Result<Self, Error> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let place = wharf_sys::fs::open(runtime.bundle_directory.as_path(), flags).stage(STAGE)?;
        let options = [("mode", "0700"), ("size", SIZE)];
        let memory = mount::new_filesystem("tmpfs", &options, Attributes::NO_SUID).stage(STAGE)?;
        mount::attach(memory.as_fd(), place.as_fd()).stage(STAGE)?;
        nix::unistd::fchdir(&memory).named("fchdir", || "the bundle".into()).stage(STAGE)?;
        Ok(Self(memory))
    }

    /// Makes the place of a container that stands for a sandbox: its root file system has only this very program.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn of_sandbox(runtime: &Runtime) -> Result<Self, Error> {
        let bundle = Self::empty(runtime)?;
        let name = format!("{ROOT}{PAUSE}");
        let program = wharf_sys::fs::open("/proc/self/exe", OFlag::O_RDONLY).stage(STAGE)?;
        let mut copy = File::from(bundle.make_file(&name, OFlag::O_WRONLY).stage(STAGE)?);
        std::io::copy(&mut File::from(program), &mut copy)
            .and_then(|_length| copy.set_permissions(Permissions::from_mode(0o555)))
            .named("copy", || "this program".into())
            .stage(STAGE)?;
        Ok(bundle)
    }

    /// Opens a null device of its own.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open_null(&self) -> wharf_sys::Result<OwnedFd> {
        let named = |call, errno| wharf_sys::Error::new(call, NULL, errno);
        let mode = Mode::from_bits_truncate(0o666);
        match mknodat(&self.0, NULL, SFlag::S_IFCHR, mode, makedev(1, 3)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(named("mknodat", errno)),
        }
        openat(&self.0, NULL, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| named("openat", errno))
    }

    /// Attaches the root file system, and each mount by its number; returns what the kernel shows of it. New file
    /// systems are the runtime's to mount.
    fn attach_all(&self, plan: &Plan, root: &Root, sources: &Sources) -> Result<Vec<Attributes>, Error> {
        let rootfs = self.make_directory(ROOT).stage(STAGE)?;
        mount::attach(root.fd(), rootfs.as_fd()).stage(STAGE)?;
        let trees = sources.trees().enumerate().zip(&plan.mounts);
        let shown = trees.map(|((number, tree), plan)| match tree {
            Some(tree) => self.attach(number, tree).map_err(|source| mounts::unattached(plan, source)),
            None => Ok(Attributes::NONE),
        });
        shown.collect()
    }

    fn attach(&self, number: usize, tree: &OwnedFd) -> wharf_sys::Result<Attributes> {
        let name = number.to_string();
        let target = match is_directory(tree.as_fd())? {
            true => self.make_directory(&name)?,
            false => self.make_file(&name, OFlag::O_PATH)?,
        };
        mount::attach(tree.as_fd(), target.as_fd())?;
        Attributes::shown(tree.as_fd())
    }

    /// Resolves the user by the files that the container will have, some of which may be mounts. They are in their
    /// places in a namespace that nobody else sees, and that ends with this process. What is missing there is made, as
    /// for any container.
    fn identify(&self, plan: &Plan) -> Result<Identity, Error> {
        // A mount inside one that is shared with the host would appear there.
        copy_namespace(Propagation::Private)?;
        let own = Descriptors::own().stage(STAGE)?;
        let root = Root::mounted(ROOT)?;
        let mut mounts = plan.mounts.iter().enumerate();
        mounts.try_for_each(|(number, plan)| mounts::attach_copy(&root, plan, number))?;
        identity::resolve(&root, &own, &plan.process.user)
    }

    fn add_pid_namespace(&self, origin: &Origin<'_>) -> wharf_sys::Result<()> {
        let Some(inhabitant) = origin.place.process() else { return Ok(()) };
        let namespace = process::pid_namespace_of(inhabitant)?;
        let tree = mount::copy_tree_fd(namespace.as_fd(), Depth::One)?;
        mount::attach(tree.as_fd(), self.make_file(PID_NAMESPACE, OFlag::O_PATH)?.as_fd())
    }

    /// Opens a file to which the runtime can write, and empties it.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open_empty(&self, name: &str) -> wharf_sys::Result<OwnedFd> {
        let write = OFlag::O_WRONLY | OFlag::O_APPEND;
        let flags = write | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).named("openat", || name.into())
    }

    /// Writes a file for the runtime.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let mut file = File::from(self.make_file(name, OFlag::O_WRONLY).stage(STAGE)?);
        file.write_all(content).named("write", || name.into()).stage(STAGE)
    }

    /// Reads a file of the runtime, as far as it is not longer than this; empty if it is not there.
    #[must_use]
    pub fn read(&self, name: &str, limit_bytes: usize) -> String {
        let opened = openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let read = opened.ok().and_then(|file| wharf_sys::fs::read_bounded(&file, limit_bytes).ok());
        String::from_utf8_lossy(&read.unwrap_or_default()).into_owned()
    }

    fn make_directory(&self, name: &str) -> wharf_sys::Result<OwnedFd> {
        mkdirat(&self.0, name, Mode::S_IRWXU).named("mkdirat", || name.into())?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(&self.0, name, flags, Mode::empty()).named("openat", || name.into())
    }

    fn make_file(&self, name: &str, access: OFlag) -> wharf_sys::Result<OwnedFd> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let named = |errno| wharf_sys::Error::new("openat", name, errno);
        let made = openat(&self.0, name, flags | OFlag::O_WRONLY, mode).map_err(named)?;
        match access {
            OFlag::O_WRONLY => Ok(made),
            // O_PATH and O_CREAT exclude each other.
            _ => openat(&self.0, name, access | OFlag::O_CLOEXEC, Mode::empty()).map_err(named),
        }
    }
}

impl AsFd for Bundle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
