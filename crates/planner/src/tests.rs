//! The starting point of all tests in this crate.

mod additions;
pub(crate) mod defaults;
mod fields;
mod filled;
mod golden;
mod labels;
pub(crate) mod requests;
mod text;

use oci_spec::image;
use wharf_cri_api::v1::{
    ContainerConfig, LinuxContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig,
};
use wharf_isolation::CgroupPlan;
use wharf_types::{ContainerId, HostPath, PodId, Reserve};

use crate::cdi::Addition;
use crate::selinux::Policy;
use crate::{
    CgroupPlaces, Defaults, HostFacts, Labelling, Layers, Pins, Places, Request, SecurityModules, Selinux,
    Switch,
};

/// A request, with everything on which its decisions depend.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) pod_id: PodId,
    pub(crate) pod: PodSandboxConfig,
    pub(crate) id: ContainerId,
    pub(crate) container: ContainerConfig,
    pub(crate) image: image::Config,
    pub(crate) mounted: Vec<Option<Vec<HostPath>>>,
    pub(crate) profile: Option<Vec<u8>>,
    pub(crate) facts: HostFacts,
    pub(crate) places: Places,
    pub(crate) defaults: Defaults,
    /// What this machine adds.
    pub(crate) additions: Vec<Addition>,
    /// The policy of SELinux, and the pod's level.
    pub(crate) selinux: Option<(Policy, String)>,
}

impl Asked {
    pub(crate) fn request(&self) -> Request<'_> {
        let Self { pod_id, pod, id, container, image, mounted, profile, defaults, .. } = self;
        let profile = profile.as_deref();
        let unasked_apparmor = Switch::On;
        let selinux = match &self.selinux {
            Some((policy, level)) => Selinux::On(Labelling { policy, level }),
            None => Selinux::Off,
        };
        Request { pod_id, pod, id, container, image, mounted, profile, defaults, unasked_apparmor, selinux }
    }

    pub(crate) fn linux(&mut self) -> &mut LinuxContainerConfig {
        self.container.linux.get_or_insert_default()
    }

    pub(crate) fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }
}

impl Default for Asked {
    fn default() -> Self {
        let mut image = image::Config::default();
        image.set_entrypoint(Some(vec!["/bin/server".to_owned()])).set_cmd(Some(vec!["--all".to_owned()]));
        Self {
            pod_id: PodId::from_random([0xaa; 32]),
            pod: PodSandboxConfig { hostname: "pod".to_owned(), ..PodSandboxConfig::default() },
            id: ContainerId::from_random([0xbb; 32]),
            container: ContainerConfig::default(),
            image,
            mounted: Vec::new(),
            profile: None,
            facts: facts(),
            places: places(),
            defaults: Defaults::default(),
            additions: Vec::new(),
            selinux: None,
        }
    }
}

fn facts() -> HostFacts {
    HostFacts {
        hostname: "node".to_owned(),
        kernel: (6, 18),
        bounding: (1 << 41) - 1,
        devices: Vec::new(),
        host_devices: Vec::new(),
        mounts: Vec::new(),
        seccomp_profile: None,
        modules: SecurityModules { apparmor: Switch::Off },
    }
}

pub(crate) fn host(path: &str) -> HostPath {
    HostPath::new(path).unwrap()
}

pub(crate) fn places() -> Places {
    Places {
        layers: Layers {
            lowers: vec![host("/layers/top/fs"), host("/layers/base/fs")],
            upper: host("/snapshots/c/fs"),
            work: host("/snapshots/c/work"),
        },
        volumes: host("/snapshots/c/volumes"),
        reserve: Reserve { bytes: 512 << 20, inodes: 10_000 },
        pod_files: host("/pods/p/memory"),
        namespaces: Pins {
            net: host("/pods/p/ns/net"),
            ipc: host("/pods/p/ns/ipc"),
            uts: host("/pods/p/ns/uts"),
            user: host("/pods/p/ns/user"),
        },
        cgroup: CgroupPlaces {
            path: "/wharf/p/c".to_owned(),
            plan: CgroupPlan {
                directory: Some(host("/sys/fs/cgroup/wharf/p/c")),
                entries: Vec::new(),
                kill_directory: host("/sys/fs/cgroup/wharf/p/c"),
                oom_file: Some(host("/sys/fs/cgroup/wharf/p/c/memory.events")),
            },
            v1: Vec::new(),
            unified: Some(host("/sys/fs/cgroup")),
            delegation: Switch::On,
        },
    }
}
