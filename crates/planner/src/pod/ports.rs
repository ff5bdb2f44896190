//! The host ports of a pod, as the network has them.
//!
//! A port is only read and checked here. Whether it is free is known to the network, which has all pods' leases.

use std::net::IpAddr;

use wharf_cri_api::v1::{self, NamespaceMode, PodSandboxConfig, Protocol as CriProtocol};
use wharf_network::{PortMapping, Protocol};

use super::namespaces_of;
use crate::Refusal;

/// The host ports that lead into the pod; none if it is on the host's network.
///
/// # Errors
/// A number is not a port, or a host's address is none.
pub fn plan(config: &PodSandboxConfig) -> Result<Vec<PortMapping>, Refusal> {
    if namespaces_of(config).network() == NamespaceMode::Node {
        return Ok(Vec::new());
    }
    config.port_mappings.iter().map(mapping).collect()
}

fn mapping(asked: &v1::PortMapping) -> Result<PortMapping, Refusal> {
    let host_port = port("host_port", asked.host_port)?;
    Ok(PortMapping {
        protocol: match asked.protocol() {
            CriProtocol::Tcp => Protocol::Tcp,
            CriProtocol::Udp => Protocol::Udp,
            CriProtocol::Sctp => Protocol::Sctp,
        },
        container_port: port("container_port", asked.container_port)?,
        host_port,
        // Without a port of the host, nothing is asked of its address.
        host_ip: if host_port == 0 { None } else { address(&asked.host_ip)? },
    })
}

/// An address of the host; `None` for all. An IPv4 address may be written as one of IPv6, which no packet has.
fn address(asked: &str) -> Result<Option<IpAddr>, Refusal> {
    if asked.is_empty() {
        return Ok(None);
    }
    let address: Result<IpAddr, _> = asked.parse();
    let address = address.map_err(|error| {
        Refusal::field("host_ip", format!("{asked:?}: {error}; use an address of the host, or none for all"))
    })?;
    Ok(Some(address.to_canonical()))
}

fn port(field: &'static str, value: i32) -> Result<u16, Refusal> {
    u16::try_from(value).map_err(|_range| Refusal::field(field, format!("{value} is not a port")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host_port: i32, host_ip: &str) -> v1::PortMapping {
        let host_ip = host_ip.to_owned();
        v1::PortMapping { container_port: 80, host_port, host_ip, ..v1::PortMapping::default() }
    }

    #[test]
    fn an_ipv4_address_is_one_however_it_is_written() {
        for (written, address) in [
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("::ffff:0:0", "0.0.0.0"),
            ("::", "::"),
            ("fd00::1", "fd00::1"),
        ] {
            let read = mapping(&asked(80, written)).unwrap();
            assert_eq!(read.host_ip, Some(address.parse().unwrap()), "{written}");
        }
    }

    #[test]
    fn an_address_of_no_port_is_nobodys_fault() {
        assert_eq!(mapping(&asked(0, "localhost")).unwrap().host_ip, None);
        let on_the_host = v1::NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() };
        let context =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(on_the_host), ..Default::default() };
        let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        let port_mappings = vec![asked(80, "localhost")];
        let of_its_own = PodSandboxConfig { port_mappings, ..Default::default() };
        plan(&of_its_own).unwrap_err();
        assert_eq!(plan(&PodSandboxConfig { linux: Some(linux), ..of_its_own }).unwrap(), []);
    }

    #[test]
    fn a_port_is_one_and_an_address_too() {
        let read = mapping(&asked(8080, "127.0.0.1")).unwrap();
        assert_eq!((read.host_port, read.host_ip), (8080, Some("127.0.0.1".parse().unwrap())));
        assert_eq!(mapping(&asked(0, "")).unwrap().host_ip, None);
        for (host_port, host_ip) in [(-1, ""), (65_536, ""), (80, "localhost")] {
            assert!(mapping(&asked(host_port, host_ip)).is_err(), "{host_port} {host_ip}");
        }
    }
}
