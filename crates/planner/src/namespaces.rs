//! The namespaces of a container's processes.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};
use wharf_cri_api::v1::{NamespaceMode, NamespaceOption};
use wharf_isolation::{Namespaces, PidNamespace, UserNamespace};
use wharf_types::HostPath;

use crate::plan::host_path;
use crate::request::{Pins, Request};
use crate::{Refusal, user_namespace};

/// The container's own namespaces and those of its pod; those that are not listed are the host's.
pub(crate) fn describe(request: &Request<'_>, pins: &Pins) -> Result<Vec<LinuxNamespace>, Refusal> {
    use LinuxNamespaceType as Type;
    let pods = request.pods_namespaces();
    // A pod on the host's network has the host's name.
    let pinned = [
        (Type::Network, pods.network(), &pins.net),
        (Type::Ipc, pods.ipc(), &pins.ipc),
        (Type::Uts, pods.network(), &pins.uts),
    ];
    let of_pod = pinned.into_iter().filter(|(_, mode, _)| *mode != NamespaceMode::Node);
    let mut namespaces: Vec<_> = of_pod.map(|(kind, _, pin)| namespace(kind, Some(pin))).collect();
    if user_namespace::of(pods)?.is_some() {
        namespaces.push(namespace(Type::User, Some(&pins.user)));
    }
    if pid(request)? != PidNamespace::Host {
        namespaces.push(namespace(Type::Pid, None));
    }
    namespaces.push(namespace(Type::Mount, None));
    if !request.is_privileged() {
        namespaces.push(namespace(Type::Cgroup, None));
    }
    Ok(namespaces)
}

fn namespace(kind: LinuxNamespaceType, path: Option<&HostPath>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path.map(|path| PathBuf::from(path.as_path())));
    namespace
}

/// The PID namespace of the container: its own setting, else its pod's.
pub(crate) fn pid(request: &Request<'_>) -> Result<PidNamespace, Refusal> {
    let options: &NamespaceOption = match &request.security().namespace_options {
        Some(own) => own,
        None => request.pods_namespaces(),
    };
    Ok(match options.pid() {
        NamespaceMode::Pod => PidNamespace::Pod,
        NamespaceMode::Container => PidNamespace::Container,
        NamespaceMode::Node => PidNamespace::Host,
        NamespaceMode::Target => {
            let target = options.target_id.parse();
            PidNamespace::Target(target.map_err(|error| Refusal::field("target_id", error))?)
        }
    })
}

/// The namespaces of the plan. A shared PID namespace is not in the list but beside it.
pub(crate) fn plan(linux: &Linux, shared: &PidNamespace) -> Result<Namespaces, Refusal> {
    use LinuxNamespaceType as Type;
    const FIELD: &str = "linux.namespaces";
    const USERS: &str = "a user namespace has uidMappings and gidMappings, and they have one";
    let mut plan =
        Namespaces { net: None, ipc: None, uts: None, user: None, pid: PidNamespace::Host, cgroup: false };
    let ids = user_namespace::ids_of(linux)?;
    let mut has_mounts = false;
    for namespace in linux.namespaces().iter().flatten() {
        let path = namespace.path().as_deref().map(|path| host_path(FIELD, path)).transpose()?;
        let kind = namespace.typ();
        match (kind, path) {
            (Type::Network, Some(path)) => plan.net = Some(path),
            (Type::Ipc, Some(path)) => plan.ipc = Some(path),
            (Type::Uts, Some(path)) => plan.uts = Some(path),
            (Type::User, Some(path)) => {
                let ids = ids.ok_or_else(|| Refusal::spec(FIELD, USERS))?;
                plan.user = Some(UserNamespace { path, ids });
            }
            (Type::Pid, None) if *shared == PidNamespace::Host => plan.pid = PidNamespace::Container,
            (Type::Pid, None) => plan.pid = shared.clone(),
            (Type::Cgroup, None) => plan.cgroup = true,
            (Type::Mount, None) => has_mounts = true,
            (Type::Network | Type::Ipc | Type::Uts | Type::User, None) => {
                return Err(Refusal::spec(FIELD, format!("{kind} has no path, but it is the pod's")));
            }
            (Type::Pid | Type::Cgroup | Type::Mount, Some(_)) => {
                return Err(Refusal::spec(FIELD, format!("{kind} is never joined by a path")));
            }
            (Type::Time, _) => {
                return Err(Refusal::spec(FIELD, format!("{kind} namespaces are not supported yet")));
            }
        }
    }
    if plan.user.is_some() != ids.is_some() {
        return Err(Refusal::spec(
            FIELD,
            "a user namespace has uidMappings and gidMappings, and they have one",
        ));
    }
    if has_mounts {
        Ok(plan)
    } else {
        Err(Refusal::spec(FIELD, "a container has mounts of its own: add mnt"))
    }
}
