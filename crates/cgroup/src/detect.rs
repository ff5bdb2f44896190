//! Detection: which hierarchies are mounted, and which of them has each controller.
//!
//! It looks once, when the daemon starts. From then on nobody asks for the node's version: each controller has a home,
//! and the home has a version.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;

use crate::create;
use crate::error::Error;
use crate::files;
use crate::group::Cgroup;
use crate::path::CgroupPath;
use crate::placement::Driver;
use crate::systemd::Systemd;
use crate::systemd::units::Scope;

/// Which cgroup versions the node has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// v1 hierarchies only.
    V1,
    /// v1 hierarchies with controllers, and a unified one beside them.
    Hybrid,
    /// The unified hierarchy only.
    V2,
}

/// A controller; v1's `blkio` and v2's `io` count as the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is named as in cgroups(7)")]
pub enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Pids,
    Devices,
    Freezer,
    Io,
    Hugetlb,
    PerfEvent,
    NetCls,
    NetPrio,
    Rdma,
    Misc,
}

impl Controller {
    /// The controller with this name in v2's `cgroup.controllers`.
    pub(crate) fn of_unified(name: &str) -> Option<Self> {
        Some(match name {
            "cpu" => Self::Cpu,
            "cpuset" => Self::Cpuset,
            "memory" => Self::Memory,
            "pids" => Self::Pids,
            "io" => Self::Io,
            "hugetlb" => Self::Hugetlb,
            "rdma" => Self::Rdma,
            "misc" => Self::Misc,
            _ => return None,
        })
    }

    /// The controller with this name among the options of a v1 hierarchy's mount.
    pub(crate) fn of_v1(name: &str) -> Option<Self> {
        Some(match name {
            "cpu" => Self::Cpu,
            "cpuacct" => Self::Cpuacct,
            "cpuset" => Self::Cpuset,
            "memory" => Self::Memory,
            "pids" => Self::Pids,
            "devices" => Self::Devices,
            "freezer" => Self::Freezer,
            "blkio" => Self::Io,
            "hugetlb" => Self::Hugetlb,
            "perf_event" => Self::PerfEvent,
            "net_cls" => Self::NetCls,
            "net_prio" => Self::NetPrio,
            "rdma" => Self::Rdma,
            "misc" => Self::Misc,
            _ => return None,
        })
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Io => "io",
            Self::Hugetlb => "hugetlb",
            Self::PerfEvent => "perf_event",
            Self::NetCls => "net_cls",
            Self::NetPrio => "net_prio",
            Self::Rdma => "rdma",
            Self::Misc => "misc",
        })
    }
}

/// A hierarchy's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    V1,
    Unified,
}

/// One mounted hierarchy.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    pub(crate) kind: Kind,
    pub(crate) mount: PathBuf,
    /// The known ones. A v1 hierarchy may have none, only a name: systemd's, for example.
    pub(crate) controllers: Vec<Controller>,
    /// Whether nobody else on a node cares for pods' cgroups in it: the kubelet knows systemd's and those with a
    /// controller that limits something.
    pub(crate) is_ours_alone: bool,
    root: OwnedFd,
}

impl Hierarchy {
    pub(crate) fn open(kind: Kind, mount: PathBuf, controllers: Vec<Controller>) -> Result<Self, Error> {
        let root = wharf_sys::fs::open(&mount, OFlag::O_PATH | OFlag::O_DIRECTORY);
        let root = root.map_err(|error| Error::io("open", &mount)(error.errno.into()))?;
        Ok(Self { kind, mount, controllers, is_ours_alone: false, root })
    }

    /// Where it is mounted, open: the way to a cgroup is shorter from there.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// The node's cgroup hierarchies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Arc<[Hierarchy]>,
    /// Which of them knows the processes of a cgroup.
    tracker: usize,
    /// Whether the unified hierarchy keeps a cgroup namespace within its root.
    has_boundaries: bool,
    /// Makes the scopes; `None` if all cgroups are made here.
    systemd: Option<Arc<Systemd>>,
}

impl Cgroups {
    /// Detects what is mounted. Once is enough: hierarchies do not move while a node is up.
    ///
    /// # Errors
    /// [`Error::NoHierarchy`] if no mounted hierarchy can track processes, [`Error::Io`] if `/proc/self/mountinfo` or
    /// the unified root's `cgroup.controllers` cannot be read.
    pub fn detect() -> Result<Self, Error> {
        let mounts = files::read(Path::new("/proc/self/mountinfo"))?;
        let mut hierarchies = v1_hierarchies(&mounts)?;
        if let Some(mount) = unified_mount(&mounts) {
            let names = files::read(&mount.join("cgroup.controllers"))?;
            let controllers = names.split_whitespace().filter_map(Controller::of_unified).collect();
            hierarchies.push(Hierarchy::open(Kind::Unified, mount, controllers)?);
        }
        let has_boundaries = has_boundaries(&mounts);
        Ok(Self { has_boundaries, ..Self::of(hierarchies)? })
    }

