//! Requests that can never work: each is refused with the right code and a message that says what and why, leaves
//! nothing, and the next valid request works.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, security};
use crate::world::{World, run};
use cases::{CALLS, NODE, POD, bind, labels, namespaces, own_namespaces, port, users};
use containers::CONTAINERS;
use pods::PODS;

mod cases;
mod containers;
mod pods;

/// What is wrong with a response that should have been a refusal.
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
        for (number, (_field, change, code, words)) in PODS.iter().enumerate() {
            let mut config = client.pod(&format!("case-{number}"));
            let logs = PathBuf::from(&config.log_directory);
            change(&mut config);
            found.extend(wrong(client.run(&config).await, *code, words));
            // Nothing was begun, except where only the kernel knows which values it accepts.
            let is_tried = ["net.ipv4.no_such_thing", "net.ipv4.ip_forward"].contains(words);
            if logs.exists() && !is_tried {
                found.push(format!("{words}: it was refused only after {} was made", logs.display()));
            }
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
        for (number, (_field, change, code, words)) in CONTAINERS.iter().enumerate() {
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

/// Every field that the table marks as refused has a case here, and every case is in the table.
#[test]
fn every_refusal_of_the_table_has_a_case() {
    let table = include_str!("../../../crates/cri/fields.txt");
    let lines = table.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: BTreeMap<&str, &str> = lines
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?, words.next()?))
        })
        .collect();
    let cases: BTreeSet<&str> = cases::fields().collect();
    let unknown: Vec<_> = cases.iter().filter(|field| !lines.contains_key(**field)).collect();
    assert_eq!(unknown, Vec::<&&str>::new(), "they are not in the table");
    let refused = lines.iter().filter(|(_, verdict)| ["refused", "partly"].contains(verdict));
    let missing: Vec<_> = refused.filter(|(field, _)| !cases.contains(**field)).collect();
    assert_eq!(missing, Vec::<(&&str, &&str)>::new(), "they have no case");
}

#[test]
fn calls_that_are_not_implemented() {
    run(async |world| {
        let mut runtime = world.client.runtime.clone();
        let answers = [
            runtime.checkpoint_container(CheckpointContainerRequest::default()).await.map(drop),
            runtime.checkpoint_pod(CheckpointPodRequest::default()).await.map(drop),
            runtime.restore_pod(RestorePodRequest::default()).await.map(drop),
        ];
        for (call, answer) in CALLS.into_iter().zip(answers) {
            let error = answer.unwrap_err();
            let words = format!("method {} not implemented", call.trim_end_matches("Request.*"));
            assert_eq!((error.code(), error.message()), (Code::Unimplemented, &*words));
        }
    });
}

/// What the kubelet sends to every node and has no effect on this one is not refused, not even if containers were to be
/// labelled: this kernel has no SELinux.
#[test]
fn what_has_no_effect_is_let_through() {
    run(async |world| {
        world.daemon.kill();
        let config = OpenOptions::new().append(true).open(world.dir.join("config.toml"));
        writeln!(config.unwrap(), "[containers]\nselinux = true").unwrap();
        world.start_again().await;
        let client = &world.client;
        let own = labels();
        let default = SecurityProfile::default();
        let mut config = client.pod("lenient");
        pod_security(&mut config).selinux_options = Some(own.clone());
        pod_security(&mut config).apparmor = Some(default.clone());
        namespaces(&mut config).userns_options = users(POD, 0);
        let pod = client.run(&config).await.unwrap();
        let mut container = client.container("main", "exit 7");
        bind(&mut container, "/etc", "/mnt");
        container.mounts[0].selinux_relabel = true;
        own_namespaces(&mut container).userns_options = users(NODE, 0);
        security(&mut container).selinux_options = Some(own);
        security(&mut container).apparmor = Some(default);
        let id = client.launch(&pod, &container).await.unwrap();
        assert_eq!(client.exited(&id).await.exit_code, 7);
    });
}

#[test]
fn ids_of_nothing() {
    run(async |world| {
        let client = &world.client;
        // A prefix of other ids is not a valid id.
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
            // A reset counts as a response.
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

/// Sends arbitrary bytes as the request of RunPodSandbox.
async fn raw(client: &Client, bytes: &[u8]) -> Result<(), Status> {
    let channel = wharf_tests::connect::connect(&client.socket).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = "/runtime.v1.RuntimeService/RunPodSandbox".parse().unwrap();
    let request = tonic::Request::new(bytes.to_vec());
    grpc.unary(request, path, Bytes).await.map(drop)
}

/// Messages that are sent as they are.
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

/// After all refusals: nothing is left, and a valid pod can be made and removed.
async fn works_and_is_clean(world: &World) {
    let client = &world.client;
    assert_eq!(client.pods().await, []);
    let pod = client.run(&client.pod("good")).await.unwrap();
    assert_eq!(client.to_end(&pod, "main", "exit 0").await.exit_code, 0);
    client.down(&pod).await.unwrap();
    world.is_clean().await;
}
