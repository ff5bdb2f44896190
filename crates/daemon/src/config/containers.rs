//! The section `[containers]`: what pods and containers get where their requests leave it open.
#![expect(clippy::disallowed_methods, reason = "it is read at the start, or where `spawn_blocking` leads")]

use std::ops::RangeInclusive;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use wharf_planner::defaults::{self, BadDefault, ImageVolumes, LogLimits, PrivilegedDevices};
use wharf_planner::{Defaults, annotations};
use wharf_types::HostPath;

/// The least memory that a pod's files need, in MiB.
const SHM_MIB_MIN: u64 = 1;
/// How long the text of a record may be: the supervisor holds back as much of each stream.
const LOG_LINE_BYTES: RangeInclusive<u32> = 1024..=1 << 20;
/// The fewest categories: one pair, for one pod.
const CATEGORIES_MIN: u32 = 2;
/// Where time zones are, by their names.
const ZONES: &str = "/usr/share/zoneinfo";
/// The longest has a few KiB.
const ZONE_LIMIT_BYTES: usize = 1 << 20;

/// The defaults of pods and containers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub(crate) struct Containers {
    /// Environment variables, `NAME=value`.
    pub(crate) default_env: Vec<String>,
    /// Resource limits, `name=soft:hard`.
    pub(crate) default_ulimits: Vec<String>,
    /// Sysctls of a pod's namespaces, `key=value`.
    pub(crate) default_sysctls: Vec<String>,
    /// The seccomp profile of a request that has none: `unconfined`, `runtime/default` or the path of a file.
    pub(crate) default_seccomp: String,
    /// Capabilities that a request adds to and drops from.
    pub(crate) default_capabilities: Vec<String>,
    /// Whether capabilities are inheritable, too.
    pub(crate) add_inheritable_capabilities: bool,
    /// Devices of every container, `/dev/of-the-host[:/dev/in-the-container][:rwm]`.
    pub(crate) additional_devices: Vec<String>,
    /// Whether devices belong to the user and the group of the request.
    pub(crate) device_ownership_from_security_context: bool,
    /// What privileged containers have of the machine's devices: `all`, `allowed` or `usual`.
    pub(crate) privileged_devices: PrivilegedDevices,
    /// The most processes and threads of a container; 0 is no limit.
    pub(crate) pids_limit: u32,
    /// The size of a pod's shared memory in MiB.
    pub(crate) shm_mib: u64,
    /// A time zone such as `Europe/Berlin`, or `Local` for this machine's; empty for the image's.
    pub(crate) timezone: String,
    /// Whether root file systems are read-only.
    pub(crate) read_only: bool,
    /// The volumes of images: `bind` or `ignore`.
    pub(crate) image_volumes: ImageVolumes,
    /// The annotations of pods that have a meaning.
    pub(crate) allowed_annotations: Vec<String>,
    /// The longest text of one record of a log, in bytes.
    pub(crate) log_line_bytes: u32,
    /// The size from which a log begins anew, in MiB; 0 is no limit.
    pub(crate) log_size_max_mib: u64,
    /// The least of the host's users for a pod's user namespace.
    pub(crate) minimum_mappable_uid: u32,
    /// The least of the host's groups for it.
    pub(crate) minimum_mappable_gid: u32,
    /// Whether containers get SELinux labels.
    pub(crate) selinux: bool,
    /// How many categories the levels of pods are made of.
    pub(crate) selinux_category_range: u32,
}

impl Default for Containers {
    fn default() -> Self {
        let defaults = Defaults::default();
        Self {
            default_env: Vec::new(),
            default_ulimits: Vec::new(),
            default_sysctls: Vec::new(),
            default_seccomp: "unconfined".to_owned(),
            default_capabilities: defaults::capability_names(defaults.capabilities),
            add_inheritable_capabilities: false,
            additional_devices: Vec::new(),
            device_ownership_from_security_context: false,
            privileged_devices: defaults.privileged_devices,
            pids_limit: 0,
            shm_mib: defaults.shm_bytes >> 20,
            timezone: String::new(),
            read_only: false,
            image_volumes: defaults.image_volumes,
            allowed_annotations: Vec::new(),
            log_line_bytes: defaults.log.line_bytes,
            log_size_max_mib: defaults.log.file_bytes >> 20,
            minimum_mappable_uid: defaults.least_uid,
            minimum_mappable_gid: defaults.least_gid,
            selinux: false,
            selinux_category_range: defaults.selinux_categories,
        }
    }
}

