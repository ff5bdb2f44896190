//! The facts about this machine on which a container's description depends, gathered once, as data.
//!
//! The planner reads no file, so whatever it may want to know of the host is looked up here before. Something that
//! cannot be read is a fact as well (`Unread`): it only fails a request that depends on it. Nothing is decided here,
//! and one thing is made: a missing directory of the host that a request mounts.

use std::ffi::OsStr;
use std::fs::{DirBuilder, DirEntry, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{SFlag, major, minor};
use wharf_cri_api::v1::{Device, Mount, MountPropagation, PodSandboxConfig};
use wharf_isolation::DeviceNode;
use wharf_planner::seccomp::{choice, runtime_default};
use wharf_planner::{
    HostFacts, HostNames, MountSource, Refusal, Request, SecurityModules, Switch, Unread, names_resolved,
};
use wharf_sys::fs::read_regular;
use wharf_sys::mount::{Propagation, propagation_of};
use wharf_types::failure::named;
use wharf_types::{ContainerPath, Failure, HostPath, OwnerId, Stage as _, StageError};

use crate::apparmor;
use crate::error::Error;

/// The longest `resolv.conf`, in bytes. Pods get a copy of it, in memory.
const RESOLV_CONF_LIMIT_BYTES: usize = 1 << 20;
/// The longest seccomp profile, in bytes.
const PROFILE_LIMIT_BYTES: usize = 1 << 20;
/// How many directories `/dev`, or one below it, may have: there are some for each processor, bus and disk.
const DEVICE_DIRECTORIES_MAX: usize = 16_384;

/// What does not change while the kernel runs.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// This process's bounding set of capabilities.
    pub bounding: u64,
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
    /// Which security modules are enabled.
    pub modules: SecurityModules,
    /// Whether containers can have filters of system calls.
    pub seccomp: Switch,
    /// Whether containers can have cgroup namespaces.
    pub cgroup_namespaces: Switch,
}

impl Machine {
    /// Reads the facts about the machine.
    ///
    /// # Errors
    /// The kernel does not say what this process may do.
    pub fn look() -> Result<Self, StageError> {
        let bounding = wharf_sys::capabilities::bounding().stage("reading this process's capabilities")?;
        let modules = SecurityModules { apparmor: apparmor::is_usable().into() };
        let kernel = kernel_version().stage("reading the kernel's version")?;
        let has_filters = Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
        let seccomp = (has_filters && runtime_default(bounding, kernel).is_ok()).into();
        let cgroup_namespaces = Path::new("/proc/self/ns/cgroup").exists().into();
        Ok(Self { bounding, kernel, modules, seccomp, cgroup_namespaces })
    }
}

/// All facts on which a request depends. A missing directory that is to be mounted is made, because other runtimes do
/// so and workloads rely on it. So the request must already have been checked.
///
/// # Errors
/// The request's seccomp profile is not a valid name or path, or the machine's name or devices cannot be read.
pub fn facts(request: &Request<'_>, machine: &Machine) -> Result<HostFacts, Error> {
    let profile = choice(request.security())?.file().map(|path| seccomp_profile(Path::new(path)));
    let host_devices = if request.wants_host_devices() { host_devices() } else { Ok(Vec::new()) };
    Ok(HostFacts {
        hostname: hostname()?,
        kernel: machine.kernel,
        bounding: machine.bounding,
        devices: request.devices().map(devices).collect(),
        host_devices: host_devices.map_err(|unread| Refusal::unread("privileged", unread))?,
        mounts: request.container.mounts.iter().map(mount_source).collect(),
        seccomp_profile: profile,
        modules: machine.modules,
    })
}

/// What this machine says about names, as far as a pod with this request needs it.
///
/// # Errors
/// It cannot be read.
pub fn names(pod: &PodSandboxConfig) -> Result<HostNames, StageError> {
    let resolv_conf = match pod.dns_config {
        None => read_resolv_conf("/etc/resolv.conf")?.unwrap_or_default(),
        Some(_) => String::new(),
    };
    let behind_resolved = match names_resolved(&resolv_conf) {
        true => read_resolv_conf("/run/systemd/resolve/resolv.conf")?,
        false => None,
    };
    let hostname = if pod.hostname.is_empty() { hostname()? } else { String::new() };
    Ok(HostNames { hostname, resolv_conf, behind_resolved })
}

