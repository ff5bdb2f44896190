//! Requests for features that this build does not have. Their authors rely on them, so they are refused: a confinement
//! or a device that is silently missing is worse than a pod that does not start. A label of SELinux is accepted where
//! it has no effect, as by the kubelet and other runtimes: where it has one, [`selinux`](crate::selinux) decides.

use wharf_cri_api::v1::{
    ContainerConfig, LinuxSandboxSecurityContext, MountPropagation, NamespaceMode, NamespaceOption,
    PodSandboxConfig, Protocol, SecurityProfile, Signal, SupplementalGroupsPolicy,
};

use crate::request::{SecurityModules, Switch};
use crate::{Refusal, apparmor, cdi, cgroup_view, limits, mounts, seccomp, user_namespace};

/// Checks a pod's request.
pub(crate) fn pod(config: &PodSandboxConfig) -> Result<(), Refusal> {
    for mapping in &config.port_mappings {
        known::<Protocol>("port_mappings.protocol", mapping.protocol)?;
    }
    let linux = config.linux.as_ref();
    let Some(context) = linux.and_then(|linux| linux.security_context.as_ref()) else { return Ok(()) };
    pod_namespaces(context)?;
    // A pod has no process to which these two could apply; they must be set on its containers.
    context.seccomp.as_ref().map_or(Ok(()), seccomp_profile)?;
    context.apparmor.as_ref().map_or(Ok(()), apparmor::check)?;
    known::<SupplementalGroupsPolicy>("supplemental_groups_policy", context.supplemental_groups_policy)
        .map(drop)
}

/// Checks a container's request, as far as possible without looking at the host, for a pod with these namespaces.
///
/// # Errors
/// [`Refusal`], which names the field and says what to do.
pub fn container(
    config: &ContainerConfig,
    pods: &NamespaceOption,
    modules: SecurityModules,
) -> Result<(), Refusal> {
    known::<Signal>("stop_signal", config.stop_signal)?;
    cdi::asked(config)?;
    let ids = user_namespace::of(pods)?;
    config.mounts.iter().try_for_each(|mount| mounts::check(mount, ids))?;
    let Some(linux) = config.linux.as_ref() else { return Ok(()) };
    linux.resources.as_ref().map_or(Ok(()), limits::check)?;
    let Some(context) = linux.security_context.as_ref() else { return Ok(()) };
    if let Some(own) = &context.namespace_options {
        container_namespaces(own, pods)?;
    }
    context.seccomp.as_ref().map_or(Ok(()), seccomp_profile)?;
    cgroup_view::of(context)?;
    apparmor::profile(context, modules, Switch::On)?;
    known::<SupplementalGroupsPolicy>("supplemental_groups_policy", context.supplemental_groups_policy)
        .map(drop)
}

/// Checks that one of a pod's requests allows its containers to be privileged, if this one is to be.
///
/// # Errors
/// [`Refusal`] if none does.
pub fn privilege(config: &ContainerConfig, pods: [&PodSandboxConfig; 2]) -> Result<(), Refusal> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let allows = |pod: &PodSandboxConfig| {
        let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        context.is_some_and(|context| context.privileged)
    };
    if context.is_some_and(|context| context.privileged) && !pods.into_iter().any(allows) {
        return Err(Refusal::field("privileged", "the pod sandbox is not privileged"));
    }
    Ok(())
}

/// The value of an enum from its number. Protobuf accepts any number, and its accessors turn an unknown one into the
/// default, so that a newer client would get something other than it requested.
pub(crate) fn known<E: TryFrom<i32>>(field: &'static str, number: i32) -> Result<E, Refusal> {
    E::try_from(number).map_err(|_unknown| Refusal::field(field, format!("{number} is an unknown value")))
}

/// The propagation of a mount.
pub(crate) fn propagation(number: i32) -> Result<MountPropagation, Refusal> {
    known("mounts.propagation", number)
}

fn pod_namespaces(context: &LinuxSandboxSecurityContext) -> Result<(), Refusal> {
    let Some(options) = &context.namespace_options else { return Ok(()) };
    for (field, number) in
        [("namespace_options.network", options.network), ("namespace_options.ipc", options.ipc)]
    {
        pods_or_hosts(field, known(field, number)?)?;
    }
    if options.cgroupns_options.is_some() {
        let problem = "a pod has no cgroup namespace: ask for it in its containers";
        return Err(Refusal::field("namespace_options.cgroupns_options", problem));
    }
    if known::<NamespaceMode>("namespace_options.pid", options.pid)? == NamespaceMode::Target {
        return Err(Refusal::field("namespace_options.pid", "a pod has no target: TARGET is for containers"));
    }
    user_namespace::of(options).map(drop)
}

