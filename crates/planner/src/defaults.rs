//! What the node's administrator has chosen for pods and containers whose requests leave it open, and how it is written
//! in the configuration.
//!
//! These values are part of every decision, so they are here and not beside it. Whether this machine has what they name
//! is for the caller to find out.

use std::collections::BTreeMap;
use std::fmt::Display;

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use serde::{Deserialize, Serialize};
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::{Device, SecurityProfile};
pub use wharf_isolation::LogLimits;
use wharf_types::{ContainerPath, HostPath};

use crate::pod::sysctls::{scope, value_problem};
use crate::request::Switch;
use crate::{capabilities, process};

/// How many categories the policies of distributions have.
pub const CATEGORIES_MAX: u32 = 1024;

/// The defaults of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Environment variables, which those of an image or a request override.
    pub environment: Vec<(String, String)>,
    /// The resource limits of every program; those that are not named are the daemon's own.
    pub limits: Vec<PosixRlimit>,
    /// Sysctls of the namespaces that a pod has of its own; those of a request override them.
    pub sysctls: BTreeMap<String, String>,
    /// The seccomp profile of a container whose request has none.
    pub seccomp: Option<SecurityProfile>,
    /// The capabilities that a request adds to and drops from, as the kernel's bits.
    pub capabilities: u64,
    /// Whether programs of a user other than root get them through the inheritable bits of a file.
    pub inheritable: Switch,
    /// The devices of every container, in addition to those of the request.
    pub devices: Vec<Device>,
    /// Whether devices belong to the user and the group that the request names.
    pub users_devices: Switch,
    /// The devices of the machine that a privileged container has.
    pub privileged_devices: PrivilegedDevices,
    /// The most processes and threads of a container.
    pub pids_limit: Option<i64>,
    /// The size of a pod's shared memory, in bytes.
    pub shm_bytes: u64,
    /// The file of the time zone that containers find at `/etc/localtime`; without one they have their image's.
    pub timezone: Option<HostPath>,
    /// Whether root file systems are read-only even if the request does not say so.
    pub read_only: Switch,
    /// How the volumes of images are made.
    pub image_volumes: ImageVolumes,
    /// The annotations of pods that have a meaning: see [`annotations`](crate::annotations).
    pub annotations: Vec<String>,
    /// The limits of containers' logs.
    pub log: LogLimits,
    /// The lowest uid of the host that a pod's user namespace may map.
    pub least_uid: u32,
    /// The lowest gid.
    pub least_gid: u32,
    /// Whether containers get SELinux labels, where the kernel has it.
    pub selinux: Switch,
    /// How many categories there are for the levels of pods.
    pub selinux_categories: u32,
}

/// What a privileged container has of the machine's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrivilegedDevices {
    /// All of them.
    All,
    /// No nodes, but it may make and use them.
    Allowed,
    /// Those of any container.
    Usual,
}

/// How the volumes of images are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageVolumes {
    /// Each is a directory beside the container's layer, which begins with what the image has there.
    Bind,
    /// Nothing.
    Ignore,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            environment: Vec::new(),
            limits: Vec::new(),
            sysctls: BTreeMap::new(),
            seccomp: None,
            capabilities: capabilities::default_set(),
            inheritable: Switch::Off,
            devices: Vec::new(),
            users_devices: Switch::Off,
            privileged_devices: PrivilegedDevices::All,
            pids_limit: None,
            shm_bytes: 64 << 20,
            timezone: None,
            read_only: Switch::Off,
            image_volumes: ImageVolumes::Bind,
            annotations: Vec::new(),
            log: LogLimits::default(),
            least_uid: 0,
            least_gid: 0,
            selinux: Switch::Off,
            selinux_categories: CATEGORIES_MAX,
        }
    }
}

/// A text that is not a valid default.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {problem}")]
pub struct BadDefault {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: String,
}

impl BadDefault {
    pub(crate) fn new(text: &str, problem: impl Display) -> Self {
        Self { text: text.to_owned(), problem: problem.to_string() }
    }
}

