//! The ports of this machine that a pod is to have. wharfd leads them to the pod before anything on this machine sees
//! them: a program that listens at one would no longer be reached, and nobody would be told.

use std::io::{ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use wharf_cri_api::v1::{PortMapping, Protocol};

use crate::error::Error;
use crate::listener;

/// Refuses ports at which a program of this machine listens, and addresses that this machine does not have. What cannot
/// be found out is left to wharfd: all of it, unless wharfd is known to be in the network namespace of this process.
pub(super) fn check<'a>(
    wharfd: Option<i32>,
    ports: impl IntoIterator<Item = &'a PortMapping>,
) -> std::result::Result<(), Error> {
    if wharfd.and_then(|pid| listener::shares(pid, "net")) != Some(true) {
        return Ok(());
    }
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
                Some(ErrorKind::AddrInUse) if is_heard(port.protocol(), address) => {
                    return Err(Error::PortTaken { address });
                }
                Some(ErrorKind::AddrNotAvailable) if !ip.is_unspecified() => {
                    return Err(Error::NoAddress { ip });
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Whether a program waits at an address for whoever comes. A connection to somewhere else may have the port, too, but
/// goes on as it is: the kernel translates the addresses of new connections only. What cannot be read counts.
fn is_heard(protocol: Protocol, address: SocketAddr) -> bool {
    let (name, state) = if protocol == Protocol::Udp { ("udp", UNCONNECTED) } else { ("tcp", LISTENS) };
    let table = |name: String| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let Ok(sockets) = table(name.to_owned()) else { return true };
    // A kernel without IPv6 has none.
    let of_ipv6 = table(format!("{name}6")).unwrap_or_default();
    let mut all = sockets.lines().chain(of_ipv6.lines()).filter_map(|line| local(line, state));
    all.any(|other| overlaps(address, other))
}

/// `TCP_LISTEN` in a table of the kernel.
const LISTENS: &str = "0A";
/// `TCP_CLOSE`, which a socket of UDP has as long as it has no peer.
const UNCONNECTED: &str = "07";

/// The address of a socket with this state, from its line in a table of the kernel: NUMBER: LOCAL REMOTE STATE ...
fn local(line: &str, state: &str) -> Option<SocketAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (ip, port) = fields.next()?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (fields.nth(1)? == state).then_some(SocketAddr::new(ip_of(ip)?, port))
}

/// An address as the kernel shows it: in words of this machine's byte order.
fn ip_of(digits: &str) -> Option<IpAddr> {
    let word = |digits: &[u8]| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let words: Option<Vec<u32>> = digits.as_bytes().chunks(8).map(word).collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let of_ipv4 = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    of_ipv4(&bytes).or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// Whether what comes to the first address would come to the second one. All of IPv6 may include IPv4.
fn overlaps(wanted: SocketAddr, other: SocketAddr) -> bool {
    let (ip, others) = (wanted.ip().to_canonical(), other.ip().to_canonical());
    let is_all = others == IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let is_same = ip == others || ip.is_unspecified() || others.is_unspecified();
    wanted.port() == other.port() && (is_all || is_same && ip.is_ipv4() == others.is_ipv4())
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
    use std::net::TcpStream;

    use super::*;

    fn told(ip: &str, port: u16, protocol: Protocol) -> Option<String> {
        // A thread has a directory in /proc like a process.
        told_beside(Some(nix::unistd::gettid().as_raw()), (ip, port, protocol))
    }

    fn told_beside(wharfd: Option<i32>, (ip, port, protocol): (&str, u16, Protocol)) -> Option<String> {
        let mapping = PortMapping {
            protocol: protocol.into(),
            container_port: 80,
            host_port: port.into(),
            host_ip: ip.to_owned(),
        };
        check(wharfd, [&mapping]).err().map(|error| error.to_string())
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
    fn a_connection_to_elsewhere_does_not_take_its_port() {
        let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let connection = TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.connect(elsewhere.local_addr().unwrap()).unwrap();
        let ends =
            [(connection.local_addr().unwrap(), Protocol::Tcp), (udp.local_addr().unwrap(), Protocol::Udp)];
        for (end, protocol) in ends {
            let bound = if protocol == Protocol::Tcp { super::tcp(end) } else { super::udp(end) };
            assert_eq!(bound.unwrap_err().kind(), ErrorKind::AddrInUse, "{protocol:?}");
            for ip in ["", "127.0.0.1"] {
                assert_eq!(told(ip, end.port(), protocol), None, "{protocol:?} {ip}");
            }
        }
        let listens = elsewhere.local_addr().unwrap().port();
        assert!(["", "127.0.0.1"].iter().all(|ip| told(ip, listens, Protocol::Tcp).is_some()));
    }

    #[test]
    fn the_tables_of_the_kernel_are_read() {
        let line =
            |ip: &str, state: &str| format!("  7: {ip}:1F90 00000000:0000 {state} 00000000:00000000 00:0");
        let word = |bytes| format!("{:08X}", u32::from_ne_bytes(bytes));
        let v4 = word([127, 0, 0, 1]);
        assert_eq!(local(&line(&v4, LISTENS), LISTENS), Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(local(&line(&v4, "01"), LISTENS), None);
        let v6 = [[0xfd, 0, 0, 1], [0; 4], [0; 4], [0, 0, 0, 2]].map(word).concat();
        assert_eq!(local(&line(&v6, UNCONNECTED), UNCONNECTED), Some("[fd00:1::2]:8080".parse().unwrap()));
        for bad in
            ["", "  sl  local_address rem_address   st", &line("0100007F0", LISTENS), &line("x", LISTENS)]
        {
            assert_eq!(local(bad, LISTENS), None, "{bad}");
        }
    }

    #[test]
    fn addresses_overlap_as_the_kernel_delivers() {
        let overlap = |wanted: &str, other: &str| {
            let [wanted, other] = [wanted, other].map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
            overlaps(wanted, other)
        };
        let same = [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::", "::1"), ("::1", "::")];
        for (wanted, other) in same.into_iter().chain([("127.0.0.1", "::"), ("0.0.0.0", "::ffff:127.0.0.1")])
        {
            assert!(overlap(wanted, other), "{wanted} {other}");
        }
        for (wanted, other) in [("127.0.0.1", "127.0.0.2"), ("::", "0.0.0.0"), ("0.0.0.0", "::1")] {
            assert!(!overlap(wanted, other), "{wanted} {other}");
        }
        let [one, other] = [1, 2].map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
        assert!(!overlaps(one, other));
    }

    #[test]
    fn ports_of_another_network_than_wharfds_are_not_looked_at() {
        let taken = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
            let _tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7003)).unwrap();
            assert!(told("", 7003, Protocol::Tcp).is_some());
            // The first thread, of which the process has its namespaces, is where it was. No process has the number 0.
            let elsewhere = i32::try_from(std::process::id()).unwrap();
            for wharfd in [Some(elsewhere), Some(0), None] {
                for mapping in [("", 7003, Protocol::Tcp), ("192.0.2.1", 7003, Protocol::Udp)] {
                    assert_eq!(told_beside(wharfd, mapping), None, "{wharfd:?} {mapping:?}");
                }
            }
        };
        std::thread::scope(|scope| scope.spawn(taken).join()).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let refused = told("192.0.2.1", 7001, Protocol::Tcp).unwrap();
        assert!(refused.contains("192.0.2.1"), "{refused}");
        assert_eq!(told("127.0.0.1", 0, Protocol::Udp), None);
    }
}