    /// Processes are tracked by the unified hierarchy, else by the freezer's, else by that of pids.
    pub(crate) fn of(hierarchies: Vec<Hierarchy>) -> Result<Self, Error> {
        let unified = hierarchies.iter().position(|at| at.kind == Kind::Unified);
        let with = |controller| hierarchies.iter().position(|at| at.controllers.contains(&controller));
        let tracker = unified.or_else(|| with(Controller::Freezer)).or_else(|| with(Controller::Pids));
        let tracker = tracker.ok_or(Error::NoHierarchy)?;
        Ok(Self { tracker, hierarchies: hierarchies.into(), has_boundaries: false, systemd: None })
    }

    /// The same hierarchies, with systemd to make scopes in them. `program` is the supervisor's, which is copied.
    ///
    /// # Errors
    /// [`Error::NoSystemd`]; [`Error::Io`] or [`Error::Holder`] if the program cannot be copied.
    pub fn with_systemd(self, program: &Path) -> Result<Self, Error> {
        Ok(Self { systemd: Some(Arc::new(Systemd::new(program)?)), ..self })
    }

    /// Who makes the cgroups.
    #[must_use]
    pub fn driver(&self) -> Driver {
        if self.systemd.is_some() { Driver::Systemd } else { Driver::Cgroupfs }
    }

    /// systemd, if it makes the scopes.
    pub(crate) fn systemd(&self) -> Option<&Systemd> {
        self.systemd.as_deref()
    }

    /// Each hierarchy.
    pub(crate) fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// The unified hierarchy.
    pub(crate) fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.kind == Kind::Unified)
    }

    /// The hierarchy that a controller is in.
    pub(crate) fn home(&self, controller: Controller) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&controller))
    }

    /// The hierarchy that knows which processes a cgroup has.
    pub(crate) fn tracker(&self) -> &Hierarchy {
        &self.hierarchies[self.tracker]
    }

    /// Each hierarchy, that one first: as long as a cgroup is where processes are tracked, it is to be everywhere.
    pub(crate) fn tracker_first(&self) -> impl Iterator<Item = &Hierarchy> {
        let (before, rest) = self.hierarchies.split_at(self.tracker);
        rest.iter().take(1).chain(before).chain(rest.iter().skip(1))
    }

    /// The node's version, for people.
    #[must_use]
    pub fn version(&self) -> Version {
        // One with a name alone may be mounted on any node, and changes nothing for its controllers.
        let limits = |hierarchy: &Hierarchy| hierarchy.kind == Kind::V1 && !hierarchy.controllers.is_empty();
        let v1 = self.hierarchies.iter().any(limits);
        match (v1, self.unified().is_some()) {
            (true, true) => Version::Hybrid,
            (true, false) => Version::V1,
            (false, _) => Version::V2,
        }
    }

    /// Whether a container can manage the cgroups below its own without lifting what its own is limited to.
    #[must_use]
    pub fn can_delegate(&self) -> bool {
        self.has_boundaries && self.version() == Version::V2
    }

    /// Whether the kernel remembers how many huge pages a cgroup has had: v1 does, v2 does not.
    #[must_use]
    pub fn remembers_hugepages(&self) -> bool {
        self.home(Controller::Hugetlb).is_some_and(|home| home.kind == Kind::V1)
    }

    /// The controllers that the node has, sorted.
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        let mut all: Vec<_> =
            self.hierarchies.iter().flat_map(|hierarchy| hierarchy.controllers.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// Makes a cgroup and its missing ancestors in every hierarchy. An existing one is used as it is. One that is in a
    /// scope gets that from systemd.
    ///
    /// # Errors
    /// [`Error::Io`] if a directory cannot be made, [`Error::Write`] if a v1 cpuset cannot be set; [`Error::Systemd`],
    /// [`Error::Late`] or [`Error::Holder`] if the scope cannot be made.
    pub fn create(&self, path: &CgroupPath) -> Result<Cgroup, Error> {
        if let (Some(systemd), Some(scope)) = (&self.systemd, Scope::around(path)) {
            systemd.make(self, &scope)?;
        }
        for hierarchy in self.hierarchies.iter() {
            create::create(hierarchy, path)?;
        }
        Ok(self.at(path))
    }

    /// An existing cgroup, even one that after a crash is in only some of the hierarchies, or of which there is only
    /// the scope.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is in no hierarchy.
    pub fn open(&self, path: &CgroupPath) -> Result<Cgroup, Error> {
        let scope = Scope::around(path);
        let outermost = scope.as_ref().map_or(path, Scope::path);
        if !self.hierarchies.iter().any(|hierarchy| outermost.under(&hierarchy.mount).is_dir()) {
            return Err(Error::NotFound { path: path.clone() });
        }
        Ok(self.at(path))
    }

    /// The cgroup at a path, whether it exists or not.
    #[must_use]
    pub fn at(&self, path: &CgroupPath) -> Cgroup {
        Cgroup::new(path.clone(), self.clone())
    }
}

