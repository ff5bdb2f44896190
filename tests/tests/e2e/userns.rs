//! Pods with a user namespace: whose files, processes and rights are whose, inside and on the host.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, security};
use crate::daemon::process_with;
use crate::forward::serve;
use crate::host_mounts::host_mounts;
use crate::hostile::archive;
use crate::image::{Content, TestLayer, plain};
use crate::server::Server;
use crate::streams::{Forward, Session, Speech, TERMINAL};
use crate::world::{World, run, run_on, until};

/// The first id of the host in the namespaces of these tests.
const FIRST: u32 = 100_000;
const IDS: IdMapping = IdMapping { host_id: FIRST, container_id: 0, length: 65_536 };

/// A pod with a user namespace.
pub(crate) fn pod(client: &Client, name: &str) -> PodSandboxConfig {
    let mut config = client.pod(name);
    let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: vec![IDS], gids: vec![IDS] };
    let options = pod_security(&mut config).namespace_options.get_or_insert_default();
    options.userns_options = Some(users);
    config
}

/// An idle container of a pod with a user namespace.
async fn idle(client: &Client, name: &str) -> (String, String) {
    let pod = client.run(&pod(client, name)).await.unwrap();
    let container = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
    (pod, container)
}

fn capabilities(config: &mut ContainerConfig, names: &[&str]) {
    let add_capabilities = names.iter().map(|name| (*name).to_owned()).collect();
    security(config).capabilities = Some(Capability { add_capabilities, ..Capability::default() });
}

fn bind(source: &Path, target: &str) -> Mount {
    let (container_path, host_path) = (target.to_owned(), source.display().to_string());
    Mount { container_path, host_path, ..Mount::default() }
}

fn mapped(source: &Path, target: &str) -> Mount {
    Mount { uid_mappings: vec![IDS], gid_mappings: vec![IDS], ..bind(source, target) }
}

/// A directory with a file that only its owner may read.
fn source(world: &World, name: &str, owner: u32) -> PathBuf {
    let directory = world.dir.join(name);
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    let file = directory.join("secret");
    fs::write(&file, "of the host").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(owner), Some(owner)).unwrap();
    directory
}

/// What a container has written into its root file system.
fn written(world: &World, container: &str, name: &str) -> fs::Metadata {
    fs::symlink_metadata(world.dir.join("root/snapshots").join(container).join("fs").join(name)).unwrap()
}

#[test]
fn what_is_roots_inside_is_anothers_on_the_host() {
    run(async |world| {
        let client = &world.client;
        let before = host_mounts();
        let pod = client.run(&pod(client, "owners")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 4321")).await.unwrap();
        assert_eq!(host_mounts(), before);
        for kind in ["uid", "gid"] {
            let map = client.output(&id, &format!("cat /proc/self/{kind}_map")).await;
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
        }
        let process = process_with("sleep 4321").unwrap();
        let owner = fs::metadata(format!("/proc/{process}")).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (FIRST, FIRST));
        let roots = "/ /bin /bin/busybox /etc/hosts /etc/hostname /etc/resolv.conf /dev /dev/null /dev/tty \
                     /dev/shm /dev/mqueue /dev/fd /proc/1";
        let owners = client.output(&id, &format!("stat -c %u:%g {roots} | sort -u")).await;
        assert_eq!(owners, "0:0");
        assert_eq!(client.output(&id, "id -u; id -g; id -G").await, "0\n0\n0 10");
        client.output(&id, "cp /bin/busybox /tool; chmod 4755 /tool; touch /file; chown 7:8 /file").await;
        client.output(&id, "echo >/dev/null; head -c 9 /dev/zero >/dev/shm/nine; echo x >/etc/hosts").await;
        // A program that is the root user's inside is so nowhere else, whatever its bits say.
        let tool = written(world, &id, "tool");
        assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777), (FIRST, FIRST, 0o4755));
        let file = written(world, &id, "file");
        assert_eq!((file.uid(), file.gid()), (FIRST + 7, FIRST + 8));
        let second = client.launch(&pod, &client.container("second", "sleep 1000")).await.unwrap();
        assert_eq!(client.output(&second, "stat -c %u:%s /dev/shm/nine; cat /etc/hosts").await, "0:9\nx");
    });
}

