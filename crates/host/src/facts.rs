//! The facts about this machine on which a container's description depends, gathered once, as data.

use std::fs::DirBuilder;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, major, minor};
use wharf_cri_api::v1::{Device, Mount, MountPropagation, PodSandboxConfig};
use wharf_isolation::DeviceNode;
use wharf_planner::seccomp::{Choice, choice};
use wharf_planner::{HostFacts, HostNames, MountSource, Refusal, Request, SecurityModules, names_resolved};
use wharf_sys::mount::{Propagation, propagation_of};
use wharf_types::{ContainerPath, HostPath, Stage as _, StageError};

/// The longest seccomp profile, in bytes.
const PROFILE_LIMIT_BYTES: u64 = 1 << 20;
/// How many directories of `/dev` are searched.
const DEVICE_DIRECTORIES_MAX: usize = 64;

/// What does not change while the kernel runs.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// This process's bounding set of capabilities.
    pub bounding: u64,
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// Which security modules are enabled.
    pub modules: SecurityModules,
}

impl Machine {
    /// Reads the facts about the machine.
    ///
    /// # Errors
    /// The kernel does not say what this process may do.
    pub fn look() -> Result<Self, StageError> {
        let bounding = wharf_sys::capabilities::bounding().stage("reading this process's capabilities")?;
        Ok(Self { bounding, kernel: kernel_version(), modules: security_modules() })
    }
}

/// All facts on which a request depends. A missing directory that is to be mounted is made, because other runtimes do
/// so and workloads rely on it. So the request must already have been checked.
///
/// # Errors
/// The request's seccomp profile is not a valid name or path.
pub fn facts(request: &Request<'_>, machine: &Machine) -> Result<HostFacts, Refusal> {
    let profile = match choice(request.security())? {
        Choice::Localhost(path) => Some(seccomp_profile(Path::new(path))),
        Choice::RuntimeDefault | Choice::Unconfined => None,
    };
    let host_devices = if request.wants_host_devices() { host_devices() } else { Vec::new() };
    Ok(HostFacts {
        hostname: hostname(),
        kernel: machine.kernel,
        bounding: machine.bounding,
        devices: request.devices().map(devices).collect(),
        host_devices,
        mounts: request.container.mounts.iter().map(mount_source).collect(),
        seccomp_profile: profile.map(|read| read.map_err(|error| error.to_string())),
    })
}

/// What this machine says about names, as far as a pod with this request needs it.
#[must_use]
pub fn names(pod: &PodSandboxConfig) -> HostNames {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let resolv_conf = if pod.dns_config.is_none() { read("/etc/resolv.conf") } else { String::new() };
    let behind_resolved = names_resolved(&resolv_conf)
        .then(|| std::fs::read_to_string("/run/systemd/resolve/resolv.conf").ok())
        .flatten();
    let hostname = if pod.hostname.is_empty() { hostname() } else { String::new() };
    HostNames { hostname, resolv_conf, behind_resolved }
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(5), numbers.next().unwrap_or(15))
}

/// The security modules that the kernel has enabled.
fn security_modules() -> SecurityModules {
    let apparmor = std::fs::read("/sys/module/apparmor/parameters/enabled");
    // The kernel has this file system only if SELinux was not disabled at boot.
    let filesystems = std::fs::read_to_string("/proc/filesystems");
    SecurityModules {
        apparmor: apparmor.is_ok_and(|enabled| enabled.starts_with(b"Y")).into(),
        selinux: filesystems.is_ok_and(|all| all.lines().any(|line| line.ends_with("\tselinuxfs"))).into(),
    }
}

/// What the path of a mount leads to now. Links are followed once, here.
fn mount_source(mount: &Mount) -> Result<MountSource, String> {
    let path = &mount.host_path;
    let source = resolve(path).map_err(|error| format!("host path {path:?}: {error}"))?;
    // Before Linux 6.8, the whole mount table must be read for this.
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => Propagation::Private,
        _ => propagation_of(&source).map_err(|error| error.to_string())?,
    };
    let source = source.to_str().ok_or("the host path is not UTF-8")?;
    let path = HostPath::new(source).map_err(|error| error.to_string())?;
    Ok(MountSource { path, propagation })
}

fn resolve(path: &str) -> std::io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.starts_with('/') => {
            DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            std::fs::canonicalize(path)
        }
        other => other,
    }
}

