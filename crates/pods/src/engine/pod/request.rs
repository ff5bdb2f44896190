//! The request of RunPodSandbox, translated into what is made.

use std::collections::BTreeMap;

use wharf_cri_api::v1::{self, NamespaceMode, PodSandboxConfig, Protocol as CriProtocol};
use wharf_host::namespaces::{Kind, NamespacePlan, sysctl_scope};
use wharf_network::{PortMapping, Protocol};

use crate::error::Error;
use crate::pod::Pod;

/// What a pod with its own network may do without being root in it, as with other runtimes.
const USUAL_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The namespaces that a pod has of its own, and what is set in them.
pub(super) fn namespace_plan(pod: &Pod) -> Result<NamespacePlan, Error> {
    let options = pod.namespaces();
    let sysctls = pod.config().linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    // A pod on the host's network has the host's name.
    let modes = [(Kind::Net, options.network()), (Kind::Ipc, options.ipc()), (Kind::Uts, options.network())];
    let own = modes.into_iter().filter(|(_, mode)| *mode != NamespaceMode::Node).map(|(kind, _)| kind);
    let mut plan = NamespacePlan { own: own.collect(), hostname: pod.hostname(), sysctls: BTreeMap::new() };
    for (key, value) in &sysctls {
        check_sysctl(&plan, key, value)?;
    }
    plan.sysctls = sysctls;
    if plan.own.contains(&Kind::Net) {
        for (key, value) in USUAL_SYSCTLS {
            plan.sysctls.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    Ok(plan)
}

/// A sysctl must belong to one of the pod's own namespaces: any other is the whole machine's.
fn check_sysctl(plan: &NamespacePlan, key: &str, value: &str) -> Result<(), Error> {
    let is_own = sysctl_scope(key).is_some_and(|kind| plan.own.contains(&kind));
    if is_own && !value.contains(['\n', '\0']) {
        return Ok(());
    }
    let problem = format!("{key} is not a sysctl of a namespace that the pod has of its own");
    Err(Error::invalid("sysctls", problem))
}

/// The host ports that lead into the pod.
pub(super) fn ports(config: &PodSandboxConfig) -> Result<Vec<PortMapping>, Error> {
    config.port_mappings.iter().map(mapping).collect()
}

fn mapping(asked: &v1::PortMapping) -> Result<PortMapping, Error> {
    let no_address = |error| Error::invalid("host_ip", format!("{:?}: {error}", asked.host_ip));
    let host_ip = (!asked.host_ip.is_empty()).then(|| asked.host_ip.parse().map_err(no_address));
    Ok(PortMapping {
        protocol: match asked.protocol() {
            CriProtocol::Tcp => Protocol::Tcp,
            CriProtocol::Udp => Protocol::Udp,
            CriProtocol::Sctp => Protocol::Sctp,
        },
        container_port: port("container_port", asked.container_port)?,
        host_port: port("host_port", asked.host_port)?,
        host_ip: host_ip.transpose()?,
    })
}

fn port(field: &'static str, value: i32) -> Result<u16, Error> {
    u16::try_from(value).map_err(|_range| Error::invalid(field, format!("{value} is not a port")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption};
    use wharf_types::PodId;

    fn pod(network: NamespaceMode, ipc: NamespaceMode, sysctls: &[(&str, &str)]) -> Pod {
        let options =
            NamespaceOption { network: network.into(), ipc: ipc.into(), ..NamespaceOption::default() };
        let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let own = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
        let linux = LinuxPodSandboxConfig {
            security_context: Some(context),
            sysctls: sysctls.iter().map(own).collect(),
            ..LinuxPodSandboxConfig::default()
        };
        let config = PodSandboxConfig { linux: Some(linux), ..PodSandboxConfig::default() };
        Pod::new(PodId::from_random([1; 32]), config, String::new(), 0)
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
            let plan = namespace_plan(&pod(network, ipc, &[])).unwrap();
            let own = [Kind::Net, Kind::Ipc, Kind::Uts].map(|kind| plan.own.contains(&kind));
            assert_eq!(own, expected, "{network:?} {ipc:?}");
            assert_eq!(plan.sysctls.is_empty(), network == Node, "the usual ones go with the network");
        }
    }

    #[test]
    fn a_sysctl_is_set_where_it_is_the_pods_own_and_refused_elsewhere() {
        use NamespaceMode::{Node, Pod};
        let (net, ipc) = (("net.core.somaxconn", "9"), ("kernel.shmmax", "9"));
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
    fn a_port_is_one_and_an_address_too() {
        let asked = |host_port, host_ip: &str| v1::PortMapping {
            container_port: 80,
            host_port,
            host_ip: host_ip.to_owned(),
            ..v1::PortMapping::default()
        };
        let read = mapping(&asked(8080, "127.0.0.1")).unwrap();
        assert_eq!((read.host_port, read.host_ip), (8080, Some("127.0.0.1".parse().unwrap())));
        assert_eq!(mapping(&asked(0, "")).unwrap().host_ip, None);
        for (host_port, host_ip) in [(-1, ""), (65_536, ""), (80, "localhost")] {
            assert!(mapping(&asked(host_port, host_ip)).is_err(), "{host_port} {host_ip}");
        }
    }
}
