//! Requests that cannot work: each is refused with the right code and a message that says what and why, leaves nothing,
//! and the next good one works.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, security};
use crate::world::{World, run};

type PodCase = (fn(&mut PodSandboxConfig), Code, &'static str);
type ContainerCase = (fn(&mut ContainerConfig), Code, &'static str);

const PODS: &[PodCase] = &[
    (|config| config.metadata = None, Code::InvalidArgument, "metadata"),
    (|config| config.metadata.as_mut().unwrap().name.clear(), Code::InvalidArgument, "metadata.name"),
    (|config| config.hostname = "h".repeat(65), Code::InvalidArgument, "hostname"),
    (|config| config.log_directory = "relative/logs".to_owned(), Code::InvalidArgument, "log_directory"),
    (|config| config.log_directory = "/var/log/../../etc".to_owned(), Code::InvalidArgument, "log_directory"),
    (|config| config.log_directory = "/proc/version/logs".to_owned(), Code::InvalidArgument, "log_directory"),
    (
        |config| sysctl(config, "kernel.core_pattern", "|/bin/sh"),
        Code::InvalidArgument,
        "kernel.core_pattern",
    ),
    (|config| sysctl(config, "net/../kernel/hostname", "x"), Code::InvalidArgument, "sysctls"),
    (|config| sysctl(config, "net.ipv4.no_such_thing", "1"), Code::InvalidArgument, "net.ipv4.no_such_thing"),
    (|config| sysctl(config, "net.ipv4.ip_forward", "many"), Code::InvalidArgument, "net.ipv4.ip_forward"),
    (|config| cgroup_parent(config, "/a/../b"), Code::InvalidArgument, "cgroup_parent"),
    (|config| cgroup_parent(config, "/cgroup.procs"), Code::InvalidArgument, "cgroup_parent"),
    (|config| port(config, 80, 70_000, ""), Code::InvalidArgument, "70000"),
    (|config| port(config, -1, 80, ""), Code::InvalidArgument, "-1"),
    (|config| port(config, 80, 8080, "not an address"), Code::InvalidArgument, "not an address"),
    (
        |config| pod_security(config).run_as_group = Some(Int64Value { value: 5 }),
        Code::InvalidArgument,
        "run_as_group",
    ),
    (
        |config| {
            let servers = vec!["1.1.1.1\nnameserver 6.6.6.6".to_owned()];
            config.dns_config = Some(DnsConfig { servers, ..DnsConfig::default() });
        },
        Code::InvalidArgument,
        "dns_config",
    ),
];

const CONTAINERS: &[ContainerCase] = &[
    (|config| config.metadata = None, Code::InvalidArgument, "metadata"),
    (|config| config.metadata.as_mut().unwrap().name.clear(), Code::InvalidArgument, "metadata.name"),
    (|config| config.image = None, Code::NotFound, "image"),
    (
        |config| config.image = Some(crate::client::image("nowhere/nothing:1")),
        Code::NotFound,
        "nowhere/nothing:1",
    ),
    (|config| config.log_path = "../../escaped.log".to_owned(), Code::InvalidArgument, "log_path"),
    (|config| config.log_path = "/etc/escaped.log".to_owned(), Code::InvalidArgument, "log_path"),
    (|config| bind(config, "/no/such/path", "/mnt"), Code::InvalidArgument, "/no/such/path"),
    (|config| bind(config, "/etc", "relative"), Code::InvalidArgument, "relative"),
    (|config| bind(config, "/etc", "/"), Code::InvalidArgument, "mounts"),
    (|config| device(config, "/dev/no-such-device", "rwm"), Code::InvalidArgument, "/dev/no-such-device"),
    (|config| device(config, "/etc/passwd", "rwm"), Code::InvalidArgument, "/etc/passwd"),
    (|config| device(config, "/dev/null", "everything"), Code::InvalidArgument, "everything"),
    (|config| profile(config, "/no/such/profile.json"), Code::InvalidArgument, "/no/such/profile.json"),
    (|config| profile(config, "relative.json"), Code::InvalidArgument, "relative.json"),
    (|config| profile(config, "/proc/version"), Code::InvalidArgument, "/proc/version"),
    (
        |config| {
            let add_capabilities = vec!["FLY".to_owned()];
            security(config).capabilities = Some(Capability { add_capabilities, ..Capability::default() });
        },
        Code::InvalidArgument,
        "FLY",
    ),
    (
        |config| security(config).run_as_group = Some(Int64Value { value: 5 }),
        Code::InvalidArgument,
        "run_as_group",
    ),
    (|config| security(config).run_as_user = Some(Int64Value { value: -5 }), Code::InvalidArgument, "-5"),
    (
        |config| security(config).run_as_username = "no-such-user".to_owned(),
        Code::InvalidArgument,
        "no-such-user",
    ),
    (|config| security(config).privileged = true, Code::InvalidArgument, "privileged"),
    (|config| config.working_dir = "relative".to_owned(), Code::InvalidArgument, "working_dir"),
    (
        |config| config.envs = vec![KeyValue { key: "A=B".to_owned(), value: "c".into() }],
        Code::InvalidArgument,
        "envs",
    ),
    (
        |config| {
            security(config).namespace_options = Some(NamespaceOption {
                pid: NamespaceMode::Target.into(),
                target_id: "0".repeat(64),
                ..NamespaceOption::default()
            });
        },
        Code::FailedPrecondition,
        "target",
    ),
    (|config| resources(config).cpuset_cpus = "4000-5000".to_owned(), Code::InvalidArgument, "4000-5000"),
    (|config| resources(config).memory_limit_in_bytes = -5, Code::InvalidArgument, "memory_limit_in_bytes"),
    (|config| resources(config).cpu_quota = -2, Code::InvalidArgument, "cpu_quota"),
    (|config| resources(config).oom_score_adj = 1001, Code::InvalidArgument, "oom_score_adj"),
];

fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn sysctl(config: &mut PodSandboxConfig, key: &str, value: &str) {
    config.linux.as_mut().unwrap().sysctls = BTreeMap::from([(key.to_owned(), value.to_owned())]);
}

fn cgroup_parent(config: &mut PodSandboxConfig, parent: &str) {
    config.linux.as_mut().unwrap().cgroup_parent = parent.to_owned();
}

fn port(config: &mut PodSandboxConfig, container_port: i32, host_port: i32, host_ip: &str) {
    let mapping =
        PortMapping { container_port, host_port, host_ip: host_ip.to_owned(), ..PortMapping::default() };
    config.port_mappings = vec![mapping];
}

fn bind(config: &mut ContainerConfig, from: &str, to: &str) {
    let mount = Mount { host_path: from.to_owned(), container_path: to.to_owned(), ..Mount::default() };
    config.mounts = vec![mount];
}

fn device(config: &mut ContainerConfig, path: &str, permissions: &str) {
    config.devices = vec![Device {
        host_path: path.to_owned(),
        container_path: "/dev/device".to_owned(),
        permissions: permissions.to_owned(),
    }];
}

fn profile(config: &mut ContainerConfig, path: &str) {
    security(config).seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost.into(),
        localhost_ref: path.to_owned(),
    });
}

