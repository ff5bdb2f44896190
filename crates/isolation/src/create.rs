//! What the container's first process does between clone and exec, as plain lists of steps, each with its reason.
//!
//! [`Joined`] is in the container's namespaces, with a mount namespace that is still empty; of host and pod it has
//! only what was opened before. [`Rooted`] is in the container's root, which it furnishes; then it enters the user
//! namespace. [`Ready`] is in the finished container and waits for the start. Each is made from the previous one, so
//! that no step can run where too much or too little is in reach.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use wharf_sys::clock::monotonic_ns;
use wharf_sys::fs::{Descriptors, write_value};
use wharf_types::HostPath;
use wharf_wire::v1::stage::Name;

use crate::birth::{Inside, Origin, Place};
use crate::error::{Error, Stage};
use crate::identity::{self, Identity};
use crate::mounts::{self, Sources};
use crate::paths::{self, Covers};
use crate::plan::{Plan, Process};
use crate::pod::{PodNamespaces, Users};
use crate::program::{Part, Runner};
use crate::root::{self, Make, Root};
use crate::streams::{self, Connected, Streams};
use crate::terminal::{self, Terminal};
use crate::{apparmor, devices, report, selinux};

/// The stages whose ends are reported, in order.
pub const STAGES: [Name; 7] =
    [Name::Clone, Name::Open, Name::Enter, Name::Mount, Name::Devices, Name::Cover, Name::Settle];

/// When each stage ended, by CLOCK_MONOTONIC.
struct Ends(Vec<u64>);

impl Ends {
    fn note(&mut self) {
        self.0.push(monotonic_ns());
    }
}

/// Makes the container of an encoded plan around this process, reports, waits for the start, and executes the program.
/// Runs in a child of the supervisor, in a PID namespace of its own or in the supervisor's (and on v2 in its cgroup),
/// and never returns.
pub fn create(plan: &[u8], pod: PodNamespaces<'_>, streams: &Streams, mut origin: Origin<'_>) -> ! {
    let error = match run(plan, pod, streams, &mut origin) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    report::failed(&origin.line, &error);
    wharf_sys::process::exit_now(128)
}

fn run(
    plan: &[u8],
    pod: PodNamespaces<'_>,
    streams: &Streams,
    origin: &mut Origin<'_>,
) -> Result<Infallible, Error> {
    let mut ends = Ends(Vec::with_capacity(STAGES.len()));
    ends.note();
    // Here, not in the supervisor, which would keep the memory that decoding takes.
    let plan = &Plan::decode(plan)?;
    let rooted = Joined::join(plan, pod, origin, &mut ends)?.enter_root()?;
    ends.note();
    let ready = rooted.furnish(plan, streams, origin, &mut ends)?;
    ends.note();
    ready.start(plan, origin, &ends)
}

/// In the container's namespaces, where no path leads to host or pod: of both there is only what was opened before.
struct Joined<'a> {
    root: Root,
    sources: Sources,
    users: Option<Users<'a>>,
    own: Descriptors,
}

impl<'a> Joined<'a> {
    fn join(
        plan: &Plan,
        pod: PodNamespaces<'a>,
        origin: &Origin<'_>,
        ends: &mut Ends,
    ) -> Result<Self, Error> {
        // Files are made with exactly the modes in the plan.
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        // Later, the host's procfs is out of reach, and so is the right to lower the score.
        set_oom_score(&plan.process)?;
        apparmor::confine(&plan.process)?;
        selinux::confine(&plan.process)?;
        // Through paths of the host. Before anything is allocated for the container, so that it is charged for all of
        // that.
        enter_cgroup(&plan.cgroup.entries)?;
        // In the host's procfs: the container's, if it has one, may be the image's.
        let own = Descriptors::own().stage("opening the descriptors of this process")?;
        // Through paths of the host, in the host's mount namespace: only there is a copy a peer of the host's mount.
        let users = Users::of(pod, &plan.namespaces)?;
        let mut sources = mounts::open_sources(&plan.mounts, users)?;
        // Through paths of the host: the layers. Last, since with many layers this leaves the host's mount namespace
        // before Linux 6.8.
        sources.add_images(plan, users)?;
        let root = Root::make(plan, users)?;
        ends.note();
        // This needs the descriptor of a process, and privileges in the host's user namespace.
        origin.choose_namespace()?;
        // From here on, what is made is the container's: its file systems, and what is missing in its root.
        users.map_or(Ok(()), Users::own_files)?;
        // From here on, new mounts belong to these namespaces: a procfs to the PID namespace, a sysfs to the network
        // namespace, an mqueue to the IPC namespace. No path leads to the host any more.
        pod.enter(&plan.namespaces)?;
        // Here the pod's files are visible; their mounts could not be copied from elsewhere.
        sources.add_pods(&plan.mounts)?;
        // No path leads to the pod's files any more, and the first mount happens where neither host nor pod sees it.
        pod.leave_files(&plan.namespaces)?;
        // No link in an image leads out of it, and nobody else sees where it is mounted for a moment.
        sources.narrow_images(&plan.mounts)?;
        Ok(Self { root, sources, users, own })
    }

