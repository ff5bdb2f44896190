//! A pod's own namespaces: a throwaway thread makes and sets them up, and they are returned as descriptors. They are
//! not pinned, so they cost no mount on the host, and they disappear when nobody holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};

use wharf_planner::{NamespaceKind as Kind, NamespacePlan};
use wharf_sys::error::Named as _;
use wharf_sys::mount::{self, OwnThread};
use wharf_sys::user_namespace;
use wharf_types::{Stage as _, StageError};
use wharf_wire::v1::Held;

use crate::error::Error;
use crate::sysctls::Sysctls;

const STAGE: &str = "making the pod's namespaces";

/// A pod's namespaces, just made. Each lives as long as a process is in it or someone holds a descriptor of it.
#[derive(Debug)]
pub struct NewNamespaces {
    /// The network namespace, if it is the pod's own.
    pub net: Option<OwnedFd>,
    /// The IPC namespace, if it is the pod's own.
    pub ipc: Option<OwnedFd>,
    /// The UTS namespace, if it is the pod's own.
    pub uts: Option<OwnedFd>,
    /// The user namespace, if it is the pod's own.
    pub user: Option<OwnedFd>,
    /// The mount namespace whose root is the pod's file system.
    pub mounts: OwnedFd,
    /// The root of that file system.
    pub files: OwnedFd,
    /// A mount namespace without mounts, for containers, shared by all pods.
    empty: Template,
}

impl NewNamespaces {
    /// All of them, as the pod's supervisor is to hold them.
    #[must_use]
    pub fn to_hold(&self) -> Vec<(Held, BorrowedFd<'_>)> {
        let Self { net, ipc, uts, user, mounts, files, empty } = self;
        let all = [
            (Held::Network, net.as_ref()),
            (Held::Ipc, ipc.as_ref()),
            (Held::Uts, uts.as_ref()),
            (Held::User, user.as_ref()),
            (Held::Mounts, Some(mounts)),
            (Held::Files, Some(files)),
            (Held::Empty, Some(&empty.0.mounts)),
        ];
        all.into_iter().filter_map(|(held, descriptor)| Some((held, descriptor?.as_fd()))).collect()
    }
}

/// What all pods' namespaces are made with. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Template(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    /// An empty mount namespace from which those of pods are copied. Copying the host's would cost more with each mount
    /// on the host.
    mounts: OwnedFd,
    sysctls: Sysctls,
}

/// A thread that makes a pod's namespaces. Without the pod's files it gives up.
#[derive(Debug)]
pub struct NamespacesUnderway {
    thread: wharf_sys::Result<JoinHandle<Result<NewNamespaces, Error>>>,
    files: Sender<OwnedFd>,
}

impl NamespacesUnderway {
    /// Waits until they are made. The detached mount `files` becomes the root of the pod's mount namespace.
    ///
    /// # Errors
    /// A sysctl cannot be set to its value, or the kernel refuses a step.
    pub fn end(self, files: OwnedFd) -> Result<NewNamespaces, Error> {
        let thread = self.thread.stage(STAGE)?;
        // If it has ended already, it says why.
        drop(self.files.send(files));
        thread.join().unwrap_or_else(|_panic| Err(died().into()))
    }
}

impl Template {
    /// Makes the template.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn make() -> Result<Self, StageError> {
        const STAGE: &str = "making an empty mount namespace";
        // Nothing may be below the files of all pods: they would share it, and a container with `CAP_SYS_ADMIN` can
        // drop what is on top of it, make it writable, and leave to the next pod whatever it likes.
        let mounts = mount::empty_namespace().stage(STAGE)?;
        let sysctls = Sysctls::open().stage("mounting a procfs for the sysctls of pods")?;
        Ok(Self(Arc::new(Parts { mounts, sysctls })))
    }

    /// Begins to make a pod's namespaces, in a thread of their own.
    #[must_use]
    pub fn begin(&self, plan: NamespacePlan) -> NamespacesUnderway {
        let (template, (files, made)) = (self.clone(), channel());
        let thread = thread::Builder::new().spawn(move || template.make_here(&plan, &made));
        NamespacesUnderway { thread: thread.named("clone", || "a thread".into()), files }
    }

    /// Sets sysctls of the network namespace among these, if they have one.
    ///
    /// # Errors
    /// One cannot be set to its value.
    pub fn set_sysctls(
        &self,
        NewNamespaces { net, user, .. }: &NewNamespaces,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let Some(net) = net.as_ref().filter(|_| !sysctls.is_empty()) else { return Ok(()) };
        let set = || {
            setns(net, CloneFlags::CLONE_NEWNET).stage(STAGE)?;
            self.0.sysctls.set(sysctls, user.as_ref().map(OwnedFd::as_fd))
        };
        thread::scope(|scope| {
            let setting = wharf_sys::thread::start(scope, set).stage(STAGE)?;
            setting.join().unwrap_or_else(|_panic| Err(died().into()))
        })
    }
}

