//! A pod's user namespace: from the request to the mappings of the spec, and from these to the ids of the plan.
//!
//! A pod has one range of users and one of groups, or the host's ids. Its containers have the same, and a mount is
//! mapped by exactly these: there is no other user namespace to map it by.

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder};
use wharf_cri_api::v1::{IdMapping, Mount, NamespaceMode, NamespaceOption, UserNamespace};
use wharf_types::{IdMaps, IdRange};

use crate::Refusal;
use crate::refuse::known;

const FIELD: &str = "userns_options";

/// The ids of a pod that has a user namespace.
///
/// # Errors
/// The options are not those of a user namespace that a pod can have.
pub fn of(options: &NamespaceOption) -> Result<Option<IdMaps>, Refusal> {
    options.userns_options.as_ref().map_or(Ok(None), parse)
}

/// Older kubelets send POD without mappings when they mean nothing at all.
fn parse(options: &UserNamespace) -> Result<Option<IdMaps>, Refusal> {
    let mapped = !(options.uids.is_empty() && options.gids.is_empty());
    match known(FIELD, options.mode)? {
        NamespaceMode::Container | NamespaceMode::Target => {
            Err(Refusal::field(FIELD, "the mode must be POD or NODE"))
        }
        NamespaceMode::Node if mapped => {
            Err(Refusal::field(FIELD, "a pod without a user namespace maps no ids: leave uids and gids out"))
        }
        NamespaceMode::Pod if mapped => ids(["uids", "gids"], [&options.uids, &options.gids])
            .map(Some)
            .map_err(|problem| Refusal::field(FIELD, problem)),
        NamespaceMode::Pod | NamespaceMode::Node => Ok(None),
    }
}

fn ids([uids, gids]: [&str; 2], [users, groups]: [&[IdMapping]; 2]) -> Result<IdMaps, String> {
    Ok(IdMaps { users: range(uids, users)?, groups: range(gids, groups)? })
}

/// The CRI has lists, but the kubelet sends one range, and its conformance suite wants more to be refused.
fn range(name: &str, mappings: &[IdMapping]) -> Result<IdRange, String> {
    match mappings {
        [IdMapping { host_id, container_id: 0, length }] => {
            IdRange::new(*host_id, *length).map_err(|error| format!("{name}: {error}"))
        }
        [mapping] => Err(format!(
            "{name}: id 0 of the container is not mapped: the range begins with {}",
            mapping.container_id
        )),
        [] => Err(format!("{name}: no range: both users and groups need one")),
        more => Err(format!("{name}: {} ranges: exactly one is allowed", more.len())),
    }
}

/// Checks that a container is in its pod's user namespace.
pub(crate) fn check(own: &NamespaceOption, pods: &NamespaceOption) -> Result<(), Refusal> {
    if own.userns_options.is_none() || of(own)? == of(pods)? {
        return Ok(());
    }
    Err(Refusal::field(FIELD, "they must be those of the container's pod"))
}

/// Whether the ids of a mount's files are those of the user namespace.
///
/// # Errors
/// The mappings are others than those of the pod, which has these ids.
pub(crate) fn is_mapped(mount: &Mount, pods: Option<IdMaps>) -> Result<bool, String> {
    const NAMES: [&str; 2] = ["uidMappings", "gidMappings"];
    let mappings: [&[IdMapping]; 2] = [&mount.uid_mappings, &mount.gid_mappings];
    if mappings.iter().all(|mappings| mappings.is_empty()) {
        return Ok(false);
    }
    let pods = pods.ok_or("uidMappings and gidMappings are for pods with a user namespace")?;
    if ids(NAMES, mappings)? == pods {
        return Ok(true);
    }
    Err("uidMappings and gidMappings must be those of the pod's user namespace".to_owned())
}

/// The mappings of the spec for a range.
pub(crate) fn mappings(range: IdRange) -> Result<Vec<LinuxIdMapping>, Refusal> {
    let mapping =
        LinuxIdMappingBuilder::default().host_id(range.first()).container_id(0_u32).size(range.count());
    let mapping = mapping.build().map_err(|error| Refusal::spec("linux.uidMappings", error))?;
    Ok(vec![mapping])
}

/// The ids of the container in a spec.
pub(crate) fn ids_of(linux: &Linux) -> Result<Option<IdMaps>, Refusal> {
    let named = parse_spec(linux.uid_mappings(), linux.gid_mappings());
    named.map_err(|problem| Refusal::spec("linux.uidMappings", problem))
}

