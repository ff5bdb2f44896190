//! The pod's tmpfs: its shared memory, and the files that the runtime provides to its containers, which may write to
//! them. It is bounded, because it uses the machine's memory, and is removed with the pod.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};
use wharf_cri_api::v1::DnsConfig;
use wharf_planner::{ETC_FILES, Refusal, SHM};
use wharf_sys::fs::{Resolve, open_below_mode};
use wharf_sys::mount::{self, Attributes};
use wharf_types::{Field, Stage as _, StageError};

const STAGE: &str = "making the pod's files";

/// The size of a page on most machines.
const PAGE_BYTES: u64 = 4096;
/// How many files and directories there are at least room for.
const LEAST_FILES: u64 = 16;

/// The content of a pod's tmpfs.
#[derive(Debug)]
pub struct FilesPlan {
    /// The pod's name, in `hostname` and `hosts`.
    pub hostname: String,
    /// The content of `resolv.conf`.
    pub resolv_conf: String,
    /// Whether the pod has its own IPC namespace, and so its own shared memory.
    pub shm: Shm,
    /// The user and the group, as the host has them, whom all of it belongs to if not to root.
    pub owner: Option<(u32, u32)>,
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

impl Shm {
    /// The limits of the tmpfs. When it is full of pages it has as many files as pages; further files would be empty.
    fn limits(self) -> (u64, u64) {
        match self {
            Self::Own { bytes } => (bytes, bytes.div_ceil(PAGE_BYTES).max(LEAST_FILES)),
            Self::Hosts => (1 << 20, LEAST_FILES),
        }
    }
}

/// Makes the file system with all its files, as a detached mount.
///
/// # Errors
/// The kernel refuses a step.
pub fn make(plan: &FilesPlan) -> Result<OwnedFd, StageError> {
    let forbidden = Attributes::NO_SUID.and(Attributes::NO_EXEC).and(Attributes::NO_DEV);
    let (bytes, files) = plan.shm.limits();
    let (size, files) = (bytes.to_string(), files.to_string());
    let options = [("source", SHM), ("mode", "0700"), ("size", &*size), ("nr_inodes", &*files)];
    let root = mount::new_filesystem("tmpfs", &options, forbidden).stage(STAGE)?;
    if plan.shm != Shm::Hosts {
        mkdirat(&root, SHM, Mode::S_IRWXU).stage(STAGE)?;
        // Not when it is created, because the umask would change the mode.
        let mode = Mode::from_bits_truncate(0o1777);
        fchmodat(&root, SHM, mode, FchmodatFlags::FollowSymlink).stage(STAGE)?;
    }
    let [hostname, hosts, resolv_conf] = ETC_FILES;
    write(&root, hostname, &format!("{}\n", plan.hostname))?;
    write(&root, hosts, &hosts_file(&plan.hostname))?;
    write(&root, resolv_conf, &plan.resolv_conf)?;
    if let Some(owner) = plan.owner {
        give(&root, owner).stage(STAGE)?;
    }
    Ok(root)
}

fn give(root: &OwnedFd, (user, group): (u32, u32)) -> nix::Result<()> {
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    for name in ETC_FILES.into_iter().chain([SHM, "."]) {
        match fchownat(root, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // The host's shared memory is not here.
            Err(Errno::ENOENT) if name == SHM => {}
            given => given?,
        }
    }
    Ok(())
}

fn write(root: &OwnedFd, name: &str, content: &str) -> Result<(), StageError> {
    let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let file = open_below_mode(root.as_fd(), name, new, 0o644, Resolve::BeneathNoLinks).stage(STAGE)?;
    let mut file = fs::File::from(file);
    file.write_all(content.as_bytes()).stage(STAGE)?;
    file.set_permissions(fs::Permissions::from_mode(0o644)).stage(STAGE)
}

fn hosts_file(hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n")
}

/// The `resolv.conf` for DNS settings; empty for empty settings.
///
/// # Errors
/// A value would not stay on its line.
pub fn resolv_conf(dns: &DnsConfig) -> Result<String, Refusal> {
    let mut text = String::new();
    let mut line = |keyword: &str, values: &[String]| {
        for value in values {
            // One value must not become two lines; colons are allowed for IPv6 servers and options.
            if Field::new(&value.replace(':', "")).is_none() {
                let problem = format!("{value:?} has a line break or is too long");
                return Err(Refusal::Field { field: "dns_config", problem });
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
pub fn hosts_resolv_conf(network: Network) -> String {
    let hosts = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let reachable = network == Network::Hosts || !is_stub(&hosts);
    let behind = (!reachable).then(|| fs::read_to_string("/run/systemd/resolve/resolv.conf").ok());
    behind.flatten().unwrap_or(hosts)
}

/// The network of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The pod's own.
    Own,
    /// The host's.
    Hosts,
}

/// Whether every server is systemd-resolved's on loopback; systemd-resolved(8) lists both addresses.
fn is_stub(text: &str) -> bool {
    const STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];
    let servers = || text.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim);
    servers().next().is_some()
        && servers().all(|server| server.parse().is_ok_and(|server| STUBS.contains(&server)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_settings_become_lines() {
        let dns = DnsConfig {
            servers: vec!["10.10.10.10".into(), "fd00::1".into()],
            searches: vec!["google.com".into()],
            options: vec!["ndots:8".into()],
        };
        let want = "search google.com\nnameserver 10.10.10.10\nnameserver fd00::1\noptions ndots:8\n";
        assert_eq!(resolv_conf(&dns).unwrap(), want);
        assert_eq!(resolv_conf(&DnsConfig::default()).unwrap(), "");
    }

    #[test]
    fn a_line_break_is_refused() {
        let dns = DnsConfig { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()], ..DnsConfig::default() };
        assert!(resolv_conf(&dns).is_err());
    }

    #[test]
    fn a_stub_is_told_from_servers() {
        assert!(is_stub("# comment\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"));
        for servers in
            ["", "search x\n", "nameserver 10.0.0.1\n", "nameserver 127.0.0.53\nnameserver 10.0.0.1\n"]
        {
            assert!(!is_stub(servers), "{servers}");
        }
    }
}
