//! Pods that an earlier release made. Their supervisors are of that release and hold nothing for the pod: the
//! namespaces are pinned as files in the pod's directory, and the pod's file system is mounted there.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;

use nix::sched::{CloneFlags, setns};
use tonic::Code;
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::{PodSandboxState, SecurityProfile};

use crate::apparmor::{simulate, uncover};
use crate::client::security;
use crate::cni::node;
use crate::daemon::process_with;
use crate::place;
use crate::streams::Forward;
use crate::world::{World, run, until};

/// Lays out a pod's directory as the previous release did.
fn with_one_file_system(pod: &Path) {
    let memory = pod.join("memory");
    fs::create_dir(&memory).unwrap();
    node(&format!("mount -t tmpfs -o mode=0700 shm {0}; mkdir -m 1777 {0}/shm", memory.display()));
    write_files(&memory);
}

/// Lays it out as the release before that did: files beside a file system only for shared memory.
fn with_shared_memory(pod: &Path) {
    let shm = pod.join("shm");
    fs::create_dir(&shm).unwrap();
    node(&format!("mount -t tmpfs -o mode=1777 shm {}", shm.display()));
    write_files(pod);
}

fn write_files(directory: &Path) {
    for name in ["hostname", "hosts", "resolv.conf"] {
        fs::write(directory.join(name), "of an earlier release\n").unwrap();
    }
}

fn pin_namespaces(pod: &Path) {
    let pins = ["net", "ipc", "uts"].map(|kind| {
        let path = pod.join("ns").join(kind);
        File::create(&path).unwrap();
        format!("--{kind}={}", path.display())
    });
    node(&format!("unshare {} ip link set lo up", pins.join(" ")));
}

/// Replaces a pod that was just made by one of an earlier release, and lets the current daemon find it.
async fn make_earlier(world: &mut World, pod: &str, lay_out: fn(&Path)) -> Child {
    let directory = world.dir.join("state/pods").join(pod);
    world.daemon.kill();
    let supervisor = process_with(&directory.display().to_string()).expect("the pod's supervisor");
    node(&format!("kill -9 {supervisor}"));
    until("the supervisor is gone", async || {
        process_with(&directory.display().to_string()).is_none().then_some(())
    })
    .await;
    let socket = directory.join("shim.sock");
    fs::remove_file(&socket).unwrap();
    pin_namespaces(&directory);
    lay_out(&directory);
    let earlier = place::command(&place::built().earlier).arg(&directory).spawn().unwrap();
    until("the earlier supervisor listens", async || socket.exists().then_some(())).await;
    world.start_again().await;
    earlier
}

/// Says hello, once, to whoever connects to a port in a pod's network.
fn serve(pod: &Path, port: u16) -> std::thread::JoinHandle<()> {
    let netns = File::open(pod.join("ns/net")).unwrap();
    let (listening, listens) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listening.send(()).unwrap();
        listener.accept().unwrap().0.write_all(b"hello").unwrap();
    });
    listens.recv().unwrap();
    server
}

/// Takes a pod of an earlier release through the rest of its life. The end of the test checks that nothing of it is
/// left.
async fn is_served(world: &mut World, lay_out: fn(&Path), files: &str) {
    let pod = world.client.run(&world.client.pod("earlier")).await.unwrap();
    let mut supervisor = make_earlier(world, &pod, lay_out).await;
    let client = &world.client;
    let directory = world.dir.join("state/pods").join(&pod);
    assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    let main = client.create(&pod, &client.container("main", "sleep 1000")).await.unwrap();
    let plan = fs::read_to_string(directory.join("plans")).unwrap();
    for place in ["ns/net", "ns/ipc", "ns/uts"] {
        assert!(plan.contains(&format!(": {:?}", directory.join(place))), "{place}: {plan}");
    }
    for name in ["hostname", "hosts", "resolv.conf", "shm"] {
        let source = directory.join(files).join(name);
        assert!(plan.contains(&format!("source: {source:?}")), "{name}: {plan}");
    }
    let server = serve(&directory, 8001);
    let mut forward = Forward::open(client, &pod).await;
    let connection = forward.connect(8001).await;
    assert_eq!(forward.over(connection).await.unwrap(), b"hello");
    server.join().unwrap();
    let refused = client.start(&main).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "what it says is passed on: {refused}");
    client.down(&pod).await.unwrap();
    supervisor.wait().unwrap();
}

/// The kubelet keeps a pod that is ready: if its containers could not be made any more, it would never make another.
#[test]
fn a_pod_that_is_older_than_apparmor_gets_no_profile_that_nobody_asked_for() {
    run(async |world| {
        let pod = world.client.run(&world.client.pod("earlier")).await.unwrap();
        let mut supervisor = make_earlier(world, &pod, with_one_file_system).await;
        simulate(world, "exit 0").await;
        let client = &world.client;
        let mut asks = client.container("asks", "true");
        let profile_type = ProfileType::RuntimeDefault.into();
        security(&mut asks).apparmor = Some(SecurityProfile { profile_type, ..Default::default() });
        let error = client.create(&pod, &asks).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("cannot do AppArmor profiles: recreate the pod"), "{error}");
        client.create(&pod, &client.container("main", "true")).await.unwrap();
        let plan = fs::read_to_string(world.dir.join("state/pods").join(&pod).join("plans")).unwrap();
        assert!(plan.ends_with("Some(\"\")\n"), "no profile: {plan}");
        assert!(world.daemon.has_logged("its new containers go without what wharf now adds"));
        uncover();
        client.down(&pod).await.unwrap();
        supervisor.wait().unwrap();
    });
}

#[test]
fn a_pod_of_the_release_before_is_served() {
    run(async |world| is_served(world, with_one_file_system, "memory").await);
}

#[test]
fn a_pod_of_the_release_before_that_is_served() {
    run(async |world| is_served(world, with_shared_memory, "").await);
}
