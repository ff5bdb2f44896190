//! Requests that can never work, one for each reason, by the field that is refused.

use std::collections::BTreeMap;

use tonic::Code;
use wharf_cri_api::v1::*;

use super::containers::CONTAINERS;
use super::pods::PODS;
use crate::client::{pod_security, security};

/// A refused field, as the table of all fields (`crates/cri/fields.txt`) names it; a request with it; the code; and a
/// word of the message.
pub(super) type Case<C> = (&'static str, fn(&mut C), Code, &'static str);

/// The calls that are not implemented.
pub(super) const CALLS: [&str; 3] =
    ["CheckpointContainerRequest.*", "CheckpointPodRequest.*", "RestorePodRequest.*"];

/// Every field that has a case.
pub(super) fn fields() -> impl Iterator<Item = &'static str> {
    let pods = PODS.iter().map(|case| case.0);
    let containers = CONTAINERS.iter().map(|case| case.0);
    pods.chain(containers).chain(CALLS).flat_map(str::split_ascii_whitespace)
}

pub(super) fn labels() -> SeLinuxOption {
    SeLinuxOption { r#type: "container_t".to_owned(), ..SeLinuxOption::default() }
}

pub(super) const POD: i32 = NamespaceMode::Pod as i32;
pub(super) const CONTAINER: i32 = NamespaceMode::Container as i32;
pub(super) const NODE: i32 = NamespaceMode::Node as i32;
pub(super) const TARGET: i32 = NamespaceMode::Target as i32;

pub(super) fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    pod_security(config).namespace_options.get_or_insert_default()
}

pub(super) fn own_namespaces(config: &mut ContainerConfig) -> &mut NamespaceOption {
    security(config).namespace_options.get_or_insert_default()
}

/// A user namespace of this mode, with this many mappings.
pub(super) fn users(mode: i32, mappings: usize) -> Option<UserNamespace> {
    Some(UserNamespace { mode, uids: vec![ids(); mappings], gids: vec![ids(); mappings] })
}

pub(super) fn ids() -> IdMapping {
    IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }
}

/// The mapping of users of a pod with a user namespace.
pub(super) fn id_mapping(config: &mut PodSandboxConfig) -> &mut IdMapping {
    let options = namespaces(config);
    options.userns_options = users(POD, 1);
    &mut options.userns_options.as_mut().unwrap().uids[0]
}

/// A profile of AppArmor on the node.
pub(super) fn apparmor(name: &str) -> Option<SecurityProfile> {
    let profile_type = security_profile::ProfileType::Localhost.into();
    Some(SecurityProfile { profile_type, localhost_ref: name.to_owned(), ..SecurityProfile::default() })
}

#[allow(deprecated, reason = "older kubelets send the name alone")]
pub(super) fn apparmor_by_name(config: &mut ContainerConfig, name: &str) {
    security(config).apparmor_profile = name.to_owned();
}

pub(super) fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

pub(super) fn sysctl(config: &mut PodSandboxConfig, key: &str, value: &str) {
    config.linux.as_mut().unwrap().sysctls = BTreeMap::from([(key.to_owned(), value.to_owned())]);
}

pub(super) fn cgroup_parent(config: &mut PodSandboxConfig, parent: &str) {
    config.linux.as_mut().unwrap().cgroup_parent = parent.to_owned();
}

pub(super) fn port(config: &mut PodSandboxConfig, container_port: i32, host_port: i32, host_ip: &str) {
    let mapping =
        PortMapping { container_port, host_port, host_ip: host_ip.to_owned(), ..PortMapping::default() };
    config.port_mappings = vec![mapping];
}

pub(super) fn bind(config: &mut ContainerConfig, from: &str, to: &str) {
    let mount = Mount { host_path: from.to_owned(), container_path: to.to_owned(), ..Mount::default() };
    config.mounts = vec![mount];
}

pub(super) fn device(config: &mut ContainerConfig, path: &str, permissions: &str) {
    config.devices = vec![Device {
        host_path: path.to_owned(),
        container_path: "/dev/device".to_owned(),
        permissions: permissions.to_owned(),
    }];
}

pub(super) fn profile(config: &mut ContainerConfig, path: &str) {
    security(config).seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost.into(),
        localhost_ref: path.to_owned(),
        ..SecurityProfile::default()
    });
}

/// A profile from a registry, by a name that is nowhere.
pub(super) fn from_registry() -> SecurityProfile {
    SecurityProfile {
        profile_type: security_profile::ProfileType::Oci.into(),
        oci_ref: format!("registry.test/profile@sha256:{}", "0".repeat(64)),
        ..SecurityProfile::default()
    }
}
