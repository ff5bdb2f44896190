//! A container in the field's own words: the runtime spec of the OCI, and beside it the little that has no word there.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxResources, Root, Spec};
use wharf_isolation::{Input, LogFile, PidNamespace};
use wharf_types::{ContainerId, ContainerPath, HostPath, MASKED_PATHS, READONLY_PATHS};

use crate::request::{CgroupPlaces, HostFacts, Layers, Places, Request};
use crate::{
    Refusal, devices, environment, limits, mounts, namespaces, process, seccomp, stdio, stop_signal, user,
    volumes,
};

/// The version of the runtime spec that is spoken.
const OCI_VERSION: &str = "1.2.1";

/// A container, described whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What the OCI has words for. Another runtime would make the same container of it, in a root file system and with
    /// streams that are given to it.
    pub spec: Spec,
    /// All else.
    pub extra: Extra,
}

/// What of a container the runtime spec has no word for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Its id.
    pub container: ContainerId,
    /// Its root file system, which other runtimes are given mounted.
    pub layers: Layers,
    /// Where its cgroup is in each hierarchy.
    pub cgroup: CgroupPlaces,
    /// Which PID namespace the spec means: one that is shared has no path before its first process is there.
    pub pid: PidNamespace,
    /// What of its user only its own files can tell.
    pub names: Names,
    /// The log, if there is one.
    pub log: Option<LogFile>,
    /// What its input is.
    pub input: Input,
    /// The directory of the files that all containers of the pod have. Mounts of what is in it are of the pod's own file
    /// system.
    pub pod_files: HostPath,
    /// The mounts that begin with what the image has at their places.
    pub volumes: Vec<Volume>,
    /// Variables, `NAME=value`, whose value is not text. The spec has them as near as text can come.
    pub binary_environment: Vec<Vec<u8>>,
    /// The name of the signal that stops it: `SIGTERM`.
    pub stop_signal: String,
}

/// Names of a user and a group, which stand in the container's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The user, where the spec's number is not meant.
    pub user: Option<String>,
    /// The group.
    pub group: Group,
    /// Whether the groups that the image gives the user are left out.
    pub strict: bool,
}

/// A user's first group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// The spec's number.
    Number,
    /// The one that the container's files give the user.
    OfUser,
    /// One by its name.
    Named(String),
}

/// A volume that an image asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where the container sees it.
    pub target: ContainerPath,
    /// The directory that it is, which has to be made.
    pub directory: HostPath,
}

/// Describes a container.
///
/// # Errors
/// [`Refusal`] for a request that cannot be done with what there is on the host. It should have passed
/// [`check`](crate::check) before facts were gathered for it.
pub fn describe(request: &Request<'_>, facts: &HostFacts, places: &Places) -> Result<Description, Refusal> {
    if places.layers.lowers.is_empty() {
        return Err(Refusal::field("image", "it has no layers"));
    }
    let (user, names) = user::describe(request)?;
    let (environment, binary_environment) = environment::describe(request, facts)?;
    let volumes = volumes::describe(request, places)?;
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root(request)))
        .set_hostname(None)
        .set_process(Some(process::describe(request, facts, (user, environment))?))
        .set_mounts(Some(mounts::describe(request, facts, places, &volumes)?))
        .set_linux(Some(linux(request, facts, places)?))
        .set_annotations(Some(annotations(request)));
    let extra = Extra {
        container: request.id.clone(),
        layers: places.layers.clone(),
        cgroup: places.cgroup.clone(),
        pid: namespaces::pid(request)?,
        names,
        log: stdio::log(request)?,
        input: stdio::input(request),
        pod_files: places.pod_files.clone(),
        volumes,
        binary_environment,
        stop_signal: stop_signal::of(request),
    };
    Ok(Description { spec, extra })
}

/// Other runtimes find the root file system below their bundle; here it is among the [`Layers`].
fn root(request: &Request<'_>) -> Root {
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(request.security().readonly_rootfs));
    root
}

fn linux(request: &Request<'_>, facts: &HostFacts, places: &Places) -> Result<Linux, Refusal> {
    let mut resources = limits::resources(request.resources());
    resources.set_devices(Some(devices::rules(request, facts)?));
    let (masked, readonly) = protected_paths(request);
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::describe(request, &places.namespaces)?))
        .set_cgroups_path(Some(PathBuf::from(&places.cgroup.path)))
        .set_resources(Some(resources))
        .set_devices(Some(devices::describe(request, facts)?))
        .set_seccomp(seccomp::describe(request, facts)?)
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(readonly));
    Ok(linux)
}

/// The masked and the read-only paths: as the request says, and the usual ones where it says nothing. The kubelet sends
/// lists; it sends none for `procMount: Unmasked`, but to pods with a user namespace alone.
fn protected_paths(request: &Request<'_>) -> (Vec<String>, Vec<String>) {
    let security = request.security();
    if security.privileged {
        return (Vec::new(), Vec::new());
    }
    if security.masked_paths.is_empty() && security.readonly_paths.is_empty() {
        let owned = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        return (owned(&MASKED_PATHS), owned(&READONLY_PATHS));
    }
    (security.masked_paths.clone(), security.readonly_paths.clone())
}

/// Which container of which pod it is, by the names that runtimes with a machine for each pod look for.
fn annotations(request: &Request<'_>) -> HashMap<String, String> {
    let pod = request.pod.metadata.clone().unwrap_or_default();
    let name = request.container.metadata.as_ref().map(|metadata| metadata.name.clone());
    let image = request.container.image.as_ref().map(|image| image.image.clone());
    let all = [
        ("container-type", "container".to_owned()),
        ("container-name", name.unwrap_or_default()),
        ("image-name", image.unwrap_or_default()),
        ("sandbox-id", request.pod_id.to_string()),
        ("sandbox-name", pod.name),
        ("sandbox-namespace", pod.namespace),
        ("sandbox-uid", pod.uid),
    ];
    all.into_iter().map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value)).collect()
}

impl Description {
    /// What the container may use; nothing is limited where nothing is said.
    #[must_use]
    pub fn resources(&self) -> LinuxResources {
        let linux = self.spec.linux().as_ref();
        linux.and_then(|linux| linux.resources().clone()).unwrap_or_default()
    }
}