impl Containers {
    /// The defaults, which this machine can fulfil.
    pub(super) fn defaults(&self) -> anyhow::Result<Defaults> {
        ensure!(
            (SHM_MIB_MIN..=u64::MAX >> 20).contains(&self.shm_mib),
            "containers.shm_mib: {} is out of range",
            self.shm_mib
        );
        ensure!(
            LOG_LINE_BYTES.contains(&self.log_line_bytes),
            "containers.log_line_bytes: {} is not from {} to {}",
            self.log_line_bytes,
            LOG_LINE_BYTES.start(),
            LOG_LINE_BYTES.end()
        );
        ensure!(
            (CATEGORIES_MIN..=defaults::CATEGORIES_MAX).contains(&self.selinux_category_range),
            "containers.selinux_category_range: {} is not from {CATEGORIES_MIN} to {}",
            self.selinux_category_range,
            defaults::CATEGORIES_MAX
        );
        let limits = each(&self.default_ulimits, defaults::limit).context("containers.default_ulimits")?;
        let mut hards = limits.iter().map(|limit| (defaults::resource(limit), limit.hard()));
        hards.try_for_each(within_own).context("containers.default_ulimits")?;
        let devices = each(&self.additional_devices, defaults::device);
        let devices = devices.context("containers.additional_devices")?;
        let mut paths = devices.iter().map(|device| Path::new(&device.host_path));
        paths.try_for_each(is_there).context("containers.additional_devices")?;
        let sysctls = each(&self.default_sysctls, defaults::sysctl).context("containers.default_sysctls")?;
        let capabilities = defaults::capability_set(&self.default_capabilities);
        let seccomp = defaults::seccomp(&self.default_seccomp).context("containers.default_seccomp")?;
        let file = seccomp.as_ref().map(|profile| Path::new(&profile.localhost_ref));
        let file = file.filter(|path| !path.as_os_str().is_empty());
        file.map(is_profile).transpose().context("containers.default_seccomp")?;
        Ok(Defaults {
            environment: each(&self.default_env, defaults::variable).context("containers.default_env")?,
            limits,
            sysctls: sysctls.into_iter().collect(),
            seccomp,
            capabilities: capabilities.context("containers.default_capabilities")?,
            inheritable: self.add_inheritable_capabilities.into(),
            devices,
            users_devices: self.device_ownership_from_security_context.into(),
            privileged_devices: self.privileged_devices,
            pids_limit: (self.pids_limit > 0).then_some(self.pids_limit.into()),
            shm_bytes: self.shm_mib << 20,
            timezone: zone(&self.timezone).context("containers.timezone")?,
            read_only: self.read_only.into(),
            image_volumes: self.image_volumes,
            annotations: each(&self.allowed_annotations, annotations::allowed)
                .context("containers.allowed_annotations")?,
            log: LogLimits {
                line_bytes: self.log_line_bytes,
                file_bytes: self.log_size_max_mib.saturating_mul(1 << 20),
            },
            least_uid: self.minimum_mappable_uid,
            least_gid: self.minimum_mappable_gid,
            selinux: self.selinux.into(),
            selinux_categories: self.selinux_category_range,
        })
    }
}

fn each<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, BadDefault>) -> Result<Vec<T>, BadDefault> {
    texts.iter().map(|text| parse(text)).collect()
}

/// A container could raise a limit beyond this process's own only as the host's root user with a capability that this
/// process may lack.
fn within_own((resource, hard): (u32, u64)) -> anyhow::Result<()> {
    let own = wharf_sys::limits::hard(resource).context("reading this process's limits")?;
    ensure!(hard <= own, "{hard} is more than wharfd's own hard limit, {own}: raise that in its unit");
    Ok(())
}

/// Whether there is a device, or a directory that can have some.
fn is_there(path: &Path) -> anyhow::Result<()> {
    let of = std::fs::metadata(path).with_context(|| path.display().to_string())?.file_type();
    let is_device = of.is_char_device() || of.is_block_device() || of.is_dir();
    ensure!(is_device, "{}: it is not a device", path.display());
    Ok(())
}

/// Whether a file is a seccomp profile.
fn is_profile(path: &Path) -> anyhow::Result<()> {
    let file = || path.display().to_string();
    let content = wharf_sys::fs::read_regular(path, wharf_images::PROFILE_LIMIT_BYTES).with_context(file)?;
    wharf_planner::seccomp::Profile::parse(&content).with_context(file).map(drop)
}

