//! What the request of RunPodSandbox asks of this host, namespaces and files for `/etc`, decided before anything is
//! made.

use std::collections::BTreeMap;

use wharf_cri_api::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};
use wharf_planner::{Defaults, Refusal, SysctlScope, sysctl_scope};

use crate::files::{FilesPlan, Network, Shm, hosts_resolv_conf, resolv_conf};
use crate::namespaces::{Kind, NamespacePlan};

/// What a pod with its own network may do without being root in it, as with other runtimes.
const USUAL_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The namespaces that a pod has of its own, and what is set in them. The request's sysctls come before the node's, and
/// these before the usual ones.
///
/// # Errors
/// A sysctl of the request is not of one of them.
pub fn namespace_plan(config: &PodSandboxConfig, defaults: &Defaults) -> Result<NamespacePlan, Refusal> {
    let options = namespaces(config);
    let sysctls = config.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    // A pod on the host's network has the host's name.
    let modes = [(Kind::Net, options.network()), (Kind::Ipc, options.ipc()), (Kind::Uts, options.network())];
    let own = modes.into_iter().filter(|(_, mode)| *mode != NamespaceMode::Node).map(|(kind, _)| kind);
    let ids = wharf_planner::user_namespace(&options)?;
    let mut plan =
        NamespacePlan { own: own.collect(), hostname: hostname(config), sysctls: BTreeMap::new(), ids };
    for (key, value) in &sysctls {
        check_sysctl(&plan, key, value)?;
    }
    plan.sysctls = sysctls;
    let nodes = defaults.sysctls.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in nodes.chain(USUAL_SYSCTLS).filter(|(key, _)| is_own(&plan, key)).collect::<Vec<_>>() {
        plan.sysctls.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    Ok(plan)
}

/// A sysctl must belong to one of the pod's own namespaces: any other is the whole machine's.
fn check_sysctl(plan: &NamespacePlan, key: &str, value: &str) -> Result<(), Refusal> {
    if is_own(plan, key) && !value.contains(['\n', '\0']) {
        return Ok(());
    }
    let problem = format!("{key} is not a sysctl of a namespace that the pod has of its own");
    Err(Refusal::Field { field: "sysctls", problem })
}

/// Whether a sysctl belongs to a namespace that the pod has of its own.
fn is_own(plan: &NamespacePlan, key: &str) -> bool {
    sysctl_scope(key).is_some_and(|scope| match scope {
        SysctlScope::Network => plan.own.contains(&Kind::Net),
        SysctlScope::Ipc => plan.own.contains(&Kind::Ipc),
    })
}

/// The namespaces that a request asks for; unset ones are the pod's.
#[must_use]
pub fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// The name of a pod's host: the request's, or this machine's.
pub(crate) fn hostname(config: &PodSandboxConfig) -> String {
    if config.hostname.is_empty() { crate::facts::hostname() } else { config.hostname.clone() }
}

/// The files that a pod's containers find in `/etc`, and its shared memory.
///
/// # Errors
/// The request's DNS cannot be written down.
pub fn files_plan(config: &PodSandboxConfig, defaults: &Defaults) -> Result<FilesPlan, Refusal> {
    let options = namespaces(config);
    let is_hosts = |mode| mode == NamespaceMode::Node;
    let network = if is_hosts(options.network()) { Network::Hosts } else { Network::Own };
    let shm = if is_hosts(options.ipc()) { Shm::Hosts } else { Shm::Own { bytes: defaults.shm_bytes } };
    let resolv_conf = match &config.dns_config {
        Some(dns) => resolv_conf(dns)?,
        None => hosts_resolv_conf(network),
    };
    let owner = wharf_planner::user_namespace(&options)?;
    let owner = owner.map(|ids| (ids.users.first(), ids.groups.first()));
    Ok(FilesPlan { hostname: hostname(config), resolv_conf, shm, owner })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    fn pod(network: NamespaceMode, ipc: NamespaceMode, sysctls: &[(&str, &str)]) -> PodSandboxConfig {
        let options =
            NamespaceOption { network: network.into(), ipc: ipc.into(), ..NamespaceOption::default() };
        let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let own = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
        let linux = LinuxPodSandboxConfig {
            security_context: Some(context),
            sysctls: sysctls.iter().map(own).collect(),
            ..LinuxPodSandboxConfig::default()
        };
        PodSandboxConfig { linux: Some(linux), ..PodSandboxConfig::default() }
    }

    #[test]
    fn a_pod_has_the_namespaces_that_are_not_the_hosts() {
        use NamespaceMode::{Node, Pod};
        for (network, ipc, expected) in [
            (Pod, Pod, [true, true, true]),
            (Node, Pod, [false, true, false]),
            (Pod, Node, [true, false, true]),
            (Node, Node, [false, false, false]),
        ] {
            let plan = namespace_plan(&pod(network, ipc, &[]), &Defaults::default()).unwrap();
            let own = [Kind::Net, Kind::Ipc, Kind::Uts].map(|kind| plan.own.contains(&kind));
            assert_eq!(own, expected, "{network:?} {ipc:?}");
            assert_eq!(plan.sysctls.is_empty(), network == Node, "the usual ones go with the network");
        }
    }

    #[test]
    fn a_sysctl_is_set_where_it_is_the_pods_own_and_refused_elsewhere() {
        use NamespaceMode::{Node, Pod};
        let (net, ipc) = (("net.core.somaxconn", "9"), ("kernel.shmmax", "9"));
        let namespace_plan = |config: &PodSandboxConfig| namespace_plan(config, &Defaults::default());
        assert_eq!(namespace_plan(&pod(Pod, Pod, &[net, ipc])).unwrap().sysctls["kernel.shmmax"], "9");
        let usual = ("net.ipv4.ip_unprivileged_port_start", "80");
        assert_eq!(
            namespace_plan(&pod(Pod, Pod, &[usual])).unwrap().sysctls[usual.0],
            "80",
            "the request's counts"
        );
        for (network, mode, sysctl) in [
            (Node, Pod, net),
            (Pod, Node, ipc),
            (Pod, Pod, ("vm.swappiness", "9")),
            (Pod, Pod, ("kernel.shmmax", "9\n8")),
        ] {
            let error = namespace_plan(&pod(network, mode, &[sysctl])).unwrap_err();
            assert!(error.to_string().starts_with("sysctls: "), "{error}");
        }
    }

    #[test]
    fn the_nodes_sysctls_are_set_where_a_pod_has_the_namespace_and_says_nothing_else() {
        use NamespaceMode::{Node, Pod};
        let all = [("net.core.somaxconn", "7"), ("kernel.shmmax", "7"), (USUAL_SYSCTLS[0].0, "1024")];
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let defaults = Defaults { sysctls: all.map(own).into(), ..Defaults::default() };
        let plan = |network, ipc, sysctls: &[_]| {
            namespace_plan(&pod(network, ipc, sysctls), &defaults).unwrap().sysctls
        };
        let set = plan(Pod, Pod, &[("net.core.somaxconn", "9")]);
        assert_eq!((&*set["net.core.somaxconn"], &*set["kernel.shmmax"]), ("9", "7"));
        assert_eq!((&*set[USUAL_SYSCTLS[0].0], &*set[USUAL_SYSCTLS[1].0]), ("1024", USUAL_SYSCTLS[1].1));
        assert_eq!(plan(Node, Pod, &[]).into_keys().collect::<Vec<_>>(), ["kernel.shmmax"]);
        assert!(plan(Node, Node, &[]).is_empty());
    }

    #[test]
    fn a_pod_without_a_name_has_the_machines() {
        let named = PodSandboxConfig { hostname: "web".to_owned(), ..PodSandboxConfig::default() };
        assert_eq!(hostname(&named), "web");
        assert_eq!(hostname(&PodSandboxConfig::default()), crate::facts::hostname());
    }
}
