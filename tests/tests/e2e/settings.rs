//! The settings in a request, seen from inside.

use std::collections::BTreeMap;
use std::fs;

use nix::mount::{MsFlags, mount, umount};
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, processes, security};
use crate::steps::Tracer;
use crate::world::{run, until};

/// A change of a container's request, and what a line of shell then prints.
type Case = (&'static str, fn(&mut ContainerConfig), &'static str, &'static str);

const CASES: &[Case] = &[
    (
        "uid, gid and groups",
        |config| {
            security(config).run_as_user = Some(Int64Value { value: 1234 });
            security(config).run_as_group = Some(Int64Value { value: 2345 });
            security(config).supplemental_groups = vec![3456];
        },
        "id -u; id -g; id -G",
        "1234\n2345\n2345 3456",
    ),
    (
        "a user by name has its group of the image",
        |config| {
            security(config).run_as_username = "nobody".to_owned();
        },
        "id -un",
        "nobody",
    ),
    (
        "an unknown number has the group of root",
        |config| {
            security(config).run_as_user = Some(Int64Value { value: 1234 });
        },
        "id -u; id -g",
        "1234\n0",
    ),
    (
        "a root file system that cannot be written",
        |config| {
            security(config).readonly_rootfs = true;
        },
        "touch /file 2>&1 | grep -o 'Read-only file system'; touch /dev/shm/file && echo shm",
        "Read-only file system\nshm",
    ),
    (
        "masked and read-only paths",
        |config| {
            security(config).masked_paths = vec!["/proc/keys".to_owned(), "/sys/firmware".to_owned()];
            security(config).readonly_paths = vec!["/proc/sys".to_owned()];
        },
        "wc -c </proc/keys; ls /sys/firmware | wc -l; echo x 2>&1 >/proc/sys/kernel/domainname | grep -o Read-only",
        "0\n0\nRead-only",
    ),
    (
        "capabilities",
        |config| {
            security(config).capabilities = Some(Capability {
                add_capabilities: vec!["NET_ADMIN".to_owned()],
                drop_capabilities: vec!["ALL".to_owned()],
                ..Capability::default()
            });
        },
        "sed -n 's/^CapEff:\t//p;s/^CapBnd:\t//p' /proc/self/status",
        "0000000000001000\n0000000000001000",
    ),
    (
        "every capability added and dropped",
        |config| {
            security(config).capabilities = Some(Capability {
                add_capabilities: vec!["ALL".to_owned()],
                drop_capabilities: vec!["ALL".to_owned()],
                ..Capability::default()
            });
        },
        "sed -n 's/^CapEff:\t//p;s/^CapBnd:\t//p' /proc/self/status",
        "0000000000000000\n0000000000000000",
    ),
    (
        "no lists of paths: the usual ones",
        |_config| {},
        "wc -c </proc/keys; ls /sys/firmware | wc -l; echo x 2>&1 >/proc/sys/kernel/domainname | grep -o Read-only",
        "0\n0\nRead-only",
    ),
    ("the name of the host", |_config| {}, "echo $HOSTNAME", "settings"),
    (
        "another name for the program",
        |config| config.envs = vec![KeyValue { key: "HOSTNAME".to_owned(), value: "other".into() }],
        "echo $HOSTNAME",
        "other",
    ),
    (
        "the machine's console is not there to be had",
        |_config| {},
        "mknod /console c 5 1; (exec 3</console) 2>&1 | grep -o 'Operation not permitted'",
        "Operation not permitted",
    ),
    (
        "a command ignores and blocks no signal",
        |_config| {},
        // A shell ignores one itself.
        "grep -E '^Sig(Blk|Ign)' /proc/self/status; true",
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000",
    ),
    (
        "the default filter",
        |_config| {},
        "sed -n 's/^Seccomp:\t//p' /proc/self/status; unshare -U true 2>/dev/null || echo refused",
        "2\nrefused",
    ),
    (
        "no filter",
        |config| {
            security(config).seccomp = Some(SecurityProfile {
                profile_type: security_profile::ProfileType::Unconfined.into(),
                ..SecurityProfile::default()
            });
        },
        "sed -n 's/^Seccomp:\t//p' /proc/self/status",
        "0",
    ),
    (
        "no new privileges",
        |config| {
            security(config).no_new_privs = true;
        },
        "sed -n 's/^NoNewPrivs:\t//p' /proc/self/status",
        "1",
    ),
    (
        "environment and directory",
        |config| {
            config.envs = vec![KeyValue { key: "WORD".to_owned(), value: "two words".into() }];
            config.working_dir = "/made/for/it".to_owned();
        },
        "echo $WORD; pwd",
        "two words\n/made/for/it",
    ),
    (
        "the killer's preference",
        |config| {
            config.linux.as_mut().unwrap().resources.as_mut().unwrap().oom_score_adj = 987;
        },
        "cat /proc/self/oom_score_adj",
        "987",
    ),
];

#[test]
fn a_container_is_as_its_request_says() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("settings")).await.unwrap();
        for (number, (what, change, script, expected)) in CASES.iter().enumerate() {
            let mut config = client.container(&format!("case-{number}"), "sleep 1000");
            change(&mut config);
            let id = client.launch(&pod, &config).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(client.output(&id, script).await, *expected, "{what}");
        }
    });
}

