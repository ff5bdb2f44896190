//! Every decision about a pod: what RunPodSandbox may request ([`check`]), and what is then made ([`plan`]): namespaces
//! with their sysctls, the files for `/etc`, host ports.
//!
//! It does not decide where anything is, nor whether the kernel accepts the value of a sysctl: the kernel is asked when
//! the namespaces are made.

pub(crate) mod attachment;
pub(crate) mod files;
pub(crate) mod ports;
pub(crate) mod sysctls;

use std::collections::BTreeMap;

use wharf_cgroup::{CgroupPath, Placement};
use wharf_cri_api::v1::{LinuxContainerResources, NamespaceOption, PodSandboxConfig};
use wharf_network::PortMapping;
use wharf_types::PodId;

use crate::namespaces::{self, NamespacePlan};
use crate::{
    Defaults, Labels, Refusal, Selinux, annotations, merge_resources, refuse, selinux, user_namespace,
};
use files::{FilesPlan, HostNames};
use sysctls::Sysctls;

/// The longest hostname, in bytes: gethostname(2).
const HOSTNAME_LIMIT_BYTES: usize = 64;

/// Everything that is made for a pod, apart from its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    /// Its own namespaces.
    pub namespaces: NamespacePlan,
    /// The files that its containers share.
    pub files: FilesPlan,
    /// What its network needs, if it has its own.
    pub network: NetworkPlan,
    /// The SELinux labels that it has for its containers, if it gets any.
    pub labels: Option<Labels>,
}

/// What a pod's own network needs beside its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The host ports that lead there.
    pub ports: Vec<PortMapping>,
    /// The sysctls that are set once the pod is connected, by key with dots.
    pub sysctls: BTreeMap<String, String>,
}

/// Plans a pod, with what this machine says about names, what the node has chosen where the request leaves it open, and
/// how the pod is labelled, if it is.
///
/// # Errors
/// [`Refusal`], for a request that [`check`] accepts: a sysctl of a namespace that the pod shares with the host, an
/// invalid port, DNS that cannot be written down, an impossible label.
pub fn plan(
    config: &PodSandboxConfig,
    names: HostNames,
    defaults: &Defaults,
    selinux: Selinux<'_>,
) -> Result<PodPlan, Refusal> {
    let options = namespaces_of(config);
    let own = namespaces::of_pod(&options);
    let ids = user_namespace::of(&options)?;
    let asked = config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    let sysctls = sysctls::plan(&asked, &sysctls::scopes(&own, ids.as_ref()), defaults)?;
    let labels = selinux::pods_labels(config, selinux)?;
    let label = labels.as_ref().map(|labels| labels.mount.clone());
    let files = FilesPlan { label, ..files::plan(config, &options, ids, names, defaults)? };
    let Sysctls { early, late } = sysctls.within(ids.map(|ids| ids.groups));
    let namespaces = NamespacePlan { own, hostname: files.hostname.clone(), sysctls: early, ids };
    let network = NetworkPlan { ports: ports::plan(config)?, sysctls: late };
    Ok(PodPlan { namespaces, files, network, labels })
}

/// The namespaces that a pod's request asks for; unset ones are the pod's.
#[must_use]
pub fn namespaces_of(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// The path of the cgroup that contains those of a pod's containers: the request's, or one of the pod's own below the
/// node's default.
///
/// # Errors
/// [`Refusal`] if that is not a path of a cgroup, or of a slice if systemd makes the cgroups.
pub fn cgroup(pod: &PodId, config: &PodSandboxConfig, placement: &Placement) -> Result<CgroupPath, Refusal> {
    let path = placement.pod(pod.as_str(), cgroup_parent(config));
    path.map_err(|error| Refusal::field("cgroup_parent", error))
}

/// The path of the cgroup that is removed last with a pod: its own or, in one that is the kubelet's to remove, that of
/// its sandbox, which is named after the pod.
///
/// # Errors
/// Those of [`cgroup`].
pub fn last_cgroup(
    pod: &PodId,
    config: &PodSandboxConfig,
    placement: &Placement,
) -> Result<CgroupPath, Refusal> {
    let of_pod = cgroup(pod, config, placement)?;
    match cgroup_parent(config) {
        None => Ok(of_pod),
        Some(_) => {
            let sandbox = placement.container(&of_pod, pod.as_str());
            sandbox.map_err(|error| Refusal::field("cgroup_parent", error))
        }
    }
}

/// The parent of the cgroups of a pod's containers in its request, if it names one.
#[must_use]
pub fn cgroup_parent(config: &PodSandboxConfig) -> Option<&str> {
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str());
    parent.filter(|parent| !parent.is_empty())
}