/// The v1 hierarchies, in the order of their mount points: those without a known controller, too. A container without a
/// cgroup of its own in one of them would have the daemon's there. Where it is the host's root user and mounts that in
/// namespaces of its own, it could make cgroups that nobody removes, and reach those of others.
fn v1_hierarchies(mountinfo: &str) -> Result<Vec<Hierarchy>, Error> {
    let open = |(mount, options): (PathBuf, &str)| {
        let controllers: Vec<_> = options.split(',').filter_map(Controller::of_v1).collect();
        let limits_nothing = controllers.iter().all(|controller| *controller == Controller::Misc);
        let is_ours_alone = limits_nothing && !options.split(',').any(|option| option == "name=systemd");
        Ok(Hierarchy { is_ours_alone, ..Hierarchy::open(Kind::V1, mount, controllers)? })
    };
    v1_mounts(mountinfo).into_iter().map(open).collect()
}

/// A line of a mountinfo about a hierarchy.
struct Mount<'a> {
    device: &'a str,
    /// What of the hierarchy is mounted.
    root: &'a str,
    point: &'a str,
    flags: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    fn is_whole(&self) -> bool {
        self.root == "/"
    }

    /// Nothing can be made where one is read-only.
    fn is_writable(&self) -> bool {
        [self.flags, self.options].iter().all(|all| !all.split(',').any(|flag| flag == "ro"))
    }
}

/// The mounts of a file system, without those that have a character in their path that the kernel escapes.
fn mounts<'a>(mountinfo: &'a str, file_system: &'a str) -> impl Iterator<Item = Mount<'a>> {
    let parse = move |line: &'a str| {
        let (place, kind) = line.split_once(" - ")?;
        let (_source, options) = kind.strip_prefix(file_system)?.strip_prefix(' ')?.split_once(' ')?;
        let mut fields = place.split(' ').skip(2);
        let [device, root, point, flags] = [(); 4].map(|()| fields.next());
        Some(Mount { device: device?, root: root?, point: point?, flags: flags?, options })
    };
    mountinfo.lines().filter_map(parse).filter(|mount| !mount.point.contains('\\'))
}

/// The mount points of the v1 hierarchies in a mountinfo with their options, sorted: each hierarchy once. A mount of
/// the whole is preferred to a mount of a part. Of those without a controller only what can be written is needed.
fn v1_mounts(mountinfo: &str) -> Vec<(PathBuf, &str)> {
    let mut found: BTreeMap<&str, Mount<'_>> = BTreeMap::new();
    for mount in mounts(mountinfo, "cgroup") {
        let is_needed = mount.options.split(',').any(|option| Controller::of_v1(option).is_some());
        let is_better = found.get(mount.device).is_none_or(|known| mount.is_whole() && !known.is_whole());
        if is_better && (is_needed || mount.is_writable()) {
            found.insert(mount.device, mount);
        }
    }
    let mut mounts: Vec<_> = found.into_values().map(|mount| (mount.point.into(), mount.options)).collect();
    mounts.sort();
    mounts
}

/// The mount point of cgroup2 in a mountinfo. A mount of the whole hierarchy is preferred to a mount of a part.
fn unified_mount(mountinfo: &str) -> Option<PathBuf> {
    let whole = mounts(mountinfo, "cgroup2").find(Mount::is_whole);
    whole.or_else(|| mounts(mountinfo, "cgroup2").next()).map(|mount| mount.point.into())
}

