//! Containers that are refused.

use std::collections::BTreeMap;

use tonic::Code;
use wharf_cri_api::v1::*;

use super::cases::{
    CONTAINER, Case, NODE, POD, TARGET, apparmor, apparmor_by_name, bind, device, from_registry, ids,
    own_namespaces, profile, resources, users,
};
use crate::client::security;

pub(super) const CONTAINERS: &[Case<ContainerConfig>] = &[
    ("ContainerConfig.metadata", |config| config.metadata = None, Code::InvalidArgument, "metadata"),
    (
        "ContainerMetadata.*",
        |config| config.metadata.as_mut().unwrap().name.clear(),
        Code::InvalidArgument,
        "metadata.name",
    ),
    ("ContainerConfig.image", |config| config.image = None, Code::NotFound, "image"),
    (
        "ImageSpec.image",
        |config| config.image = Some(crate::client::image("nowhere/nothing:1")),
        Code::NotFound,
        "nowhere/nothing:1",
    ),
    (
        "ContainerConfig.log_path",
        |config| config.log_path = "../../escaped.log".to_owned(),
        Code::InvalidArgument,
        "log_path",
    ),
    (
        "ContainerConfig.log_path",
        |config| config.log_path = "/etc/escaped.log".to_owned(),
        Code::InvalidArgument,
        "log_path",
    ),
    (
        "Mount.host_path",
        |config| bind(config, "/proc/version/below", "/mnt"),
        Code::InvalidArgument,
        "/proc/version/below",
    ),
    ("Mount.container_path", |config| bind(config, "/etc", "relative"), Code::InvalidArgument, "relative"),
    ("Mount.container_path", |config| bind(config, "/etc", "/"), Code::InvalidArgument, "mounts"),
    (
        "Device.*",
        |config| device(config, "/dev/no-such-device", "rwm"),
        Code::InvalidArgument,
        "/dev/no-such-device",
    ),
    ("Device.*", |config| device(config, "/etc/passwd", "rwm"), Code::InvalidArgument, "/etc/passwd"),
    ("Device.*", |config| device(config, "/dev/null", "everything"), Code::InvalidArgument, "everything"),
    (
        "SecurityProfile.localhost_ref",
        |config| profile(config, "/no/such/profile.json"),
        Code::InvalidArgument,
        "/no/such/profile.json",
    ),
    (
        "SecurityProfile.localhost_ref",
        |config| profile(config, "relative.json"),
        Code::InvalidArgument,
        "relative.json",
    ),
    (
        "SecurityProfile.localhost_ref",
        |config| profile(config, "/proc/version"),
        Code::InvalidArgument,
        "/proc/version",
    ),
    (
        "Capability.*",
        |config| {
            let add_capabilities = vec!["FLY".to_owned()];
            security(config).capabilities = Some(Capability { add_capabilities, ..Capability::default() });
        },
        Code::InvalidArgument,
        "FLY",
    ),
    (
        "LinuxContainerSecurityContext.run_as_group",
        |config| security(config).run_as_group = Some(Int64Value { value: 5 }),
        Code::InvalidArgument,
        "run_as_group",
    ),
    (
        "LinuxContainerSecurityContext.run_as_user",
        |config| security(config).run_as_user = Some(Int64Value { value: -5 }),
        Code::InvalidArgument,
        "-5",
    ),
    (
        "LinuxContainerSecurityContext.run_as_username",
        |config| security(config).run_as_username = "no-such-user".to_owned(),
        Code::InvalidArgument,
        "no-such-user",
    ),
    (
        "LinuxContainerSecurityContext.privileged",
        |config| security(config).privileged = true,
        Code::InvalidArgument,
        "privileged",
    ),
    (
        "ContainerConfig.working_dir",
        |config| config.working_dir = "relative".to_owned(),
        Code::InvalidArgument,
        "working_dir",
    ),
    (
        "KeyValue.*",
        |config| config.envs = vec![KeyValue { key: "A=B".to_owned(), value: "c".into() }],
        Code::InvalidArgument,
        "envs",
    ),
    (
        "NamespaceOption.target_id",
        |config| {
            security(config).namespace_options = Some(NamespaceOption {
                pid: NamespaceMode::Target.into(),
                target_id: "0".repeat(64),
                ..NamespaceOption::default()
            });
        },
        Code::FailedPrecondition,
        "target",
    ),
    (
        "LinuxContainerResources.*",
        |config| resources(config).cpuset_cpus = "4000-5000".to_owned(),
        Code::InvalidArgument,
        "4000-5000",
    ),
    (
        "LinuxContainerResources.*",
        |config| resources(config).memory_limit_in_bytes = -5,
        Code::InvalidArgument,
        "memory_limit_in_bytes",
    ),
    (
        "LinuxContainerResources.*",
        |config| resources(config).cpu_quota = -2,
        Code::InvalidArgument,
        "cpu_quota",
    ),
    (
        "LinuxContainerResources.*",
        |config| resources(config).oom_score_adj = 1001,
        Code::InvalidArgument,
        "oom_score_adj",
    ),
    (
        "ContainerConfig.log_path",
        |config| config.log_path = "a".repeat(256),
        Code::InvalidArgument,
        "log_path",
    ),
    (
        "ContainerConfig.log_path",
        |config| config.log_path = "a/".repeat(2048),
        Code::InvalidArgument,
        "log_path",
    ),
    (
        "ContainerConfig.CDI_devices CDIDevice.name",
        |config| {
            config.cdi_devices = vec![CdiDevice { name: "vendor.com/device".to_owned() }];
        },
        Code::InvalidArgument,
        "CDI_devices",
    ),
    (
        "ContainerConfig.annotations",
        |config| {
            let pair = ("cdi.k8s.io/plugin_device".to_owned(), "device=one".to_owned());
            config.annotations = BTreeMap::from([pair]);
        },
        Code::InvalidArgument,
        "cdi.k8s.io/plugin_device",
    ),
    ("ContainerConfig.stop_signal", |config| config.stop_signal = 99, Code::InvalidArgument, "stop_signal"),
    (
        "Mount.image",
        |config| {
            bind(config, "", "/volume");
            config.mounts[0].image = Some(crate::client::image("some/image:1"));
            config.mounts[0].readonly = true;
        },
        Code::NotFound,
        "ImageVolumeMountFailed",
    ),
    (
        "Mount.mount_options",
        |config| {
            bind(config, "/etc", "/mnt");
            config.mounts[0].mount_options = vec!["exec".to_owned()];
        },
        Code::InvalidArgument,
        "mount_options",
    ),
    (
        "Mount.uidMappings IDMapping.*",
        |config| {
            bind(config, "/etc", "/mnt");
            config.mounts[0].uid_mappings = vec![ids()];
        },
        Code::InvalidArgument,
        "uidMappings",
    ),
    (
        "Mount.gidMappings",
        |config| {
            bind(config, "/etc", "/mnt");
            config.mounts[0].gid_mappings = vec![ids()];
        },
        Code::InvalidArgument,
        "gidMappings",
    ),
    (
        "Mount.propagation",
        |config| {
            bind(config, "/etc", "/mnt");
            config.mounts[0].propagation = 99;
        },
        Code::InvalidArgument,
        "propagation",
    ),
    (
        "Mount.recursive_read_only",
        |config| {
            bind(config, "/etc", "/mnt");
            config.mounts[0].recursive_read_only = true;
        },
        Code::InvalidArgument,
        "recursive_read_only",
    ),
    (
        "LinuxContainerSecurityContext.apparmor",
        |config| security(config).apparmor = apparmor("nowhere"),
        Code::InvalidArgument,
        "apparmor",
    ),
    (
        "LinuxContainerSecurityContext.apparmor",
        |config| {
            security(config).apparmor =
                Some(SecurityProfile { profile_type: 99, ..SecurityProfile::default() });
        },
        Code::InvalidArgument,
        "apparmor",
    ),
    (
        "LinuxContainerSecurityContext.apparmor_profile",
        |config| apparmor_by_name(config, "localhost/nowhere"),
        Code::InvalidArgument,
        "apparmor",
    ),
    (
        "LinuxContainerSecurityContext.apparmor_profile",
        |config| apparmor_by_name(config, "nonsense"),
        Code::InvalidArgument,
        "nonsense",
    ),
    (
        "LinuxContainerSecurityContext.apparmor_profile",
        |config| apparmor_by_name(config, "localhost/a\nb"),
        Code::InvalidArgument,
        "not the name of a single profile",
    ),
    (
        "SecurityProfile.localhost_ref",
        |config| security(config).apparmor = apparmor("wharf-default//&unconfined"),
        Code::InvalidArgument,
        "not the name of a single profile",
    ),
    (
        "SecurityProfile.localhost_ref",
        |config| security(config).apparmor = apparmor("unconfined"),
        Code::InvalidArgument,
        "ask for the type Unconfined",
    ),
    (
        "SecurityProfile.localhost_ref",
        |config| security(config).apparmor = apparmor(&"n".repeat(5000)),
        Code::InvalidArgument,
        "5000 bytes",
    ),
    (
        "LinuxContainerSecurityContext.seccomp",
        |config| {
            security(config).seccomp =
                Some(SecurityProfile { profile_type: 99, ..SecurityProfile::default() });
        },
        Code::InvalidArgument,
        "seccomp",
    ),
    (
        "SecurityProfile.oci_ref",
        |config| security(config).seccomp = Some(from_registry()),
        Code::NotFound,
        "seccomp profile",
    ),
    (
        "SecurityProfile.oci_ref",
        |config| {
            security(config).seccomp = Some(SecurityProfile { oci_ref: String::new(), ..from_registry() })
        },
        Code::InvalidArgument,
        "oci_ref",
    ),
    (
        "SecurityProfile.oci_ref",
        |config| security(config).seccomp = Some(SecurityProfile { profile_type: 0, ..from_registry() }),
        Code::InvalidArgument,
        "oci_ref is only for the type OCI",
    ),
    (
        "SecurityProfile.oci_ref",
        |config| security(config).apparmor = Some(from_registry()),
        Code::InvalidArgument,
        "apparmor",
    ),
    (
        "SecurityProfile.base_profile",
        |config| {
            let base_profile = Some(SecurityProfileBase::default());
            security(config).seccomp = Some(SecurityProfile { base_profile, ..SecurityProfile::default() });
        },
        Code::InvalidArgument,
        "base_profile is only for the type OCI",
    ),
    (
        "SecurityProfileBase.*",
        |config| {
            let base = SecurityProfileBase { r#type: 1, ..SecurityProfileBase::default() };
            security(config).seccomp = Some(SecurityProfile { base_profile: Some(base), ..from_registry() });
        },
        Code::InvalidArgument,
        "base_profile",
    ),
    (
        "CgroupNamespace.mode",
        |config| own_namespaces(config).cgroupns_options = Some(CgroupNamespace::default()),
        Code::InvalidArgument,
        "cgroupns_options",
    ),
    (
        "CgroupNamespace.mode",
        |config| own_namespaces(config).cgroupns_options = Some(CgroupNamespace { mode: TARGET }),
        Code::InvalidArgument,
        "cgroupns_options",
    ),
    (
        "LinuxContainerSecurityContext.cgroup_mount_mode",
        |config| security(config).cgroup_mount_mode = 99,
        Code::InvalidArgument,
        "cgroup_mount_mode",
    ),
    (
        "LinuxContainerSecurityContext.cgroup_mount_mode",
        |config| {
            security(config).cgroup_mount_mode = CgroupMountMode::ReadWrite.into();
            own_namespaces(config).cgroupns_options = Some(CgroupNamespace { mode: NODE });
        },
        Code::InvalidArgument,
        "cgroup_mount_mode",
    ),
    (
        "LinuxContainerSecurityContext.supplemental_groups_policy",
        |config| {
            security(config).supplemental_groups_policy = 99;
        },
        Code::InvalidArgument,
        "supplemental_groups_policy",
    ),
    (
        "NamespaceOption.network",
        |config| own_namespaces(config).network = NODE,
        Code::InvalidArgument,
        "network",
    ),
    (
        "NamespaceOption.network",
        |config| own_namespaces(config).network = TARGET,
        Code::InvalidArgument,
        "network",
    ),
    ("NamespaceOption.ipc", |config| own_namespaces(config).ipc = NODE, Code::InvalidArgument, "ipc"),
    ("NamespaceOption.ipc", |config| own_namespaces(config).ipc = CONTAINER, Code::InvalidArgument, "ipc"),
    ("NamespaceOption.pid", |config| own_namespaces(config).pid = NODE, Code::InvalidArgument, "pid"),
    ("NamespaceOption.pid", |config| own_namespaces(config).pid = 99, Code::InvalidArgument, "pid"),
    (
        "NamespaceOption.userns_options",
        |config| {
            own_namespaces(config).userns_options = users(POD, 1);
        },
        Code::InvalidArgument,
        "userns",
    ),
    (
        "UserNamespace.*",
        |config| own_namespaces(config).userns_options = users(TARGET, 0),
        Code::InvalidArgument,
        "userns",
    ),
];
