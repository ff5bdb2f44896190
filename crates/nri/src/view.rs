//! Pods and containers as plugins are shown them.
//!
//! A container is shown from its runtime spec, because that is what plugins adjust; the little that the spec does not
//! say comes from its record.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use oci_spec::runtime as oci;
use serde::Serialize;
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig, security_profile};
use wharf_records::ContainerFacts;
use wharf_types::{ContainerState, PodId};

use crate::api::{
    self, CdiDevice, Hook, Hooks, Image, LinuxContainer, LinuxDevice, LinuxNamespace, LinuxPodSandbox,
    LinuxSeccomp, LinuxSeccompArg, LinuxSyscall, Mount, PosixRlimit, SecurityProfile, User,
};
use crate::convert::{int, of_cri, of_oci, uint32};

/// A pod at one moment.
#[derive(Debug, Clone, Copy)]
pub struct PodView<'a> {
    /// Its id.
    pub id: &'a PodId,
    /// Its request.
    pub config: &'a PodSandboxConfig,
    /// The runtime handler in its request.
    pub handler: &'a str,
    /// Its own addresses.
    pub ips: &'a [IpAddr],
}

/// A container at one moment.
#[derive(Debug, Clone, Copy)]
pub struct ContainerView<'a> {
    /// What is known of it.
    pub facts: &'a ContainerFacts,
    /// The pid of its first process; 0 if there is none.
    pub pid: i32,
    /// Its runtime spec.
    pub spec: &'a oci::Spec,
}

impl From<PodView<'_>> for api::PodSandbox {
    fn from(PodView { id, config, handler, ips }: PodView<'_>) -> Self {
        let metadata = config.metadata.clone().unwrap_or_default();
        let linux = config.linux.as_ref();
        Self {
            id: id.to_string(),
            name: metadata.name,
            uid: metadata.uid,
            namespace: metadata.namespace,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: handler.to_owned(),
            linux: linux.map(|linux| LinuxPodSandbox {
                pod_overhead: linux.overhead.as_ref().map(of_cri),
                pod_resources: linux.resources.as_ref().map(of_cri),
                cgroup_parent: linux.cgroup_parent.clone(),
                ..LinuxPodSandbox::default()
            }),
            ips: ips.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }
}

impl From<ContainerView<'_>> for api::Container {
    fn from(view: ContainerView<'_>) -> Self {
        let ContainerView { facts: ContainerFacts { id, pod, state, record, .. }, pid, spec } = view;
        let config = &record.config;
        let process = spec.process().clone().unwrap_or_default();
        let limits = process.rlimits().iter().flatten();
        let annotations = spec.annotations().iter().flatten();
        let mut container = Self {
            id: id.to_string(),
            pod_sandbox_id: pod.to_string(),
            name: config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
            labels: config.labels.clone(),
            annotations: annotations.map(|(key, value)| (key.clone(), value.clone())).collect(),
            args: process.args().clone().unwrap_or_default(),
            env: process.env().clone().unwrap_or_default(),
            mounts: spec.mounts().iter().flatten().map(mount).collect(),
            hooks: spec.hooks().as_ref().map(hooks),
            linux: Some(linux(config, spec, &process)),
            pid: u32::try_from(pid).unwrap_or_default(),
            rlimits: limits
                .map(|limit| PosixRlimit {
                    r#type: text(&limit.typ()),
                    hard: limit.hard(),
                    soft: limit.soft(),
                })
                .collect(),
            created_at: record.created_at_ns,
            cdi_devices: config
                .cdi_devices
                .iter()
                .map(|device| CdiDevice { name: device.name.clone() })
                .collect(),
            user: Some(User {
                uid: process.user().uid(),
                gid: process.user().gid(),
                additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
            }),
            image: Some(image(config, &record.image_id, &record.image_ref)),
            ..Self::default()
        };
        container.annotations.extend(config.annotations.clone());
        show_state(&mut container, state);
        container
    }
}

fn show_state(container: &mut api::Container, state: &ContainerState) {
    let shown = match state {
        ContainerState::Created => api::ContainerState::ContainerCreated,
        ContainerState::Running { started_at_ns } => {
            container.started_at = *started_at_ns;
            api::ContainerState::ContainerRunning
        }
        ContainerState::Exited { started_at_ns, finished_at_ns, exit, message } => {
            (container.started_at, container.finished_at) = (*started_at_ns, *finished_at_ns);
            container.exit_code = exit.code();
            exit.reason().clone_into(&mut container.status_reason);
            container.status_message.clone_from(message);
            api::ContainerState::ContainerStopped
        }
    };
    container.state = shown.into();
}

fn image(config: &ContainerConfig, id: &str, reference: &str) -> Image {
    let asked = config.image.as_ref();
    let name = asked.map(|image| match image.user_specified_image.is_empty() {
        true => image.image.clone(),
        false => image.user_specified_image.clone(),
    });
    Image {
        name: name.unwrap_or_default(),
        digest: reference.rsplit_once('@').map(|(_, digest)| digest.to_owned()).unwrap_or_default(),
        config_digest: id.to_owned(),
    }
}

