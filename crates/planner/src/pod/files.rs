//! What the containers of a pod find in `/etc`, and the pod's shared memory: one small tmpfs, whose content is decided
//! here.

use std::net::Ipv4Addr;

use wharf_cri_api::v1::{DnsConfig, NamespaceMode, NamespaceOption, PodSandboxConfig};
use wharf_types::{Field, IdMaps, SelinuxLabel};

use crate::{Defaults, Refusal, annotations};

/// The content of a pod's tmpfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesPlan {
    /// The pod's name, in `hostname` and `hosts`.
    pub hostname: String,
    /// The content of `resolv.conf`.
    pub resolv_conf: String,
    /// Whether the pod has its own IPC namespace, and so its own shared memory.
    pub shm: Shm,
    /// The user and the group, as the host has them, whom all of it belongs to if not to root.
    pub owner: Option<(u32, u32)>,
    /// The SELinux label of all of it.
    pub label: Option<SelinuxLabel>,
}

/// The owner of the shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shm {
    /// The pod's.
    Own {
        /// Its size, and that of the pod's other files.
        bytes: u64,
    },
    /// The host's.
    Hosts,
}

/// What this machine says about names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNames {
    /// The machine's hostname.
    pub hostname: String,
    /// The content of its `resolv.conf`; needed for a pod without DNS settings.
    pub resolv_conf: String,
    /// The `resolv.conf` with the servers that systemd-resolved asks; needed if it is systemd-resolved that
    /// `resolv_conf` names ([`names_resolved`]).
    pub behind_resolved: Option<String>,
}

/// The files of a pod with these namespaces and this user namespace.
pub(crate) fn plan(
    config: &PodSandboxConfig,
    options: &NamespaceOption,
    ids: Option<IdMaps>,
    names: HostNames,
    defaults: &Defaults,
) -> Result<FilesPlan, Refusal> {
    let hostname = if config.hostname.is_empty() { names.hostname.clone() } else { config.hostname.clone() };
    let resolv_conf = match &config.dns_config {
        Some(dns) => resolv_conf(dns)?,
        None => hosts_resolv_conf(options, names),
    };
    let shm = match options.ipc() {
        NamespaceMode::Node => Shm::Hosts,
        _ => Shm::Own { bytes: annotations::shm_bytes(config, defaults)?.unwrap_or(defaults.shm_bytes) },
    };
    let owner = ids.map(|ids| (ids.users.first(), ids.groups.first()));
    Ok(FilesPlan { hostname, resolv_conf, shm, owner, label: None })
}

/// The `resolv.conf` for DNS settings; empty for empty settings. A value that would not stay on its line is refused.
fn resolv_conf(dns: &DnsConfig) -> Result<String, Refusal> {
    let mut text = String::new();
    let mut line = |keyword: &str, values: &[String]| {
        for value in values {
            // One value must not become two lines; colons are allowed for IPv6 servers and options.
            if Field::new(&value.replace(':', "")).is_none() {
                return Err(Refusal::field(
                    "dns_config",
                    format!("{value:?} has a line break or is too long"),
                ));
            }
        }
        if !values.is_empty() {
            text += &format!("{keyword} {}\n", values.join(" "));
        }
        Ok(())
    };
    line("search", &dns.searches)?;
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server))?;
    }
    line("options", &dns.options)?;
    Ok(text)
}

/// The host's own `resolv.conf`, for a pod without DNS settings. A pod with its own network cannot reach
/// systemd-resolved on the host's loopback, so it gets the servers that systemd-resolved asks.
fn hosts_resolv_conf(options: &NamespaceOption, names: HostNames) -> String {
    let is_reachable = options.network() == NamespaceMode::Node || !names_resolved(&names.resolv_conf);
    names.behind_resolved.filter(|_| !is_reachable).unwrap_or(names.resolv_conf)
}

/// Whether every server in a `resolv.conf` is systemd-resolved's on loopback; systemd-resolved(8) lists both addresses.
#[must_use]
pub fn names_resolved(resolv_conf: &str) -> bool {
    const STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];
    let servers = || resolv_conf.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim);
    servers().next().is_some()
        && servers().all(|server| server.parse().is_ok_and(|server| STUBS.contains(&server)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "# comment\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n";

    fn planned(config: &PodSandboxConfig, network: NamespaceMode, resolv_conf: &str) -> FilesPlan {
        let options = NamespaceOption { network: network.into(), ..NamespaceOption::default() };
        let names = HostNames {
            hostname: "node".to_owned(),
            resolv_conf: resolv_conf.to_owned(),
            behind_resolved: Some("nameserver 10.0.0.1\n".to_owned()),
        };
        plan(config, &options, None, names, &Defaults::default()).unwrap()
    }

    #[test]
    fn dns_settings_become_lines() {
        let dns = DnsConfig {
            servers: vec!["10.10.10.10".into(), "fd00::1".into()],
            searches: vec!["google.com".into()],
            options: vec!["ndots:8".into()],
        };
        let want = "search google.com\nnameserver 10.10.10.10\nnameserver fd00::1\noptions ndots:8\n";
        assert_eq!(resolv_conf(&dns).unwrap(), want);
        let empty = PodSandboxConfig { dns_config: Some(DnsConfig::default()), ..Default::default() };
        assert_eq!(planned(&empty, NamespaceMode::Pod, STUB).resolv_conf, "", "the request's counts");
    }

    #[test]
    fn a_line_break_is_refused() {
        let dns = DnsConfig { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()], ..DnsConfig::default() };
        assert!(resolv_conf(&dns).is_err());
    }

    #[test]
    fn a_stub_is_told_from_servers() {
        assert!(names_resolved(STUB));
        for servers in
            ["", "search x\n", "nameserver 10.0.0.1\n", "nameserver 127.0.0.53\nnameserver 10.0.0.1\n"]
        {
            assert!(!names_resolved(servers), "{servers}");
        }
    }

    #[test]
    fn a_pod_without_dns_settings_has_the_servers_that_it_can_reach() {
        let (own, hosts) = (NamespaceMode::Pod, NamespaceMode::Node);
        let servers = "nameserver 10.0.0.9\n";
        for (network, resolv_conf, expected) in
            [(own, STUB, "nameserver 10.0.0.1\n"), (hosts, STUB, STUB), (own, servers, servers)]
        {
            let plan = planned(&PodSandboxConfig::default(), network, resolv_conf);
            assert_eq!(plan.resolv_conf, expected, "{network:?}");
        }
    }

    #[test]
    fn a_pod_without_a_name_has_the_machines() {
        let named = PodSandboxConfig { hostname: "web".to_owned(), ..PodSandboxConfig::default() };
        assert_eq!(planned(&named, NamespaceMode::Pod, "").hostname, "web");
        assert_eq!(planned(&PodSandboxConfig::default(), NamespaceMode::Pod, "").hostname, "node");
    }
}
