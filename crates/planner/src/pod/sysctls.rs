//! The sysctls of a pod: those of its own namespaces. Any other is the whole machine's, and no pod may set it.

use std::collections::{BTreeMap, BTreeSet};

use crate::namespaces::Kind;
use crate::{Defaults, Refusal};

/// What a pod with its own network may do without being root in it, as with other runtimes.
const USUAL: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The sysctls of a pod that asks for these and has these namespaces of its own. The request's come before the node's,
/// and these before the usual ones.
pub(crate) fn plan(
    mut sysctls: BTreeMap<String, String>,
    own: &BTreeSet<Kind>,
    defaults: &Defaults,
) -> Result<BTreeMap<String, String>, Refusal> {
    for (key, value) in &sysctls {
        check(own, key, value)?;
    }
    let nodes = defaults.sysctls.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in nodes.chain(USUAL).filter(|(key, _)| is_own(own, key)) {
        sysctls.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    Ok(sysctls)
}

fn check(own: &BTreeSet<Kind>, key: &str, value: &str) -> Result<(), Refusal> {
    if is_own(own, key) && !value.contains(['\n', '\0']) {
        return Ok(());
    }
    let problem = format!("{key} is not a sysctl of a namespace that the pod has of its own");
    Err(Refusal::field("sysctls", problem))
}

fn is_own(own: &BTreeSet<Kind>, key: &str) -> bool {
    scope(key).is_some_and(|kind| own.contains(&kind))
}

/// The kind of namespace that a key belongs to; `None` for a malformed key and for one of the whole machine.
pub(crate) fn scope(key: &str) -> Option<Kind> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    let clean = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
    if !clean || key.split(['.', '/']).any(str::is_empty) {
        return None;
    }
    let key = key.replace('/', ".");
    if key.starts_with("net.") {
        Some(Kind::Net)
    } else if key.starts_with("fs.mqueue.") || IPC.contains(&key.as_str()) {
        Some(Kind::Ipc)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_have_a_scope() {
        assert_eq!(scope("net.ipv4.ip_forward"), Some(Kind::Net));
        assert_eq!(scope("kernel.shm_rmid_forced"), Some(Kind::Ipc));
        assert_eq!(scope("fs.mqueue.msg_max"), Some(Kind::Ipc));
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net..x",
            "net/../kernel/core_pattern",
            "",
            "net.\nx",
            "kernel",
        ] {
            assert_eq!(scope(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_sysctl_is_set_where_it_is_the_pods_own_and_refused_elsewhere() {
        let planned = |own: &[Kind], (key, value): (&str, &str)| {
            let asked = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            plan(asked, &own.iter().copied().collect(), &Defaults::default())
        };
        let (all, net, ipc) = ([Kind::Net, Kind::Ipc], ("net.core.somaxconn", "9"), ("kernel.shmmax", "9"));
        assert_eq!(planned(&all, ipc).unwrap()["kernel.shmmax"], "9");
        let usual = ("net.ipv4.ip_unprivileged_port_start", "80");
        assert_eq!(planned(&all, usual).unwrap()[usual.0], "80", "the request's counts");
        let cases: [(&[Kind], _); 4] = [
            (&[Kind::Ipc], net),
            (&[Kind::Net], ipc),
            (&all, ("vm.swappiness", "9")),
            (&all, ("kernel.shmmax", "9\n8")),
        ];
        for (own, sysctl) in cases {
            let error = planned(own, sysctl).unwrap_err();
            assert!(error.to_string().starts_with("sysctls: "), "{error}");
        }
    }

    #[test]
    fn the_nodes_sysctls_are_set_where_a_pod_has_the_namespace_and_says_nothing_else() {
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let all = [("net.core.somaxconn", "7"), ("kernel.shmmax", "7"), (USUAL[0].0, "1024")];
        let defaults = Defaults { sysctls: all.map(own).into(), ..Defaults::default() };
        let planned = |kinds: &[Kind], asked: &[(&str, &str)]| {
            let asked = asked.iter().copied().map(own).collect();
            plan(asked, &kinds.iter().copied().collect(), &defaults).unwrap()
        };
        let set = planned(&[Kind::Net, Kind::Ipc], &[("net.core.somaxconn", "9")]);
        assert_eq!((&*set["net.core.somaxconn"], &*set["kernel.shmmax"]), ("9", "7"));
        assert_eq!((&*set[USUAL[0].0], &*set[USUAL[1].0]), ("1024", USUAL[1].1));
        assert_eq!(planned(&[Kind::Ipc], &[]).into_keys().collect::<Vec<_>>(), ["kernel.shmmax"]);
        assert!(planned(&[], &[]).is_empty());
    }
}
