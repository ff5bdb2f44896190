//! What a container is described from: the request and its image, facts of the host, and the places of what is its own.

use std::sync::LazyLock;

use oci_spec::image;
use wharf_cri_api::v1::{
    ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, NamespaceOption,
    PodSandboxConfig,
};
use wharf_isolation::{CgroupPlan, DeviceNode};
use wharf_sys::mount::Propagation;
use wharf_types::{ContainerId, HostPath, PodId};

/// A container that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The pod it is in.
    pub pod_id: &'a PodId,
    /// That pod's own request.
    pub pod: &'a PodSandboxConfig,
    /// What the container will be called.
    pub id: &'a ContainerId,
    /// The request.
    pub container: &'a ContainerConfig,
    /// What its image says of how to run it.
    pub image: &'a image::Config,
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

    pub(crate) fn resources(&self) -> &'a LinuxContainerResources {
        static NONE: LazyLock<LinuxContainerResources> = LazyLock::new(Default::default);
        self.container.linux.as_ref().and_then(|linux| linux.resources.as_ref()).unwrap_or(&NONE)
    }

    /// The namespaces of the pod; unset ones are its own.
    pub(crate) fn pods_namespaces(&self) -> &'a NamespaceOption {
        static NONE: LazyLock<NamespaceOption> = LazyLock::new(Default::default);
        let context = self.pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        context.and_then(|context| context.namespace_options.as_ref()).unwrap_or(&NONE)
    }
}

/// What the description of a container depends on of the machine it is for, read once. What could not be read says why:
/// whether that matters is not for the reader to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The machine's name.
    pub hostname: String,
    /// Major and minor version of the running kernel.
    pub kernel: (u32, u32),
    /// The daemon's own bounding set of capabilities: nothing can be given beyond it.
    pub bounding: u64,
    /// For each device of the request the nodes that it stands for, with the paths that they get.
    pub devices: Vec<Result<Vec<DeviceNode>, String>>,
    /// The machine's devices, for a privileged container; else none.
    pub host_devices: Vec<DeviceNode>,
    /// For each mount of the request what it leads to.
    pub mounts: Vec<Result<MountSource, String>>,
    /// The seccomp profile that the request names by its path.
    pub seccomp_profile: Option<Result<Vec<u8>, String>>,
}

/// What the host path of a mount leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSource {
    /// The path without links.
    pub path: HostPath,
    /// How the mount that it is on propagates; private where the request asks for nothing else.
    pub propagation: Propagation,
}

/// Which security modules the kernel has switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecurityModules {
    /// Whether profiles of AppArmor have an effect.
    pub apparmor: Switch,
    /// Whether labels of SELinux have one.
    pub selinux: Switch,
}

/// Whether something is switched on.
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

/// Where what belongs to the container and its pod is, or will be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The container's writable layer and those below it.
    pub layers: Layers,
    /// The directory of its volumes, each of which has a number.
    pub volumes: HostPath,
    /// The directory of the files that all containers of the pod have.
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
    /// What the container writes.
    pub upper: HostPath,
    /// Overlay's scratch directory beside `upper`.
    pub work: HostPath,
}

/// Where people and tools find a pod's namespaces, those that it has and those that it could have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins {
    /// The network namespace.
    pub net: HostPath,
    /// The IPC namespace.
    pub ipc: HostPath,
    /// The UTS namespace.
    pub uts: HostPath,
}

/// Where a cgroup is in each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlaces {
    /// Its path below the root of each hierarchy.
    pub path: String,
    /// How processes get in, and are reached.
    pub plan: CgroupPlan,
    /// Its directory in each v1 hierarchy, by the name of that hierarchy's mount; none on v2.
    pub v1: Vec<(String, HostPath)>,
    /// Where the unified hierarchy is mounted, if there is one.
    pub unified: Option<HostPath>,
}