/// The nodes for a device in the request: a single one, or those in a directory.
fn devices(asked: &Device) -> Result<Vec<DeviceNode>, String> {
    let target = ContainerPath::new(&asked.container_path).map_err(|error| error.to_string())?;
    let source = std::fs::canonicalize(&asked.host_path).map_err(|error| error.to_string())?;
    if !source.is_dir() {
        return node(target, &source).map(|node| vec![node]).ok_or_else(|| "is not a device".to_owned());
    }
    let entries = std::fs::read_dir(&source).map_err(|error| error.to_string())?;
    let nodes = entries.flatten().filter_map(|entry| {
        let name = ContainerPath::new(&format!("{target}/{}", entry.file_name().to_string_lossy())).ok()?;
        node(name, &entry.path())
    });
    Ok(nodes.collect())
}

fn node(path: ContainerPath, of: &Path) -> Option<DeviceNode> {
    let stat = std::fs::metadata(of).ok()?;
    let kind = stat.mode() & SFlag::S_IFMT.bits();
    if kind != SFlag::S_IFCHR.bits() && kind != SFlag::S_IFBLK.bits() {
        return None;
    }
    Some(DeviceNode {
        path,
        kind,
        major: u32::try_from(major(stat.rdev())).ok()?,
        minor: u32::try_from(minor(stat.rdev())).ok()?,
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
    })
}

/// The machine's devices, those in directories of `/dev` included, except the ones that every container has itself.
fn host_devices() -> Vec<DeviceNode> {
    const OWN: [&str; 6] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"];
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from("/dev")];
    while let Some(directory) = directories.pop() {
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| !OWN.iter().any(|own| entry.path() == Path::new(own))) {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && directories.len() < DEVICE_DIRECTORIES_MAX => {
                    directories.push(path);
                }
                Ok(kind) if !kind.is_dir() && !kind.is_symlink() => {
                    let name = ContainerPath::new(&path.to_string_lossy());
                    found.extend(name.ok().and_then(|name| node(name, &path)));
                }
                _ => {}
            }
        }
    }
    found
}

/// A profile's bytes. A file that is not regular may have no end, or block, so it is not read.
fn seccomp_profile(path: &Path) -> std::io::Result<Vec<u8>> {
    let without_waiting = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(without_waiting).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut json = Vec::new();
    file.take(PROFILE_LIMIT_BYTES + 1).read_to_end(&mut json)?;
    if json.len() as u64 > PROFILE_LIMIT_BYTES {
        return Err(std::io::Error::other("it is longer than 1 MiB"));
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &Path) -> String {
        seccomp_profile(path).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, Path::new("/dev/zero"), dir.path()] {
            assert!(problem(path).contains("not a regular file"), "{}: {}", path.display(), problem(path));
        }
    }

    #[test]
    fn a_profile_that_is_longer_than_its_size_says_is_cut_off() {
        // Its size is reported as 0.
        assert!(problem(Path::new("/proc/kallsyms")).contains("longer than 1 MiB"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile");
        std::fs::write(&path, vec![b' '; 1 << 20]).unwrap();
        assert_eq!(seccomp_profile(&path).unwrap().len(), 1 << 20);
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(problem(&path).contains("longer than 1 MiB"));
    }

    #[test]
    fn a_missing_directory_is_made_and_a_bad_path_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("a/b");
        assert_eq!(resolve(missing.to_str().unwrap()).unwrap(), missing.canonicalize().unwrap());
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        for bad in ["file/below", "link", "link/below"] {
            assert!(resolve(dir.path().join(bad).to_str().unwrap()).is_err(), "{bad}");
        }
        assert!(!dir.path().join("nowhere").exists());
        assert!(resolve("relative").is_err());
        assert!(resolve("").is_err());
    }

    #[test]
    fn names_are_read_for_a_pod_that_has_none() {
        let names = super::names(&PodSandboxConfig::default());
        assert_eq!(names.hostname, hostname());
        assert_eq!(names.resolv_conf, std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let named = PodSandboxConfig {
            hostname: "web".to_owned(),
            dns_config: Some(Default::default()),
            ..PodSandboxConfig::default()
        };
        assert_eq!(super::names(&named), HostNames::default());
    }

    #[test]
    fn a_device_is_a_node_or_a_directory_of_them() {
        let asked = |host: &str| Device {
            host_path: host.to_owned(),
            container_path: "/dev/x".to_owned(),
            permissions: "rw".to_owned(),
        };
        let null = devices(&asked("/dev/null")).unwrap();
        let numbers = |node: &DeviceNode| (node.path.to_string(), node.major, node.minor);
        assert_eq!(null.iter().map(numbers).collect::<Vec<_>>(), [("/dev/x".to_owned(), 1, 3)]);
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("zero")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let all = devices(&asked(dir.path().to_str().unwrap())).unwrap();
        assert_eq!(all.iter().map(numbers).collect::<Vec<_>>(), [("/dev/x/zero".to_owned(), 1, 5)]);
        for bad in ["/dev/no-such", dir.path().join("file").to_str().unwrap()] {
            assert!(devices(&asked(bad)).is_err(), "{bad}");
        }
    }
}
