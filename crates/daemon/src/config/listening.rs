//! Whether a server can have its address, before it is started.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::bail;

/// Refuses an address on which nothing can listen. That of a wharfd that runs is free for the next one.
pub(super) fn check(key: &str, address: SocketAddr) -> anyhow::Result<()> {
    let Err(error) = TcpListener::bind(address) else { return Ok(()) };
    if error.kind() != ErrorKind::AddrInUse {
        bail!("{key}: nothing can listen on {address}: {error}");
    }
    let (pid, name) = match listener(address.port()) {
        Some((_pid, name)) if name == "wharfd" => return Ok(()),
        Some((pid, name)) => (format!(" (pid {pid})"), name),
        None => (String::new(), "another process".to_owned()),
    };
    bail!("{key}: {address} is in use by {name}{pid}: choose another port")
}

/// The number and the name of a process that listens on a port, if the kernel shows it here.
fn listener(port: u16) -> Option<(i32, String)> {
    let tables = ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/self/net/{table}")));
    let tables = tables.map(Result::unwrap_or_default).concat();
    let sockets: Vec<PathBuf> = tables.lines().filter_map(|line| socket(line, port)).collect();
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    let pid = { pids }.find(|pid: &i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
        targets.any(|target| sockets.contains(&target))
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim_end().to_owned()))
}

/// The socket in a line of `/proc/net/tcp`, as a descriptor shows it, if it listens on a port.
fn socket(line: &str, port: u16) -> Option<PathBuf> {
    /// `TCP_LISTEN` in the column of states.
    const LISTENS: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    match fields[..] {
        [_, local, _, LISTENS, _, _, _, _, _, inode, ..] if local.ends_with(&format!(":{port:04X}")) => {
            Some(format!("socket:[{inode}]").into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "streaming.address";

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
            check(KEY, taken).unwrap();
        }
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
