//! `onlooker NAMESPACE SECRET SECRET DEVICE...`: inspects every process that it sees, as a process in a container
//! could, until the file `/stop` exists. Then it prints how many it saw.
//!
//! It stops a new process at once if it can, to have time to look at the first moments. It prints each finding once: a
//! root, a working directory, a program, or an open or mapped file that belongs to the host, which means on one of the
//! devices (`MAJOR:MINOR`); the host's mount namespace; `SYS_ADMIN`; and a process without a seccomp filter. It
//! searches the memory of a new process for a secret, given in halves so that the searcher itself does not have it.
//! From a socket it goes on to what the process that made the other end has open.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().unwrap_or_default();
    let (namespace, secret) = (next(), next() + &next());
    let host = Host { namespace, secret, devices: arguments.collect() };
    let mut known: BTreeSet<i32> = processes().collect();
    let (mut seen, mut told) = (0, BTreeSet::new());
    while !Path::new("/stop").exists() {
        let now: BTreeSet<i32> = processes().collect();
        for pid in &now {
            let is_new = !known.contains(pid);
            if is_new {
                seen += 1;
                // Not permitted if the process belongs to another user.
                kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap_or_default();
            }
            let mut found = host.found_at(*pid);
            if is_new {
                found.extend(host.found_within(*pid));
            }
            for what in found {
                if told.insert(what.clone()) {
                    writeln!(io::stdout(), "{pid}: {what}")?;
                }
            }
            if is_new {
                kill(Pid::from_raw(*pid), Signal::SIGCONT).unwrap_or_default();
            }
        }
        known = now;
    }
    writeln!(io::stdout(), "seen {seen}")
}

/// Every process except this one.
fn processes() -> impl Iterator<Item = i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
}

/// How many descriptors are examined of a process to which a socket leads.
const DESCRIPTORS: i32 = 64;

/// What belongs to the host.
struct Host {
    namespace: String,
    secret: String,
    devices: BTreeSet<String>,
}

impl Host {
    fn found_at(&self, pid: i32) -> Vec<String> {
        let of = PathBuf::from(format!("/proc/{pid}"));
        let mut found = Vec::new();
        let named = ["root", "cwd", "exe"].map(|name| of.join(name));
        let open = fs::read_dir(of.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in named.into_iter().chain(open) {
            let Ok(status) = fs::metadata(&path) else { continue };
            if self.is_device(status.dev()) {
                found.push(format!("{} is {:?}", path.display(), fs::read_link(&path)));
            }
        }
        if fs::read_link(of.join("ns/mnt")).is_ok_and(|link| link.as_os_str() == &*self.namespace) {
            found.push("is in the host's mount namespace".to_owned());
        }
        let status = fs::read_to_string(of.join("status")).unwrap_or_default();
        found.extend(too_many_rights(&status).map(str::to_owned));
        let maps = fs::read_to_string(of.join("maps")).unwrap_or_default();
        found.extend(maps.lines().filter(|line| self.is_mapped_of_host(line)).map(str::to_owned));
        found
    }

    fn is_device(&self, device: u64) -> bool {
        self.devices.contains(&format!("{}:{}", major(device), minor(device)))
    }

    /// The findings that take long to search for.
    fn found_within(&self, pid: i32) -> Vec<String> {
        let mut found = Vec::new();
        if memory(pid).any(|bytes| contains(&bytes, self.secret.as_bytes())) {
            found.push("the secret is in its memory".to_owned());
        }
        let Ok(process) = wharf_sys::process::open_pidfd(pid) else { return found };
        for number in 0..DESCRIPTORS {
            let Ok(socket) = wharf_sys::process::descriptor_of(process.as_fd(), number) else { continue };
            let Ok(peer) = wharf_sys::socket::peer_process(socket.as_fd()) else { continue };
            found.extend(
                self.found_open(peer.as_fd()).map(|other| format!("socket {number} leads to {other}")),
            );
        }
        found
    }

    /// The open files of a process that are on one of the devices.
    fn found_open(&self, process: BorrowedFd<'_>) -> impl Iterator<Item = String> {
        let files = (0..DESCRIPTORS).filter_map(move |number| {
            let file = wharf_sys::process::descriptor_of(process, number).ok()?;
            let device = nix::sys::stat::fstat(&file).ok()?.st_dev;
            Some(format!("{number} on {}:{}", major(device), minor(device)))
                .filter(|_| self.is_device(device))
        });
        files.collect::<Vec<_>>().into_iter()
    }

    /// Whether a line of `maps` is about a file on one of the devices; its numbers are hexadecimal.
    fn is_mapped_of_host(&self, line: &str) -> bool {
        let mut fields = line.split(' ').skip(3);
        let (Some(device), Some(inode)) = (fields.next(), fields.next()) else { return false };
        let Some((major, minor)) = device.split_once(':') else { return false };
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        inode != "0" && self.devices.contains(&format!("{}:{}", number(major), number(minor)))
    }
}

/// All readable memory of a process, one mapping at a time.
fn memory(pid: i32) -> impl Iterator<Item = Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let memory = fs::File::open(format!("/proc/{pid}/mem"));
    let ranges: Vec<(u64, u64)> = maps.lines().filter_map(range).collect();
    ranges.into_iter().filter_map(move |(start, end)| {
        let mut bytes = vec![0; usize::try_from(end - start).ok()?];
        let count = memory.as_ref().ok()?.read_at(&mut bytes, start).ok()?;
        bytes.truncate(count);
        Some(bytes)
    })
}

/// The addresses in a line of `maps`.
fn range(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The rights in a process's status that no process of the container should have.
fn too_many_rights(status: &str) -> impl Iterator<Item = &str> {
    const SYS_ADMIN: u64 = 1 << 21;
    status.lines().filter(|line| match line.split_once(":\t") {
        Some(("CapPrm" | "CapEff", set)) => {
            u64::from_str_radix(set, 16).is_ok_and(|set| set & SYS_ADMIN != 0)
        }
        Some(("Seccomp", mode)) => mode != "2",
        _ => false,
    })
}
