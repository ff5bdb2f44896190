//! Which namespaces a pod has of its own ([`of_pod`]), and which of these, and which of its own, a container's
//! processes enter ([`describe`], [`plan`]). What is not listed is the host's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};
use serde_json::{Value, json};
use wharf_cri_api::v1::{NamespaceMode, NamespaceOption};
use wharf_isolation::{Namespaces, PidNamespace, UserNamespace};
use wharf_types::{HostPath, IdMaps};

use crate::plan::host_path;
use crate::request::{Pins, Request};
use crate::{Refusal, cgroup_view, user_namespace};

/// The kinds of namespaces that a pod either has of its own or shares with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The network namespace.
    Net,
    /// The IPC namespace.
    Ipc,
    /// The UTS namespace: the hostname.
    Uts,
}

impl Kind {
    /// Its name among a process's namespaces in procfs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
        }
    }
}

/// The pod's own namespaces, and their settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePlan {
    /// The namespaces that it does not share with the host.
    pub own: BTreeSet<Kind>,
    /// The hostname, set if the pod has its own UTS namespace.
    pub hostname: String,
    /// The sysctls of these namespaces and of its user namespace that are set when they are made, by key with dots.
    pub sysctls: BTreeMap<String, String>,
    /// The ids of its user namespace, if it does not share the host's. The others belong to it.
    pub ids: Option<IdMaps>,
}

/// The namespaces that a pod has of its own. One on the host's network has the host's name.
pub(crate) fn of_pod(options: &NamespaceOption) -> BTreeSet<Kind> {
    let modes = [(Kind::Net, options.network()), (Kind::Ipc, options.ipc()), (Kind::Uts, options.network())];
    modes.into_iter().filter(|(_, mode)| *mode != NamespaceMode::Node).map(|(kind, _)| kind).collect()
}

/// The container's own namespaces and those of its pod.
pub(crate) fn describe(request: &Request<'_>, pins: &Pins) -> Result<Vec<LinuxNamespace>, Refusal> {
    use LinuxNamespaceType as Type;
    let pods = request.pods_namespaces();
    let pinned = |kind| match kind {
        Kind::Net => namespace(Type::Network, Some(&pins.net)),
        Kind::Ipc => namespace(Type::Ipc, Some(&pins.ipc)),
        Kind::Uts => namespace(Type::Uts, Some(&pins.uts)),
    };
    let mut namespaces: Vec<_> = of_pod(pods).into_iter().map(pinned).collect();
    if user_namespace::of(pods)?.is_some() {
        namespaces.push(namespace(Type::User, Some(&pins.user)));
    }
    if pid(request)? != PidNamespace::Host {
        namespaces.push(namespace(Type::Pid, None));
    }
    namespaces.push(namespace(Type::Mount, None));
    if cgroup_view::of(request.security())?.namespace == cgroup_view::Namespace::Own {
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
    const USERS: &str = "a user namespace needs uidMappings and gidMappings, and these need a user namespace";
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
                return Err(Refusal::spec(
                    FIELD,
                    format!("the {kind} namespace is the pod's and needs its path"),
                ));
            }
            (Type::Pid | Type::Cgroup | Type::Mount, Some(_)) => {
                return Err(Refusal::spec(FIELD, format!("a {kind} namespace cannot be joined by path")));
            }
            (Type::Time, _) => {
                return Err(Refusal::spec(FIELD, format!("{kind} namespaces are not supported yet")));
            }
        }
    }
    if plan.user.is_some() != ids.is_some() {
        return Err(Refusal::spec(FIELD, USERS));
    }
    if has_mounts {
        Ok(plan)
    } else {
        Err(Refusal::spec(FIELD, "a container has a mount namespace of its own: add mount"))
    }
}

/// The namespaces that a pod has of its own, in the form of the spec, for people and tools.
#[must_use]
pub fn shown(options: &NamespaceOption, pins: &Pins) -> Vec<Value> {
    let own = of_pod(options);
    let has_users = matches!(user_namespace::of(options), Ok(Some(_)));
    let all = [
        ("network", &pins.net, own.contains(&Kind::Net)),
        ("ipc", &pins.ipc, own.contains(&Kind::Ipc)),
        ("uts", &pins.uts, own.contains(&Kind::Uts)),
        ("user", &pins.user, has_users),
    ];
    let own = all.into_iter().filter(|(.., is_own)| *is_own);
    own.map(|(kind, path, _)| json!({ "type": kind, "path": path.as_path() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_the_namespaces_that_are_not_the_hosts() {
        use NamespaceMode::{Node, Pod};
        for (network, ipc, expected) in [
            (Pod, Pod, [true, true, true]),
            (Node, Pod, [false, true, false]),
            (Pod, Node, [true, false, true]),
            (Node, Node, [false, false, false]),
        ] {
            let options =
                NamespaceOption { network: network.into(), ipc: ipc.into(), ..NamespaceOption::default() };
            let own = of_pod(&options);
            assert_eq!([Kind::Net, Kind::Ipc, Kind::Uts].map(|kind| own.contains(&kind)), expected);
        }
    }

    #[test]
    fn the_namespaces_that_a_pod_shares_with_the_host_are_not_its_own() {
        let pins = Pins {
            net: crate::tests::host("/n"),
            ipc: crate::tests::host("/i"),
            uts: crate::tests::host("/u"),
            user: crate::tests::host("/s"),
        };
        let node = NamespaceMode::Node.into();
        let own = shown(&NamespaceOption { network: node, ..NamespaceOption::default() }, &pins);
        assert_eq!(own, [json!({ "type": "ipc", "path": "/i" })]);
        let kinds = |options: &NamespaceOption| shown(options, &pins).len();
        assert_eq!(kinds(&NamespaceOption::default()), 3);
    }
}