/// The variable of a text `NAME=value`.
///
/// # Errors
/// It has no name, or a NUL byte.
pub fn variable(text: &str) -> Result<(String, String), BadDefault> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(BadDefault::new(text, "a variable is written NAME=value")),
    }
}

/// The seccomp profile of a text `unconfined`, `runtime/default`, or the absolute path of a file; `None` for the first.
///
/// # Errors
/// It is none of these.
pub fn seccomp(text: &str) -> Result<Option<SecurityProfile>, BadDefault> {
    let of = |profile_type: ProfileType, path: &str| {
        let (profile_type, localhost_ref) = (profile_type.into(), path.to_owned());
        Some(SecurityProfile { profile_type, localhost_ref, ..SecurityProfile::default() })
    };
    match text {
        "unconfined" => Ok(None),
        "runtime/default" => Ok(of(ProfileType::RuntimeDefault, "")),
        path if path.starts_with('/') => Ok(of(ProfileType::Localhost, path)),
        other => Err(BadDefault::new(other, "it is not unconfined, runtime/default or an absolute path")),
    }
}

/// The sysctl of a text `key=value`.
///
/// # Errors
/// It belongs to no namespace of a pod, or the kernel would not take the value as it is.
pub fn sysctl(text: &str) -> Result<(String, String), BadDefault> {
    let Some((key, value)) = text.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
        return Err(BadDefault::new(text, "a sysctl is written key=value"));
    };
    // A request's key replaces it only if both are spelled the same.
    if key.contains('/') || scope(key).is_none() {
        return Err(BadDefault::new(text, "it is not a sysctl of a pod's namespaces, written with dots"));
    }
    if let Some(problem) = value_problem(key, value) {
        return Err(BadDefault::new(text, format!("{key} {problem}")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The device of a text `/dev/of-the-host[:/dev/in-the-container][:rwm]`.
///
/// # Errors
/// A path or the permissions are malformed.
pub fn device(text: &str) -> Result<Device, BadDefault> {
    let fail = |problem: &dyn Display| BadDefault::new(text, problem);
    let mut parts = text.split(':').peekable();
    let host_path = parts.next().unwrap_or_default().to_owned();
    let inside = parts.next_if(|part| part.starts_with('/'));
    let container_path = inside.map_or_else(|| host_path.clone(), str::to_owned);
    let permissions = parts.next().unwrap_or("rwm").to_owned();
    HostPath::new(&host_path).map_err(|error| fail(&error))?;
    ContainerPath::new(&container_path).map_err(|error| fail(&error))?;
    if parts.next().is_some() || wharf_cgroup::Access::parse(&permissions).is_none() {
        return Err(fail(&"a device is written PATH, PATH:PATH, or PATH:PATH:rwm"));
    }
    Ok(Device { container_path, host_path, permissions })
}

/// The limit of a text `name=both` or `name=soft:hard`, with the names of `ulimit`; -1 and `unlimited` are no limit.
///
/// # Errors
/// There is no such limit, or the soft one is higher than the hard one.
pub fn limit(text: &str) -> Result<PosixRlimit, BadDefault> {
    let form = || BadDefault::new(text, "a limit is written name=number or name=soft:hard");
    let (name, values) = text.split_once('=').ok_or_else(form)?;
    let kind = LIMITS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| {
        let known: Vec<&str> = LIMITS.iter().map(|(name, _)| *name).collect();
        BadDefault::new(text, format!("there is no limit {name:?}, only {}", known.join(", ")))
    })?;
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        number => number.parse().map_err(|_not_a_number| form()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(BadDefault::new(text, "the soft limit is higher than the hard one"));
    }
    let limit = PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build();
    limit.map_err(|error| BadDefault::new(text, error))
}

/// The kernel's number of the resource that is limited.
#[must_use]
pub fn resource(limit: &PosixRlimit) -> u32 {
    process::limit(limit).resource
}

const LIMITS: [(&str, PosixRlimitType); 16] = [
    ("as", PosixRlimitType::RlimitAs),
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    ("nofile", PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("rttime", PosixRlimitType::RlimitRttime),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

/// The bits of capabilities by name.
///
/// # Errors
/// The first name that is not a capability.
pub fn capability_set(names: &[String]) -> Result<u64, BadDefault> {
    let parsed = capabilities::parse(names);
    parsed
        .map(capabilities::Names::bits)
        .map_err(|error| BadDefault::new(&error.name, "it is not a capability"))
}

/// The names of capabilities by their bits.
#[must_use]
pub fn capability_names(bits: u64) -> Vec<String> {
    let names = wharf_types::capability::NAMES.iter().enumerate();
    names.filter(|(number, _)| bits & 1 << number != 0).map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<T: std::fmt::Debug>(parsed: Result<T, BadDefault>) -> String {
        parsed.unwrap_err().to_string()
    }

    #[test]
    fn each_has_its_form() {
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(variable("EMPTY="), Ok(("EMPTY".to_owned(), String::new())));
        let somaxconn = ("net.core.somaxconn".to_owned(), "9".to_owned());
        assert_eq!(sysctl("net.core.somaxconn = 9"), Ok(somaxconn));
        let parts = |text| device(text).map(|it| (it.host_path, it.container_path, it.permissions)).unwrap();
        let all = |host: &str, inside: &str, access: &str| (host.into(), inside.into(), access.into());
        assert_eq!(parts("/dev/fuse"), all("/dev/fuse", "/dev/fuse", "rwm"));
        assert_eq!(parts("/dev/fuse:r"), all("/dev/fuse", "/dev/fuse", "r"));
        assert_eq!(parts("/dev/a:/dev/b"), all("/dev/a", "/dev/b", "rwm"));
        assert_eq!(parts("/dev/a:/dev/b:rw"), all("/dev/a", "/dev/b", "rw"));
        let both = |text| limit(text).map(|limit| (limit.typ(), limit.soft(), limit.hard())).unwrap();
        assert_eq!(both("nofile=1024:4096"), (PosixRlimitType::RlimitNofile, 1024, 4096));
        assert_eq!(both("core=0"), (PosixRlimitType::RlimitCore, 0, 0));
        assert_eq!(both("memlock=8:-1"), (PosixRlimitType::RlimitMemlock, 8, u64::MAX));
        assert_eq!(both("stack=unlimited"), (PosixRlimitType::RlimitStack, u64::MAX, u64::MAX));
    }

    #[test]
    fn what_is_no_default_is_told_with_the_reason() {
        for bad in ["A", "=b", "A=\0"] {
            assert!(words(variable(bad)).contains("NAME=value"), "{bad:?}");
        }
        for (bad, why) in [
            ("net.core.somaxconn", "key=value"),
            ("vm.swappiness=1", "a pod's namespaces"),
            ("net/core/somaxconn=1", "with dots"),
            ("net.core.somaxconn=", "no value"),
            ("kernel.domainname=a/b", "64 bytes"),
            ("net.core.somaxconn=1\n2", "line break"),
        ] {
            assert!(words(sysctl(bad)).contains(why), "{bad:?}");
        }
        for (bad, why) in [
            ("fuse", "not absolute"),
            ("/dev/fuse:x", "is written"),
            ("/dev/a:/dev/b:rw:m", "is written"),
            ("/dev/a:/dev/b:/dev/c", "is written"),
        ] {
            assert!(words(device(bad)).contains(why), "{bad:?}: {}", words(device(bad)));
        }
        for (bad, why) in [
            ("nofile", "name=number"),
            ("nofile=", "name=number"),
            ("nofile=1:2:3", "name=number"),
            ("nofile=2:1", "higher"),
            ("nofiles=1", "only as, core"),
        ] {
            assert!(words(limit(bad)).contains(why), "{bad:?}");
        }
        assert!(words(capability_set(&["CHOWN".to_owned(), "MAGIC".to_owned()])).contains("MAGIC"));
    }

    #[test]
    fn capabilities_have_names_and_bits() {
        let default = Defaults::default().capabilities;
        assert_eq!(capability_set(&capability_names(default)), Ok(default));
        assert_eq!(capability_names(default).len(), 14);
        assert_eq!(capability_set(&["cap_chown".to_owned()]), Ok(1));
    }
}
