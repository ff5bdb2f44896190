//! Plugins that agree, and plugins that do not.

use std::collections::BTreeMap;

use super::*;
use crate::api::{
    CdiDevice, Hook, KeyValue, LinuxContainerUpdate, LinuxMemory, LinuxNamespace, Mount, OptionalInt,
    OptionalInt64, OptionalString, PosixRlimit,
};

fn container() -> Container {
    Container {
        id: "c".to_owned(),
        args: vec!["sh".to_owned()],
        env: vec!["A=1".to_owned(), "B=2".to_owned()],
        mounts: vec![mount("/data", "/host")],
        ..Container::default()
    }
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount { destination: destination.to_owned(), source: source.to_owned(), ..Mount::default() }
}

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn limit(bytes: i64) -> LinuxResources {
    let limit = Some(OptionalInt64 { value: bytes });
    LinuxResources {
        memory: Some(LinuxMemory { limit, ..LinuxMemory::default() }),
        ..LinuxResources::default()
    }
}

fn adjusting(change: impl FnOnce(&mut ContainerAdjustment)) -> CreateContainerResponse {
    let mut adjust = ContainerAdjustment::default();
    change(&mut adjust);
    CreateContainerResponse { adjust: Some(adjust), ..CreateContainerResponse::default() }
}

fn linux(adjust: &mut ContainerAdjustment) -> &mut LinuxContainerAdjustment {
    adjust.linux.get_or_insert_default()
}

fn update(id: &str, resources: LinuxResources) -> ContainerUpdate {
    ContainerUpdate {
        container_id: id.to_owned(),
        linux: Some(LinuxContainerUpdate { resources: Some(resources) }),
        ignore_failure: false,
    }
}