/// The file of a time zone.
fn zone(name: &str) -> anyhow::Result<Option<HostPath>> {
    let path = match name {
        "" => return Ok(None),
        "Local" => PathBuf::from("/etc/localtime"),
        name if name.split('/').any(|part| matches!(part, "" | "." | "..")) => {
            bail!("{name:?} is not a name such as Europe/Berlin")
        }
        name => Path::new(ZONES).join(name),
    };
    let file = || path.display().to_string();
    let path = path.canonicalize().with_context(file)?;
    let content = wharf_sys::fs::read_regular(&path, ZONE_LIMIT_BYTES).with_context(file)?;
    ensure!(content.starts_with(b"TZif"), "{}: it is not the file of a time zone", path.display());
    let path = path.to_str().with_context(file)?;
    Ok(Some(HostPath::new(path)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Containers)) -> String {
        let mut containers = Containers::default();
        change(&mut containers);
        format!("{:#}", containers.defaults().unwrap_err())
    }

    #[test]
    fn without_a_word_they_are_wharfs_own() {
        assert_eq!(Containers::default().defaults().unwrap(), Defaults::default());
    }

    #[test]
    fn each_key_has_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let profile = dir.path().join("p.json");
        std::fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
        let profile = profile.display();
        let text = format!(
            r#"
            default_env = ["A=b"]
            default_ulimits = ["core=0"]
            default_sysctls = ["net.core.somaxconn=9"]
            default_seccomp = "{profile}"
            default_capabilities = ["CHOWN"]
            add_inheritable_capabilities = true
            additional_devices = ["/dev/null:/dev/nothing:r"]
            device_ownership_from_security_context = true
            privileged_devices = "usual"
            pids_limit = 100
            shm_mib = 1
            read_only = true
            image_volumes = "ignore"
            allowed_annotations = ["umask.crio.io"]
            log_line_bytes = 2048
            log_size_max_mib = 5
            minimum_mappable_uid = 65536
            minimum_mappable_gid = 65537
            selinux = true
            selinux_category_range = 512
        "#
        );
        let defaults = toml::from_str::<Containers>(&text).unwrap().defaults().unwrap();
        assert_eq!(defaults.environment, [("A".to_owned(), "b".to_owned())]);
        assert_eq!((defaults.limits[0].hard(), &*defaults.sysctls["net.core.somaxconn"]), (0, "9"));
        assert_eq!(defaults.seccomp.unwrap().localhost_ref, profile.to_string());
        assert_eq!((defaults.capabilities, defaults.inheritable), (1, true.into()));
        assert_eq!(defaults.devices[0].container_path, "/dev/nothing");
        assert_eq!(defaults.users_devices, true.into());
        assert_eq!(defaults.privileged_devices, PrivilegedDevices::Usual);
        assert_eq!((defaults.pids_limit, defaults.shm_bytes), (Some(100), 1 << 20));
        assert_eq!((defaults.read_only, defaults.image_volumes), (true.into(), ImageVolumes::Ignore));
        assert_eq!(defaults.annotations, ["umask.crio.io"]);
        assert_eq!((defaults.log.line_bytes, defaults.log.file_bytes), (2048, 5 << 20));
        assert_eq!((defaults.least_uid, defaults.least_gid), (65536, 65537));
        assert_eq!((defaults.selinux, defaults.selinux_categories), (true.into(), 512));
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_with_its_key() {
        let one = |text: &str| vec![text.to_owned()];
        let rows = [
            (refused(|of| of.default_env = one("A")), ["default_env", "NAME=value"]),
            (refused(|of| of.default_ulimits = one("x=1")), ["default_ulimits", "no limit \"x\""]),
            (
                refused(|of| of.default_sysctls = one("vm.swappiness=1")),
                ["default_sysctls", "a pod's namespaces"],
            ),
            (refused(|of| of.default_capabilities = one("MAGIC")), ["default_capabilities", "MAGIC"]),
            (refused(|of| of.additional_devices = one("/dev/none")), ["additional_devices", "/dev/none"]),
            (
                refused(|of| of.additional_devices = one("/etc/passwd")),
                ["additional_devices", "not a device"],
            ),
            (refused(|of| of.default_seccomp = "/no/p.json".to_owned()), ["default_seccomp", "/no/p.json"]),
            (refused(|of| of.default_seccomp = "/etc/passwd".to_owned()), ["default_seccomp", "/etc/passwd"]),
            (refused(|of| of.shm_mib = 0), ["shm_mib", "out of range"]),
            (refused(|of| of.shm_mib = u64::MAX), ["shm_mib", "out of range"]),
            (refused(|of| of.allowed_annotations = one("x.io")), ["allowed_annotations", "umask.crio.io"]),
            (refused(|of| of.log_line_bytes = 1023), ["log_line_bytes", "from 1024 to 1048576"]),
            (refused(|of| of.selinux_category_range = 1), ["selinux_category_range", "from 2 to 1024"]),
            (refused(|of| of.timezone = "../etc".to_owned()), ["timezone", "such as Europe/Berlin"]),
            (refused(|of| of.timezone = "Europe/Nowhere".to_owned()), ["timezone", "Europe/Nowhere"]),
            (refused(|of| of.timezone = "zone.tab".to_owned()), ["timezone", "not the file of a time zone"]),
        ];
        for (refused, words) in rows {
            assert!(words.iter().all(|words| refused.contains(words)), "{words:?}: {refused}");
        }
    }

    #[test]
    fn a_limit_beyond_the_daemons_own_is_refused() {
        let own = wharf_sys::limits::hard(7).unwrap();
        let limit = |hard: u64| vec![format!("nofile=1:{hard}")];
        let within = Containers { default_ulimits: limit(own), ..Containers::default() };
        assert!(within.defaults().is_ok());
        let beyond = refused(|of| of.default_ulimits = limit(own + 1));
        assert!(beyond.contains("default_ulimits") && beyond.contains("own hard limit"), "{beyond}");
    }

    #[test]
    fn a_time_zone_is_a_file_of_one() {
        let local = Path::new("/etc/localtime").canonicalize();
        let zone = zone("Local").ok().flatten();
        assert_eq!(zone.map(|zone| zone.as_path().to_owned()), local.ok());
    }
}