/// Whether cgroup2 is mounted with `nsdelegate`. All its mounts have the same options.
fn has_boundaries(mountinfo: &str) -> bool {
    mounts(mountinfo, "cgroup2")
        .flat_map(|mount| mount.options.split(','))
        .any(|option| option == "nsdelegate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_an_option_of_cgroup2_alone() {
        let line = |kind: &str| format!("24 30 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - {kind}\n");
        assert!(has_boundaries(&line("cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot")));
        for kind in
            ["cgroup2 nsdelegate rw", "cgroup2 cgroup2 rw,nsdelegated", "tmpfs none rw,nsdelegate", "cgroup2"]
        {
            assert!(!has_boundaries(&line(kind)), "{kind}");
        }
    }

    #[test]
    fn the_whole_unified_hierarchy_is_preferred() {
        let whole = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        let part = "40 31 0:38 /a /mnt/a rw - cgroup2 none rw\n";
        let v1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n";
        let escaped = "42 31 0:38 / /mnt/a\\040b rw - cgroup2 none rw\n";
        assert_eq!(unified_mount(&format!("{v1}{part}{whole}")), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(unified_mount(&format!("{v1}{part}")), Some("/mnt/a".into()));
        assert_eq!(unified_mount(&format!("{v1}{escaped}garbage\n")), None);
    }

    #[test]
    fn each_v1_hierarchy_is_found_once_whatever_it_limits() {
        let line = |device: &str, root: &str, mount: &str, options: &str| {
            format!("24 30 0:{device} {root} {mount} rw,nosuid shared:4 - cgroup cgroup {options}\n")
        };
        let all = [
            line("31", "/", "/cg/systemd", "rw,xattr,name=systemd"),
            line("30", "/pod", "/mnt/part", "rw,cpu,cpuacct"),
            line("30", "/", "/cg/cpu,cpuacct", "rw,cpu,cpuacct"),
            line("30", "/", "/mnt/again", "rw,cpu,cpuacct"),
            line("32", "/", "/mnt/a\\040b", "rw,pids"),
            line("33", "/docker", "/cg/misc", "rw,misc"),
            line("34", "/", "/cg/elsewhere", "ro,name=elsewhere"),
            "40 31 0:38 / /cg/unified rw - cgroup2 none rw\ngarbage\n".to_owned(),
        ];
        let found = [
            ("/cg/cpu,cpuacct", "rw,cpu,cpuacct"),
            ("/cg/misc", "rw,misc"),
            ("/cg/systemd", "rw,xattr,name=systemd"),
        ];
        assert_eq!(v1_mounts(&all.concat()), found.map(|(mount, options)| (PathBuf::from(mount), options)));
    }

    #[test]
    fn the_kubelet_knows_what_limits_something_and_systemds() {
        for (options, controllers, is_ours_alone) in [
            ("rw,cpu,cpuacct", &[Controller::Cpu, Controller::Cpuacct][..], false),
            ("rw,xattr,name=systemd", &[], false),
            ("rw,name=openrc", &[], true),
            ("rw,misc", &[Controller::Misc], true),
        ] {
            let line = format!("24 30 0:31 / / rw - cgroup cgroup {options}\n");
            let [found] = &v1_hierarchies(&line).unwrap()[..] else { panic!("{options}") };
            assert_eq!(
                (&found.controllers[..], found.is_ours_alone),
                (controllers, is_ours_alone),
                "{options}"
            );
        }
    }

    #[test]
    fn the_version_follows_from_the_hierarchies() {
        let at = |kind, controllers: &[Controller]| {
            Hierarchy::open(kind, "/".into(), controllers.to_vec()).unwrap()
        };
        let v1 = || at(Kind::V1, &[Controller::Freezer]);
        let unified = || at(Kind::Unified, &[Controller::Hugetlb]);
        for (hierarchies, version) in [
            (vec![v1()], Version::V1),
            (vec![v1(), unified()], Version::Hybrid),
            (vec![at(Kind::V1, &[]), unified()], Version::V2),
            (vec![unified()], Version::V2),
        ] {
            assert_eq!(Cgroups::of(hierarchies).unwrap().version(), version);
        }
        assert!(matches!(Cgroups::of(vec![at(Kind::V1, &[Controller::Cpu])]), Err(Error::NoHierarchy)));
    }

    #[test]
    fn every_controller_of_this_node_has_one_home() {
        let cgroups = Cgroups::detect().unwrap();
        let mut controllers = cgroups.controllers();
        let count = controllers.len();
        controllers.dedup();
        assert_eq!(controllers.len(), count);
        assert!(controllers.contains(&Controller::Memory), "{controllers:?}");
    }

    #[test]
    fn what_does_not_exist_is_not_found() {
        let path = CgroupPath::new("/wharf-test-never-made").unwrap();
        let error = Cgroups::detect().unwrap().open(&path).unwrap_err();
        assert_eq!(wharf_types::Failure::kind(&error), wharf_types::ErrorKind::NotFound);
    }
}
