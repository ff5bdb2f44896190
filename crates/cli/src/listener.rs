//! Finds a process that may be wharfd when its socket does not answer.
//!
//! The kernel lists a socket whose file was removed under the path that it was bound to. It lists those of everybody,
//! also of users who have bound them in a mount namespace of their own: neither these nor a process that merely calls
//! itself wharfd counts.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The process that listens on a socket that was bound to this path, if it may be wharfd.
pub(crate) fn at(path: &Path) -> Option<i32> {
    let table = std::fs::read("/proc/self/net/unix").ok()?;
    let table = String::from_utf8_lossy(&table);
    let path = path.to_str()?;
    let sockets: Vec<String> =
        table.lines().filter_map(|line| Some(format!("socket:[{}]", listening_inode(line, path)?))).collect();
    processes().find(|&pid| may_be_wharfd(pid) && has_one(pid, &sockets))
}

/// A wharfd that runs. It need not have made its socket yet.
pub(crate) fn running() -> Option<i32> {
    processes().find(|&pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_daemon(&command) && may_be_wharfd(pid)
    })
}

/// Whether a process with this command line is a daemon, not one of the commands `wharfd clean` and `wharfd config`.
fn is_daemon(command: &[u8]) -> bool {
    let mut words = command.split(|&byte| byte == 0);
    let name = words.next().unwrap_or_default().rsplit(|&byte| byte == b'/').next();
    name == Some(b"wharfd") && !words.any(|word| word == b"clean" || word == b"config")
}

/// Whether a process is root's, and sees the files that this one sees.
fn may_be_wharfd(pid: i32) -> bool {
    let is_roots = std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == 0);
    is_roots && shares(pid, "mnt") == Some(true)
}

/// Whether a process is in the namespace of this kind that this thread is in; `None` if that cannot be found out.
pub(crate) fn shares(pid: i32, kind: &str) -> Option<bool> {
    // A thread, not its process, has the namespaces.
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).ok();
    Some(namespace("thread-self")? == namespace(&pid.to_string())?)
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

/// Whether a process has a descriptor of one of these sockets. Without root's rights, one sees only one's own.
fn has_one(pid: i32, sockets: &[String]) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok());
    targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

fn processes() -> impl Iterator<Item = i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok())
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

    #[test]
    fn a_socket_that_was_bound_where_other_files_are_seen_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(at(&path), Some(own), "these tests need root");
        let elsewhere = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            at(&path)
        };
        assert_eq!(std::thread::scope(|scope| scope.spawn(elsewhere).join()).unwrap(), None);
    }

    #[test]
    fn a_daemon_is_known_by_its_command_line() {
        for line in [&b"wharfd\0"[..], b"/usr/bin/wharfd\0--config\0/etc/wharf/config.toml\0"] {
            assert!(is_daemon(line), "{line:?}");
        }
        for line in
            [&b""[..], b"wharf\0ps\0", b"/bin/wharfd\0clean\0--force\0", b"/bin/wharfd\0config\0check\0"]
        {
            assert!(!is_daemon(line), "{line:?}");
        }
    }
}
