//! How a container sees its cgroup: as the root of a namespace of its own, or where it is on the host; and whether it
//! may write to it.

use wharf_cri_api::v1::{CgroupMountMode, LinuxContainerSecurityContext, NamespaceMode};

use crate::Refusal;
use crate::refuse::known;
use crate::request::{CgroupPlaces, Switch};

/// A container's view of its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) namespace: Namespace,
    pub(crate) access: Access,
}

/// The cgroup namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// The container's own, with its cgroup as the root.
    Own,
    /// The host's.
    Hosts,
}

/// What the container may do in the cgroup file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

const MODE: &str = "cgroup_mount_mode";
const NAMESPACE: &str = "namespace_options.cgroupns_options";

/// The view that a container requests. By default a privileged container has the host's namespace and may write, and
/// any other has its own and may not.
///
/// # Errors
/// [`Refusal`] for what contradicts itself.
pub(crate) fn of(context: &LinuxContainerSecurityContext) -> Result<View, Refusal> {
    let namespace = namespace(context)?;
    let mode = known::<CgroupMountMode>(MODE, context.cgroup_mount_mode)?;
    let access = match (mode, namespace, context.privileged) {
        (CgroupMountMode::Unspecified, _, false) => Access::ReadOnly,
        (CgroupMountMode::Unspecified, _, true) => Access::ReadWrite,
        (CgroupMountMode::ReadOnly, _, false) => Access::ReadOnly,
        (CgroupMountMode::ReadOnly, _, true) => {
            let problem = "a privileged container may write to its cgroup: leave READ_ONLY out";
            return Err(Refusal::field(MODE, problem));
        }
        (CgroupMountMode::ReadWrite, Namespace::Hosts, false) => {
            let problem = "READ_WRITE in the host's cgroup namespace is for privileged containers: ask for CONTAINER in \
                           cgroupns_options";
            return Err(Refusal::field(MODE, problem));
        }
        (CgroupMountMode::ReadWrite, _, _) => Access::ReadWrite,
    };
    Ok(View { namespace, access })
}

fn namespace(context: &LinuxContainerSecurityContext) -> Result<Namespace, Refusal> {
    let options = context.namespace_options.as_ref().and_then(|options| options.cgroupns_options.as_ref());
    let Some(options) = options else {
        return Ok(if context.privileged { Namespace::Hosts } else { Namespace::Own });
    };
    match known::<NamespaceMode>(NAMESPACE, options.mode)? {
        NamespaceMode::Container => Ok(Namespace::Own),
        NamespaceMode::Node => Ok(Namespace::Hosts),
        NamespaceMode::Pod | NamespaceMode::Target => {
            Err(Refusal::field(NAMESPACE, "it is the container's or the host's: ask for CONTAINER or NODE"))
        }
    }
}

