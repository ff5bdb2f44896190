//! The sysctls of a pod: those of its own namespaces. Any other is the whole machine's, and no pod may set it.
//!
//! A key is planned as sysctl(8) writes it with dots; a `/` in it stands for a dot in a name, such as that of the
//! interface in `net.ipv4.conf.eth0/7.forwarding`. A request may have it the other way round.

use std::collections::{BTreeMap, BTreeSet};

use wharf_types::{IdMaps, IdRange};

use super::is_hostname;
use crate::namespaces::Kind;
use crate::{Defaults, Refusal};

/// What a pod with its own network may do without being root in it, as with other runtimes.
const USUAL: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), (PING_GROUPS, "0 2147483647")];

/// The groups that may open ICMP sockets: the first and the last.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// The kind of namespace that a sysctl belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Of(Kind),
    User,
}

/// The scopes in which a pod with these namespaces may set sysctls.
pub(crate) fn scopes(own: &BTreeSet<Kind>, user: Option<&IdMaps>) -> BTreeSet<Scope> {
    own.iter().map(|&kind| Scope::Of(kind)).chain(user.map(|_| Scope::User)).collect()
}

/// The sysctls of a pod, by the moment at which they are set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sysctls {
    /// When its namespaces are made.
    pub(crate) early: BTreeMap<String, String>,
    /// When it has its network, except for the usual ones: a sysctl of an interface exists only then, and whoever
    /// connects the pod may have set another value.
    pub(crate) late: BTreeMap<String, String>,
}

impl Sysctls {
    /// The same for a pod whose namespace has these groups. The kernel refuses a range that goes beyond them, as the
    /// usual one does.
    pub(crate) fn within(mut self, groups: Option<IdRange>) -> Self {
        let Some(groups) = groups else { return self };
        let wanted = [&mut self.early, &mut self.late].into_iter().filter_map(|all| all.get_mut(PING_GROUPS));
        for range in wanted {
            if let Some((first, last)) = range.trim().split_once(char::is_whitespace)
                && last.trim().parse().is_ok_and(|last: u32| last >= groups.count())
            {
                *range = format!("{first} {}", groups.count() - 1);
            }
        }
        self
    }
}

/// Whether the kernel reads a sysctl as something of the user namespace of who opens it or writes to it.
#[must_use]
pub fn is_in_user_namespace(key: &str) -> bool {
    key.starts_with("user.") || key == PING_GROUPS
}

/// The sysctls of a pod that asks for these and has these scopes. The request's come before the node's, and these
/// before the usual ones.
pub(crate) fn plan(
    asked: &BTreeMap<String, String>,
    own: &BTreeSet<Scope>,
    defaults: &Defaults,
) -> Result<Sysctls, Refusal> {
    let mut sysctls = BTreeMap::new();
    for (key, value) in asked {
        let key = dotted(key);
        check(own, &key, value)?;
        if sysctls.insert(key.clone(), value.clone()).is_some() {
            let problem = format!("{key} is given twice, with dots and with slashes");
            return Err(Refusal::field("sysctls", problem));
        }
    }
    let nodes = defaults.sysctls.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    fill(&mut sysctls, nodes, own);
    let of_network = |(key, _): &(&String, &String)| scope(key) == Some(Scope::Of(Kind::Net));
    let late = sysctls.iter().filter(of_network).map(|(key, value)| (key.clone(), value.clone())).collect();
    sysctls.retain(|key, _| !is_of_interface(key));
    fill(&mut sysctls, USUAL, own);
    Ok(Sysctls { early: sysctls, late })
}

/// Adds what the pod may set and does not set yet.
fn fill<'a>(
    sysctls: &mut BTreeMap<String, String>,
    more: impl IntoIterator<Item = (&'a str, &'a str)>,
    own: &BTreeSet<Scope>,
) {
    for (key, value) in more.into_iter().filter(|(key, _)| is_own(own, key)) {
        sysctls.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
}

/// Whether a key with dots exists only as long as one interface does.
fn is_of_interface(key: &str) -> bool {
    let names: Vec<_> = key.split('.').collect();
    matches!(names[..], ["net", _, "conf" | "neigh", name, _] if !["all", "default"].contains(&name))
}

fn check(own: &BTreeSet<Scope>, key: &str, value: &str) -> Result<(), Refusal> {
    let problem = match value_problem(key, value) {
        _ if !is_own(own, key) => "is not a sysctl of a namespace that the pod has of its own",
        Some(problem) => problem,
        None => return Ok(()),
    };
    Err(Refusal::field("sysctls", format!("{key} {problem}")))
}

/// Why the kernel would silently set something else, or nothing.
pub(crate) fn value_problem(key: &str, value: &str) -> Option<&'static str> {
    let words = value.split_ascii_whitespace().count();
    match key {
        _ if value.contains(['\n', '\0']) => Some("cannot have a line break or a NUL in its value"),
        _ if words == 0 => Some("has no value"),
        "kernel.domainname" if !is_hostname(value) => Some("is not a name of at most 64 bytes"),
        PING_GROUPS if words != 2 => Some("is not a range of two groups"),
        _ => None,
    }
}

