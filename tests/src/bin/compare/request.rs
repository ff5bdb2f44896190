//! A request to both runtimes: a pod with one container, as the kubelet requests it, with the change from one line of
//! the table.

use std::path::{Path, PathBuf};

use wharf_cri_api::v1::{
    Capability, ContainerConfig, ContainerMetadata, Device, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    SecurityProfile,
};
use wharf_types::{MASKED_PATHS, READONLY_PATHS};

/// The image of containers that do not name another.
pub(crate) const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// A line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) name: &'static str,
    pub(crate) change: fn(&mut Asked),
}

/// A pod and its container.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) pod: PodSandboxConfig,
    pub(crate) container: ContainerConfig,
    pub(crate) until: Until,
    /// The directory on this machine with the files for mounts; see [`Asked::mount`].
    files: PathBuf,
}

/// When the container is examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    Runs,
    /// Once its program has exited by itself.
    Ends,
}

impl Asked {
    /// What the kubelet sends for a best-effort pod.
    pub(crate) fn new(files: &Path, logs: &Path) -> Self {
        let name = "compare".to_owned();
        let pod = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: "5d6f0a2e".to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: logs.display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/compare/pod5d6f0a2e".to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    seccomp: Some(SecurityProfile::default()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            image: Some(ImageSpec { image: BUSYBOX.to_owned(), ..ImageSpec::default() }),
            command: words("sleep 1000000"),
            log_path: "compare/0.log".to_owned(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    cpu_shares: 2,
                    oom_score_adj: 1000,
                    ..LinuxContainerResources::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    masked_paths: own(&MASKED_PATHS),
                    readonly_paths: own(&READONLY_PATHS),
                    seccomp: Some(SecurityProfile::default()),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        };
        Self { pod, container, until: Until::Runs, files: files.to_owned() }
    }

    // ---- The vocabulary of the table ----

    pub(crate) fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.container.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    pub(crate) fn resources(&mut self) -> &mut LinuxContainerResources {
        self.container.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    pub(crate) fn pod_security(&mut self) -> &mut LinuxSandboxSecurityContext {
        self.pod.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    /// Sets namespaces of the pod and its container.
    pub(crate) fn namespaces(&mut self, change: fn(&mut NamespaceOption)) {
        change(self.pod_security().namespace_options.get_or_insert_default());
        change(self.security().namespace_options.get_or_insert_default());
    }

    /// Shares all namespaces with the host, except that of mounts.
    pub(crate) fn on_the_host(&mut self) {
        self.pod.hostname.clear();
        self.namespaces(|all| {
            let node = NamespaceMode::Node.into();
            (all.network, all.pid, all.ipc) = (node, node, node);
        });
    }

    /// Makes the pod and its container privileged.
    pub(crate) fn privileged(&mut self) {
        self.pod_security().privileged = true;
        self.security().privileged = true;
    }

    pub(crate) fn capabilities(&mut self, add: &str, drop: &str) {
        self.security().capabilities = Some(Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            ..Capability::default()
        });
    }

    /// Runs the container as the user with this number.
    pub(crate) fn user(&mut self, uid: i64) {
        self.security().run_as_user = number(uid);
    }

    pub(crate) fn image(&mut self, image: &str) {
        self.container.image = Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() });
    }

    /// Uses an image from `tests/compare/compare.sh`, with its own program.
    pub(crate) fn odd_image(&mut self, name: &str) {
        self.image(&format!("127.0.0.1:5000/odd/{name}:latest"));
    }

    /// Runs the image's own program.
    pub(crate) fn as_the_image_says(&mut self) {
        self.container.command.clear();
    }

    pub(crate) fn env(&mut self, pairs: &[(&str, &str)]) {
        let pair = |(key, value): &(&str, &str)| KeyValue {
            key: (*key).to_owned(),
            value: value.as_bytes().to_vec(),
        };
        self.container.envs.extend(pairs.iter().map(pair));
    }

    /// Mounts a path of this machine. A path without a leading slash is in a directory made for this purpose: `tree` is
    /// a directory with a file, a directory with a mount below it, and a link; `file` is a file; others do not exist.
    pub(crate) fn mount(&mut self, from: &str, to: &str) {
        self.mounted(from, to);
    }

    /// The same; returns the mount for changes.
    pub(crate) fn mounted(&mut self, from: &str, to: &str) -> &mut Mount {
        let host_path = self.files.join(from).display().to_string();
        let mount = Mount { host_path, container_path: to.to_owned(), ..Mount::default() };
        self.container.mounts.push(mount);
        let last = self.container.mounts.len() - 1;
        &mut self.container.mounts[last]
    }

    pub(crate) fn device(&mut self, from: &str, to: &str, permissions: &str) {
        self.container.devices.push(Device {
            host_path: from.to_owned(),
            container_path: to.to_owned(),
            permissions: permissions.to_owned(),
        });
    }

    /// Runs a line of shell in the container, which is examined when that has exited.
    pub(crate) fn ends(&mut self, script: &str) {
        self.container.command = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
        self.until = Until::Ends;
    }

    /// Runs a program in the container, which is examined when that has exited or could not be started.
    pub(crate) fn program(&mut self, program: &str) {
        self.container.command = vec![program.to_owned()];
        self.until = Until::Ends;
    }

    /// The paths to examine inside, in addition to those examined in every container.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mounts = self.container.mounts.iter().map(|mount| mount.container_path.clone());
        mounts.chain(self.container.devices.iter().map(|device| device.container_path.clone())).collect()
    }
}

/// The kubelet's default: each container has its own PID namespace.
fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

pub(crate) fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

/// The words of a text, separated by spaces.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn own(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}