/// What is wrong with an answer that should have been a refusal.
fn wrong<T>(answer: Result<T, Status>, code: Code, words: &str) -> Option<String> {
    match answer {
        Ok(_) => Some(format!("{words}: it was not refused")),
        Err(error) if error.code() == code && error.message().contains(words) => None,
        Err(error) => Some(format!("{words}: {:?} {}", error.code(), error.message())),
    }
}

#[test]
fn pods_that_cannot_be() {
    run(async |world| {
        let client = &world.client;
        let mut found = Vec::new();
        for (number, (change, code, words)) in PODS.iter().enumerate() {
            let mut config = client.pod(&format!("case-{number}"));
            change(&mut config);
            found.extend(wrong(client.run(&config).await, *code, words));
        }
        let request = RunPodSandboxRequest {
            config: Some(client.pod("handler")),
            runtime_handler: "no-such".to_owned(),
        };
        let answer = client.runtime.clone().run_pod_sandbox(request).await;
        found.extend(wrong(answer, Code::InvalidArgument, "no-such"));
        let answer = client.runtime.clone().run_pod_sandbox(RunPodSandboxRequest::default()).await;
        found.extend(wrong(answer, Code::InvalidArgument, "config"));
        assert_eq!(found, Vec::<String>::new());
        works_and_is_clean(world).await;
    });
}

#[test]
fn containers_that_cannot_be() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("cases")).await.unwrap();
        let mut found = Vec::new();
        for (number, (change, code, words)) in CONTAINERS.iter().enumerate() {
            let mut config = client.container(&format!("case-{number}"), "true");
            change(&mut config);
            found.extend(wrong(client.create(&pod, &config).await, *code, words));
        }
        let good = client.container("good", "true");
        found.extend(wrong(client.create("nothing", &good).await, Code::NotFound, "nothing"));
        client.stop(&pod).await.unwrap();
        found.extend(wrong(client.create(&pod, &good).await, Code::FailedPrecondition, &pod));
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(client.containers().await, []);
        client.remove(&pod).await.unwrap();
        works_and_is_clean(world).await;
    });
}