#[test]
fn users_and_groups_are_those_of_the_namespace() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&pod(client, "users")).await.unwrap();
        let mut config = client.container(
            "main",
            "echo to the log >/dev/stdout; echo errors >/dev/stderr; touch /tmp/own; sleep 1000",
        );
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        security(&mut config).run_as_group = Some(Int64Value { value: 2000 });
        security(&mut config).supplemental_groups = vec![3000];
        let mut with_tmp = config.clone();
        let tmp = world.dir.join("tmp");
        fs::create_dir(&tmp).unwrap();
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).unwrap();
        with_tmp.mounts = vec![mapped(&tmp, "/tmp")];
        let id = client.launch(&pod, &with_tmp).await.unwrap();
        assert_eq!(client.output(&id, "id -u; id -g; id -G").await, "1000\n2000\n2000 3000");
        assert_eq!(client.output(&id, "echo reopened >/dev/stdout").await, "reopened");
        let user = client.status(&id).await.unwrap().user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 2000, vec![2000, 3000]));
        until("it has written", async || tmp.join("own").exists().then_some(())).await;
        let log = fs::read_to_string(client.log_path("users", "main")).unwrap();
        assert!(log.contains("stdout F to the log") && log.contains("stderr F errors"), "{log}");
        // The volume's file system has the ids that the container has.
        assert_eq!(fs::metadata(tmp.join("own")).unwrap().uid(), 1000);
        for (user, groups) in [(65_536, vec![]), (0, vec![65_536])] {
            let mut config = client.container(&format!("bad-{user}"), "true");
            security(&mut config).run_as_user = Some(Int64Value { value: user });
            security(&mut config).supplemental_groups = groups;
            let error = client.create(&pod, &config).await.unwrap_err();
            assert!(error.message().contains("65536\" is not in the pod's user namespace"), "{error}");
            assert_eq!(error.code(), Code::InvalidArgument);
        }
    });
}

#[test]
fn a_volume_has_the_ids_of_the_pod_or_of_the_host() {
    run(async |world| {
        let client = &world.client;
        let (own, hosts) = (source(world, "own", 1000), source(world, "hosts", 0));
        let shared = source(world, "shared", 0);
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o2770)).unwrap();
        chown(&shared, None, Some(2000)).unwrap();
        let pod = client.run(&pod(client, "volumes")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        let read_only = Mount { readonly: true, recursive_read_only: true, ..mapped(&own, "/read-only") };
        config.mounts =
            vec![mapped(&own, "/own"), bind(&hosts, "/hosts"), read_only, mapped(&shared, "/shared")];
        let id = client.launch(&pod, &config).await.unwrap();
        let owners = client.output(&id, "stat -c %u:%g /own /own/secret /hosts /hosts/secret").await;
        assert_eq!(owners, "0:0\n1000:1000\n65534:65534\n65534:65534");
        assert_eq!(
            client.output(&id, "cat /own/secret; touch /own/new; chown 5:6 /own/new").await,
            "of the host"
        );
        let new = fs::metadata(own.join("new")).unwrap();
        assert_eq!((new.uid(), new.gid()), (5, 6));
        // The root user inside is nobody to what is the host's.
        for attempt in
            ["cat /hosts/secret", "touch /hosts/new", "chown 0:0 /hosts/secret", "chmod 777 /hosts"]
        {
            let answer = client.exec(&id, attempt, 10).await.unwrap();
            let error = String::from_utf8_lossy(&answer.stderr);
            assert!(answer.exit_code != 0 && error.contains("ermi"), "{attempt}: {error}");
        }
        assert_ne!(client.exec(&id, "touch /read-only/no", 10).await.unwrap().exit_code, 0);
        // As with fsGroup: a group of the pod owns the volume.
        let mut config = client.container("member", "touch /shared/file");
        config.mounts = vec![mapped(&shared, "/shared")];
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        security(&mut config).supplemental_groups = vec![2000];
        let member = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.exited(&member).await.exit_code, 0);
        let file = fs::metadata(shared.join("file")).unwrap();
        assert_eq!((file.uid(), file.gid()), (1000, 2000));
        let mut config = client.container("refused", "true");
        config.mounts = vec![mapped(Path::new("/sys/kernel"), "/data")];
        let error = client.create(&pod, &config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("/sys/kernel") && error.message().contains("(sysfs)"), "{error}");
    });
}