/// A pod's request after an update of what it says of the pod's own cgroup: overhead and resources. What the update
/// leaves open stays.
#[must_use]
pub fn update(
    config: &PodSandboxConfig,
    [overhead, resources]: [Option<LinuxContainerResources>; 2],
) -> PodSandboxConfig {
    let mut config = config.clone();
    let linux = config.linux.get_or_insert_default();
    for (held, new) in [(&mut linux.overhead, overhead), (&mut linux.resources, resources)] {
        if let Some(new) = new {
            *held = Some(merge_resources(&held.take().unwrap_or_default(), &new));
        }
    }
    config
}

/// Checks a pod's request.
///
/// # Errors
/// [`Refusal`], which names the field and says what to do.
pub fn check(config: &PodSandboxConfig, defaults: &Defaults, placement: &Placement) -> Result<(), Refusal> {
    refuse::pod(config)?;
    let linux = config.linux.as_ref();
    let context = linux.and_then(|linux| linux.security_context.as_ref());
    if context.is_some_and(|context| context.run_as_group.is_some() && context.run_as_user.is_none()) {
        return Err(Refusal::field("run_as_group", "it needs run_as_user"));
    }
    let namespaces = context.and_then(|context| context.namespace_options.as_ref());
    namespaces.map_or(Ok(()), |namespaces| check_ids(namespaces, defaults))?;
    if let Some(parent) = cgroup_parent(config) {
        let path = placement.pod("", Some(parent));
        path.map_err(|error| Refusal::field("cgroup_parent", error))?;
    }
    annotations::check(config, defaults)?;
    check_log_directory(&config.log_directory)?;
    check_hostname(&config.hostname)
}

/// A user namespace must not use ids of the host that the node keeps to itself.
fn check_ids(namespaces: &NamespaceOption, defaults: &Defaults) -> Result<(), Refusal> {
    let Some(ids) = user_namespace::of(namespaces)? else { return Ok(()) };
    let bounds = [("uids", ids.users, defaults.least_uid), ("gids", ids.groups, defaults.least_gid)];
    match bounds.into_iter().find(|(_, range, least)| range.first() < *least) {
        Some((name, range, least)) => {
            let first = range.first();
            let problem =
                format!("{name}: {first} is below {least}, the first id that this node gives to pods");
            Err(Refusal::field("userns_options", problem))
        }
        None => Ok(()),
    }
}

fn check_log_directory(path: &str) -> Result<(), Refusal> {
    let is_clean = path.starts_with('/') && path.split('/').all(|part| part != "..");
    if path.is_empty() || is_clean {
        return Ok(());
    }
    Err(Refusal::field("log_directory", format!("{path:?} is not an absolute path without ..")))
}

fn check_hostname(name: &str) -> Result<(), Refusal> {
    if is_hostname(name) {
        return Ok(());
    }
    let problem = format!("{name:?} is not a hostname of at most {HOSTNAME_LIMIT_BYTES} bytes");
    Err(Refusal::field("hostname", problem))
}