/// In the same order whatever the request's, so that statuses of different runtimes can be compared.
#[test]
fn groups_are_told_as_the_kernel_has_them() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("groups")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        for (name, content) in [("passwd", "me:x:1000:1001::/:/bin/sh\n"), ("group", "extra:x:50000:me\n")] {
            let source = world.dir.join(name);
            fs::write(&source, content).unwrap();
            config.mounts.push(Mount {
                container_path: format!("/etc/{name}"),
                host_path: source.display().to_string(),
                ..Mount::default()
            });
        }
        security(&mut config).run_as_username = "me".to_owned();
        security(&mut config).supplemental_groups = vec![1234, 50_000];
        let id = client.launch(&pod, &config).await.unwrap();
        let user = client.status(&id).await.unwrap().user.unwrap().linux.unwrap();
        assert_eq!(user.supplemental_groups, [1001, 1234, 50_000]);
        assert_eq!(client.output(&id, "id -G").await, "1001 1234 50000");
    });
}

#[test]
fn a_pod_is_as_its_request_says() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("podwide");
        config.dns_config = Some(DnsConfig {
            servers: vec!["10.9.8.7".to_owned()],
            searches: vec!["cluster.local".to_owned(), "svc.cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        });
        config.linux.as_mut().unwrap().sysctls = BTreeMap::from(
            [("net/ipv4/ip_forward", "1"), ("kernel.shm_rmid_forced", "1"), ("kernel.domainname", "nis")]
                .map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        let pod = client.run(&config).await.unwrap();
        let one = client.launch(&pod, &client.container("one", "sleep 1000")).await.unwrap();
        let two = client.launch(&pod, &client.container("two", "sleep 1000")).await.unwrap();
        let resolv = "search cluster.local svc.cluster.local\nnameserver 10.9.8.7\noptions ndots:5";
        assert_eq!(client.output(&one, "cat /etc/resolv.conf").await, resolv);
        assert_eq!(client.output(&one, "cat /etc/hostname; hostname").await, "podwide\npodwide");
        let values = "cd /proc/sys; cat net/ipv4/ip_forward kernel/shm_rmid_forced kernel/domainname";
        assert_eq!(client.output(&one, values).await, "1\n1\nnis");
        client.output(&one, "echo shared >/dev/shm/word").await;
        assert_eq!(client.output(&two, "cat /dev/shm/word").await, "shared");
        let address = client.pod_status(&pod).await.unwrap().network.unwrap().ip;
        let inside = client.output(&two, "ip -4 -o addr show dev eth0").await;
        assert!(inside.contains(&format!(" {address}/")), "{inside}");
        assert_eq!(
            client.output(&one, "ps -o args | grep -c '[s]leep 1000'").await,
            "1",
            "processes are each its own"
        );
    });
}

#[test]
fn what_a_pod_says_of_its_network_counts_whatever_connects_it() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("last");
        let sysctls = [("net.ipv4.conf.eth0.arp_ignore", "2"), ("net.ipv6.conf.all.disable_ipv6", "1")];
        config.linux.as_mut().unwrap().sysctls = sysctls.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let pod = client.run(&config).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let values = "cd /proc/sys/net; cat ipv4/conf/eth0/arp_ignore ipv6/conf/eth0/disable_ipv6; \
                      ip -6 address show dev eth0";
        assert_eq!(client.output(&id, values).await, "2\n1");
    });
}

#[test]
fn processes_can_be_the_pods_or_the_hosts() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("processes")).await.unwrap();
        let launch = async |name: &str, pid: NamespaceMode| {
            let mut config = client.container(name, "sleep 1000");
            security(&mut config).namespace_options = Some(processes(pid));
            client.launch(&pod, &config).await.unwrap()
        };
        let one = launch("one", NamespaceMode::Pod).await;
        let two = launch("two", NamespaceMode::Pod).await;
        let mut config = client.pod("hostly");
        pod_security(&mut config).namespace_options = Some(processes(NamespaceMode::Node));
        let hostly = client.run(&config).await.unwrap();
        let host = {
            let mut config = client.container("host", "sleep 1000");
            security(&mut config).namespace_options = Some(processes(NamespaceMode::Node));
            client.launch(&hostly, &config).await.unwrap()
        };
        let sleepers = "ps -o args | grep -c '^[s]leep 1000'";
        assert_eq!(
            (client.output(&one, sleepers).await, client.output(&two, sleepers).await),
            ("2".into(), "2".into())
        );
        assert!(client.output(&host, "ps -o args").await.contains("wharfd"));
        client.stop_container(&one, 0).await.unwrap();
        assert_eq!(client.output(&two, sleepers).await, "1");
    });
}

