//! What plugins adjust in containers that are created, and update in those that exist.

use std::fs;

use tonic::Code;
use wharf_cri_api::v1::LinuxContainerResources;
use wharf_nri::api::*;

use super::plugin::{Asked, Plan, Reply, adjusting, shares};
use crate::client::Client;
use crate::world::{World, run, run_on, until};

/// The container's share of the CPUs, as v1 counts it.
async fn shares_of(client: &Client, container: &str) -> i64 {
    client.status(container).await.unwrap().resources.unwrap().linux.unwrap().cpu_shares
}

fn linux(adjust: &mut ContainerAdjustment) -> &mut LinuxContainerAdjustment {
    adjust.linux.get_or_insert_default()
}

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

/// Everything that a container may have, adjusted, and how it then is inside.
fn everything(host: &str) -> impl Fn(Asked<'_>) -> Reply + Send + 'static {
    let host = host.to_owned();
    move |(method, _)| match method {
        "CreateContainer" => adjusting(|adjust| {
            adjust.env = vec![env("ADDED", "two words"), env("KEPT", "replaced"), env("-GONE", "")];
            adjust.args = ["sh", "-c", "exec sleep 987"].map(str::to_owned).to_vec();
            adjust.annotations.insert("plugin".to_owned(), "was here".to_owned());
            adjust.mounts = vec![
                Mount { destination: "-/gone".to_owned(), ..Mount::default() },
                Mount {
                    destination: "/added".to_owned(),
                    r#type: "bind".to_owned(),
                    source: host.clone(),
                    options: ["bind", "ro"].map(str::to_owned).to_vec(),
                },
            ];
            adjust.rlimits = vec![PosixRlimit { r#type: "RLIMIT_NOFILE".to_owned(), hard: 321, soft: 123 }];
            let linux = linux(adjust);
            linux.devices = vec![LinuxDevice {
                path: "/dev/again".to_owned(),
                r#type: "c".to_owned(),
                major: 1,
                minor: 5,
                file_mode: Some(OptionalUInt32 { value: 0o600 }),
                ..LinuxDevice::default()
            }];
            linux.oom_score_adj = Some(OptionalInt { value: 765 });
            let memory =
                LinuxMemory { limit: Some(OptionalInt64 { value: 64 << 20 }), ..LinuxMemory::default() };
            let cpu = LinuxCpu { shares: Some(OptionalUInt64 { value: 777 }), ..LinuxCpu::default() };
            linux.resources = Some(LinuxResources {
                memory: Some(memory),
                cpu: Some(cpu),
                pids: Some(LinuxPids { limit: 77 }),
                ..LinuxResources::default()
            });
            linux.seccomp_policy = Some(LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".to_owned(),
                syscalls: vec![LinuxSyscall {
                    names: vec!["mkdir".to_owned(), "mkdirat".to_owned()],
                    action: "SCMP_ACT_ERRNO".to_owned(),
                    errno_ret: Some(OptionalUInt32 { value: 95 }),
                    ..LinuxSyscall::default()
                }],
                ..LinuxSeccomp::default()
            });
        }),
        _ => Reply::Nothing,
    }
}

const INSIDE: &[(&str, &str)] = &[
    ("echo $ADDED/$KEPT/$GONE", "two words/replaced/"),
    ("tr '\\0' ' ' </proc/1/cmdline", "sleep 987"),
    (
        "cat /added/file; touch /added/x 2>&1 | grep -o Read-only; ls -d /gone 2>/dev/null",
        "content\nRead-only",
    ),
    ("sed -n 's/^Max open files *//p' /proc/1/limits", "123                  321                  files"),
    ("stat -c '%a %t:%T' /dev/again; head -c 3 /dev/again | wc -c", "600 1:5\n3"),
    ("cat /proc/1/oom_score_adj", "765"),
    ("mkdir /x 2>&1 | grep -o 'not supported'", "not supported"),
    ("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null", "77"),
];

#[test]
fn what_is_adjusted_is_seen_inside() {
    run(async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let host = dir.join("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("file"), "content\n").unwrap();
        let _plugin = Plan::new("10", "all", everything(&host.display().to_string())).connect(&dir).await;
        let pod = client.run(&client.pod("adjusted")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        for (key, value) in [("KEPT", "asked"), ("GONE", "asked")] {
            let value = value.into();
            config.envs.push(wharf_cri_api::v1::KeyValue { key: key.to_owned(), value });
        }
        config.mounts.push(wharf_cri_api::v1::Mount {
            container_path: "/gone".to_owned(),
            host_path: host.display().to_string(),
            ..Default::default()
        });
        let id = client.launch(&pod, &config).await.unwrap();
        for (script, expected) in INSIDE {
            assert_eq!(client.output(&id, &format!("{script}; true")).await, *expected, "{script}");
        }
        let asked = client.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
        assert_eq!(
            (asked.memory_limit_in_bytes, asked.cpu_shares, asked.oom_score_adj),
            (64 << 20, 777, 765)
        );
    });
}

/// What cannot be done, and how the refusal names it.
type Case = (&'static str, fn(&mut ContainerAdjustment));

const IMPOSSIBLE: &[Case] = &[
    ("CDI_devices", |adjust| adjust.cdi_devices.push(CdiDevice { name: "vendor.com/device=a".into() })),
    ("linux.cgroupsPath", |adjust| linux(adjust).cgroups_path = "/elsewhere".into()),
    ("linux.sysctl", |adjust| drop(linux(adjust).sysctl.insert("kernel.shm_rmid_forced".into(), "1".into()))),
    ("linux.netDevices", |adjust| drop(linux(adjust).net_devices.insert("eth9".into(), Default::default()))),
    ("linux.intelRdt", |adjust| {
        let clos_id = Some(OptionalString { value: "gold".into() });
        linux(adjust).rdt = Some(LinuxRdt { clos_id, ..LinuxRdt::default() });
    }),
    ("blockio_class", |adjust| {
        let blockio_class = Some(OptionalString { value: "gold".into() });
        linux(adjust).resources = Some(LinuxResources { blockio_class, ..LinuxResources::default() });
    }),
    ("linux.namespaces", |adjust| {
        linux(adjust).namespaces =
            vec![LinuxNamespace { r#type: "pid".into(), path: "/proc/1/ns/pid".into() }];
    }),
    ("rlimits", |adjust| {
        adjust.rlimits.push(PosixRlimit { r#type: "RLIMIT_NOTHING".into(), ..Default::default() })
    }),
    ("seccomp_policy", |adjust| {
        let default_action = "SCMP_ACT_DANCE".to_owned();
        linux(adjust).seccomp_policy = Some(LinuxSeccomp { default_action, ..LinuxSeccomp::default() });
    }),
    ("mounts", |adjust| adjust.mounts.push(Mount { destination: "/x".into(), ..Mount::default() })),
    ("oom_score_adj", |adjust| linux(adjust).oom_score_adj = Some(OptionalInt { value: 5000 })),
];

#[test]
fn what_cannot_be_adjusted_is_refused_by_its_name() {
    run(async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let respond = |(method, payload): Asked<'_>| {
            let name = <CreateContainerRequest as prost::Message>::decode(payload);
            let name = name.ok().and_then(|request| request.container).map(|container| container.name);
            let case = IMPOSSIBLE
                .iter()
                .find(|(field, _)| name == Some(field.to_lowercase().replace(['.', '_'], "-")));
            match (method, case) {
                ("CreateContainer", Some((_, change))) => adjusting(change),
                _ => Reply::Nothing,
            }
        };
        let plugin = Plan::new("10", "eager", respond).connect(&dir).await;
        let pod = client.run(&client.pod("refused")).await.unwrap();
        for (field, _) in IMPOSSIBLE {
            let name = field.to_lowercase().replace(['.', '_'], "-");
            let refused = client.create(&pod, &client.container(&name, "true")).await.unwrap_err();
            let message = refused.message();
            assert!(message.contains(field) && message.contains("10-eager"), "{field}: {message}");
            assert_eq!(refused.code(), Code::FailedPrecondition, "{field}: {message}");
            let last = plugin.events("refused");
            assert_eq!(last.last(), Some(&format!("RemoveContainer {name}")), "{last:?}");
        }
        assert_eq!(client.containers().await, []);
    });
}

#[test]
fn two_plugins_that_want_different_things_are_both_named() {
    run(async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let wanting = |value: &'static str| {
            move |(method, _): Asked<'_>| match method {
                "CreateContainer" => adjusting(|adjust| adjust.env = vec![env("MODE", value)]),
                _ => Reply::Nothing,
            }
        };
        let second = Plan::new("20", "b", wanting("two")).connect(&dir).await;
        let first = Plan::new("10", "a", wanting("one")).connect(&dir).await;
        let pod = client.run(&client.pod("torn")).await.unwrap();
        let config = client.container("main", "echo $MODE; sleep 1000");
        let refused = client.create(&pod, &config).await.unwrap_err();
        assert!(refused.message().contains("10-a and 20-b both set env MODE"), "{refused}");
        let asked: CreateContainerRequest = second.last("CreateContainer");
        assert!(
            asked.container.unwrap().env.contains(&"MODE=one".to_owned()),
            "it sees what the first one did"
        );
        first.connection.close();
        let id = until("the first plugin is gone", async || client.launch(&pod, &config).await.ok()).await;
        assert_eq!(client.output(&id, "echo $MODE").await, "two");
    });
}

/// A plugin that changes the shares of others when a container is created and when one has stopped, and doubles what
/// an update asks for.
fn balancing((method, payload): Asked<'_>) -> Reply {
    match method {
        "CreateContainer" => {
            let request = <CreateContainerRequest as prost::Message>::decode(payload).unwrap();
            let container = request.container.unwrap();
            let other = container.annotations.get("other").cloned();
            let update = other.into_iter().map(|id| shares(&id, 300)).collect();
            Reply::Create(Box::new(CreateContainerResponse { update, ..Default::default() }))
        }
        "UpdateContainer" => {
            let request = <UpdateContainerRequest as prost::Message>::decode(payload).unwrap();
            let asked = request.linux_resources.unwrap().cpu.unwrap().shares.unwrap().value;
            let update = vec![shares(&request.container.unwrap().id, 2 * asked)];
            Reply::Update(UpdateContainerResponse { update, ..Default::default() })
        }
        "StopContainer" => {
            let request = <ContainerRequest as prost::Message>::decode(payload).unwrap();
            let other = request.container.unwrap().annotations.get("other").cloned();
            Reply::Stop(StopContainerResponse {
                update: other.into_iter().map(|id| shares(&id, 500)).collect(),
            })
        }
        _ => Reply::Nothing,
    }
}

#[test]
fn plugins_update_containers() {
    run(async |world: &mut World| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let plugin = Plan::new("10", "balance", balancing).connect(&dir).await;
        let pod = client.run(&client.pod("shared")).await.unwrap();
        let first = client.launch(&pod, &client.container("first", "sleep 1000")).await.unwrap();
        let mut config = client.container("second", "sleep 1000");
        config.annotations.insert("other".to_owned(), first.clone());
        let second = client.launch(&pod, &config).await.unwrap();
        assert_eq!(shares_of(&client, &first).await, 300);
        client
            .update(&first, LinuxContainerResources { cpu_shares: 200, ..Default::default() })
            .await
            .unwrap();
        assert_eq!(shares_of(&client, &first).await, 400);
        client.stop_container(&second, 0).await.unwrap();
        assert_eq!(shares_of(&client, &first).await, 500);

        // Of its own accord.
        let mut impossible = shares(&first, 5);
        impossible.linux.as_mut().unwrap().resources.as_mut().unwrap().rdt_class =
            Some(OptionalString { value: "gold".to_owned() });
        let mut ignored = shares("nobody", 5);
        ignored.ignore_failure = true;
        let updates =
            vec![shares(&first, 600), shares("unknown", 5), shares(&second, 5), ignored, impossible];
        let failed = plugin.update(updates).await.unwrap();
        assert_eq!(failed, ["unknown".to_owned(), second, first.clone()]);
        assert_eq!(shares_of(&client, &first).await, 600);
    });
}

const VALIDATOR: &str = "[nri.validator]\nenabled = true\nreject_unconfined_seccomp = true\nrequired_plugins = [\"guard\"]\n\
                         tolerate_missing_plugins_annotation = \"tolerate\"\n";

#[test]
fn what_plugins_do_is_validated() {
    let prepare = |dir: &std::path::Path| {
        fs::create_dir(dir.join("config.toml.d")).unwrap();
        fs::write(dir.join("config.toml.d/10-validator.toml"), VALIDATOR).unwrap();
    };
    run_on(prepare, async |world| {
        let (dir, client) = (world.dir.clone(), world.client.clone());
        let tolerant = {
            let mut pod = client.pod("tolerant");
            pod.annotations.insert("tolerate".to_owned(), "true".to_owned());
            client.run(&pod).await.unwrap()
        };
        let pod = client.run(&client.pod("strict")).await.unwrap();
        let config = |name: &str| client.container(name, "true");
        client.create(&tolerant, &config("without")).await.unwrap();
        let refused = client.create(&pod, &config("without")).await.unwrap_err();
        assert!(refused.message().contains("the required plugin guard is not there"), "{refused}");
        // Another plugin validates, too.
        let guard = |(method, payload): Asked<'_>| match method {
            "CreateContainer" => adjusting(|adjust| {
                let request = <CreateContainerRequest as prost::Message>::decode(payload).unwrap();
                if request.container.unwrap().name == "unfiltered" {
                    let policy =
                        LinuxSeccomp { default_action: "SCMP_ACT_ALLOW".into(), ..Default::default() };
                    linux(adjust).seccomp_policy = Some(policy);
                }
                adjust.env = vec![env("A", "1")];
            }),
            "ValidateContainerAdjustment" => {
                let request =
                    <ValidateContainerAdjustmentRequest as prost::Message>::decode(payload).unwrap();
                assert_eq!(request.plugins[0].name, "guard");
                let owners = &request.owners.unwrap().owners[&request.container.as_ref().unwrap().id];
                assert_eq!(owners.compound[&i32::from(Field::Env)].owners["A"], "10-guard");
                let reject = request.container.unwrap().name == "rejected";
                Reply::Validate(ValidateContainerAdjustmentResponse { reject, reason: "by its name".into() })
            }
            _ => Reply::Nothing,
        };
        let _guard = Plan::new("10", "guard", guard).connect(&dir).await;
        client.create(&pod, &config("fine")).await.unwrap();
        let rejected = client.create(&pod, &config("rejected")).await.unwrap_err();
        assert!(rejected.message().contains("NRI plugin 10-guard rejects"), "{rejected}");
        assert!(rejected.message().contains("by its name"), "{rejected}");
        let mut unconfined = config("unfiltered");
        let unconfined_profile = wharf_cri_api::v1::security_profile::ProfileType::Unconfined;
        crate::client::security(&mut unconfined).seccomp = Some(wharf_cri_api::v1::SecurityProfile {
            profile_type: unconfined_profile.into(),
            ..Default::default()
        });
        let refused = client.create(&pod, &unconfined).await.unwrap_err();
        assert!(refused.message().contains("10-guard may not set the seccomp policy"), "{refused}");
    });
}
