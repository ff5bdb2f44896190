//! The SELinux labels of pods and containers, from three sources: what a request asks for, what the node's policy has
//! for containers, and the level of the pod, which keeps pods apart.

use std::fmt::Display;

use wharf_cri_api::v1::{PodSandboxConfig, SeLinuxOption};
use wharf_types::{ErrorKind, HostPath, LabelParts, SelinuxLabel};

use crate::Refusal;
use crate::request::{HostFacts, Request};

const FIELD: &str = "selinux_options";

/// The type of privileged containers, which nothing confines. It is in every policy for containers.
const UNCONFINED: &str = "spc_t";

/// Directories that belong to the whole machine. With the label of one container they would be useless to everybody
/// else.
const MACHINES: [&str; 40] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/etc/pki",
    "/etc/passwd",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/run/lock",
    "/run/user",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/local",
    "/usr/sbin",
    "/usr/share",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/spool",
    "/var/tmp",
];

/// What the node's policy has for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The label of their programs.
    pub process: SelinuxLabel,
    /// The label of their files.
    pub file: SelinuxLabel,
    /// The label of privileged programs; without one they have that which the policy gives them.
    pub unconfined: Option<SelinuxLabel>,
}

/// Why a text does not say what a policy has for containers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct PolicyError {
    /// The key that is missing or has no label.
    pub key: &'static str,
    /// What is wrong.
    pub problem: String,
}

/// How a pod and its containers are labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labelling<'a> {
    /// The node's policy.
    pub policy: &'a Policy,
    /// The level of the pod; empty if the policy has no levels.
    pub level: &'a str,
}

/// Whether a container gets labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selinux<'a> {
    /// Nothing gets any on this node.
    Off,
    /// Its pod was made without.
    Unlabelled,
    /// It does.
    On(Labelling<'a>),
}

/// The labels of a container, or those that a pod has for its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// That of its programs; `None` for the one that the policy gives them.
    pub process: Option<SelinuxLabel>,
    /// That of its files.
    pub mount: SelinuxLabel,
}

impl Policy {
    /// Parses a file `lxc_contexts`: selinux_lxc_contexts_path(3). Whether the kernel's policy has these labels is for
    /// the caller to find out.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let label = |key: &'static str| {
            let fail = |problem: String| PolicyError { key, problem };
            let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
            let mut pairs = lines.filter_map(|line| line.split_once('='));
            let value = pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim());
            let value = value.ok_or_else(|| fail("it is missing".to_owned()))?;
            SelinuxLabel::new(value.trim_matches('"')).map_err(|error| fail(error.to_string()))
        };
        let (process, file) = (label("process")?, label("file")?);
        let parts = process.parts();
        let unconfined = LabelParts { kind: UNCONFINED, level: sensitivity(&process), ..parts };
        Ok(Self { unconfined: SelinuxLabel::of(unconfined).ok(), process, file })
    }

    /// A level that no other pod has: a pair of categories below `categories`, found from a random one on. It is empty
    /// if the policy has no levels, and `None` if every pair is taken.
    pub fn free_level(
        &self,
        categories: u32,
        random: [u8; 32],
        is_taken: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let Some(sensitivity) = sensitivity(&self.process) else { return Some(String::new()) };
        let count = u64::from(categories) * u64::from(categories.saturating_sub(1)) / 2;
        let begin = random.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let levels = (0..count).map(|number| {
            let (low, high) = pair((begin % count + number) % count);
            format!("{sensitivity}:c{low},c{high}")
        });
        levels.into_iter().find(|level| !is_taken(level))
    }
}

/// The level of a label without its categories, and without the end of its range.
fn sensitivity(label: &SelinuxLabel) -> Option<&str> {
    let level = label.parts().level?;
    level.split(['-', ':']).next().filter(|sensitivity| !sensitivity.is_empty())
}

/// The pair of different categories with a number: all pairs below some category come before those with it.
fn pair(number: u64) -> (u64, u64) {
    let mut high = (2 * number).isqrt();
    while high * (high + 1) / 2 <= number {
        high += 1;
    }
    while high * high.saturating_sub(1) / 2 > number {
        high -= 1;
    }
    (number - high * high.saturating_sub(1) / 2, high)
}

/// The level that a pod's request asks for.
#[must_use]
pub fn asked_level(pod: &PodSandboxConfig) -> Option<&str> {
    of_pod(pod).and_then(asked)
}

/// The labels that a pod has for its containers, of which that of files is its own files' too; `None` if it gets none.
///
/// # Errors
/// [`Refusal`] for options that no label can have.
pub(crate) fn pods_labels(pod: &PodSandboxConfig, selinux: Selinux<'_>) -> Result<Option<Labels>, Refusal> {
    let Selinux::On(labelling) = selinux else { return Ok(None) };
    let none = SeLinuxOption::default();
    let options = of_pod(pod).unwrap_or(&none);
    Ok(Some(Labels { process: Some(of_programs(labelling, options)?), mount: of_files(labelling, options)? }))
}