/// Whether the container is to manage cgroups below its own, which is then given to its user.
///
/// # Errors
/// [`Refusal`] if it asks for that and the host does not keep it within its own cgroup.
pub(crate) fn delegation(
    context: &LinuxContainerSecurityContext,
    places: &CgroupPlaces,
) -> Result<Switch, Refusal> {
    let is_asked = context.cgroup_mount_mode() == CgroupMountMode::ReadWrite;
    if is_asked && places.delegation == Switch::Off {
        let problem = "READ_WRITE needs cgroup v2, mounted on the host with nsdelegate";
        return Err(Refusal::field(MODE, problem));
    }
    let View { namespace, access } = of(context)?;
    // On v1 a privileged container with a namespace of its own may write to what is root's.
    let is_delegated = namespace == Namespace::Own && access == Access::ReadWrite;
    Ok((is_delegated && places.delegation == Switch::On).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{CgroupNamespace, NamespaceOption};

    fn asked(
        mode: CgroupMountMode,
        namespace: Option<i32>,
        privileged: Switch,
    ) -> LinuxContainerSecurityContext {
        let cgroupns_options = namespace.map(|mode| CgroupNamespace { mode });
        LinuxContainerSecurityContext {
            privileged: privileged == Switch::On,
            cgroup_mount_mode: mode.into(),
            namespace_options: Some(NamespaceOption { cgroupns_options, ..NamespaceOption::default() }),
            ..LinuxContainerSecurityContext::default()
        }
    }

    #[test]
    fn every_pair_of_wishes_has_its_view_or_is_refused() {
        use Access::{ReadOnly, ReadWrite};
        use Namespace::{Hosts, Own};
        let (own, hosts) = (Some(NamespaceMode::Container.into()), Some(NamespaceMode::Node.into()));
        let view = |namespace, access| Some(View { namespace, access });
        let rows = [
            (CgroupMountMode::Unspecified, None, view(Own, ReadOnly), view(Hosts, ReadWrite)),
            (CgroupMountMode::Unspecified, own, view(Own, ReadOnly), view(Own, ReadWrite)),
            (CgroupMountMode::Unspecified, hosts, view(Hosts, ReadOnly), view(Hosts, ReadWrite)),
            (CgroupMountMode::ReadOnly, None, view(Own, ReadOnly), None),
            (CgroupMountMode::ReadOnly, own, view(Own, ReadOnly), None),
            (CgroupMountMode::ReadOnly, hosts, view(Hosts, ReadOnly), None),
            (CgroupMountMode::ReadWrite, None, view(Own, ReadWrite), view(Hosts, ReadWrite)),
            (CgroupMountMode::ReadWrite, own, view(Own, ReadWrite), view(Own, ReadWrite)),
            (CgroupMountMode::ReadWrite, hosts, None, view(Hosts, ReadWrite)),
        ];
        for (mode, namespace, plain, privileged) in rows {
            assert_eq!(of(&asked(mode, namespace, Switch::Off)).ok(), plain, "{mode:?} {namespace:?}");
            assert_eq!(
                of(&asked(mode, namespace, Switch::On)).ok(),
                privileged,
                "{mode:?} {namespace:?} privileged"
            );
        }
    }

    #[test]
    fn other_namespaces_and_unknown_numbers_are_refused() {
        for mode in [NamespaceMode::Pod as i32, NamespaceMode::Target as i32, 9] {
            for privileged in [Switch::Off, Switch::On] {
                let refusal = of(&asked(CgroupMountMode::Unspecified, Some(mode), privileged)).unwrap_err();
                assert!(refusal.to_string().starts_with(NAMESPACE), "{refusal}");
            }
        }
        let unknown = LinuxContainerSecurityContext { cgroup_mount_mode: 3, ..Default::default() };
        assert!(of(&unknown).unwrap_err().to_string().starts_with(MODE));
    }

    #[test]
    fn only_a_host_that_delegates_lets_a_container_write() {
        let mut places = crate::tests::places().cgroup;
        let (mode, none) = (CgroupMountMode::ReadWrite, CgroupMountMode::Unspecified);
        let own = Some(NamespaceMode::Container.into());
        for (asked, expected) in [
            (asked(mode, None, Switch::Off), Switch::On),
            (asked(mode, None, Switch::On), Switch::Off),
            (asked(mode, own, Switch::On), Switch::On),
            (asked(none, own, Switch::On), Switch::On),
            (asked(none, None, Switch::Off), Switch::Off),
        ] {
            places.delegation = Switch::On;
            assert_eq!(delegation(&asked, &places), Ok(expected), "{asked:?}");
            places.delegation = Switch::Off;
            let without = delegation(&asked, &places);
            match asked.cgroup_mount_mode() {
                CgroupMountMode::ReadWrite => {
                    assert!(without.unwrap_err().to_string().contains("nsdelegate"))
                }
                _ => assert_eq!(without, Ok(Switch::Off)),
            }
        }
    }
}
