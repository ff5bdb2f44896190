//! The defaults of the configuration, seen from inside of containers whose requests leave them open.

use std::fs;
use std::path::Path;
use std::process::Output;

use wharf_cri_api::v1::*;

use crate::client::{image, pod_security, security, words};
use crate::place;
use crate::world::{World, run_on, until};

/// Adds to the configuration of the test's daemon.
pub(crate) fn configured(text: &'static str) -> impl FnOnce(&Path) {
    move |dir| {
        fs::create_dir(dir.join("config.toml.d")).unwrap();
        fs::write(dir.join("config.toml.d/10-defaults.toml"), text).unwrap();
    }
}

const CONTAINERS: &str = r#"
[containers]
default_env = ["WORD=node", "OTHER=node"]
default_ulimits = ["nofile=200:300", "core=0"]
default_sysctls = ["net.core.somaxconn=77", "kernel.shmmax=123456", "net.ipv4.ip_unprivileged_port_start=1024"]
default_capabilities = ["CHOWN", "KILL", "SETUID", "SETGID"]
add_inheritable_capabilities = true
additional_devices = ["/dev/null:/dev/nothing:rw"]
device_ownership_from_security_context = true
privileged_devices = "allowed"
pids_limit = 64
shm_mib = 3
timezone = "Europe/Berlin"
read_only = true
allowed_annotations = ["umask.crio.io", "io.kubernetes.cri-o.ShmSize"]
log_line_bytes = 1024
log_size_max_mib = 1
minimum_mappable_uid = 65536
"#;

/// What a line of shell prints in a container that asks for nothing.
const PLAIN: &[(&str, &str)] = &[
    ("echo $WORD $OTHER", "node node"),
    ("ulimit -Sn; ulimit -Hn; ulimit -c", "200\n300\n0"),
    ("cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax", "77\n123456"),
    ("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "1024"),
    ("sed -n 's/^Cap\\(Bnd\\|Inh\\):\t//p' /proc/self/status", "00000000000000e1\n00000000000000e1"),
    ("stat -c '%F %t:%T %u:%g' /dev/nothing; echo lost >/dev/nothing", "character special file 1:3 0:0"),
    ("cat /proc/self/cgroup >/dev/null; df -m /dev/shm | awk 'NR==2 {print $2}'", "3"),
    (
        "touch /file 2>&1 | grep -o 'Read-only'; touch /etc/hosts 2>&1 | grep -o 'Read-only'",
        "Read-only\nRead-only",
    ),
    ("touch /dev/shm/file && echo shm", "shm"),
    ("grep -o 'devpts.*max=512' /proc/mounts | grep -o max=512", "max=512"),
    (
        "TZ= date +%Z >/dev/null; head -c 4 /etc/localtime; echo; touch /etc/localtime 2>&1 | grep -o Read-only",
        "TZif\nRead-only",
    ),
];

#[test]
fn what_a_request_leaves_open_is_the_nodes() {
    run_on(configured(CONTAINERS), async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("plain")).await.unwrap();
        let id = client.launch(&pod, &client.container("plain", "sleep 1000")).await.unwrap();
        for (script, expected) in PLAIN {
            assert_eq!(client.output(&id, script).await, *expected, "{script}");
        }
        assert_eq!(pids_max(world, &id), "64");
        let zone = fs::read("/usr/share/zoneinfo/Europe/Berlin").unwrap().len();
        assert_eq!(client.output(&id, "wc -c </etc/localtime").await, zone.to_string());
    });
}

/// The limit in the cgroup of a container.
fn pids_max(world: &World, id: &str) -> String {
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
    let root = roots.into_iter().find(|root| root.is_dir()).unwrap();
    let file = find(root, id).unwrap_or_else(|| panic!("no cgroup {id} of {}", world.dir.display()));
    fs::read_to_string(file.join("pids.max")).unwrap().trim().to_owned()
}

fn find(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    let below =
        fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    below.into_iter().find_map(|path| match path.ends_with(name) {
        true => Some(path),
        false => find(&path, name),
    })
}