fn is_own(own: &BTreeSet<Scope>, key: &str) -> bool {
    scope(key).is_some_and(|scope| own.contains(&scope))
}

/// A key with dots, whichever of the two comes first in it.
fn dotted(key: &str) -> String {
    let has_slashes = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    if has_slashes { sysctl_path(key) } else { key.to_owned() }
}

/// Where a sysctl is below `/proc/sys`: dots and slashes swap, so that this also makes a key of a path.
#[must_use]
pub fn sysctl_path(key: &str) -> String {
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    key.chars().map(swap).collect()
}

/// The scope of a key with dots; `None` for a malformed one and for one of the whole machine.
pub(crate) fn scope(key: &str) -> Option<Scope> {
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
    if !clean || sysctl_path(key).split('/').any(|name| matches!(name, "" | "." | "..")) {
        return None;
    }
    match key {
        "kernel.domainname" => Some(Scope::Of(Kind::Uts)),
        _ if key.starts_with("net.") => Some(Scope::Of(Kind::Net)),
        _ if key.starts_with("fs.mqueue.") || IPC.contains(&key) => Some(Scope::Of(Kind::Ipc)),
        _ if key.starts_with("user.") => Some(Scope::User),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_sysctls_have_a_scope() {
        assert_eq!(scope("net.ipv4.ip_forward"), Some(Scope::Of(Kind::Net)));
        assert_eq!(scope("net.ipv4.conf.eth0/7.forwarding"), Some(Scope::Of(Kind::Net)));
        assert_eq!(scope("kernel.shm_rmid_forced"), Some(Scope::Of(Kind::Ipc)));
        assert_eq!(scope("fs.mqueue.msg_max"), Some(Scope::Of(Kind::Ipc)));
        assert_eq!(scope("kernel.domainname"), Some(Scope::Of(Kind::Uts)));
        assert_eq!(scope("user.max_net_namespaces"), Some(Scope::User));
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net..x",
            "net.//.kernel.core_pattern",
            "net./.core",
            "kernel.hostname",
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
            let own = scopes(&own.iter().copied().collect(), None);
            plan(&asked, &own, &Defaults::default()).map(|planned| planned.early)
        };
        let (all, net, ipc) = ([Kind::Net, Kind::Ipc], ("net.core.somaxconn", "9"), ("kernel.shmmax", "9"));
        assert_eq!(planned(&all, ipc).unwrap()["kernel.shmmax"], "9");
        let usual = ("net.ipv4.ip_unprivileged_port_start", "80");
        assert_eq!(planned(&all, usual).unwrap()[usual.0], "80", "the request's counts");
        let uts = [Kind::Uts, Kind::Net];
        let (long, longest) = ("d".repeat(65), "d".repeat(64));
        assert_eq!(planned(&uts, ("kernel.domainname", &longest)).unwrap()["kernel.domainname"], longest);
        let cases: [(&[Kind], _); 14] = [
            (&all, ("kernel.shmmax", "")),
            (&all, ("kernel.shmmax", " \t")),
            (&uts, ("kernel.domainname", &long)),
            (&uts, ("kernel.domainname", "a\u{1b}b")),
            (&uts, ("kernel.domainname", "a/b")),
            (&uts, (PING_GROUPS, "5")),
            (&uts, (PING_GROUPS, "5 6 7")),
            (&[Kind::Ipc], net),
            (&[Kind::Net], ipc),
            (&all, ("vm.swappiness", "9")),
            (&all, ("kernel.shmmax", "9\n8")),
            (&all, ("kernel.domainname", "x")),
            (&all, ("user.max_net_namespaces", "9")),
            (&all, ("net/../kernel/core_pattern", "x")),
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
            plan(&asked, &scopes(&kinds.iter().copied().collect(), None), &defaults).unwrap().early
        };
        let set = planned(&[Kind::Net, Kind::Ipc], &[("net.core.somaxconn", "9")]);
        assert_eq!((&*set["net.core.somaxconn"], &*set["kernel.shmmax"]), ("9", "7"));
        assert_eq!((&*set[USUAL[0].0], &*set[USUAL[1].0]), ("1024", USUAL[1].1));
        assert_eq!(planned(&[Kind::Ipc], &[]).into_keys().collect::<Vec<_>>(), ["kernel.shmmax"]);
        assert!(planned(&[], &[]).is_empty());
    }

    #[test]
    fn a_key_may_be_written_with_slashes_and_a_name_in_it_may_have_dots() {
        let planned = |keys: &[&str]| {
            let asked = keys.iter().map(|&key| (key.to_owned(), "1".to_owned())).collect();
            plan(&asked, &[Scope::Of(Kind::Net)].into(), &Defaults::default())
        };
        for (asked, key, path) in [
            ("net/core/somaxconn", "net.core.somaxconn", "net/core/somaxconn"),
            ("net/ipv4/conf/eth0.7/x", "net.ipv4.conf.eth0/7.x", "net/ipv4/conf/eth0.7/x"),
            ("net.ipv4.conf.eth0/7.x", "net.ipv4.conf.eth0/7.x", "net/ipv4/conf/eth0.7/x"),
        ] {
            assert_eq!(planned(&[asked]).unwrap().late[key], "1", "{asked}");
            assert_eq!(sysctl_path(key), path);
        }
        let usual = planned(&["net/ipv4/ip_unprivileged_port_start"]).unwrap().early;
        assert_eq!((usual.len(), &*usual[USUAL[0].0]), (USUAL.len(), "1"), "the request's counts");
        let twice = planned(&["net/core/somaxconn", "net.core.somaxconn"]).unwrap_err();
        assert!(twice.to_string().contains("twice"), "{twice}");
    }

    #[test]
    fn a_pod_with_a_user_namespace_has_the_limits_of_that() {
        let range = wharf_types::IdRange::new(100_000, 65_536).unwrap();
        let own = scopes(&BTreeSet::new(), Some(&IdMaps { users: range, groups: range }));
        let asked = BTreeMap::from([("user.max_net_namespaces".to_owned(), "9".to_owned())]);
        let planned = plan(&asked, &own, &Defaults::default()).unwrap();
        assert_eq!(planned, Sysctls { early: asked, late: BTreeMap::new() });
    }

    #[test]
    fn groups_that_may_ping_are_those_of_the_pods_user_namespace() {
        let range = wharf_types::IdRange::new(100_000, 65_536).unwrap();
        let planned = |value: &str, groups| {
            let asked = BTreeMap::from([(PING_GROUPS.to_owned(), value.to_owned())]);
            let Sysctls { early, late } =
                plan(&asked, &[Scope::Of(Kind::Net)].into(), &Defaults::default()).unwrap().within(groups);
            assert_eq!(early[PING_GROUPS], late[PING_GROUPS]);
            early[PING_GROUPS].clone()
        };
        for (value, cut) in [
            ("0 1000", "0 1000"),
            ("0 65535", "0 65535"),
            ("0\t65536", "0 65535"),
            (USUAL[1].1, "0 65535"),
            // The kernel's word for nobody, and what it refuses.
            ("1 0", "1 0"),
            ("70000 80000", "70000 65535"),
            ("x y", "x y"),
        ] {
            assert_eq!(planned(value, Some(range)), cut);
            assert_eq!(planned(value, None), value);
        }
    }

    #[test]
    fn what_the_request_says_of_the_network_is_its_last_word() {
        let all = ["net.ipv4.conf.eth0.x", "net.ipv6.neigh.eth0/7.x", "net.ipv4.conf.all.x", "kernel.shmmax"];
        let asked = all.map(|key| (key.to_owned(), "1".to_owned())).into();
        let planned =
            plan(&asked, &scopes(&[Kind::Net, Kind::Ipc].into(), None), &Defaults::default()).unwrap();
        let set = |when: &BTreeMap<String, String>| all.map(|key| when.contains_key(key));
        assert_eq!(set(&planned.early), [false, false, true, true], "there is no interface yet");
        assert_eq!(set(&planned.late), [true, true, true, false]);
        assert!(USUAL.iter().all(|(key, _)| !planned.late.contains_key(*key)));
    }
}