#[test]
fn a_pod_on_the_hosts_network_makes_none() {
    run(async |world| {
        let client = &world.client;
        let mut config = client.pod("hostly");
        config.hostname = String::new();
        let options = NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        pod_security(&mut config).namespace_options = Some(options.clone());
        let pod = client.run(&config).await.unwrap();
        let mut container = client.container("main", "sleep 1000");
        security(&mut container).namespace_options = Some(options);
        let id = client.launch(&pod, &container).await.unwrap();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(client.output(&id, "readlink /proc/self/ns/net").await, own.to_str().unwrap());
        let host = nix::unistd::gethostname().unwrap();
        assert_eq!(client.output(&id, "hostname").await, host.to_str().unwrap());
        assert!(client.pod_status(&pod).await.unwrap().network.is_none_or(|network| network.ip.is_empty()));
    });
}

/// What a container writes to the files provided to it takes no more of the machine's memory than its shared memory
/// may.
#[test]
fn the_files_of_a_pod_are_bounded() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("greedy")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let script = "for name in hosts hostname resolv.conf; do cat /dev/zero >>/etc/$name; done 2>&1 | grep -c 'No space'; \
            du -cm /etc/hosts /etc/hostname /etc/resolv.conf | tail -n 1 | cut -f1";
        let output = client.output(&id, script).await;
        let (refusals, mebibytes) = output.split_once('\n').unwrap();
        assert_eq!(refusals, "3");
        assert!(mebibytes.parse::<u64>().unwrap() <= 64, "{mebibytes}");
        // Another pod is not affected, and this one can be removed.
        let other = client.run(&client.pod("other")).await.unwrap();
        assert_eq!(client.to_end(&other, "main", "echo x >>/etc/resolv.conf").await.exit_code, 0);
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_pod_without_dns_settings_has_servers_that_it_can_reach() {
    run(async |world| {
        let client = &world.client;
        let (stub, behind) = ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 10.1.2.3\n");
        let own = world.dir.join("resolv.conf");
        fs::write(&own, stub).unwrap();
        mount(Some(&own), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        mount(Some("x"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::create_dir_all("/run/systemd/resolve").unwrap();
        fs::write("/run/systemd/resolve/resolv.conf", behind).unwrap();
        for (name, network, dns, expected) in [
            ("own", NamespaceMode::Pod, None, behind.trim()),
            ("hosts", NamespaceMode::Node, None, stub.trim()),
            ("empty", NamespaceMode::Pod, Some(DnsConfig::default()), ""),
        ] {
            let mut config = client.pod(name);
            config.dns_config = dns;
            pod_security(&mut config).namespace_options =
                Some(NamespaceOption { network: network.into(), ..NamespaceOption::default() });
            let pod = client.run(&config).await.unwrap();
            let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
            assert_eq!(client.output(&id, "cat /etc/resolv.conf").await, expected, "{name}");
        }
        for path in ["/run", "/etc/resolv.conf"] {
            umount(path).unwrap();
        }
    });
}

/// The limits of a container that is to be updated.
fn limited() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        oom_score_adj: 321,
        ..LinuxContainerResources::default()
    }
}

/// An update of some of them.
fn raised() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        oom_score_adj: 654,
        ..LinuxContainerResources::default()
    }
}

/// Starts such a container, and returns the pod and the container.
async fn launch_limited(client: &Client) -> (String, String) {
    let pod = client.run(&client.pod("limits")).await.unwrap();
    let mut config = client.container("main", "sleep 1000");
    config.linux.as_mut().unwrap().resources = Some(limited());
    let id = client.launch(&pod, &config).await.unwrap();
    assert_eq!(limits(&pod, &id), (64 << 20, 50_000));
    (pod, id)
}

/// The limits in a container's status.
async fn reported(client: &Client, id: &str) -> LinuxContainerResources {
    client.status(id).await.unwrap().resources.unwrap().linux.unwrap()
}

#[test]
fn limits_reach_the_cgroup_and_can_be_changed() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = launch_limited(client).await;
        client.update(&id, raised()).await.unwrap();
        assert_eq!(limits(&pod, &id), (128 << 20, 50_000), "what is not named stays");
        assert_eq!(
            client.output(&id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await,
            "654\n654"
        );
        let told = reported(client, &id).await;
        assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.cpu_shares), (128 << 20, 50_000, 512));
    });
}

