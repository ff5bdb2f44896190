//! What a description is made from: the request and its image, facts about the host, and the places of the container's
//! files.

use std::sync::LazyLock;

use oci_spec::image;
use wharf_cri_api::v1::{
    ContainerConfig, Device, LinuxContainerResources, LinuxContainerSecurityContext, NamespaceOption,
    PodSandboxConfig,
};
use wharf_isolation::{CgroupPlan, DeviceNode};
use wharf_sys::mount::Propagation;
use wharf_types::{ContainerId, ErrorKind, HostPath, PodId, Reserve};

use crate::defaults::PrivilegedDevices;
use crate::{Defaults, Selinux};

/// The request for a container.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The pod it is in.
    pub pod_id: &'a PodId,
    /// The pod's own request.
    pub pod: &'a PodSandboxConfig,
    /// The container's id.
    pub id: &'a ContainerId,
    /// The request.
    pub container: &'a ContainerConfig,
    /// What the image says about running it.
    pub image: &'a image::Config,
    /// For each mount of the request that is of an image, that image's layers, topmost first.
    pub mounted: &'a [Option<Vec<HostPath>>],
    /// What the node has chosen where the request leaves it open.
    pub defaults: &'a Defaults,
    /// The seccomp profile from a registry that the request names.
    pub profile: Option<&'a [u8]>,
    /// Whether it gets wharf's AppArmor profile without asking for one: the supervisors of earlier releases cannot give
    /// any.
    pub unasked_apparmor: Switch,
    /// Whether it gets SELinux labels.
    pub selinux: Selinux<'a>,
}

impl<'a> Request<'a> {
    /// The security context, or an empty one.
    #[must_use]
    pub fn security(&self) -> &'a LinuxContainerSecurityContext {
        static NONE: LazyLock<LinuxContainerSecurityContext> = LazyLock::new(Default::default);
        let linux = self.container.linux.as_ref();
        linux.and_then(|linux| linux.security_context.as_ref()).unwrap_or(&NONE)
    }

    pub(crate) fn is_privileged(&self) -> bool {
        self.security().privileged
    }

    /// The devices that it gets: the node's, then the request's.
    pub fn devices(&self) -> impl Iterator<Item = &'a Device> + use<'a> {
        self.defaults.devices.iter().chain(&self.container.devices)
    }

    /// Whether it gets the nodes of all the machine's devices.
    #[must_use]
    pub fn wants_host_devices(&self) -> bool {
        self.is_privileged() && self.defaults.privileged_devices == PrivilegedDevices::All
    }

    /// Whether its cgroup allows every device.
    pub(crate) fn may_use_every_device(&self) -> bool {
        self.is_privileged() && self.defaults.privileged_devices != PrivilegedDevices::Usual
    }

    pub(crate) fn has_read_only_root(&self) -> bool {
        self.security().readonly_rootfs || self.defaults.read_only == Switch::On
    }

    pub(crate) fn resources(&self) -> &'a LinuxContainerResources {
        static NONE: LazyLock<LinuxContainerResources> = LazyLock::new(Default::default);
        self.container.linux.as_ref().and_then(|linux| linux.resources.as_ref()).unwrap_or(&NONE)
    }

    /// The pod's namespaces; unset ones are its own.
    pub(crate) fn pods_namespaces(&self) -> &'a NamespaceOption {
        static NONE: LazyLock<NamespaceOption> = LazyLock::new(Default::default);
        let context = self.pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        context.and_then(|context| context.namespace_options.as_ref()).unwrap_or(&NONE)
    }
}

/// What a container's description depends on in this machine, read once. If something could not be read, the reason is
/// here: the reader does not decide whether it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The machine's hostname.
    pub hostname: String,
    /// Major and minor version of the running kernel.
    pub kernel: (u32, u32),
    /// The daemon's own bounding set of capabilities, beyond which nothing can be granted.
    pub bounding: u64,
    /// For each of [`Request::devices`], the nodes for it with their paths in the container.
    pub devices: Vec<Result<Vec<DeviceNode>, Unread>>,
    /// The machine's devices if [`Request::wants_host_devices`]; otherwise empty.
    pub host_devices: Vec<DeviceNode>,
    /// For each mount in the request, what its host path leads to.
    pub mounts: Vec<Result<MountSource, Unread>>,
    /// The seccomp profile in a file of the host to whose path the request refers.
    pub seccomp_profile: Option<Result<Vec<u8>, Unread>>,
    /// The security modules that can confine it.
    pub modules: SecurityModules,
}

/// Why something that the request names could not be read, with the class: the request may be at fault, or this
/// machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The class of the failure.
    pub kind: ErrorKind,
    /// The reason, for people.
    pub problem: String,
}

impl Unread {
    /// The request is at fault.
    pub fn invalid(problem: impl ToString) -> Self {
        Self { kind: ErrorKind::InvalidArgument, problem: problem.to_string() }
    }

    /// The same reason for something that the node's configuration names: whoever sent the request can mend nothing.
    pub(crate) fn of_the_nodes(self) -> Self {
        match self.kind {
            ErrorKind::InvalidArgument => Self { kind: ErrorKind::FailedPrecondition, ..self },
            _ => self,
        }
    }

    /// The same reason, with what could not be read.
    #[must_use]
    pub fn of(self, what: &str) -> Self {
        Self { problem: format!("{what}: {}", self.problem), ..self }
    }
}

/// What the host path of a mount leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSource {
    /// The path without links.
    pub path: HostPath,
    /// How the mount that it is on propagates; private if the request does not ask for propagation.
    pub propagation: Propagation,
}

/// The security modules that can confine containers on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecurityModules {
    /// Whether AppArmor profiles have an effect.
    pub apparmor: Switch,
}

/// Whether something is enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

impl From<bool> for Switch {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

/// The present or future places of the container's and its pod's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The container's writable layer, and those below it.
    pub layers: Layers,
    /// The directory of its volumes, which are numbered.
    pub volumes: HostPath,
    /// What must stay free on the disk of these.
    pub reserve: Reserve,
    /// The directory of the files that all containers of the pod share.
    pub pod_files: HostPath,
    /// The pod's namespaces.
    pub namespaces: Pins,
    /// The cgroup.
    pub cgroup: CgroupPlaces,
}

/// The directories of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The image's layers, topmost first.
    pub lowers: Vec<HostPath>,
    /// The container's writable layer.
    pub upper: HostPath,
    /// Overlayfs's work directory beside `upper`.
    pub work: HostPath,
}

/// Where people and tools find a pod's namespaces, including those that this pod does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    /// The network namespace.
    pub net: HostPath,
    /// The IPC namespace.
    pub ipc: HostPath,
    /// The UTS namespace.
    pub uts: HostPath,
    /// The user namespace.
    pub user: HostPath,
}

/// The places of a cgroup in the hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlaces {
    /// Its path below the root of each hierarchy.
    pub path: String,
    /// How processes enter it and are reached.
    pub plan: CgroupPlan,
    /// Its directory in each v1 hierarchy, by the name of that hierarchy's mount; empty on v2.
    pub v1: Vec<(String, HostPath)>,
    /// The mount point of the unified hierarchy, if there is one.
    pub unified: Option<HostPath>,
    /// Whether containers can be let manage cgroups below their own.
    pub delegation: Switch,
}