#[test]
fn sessions_and_terminals_are_the_users_own() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&pod(client, "sessions")).await.unwrap();
        let mut config = client.container("main", "tty; stat -c %u $(tty) /dev/console; sleep 1000");
        config.tty = true;
        config.stdin = true;
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        let id = client.launch(&pod, &config).await.unwrap();
        let shown = async || {
            let log = fs::read_to_string(client.log_path("sessions", "main")).unwrap_or_default();
            (log.contains("/dev/pts/0") && log.matches("F 1000").count() == 2).then_some(())
        };
        until("the container has its terminal", shown).await;
        for speech in [Speech::Spdy, Speech::WebSocket] {
            let script = "tty; stat -c %u:%g $(tty); echo again >/dev/stdout; exit 7";
            let ended = Session::exec(client, speech, &id, script, TERMINAL).await.ended().await;
            let text = ended.text();
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            assert_eq!(lines[1..], ["1000:5", "again"], "{text}");
            assert_eq!(ended.code(), 7);
        }
        serve(client, &pod, "server", &[("127.0.0.1", 8001, "cat")]).await;
        let mut forward = Forward::open(client, &pod).await;
        let connection = forward.connect(8001).await;
        forward.send(connection, b"hello").await;
        forward.finish(connection).await;
        assert_eq!(forward.over(connection).await.unwrap(), b"hello");
    });
}

#[test]
fn the_pods_own_namespaces_are_its_roots_to_change() {
    run(async |world| {
        let client = &world.client;
        let mut config = pod(client, "network");
        let sysctls = [
            ("net.core.somaxconn", "77"),
            ("kernel.shm_rmid_forced", "1"),
            ("kernel.domainname", "nis"),
            ("user.max_net_namespaces", "5"),
            ("net.ipv4.ping_group_range", "0 1000"),
        ];
        let hosts = || std::fs::read_to_string("/proc/sys/user/max_net_namespaces").unwrap();
        let of_host = hosts();
        config.linux.as_mut().unwrap().sysctls = sysctls.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let pod = client.run(&config).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        capabilities(&mut config, &["NET_ADMIN", "SYS_ADMIN"]);
        let id = client.launch(&pod, &config).await.unwrap();
        let address = client.pod_status(&pod).await.unwrap().network.unwrap().ip;
        assert!(client.output(&id, "ip -4 -o addr show dev eth0").await.contains(&address));
        let values = "cd /proc/sys; cat net/core/somaxconn kernel/shm_rmid_forced kernel/domainname";
        assert_eq!(client.output(&id, values).await, "77\n1\nnis");
        assert_eq!(client.output(&id, "cat /proc/sys/user/max_net_namespaces").await, "5");
        assert_eq!(hosts(), of_host);
        assert_eq!(client.output(&id, "cat /proc/sys/net/ipv4/ping_group_range").await, "0\t1000");
        client.output(&id, "ip address add 10.250.0.1/32 dev lo; hostname changed").await;
        assert_eq!(
            client.output(&id, "hostname; ip -o address show dev lo | grep -c 10.250").await,
            "changed\n1"
        );
        assert_ne!(nix::unistd::gethostname().unwrap(), "changed");
        // Without its capabilities it may not.
        let plain = client.launch(&pod, &client.container("plain", "sleep 1000")).await.unwrap();
        assert_ne!(client.exec(&plain, "hostname no", 10).await.unwrap().exit_code, 0);
        assert!(client.pod_stats(&pod).await.network.is_some());
    });
}