#[test]
fn ids_of_nothing() {
    run(async |world| {
        let client = &world.client;
        // One that others begin with is no id of theirs.
        client.run(&client.pod("one")).await.unwrap();
        let long = "f".repeat(100_000);
        for id in ["", "..", "/", "nobody", "\0", &"0".repeat(64), &long] {
            let missing = |error: Status| {
                assert!(matches!(error.code(), Code::NotFound | Code::InvalidArgument), "{error}");
            };
            missing(client.status(id).await.unwrap_err());
            missing(client.pod_status(id).await.unwrap_err());
            missing(client.start(id).await.unwrap_err());
            missing(client.exec(id, "true", 1).await.unwrap_err());
            missing(client.create(id, &client.container("x", "true")).await.unwrap_err());
            client.stop(id).await.unwrap();
            client.remove(id).await.unwrap();
            client.stop_container(id, 1).await.unwrap();
            client.remove_container(id).await.unwrap();
        }
        assert_eq!(client.pods().await.len(), 1);
    });
}

#[test]
fn names_of_any_length_are_no_danger() {
    run(async |world| {
        let client = &world.client;
        for name in [
            "n".repeat(300),
            "n".repeat(100_000),
            "../../../etc".to_owned(),
            "line\nbreak \u{1b}[31m".to_owned(),
        ] {
            let mut config = client.pod("names");
            config.metadata.as_mut().unwrap().name.clone_from(&name);
            config.labels = BTreeMap::from([(name.clone(), name.clone())]);
            let pod = client.run(&config).await.unwrap();
            let mut container = client.container("main", "exit 0");
            container.metadata.as_mut().unwrap().name.clone_from(&name);
            let id = client.launch(&pod, &container).await.unwrap();
            client.exited(&id).await;
            assert_eq!(client.pod_status(&pod).await.unwrap().metadata.unwrap().name, name);
            client.down(&pod).await.unwrap();
        }
        works_and_is_clean(world).await;
    });
}

#[test]
fn a_host_port_has_one_owner() {
    run(async |world| {
        let client = &world.client;
        let mut first = client.pod("first");
        port(&mut first, 80, 18_080, "");
        let mut second = client.pod("second");
        port(&mut second, 80, 18_080, "");
        let owner = client.run(&first).await.unwrap();
        let error = client.run(&second).await.unwrap_err();
        assert!(error.message().contains("18080") && error.message().contains(&owner), "{error}");
        client.down(&owner).await.unwrap();
        client.run(&second).await.unwrap();
    });
}

#[test]
fn what_is_no_request_hurts_nobody() {
    run(async |world| {
        let garbage: [&[u8]; 4] = [
            b"",
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            &[0xff; 4096],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x04\x00\x00\x00\x00\x00",
        ];
        for bytes in garbage {
            let mut stream = tokio::net::UnixStream::connect(world.daemon.socket()).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            // A reset is an answer too.
            drop(
                tokio::time::timeout(std::time::Duration::from_secs(10), stream.read_to_end(&mut answer))
                    .await
                    .unwrap(),
            );
        }
        let client = &world.client;
        let pod = client.run(&client.pod("large")).await.unwrap();
        let mut config = client.container("large", "true");
        config.annotations = BTreeMap::from([("large".to_owned(), "x".repeat(17 << 20))]);
        let error = client.create(&pod, &config).await.unwrap_err();
        assert!(matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted), "{error}");
        for bytes in [&[0xff_u8; 64][..], b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x03abc"] {
            let error = raw(client, bytes).await.unwrap_err();
            assert!(matches!(error.code(), Code::Internal | Code::InvalidArgument), "{error}");
        }
        client.down(&pod).await.unwrap();
        works_and_is_clean(world).await;
    });
}

/// Sends bytes that are no message as the request of RunPodSandbox.
async fn raw(client: &Client, bytes: &[u8]) -> Result<(), Status> {
    let channel = wharf_tests::connect::connect(&client.socket).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = "/runtime.v1.RuntimeService/RunPodSandbox".parse().unwrap();
    let request = tonic::Request::new(bytes.to_vec());
    grpc.unary(request, path, Bytes).await.map(drop)
}

/// Messages that are what they are.
struct Bytes;

impl tonic::codec::Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(into, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Bytes {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let all = bytes::Buf::remaining(from);
        bytes::Buf::advance(from, all);
        Ok(Some(()))
    }
}

/// After all that was refused: nothing is left, and a good pod comes and goes.
async fn works_and_is_clean(world: &World) {
    let client = &world.client;
    assert_eq!(client.pods().await, []);
    let pod = client.run(&client.pod("good")).await.unwrap();
    assert_eq!(client.to_end(&pod, "main", "exit 0").await.exit_code, 0);
    client.down(&pod).await.unwrap();
    world.is_clean().await;
}