/// The network and IPC namespaces must be the pod's or the host's.
fn pods_or_hosts(field: &'static str, mode: NamespaceMode) -> Result<(), Refusal> {
    match mode {
        NamespaceMode::Pod | NamespaceMode::Node => Ok(()),
        NamespaceMode::Container | NamespaceMode::Target => {
            Err(Refusal::field(field, "it must be the pod's or the host's: ask for POD or NODE"))
        }
    }
}

/// A container may share less with the host than its pod does, never more.
fn container_namespaces(own: &NamespaceOption, pods: &NamespaceOption) -> Result<(), Refusal> {
    let fields = [
        ("namespace_options.network", own.network, pods.network),
        ("namespace_options.ipc", own.ipc, pods.ipc),
        ("namespace_options.pid", own.pid, pods.pid),
    ];
    for (field, own, pods) in fields {
        let mode = known::<NamespaceMode>(field, own)?;
        if mode == NamespaceMode::Node && pods != own {
            return Err(Refusal::field(field, "NODE is only allowed if the pod has it, too"));
        }
        if field != "namespace_options.pid" {
            pods_or_hosts(field, mode)?;
        }
    }
    user_namespace::check(own, pods)
}

fn seccomp_profile(profile: &SecurityProfile) -> Result<(), Refusal> {
    seccomp::check("seccomp", profile).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::security_profile::ProfileType;
    use wharf_cri_api::v1::{
        CdiDevice, IdMapping, ImageSpec, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    };

    const NONE: SecurityModules = SecurityModules { apparmor: Switch::Off };

    fn asked(change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> ContainerConfig {
        let mut config = ContainerConfig::default();
        change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
        config
    }

    fn mounted(mount: Mount) -> ContainerConfig {
        let mount = Mount { container_path: "/data".to_owned(), ..mount };
        ContainerConfig { mounts: vec![mount], ..ContainerConfig::default() }
    }

    fn profile(profile_type: i32) -> Option<SecurityProfile> {
        Some(SecurityProfile { profile_type, ..SecurityProfile::default() })
    }

    #[test]
    fn what_is_not_done_is_refused_by_the_name_of_its_field() {
        let cdi = CdiDevice { name: "gpu=0".to_owned() };
        let annotation = [("cdi.k8s.io/x".to_owned(), "gpu".to_owned())];
        let resources = LinuxContainerResources { oom_score_adj: 1001, ..LinuxContainerResources::default() };
        let mut limited = ContainerConfig::default();
        limited.linux.get_or_insert_default().resources = Some(resources);
        let rows = [
            (ContainerConfig { cdi_devices: vec![cdi], ..ContainerConfig::default() }, "CDI_devices"),
            (ContainerConfig { annotations: annotation.into(), ..ContainerConfig::default() }, "annotations"),
            (ContainerConfig { stop_signal: 999, ..ContainerConfig::default() }, "stop_signal"),
            (mounted(Mount { image: Some(ImageSpec::default()), ..Mount::default() }), "it names no image"),
            (mounted(Mount { uid_mappings: vec![IdMapping::default()], ..Mount::default() }), "uidMappings"),
            (mounted(Mount { propagation: 7, ..Mount::default() }), "mounts"),
            (mounted(Mount { recursive_read_only: true, ..Mount::default() }), "needs readonly"),
            (mounted(Mount { mount_options: vec!["suid".to_owned()], ..Mount::default() }), "suid"),
            (limited, "oom_score_adj"),
            (asked(|context| context.seccomp = profile(9)), "seccomp"),
            (asked(|context| context.apparmor = profile(ProfileType::Localhost.into())), "apparmor"),
            (asked(|context| context.supplemental_groups_policy = 5), "supplemental_groups_policy"),
        ];
        for (config, words) in rows {
            let refusal = container(&config, &NamespaceOption::default(), NONE).unwrap_err();
            assert!(refusal.to_string().contains(words), "{words}: {refusal}");
        }
    }

    #[test]
    fn a_container_is_privileged_where_its_pod_was_or_is() {
        let config = asked(|context| context.privileged = true);
        let plain = PodSandboxConfig::default();
        let mut allowing = plain.clone();
        allowing.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        for pods in [[&allowing, &plain], [&plain, &allowing]] {
            assert_eq!(privilege(&config, pods), Ok(()));
        }
        assert!(privilege(&config, [&plain, &plain]).is_err());
        assert_eq!(privilege(&ContainerConfig::default(), [&plain, &plain]), Ok(()));
    }

    #[test]
    fn a_container_has_no_more_of_the_host_than_its_pod() {
        let host = NamespaceOption { pid: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        let config = asked(|context| context.namespace_options = Some(host.clone()));
        assert!(container(&config, &NamespaceOption::default(), NONE).is_err());
        assert_eq!(container(&config, &host, NONE), Ok(()));
    }
}