fn died() -> StageError {
    StageError::at(STAGE, std::io::Error::other("the thread that is in them panicked"))
}

impl Template {
    /// Makes them in this thread, which cannot be used for anything else afterwards.
    fn make_here(self, plan: &NamespacePlan, files: &Receiver<OwnedFd>) -> Result<NewNamespaces, Error> {
        let thread = OwnThread::open().stage(STAGE)?;
        // A thread may enter a mount namespace only if it does not share its root and working directory.
        let alone = CloneFlags::CLONE_FS;
        let user = plan.ids.map(user_namespace::make).transpose().stage("making the pod's user namespace")?;
        match &user {
            Some(user) => {
                unshare(alone).stage(STAGE)?;
                enter_new(&plan.own, user.as_fd())?;
            }
            None => unshare(flags(&plan.own) | alone).stage(STAGE)?,
        }
        self.set_up(plan, user.as_ref().map(|user| user.as_fd()))?;
        let open = |kind: Kind| {
            let is_own = plan.own.contains(&kind);
            is_own.then(|| thread.namespace(kind.name())).transpose().stage(STAGE)
        };
        let (net, ipc, uts) = (open(Kind::Net)?, open(Kind::Ipc)?, open(Kind::Uts)?);
        setns(&self.0.mounts, CloneFlags::CLONE_NEWNS).stage(STAGE)?;
        unshare(CloneFlags::CLONE_NEWNS).stage(STAGE)?;
        let root = wharf_sys::fs::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY).stage(STAGE)?;
        let files = files.recv().map_err(std::io::Error::other).stage("waiting for the pod's files")?;
        // On top of the kernel's own root: whoever enters the namespace gets the topmost mount.
        mount::attach(files.as_fd(), root.as_fd()).stage(STAGE)?;
        let mounts = thread.namespace("mnt").stage(STAGE)?;
        Ok(NewNamespaces { net, ipc, uts, user, mounts, files, empty: self })
    }

    /// Applies the settings, from inside.
    fn set_up(&self, plan: &NamespacePlan, user: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        if plan.own.contains(&Kind::Uts) && !plan.hostname.is_empty() {
            nix::unistd::sethostname(&plan.hostname).stage("setting the pod's hostname")?;
        }
        self.0.sysctls.set(&plan.sysctls, user)
    }
}

fn flag(kind: Kind) -> CloneFlags {
    match kind {
        Kind::Net => CloneFlags::CLONE_NEWNET,
        Kind::Ipc => CloneFlags::CLONE_NEWIPC,
        Kind::Uts => CloneFlags::CLONE_NEWUTS,
    }
}

fn flags(kinds: &BTreeSet<Kind>) -> CloneFlags {
    kinds.iter().copied().map(flag).collect()
}

