//! Finds a process that may be wharfd when its socket does not answer.
//!
//! The kernel lists a socket whose file was removed under the path that it was bound to. It lists those of everybody,
//! also of users who have bound them in a mount namespace of their own: neither these nor a process that merely calls
//! itself wharfd counts.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::is_zombie;

/// The process that listens on a socket that was bound to this path, if it may be wharfd.
pub(crate) fn at(path: &Path) -> Option<i32> {
    let table = std::fs::read("/proc/self/net/unix").ok()?;
    let table = String::from_utf8_lossy(&table);
    let path = path.to_str()?;
    let sockets: Vec<String> =
        table.lines().filter_map(|line| Some(format!("socket:[{}]", listening_inode(line, path)?))).collect();
    processes().find(|&pid| is_ours(&of(pid)) && has_one(pid, &sockets))
}

/// A wharfd that runs, which need not have made its socket yet, or one that has nothing but threads that cannot end.
pub(crate) fn running() -> Option<i32> {
    let named = || processes().filter(|pid| is_named(&of(*pid), "wharfd"));
    let runs = |pid: &i32| runs_daemon(&of(*pid));
    named().find(runs).or_else(|| named().find(|pid| is_zombie(*pid) && keeps_thread(&of(*pid))))
}

/// The directory of a process in procfs.
fn of(pid: i32) -> PathBuf {
    format!("/proc/{pid}").into()
}

/// Whether a process has this name, which it may have chosen.
pub(crate) fn is_named(process: &Path, name: &str) -> bool {
    std::fs::read(process.join("comm")).is_ok_and(|found| found.trim_ascii_end() == name.as_bytes())
}

/// Whether a process is a daemon. Its command line is looked at last: it is in the process's memory, for which the
/// kernel waits as long as a container's process likes.
fn runs_daemon(process: &Path) -> bool {
    is_ours(process) && is_daemon(&std::fs::read(process.join("cmdline")).unwrap_or_default())
}

/// Whether a process whose first thread has ended has another one, which the kernel waits for. The first one has no
/// namespaces any more.
fn keeps_thread(process: &Path) -> bool {
    let threads = std::fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| is_ours(&thread.path()))
}

/// Whether a process with this command line is a daemon, not one of the commands `wharfd clean` and `wharfd config`.
fn is_daemon(command: &[u8]) -> bool {
    let mut words = command.split(|&byte| byte == 0);
    let name = words.next().unwrap_or_default().rsplit(|&byte| byte == b'/').next();
    name == Some(b"wharfd") && !words.any(|word| word == b"clean" || word == b"config")
}

/// Whether a process or thread, by its directory of procfs, is root's, and sees the files that this one sees.
pub(crate) fn is_ours(task: &Path) -> bool {
    let is_roots = task.metadata().is_ok_and(|task| task.uid() == 0);
    is_roots && shares_with(task, "mnt") == Some(true)
}

/// Whether a process is in the namespace of this kind that this thread is in; `None` if that cannot be found out.
pub(crate) fn shares(pid: i32, kind: &str) -> Option<bool> {
    shares_with(&of(pid), kind)
}

fn shares_with(task: &Path, kind: &str) -> Option<bool> {
    // A thread, not its process, has the namespaces.
    let namespace = |task: &Path| std::fs::read_link(task.join("ns").join(kind)).ok();
    Some(namespace(Path::new("/proc/thread-self"))? == namespace(task)?)
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

pub(crate) fn processes() -> impl Iterator<Item = i32> {
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

    /// Files in place of those of procfs; opening a FIFO waits as long as what it stands for keeps the kernel waiting.
    #[test]
    fn the_memory_of_a_containers_process_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("ns")).unwrap();
        std::os::unix::fs::symlink("mnt:[1]", dir.path().join("ns/mnt")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("cmdline"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let process = dir.path().to_owned();
        std::thread::spawn(move || tell.send(runs_daemon(&process)));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(5)), Ok(false));
        std::fs::remove_file(dir.path().join("ns/mnt")).unwrap();
        std::os::unix::fs::symlink(
            std::fs::read_link("/proc/thread-self/ns/mnt").unwrap(),
            dir.path().join("ns/mnt"),
        )
        .unwrap();
        std::fs::remove_file(dir.path().join("cmdline")).unwrap();
        std::fs::write(dir.path().join("cmdline"), "wharfd\0").unwrap();
        assert!(runs_daemon(dir.path()));
    }

    #[test]
    fn a_process_that_only_a_thread_keeps_is_known_by_that_thread() {
        let dir = tempfile::tempdir().unwrap();
        let thread = |name: &str| dir.path().join("task").join(name).join("ns");
        std::fs::create_dir_all(thread("7")).unwrap();
        assert!(!keeps_thread(dir.path()), "the first one has ended");
        std::fs::create_dir_all(thread("8")).unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        std::os::unix::fs::symlink(own, thread("8").join("mnt")).unwrap();
        assert!(keeps_thread(dir.path()));
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