#[test]
fn processes_that_a_pod_shares_are_in_its_user_namespace() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&pod(client, "shared")).await.unwrap();
        let launch = async |name: &str| {
            let mut config = client.container(name, "sleep 1000");
            let options = security(&mut config).namespace_options.get_or_insert_default();
            options.pid = NamespaceMode::Pod.into();
            client.launch(&pod, &config).await.unwrap()
        };
        let (one, two) = (launch("one").await, launch("two").await);
        let others = "for p in $(pgrep sleep); do stat -c %u /proc/$p; readlink /proc/$p/ns/user; done | sort -u | wc -l";
        assert_eq!(client.output(&one, others).await, "2", "one user, one namespace");
        assert_eq!(client.output(&one, "pgrep sleep | wc -l").await, "2");
        // It has none of the host's rights, and the first process is not theirs.
        assert_ne!(client.exec(&one, "kill -9 1", 10).await.unwrap().exit_code, 0);
        client.output(&two, "kill -9 $(pgrep sleep | head -n 1)").await;
        until("the other container ends", async || {
            let status = client.status(&one).await.unwrap();
            (status.state() == ContainerState::ContainerExited).then_some(())
        })
        .await;
        assert_eq!(client.output(&two, "echo on").await, "on");
    });
}

#[test]
fn a_pod_on_the_hosts_network_has_no_right_to_it() {
    run(async |world| {
        let client = &world.client;
        let mut config = pod(client, "host");
        let options = pod_security(&mut config).namespace_options.get_or_insert_default();
        options.network = NamespaceMode::Node.into();
        let pod = client.run(&config).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        capabilities(&mut config, &["NET_ADMIN", "SYS_ADMIN"]);
        let id = client.launch(&pod, &config).await.unwrap();
        let hosts = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(client.output(&id, "readlink /proc/self/ns/net").await, hosts.to_str().unwrap());
        assert!(client.output(&id, "ls /sys/class/net").await.contains("lo"));
        for attempt in [
            "ip address add 10.250.0.1/32 dev lo",
            "ip link set lo down",
            "echo 1 >/proc/sys/net/ipv4/ip_forward",
            "mount -o remount,rw /sys",
            "echo 0 >/sys/class/net/lo/mtu",
        ] {
            assert_ne!(client.exec(&id, attempt, 10).await.unwrap().exit_code, 0, "{attempt}");
        }
        assert_eq!(client.output(&id, "id -u; cat /etc/hostname").await, "0\nhost");
    });
}

#[test]
fn all_capabilities_reach_nothing_of_the_host() {
    run(async |world| {
        let client = &world.client;
        let hosts = source(world, "hosts", 0);
        let mut config = pod(client, "privileged");
        pod_security(&mut config).privileged = true;
        let pod = client.run(&config).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        config.linux.as_mut().unwrap().security_context =
            Some(LinuxContainerSecurityContext { privileged: true, ..Default::default() });
        let read_only = Mount { readonly: true, ..mapped(&hosts, "/read-only") };
        config.mounts = vec![bind(&hosts, "/hosts"), read_only];
        let id = client.launch(&pod, &config).await.unwrap();
        // It is root in what is its own.
        client.output(&id, "mkdir /mnt; mount -t tmpfs own /mnt; touch /mnt/x; umount /mnt").await;
        client.output(&id, "mount -t proc own /mnt 2>/dev/null; chroot / true; ip link set lo down").await;
        for attempt in [
            "cat /hosts/secret",
            "touch /read-only/file",
            "mount -o remount,rw,bind /read-only",
            "umount /etc/hosts",
            "umount -l /",
            "umount -l /dev",
            "mknod /disk b 8 0",
            ": >>/proc/sysrq-trigger",
            ": >>/proc/sys/kernel/core_pattern",
            "for d in /dev/*; do [ -b $d ] && dd if=$d of=/dev/null bs=512 count=1 && exit 0; done; exit 1",
            "mount -t overlay -o lowerdir=/bin,upperdir=/hosts,workdir=/hosts own /mnt",
        ] {
            assert_ne!(client.exec(&id, attempt, 10).await.unwrap().exit_code, 0, "{attempt}");
        }
        assert_eq!(client.output(&id, "ls -d /bin /hosts").await, "/bin\n/hosts");
        assert_eq!(fs::read_to_string(hosts.join("secret")).unwrap(), "of the host");
        assert_eq!(fs::read_dir(&hosts).unwrap().count(), 1);
    });
}

