//! `onlooker NAMESPACE DEVICE...`: looks at every process that it sees, as one in a container could, until there is a file
//! `/stop`; then tells how many it saw.
//!
//! A process that appears is stopped at once if that is possible, so that there is time to look at its first moments. What
//! is of the host is said once: a root, a working directory, a program, an open or a mapped file on one of the devices
//! (`MAJOR:MINOR`), or the mount namespace; and so is `SYS_ADMIN`, or a process without a seccomp filter.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{major, minor};
use nix::unistd::Pid;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let host = Host { namespace: arguments.next().unwrap_or_default(), devices: arguments.collect() };
    let mut known: BTreeSet<i32> = processes().collect();
    let (mut seen, mut told) = (0, BTreeSet::new());
    while !Path::new("/stop").exists() {
        let now: BTreeSet<i32> = processes().collect();
        for pid in &now {
            let is_new = !known.contains(pid);
            if is_new {
                seen += 1;
                // Not allowed where the process is another user's.
                kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap_or_default();
            }
            for what in host.found_at(*pid) {
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

/// Every process but this one.
fn processes() -> impl Iterator<Item = i32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
}

/// What is the host's.
struct Host {
    namespace: String,
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
            if self.devices.contains(&format!("{}:{}", major(status.dev()), minor(status.dev()))) {
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

    /// Whether a line of `maps` is of a file on one of the devices; its numbers are hexadecimal there.
    fn is_mapped_of_host(&self, line: &str) -> bool {
        let mut fields = line.split(' ').skip(3);
        let (Some(device), Some(inode)) = (fields.next(), fields.next()) else { return false };
        let Some((major, minor)) = device.split_once(':') else { return false };
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        inode != "0" && self.devices.contains(&format!("{}:{}", number(major), number(minor)))
    }
}

/// What a process has that no process of the container is to have, by its status.
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