/// What two plugins may not both set, and how a refusal names it.
type Case = (&'static str, fn(&mut ContainerAdjustment));

const CASES: &[Case] = &[
    ("annotations key", |adjust| drop(adjust.annotations.insert("key".into(), "x".into()))),
    ("mounts /a", |adjust| adjust.mounts.push(mount("/a", "/b"))),
    ("mounts /data", |adjust| adjust.mounts.push(mount("-/data", ""))),
    ("env C", |adjust| adjust.env.push(env("C", "3"))),
    ("args", |adjust| adjust.args = vec!["other".into()]),
    ("rlimits RLIMIT_CORE", |adjust| {
        adjust.rlimits.push(PosixRlimit { r#type: "RLIMIT_CORE".into(), hard: 1, soft: 1 });
    }),
    ("cdi devices v/c=d", |adjust| adjust.cdi_devices.push(CdiDevice { name: "v/c=d".into() })),
    ("devices /dev/x", |adjust| {
        linux(adjust).devices.push(crate::api::LinuxDevice { path: "/dev/x".into(), ..Default::default() });
    }),
    ("mem limit", |adjust| linux(adjust).resources = Some(limit(1))),
    ("cgroups unified k", |adjust| {
        let unified = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        linux(adjust).resources = Some(LinuxResources { unified, ..LinuxResources::default() });
    }),
    ("blockio class", |adjust| {
        let blockio_class = Some(OptionalString::default());
        linux(adjust).resources = Some(LinuxResources { blockio_class, ..LinuxResources::default() });
    }),
    ("cgroups path", |adjust| linux(adjust).cgroups_path = "/x".into()),
    ("oom score adj", |adjust| linux(adjust).oom_score_adj = Some(OptionalInt { value: 1 })),
    ("io priority", |adjust| linux(adjust).io_priority = Some(Default::default())),
    ("seccomp policy", |adjust| linux(adjust).seccomp_policy = Some(Default::default())),
    ("namespace network", |adjust| {
        linux(adjust).namespaces.push(LinuxNamespace { r#type: "network".into(), path: "/x".into() });
    }),
    ("sysctl a.b", |adjust| drop(linux(adjust).sysctl.insert("a.b".into(), "1".into()))),
    ("net devices eth1", |adjust| {
        linux(adjust).net_devices.insert("eth1".into(), Default::default());
    }),
    ("scheduler", |adjust| linux(adjust).scheduler = Some(Default::default())),
    ("rdt clos id", |adjust| {
        linux(adjust).rdt =
            Some(LinuxRdt { clos_id: Some(OptionalString::default()), ..LinuxRdt::default() });
    }),
    ("memory policy", |adjust| linux(adjust).memory_policy = Some(Default::default())),
];

#[test]
fn two_plugins_may_not_set_the_same() {
    for (what, change) in CASES {
        let mut merged = Merged::creating(container());
        merged.created("10-a", adjusting(change)).unwrap_or_else(|error| panic!("{what}: {error}"));
        let refused = merged.created("20-b", adjusting(change)).unwrap_err();
        let conflict = Error::Conflict { one: "10-a".into(), other: "20-b".into(), what: (*what).to_owned() };
        assert_eq!(refused, conflict);
        let mut merged = Merged::creating(container());
        merged.created("10-a", adjusting(change)).unwrap();
        merged.created("10-a", adjusting(change)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_ne!(merged.changes().adjust, ContainerAdjustment::default(), "{what}");
    }
}

#[test]
fn the_next_plugin_sees_what_the_last_one_set() {
    let mut merged = Merged::creating(container());
    let first = adjusting(|adjust| {
        adjust.env = vec![env("A", "new"), env("-B", ""), env("C", "3")];
        adjust.args = vec!["program".into()];
        adjust.mounts = vec![mount("-/data", ""), mount("/other", "/host")];
        linux(adjust).resources = Some(limit(7));
    });
    merged.created("10-a", first).unwrap();
    let shown = merged.container();
    assert_eq!(
        (&*shown.env, &*shown.args),
        (&["A=new".to_owned(), "C=3".into()][..], &["program".to_owned()][..])
    );
    assert_eq!(shown.mounts, [mount("/other", "/host")]);
    assert_eq!(shown.linux.as_ref().unwrap().resources, Some(limit(7)));
    assert_eq!(merged.changes().authors, ["10-a"]);
}

#[test]
fn what_a_plugin_removes_itself_it_may_set_anew() {
    let mut merged = Merged::creating(container());
    let set = |value: &'static str| adjusting(move |adjust| adjust.env = vec![env("C", value)]);
    merged.created("10-a", set("1")).unwrap();
    let replaced = adjusting(|adjust| adjust.env = vec![env("-C", ""), env("C", "2")]);
    merged.created("20-b", replaced).unwrap();
    let third = merged.created("30-c", set("3")).unwrap_err();
    assert!(third.to_string().contains("20-b and 30-c both set env C"), "{third}");
    assert_eq!(merged.container().env, ["A=1", "B=2", "C=2"]);

    let mut merged = Merged::creating(container());
    merged.created("10-a", adjusting(|adjust| adjust.args = vec!["one".into()])).unwrap();
    let replaced = adjusting(|adjust| adjust.args = vec![String::new(), "two".into()]);
    merged.created("20-b", replaced).unwrap();
    assert_eq!(merged.changes().adjust.args, ["two"]);

    let mut merged = Merged::creating(container());
    merged
        .created("10-a", adjusting(|adjust| drop(adjust.annotations.insert("k".into(), "1".into()))))
        .unwrap();
    merged
        .created("20-b", adjusting(|adjust| drop(adjust.annotations.insert("-k".into(), String::new()))))
        .unwrap();
    assert_eq!(merged.changes().adjust.annotations, BTreeMap::from([("-k".to_owned(), String::new())]));
}

#[test]
fn hooks_of_all_plugins_are_run() {
    let mut merged = Merged::creating(container());
    for plugin in ["10-a", "20-b"] {
        let hook = Hook { path: format!("/bin/{plugin}"), ..Hook::default() };
        let hooks = Hooks { prestart: vec![hook], ..Hooks::default() };
        merged.created(plugin, adjusting(|adjust| adjust.hooks = Some(hooks))).unwrap();
    }
    assert_eq!(merged.owners().owner("c", Field::OciHooks, None), Some("10-a,20-b"));
    assert_eq!(merged.changes().adjust.hooks.unwrap().prestart.len(), 2);
}

#[test]
fn updates_of_one_container_become_one() {
    let mut merged = Merged::creating(container());
    let response =
        |updates| CreateContainerResponse { update: updates, ..CreateContainerResponse::default() };
    merged.created("10-a", response(vec![update("x", limit(1)), update("y", limit(2))])).unwrap();
    let limit_of_pids = Some(crate::api::LinuxPids { limit: 3 });
    let pids = LinuxResources { pids: limit_of_pids, ..LinuxResources::default() };
    merged.created("20-b", response(vec![update("x", pids)])).unwrap();
    let mut ignored = update("x", limit(9));
    ignored.ignore_failure = true;
    merged.created("20-b", response(vec![ignored])).unwrap();
    let refused = merged.created("20-b", response(vec![update("y", limit(9))])).unwrap_err();
    assert_eq!(refused.to_string(), "NRI plugins 10-a and 20-b both set mem limit");
    let early = merged.created("20-b", response(vec![update("c", limit(9))])).unwrap_err();
    assert!(matches!(early, Error::Early { .. }), "{early}");
    let updates = merged.changes().updates;
    let resources = updates[0].linux.as_ref().unwrap().resources.as_ref().unwrap();
    assert_eq!(resources, &LinuxResources { pids: Some(crate::api::LinuxPids { limit: 3 }), ..limit(1) });
    assert_eq!((updates.len(), updates[1].container_id.as_str(), updates[0].ignore_failure), (2, "y", false));
}

#[test]
fn plugins_change_what_an_update_asks_for() {
    let mut merged = Merged::updating("c", limit(5));
    let response =
        |updates| UpdateContainerResponse { update: updates, ..UpdateContainerResponse::default() };
    merged.updated("10-a", response(vec![update("c", limit(6)), update("x", limit(7))])).unwrap();
    assert_eq!(merged.resources(), Some(&limit(6)), "which the next plugin sees");
    assert!(merged.updated("20-b", response(vec![update("c", limit(8))])).is_err());
    let changes = merged.changes();
    assert_eq!((changes.resources, changes.updates), (Some(limit(6)), vec![update("x", limit(7))]));
}