#[test]
fn a_next_daemon_finds_a_pods_user_namespace() {
    run(async |world| {
        let (pod, id) = idle(&world.client, "again").await;
        let name = "readlink /proc/self/ns/user";
        let before = world.client.output(&id, name).await;
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.output(&id, name).await, before);
        let next = client.launch(&pod, &client.container("next", "sleep 1000")).await.unwrap();
        assert_eq!(client.output(&next, name).await, before);
        assert_eq!(client.output(&next, "stat -c %u / /etc/hosts").await, "0\n0");
        let request = ContainerStatusRequest { container_id: next.clone(), verbose: true };
        let status = client.runtime.clone().container_status(request).await.unwrap().into_inner();
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
        let linux = &info["runtimeSpec"]["linux"];
        assert_eq!(linux["uidMappings"][0]["hostID"], FIRST, "{info}");
        let namespaces = linux["namespaces"].as_array().unwrap();
        let user = namespaces.iter().find(|namespace| namespace["type"] == "user").unwrap();
        let link = fs::read_link(user["path"].as_str().unwrap()).unwrap();
        assert_eq!(link.to_str().unwrap(), before);
    });
}

/// A container of an image that has these layers, with the programs of another image.
async fn of_layers(world: &World, layers: &[TestLayer]) -> ContainerConfig {
    let server = Server::honest(Content::oci("1", layers)).await;
    let image = format!("{}/app:1", server.address);
    world.client.pull(&image).await.unwrap();
    let tools = fs::read_dir(world.dir.join("root/layers")).unwrap().flatten();
    let tools = tools.map(|layer| layer.path().join("fs/bin")).find(|bin| bin.join("busybox").exists());
    ContainerConfig {
        image: Some(crate::client::image(&image)),
        mounts: vec![Mount { readonly: true, ..bind(&tools.unwrap(), "/bin") }],
        envs: vec![KeyValue { key: "PATH".to_owned(), value: "/bin".into() }],
        ..world.client.container("main", "sleep 1000")
    }
}

