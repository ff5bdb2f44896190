//! A container's limits hold although it is the host's root user, may call what it likes, and mounts its cgroups.

use std::fs;

use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, security};
use crate::userns;
use crate::world::{run, until};

const MIB: i64 = 1 << 20;

fn memory(mib: i64) -> LinuxContainerResources {
    LinuxContainerResources { memory_limit_in_bytes: mib * MIB, ..LinuxContainerResources::default() }
}

/// A container without a seccomp profile, which finds the host's programs in `/host`.
pub(crate) fn unconfined(client: &Client, name: &str, script: &str) -> ContainerConfig {
    let mut config = client.container(name, script);
    let unconfined = security_profile::ProfileType::Unconfined.into();
    security(&mut config).seccomp = Some(SecurityProfile { profile_type: unconfined, ..Default::default() });
    config.linux.get_or_insert_default().resources = Some(memory(64));
    config.mounts = vec![Mount {
        container_path: "/host".to_owned(),
        host_path: "/".to_owned(),
        readonly: true,
        ..Mount::default()
    }];
    config
}

/// A line of shell that lifts the limit on memory in what the container can mount as its cgroup, and shows the old one;
/// memory and swap together have a limit, too. `hack/vm` does it with cgroup v2.
const LIFT: &str = "mkdir -p /m
    libraries=/host/lib/x86_64-linux-gnu
    $libraries/ld-linux-x86-64.so.2 --library-path $libraries /host/usr/bin/unshare -U -r -C -m sh -c '
        mount -t cgroup -o memory none /m && cd /m && cat memory.limit_in_bytes &&
        { [ ! -e memory.memsw.limit_in_bytes ] || echo -1 >memory.memsw.limit_in_bytes; } &&
        echo -1 >memory.limit_in_bytes'";

/// The limits on memory and CPU time of the cgroup that bears a container's id, and that of the one below it.
fn held(pod: &str, id: &str) -> [(i64, i64); 2] {
    ["", "/container"].map(|below| {
        let read = |hierarchy, file| {
            let path = format!("/sys/fs/cgroup/{hierarchy}/wharf/{pod}/{id}{below}/{file}");
            fs::read_to_string(path).unwrap().trim().parse().unwrap()
        };
        (read("memory", "memory.limit_in_bytes"), read("cpu", "cpu.cfs_quota_us"))
    })
}

const SHOW_LIMIT: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes";

/// What a command that needs 100 MiB of memory ends with.
async fn takes_too_much(client: &Client, id: &str) -> i32 {
    client.exec(id, "dd if=/dev/zero of=/dev/null bs=100M count=1", 30).await.unwrap().exit_code
}

#[test]
fn a_container_that_mounts_its_cgroups_lifts_no_limit() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("lifts")).await.unwrap();
        let mut config = unconfined(client, "main", "sleep 1000");
        let limits = LinuxContainerResources { cpu_quota: 50_000, cpu_period: 100_000, ..memory(64) };
        config.linux.as_mut().unwrap().resources = Some(limits);
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(held(&pod, &id), [(64 * MIB, 50_000); 2]);
        // It finds itself at the root of its cgroups, with its limit, and so does a command.
        let limit = (64 * MIB).to_string();
        assert_eq!(client.output(&id, SHOW_LIMIT).await, limit);
        assert_eq!(client.output(&id, "cut -d: -f3 /proc/1/cgroup | sort -u").await, "/");
        let outside =
            "cat /proc/self/cgroup /proc/self/mountinfo | grep -v ' /host/' | grep '/[.][.]' || true";
        assert_eq!(client.output(&id, outside).await, "");
        assert_eq!(client.output(&id, LIFT).await, limit);
        let [above, inside] = held(&pod, &id);
        assert!(above == (64 * MIB, 50_000) && inside.0 != 64 * MIB, "{above:?} {inside:?}");
        assert_eq!(takes_too_much(client, &id).await, 137);
        // An update changes both, and is refused for both.
        client.update(&id, LinuxContainerResources { cpu_quota: 20_000, ..memory(96) }).await.unwrap();
        assert_eq!(held(&pod, &id), [(96 * MIB, 20_000); 2]);
        let nowhere = LinuxContainerResources { cpuset_cpus: "4095".to_owned(), ..memory(32) };
        client.update(&id, nowhere).await.unwrap_err();
        assert_eq!(held(&pod, &id), [(96 * MIB, 20_000); 2]);
        assert_eq!(client.output(&id, SHOW_LIMIT).await, (96 * MIB).to_string());
        // So does the next daemon.
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        client.update(&id, memory(48)).await.unwrap();
        assert_eq!(held(&pod, &id), [(48 * MIB, 20_000); 2]);
        client.output(&id, LIFT).await;
        assert_eq!(takes_too_much(client, &id).await, 137);
        let used = client.container_stats(&id).await.memory.unwrap();
        assert!(used.usage_bytes.unwrap().value > 0);
        client.stop_container(&id, 0).await.unwrap();
        client.remove_container(&id).await.unwrap();
        assert_eq!(world.cgroups(&id), 0);
    });
}

