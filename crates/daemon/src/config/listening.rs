//! Whether a server can have its address, before it is started.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::bail;
use wharf_sys::fs::kernel_text;

use crate::listener::{Listener, has_one};

/// Refuses an address on which nothing can listen. That of a wharfd that runs is free for the next one.
pub(super) fn check(key: &str, address: SocketAddr) -> anyhow::Result<()> {
    let Err(error) = TcpListener::bind(address) else { return Ok(()) };
    if error.kind() != ErrorKind::AddrInUse {
        bail!("{key}: nothing can listen on {address}: {error}");
    }
    let holder = holder(address);
    let listener = Listener::of(holder);
    if holder.is_some() && listener.may_be_wharfd() {
        return Ok(());
    }
    bail!("{key}: {address} is in use by {listener}: choose another port")
}

/// A process that keeps others from an address, if the kernel shows it here.
fn holder(address: SocketAddr) -> Option<i32> {
    let tables = ["tcp", "tcp6"].map(|table| kernel_text(format!("/proc/self/net/{table}")));
    let tables = tables.map(Result::unwrap_or_default).concat();
    let sockets: Vec<PathBuf> = tables.lines().filter_map(|line| socket(line, address)).collect();
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.find(|pid| has_one(*pid, &sockets).is_ok_and(|has_one| has_one))
}

/// The socket in a line of `/proc/net/tcp`, as a descriptor shows it, if it listens at an address, or at all with its
/// port.
fn socket(line: &str, address: SocketAddr) -> Option<PathBuf> {
    /// `TCP_LISTEN` in the column of states.
    const LISTENS: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    match fields[..] {
        [_, local, _, LISTENS, _, _, _, _, _, inode, ..] if takes(local, address) => {
            Some(format!("socket:[{inode}]").into())
        }
        _ => None,
    }
}

/// Whether a listener at an address, as the kernel shows it, keeps others from another one.
fn takes(local: &str, wanted: SocketAddr) -> bool {
    let Some((ip, port)) = local.split_once(':') else { return false };
    let shown = address(ip).zip(u16::from_str_radix(port, 16).ok());
    shown.is_some_and(|shown| conflict(shown.into(), wanted))
}

/// Whether no two can listen at these addresses.
pub(super) fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    let [one_ip, other_ip] = [one, other].map(|address| address.ip().to_canonical());
    // That of IPv6 is for both, unless the machine has it otherwise.
    let holds_all = |all: IpAddr, other: IpAddr| all.is_unspecified() && (all.is_ipv6() || other.is_ipv4());
    let is_same = one_ip == other_ip || holds_all(one_ip, other_ip) || holds_all(other_ip, one_ip);
    one.port() == other.port() && is_same
}

/// The kernel shows each four bytes of an address as a number of this machine.
fn address(shown: &str) -> Option<IpAddr> {
    let words =
        shown.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(bytes) => Some(bytes.into()),
        Err(_longer) => Some(IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?).to_canonical()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "streaming.address";
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

    #[test]
    fn an_address_of_another_process_is_refused_with_its_name_unless_that_is_a_wharfd() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let other = TcpListener::bind(address).unwrap();
            let taken = other.local_addr().unwrap();
            let refused = check(KEY, taken).unwrap_err().to_string();
            let words = format!("{KEY}: {taken} is in use by ");
            assert!(refused.starts_with(&words), "{refused}");
            assert!(refused.contains(&format!(" (pid {})", std::process::id())), "{refused}");
            drop(other);
            // A program that another test starts has a copy of it until it is executed.
            let mut attempts = 0;
            while let Err(error) = check(KEY, taken) {
                attempts += 1;
                assert!(attempts < 1000, "{error}");
                std::thread::sleep(PAUSE);
            }
        }
        let elsewhere = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
        let here = SocketAddr::new("127.0.0.1".parse().unwrap(), elsewhere.port());
        assert_eq!(holder(here), None, "another address with the same port");
        assert!(takes("00000000:1B59", "127.0.0.1:7001".parse().unwrap()));
        assert!(takes("0000000000000000FFFF00000100007F:1B59", "127.0.0.1:7001".parse().unwrap()));
        assert!(takes("00000000000000000000000000000000:1B59", "127.0.0.1:7001".parse().unwrap()));
        assert!(!takes("00000000:1B59", "[::1]:7001".parse().unwrap()));
        assert!(!takes("0200007F:1B59", "127.0.0.1:7001".parse().unwrap()));
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        std::fs::write("/proc/self/comm", "wharfd").unwrap();
        check(KEY, own.local_addr().unwrap()).unwrap();
        let elsewhere = check(KEY, "192.0.2.77:1".parse().unwrap()).unwrap_err().to_string();
        assert!(
            elsewhere.starts_with("streaming.address: nothing can listen on 192.0.2.77:1"),
            "{elsewhere}"
        );
    }
}
