//! Pods that are refused.

use tonic::Code;
use wharf_cri_api::v1::*;

use super::cases::{
    CONTAINER, Case, NODE, POD, TARGET, cgroup_parent, from_registry, id_mapping, namespaces, port, sysctl,
    users,
};
use crate::client::pod_security;

pub(super) const PODS: &[Case<PodSandboxConfig>] = &[
    ("PodSandboxConfig.metadata", |config| config.metadata = None, Code::InvalidArgument, "metadata"),
    (
        "PodSandboxMetadata.name",
        |config| config.metadata.as_mut().unwrap().name.clear(),
        Code::InvalidArgument,
        "metadata.name",
    ),
    (
        "PodSandboxConfig.hostname",
        |config| config.hostname = "h".repeat(65),
        Code::InvalidArgument,
        "hostname",
    ),
    (
        "PodSandboxConfig.log_directory",
        |config| config.log_directory = "relative/logs".to_owned(),
        Code::InvalidArgument,
        "log_directory",
    ),
    (
        "PodSandboxConfig.log_directory",
        |config| config.log_directory = "/var/log/../../etc".to_owned(),
        Code::InvalidArgument,
        "log_directory",
    ),
    (
        "PodSandboxConfig.log_directory",
        |config| config.log_directory = "/proc/version/logs".to_owned(),
        Code::InvalidArgument,
        "log_directory",
    ),
    (
        "LinuxPodSandboxConfig.sysctls",
        |config| sysctl(config, "kernel.core_pattern", "|/bin/sh"),
        Code::InvalidArgument,
        "kernel.core_pattern",
    ),
    (
        "LinuxPodSandboxConfig.sysctls",
        |config| sysctl(config, "net/../kernel/hostname", "x"),
        Code::InvalidArgument,
        "sysctls",
    ),
    (
        "LinuxPodSandboxConfig.sysctls",
        |config| sysctl(config, "net.ipv4.no_such_thing", "1"),
        Code::InvalidArgument,
        "net.ipv4.no_such_thing",
    ),
    (
        "LinuxPodSandboxConfig.sysctls",
        |config| sysctl(config, "net.ipv4.ip_forward", "many"),
        Code::InvalidArgument,
        "net.ipv4.ip_forward",
    ),
    (
        "LinuxPodSandboxConfig.cgroup_parent",
        |config| cgroup_parent(config, "/a/../b"),
        Code::InvalidArgument,
        "cgroup_parent",
    ),
    (
        "LinuxPodSandboxConfig.cgroup_parent",
        |config| cgroup_parent(config, "/cgroup.procs"),
        Code::InvalidArgument,
        "cgroup_parent",
    ),
    ("PortMapping.*", |config| port(config, 80, 70_000, ""), Code::InvalidArgument, "70000"),
    ("PortMapping.*", |config| port(config, -1, 80, ""), Code::InvalidArgument, "-1"),
    (
        "PortMapping.*",
        |config| port(config, 80, 8080, "not an address"),
        Code::InvalidArgument,
        "not an address",
    ),
    (
        "LinuxSandboxSecurityContext.run_as_group",
        |config| pod_security(config).run_as_group = Some(Int64Value { value: 5 }),
        Code::InvalidArgument,
        "run_as_group",
    ),
    (
        "DNSConfig.*",
        |config| {
            let servers = vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()];
            config.dns_config = Some(DnsConfig { servers, ..DnsConfig::default() });
        },
        Code::InvalidArgument,
        "dns_config",
    ),
    (
        "PodSandboxConfig.hostname",
        |config| config.hostname = "a/b".to_owned(),
        Code::InvalidArgument,
        "hostname",
    ),
    (
        "PortMapping.*",
        |config| {
            port(config, 80, 8080, "");
            config.port_mappings[0].protocol = 99;
        },
        Code::InvalidArgument,
        "99",
    ),
    ("NamespaceOption.network", |config| namespaces(config).network = 99, Code::InvalidArgument, "network"),
    (
        "NamespaceOption.network",
        |config| namespaces(config).network = CONTAINER,
        Code::InvalidArgument,
        "network",
    ),
    ("NamespaceOption.ipc", |config| namespaces(config).ipc = -1, Code::InvalidArgument, "ipc"),
    ("NamespaceOption.ipc", |config| namespaces(config).ipc = TARGET, Code::InvalidArgument, "ipc"),
    ("NamespaceOption.pid", |config| namespaces(config).pid = 99, Code::InvalidArgument, "pid"),
    ("NamespaceOption.pid", |config| namespaces(config).pid = TARGET, Code::InvalidArgument, "pid"),
    (
        "UserNamespace.*",
        |config| namespaces(config).userns_options = users(99, 0),
        Code::InvalidArgument,
        "userns",
    ),
    (
        "UserNamespace.*",
        |config| namespaces(config).userns_options = users(CONTAINER, 0),
        Code::InvalidArgument,
        "userns",
    ),
    (
        "UserNamespace.*",
        |config| namespaces(config).userns_options = users(TARGET, 1),
        Code::InvalidArgument,
        "userns",
    ),
    (
        "UserNamespace.* NamespaceOption.userns_options",
        |config| namespaces(config).userns_options = users(POD, 2),
        Code::InvalidArgument,
        "uids: 2 ranges",
    ),
    (
        "UserNamespace.*",
        |config| {
            namespaces(config).userns_options = users(POD, 1);
            namespaces(config).userns_options.as_mut().unwrap().gids.clear();
        },
        Code::InvalidArgument,
        "gids: no range",
    ),
    (
        "IDMapping.*",
        |config| id_mapping(config).container_id = 1,
        Code::InvalidArgument,
        "id 0 of the container is not mapped",
    ),
    ("IDMapping.*", |config| id_mapping(config).length = 0, Code::InvalidArgument, "uids: the length is 0"),
    ("IDMapping.*", |config| id_mapping(config).length = u32::MAX, Code::InvalidArgument, "4294967294"),
    (
        "UserNamespace.*",
        |config| namespaces(config).userns_options = users(NODE, 1),
        Code::InvalidArgument,
        "userns",
    ),
    (
        "LinuxSandboxSecurityContext.supplemental_groups_policy",
        |config| {
            pod_security(config).supplemental_groups_policy = 99;
        },
        Code::InvalidArgument,
        "supplemental_groups_policy",
    ),
    (
        "SecurityProfile.profile_type",
        |config| {
            pod_security(config).seccomp =
                Some(SecurityProfile { profile_type: 99, ..SecurityProfile::default() });
        },
        Code::InvalidArgument,
        "seccomp",
    ),
    (
        "SecurityProfile.profile_type",
        |config| {
            pod_security(config).apparmor =
                Some(SecurityProfile { profile_type: 99, ..SecurityProfile::default() });
        },
        Code::InvalidArgument,
        "apparmor",
    ),
    (
        "SecurityProfile.oci_ref",
        |config| pod_security(config).seccomp = Some(from_registry()),
        Code::NotFound,
        "seccomp profile",
    ),
    (
        "SecurityProfile.oci_ref",
        |config| pod_security(config).apparmor = Some(from_registry()),
        Code::InvalidArgument,
        "apparmor",
    ),
    (
        "SecurityProfile.oci_ref",
        |config| {
            pod_security(config).seccomp = Some(SecurityProfile { oci_ref: String::new(), ..from_registry() })
        },
        Code::InvalidArgument,
        "oci_ref",
    ),
    (
        "NamespaceOption.cgroupns_options",
        |config| namespaces(config).cgroupns_options = Some(CgroupNamespace { mode: CONTAINER }),
        Code::InvalidArgument,
        "cgroupns_options",
    ),
];
