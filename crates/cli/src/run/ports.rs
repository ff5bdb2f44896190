//! The ports of this machine that a pod is to have. wharfd leads them to the pod before anything on this machine sees
//! them: a program that listens at one would no longer be reached, and nobody would be told.

use std::io::{ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use wharf_cri_api::v1::{PortMapping, Protocol};

use crate::error::Error;

/// Refuses ports at which a program of this machine listens, and addresses that this machine does not have. What cannot
/// be found out is left to wharfd.
pub(super) fn check<'a>(ports: impl IntoIterator<Item = &'a PortMapping>) -> std::result::Result<(), Error> {
    for port in ports {
        let Ok(number) = u16::try_from(port.host_port) else { continue };
        let bind = match port.protocol() {
            Protocol::Tcp => tcp,
            Protocol::Udp => udp,
            Protocol::Sctp => continue,
        };
        for ip in addresses(&port.host_ip) {
            let address = SocketAddr::new(ip, number);
            match bind(address).err().map(|error| error.kind()) {
                Some(ErrorKind::AddrInUse) => return Err(Error::PortTaken { address }),
                Some(ErrorKind::AddrNotAvailable) if !ip.is_unspecified() => {
                    return Err(Error::NoAddress { ip });
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn tcp(address: SocketAddr) -> Result<()> {
    TcpListener::bind(address).map(drop)
}

fn udp(address: SocketAddr) -> Result<()> {
    UdpSocket::bind(address).map(drop)
}

/// The addresses of a published port: without one, all of both families.
fn addresses(ip: &str) -> Vec<IpAddr> {
    match ip.parse() {
        Ok(ip) => vec![ip],
        Err(_none) => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ip: &str, port: u16, protocol: Protocol) -> Option<String> {
        let mapping = PortMapping {
            protocol: protocol.into(),
            container_port: 80,
            host_port: port.into(),
            host_ip: ip.to_owned(),
        };
        check([&mapping]).err().map(|error| error.to_string())
    }

    #[test]
    fn a_port_at_which_something_listens_is_refused() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        // The loopback device of a new network is down, but has its addresses once it is up.
        assert_eq!(told("", 7001, Protocol::Tcp), None);
        let _tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7001)).unwrap();
        let _udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7002)).unwrap();
        let refused = told("", 7001, Protocol::Tcp).unwrap();
        assert!(refused.contains("0.0.0.0:7001") && refused.contains("choose another port"), "{refused}");
        assert!(told("0.0.0.0", 7002, Protocol::Udp).is_some());
        for free in
            [told("", 7001, Protocol::Udp), told("", 7002, Protocol::Tcp), told("", 7001, Protocol::Sctp)]
        {
            assert_eq!(free, None);
        }
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let refused = told("192.0.2.1", 7001, Protocol::Tcp).unwrap();
        assert!(refused.contains("192.0.2.1"), "{refused}");
        assert_eq!(told("127.0.0.1", 0, Protocol::Udp), None);
    }
}