/// Whether the kernel keeps the name as it is.
fn is_hostname(name: &str) -> bool {
    let is_short = name.len() <= HOSTNAME_LIMIT_BYTES;
    is_short && name.bytes().all(|byte| !byte.is_ascii_control() && byte != b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cgroup::Driver;
    use wharf_cri_api::v1::{Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    #[test]
    fn a_group_needs_a_user_and_a_cgroup_a_path() {
        let asked = |cgroup_parent: &str, run_as_user, run_as_group| {
            let context = LinuxSandboxSecurityContext { run_as_user, run_as_group, ..Default::default() };
            let (cgroup_parent, security_context) = (cgroup_parent.to_owned(), Some(context));
            let linux = LinuxPodSandboxConfig { cgroup_parent, security_context, ..Default::default() };
            let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
            let placement = Placement::new(Driver::Cgroupfs, "/wharf").unwrap();
            check(&config, &Defaults::default(), &placement).map_err(|refusal| refusal.to_string())
        };
        let id = Some(Int64Value { value: 1000 });
        assert_eq!(asked("/kubepods/pod1", id, id), Ok(()));
        assert_eq!(asked("", None, id).unwrap_err(), "run_as_group: it needs run_as_user");
        assert!(asked("/../up", None, None).unwrap_err().starts_with("cgroup_parent: "));
    }

    #[test]
    fn names_and_paths_are_checked_before_anything_is_made() {
        for good in ["", "/var/log/pods/a..b"] {
            check_log_directory(good).unwrap();
        }
        for bad in ["var/log", "/var/../etc", ".."] {
            assert!(check_log_directory(bad).is_err(), "{bad}");
        }
        check_hostname(&"h".repeat(HOSTNAME_LIMIT_BYTES)).unwrap();
        for bad in [&*"h".repeat(HOSTNAME_LIMIT_BYTES + 1), "a/b", "a\nb"] {
            assert!(check_hostname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_is_planned_as_a_whole() {
        let ports = vec![wharf_cri_api::v1::PortMapping { host_port: 80, ..Default::default() }];
        let config =
            PodSandboxConfig { hostname: "web".to_owned(), port_mappings: ports, ..Default::default() };
        let plan = plan(&config, HostNames::default(), &Defaults::default(), Selinux::Off).unwrap();
        assert_eq!((plan.namespaces.hostname.as_str(), plan.files.hostname.as_str()), ("web", "web"));
        assert_eq!((plan.namespaces.own.len(), plan.network.ports[0].host_port), (3, 80));
        assert!(!plan.namespaces.sysctls.is_empty(), "the usual ones go with the network");
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let cpu = |cpu_shares, cpu_quota| {
            Some(LinuxContainerResources { cpu_shares, cpu_quota, ..Default::default() })
        };
        let first = update(&PodSandboxConfig::default(), [None, cpu(512, 1000)]);
        let second = update(&first, [cpu(7, 0), cpu(0, 2000)]);
        let linux = second.linux.unwrap();
        assert_eq!((first.linux.unwrap().overhead, linux.overhead), (None, cpu(7, 0)));
        assert_eq!(linux.resources, cpu(512, 2000));
    }

    #[test]
    fn a_pods_cgroup_is_where_the_request_says_or_its_own() {
        let id = PodId::from_random([1; 32]);
        let asked = |parent: &str, driver| {
            let linux = LinuxPodSandboxConfig { cgroup_parent: parent.to_owned(), ..Default::default() };
            let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
            let placement = Placement::new(driver, Placement::default_parent(driver)).unwrap();
            cgroup(&id, &config, &placement).map(|path| path.to_string())
        };
        assert_eq!(asked("/kubepods/pod1", Driver::Cgroupfs).unwrap(), "/kubepods/pod1");
        assert_eq!(asked("", Driver::Cgroupfs).unwrap(), format!("/wharf/{id}"));
        assert_eq!(asked("", Driver::Systemd).unwrap(), format!("/wharf.slice/wharf-{id}.slice"));
        let refused = asked("/kubepods/pod1", Driver::Systemd).unwrap_err().to_string();
        assert!(refused.starts_with("cgroup_parent: "), "{refused}");
    }
}
