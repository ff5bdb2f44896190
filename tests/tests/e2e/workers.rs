//! The daemon's tasks share two threads, its workers: a file call on one of them would make every other call wait for
//! the disk. strace shows what the workers do, during every call for a pod and an image, and at a start.

use std::collections::BTreeSet;
use std::fs;

use wharf_cri_api::v1::{
    ImageFsInfoRequest, ListContainerStatsRequest, ListMetricDescriptorsRequest,
    ListPodSandboxMetricsRequest, ListPodSandboxStatsRequest, StatusRequest, VersionRequest,
};

use crate::scrape::{scrape, turn_on};
use crate::steps::Tracer;
use crate::world::{World, run, run_on, until};

/// What the kernel answers from memory, whatever a disk does: devices, its own file systems, and requests about an open
/// descriptor.
const NO_DISK: [&str; 5] = ["\"/dev/null\"", "\"/proc/", "\"/sys/", "\"/proc\"", ", \"\", "];

/// Calls with the name of a file, and calls that only a worker makes.
const TRACED: &str = "--trace=%file,fsync,fdatasync,syncfs,getdents64,epoll_wait,epoll_pwait";

/// The file calls of threads that wait for events, which only workers do.
fn on_workers(calls: &str) -> Vec<String> {
    let lines =
        calls.lines().filter_map(|line| line.split_once(' ')).map(|(pid, call)| (pid, call.trim_start()));
    let workers: BTreeSet<&str> =
        lines.clone().filter(|(_, call)| call.starts_with("epoll_")).map(|(pid, _)| pid).collect();
    assert!(!workers.is_empty(), "no worker was seen");
    let files = lines.filter(|(pid, call)| workers.contains(pid) && !call.starts_with("epoll_"));
    let files = files.filter(|(_, call)| !call.starts_with("+++") && !call.starts_with("---"));
    let disk = files
        .filter(|(_, call)| !call.contains("resumed>") && !NO_DISK.iter().any(|fine| call.contains(fine)));
    disk.map(|(pid, call)| format!("{pid} {call}")).collect()
}

#[test]
fn no_worker_waits_for_a_disk() {
    run_on(turn_on, async |world| {
        let mut tracer = Tracer::attach_all(world, TRACED);
        Box::pin(life(world, "watched")).await;
        scrape().await;
        let client = &world.client;
        let image = client.image.clone();
        let pod = client.run(&client.pod("after")).await.unwrap();
        let held = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        client.remove_image(&image).await.unwrap();
        // The layers are removed with the last container that uses them.
        client.remove_container(&held).await.unwrap();
        client.pull(&image).await.unwrap();
        tracer.end_all();
        let calls = fs::read_to_string(world.dir.join("calls")).unwrap();
        assert!(calls.contains("/state/pods/"), "file calls were seen");
        assert_eq!(on_workers(&calls), Vec::<String>::new());

        world.daemon.kill();
        world.daemon.start_traced(&[TRACED]);
        world.connect().await;
        Box::pin(life(world, "next")).await;
        scrape().await;
        world.client.down(&pod).await.unwrap();
        world.daemon.kill();
        until("the trace is whole", async || {
            let calls = fs::read_to_string(world.dir.join("calls")).ok()?;
            calls.contains("+++ killed by SIGKILL +++").then_some(())
        })
        .await;
        let calls = fs::read_to_string(world.dir.join("calls")).unwrap();
        assert_eq!(on_workers(&calls), Vec::<String>::new());
        world.start_again().await;
    });
}

/// How many pods are made in the meantime: more than there are workers.
const SLOW_PODS: usize = 4;

/// Each write of a pod's creation to the state directory takes a second; a call that needs no disk does not notice it.
#[test]
fn a_slow_state_directory_holds_up_only_who_writes_to_it() {
    run(async |world| {
        let delay = "--inject=rename,renameat,renameat2:delay_enter=1000000";
        let mut tracer = Tracer::with(world, &["--trace=rename,renameat,renameat2", delay]);
        let makes = (0..SLOW_PODS).map(|n| {
            let client = world.client.clone();
            tokio::spawn(async move { client.run(&client.pod(&format!("slow-{n}"))).await })
        });
        let makes: Vec<_> = makes.collect();
        until("a pod waits for the disk", async || tracer.has_seen("rename").then_some(())).await;
        for _call in 0..20 {
            world.client.runtime.clone().version(VersionRequest::default()).await.unwrap();
            world.client.pods().await;
        }
        assert!(!makes.iter().any(tokio::task::JoinHandle::is_finished), "the disk was not slow");
        for make in makes {
            let pod = make.await.unwrap().unwrap();
            world.client.down(&pod).await.unwrap();
        }
        tracer.end_all();
    });
}

/// Every call about a pod, its containers and the node.
async fn life(world: &World, name: &str) {
    let client = &world.client;
    let mut runtime = client.runtime.clone();
    let pod = client.run(&client.pod(name)).await.unwrap();
    let id = client.launch(&pod, &client.container("main", "echo begun; sleep 1000")).await.unwrap();
    let mut fails = client.container("fails", "");
    fails.command = vec!["/no/such/program".to_owned()];
    client.launch(&pod, &fails).await.unwrap_err();
    assert_eq!(client.to_end(&pod, "short", "exit 4").await.exit_code, 4);
    assert_eq!(client.output(&id, "echo fine").await, "fine");
    let linux = wharf_cri_api::v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    client.update(&id, linux).await.unwrap();
    runtime.status(StatusRequest { verbose: true }).await.unwrap();
    runtime.list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
    runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap();
    runtime.list_metric_descriptors(ListMetricDescriptorsRequest::default()).await.unwrap();
    runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default()).await.unwrap();
    client.images.clone().image_fs_info(ImageFsInfoRequest::default()).await.unwrap();
    client.pod_status(&pod).await.unwrap();
    client.containers().await;
    client.image_list().await;
    client.stop_container(&id, 0).await.unwrap();
    client.remove_container(&id).await.unwrap();
    client.down(&pod).await.unwrap();
}

/// The check can fail: one of two threads is a worker and opens a file on a disk.
#[test]
fn a_file_call_of_a_worker_is_seen() {
    let calls = "7 epoll_wait(3, [], 8, -1) = 0\n\
        8 openat(AT_FDCWD, \"/var/lib/wharf/images/1\", O_RDONLY) = 4\n\
        7 openat(AT_FDCWD, \"/sys/fs/cgroup/memory.stat\", O_RDONLY) = 4\n\
        7  openat(AT_FDCWD, \"/run/wharf/pods/1/record\", O_RDONLY <unfinished ...>\n\
        7 <... openat resumed>) = 5\n";
    let seen = on_workers(calls);
    assert!(seen.len() == 1 && seen[0].contains("record"), "{seen:?}");
}