/// The ids of two lists of a spec.
pub(crate) fn parse_spec(
    uids: &Option<Vec<LinuxIdMapping>>,
    gids: &Option<Vec<LinuxIdMapping>>,
) -> Result<Option<IdMaps>, String> {
    if uids.is_none() && gids.is_none() {
        return Ok(None);
    }
    let asked = |list: &Option<Vec<LinuxIdMapping>>| -> Vec<IdMapping> {
        let mapping = |mapping: &LinuxIdMapping| IdMapping {
            host_id: mapping.host_id(),
            container_id: mapping.container_id(),
            length: mapping.size(),
        };
        list.iter().flatten().map(mapping).collect()
    };
    ids(["uidMappings", "gidMappings"], [&asked(uids), &asked(gids)]).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_id: u32, container_id: u32, length: u32) -> IdMapping {
        IdMapping { host_id, container_id, length }
    }

    fn options(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> NamespaceOption {
        let users = UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() };
        NamespaceOption { userns_options: Some(users), ..NamespaceOption::default() }
    }

    const USUAL: IdMapping = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };

    #[test]
    fn a_pod_has_the_ids_that_it_asks_for() {
        use NamespaceMode::{Node, Pod};
        let other = mapping(1000, 0, 100_000);
        let ids = of(&options(Pod, &[USUAL], &[other])).unwrap().unwrap();
        assert_eq!((ids.users.on_host(7), ids.groups.on_host(7)), (Some(100_007), Some(1007)));
        for none in [NamespaceOption::default(), options(Pod, &[], &[]), options(Node, &[], &[])] {
            assert_eq!(of(&none).unwrap(), None);
        }
    }

    #[test]
    fn what_no_user_namespace_can_be_is_refused_by_name() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let rows: [(_, &[_], &[_], _); 11] = [
            (Container, &[USUAL], &[USUAL], "the mode"),
            (Target, &[], &[], "the mode"),
            (Node, &[USUAL], &[USUAL], "leave uids and gids out"),
            (Pod, &[USUAL], &[], "gids: no range"),
            (Pod, &[], &[USUAL], "uids: no range"),
            (Pod, &[mapping(1, 0, 0)], &[USUAL], "uids: the length is 0"),
            (Pod, &[USUAL], &[mapping(1, 1, 9)], "gids: id 0 of the container is not mapped"),
            (Pod, &[USUAL, mapping(300_000, 65_536, 9)], &[USUAL], "uids: 2 ranges"),
            (Pod, &[USUAL, USUAL], &[USUAL], "uids: 2 ranges"),
            (Pod, &[mapping(u32::MAX - 8, 0, 10)], &[USUAL], "uids: 10 ids starting at 4294967287"),
            (Pod, &[USUAL], &[mapping(9, 0, u32::MAX)], "gids: 4294967295 ids starting at 9"),
        ];
        for (mode, uids, gids, words) in rows {
            let refusal = of(&options(mode, uids, gids)).unwrap_err().to_string();
            assert!(refusal.starts_with("userns_options: ") && refusal.contains(words), "{words}: {refusal}");
        }
    }

    #[test]
    fn a_container_is_in_the_user_namespace_of_its_pod() {
        use NamespaceMode::{Node, Pod};
        let pods = options(Pod, &[USUAL], &[USUAL]);
        let none = NamespaceOption::default();
        for (own, pods) in [(&pods, &pods), (&none, &pods), (&options(Node, &[], &[]), &none)] {
            check(own, pods).unwrap();
        }
        let others = options(Pod, &[USUAL], &[mapping(1000, 0, 65_536)]);
        for (own, pods) in [(&others, &pods), (&options(Node, &[], &[]), &pods), (&pods, &none)] {
            assert!(check(own, pods).unwrap_err().to_string().contains("those of the container's pod"));
        }
    }

    #[test]
    fn a_mount_is_mapped_as_the_pod_is_or_not_at_all() {
        let pods = of(&options(NamespaceMode::Pod, &[USUAL], &[USUAL])).unwrap();
        let mount = |uids: &[IdMapping], gids: &[IdMapping]| Mount {
            uid_mappings: uids.to_vec(),
            gid_mappings: gids.to_vec(),
            ..Mount::default()
        };
        assert_eq!(is_mapped(&mount(&[], &[]), None), Ok(false));
        assert_eq!(is_mapped(&mount(&[], &[]), pods), Ok(false));
        assert_eq!(is_mapped(&mount(&[USUAL], &[USUAL]), pods), Ok(true));
        let other = [mapping(1000, 0, 65_536)];
        for (mount, pods, words) in [
            (mount(&[USUAL], &[USUAL]), None, "for pods with a user namespace"),
            (mount(&[USUAL], &other), pods, "must be those of the pod"),
            (mount(&[USUAL], &[]), pods, "gidMappings: no range"),
        ] {
            assert!(is_mapped(&mount, pods).unwrap_err().contains(words));
        }
    }
}
