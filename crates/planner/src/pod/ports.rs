//! The host ports of a pod, as the network has them.
//!
//! A port is only read and checked here. Whether it is free is known to the network, which has all pods' leases.

use wharf_cri_api::v1::{self, PodSandboxConfig, Protocol as CriProtocol};
use wharf_network::{PortMapping, Protocol};

use crate::Refusal;

/// The host ports that lead into the pod.
///
/// # Errors
/// A number is not a port, or a host's address is none.
pub fn plan(config: &PodSandboxConfig) -> Result<Vec<PortMapping>, Refusal> {
    config.port_mappings.iter().map(mapping).collect()
}

fn mapping(asked: &v1::PortMapping) -> Result<PortMapping, Refusal> {
    let no_address = |error| Refusal::field("host_ip", format!("{:?}: {error}", asked.host_ip));
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

fn port(field: &'static str, value: i32) -> Result<u16, Refusal> {
    u16::try_from(value).map_err(|_range| Refusal::field(field, format!("{value} is not a port")))
}

#[cfg(test)]
mod tests {
    use super::*;

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