/// The labels of a container; `None` if it gets none. What its own options leave open, the policy says, and its pod the
/// level; without options of its own it has its pod's. A privileged one is unconfined unless its options name a type.
///
/// # Errors
/// [`Refusal`] for options that no label can have, or that the pod was not made for.
pub(crate) fn labels_of(request: &Request<'_>) -> Result<Option<Labels>, Refusal> {
    let own = request.security().selinux_options.as_ref().filter(|options| is_set(options));
    let labelling = match request.selinux {
        Selinux::On(labelling) => labelling,
        Selinux::Unlabelled if own.is_some() => {
            let problem = "the pod was made without SELinux labels: recreate the pod".to_owned();
            return Err(Refusal::Host { kind: ErrorKind::FailedPrecondition, field: FIELD, problem });
        }
        Selinux::Unlabelled | Selinux::Off => return Ok(None),
    };
    let none = SeLinuxOption::default();
    let options = own.or(of_pod(request.pod)).unwrap_or(&none);
    let mount = of_files(labelling, options)?;
    let is_unconfined = request.is_privileged() && options.r#type.is_empty();
    let process = match labelling.policy.unconfined.as_ref().map(SelinuxLabel::parts) {
        _ if !is_unconfined => Some(of_programs(labelling, options)?),
        None => None,
        // It sees the machine, so the pod's level would keep it from nothing.
        Some(usual) => Some(merged(options, LabelParts { level: asked(options).or(usual.level), ..usual })?),
    };
    Ok(Some(Labels { process, mount }))
}

/// The paths of the host that a container's mounts are to have labelled for it.
///
/// # Errors
/// [`Refusal`] for a directory of the whole machine.
pub(crate) fn relabelled(request: &Request<'_>, facts: &HostFacts) -> Result<Vec<HostPath>, Refusal> {
    let Selinux::On(_) = request.selinux else { return Ok(Vec::new()) };
    let mounts = request.container.mounts.iter().zip(&facts.mounts);
    let mounts = mounts.filter(|(mount, _)| mount.selinux_relabel && mount.image.is_none());
    let sources = mounts.filter_map(|(mount, source)| Some((mount, &source.as_ref().ok()?.path)));
    let relabelled = sources.map(|(mount, path)| match MACHINES.contains(&path.as_str()) {
        true => Err(Refusal::field(
            "mounts",
            format!(
                "{}: {path} belongs to the whole machine and gets no container's label: leave selinux_relabel out",
                mount.container_path
            ),
        )),
        false => Ok(path.clone()),
    });
    relabelled.collect()
}

fn of_pod(pod: &PodSandboxConfig) -> Option<&SeLinuxOption> {
    let context = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.selinux_options.as_ref()).filter(|options| is_set(options))
}

fn is_set(options: &SeLinuxOption) -> bool {
    *options != SeLinuxOption::default()
}

fn asked(options: &SeLinuxOption) -> Option<&str> {
    Some(options.level.as_str()).filter(|level| !level.is_empty())
}

fn of_programs(labelling: Labelling<'_>, options: &SeLinuxOption) -> Result<SelinuxLabel, Refusal> {
    merged(options, LabelParts { level: labelling.level(options), ..labelling.policy.process.parts() })
}

/// Role and type are those of programs.
fn of_files(labelling: Labelling<'_>, options: &SeLinuxOption) -> Result<SelinuxLabel, Refusal> {
    let user = SeLinuxOption { user: options.user.clone(), ..SeLinuxOption::default() };
    merged(&user, LabelParts { level: labelling.level(options), ..labelling.policy.file.parts() })
}

impl<'a> Labelling<'a> {
    fn level(self, options: &'a SeLinuxOption) -> Option<&'a str> {
        asked(options).or(Some(self.level)).filter(|level| !level.is_empty())
    }
}

/// The user, the role and the type of the options as far as they are there; the rest of `usual`.
fn merged(options: &SeLinuxOption, usual: LabelParts<'_>) -> Result<SelinuxLabel, Refusal> {
    let or = |asked: &'_ str, usual: &str| if asked.is_empty() { usual.to_owned() } else { asked.to_owned() };
    let (user, role) = (or(&options.user, usual.user), or(&options.role, usual.role));
    let kind = or(&options.r#type, usual.kind);
    let label = LabelParts { user: &user, role: &role, kind: &kind, level: usual.level };
    SelinuxLabel::of(label).map_err(|error| Refusal::field(FIELD, error))
}

/// The label of a spec's field.
pub(crate) fn of_spec(field: &'static str, label: Option<&String>) -> Result<Option<SelinuxLabel>, Refusal> {
    label.map(|label| SelinuxLabel::new(label).map_err(|error| Refusal::spec(field, error))).transpose()
}

/// The refusal of a pod for which no level is left.
#[must_use]
pub fn no_level(categories: u32) -> Refusal {
    let problem = format!(
        "all pairs of the {categories} categories are in use: raise containers.selinux_category_range, or name a level"
    );
    Refusal::Host { kind: ErrorKind::ResourceExhausted, field: FIELD, problem }
}

/// The refusal of a label that the policy does not have.
#[must_use]
pub fn unknown(label: &SelinuxLabel) -> Refusal {
    Refusal::field(FIELD, format!("the node's policy does not have the label {label}"))
}

/// The refusal of a label where SELinux gives none.
#[must_use]
pub fn out_of_place(label: impl Display) -> Refusal {
    Refusal::spec("process.selinuxLabel", format!("{label}: SELinux is off on this node"))
}

#[cfg(test)]
mod tests;