/// A kubelet repeats a container's score in each update, whatever that changes.
#[test]
fn an_update_leaves_alone_who_has_chosen_a_score() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("scores")).await.unwrap();
        let mut config = client.container("main", "echo 700 >/proc/self/oom_score_adj; exec sleep 1000");
        config.linux.as_mut().unwrap().resources = Some(limited());
        let id = client.launch(&pod, &config).await.unwrap();
        let score = async || client.output(&id, "cat /proc/1/oom_score_adj").await;
        until("it has chosen", async || (score().await == "700").then_some(())).await;
        client.update(&id, LinuxContainerResources { cpu_quota: 20_000, ..limited() }).await.unwrap();
        assert_eq!(limits(&pod, &id).1, 20_000);
        assert_eq!(score().await, "700");
        client.update(&id, raised()).await.unwrap();
        assert_eq!(score().await, "654");
    });
}

#[test]
fn of_an_update_that_is_refused_nothing_is_done() {
    run(async |world| {
        let client = &world.client;
        let (pod, id) = launch_limited(client).await;
        let nowhere = LinuxContainerResources { cpuset_cpus: "4095".to_owned(), ..raised() };
        client.update(&id, nowhere).await.unwrap_err();
        // Only the score is opened below a directory.
        let mut refusing = Tracer::with(world, &["--trace=openat2", "--inject=openat2:error=EMFILE"]);
        client.update(&id, raised()).await.unwrap_err();
        refusing.end_all();
        assert!(refusing.has_met());
        assert_eq!(limits(&pod, &id), (64 << 20, 50_000));
        assert_eq!(client.output(&id, "cat /proc/1/oom_score_adj").await, "321");
        let told = reported(client, &id).await;
        assert_eq!((told.memory_limit_in_bytes, told.oom_score_adj), (64 << 20, 321));
    });
}

/// Bytes of memory and microseconds of CPU time, from the container's cgroup, v1 or v2.
fn limits(pod: &str, container: &str) -> (i64, i64) {
    let read = |files: [&str; 2]| {
        let [v1, v2] = files.map(|file| file.replace("{}", &format!("wharf/{pod}/{container}")));
        let text = fs::read_to_string(v1).or_else(|_absent| fs::read_to_string(v2)).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    let memory = read(["/sys/fs/cgroup/memory/{}/memory.limit_in_bytes", "/sys/fs/cgroup/{}/memory.max"]);
    (memory, read(["/sys/fs/cgroup/cpu/{}/cpu.cfs_quota_us", "/sys/fs/cgroup/{}/cpu.max"]))
}

#[test]
fn figures_are_of_what_runs() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("figures")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "while :; do :; done")).await.unwrap();
        client.output(&id, "head -c 1000000 /dev/zero >/file; ping -c 1 -W 8 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null").await;
        let burnt = async || {
            let stats = client.container_stats(&id).await;
            let cpu = stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value;
            (cpu > 50_000_000 && stats.memory.unwrap().working_set_bytes.unwrap().value > 0).then_some(())
        };
        until("processor time and memory are told", burnt).await;
        let written = async || {
            let layer = client.container_stats(&id).await.writable_layer?;
            (layer.used_bytes?.value >= 1_000_000).then_some(())
        };
        until("the written bytes are told", written).await;
        let stats = client.pod_stats(&pod).await;
        assert!(stats.network.unwrap().default_interface.unwrap().tx_bytes.unwrap().value > 0);
        assert!(stats.process.unwrap().process_count.unwrap().value >= 1);
    });
}

/// Figures of `eth0` are read from outside; a pod that can make more interfaces is looked into, by the next daemon as
/// well.
#[test]
fn interfaces_that_a_pod_makes_are_told_of() {
    run(async |world| {
        let client = world.client.clone();
        let pod = client.run(&client.pod("interfaces")).await.unwrap();
        let names = async |client: &Client| {
            let network = client.pod_stats(&pod).await.network.unwrap();
            let all = network.default_interface.into_iter().chain(network.interfaces);
            all.map(|interface| interface.name).collect::<Vec<_>>()
        };
        client.launch(&pod, &client.container("plain", "sleep 1000")).await.unwrap();
        assert_eq!(names(&client).await, ["eth0"]);
        let mut config = client.container("main", "sleep 1000");
        security(&mut config).capabilities =
            Some(Capability { add_capabilities: vec!["NET_ADMIN".to_owned()], ..Capability::default() });
        let id = client.launch(&pod, &config).await.unwrap();
        client.output(&id, "ip link add more type bridge").await;
        assert_eq!(names(&client).await, ["eth0", "more"]);
        world.daemon.kill();
        world.start_again().await;
        let told = async || (names(&world.client).await == ["eth0", "more"]).then_some(());
        until("the next daemon has looked into the pod", told).await;
    });
}