/// The layers' ids are mapped, so a node in them would belong to the pod's root, unlike the host's own node.
#[test]
fn device_nodes_of_an_image_open_nothing() {
    run(async |world| {
        let client = &world.client;
        let layers = [TestLayer::of(archive(&[(tar::EntryType::Char, "node", "")]))];
        let mut config = of_layers(world, &layers).await;
        let image = config.image.clone();
        let volume =
            Mount { container_path: "/volume".to_owned(), readonly: true, image, ..Mount::default() };
        config.mounts.push(volume);
        security(&mut config).privileged = true;
        let mut pods = pod(client, "nodes");
        pod_security(&mut pods).privileged = true;
        let pod = client.run(&pods).await.unwrap();
        let id = client.launch(&pod, &config).await.unwrap();
        let script = "for node in /dev/null /node /volume/node; do (: <$node) 2>&1 | grep -o denied; done";
        assert_eq!(client.output(&id, script).await, "denied\ndenied");
        let (host_path, container_path) = ("/dev/null".to_owned(), "/elsewhere".to_owned());
        let device = Device { host_path, container_path, permissions: "rw".to_owned() };
        config.devices = vec![device];
        config.metadata.as_mut().unwrap().attempt += 1;
        let error = client.create(&pod, &config).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().contains("/elsewhere"), "{error}");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_link_of_an_image_makes_nothing_where_its_root_may_not() {
    run(async |world| {
        let client = &world.client;
        let layers = [TestLayer::of(archive(&[(tar::EntryType::Symlink, "data", "/volume/made")]))];
        let mut config = of_layers(world, &layers).await;
        let hosts = source(world, "hosts", 0);
        config.mounts.extend([bind(&hosts, "/volume"), bind(&hosts, "/data/below")]);
        let pod = client.run(&pod(client, "links")).await.unwrap();
        let error = client.create(&pod, &config).await.unwrap_err();
        assert!(error.message().contains("in which the user namespace has no rights"), "{error}");
        assert!(!hosts.join("made").exists());
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn many_layers_are_mapped_as_one() {
    run(async |world| {
        let layers: Vec<_> = (0..60).map(|number| plain(&format!("etc/{number}"), b"x")).collect();
        let client = &world.client;
        let config = of_layers(world, &layers).await;
        let pod = client.run(&pod(client, "layers")).await.unwrap();
        let before = host_mounts();
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(host_mounts(), before);
        let owners = client
            .output(&id, "ls /etc | wc -l; stat -c %u /etc/* | sort -u; touch /etc/0; echo >/etc/59")
            .await;
        assert_eq!(owners, "63\n0", "with the pod's three");
        assert_eq!(written(world, &id, "etc/59").uid(), FIRST);
        let layers = world.dir.join("root/layers");
        let owners = crate::place::command(Path::new("find"))
            .args([layers.as_os_str(), "-not".as_ref(), "-user".as_ref(), "0".as_ref()])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(owners.stdout).unwrap(), "", "no layer was changed");
    });
}

#[test]
fn the_volumes_of_an_image_have_the_ids_of_the_pod() {
    run(async |world| {
        let layout = crate::place::built().images.join("e2e-test-images/busybox");
        let content = crate::layouts::with_config(crate::layouts::content(&layout), |config| {
            config["config"]["Volumes"] = serde_json::json!({"/etc": {}, "/data": {}});
        });
        let server = Server::honest(content).await;
        let image = format!("{}/app:latest", server.address);
        let client = &world.client;
        client.pull(&image).await.unwrap();
        let pod = client.run(&pod(client, "images")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        config.image = Some(crate::client::image(&image));
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&id, "stat -c %u:%g /etc /etc/passwd /data | sort -u").await, "0:0");
        client.output(&id, "touch /data/file; chown 7:8 /data/file").await;
        let volumes = world.dir.join("root/snapshots").join(&id).join("volumes");
        let files = ["0", "1"].map(|number| fs::metadata(volumes.join(number).join("file")).ok());
        let owners: Vec<_> = files.iter().flatten().map(|file| (file.uid(), file.gid())).collect();
        assert_eq!(owners, [(FIRST + 7, FIRST + 8)]);
    });
}

#[test]
fn what_the_machine_can_do_is_said_of_each_handler() {
    run(async |world| {
        let status =
            world.client.runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
        assert!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()));
        let features = status.runtime_handlers.iter().map(|handler| handler.features.unwrap());
        assert!(features.into_iter().all(|features| features.user_namespaces));
        assert!(status.features.unwrap().user_namespaces_host_network);
    });
}

/// On a file system that cannot map ids.
#[test]
fn a_machine_that_cannot_refuses_and_says_so() {
    let unmappable = |dir: &Path| {
        let root = dir.join("root");
        fs::create_dir(&root).unwrap();
        mount(Some("root"), &root, Some("ramfs"), MsFlags::empty(), None::<&str>).unwrap();
    };
    run_on(unmappable, async |world| {
        let client = &world.client;
        let status = client.runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
        assert!(status.runtime_handlers.iter().all(|handler| !handler.features.unwrap().user_namespaces));
        assert!(!status.features.unwrap().user_namespaces_host_network);
        let error = client.run(&pod(client, "refused")).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented);
        let words = ["userns_options", "mount_setattr"];
        assert!(words.iter().all(|word| error.message().contains(word)), "{error}");
        assert!(world.daemon.has_logged("pods cannot have user namespaces"));
        client.run(&client.pod("ordinary")).await.unwrap();
    });
}
