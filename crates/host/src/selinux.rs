//! SELinux on this machine: whether containers can be labelled, what the policy has for them and what it does not have,
//! and the levels of pods.

mod levels;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::statfs::{FsType, statfs};
use wharf_cri_api::v1::PodSandboxConfig;
use wharf_isolation::Plan;
use wharf_planner::selinux::{self, Policy};
use wharf_planner::{Defaults, Labelling, Labels, Selinux, Switch};
use wharf_sys::fs::write_value;
use wharf_types::{ErrorKind, Failure, SelinuxLabel, Stage as _, StageError};

use crate::error::Error;
use levels::Levels;

pub use levels::Level;

/// Where the kernel shows SELinux.
const KERNELS: &str = "/sys/fs/selinux";
/// The type of that file system.
const MAGIC: FsType = FsType(0xf97c_ff8c);
/// The configuration of SELinux, which names the policy: selinux_config(5).
const CONFIG: &str = "/etc/selinux/config";
/// The policy where that names none.
const USUAL_POLICY: &str = "targeted";

const STAGE: &str = "looking up what the policy of SELinux has for containers (containers.selinux)";

/// Why containers cannot be labelled.
#[derive(Debug, thiserror::Error)]
enum Unlabelled {
    #[error("{path} cannot be read: install a policy for containers")]
    Unread {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path}: install a policy for containers")]
    Unparsed {
        path: String,
        #[source]
        source: selinux::PolicyError,
    },
    #[error("{path} names {label}, which the policy does not have: install a policy for containers")]
    Unknown { path: String, label: SelinuxLabel },
}

impl Failure for Unlabelled {
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }
}

/// How the pods of this node are labelled.
#[derive(Debug)]
pub struct Labelled {
    /// What the policy has for containers; `None` if nothing is labelled.
    policy: Option<Policy>,
    categories: u32,
    levels: Arc<Levels>,
}

impl Labelled {
    /// Finds out how. Where SELinux is off in the kernel, labels have no effect, and there are none.
    ///
    /// # Errors
    /// Containers are to be labelled, and the policy has nothing for them, or that cannot be read.
    pub fn look(defaults: &Defaults) -> Result<Self, StageError> {
        let policy = if defaults.selinux == Switch::On && is_on() { Some(policy()?) } else { None };
        Ok(Self { policy, categories: defaults.selinux_categories, levels: Arc::default() })
    }

    /// The level of a new pod: the one that it asks for, or one that no other pod has; `None` if nothing is labelled.
    ///
    /// # Errors
    /// Every level is taken.
    pub fn level(&self, pod: &PodSandboxConfig) -> Result<Option<Level>, Error> {
        let Some(policy) = &self.policy else { return Ok(None) };
        if let Some(asked) = selinux::asked_level(pod) {
            return Ok(Some(self.levels.take(asked)));
        }
        let random = wharf_sys::random::bytes().stage("choosing a level")?;
        let free = self.levels.take_free(|is_taken| policy.free_level(self.categories, random, is_taken));
        free.map(Some).ok_or_else(|| selinux::no_level(self.categories).into())
    }

    /// The level that a pod has had since an earlier daemon made it.
    #[must_use]
    pub fn level_had(&self, level: &str) -> Level {
        self.levels.take(level)
    }

    /// How the containers of a pod with this level are labelled. Those of a pod without one could not use its files.
    #[must_use]
    pub fn of<'a>(&'a self, level: Option<&'a Level>) -> Selinux<'a> {
        match (&self.policy, level) {
            (None, _) => Selinux::Off,
            (Some(_), None) => Selinux::Unlabelled,
            (Some(policy), Some(level)) => Selinux::On(Labelling { policy, level: level.as_str() }),
        }
    }

    /// Checks that the policy has the labels of a plan. Where nothing is labelled, it must have none.
    ///
    /// # Errors
    /// [`wharf_planner::Refusal`].
    pub fn check(&self, plan: &Plan) -> Result<(), Error> {
        let mut labels = plan.process.selinux.iter().chain(&plan.mount_label);
        match (&self.policy, labels.next()) {
            (None, Some(label)) => Err(selinux::out_of_place(label).into()),
            (_, first) => first.into_iter().chain(labels).try_for_each(check),
        }
    }
}

/// What the policy has for containers.
fn policy() -> Result<Policy, StageError> {
    let config = std::fs::read_to_string(CONFIG).unwrap_or_default();
    let path = Path::new(CONFIG).with_file_name(named(&config)).join("contexts/lxc_contexts");
    let policy = read(&path).stage(STAGE)?;
    for label in [&policy.process, &policy.file] {
        if !is_known(label).stage(STAGE)? {
            let error = Unlabelled::Unknown { path: path.display().to_string(), label: label.clone() };
            return Err(StageError::at(STAGE, error));
        }
    }
    let unconfined = match policy.unconfined {
        Some(label) if is_known(&label).stage(STAGE)? => Some(label),
        _ => None,
    };
    Ok(Policy { unconfined, ..policy })
}