#[test]
fn what_a_request_says_comes_before_what_the_node_says() {
    run_on(configured(CONTAINERS), async |world| {
        let client = &world.client;
        let mut config = client.pod("own");
        let sysctls = [("net.core.somaxconn", "9"), ("net.ipv4.ip_unprivileged_port_start", "0")];
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        config.linux.as_mut().unwrap().sysctls = sysctls.map(own).into();
        pod_security(&mut config).privileged = true;
        let pod = client.run(&config).await.unwrap();
        let mut own = client.container("own", "sleep 1000");
        own.envs = vec![KeyValue { key: "WORD".to_owned(), value: "request".into() }];
        own.devices = vec![device("/dev/zero", "/dev/zeros")];
        security(&mut own).run_as_user = Some(Int64Value { value: 1000 });
        security(&mut own).run_as_group = Some(Int64Value { value: 2000 });
        security(&mut own).capabilities =
            Some(Capability { drop_capabilities: words(&["KILL"]), ..Capability::default() });
        let id = client.launch(&pod, &own).await.unwrap();
        for (script, expected) in [
            ("echo $WORD $OTHER", "request node"),
            ("cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_unprivileged_port_start", "9\n0"),
            ("sed -n 's/^CapBnd:\t//p' /proc/self/status", "00000000000000c1"),
            ("stat -c %u:%g /dev/zeros /dev/nothing", "1000:2000\n1000:2000"),
        ] {
            assert_eq!(client.output(&id, script).await, expected, "{script}");
        }
        let mut privileged = client.container("privileged", "sleep 1000");
        security(&mut privileged).privileged = true;
        let id = client.launch(&pod, &privileged).await.unwrap();
        let own_nodes = "ls /dev | grep -cE '^(kmsg|mem|loop0|port)$'; mknod /dev/shm/x c 1 11 && echo made";
        assert_eq!(client.output(&id, &format!("{own_nodes}; true")).await, "0\nmade");
    });
}

fn device(host: &str, inside: &str) -> Device {
    let (host_path, container_path) = (host.to_owned(), inside.to_owned());
    Device { host_path, container_path, permissions: "rw".to_owned() }
}

#[test]
fn a_pod_may_annotate_what_the_node_allows() {
    run_on(configured(CONTAINERS), async |world| {
        let client = &world.client;
        let annotated = |name: &str, umask: &str, size: &str| {
            let mut config = client.pod(name);
            let all = [
                ("umask.crio.io", umask),
                ("io.kubernetes.cri-o.ShmSize", size),
                ("io.kubernetes.cri-o.umask", "000"),
                ("shm-size.crio.io", "9Mi"),
            ];
            config.annotations = all.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            config
        };
        let pod = client.run(&annotated("annotated", "027", "5Mi")).await.unwrap();
        let id =
            client.launch(&pod, &client.container("main", "touch /dev/shm/file; sleep 1000")).await.unwrap();
        until("it has begun", async || {
            let begun = client.exec(&id, "test -e /dev/shm/file", 10).await.unwrap();
            (begun.exit_code == 0).then_some(())
        })
        .await;
        let script = "umask; stat -c %a /dev/shm/file; df -m /dev/shm | awk 'NR==2 {print $2}'";
        assert_eq!(client.output(&id, script).await, "0027\n640\n5");
        for (umask, size, words) in [
            ("027", "much", "annotations: io.kubernetes.cri-o.ShmSize: \"much\""),
            ("999", "5Mi", "annotations: umask.crio.io: \"999\""),
        ] {
            let refused = client.run(&annotated("refused", umask, size)).await.unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains(words), "{refused}");
        }
    });
}

#[test]
fn logs_have_the_nodes_limits() {
    run_on(configured(CONTAINERS), async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("logs")).await.unwrap();
        client.to_end(&pod, "lines", "head -c 3000 /dev/zero | tr '\\0' x; echo").await;
        let log = fs::read_to_string(client.log_path("logs", "lines")).unwrap();
        let words = |line: &str| line.split(' ').skip(2).map(str::to_owned).collect::<Vec<_>>();
        let records: Vec<_> = log.lines().map(words).collect();
        let lengths: Vec<_> = records.iter().map(|record| (&*record[0], record[1].len())).collect();
        assert_eq!(lengths, [("P", 1024), ("P", 1024), ("F", 952)]);
        let script = "for i in 1 2 3; do head -c 700000 /dev/zero | tr '\\0' x | fold -w 1000; echo; echo end $i; done";
        client.to_end(&pod, "much", script).await;
        let log = fs::read_to_string(client.log_path("logs", "much")).unwrap();
        assert!(log.len() <= 1 << 20, "{}", log.len());
        assert!(log.ends_with(" stdout F end 3\n") && !log.contains("end 1"));
        let beside = fs::read_dir(client.log_path("logs", "much").parent().unwrap()).unwrap().count();
        assert_eq!(beside, 2, "the logs of the two containers");
    });
}