#[test]
fn want_of_memory_is_the_reason_whichever_cgroup_had_the_limit() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("wants")).await.unwrap();
        for (name, before) in [("limited", "true"), ("lifted", LIFT)] {
            let script = format!("set -e\n{before}\nexec tail /dev/zero");
            let id = client.launch(&pod, &unconfined(client, name, &script)).await.unwrap();
            let status = client.exited(&id).await;
            assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"), "{name}");
        }
    });
}

/// In the unified hierarchy there is a bound, and an exec's cgroup is below the container's.
#[test]
fn a_container_that_makes_cgroups_is_told_what_is_in_the_way() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("threaded")).await.unwrap();
        let script = LIFT.split_once("sh -c").unwrap().0.to_owned()
            + "sh -c 'mount -t cgroup2 none /m && mkdir /m/a && echo threaded >/m/a/cgroup.type && exec sleep 1000'";
        let id = client.launch(&pod, &unconfined(client, "main", &script)).await.unwrap();
        let read = |file: &str| {
            fs::read_to_string(format!("/sys/fs/cgroup/unified/wharf/{pod}/{id}/{file}")).unwrap()
        };
        assert_eq!(read("cgroup.max.descendants"), "4097\n");
        until("it has a threaded cgroup", async || {
            (read("container/cgroup.type") == "domain threaded\n").then_some(())
        })
        .await;
        let error = client.exec(&id, "true", 10).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("threaded cgroups"), "{error}");
        client.stop_container(&id, 0).await.unwrap();
        client.remove_container(&id).await.unwrap();
        assert_eq!(world.cgroups(&id), 0);
    });
}

/// Who cannot mount anything needs no second cgroup, nor does who may do anything.
#[test]
fn only_who_could_lift_limits_has_a_second_cgroup() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("second");
        pod_security(&mut config).privileged = true;
        let pod = client.run(&config).await.unwrap();
        let users = client.run(&userns::pod(client, "users")).await.unwrap();
        let make = |name: &str, change: fn(&mut ContainerConfig)| {
            let mut config = unconfined(client, name, "sleep 1000");
            config.mounts.clear();
            change(&mut config);
            config
        };
        let rows = [
            (&pod, make("unconfined", |_| {}), true),
            (&users, make("users", |_| {}), false),
            (&pod, make("confined", |config| security(config).seccomp = Some(Default::default())), false),
            (&pod, make("privileged", |config| security(config).privileged = true), false),
            (&pod, make("unlimited", |config| config.linux.as_mut().unwrap().resources = None), false),
        ];
        for (pod, config, expected) in rows {
            let id = client.launch(pod, &config).await.unwrap();
            assert_eq!(world.cgroups(&format!("{id}/container")) > 0, expected, "{config:?}");
        }
    });
}

/// The first process of a shared PID namespace has its supervisor's cgroups, and everybody in the pod sees it.
#[test]
fn the_cgroup_namespace_of_a_pods_first_process_leads_to_no_cgroup_but_a_containers() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("first");
        pod_security(&mut config).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
        let pod = client.run(&config).await.unwrap();
        let mut ids = Vec::new();
        for name in ["one", "other"] {
            let mut config = unconfined(client, name, "sleep 1000");
            security(&mut config).capabilities = Some(Capability {
                add_capabilities: ["SYS_ADMIN", "SYS_PTRACE"].map(str::to_owned).into(),
                ..Capability::default()
            });
            security(&mut config).namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
            ids.push(client.launch(&pod, &config).await.unwrap());
        }
        let enter = |options: &str| {
            format!(
                "libraries=/host/lib/x86_64-linux-gnu; mkdir -p /m
                $libraries/ld-linux-x86-64.so.2 --library-path $libraries /host/usr/bin/nsenter \
                    --cgroup=/proc/1/ns/cgroup sh -c 'mount -t {options} none /m && find /m -name cgroup.procs | xargs cat'"
            )
        };
        let hierarchies = ["cgroup2", "cgroup -o memory", "cgroup -o freezer", "cgroup -o none,name=systemd"];
        for options in hierarchies {
            let seen = client.output(&ids[1], &enter(options)).await;
            let first = client.output(&ids[1], "pgrep -of 'sleep 1000'").await;
            let seen: Vec<&str> = seen.lines().collect();
            // A process that cannot be seen is shown as 0, such as a supervisor.
            assert!(!seen.contains(&"0") && seen.contains(&&*first), "{options}: {seen:?}, {first}");
            client.output(&ids[1], "umount /m").await;
        }
        client.stop_container(&ids[0], 0).await.unwrap();
        client.remove_container(&ids[0]).await.unwrap();
        for options in hierarchies {
            let response = client.exec(&ids[1], &enter(options), 10).await.unwrap();
            assert_ne!(response.exit_code, 0, "{options}: {}", String::from_utf8_lossy(&response.stdout));
        }
    });
}