/// Whether the kernel has SELinux on and a policy loaded.
fn is_on() -> bool {
    let is_mounted = statfs(KERNELS).is_ok_and(|status| status.filesystem_type() == MAGIC);
    // Without a policy, everything has the label of the kernel itself.
    let own = wharf_sys::fs::kernel_text("/proc/self/attr/current").unwrap_or_default();
    is_mounted && SelinuxLabel::new(own.trim_end_matches(['\0', '\n'])).is_ok()
}

/// The name of the policy in the configuration.
fn named(config: &str) -> PathBuf {
    let name = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    let name = name.map_or(USUAL_POLICY, str::trim);
    let is_name = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    PathBuf::from(if is_name { name } else { USUAL_POLICY })
}

fn read(path: &Path) -> Result<Policy, Unlabelled> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| Unlabelled::Unread { path: name(), source })?;
    Policy::parse(&text).map_err(|source| Unlabelled::Unparsed { path: name(), source })
}

/// Whether the kernel's policy has a label.
fn is_known(label: &SelinuxLabel) -> wharf_sys::Result<bool> {
    match write_value(format!("{KERNELS}/context"), label.as_str()) {
        Ok(()) => Ok(true),
        Err(error) if (error.call, error.errno) == ("write", Errno::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks that the policy has the labels of a pod.
///
/// # Errors
/// [`wharf_planner::Refusal`] for one that it does not have.
pub fn check_labels(labels: &Labels) -> Result<(), Error> {
    labels.process.iter().chain([&labels.mount]).try_for_each(check)
}

fn check(label: &SelinuxLabel) -> Result<(), Error> {
    match is_known(label).stage("asking the policy of SELinux for a label")? {
        true => Ok(()),
        false => Err(selinux::unknown(label).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_policy() {
        for (config, name) in [
            ("# SELINUXTYPE=no\nSELINUX=permissive\nSELINUXTYPE=default\n", "default"),
            ("SELINUXTYPE= mls \n", "mls"),
            ("", USUAL_POLICY),
            ("SELINUXTYPE=../..", USUAL_POLICY),
            ("SELINUXTYPE=..", USUAL_POLICY),
        ] {
            assert_eq!(named(config), Path::new(name), "{config:?}");
        }
    }

    #[test]
    fn a_policy_without_anything_for_containers_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lxc_contexts");
        let said = |path: &Path| read(path).unwrap_err().to_string();
        assert!(said(&path).contains("lxc_contexts cannot be read: install a policy"), "{}", said(&path));
        std::fs::write(&path, "process = \"u:r:t:s0\"\n").unwrap();
        assert!(said(&path).contains("lxc_contexts: install a policy"), "{}", said(&path));
        std::fs::write(&path, "process = \"u:r:t:s0\"\nfile = \"u:o:f:s0\"\n").unwrap();
        assert_eq!(read(&path).unwrap().file.as_str(), "u:o:f:s0");
    }

    #[test]
    fn a_pod_has_the_level_that_it_asks_for_or_one_of_its_own() {
        let policy = Policy::parse("process = u:r:t:s0\nfile = u:o:f:s0").unwrap();
        let node = Labelled { policy: Some(policy), categories: 2, levels: Arc::default() };
        let mut asks = PodSandboxConfig::default();
        let context = asks.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.selinux_options.get_or_insert_default().level = "s0:c0,c1".to_owned();
        let had = node.level_had("s0:c0,c1");
        let asked = node.level(&asks).unwrap().unwrap();
        assert_eq!((had.as_str(), asked.as_str()), ("s0:c0,c1", "s0:c0,c1"));
        drop((had, asked));
        let own = node.level(&PodSandboxConfig::default()).unwrap().unwrap();
        assert_eq!(own.as_str(), "s0:c0,c1");
        let none = node.level(&PodSandboxConfig::default()).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::ResourceExhausted, "{none}");
        assert!(matches!(node.of(Some(&own)), Selinux::On(Labelling { level: "s0:c0,c1", .. })));
        assert_eq!(node.of(None), Selinux::Unlabelled);
        drop(own);
        assert!(node.level(&PodSandboxConfig::default()).is_ok());
    }

    #[test]
    fn where_nothing_is_labelled_a_pod_keeps_the_level_that_it_had() {
        let node = Labelled::look(&Defaults::default()).unwrap();
        assert!(node.level(&PodSandboxConfig::default()).unwrap().is_none());
        assert_eq!(node.of(Some(&node.level_had("s0:c1,c2"))), Selinux::Off);
    }
}