fn linux(config: &ContainerConfig, spec: &oci::Spec, process: &oci::Process) -> LinuxContainer {
    let linux = spec.linux().clone().unwrap_or_default();
    let sysctls = linux.sysctl().iter().flatten();
    LinuxContainer {
        namespaces: linux.namespaces().iter().flatten().map(namespace).collect(),
        devices: linux.devices().iter().flatten().map(device).collect(),
        resources: linux.resources().as_ref().map(of_oci),
        oom_score_adj: process.oom_score_adj().map(|score| int(score.into())),
        cgroups_path: linux.cgroups_path().as_deref().map(path).unwrap_or_default(),
        seccomp_profile: Some(seccomp_profile(config)),
        seccomp_policy: linux.seccomp().as_ref().map(seccomp_policy),
        sysctl: sysctls.map(|(key, value)| (key.clone(), value.clone())).collect(),
        ..LinuxContainer::default()
    }
}

fn mount(mount: &oci::Mount) -> Mount {
    Mount {
        destination: path(mount.destination()),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: mount.source().as_deref().map(path).unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

fn hooks(hooks: &oci::Hooks) -> Hooks {
    let all = |list: &Option<Vec<oci::Hook>>| list.iter().flatten().map(hook).collect();
    Hooks {
        prestart: all(hooks.prestart()),
        create_runtime: all(hooks.create_runtime()),
        create_container: all(hooks.create_container()),
        start_container: all(hooks.start_container()),
        poststart: all(hooks.poststart()),
        poststop: all(hooks.poststop()),
    }
}

fn hook(hook: &oci::Hook) -> Hook {
    Hook {
        path: path(hook.path()),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().map(int),
    }
}

fn namespace(namespace: &oci::LinuxNamespace) -> LinuxNamespace {
    LinuxNamespace {
        r#type: text(&namespace.typ()),
        path: namespace.path().as_deref().map(path).unwrap_or_default(),
    }
}

fn device(device: &oci::LinuxDevice) -> LinuxDevice {
    LinuxDevice {
        path: path(device.path()),
        r#type: text(&device.typ()),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(uint32),
        uid: device.uid().map(uint32),
        gid: device.gid().map(uint32),
    }
}

/// What the request says, as opposed to the policy that follows from it.
fn seccomp_profile(config: &ContainerConfig) -> SecurityProfile {
    use api::security_profile::ProfileType;
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let asked = context.and_then(|context| context.seccomp.as_ref());
    let kind = match asked.map(wharf_cri_api::v1::SecurityProfile::profile_type) {
        Some(security_profile::ProfileType::RuntimeDefault) => ProfileType::RuntimeDefault,
        // NRI has no word for one from a registry, which is the node's as well.
        Some(security_profile::ProfileType::Localhost | security_profile::ProfileType::Oci) => {
            ProfileType::Localhost
        }
        Some(security_profile::ProfileType::Unconfined) | None => ProfileType::Unconfined,
    };
    let localhost_ref = asked.map(|asked| asked.localhost_ref.clone()).unwrap_or_default();
    SecurityProfile { profile_type: kind.into(), localhost_ref }
}

fn seccomp_policy(policy: &oci::LinuxSeccomp) -> LinuxSeccomp {
    LinuxSeccomp {
        default_action: text(&policy.default_action()),
        default_errno: policy.default_errno_ret().map(uint32),
        architectures: policy.architectures().iter().flatten().map(text).collect(),
        flags: policy.flags().iter().flatten().map(text).collect(),
        listener_path: policy.listener_path().as_deref().map(path).unwrap_or_default(),
        listener_metadata: policy.listener_metadata().clone().unwrap_or_default(),
        syscalls: policy.syscalls().iter().flatten().map(syscall).collect(),
    }
}

fn syscall(syscall: &oci::LinuxSyscall) -> LinuxSyscall {
    let argument = |argument: &oci::LinuxSeccompArg| LinuxSeccompArg {
        index: u32::try_from(argument.index()).unwrap_or(u32::MAX),
        value: argument.value(),
        value_two: argument.value_two().unwrap_or_default(),
        op: text(&argument.op()),
    };
    LinuxSyscall {
        names: syscall.names().clone(),
        action: text(&syscall.action()),
        errno_ret: syscall.errno_ret().map(uint32),
        args: syscall.args().iter().flatten().map(argument).collect(),
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The word that the runtime spec has for something.
fn text(word: &impl Serialize) -> String {
    match serde_json::to_value(word) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// The annotation that applies to a container: its own, else the pod's.
pub(crate) fn annotation<'a>(
    annotations: &'a BTreeMap<String, String>,
    key: &str,
    container: &str,
) -> Option<&'a str> {
    let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
    keys.iter().find_map(|key| annotations.get(key)).map(String::as_str)
}
