//! Which containers have their processes in a second cgroup, below the one with their limits.
//!
//! The files of every cgroup belong to the host's root user, and that user needs no capability to write to them. A
//! container that is this user needs only a way to them: in a user namespace and a cgroup namespace of its own it may
//! mount the cgroup file system, from the cgroup in which it is downwards, unless a seccomp profile forbids those
//! calls as the runtime's own does. So its limits have to be above the cgroup in which it is. The same limits are in
//! that one, too, where programs look for them, and may be lifted there without any effect.
//!
//! One exception is v1's rates of block devices: they bind the processes that are in the cgroup itself, and none below
//! it, so such a container can lift them.

use oci_spec::runtime::LinuxNamespaceType;
use wharf_cgroup::Limits;

use crate::capabilities;
use crate::description::{Description, Seccomp};

/// Whether a container could lift these limits if its processes were in the cgroup that has them. Without a limit there
/// is nothing to lift, and a second cgroup costs as much as the first one. So a container whose first limit comes with
/// an update is not enclosed; but kubelets limit the huge pages of each container from the start.
#[must_use]
pub fn is_enclosed(description: &Description, limits: &Limits) -> bool {
    description.extra.seccomp == Seccomp::Own
        && has_limit(limits)
        && !has_user_namespace(description)
        && !may_administer(description)
}

/// Whether its root user is not the host's.
fn has_user_namespace(description: &Description) -> bool {
    let linux = description.spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// Whether a container has, or its programs can get, the capability with which the host's cgroups can be reached in
/// many other ways.
fn may_administer(description: &Description) -> bool {
    let process = description.spec.process().as_ref();
    let sets = process.and_then(|process| process.capabilities().as_ref());
    let admin = capabilities::mask("CAP_SYS_ADMIN").unwrap_or_default();
    sets.is_some_and(|sets| capabilities::bits_of(sets.bounding()) & admin != 0)
}

/// Whether anything is limited, other than by a share of what others leave.
fn has_limit(limits: &Limits) -> bool {
    let Limits { cpu_quota_us, memory_limit_bytes, memory_swap_limit_bytes, pids_limit, .. } = limits;
    let numbers = [cpu_quota_us, memory_limit_bytes, memory_swap_limit_bytes, pids_limit];
    numbers.into_iter().flatten().any(|limit| *limit > 0)
        || [&limits.cpuset_cpus, &limits.cpuset_mems].into_iter().flatten().any(|list| !list.is_empty())
        || !limits.hugepages.is_empty()
        || !limits.io.rates.is_empty()
        || !limits.unified.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Asked;
    use crate::tests::requests::{privileged, users};
    use crate::{describe, limits};
    use wharf_cri_api::v1::{Capability, HugepageLimit, SecurityProfile};

    type Change = fn(&mut Asked);

    fn enclosed(change: Change, limit: Change) -> bool {
        let mut asked = Asked::default();
        change(&mut asked);
        limit(&mut asked);
        let description = describe(&asked.request(), &asked.facts, &asked.places).unwrap();
        is_enclosed(&description, &limits(&description.resources()).unwrap())
    }

    fn memory(asked: &mut Asked) {
        asked.linux().resources.get_or_insert_default().memory_limit_in_bytes = 1 << 20;
    }

    #[test]
    fn who_can_lift_a_limit_is_enclosed() {
        let rows: [(&str, Change, bool); 6] = [
            ("no profile", |_| {}, true),
            (
                "no capability",
                |asked| {
                    let drop_capabilities = vec!["ALL".to_owned()];
                    let dropped = Capability { drop_capabilities, ..Capability::default() };
                    asked.security().capabilities = Some(dropped);
                },
                true,
            ),
            (
                "the runtime's profile",
                |asked| asked.security().seccomp = Some(SecurityProfile::default()),
                false,
            ),
            (
                "an administrator",
                |asked| {
                    let add_capabilities = vec!["SYS_ADMIN".to_owned()];
                    asked.security().capabilities =
                        Some(Capability { add_capabilities, ..Capability::default() });
                },
                false,
            ),
            ("privileged", privileged, false),
            ("users of its own", |asked| users(asked, 65_536), false),
        ];
        for (name, change, expected) in rows {
            assert_eq!(enclosed(change, memory), expected, "{name}");
            assert!(!enclosed(change, |_| {}), "{name}, without a limit");
        }
    }

    #[test]
    fn every_limit_counts_and_no_share() {
        fn resources(asked: &mut Asked) -> &mut wharf_cri_api::v1::LinuxContainerResources {
            asked.linux().resources.get_or_insert_default()
        }
        let rows: [(Change, bool); 9] = [
            (memory, true),
            (|asked| resources(asked).memory_swap_limit_in_bytes = 1, true),
            (|asked| resources(asked).cpu_quota = 1000, true),
            (|asked| resources(asked).cpuset_cpus = "0".to_owned(), true),
            (|asked| resources(asked).hugepage_limits = vec![HugepageLimit::default()], true),
            (|asked| resources(asked).unified = [("pids.max".to_owned(), "1".to_owned())].into(), true),
            (|asked| asked.defaults.pids_limit = Some(1000), true),
            (|asked| resources(asked).cpu_shares = 512, false),
            (|asked| (resources(asked).cpu_quota, resources(asked).memory_limit_in_bytes) = (-1, -1), false),
        ];
        for (number, (limit, expected)) in rows.into_iter().enumerate() {
            assert_eq!(enclosed(|_| {}, limit), expected, "row {number}");
        }
    }
}