/// Makes namespaces that belong to a user namespace, which only a process in that can do, and moves this thread into
/// them.
fn enter_new(own: &BTreeSet<Kind>, user: BorrowedFd<'_>) -> Result<(), Error> {
    let make = || {
        unshare(flags(own)).named("unshare", || format!("{own:?}"))?;
        let process = OwnThread::open()?;
        own.iter()
            .map(|kind| Ok((flag(*kind), process.namespace(kind.name())?)))
            .collect::<Result<Vec<_>, _>>()
    };
    let made = user_namespace::inside(user, make).stage(STAGE)?;
    Ok(made.iter().try_for_each(|(kind, namespace)| setns(namespace, *kind)).stage(STAGE)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use nix::errno::Errno;
    use nix::mount::{MntFlags, umount2};
    use wharf_sys::mount::Attributes;
    use wharf_types::IdMaps;

    use super::*;

    fn make(own: &[Kind], key: &str) -> Result<NewNamespaces, Error> {
        make_for(None, own, key)
    }

    fn make_for(ids: Option<IdMaps>, own: &[Kind], key: &str) -> Result<NewNamespaces, Error> {
        let plan = NamespacePlan {
            own: own.iter().copied().collect(),
            hostname: "pod".into(),
            sysctls: BTreeMap::from([(key.to_owned(), "1".to_owned())]),
            ids,
        };
        let files = mount::new_filesystem("tmpfs", &[("mode", "700")], Attributes::NO_DEV).unwrap();
        fs::write(wharf_sys::fs::proc_path(files.as_fd()).join("file"), "of the pod").unwrap();
        Template::make().unwrap().begin(plan).end(files)
    }

    /// What a thread sees in a namespace.
    fn inside<T: Send>(namespace: BorrowedFd<'_>, kind: CloneFlags, look: fn() -> T) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                unshare(CloneFlags::CLONE_FS).unwrap();
                setns(namespace, kind).unwrap();
                look()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    #[test]
    fn a_pod_has_namespaces_of_its_own_and_the_host_none_of_its_mounts() {
        let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = table();
        let pod = make(&[Kind::Net, Kind::Ipc, Kind::Uts], "kernel.shm_rmid_forced").unwrap();
        assert_eq!(table(), before);
        let name = |fd: &OwnedFd| fs::read_link(wharf_sys::fs::proc_path(fd.as_fd())).unwrap();
        let own = |kind: &str| fs::read_link(PathBuf::from(format!("/proc/self/ns/{kind}"))).unwrap();
        for (kind, fd) in [("net", &pod.net), ("ipc", &pod.ipc), ("uts", &pod.uts)] {
            assert_ne!(name(fd.as_ref().unwrap()), own(kind));
        }
        let hostname = || nix::unistd::gethostname().unwrap();
        let inside_uts = inside(pod.uts.as_ref().unwrap().as_fd(), CloneFlags::CLONE_NEWUTS, hostname);
        assert_eq!(inside_uts, "pod");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap().trim(), "0");
        let names = || {
            let entries = fs::read_dir("/").unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        assert_eq!(inside(pod.mounts.as_fd(), CloneFlags::CLONE_NEWNS, names), ["file"]);
    }

    #[test]
    fn what_a_pod_has_belongs_to_its_user_namespace() {
        let range = wharf_types::IdRange::new(100_000, 65_536).unwrap();
        let ids = IdMaps { users: range, groups: range };
        let all = [Kind::Net, Kind::Ipc, Kind::Uts];
        let pod = make_for(Some(ids), &all, "kernel.shm_rmid_forced").unwrap();
        let user = pod.user.as_ref().unwrap();
        let own = [&pod.net, &pod.ipc, &pod.uts].map(|fd| fd.as_ref().unwrap().as_fd());
        // Whoever is in it may change what belongs to it, and nothing of the host.
        let kinds = all.map(flag);
        let enter = |(namespace, kind): (BorrowedFd<'_>, CloneFlags)| setns(namespace, kind);
        let settle = || own.into_iter().zip(kinds).try_for_each(enter).named("setns", || "the pod's".into());
        user_namespace::inside(user.as_fd(), settle).unwrap();
        let hosts = fs::File::open("/proc/thread-self/ns/uts").unwrap();
        let leave = || setns(&hosts, CloneFlags::CLONE_NEWUTS).named("setns", || "CLONE_NEWUTS".into());
        assert_eq!(user_namespace::inside(user.as_fd(), leave).unwrap_err().errno, Errno::EPERM);
        let hostname = || nix::unistd::gethostname().unwrap();
        assert_eq!(inside(pod.uts.as_ref().unwrap().as_fd(), CloneFlags::CLONE_NEWUTS, hostname), "pod");
        let shared = make_for(Some(ids), &[], "no.such").unwrap_err();
        assert!(shared.to_string().starts_with("sysctls: "), "{shared}");
    }

    #[test]
    fn nothing_is_below_a_pods_files_that_pods_could_share() {
        let pod = make(&[Kind::Ipc], "kernel.shm_rmid_forced").unwrap();
        let drop_root =
            || inside(pod.mounts.as_fd(), CloneFlags::CLONE_NEWNS, || umount2("/", MntFlags::MNT_DETACH));
        assert_eq!(drop_root(), Ok(()));
        assert_eq!(drop_root(), Err(Errno::EINVAL), "the kernel's own root is the last");
    }

    #[test]
    fn a_limit_on_processes_is_named() {
        let told = wharf_sys::thread::apart(|| {
            use wharf_sys::seccomp::{Call, refuse};
            let template = Template::make().unwrap();
            let files = mount::new_filesystem("tmpfs", &[("mode", "700")], Attributes::NO_DEV)?;
            let plan = NamespacePlan {
                own: [Kind::Ipc].into(),
                hostname: "pod".into(),
                sysctls: BTreeMap::new(),
                ids: None,
            };
            // A C library uses one of them.
            refuse(Call::CLONE, Errno::EAGAIN)?;
            refuse(Call::CLONE3, Errno::EAGAIN)?;
            Ok(wharf_types::chain(&template.begin(plan).end(files).unwrap_err()))
        });
        let told = told.unwrap();
        assert!(told.contains("TasksMax"), "{told}");
    }

    #[test]
    fn what_is_shared_with_the_host_is_not_made() {
        let pod = make(&[Kind::Ipc], "kernel.shm_rmid_forced").unwrap();
        assert!(pod.net.is_none() && pod.ipc.is_some() && pod.uts.is_none());
        let held: Vec<Held> = pod.to_hold().into_iter().map(|(held, _)| held).collect();
        assert_eq!(held, [Held::Ipc, Held::Mounts, Held::Files, Held::Empty]);
        let error = make(&[Kind::Ipc], "kernel.shmall_no_such").unwrap_err();
        assert!(error.to_string().starts_with("sysctls: "), "{error}");
    }
}