/// The content of a `resolv.conf`, whose comments may be in any encoding; `None` if there is none.
fn read_resolv_conf(path: impl AsRef<Path>) -> Result<Option<String>, StageError> {
    let content = present(read_regular(path.as_ref(), RESOLV_CONF_LIMIT_BYTES));
    let content = content.stage("reading this machine's resolv.conf")?;
    Ok(content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn hostname() -> Result<String, StageError> {
    let name = nix::unistd::gethostname().stage("reading this machine's hostname")?;
    Ok(name.to_string_lossy().into_owned())
}

fn kernel_version() -> nix::Result<(u32, u32)> {
    let name = nix::sys::utsname::uname()?;
    version(&name.release().to_string_lossy()).ok_or(Errno::EBADMSG)
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// What the path of a mount leads to now. Links are followed once, here.
fn mount_source(mount: &Mount) -> Result<MountSource, Unread> {
    let path = &mount.host_path;
    let source = resolve(path).map_err(|error| unread(&error).of(&format!("host path {path:?}")))?;
    // Before Linux 6.8, the whole mount table must be read for this.
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => Propagation::Private,
        _ => propagation_of(&source)
            .map_err(|error| Unread { kind: error.kind(), problem: error.to_string() })?,
    };
    let source = source.to_str().ok_or_else(|| Unread::invalid("the host path is not UTF-8"))?;
    let path = HostPath::new(source).map_err(Unread::invalid)?;
    Ok(MountSource { path, propagation })
}

/// The path without links. A missing directory is made, as the peers do it. It is the host's from then on: no record
/// says that it is to be removed, and so none has to come first.
fn resolve(path: &str) -> io::Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.starts_with('/') => {
            DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            std::fs::canonicalize(path)
        }
        other => other,
    }
}

/// Why a path that the request names could not be read. A path with a NUL is an error that the kernel never sees.
fn unread(error: &io::Error) -> Unread {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => Unread { kind: named(errno), problem: errno.desc().to_owned() },
        None if error.kind() == ErrorKind::InvalidInput => Unread::invalid(error),
        None => Unread { kind: Failure::kind(error), problem: error.to_string() },
    }
}

/// The nodes for a device in the request: a single one, or those in a directory.
fn devices(asked: &Device) -> Result<Vec<DeviceNode>, Unread> {
    let target = ContainerPath::new(&asked.container_path).map_err(Unread::invalid)?;
    let source = std::fs::canonicalize(&asked.host_path).map_err(|error| unread(&error))?;
    let status = std::fs::metadata(&source).map_err(|error| unread(&error))?;
    if !status.is_dir() {
        let node = node(target, &status).ok_or_else(|| Unread::invalid("is not a device"))?;
        return Ok(vec![node]);
    }
    // As with other runtimes: what other file systems mount there, and the console, are left out.
    const LEFT_OUT: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];
    let is_left_out = |path: &Path| LEFT_OUT.iter().any(|name| path.file_name() == Some(OsStr::new(name)));
    let name = |path: &Path| format!("{target}/{}", path.strip_prefix(&source).unwrap_or(path).display());
    devices_below(&source, is_left_out, name, |error, _path| unread(error))
}

fn entries(directory: &Path) -> io::Result<Vec<DirEntry>> {
    std::fs::read_dir(directory)?.collect()
}

/// What was found; `None` if it is gone since it was listed, or a link leads nowhere.
fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The node; `None` if it is not that of a device, or has an owner whom nobody can be.
fn node(path: ContainerPath, status: &Metadata) -> Option<DeviceNode> {
    let kind = status.mode() & SFlag::S_IFMT.bits();
    if kind != SFlag::S_IFCHR.bits() && kind != SFlag::S_IFBLK.bits() {
        return None;
    }
    Some(DeviceNode {
        path,
        kind,
        major: u32::try_from(major(status.rdev())).ok()?,
        minor: u32::try_from(minor(status.rdev())).ok()?,
        mode: status.mode() & 0o7777,
        uid: OwnerId::new(status.uid())?,
        gid: OwnerId::new(status.gid())?,
    })
}

/// The machine's devices, those in directories of `/dev` included, except the ones that every container has itself.
fn host_devices() -> Result<Vec<DeviceNode>, Unread> {
    const OWN: [&str; 6] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx"];
    let is_own = |path: &Path| OWN.iter().any(|own| path == Path::new(own));
    devices_below(Path::new("/dev"), is_own, |path| path.display().to_string(), of_machine)
}

/// The devices in a directory and in those below it, with their paths in a container. Links are skipped: what one leads
/// to is found at its own place, or was not asked for.
fn devices_below(
    root: &Path,
    is_left_out: impl Fn(&Path) -> bool,
    name: impl Fn(&Path) -> String,
    failed: impl Fn(&io::Error, &Path) -> Unread,
) -> Result<Vec<DeviceNode>, Unread> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    let mut next = 0;
    while let Some(directory) = directories.get(next).cloned() {
        let listed = present(entries(&directory)).map_err(|error| failed(&error, &directory))?;
        next += 1;
        for path in listed.into_iter().flatten().map(|entry| entry.path()).filter(|path| !is_left_out(path)) {
            let status = present(std::fs::symlink_metadata(&path)).map_err(|error| failed(&error, &path))?;
            let Some(status) = status else { continue };
            if status.is_dir() {
                directories.push(path);
                continue;
            }
            let name = ContainerPath::new(&name(&path)).map_err(Unread::invalid)?;
            found.extend(node(name, &status));
        }
        if directories.len() > DEVICE_DIRECTORIES_MAX {
            let problem = format!("{} has more than {DEVICE_DIRECTORIES_MAX} directories", root.display());
            return Err(Unread { kind: wharf_types::ErrorKind::ResourceExhausted, problem });
        }
    }
    Ok(found)
}