#[test]
fn users_that_the_node_keeps_are_in_no_user_namespace() {
    run_on(configured(CONTAINERS), async |world| {
        let client = &world.client;
        let mut config = client.pod("mapped");
        let ids = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65_536 }];
        let users =
            |first| UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(first), gids: ids(first) };
        let mut options = crate::client::own_processes();
        options.userns_options = Some(users(1000));
        pod_security(&mut config).namespace_options = Some(options.clone());
        let refused = client.run(&config).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("userns_options: uids: 1000"), "{refused}");
        options.userns_options = Some(users(100_000));
        pod_security(&mut config).namespace_options = Some(options);
        let pod = client.run(&config).await.unwrap();
        let mut own = client.container("own", "sleep 1000");
        security(&mut own).run_as_user = Some(Int64Value { value: 1000 });
        let id = client.launch(&pod, &own).await.unwrap();
        for (script, expected) in [
            ("ulimit -Sn; ulimit -Hn", "200\n300"),
            ("stat -c %u /dev/nothing", "1000"),
            ("head -c 4 /etc/localtime", "TZif"),
        ] {
            assert_eq!(client.output(&id, script).await, expected, "{script}");
        }
    });
}

#[test]
fn images_that_the_node_keeps_are_told_so() {
    run_on(configured("[images]\npinned = [\"*/app:lat*\"]\n"), async |world| {
        let is_pinned = |images: Vec<Image>| images.iter().map(|image| image.pinned).collect::<Vec<_>>();
        assert_eq!(is_pinned(world.client.image_list().await), [true]);
        let request =
            ImageStatusRequest { image: Some(image(&world.client.image)), ..ImageStatusRequest::default() };
        let status = world.client.images.clone().image_status(request).await.unwrap().into_inner();
        assert!(status.image.unwrap().pinned);
    });
}

/// The end of `wharfd config check` with this text in its file, and with the state directory of the wharfd that runs.
fn check(dir: &Path, text: &str) -> Output {
    check_with(dir, &dir.join("state"), text)
}

fn check_with(dir: &Path, state: &Path, text: &str) -> Output {
    let file = dir.join("checked.toml");
    let supervisor = place::built().supervisor;
    fs::write(&file, format!("supervisor = {supervisor:?}\nstate = {state:?}\n{text}")).unwrap();
    let mut command = place::command(&place::built().wharfd);
    command.args(["config", "check", "--config"]).arg(file).output().unwrap()
}

#[test]
fn a_bad_value_is_refused_at_the_start_with_its_key() {
    run_on(
        |_dir| {},
        async |world| {
            let good = check(&world.dir, CONTAINERS);
            assert!(good.status.success(), "{good:?}");
            let beside = check_with(&world.dir, &world.dir.join("other"), CONTAINERS);
            let said = String::from_utf8_lossy(&beside.stderr).into_owned();
            assert!(!beside.status.success() && said.contains("has the network of this machine"), "{said}");
            for (text, words) in [
                ("[containers]\ndefault_ulimits = [\"nofile=2:1\"]", "containers.default_ulimits"),
                ("[containers]\nadditional_devices = [\"/dev/no-such\"]", "containers.additional_devices"),
                ("[containers]\nprivileged_devices = \"some\"", "privileged_devices"),
                ("[containers]\npids_limit = -1", "pids_limit"),
                ("[containers]\npid_limit = 1", "did you mean `pids_limit`?"),
                ("pids_limit = 1", "did you mean `containers.pids_limit`?"),
                ("[log]\nlevel = \"no=such=level\"", "log"),
            ] {
                let bad = check(&world.dir, text);
                let said = String::from_utf8_lossy(&bad.stderr).into_owned();
                assert!(!bad.status.success() && said.contains(words), "{text}: {said}");
            }
        },
    );
}