    fn enter_root(self) -> Result<Rooted<'a>, Error> {
        let Self { root, sources, users, own } = self;
        // Before anything in it is looked at: from now on every link of the image ends in it.
        root.enter()?;
        Ok(Rooted { root, sources, users, own })
    }
}

/// In the container's root; of the host only what the plan binds is in reach.
struct Rooted<'a> {
    root: Root,
    sources: Sources,
    users: Option<Users<'a>>,
    own: Descriptors,
}

impl Rooted<'_> {
    fn furnish(
        self,
        plan: &Plan,
        streams: &Streams,
        origin: &Origin<'_>,
        ends: &mut Ends,
    ) -> Result<Ready, Error> {
        let Self { root, sources, users, own } = self;
        // First, because the next steps need the mounts: `/dev`, `/proc`, and what a volume hides.
        mounts::attach_all(&root, plan, sources, origin)?;
        ends.note();
        // In the mounted `/dev`; what is masked next is covered by its null device.
        devices::make(&root, plan)?;
        // In the container's devpts, where it gets its name. A masked path may be `/dev/console`.
        let terminal = plan.stdio.terminal.then(|| terminal::open(&root, plan)).transpose()?;
        ends.note();
        // When everything that is masked or read-only is mounted; with the container's null device.
        Covers::labelled(plan.mount_label.as_ref()).mask(&root, &plan.masked_paths)?;
        paths::make_read_only(&root, &plan.readonly_paths)?;
        ends.note();
        // A mount may have brought the files that contain the names.
        let identity = identity::resolve(&root, &own, &plan.process.user)?;
        // It leads to the host's procfs.
        drop(own);
        // While this process may still give them to the user, who is known now.
        let owner = identity.on_host(users.map(|users| users.ids))?;
        streams.give(owner)?;
        terminal.iter().try_for_each(|terminal| streams::give(terminal.peer.as_fd(), owner))?;
        // When everything is mounted that it takes the host's root user to mount.
        let root = match users {
            Some(users) => users.join(&plan.namespaces).and_then(|()| Root::own())?,
            None => root,
        };
        // Now that the mounts are the final ones: a null device opened before would be on a mount that is not the
        // container's.
        let connected = streams::connect(root.fd(), streams, terminal.as_ref())?;
        // It is made if it is missing, so before the root is read-only; in a user namespace with no more rights than
        // its root user has, because the path is the image's.
        let cwd = open_cwd(&root, &plan.process)?;
        // In the namespace in which the programs will mount.
        root.propagate(plan.rootfs.propagation)?;
        // Nothing more is written.
        if plan.rootfs.read_only {
            root.forbid_writing()?;
        }
        // Last, because it proves that root, mounts and working directory are the container's.
        let inside = root::enter_cwd(cwd.as_fd(), &plan.process.cwd)?;
        Ok(Ready { inside, identity, terminal, connected })
    }
}

/// In the finished container, with the streams connected.
struct Ready {
    inside: Inside,
    identity: Identity,
    terminal: Option<Terminal>,
    connected: Connected,
}

impl Ready {
    fn start(self, plan: &Plan, origin: &mut Origin<'_>, ends: &Ends) -> Result<Infallible, Error> {
        let Self { inside, identity, terminal, connected } = self;
        let master = terminal.as_ref().map(|terminal| &terminal.master);
        // Nothing can fail any more but what is the program's: the container counts as created.
        report::ready(&origin.line, &identity, master, &ends.0)?;
        // The supervisor has its master now, and the standard streams are its other end.
        drop(terminal);
        // While this process still has its rights: the program is to find what hooks change until then.
        let Some(others) = report::await_start(&origin.line) else { wharf_sys::process::exit_now(128) };
        if let Place::Of(_, known) = &mut origin.place {
            *known = others;
        }
        let runner = Runner { process: &plan.process, identity: &identity, part: Part::First };
        // After the start, so that a process among others is there as its program, and never while it waits.
        origin.go_on(inside, connected, runner)
    }
}

/// It takes `CAP_SYS_RESOURCE` to lower the score below the inherited one; without it the inherited one stays.
pub(crate) fn set_oom_score(process: &Process) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj else { return Ok(()) };
    match write_value("/proc/self/oom_score_adj", &score.to_string()) {
        Err(error) if error.errno == Errno::EACCES => Ok(()),
        other => other.stage("setting oom_score_adj"),
    }
}

pub(crate) const CGROUP_STAGE: &str = "entering the cgroup";

pub(crate) fn enter_cgroup(entries: &[HostPath]) -> Result<(), Error> {
    entries.iter().try_for_each(|entry| write_value(entry.as_path(), "0").stage(CGROUP_STAGE))
}

/// Opens the working directory, and makes it if it is missing.
fn open_cwd(root: &Root, process: &Process) -> Result<OwnedFd, Error> {
    drop(root.ensure(&process.cwd, Make::Directory).map_err(|source| root::cwd_error(&process.cwd, source))?);
    root::open_cwd(root.fd(), &process.cwd)
}
