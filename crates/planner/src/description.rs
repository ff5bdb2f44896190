//! A container in the field's own terms: the OCI runtime spec, and beside it the little that the spec cannot express.
//!
//! Everything that changes containers on the way, such as CDI, NRI or hooks, is a step on this description. It has no
//! choice left that depends on the request, and knows nothing of how wharf makes a container: that is the plan's.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxResources, Root, Spec};
use wharf_isolation::{Input, LogFile, PidNamespace};
use wharf_types::{ContainerId, ContainerPath, HostPath, IdMaps, MASKED_PATHS, READONLY_PATHS, Reserve};

use crate::request::{CgroupPlaces, HostFacts, Layers, Places, Request, Switch};
use crate::{
    Refusal, cgroup_view, devices, environment, limits, mounts, namespaces, process, seccomp, selinux, stdio,
    stop_signal, user, user_namespace, volumes,
};

/// The version of the runtime spec.
const OCI_VERSION: &str = "1.2.1";

/// The complete description of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What the OCI spec can express. Another runtime would make the same container from it, given a root file system
    /// and streams.
    pub spec: Spec,
    /// Everything else.
    pub extra: Extra,
}

/// What the runtime spec cannot express about a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Its id.
    pub container: ContainerId,
    /// Its root file system, which other runtimes get already mounted.
    pub layers: Layers,
    /// Where its cgroup is in each hierarchy.
    pub cgroup: CgroupPlaces,
    /// The PID namespace that the spec means: a shared one has no path before its first process exists.
    pub pid: PidNamespace,
    /// What only the container's own files can tell about its user.
    pub names: Names,
    /// The log, if there is one.
    pub log: Option<LogFile>,
    /// Its standard input.
    pub input: Input,
    /// The directory of the files that all the pod's containers share. Mounts from it come from the pod's own file
    /// system.
    pub pod_files: HostPath,
    /// Mounts that begin with the image's content at their mount points.
    pub volumes: Vec<Volume>,
    /// What must stay free on the disk of the volumes.
    pub reserve: Reserve,
    /// Mounts of images.
    pub images: Vec<ImageVolume>,
    /// Variables, `NAME=value`, whose value is not UTF-8. The spec has an approximation as text.
    pub binary_environment: Vec<Vec<u8>>,
    /// Whether its cgroup is given to its user, who then manages what is below.
    pub delegation: Switch,
    /// The name of the signal that stops it: `SIGTERM`.
    pub stop_signal: String,
    /// Whose the seccomp profile is.
    pub seccomp: Seccomp,
    /// The paths of the host that are given the mount label, with all that is below them.
    pub relabelled: Vec<HostPath>,
}

/// Whose a seccomp profile is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seccomp {
    /// The runtime's default, which follows from the request.
    Runtimes,
    /// Another, or none.
    Own,
}

/// Names of a user and a group, to be looked up in the container's own files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The user, if a name and not the spec's number is meant.
    pub user: Option<String>,
    /// The group.
    pub group: Group,
    /// Whether the groups that the image gives the user are left out.
    pub strict: bool,
}

/// A user's primary group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// The spec's number.
    Number,
    /// The one that the container's files give the user.
    OfUser,
    /// One by its name.
    Named(String),
}

/// A volume of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its mount point in the container.
    pub target: ContainerPath,
    /// Its directory, which has to be made.
    pub directory: HostPath,
}

/// An image that is mounted, or a part of it, which the spec cannot express.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageVolume {
    /// Its mount point in the container.
    pub target: ContainerPath,
    /// Its layers, topmost first.
    pub layers: Vec<HostPath>,
    /// The file or directory that is mounted, from the image's root.
    pub sub_path: ContainerPath,
}

/// Describes a container.
///
/// # Errors
/// [`Refusal`] if the request cannot be fulfilled with what is on the host. [`check`](crate::check) should have
/// accepted it before the facts were gathered.
pub fn describe(request: &Request<'_>, facts: &HostFacts, places: &Places) -> Result<Description, Refusal> {
    if places.layers.lowers.is_empty() {
        return Err(Refusal::field("image", "it has no layers"));
    }
    let (user, names) = user::describe(request)?;
    let (environment, binary_environment) = environment::describe(request, facts)?;
    let volumes = volumes::describe(request, places)?;
    let images = mounts::images(request)?;
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root(request)))
        .set_hostname(None)
        .set_process(Some(process::describe(request, facts, user, environment)?))
        .set_mounts(Some(mounts::describe(request, facts, places, &volumes, &images)?))
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
        reserve: places.reserve,
        images: images.into_iter().flatten().collect(),
        binary_environment,
        delegation: cgroup_view::delegation(request.security(), &places.cgroup)?,
        stop_signal: stop_signal::of(request),
        seccomp: match seccomp::choice(request.security())? {
            seccomp::Choice::RuntimeDefault => Seccomp::Runtimes,
            seccomp::Choice::Localhost(_) | seccomp::Choice::Oci(..) | seccomp::Choice::Unconfined => {
                Seccomp::Own
            }
        },
        relabelled: selinux::relabelled(request, facts)?,
    };
    Ok(Description { spec, extra })
}

/// Other runtimes find the root file system below their bundle; here it is in the [`Layers`].
fn root(request: &Request<'_>) -> Root {
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(request.has_read_only_root()));
    root
}

fn linux(request: &Request<'_>, facts: &HostFacts, places: &Places) -> Result<Linux, Refusal> {
    let mut resources = limits::resources(request.resources());
    resources
        .set_devices(Some(devices::rules(request, facts)?))
        .set_pids(request.defaults.pids_limit.map(limits::pids));
    let ids = user_namespace::of(request.pods_namespaces())?;
    let (masked, readonly) = protected_paths(request, ids);
    let label = selinux::labels_of(request)?.map(|labels| labels.mount);
    let mut linux = Linux::default();
    linux
        .set_uid_mappings(ids.map(|ids| user_namespace::mappings(ids.users)).transpose()?)
        .set_gid_mappings(ids.map(|ids| user_namespace::mappings(ids.groups)).transpose()?)
        .set_namespaces(Some(namespaces::describe(request, &places.namespaces)?))
        .set_cgroups_path(Some(PathBuf::from(&places.cgroup.path)))
        .set_resources(Some(resources))
        .set_devices(Some(devices::describe(request, facts)?))
        .set_seccomp(seccomp::describe(request, facts)?)
        .set_mount_label(label.map(|label| label.to_string()))
        .set_masked_paths(Some(masked))
        .set_readonly_paths(Some(readonly));
    Ok(linux)
}

/// The masked and read-only paths: the request's, or the usual ones if it has none. The kubelet sends lists, except for
/// `procMount: Unmasked`, which it allows only in pods with a user namespace, where empty lists mean that nothing is
/// masked.
fn protected_paths(request: &Request<'_>, ids: Option<IdMaps>) -> (Vec<String>, Vec<String>) {
    let security = request.security();
    if security.privileged {
        return (Vec::new(), Vec::new());
    }
    if ids.is_none() && security.masked_paths.is_empty() && security.readonly_paths.is_empty() {
        let owned = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        return (owned(&MASKED_PATHS), owned(&READONLY_PATHS));
    }
    (security.masked_paths.clone(), security.readonly_paths.clone())
}

/// The container's and the pod's names, in the annotations that runtimes with a virtual machine per pod read.
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
    /// The resources that the container may use; nothing is limited unless the request says so.
    #[must_use]
    pub fn resources(&self) -> LinuxResources {
        let linux = self.spec.linux().as_ref();
        linux.and_then(|linux| linux.resources().clone()).unwrap_or_default()
    }
}
