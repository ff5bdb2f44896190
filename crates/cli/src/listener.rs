//! Who listens on a socket whose file was removed, so that nobody can connect. The kernel still lists the socket under
//! the path that it was bound to.

use std::path::Path;

/// A process that listens on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listener {
    /// `None` if this process may not know.
    pub(crate) pid: Option<i32>,
}

/// Who listens on a socket that was bound to this path.
pub(crate) fn at(path: &Path) -> Option<Listener> {
    let table = std::fs::read("/proc/self/net/unix").ok()?;
    let table = String::from_utf8_lossy(&table);
    let inode = table.lines().find_map(|line| listening_inode(line, path.to_str()?))?;
    Some(Listener { pid: holder(&format!("socket:[{inode}]")) })
}

/// The number of the socket in a line of `/proc/net/unix`, if it listens and has this path.
fn listening_inode<'a>(line: &'a str, path: &str) -> Option<&'a str> {
    /// `__SO_ACCEPTCON` in the column of flags.
    const LISTENS: &str = "00010000";
    let fields: Vec<&str> = line.strip_suffix(path)?.split_ascii_whitespace().collect();
    match fields[..] {
        [_address, _references, _protocol, LISTENS, _type, _state, inode] => Some(inode),
        _ => None,
    }
}

/// A process that has a descriptor of this socket. Without root's rights, one sees only one's own.
fn holder(socket: &str) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let has_it = |pid: &i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
        targets.any(|target| target.as_os_str() == socket)
    };
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).find(has_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_listens_at_the_whole_path_counts() {
        let row = "0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/wharf/wharf.sock";
        assert_eq!(listening_inode(row, "/run/wharf/wharf.sock"), Some("12345"));
        let connected = row.replace("00010000 0001 01", "00000000 0001 03");
        for (row, path) in [(row, "/wharf.sock"), (row, "/run/wharf"), (&connected, "/run/wharf/wharf.sock")]
        {
            assert_eq!(listening_inode(row, path), None, "{row} {path}");
        }
    }
}