/// A failure to read what the request does not name.
fn of_machine(error: &io::Error, path: &Path) -> Unread {
    Unread { kind: Failure::kind(error), problem: format!("{}: {error}", path.display()) }
}

/// A profile's bytes.
fn seccomp_profile(path: &Path) -> Result<Vec<u8>, Unread> {
    read_regular(path, PROFILE_LIMIT_BYTES).map_err(|error| match error.raw_os_error() {
        Some(_) => unread(&error),
        None => Unread::invalid(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let names = super::names(&PodSandboxConfig::default()).unwrap();
        assert_eq!(names.hostname, hostname().unwrap());
        assert_eq!(names.resolv_conf, std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let named = PodSandboxConfig {
            hostname: "web".to_owned(),
            dns_config: Some(Default::default()),
            ..PodSandboxConfig::default()
        };
        assert_eq!(super::names(&named).unwrap(), HostNames::default());
    }

    #[test]
    fn a_resolv_conf_is_missing_or_read_and_nothing_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        assert_eq!(read_resolv_conf(&path).unwrap(), None);
        std::fs::write(&path, b"# B\xfcro\nnameserver 10.0.0.1\n").unwrap();
        assert!(read_resolv_conf(&path).unwrap().unwrap().ends_with("\nnameserver 10.0.0.1\n"));
        assert!(read_resolv_conf(dir.path()).is_err());
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
        let place = |name: &str| dir.path().join(name);
        for directory in ["bus/usb", "pts"] {
            std::fs::create_dir_all(place(directory)).unwrap();
        }
        for name in ["zero", "bus/usb/zero", "pts/zero", "bus/console"] {
            let (kind, mode) = (SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR);
            nix::sys::stat::mknod(&place(name), kind, mode, nix::sys::stat::makedev(1, 5)).unwrap();
        }
        std::os::unix::fs::symlink("zero", place("link")).unwrap();
        std::os::unix::fs::symlink("/dev/net", place("net")).unwrap();
        std::fs::write(place("file"), "").unwrap();
        let all = devices(&asked(dir.path().to_str().unwrap())).unwrap();
        let below = ["/dev/x/zero", "/dev/x/bus/usb/zero"].map(|path| (path.to_owned(), 1, 5));
        assert_eq!(all.iter().map(numbers).collect::<Vec<_>>(), below);
        for bad in ["/dev/no-such", dir.path().join("file").to_str().unwrap(), "/dev/\0"] {
            let error = devices(&asked(bad)).unwrap_err();
            assert_eq!(error.kind, wharf_types::ErrorKind::InvalidArgument, "{error:?}");
        }
    }

    #[test]
    fn the_machines_devices_are_found_in_directories_too() {
        let all = host_devices().unwrap();
        let paths: Vec<_> = all.iter().map(|node| node.path.as_str()).collect();
        assert!(paths.contains(&"/dev/null") && !paths.iter().any(|path| path.starts_with("/dev/pts/")));
    }

    #[test]
    fn a_machine_that_is_short_of_something_is_not_the_requests_fault() {
        use wharf_types::ErrorKind::{Internal, InvalidArgument, ResourceExhausted};
        for (errno, kind) in [
            (Errno::ENOENT, InvalidArgument),
            (Errno::EACCES, InvalidArgument),
            (Errno::EMFILE, ResourceExhausted),
            (Errno::ENOMEM, ResourceExhausted),
            (Errno::ENOSPC, ResourceExhausted),
            (Errno::EIO, Internal),
        ] {
            let error = unread(&io::Error::from(errno)).of("host path \"/x\"");
            assert_eq!((error.kind, error.problem), (kind, format!("host path \"/x\": {}", errno.desc())));
        }
    }

    #[test]
    fn a_kernels_version_is_its_first_two_numbers() {
        for (release, numbers) in [("6.12.5-arch1-1", (6, 12)), ("5.15.0", (5, 15)), ("6.8-rc3+", (6, 8))] {
            assert_eq!(version(release), Some(numbers));
        }
        assert_eq!((version("6"), version("linux")), (None, None));
    }
}
