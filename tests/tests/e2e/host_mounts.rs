//! The host's mount table: only pods on CNI plugins add to it, and no container copies it. So pods cost the same
//! however many mounts there are.

use std::collections::HashSet;
use std::fs;

use crate::steps::Tracer;
use crate::wedge::Supervisor;
use crate::world::run;

/// The mounts in the namespace that this test shares with its daemon, which is the host's from the daemon's point of
/// view.
pub(crate) fn host_mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
}

#[test]
fn pods_of_the_built_in_network_add_no_mount() {
    run(async |world| {
        let before = host_mounts();
        let client = &world.client;
        let mut containers = Vec::new();
        for name in ["one", "two", "three"] {
            let pod = client.run(&client.pod(name)).await.unwrap();
            let container = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
            containers.push((pod, name, container));
        }
        assert_eq!(host_mounts(), before);
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(host_mounts(), before);
        for (pod, name, container) in &containers {
            // The next daemon finds what nothing pins.
            assert_eq!(client.output(container, "cat /etc/hostname").await, *name);
            let network = client.pod_stats(pod).await.network.unwrap();
            assert_eq!(network.default_interface.unwrap().name, "eth0");
            let next = client.to_end(pod, "next", "hostname; ip address show eth0").await;
            assert_eq!(next.exit_code, 0);
        }
        assert_eq!(host_mounts(), before);
    });
}

#[test]
fn a_container_is_made_without_a_copy_of_the_hosts_mounts() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("traced")).await.unwrap();
        let supervisor = Supervisor::of(&pod).await;
        let mut tracer = Tracer::attach_seeing(world, supervisor.pid(), "setns,unshare,clone3,clone");
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        assert_eq!(client.output(&id, "echo fine").await, "fine");
        tracer.end_all();
        let (mut left, mut copies) = (HashSet::new(), 0);
        for line in tracer.seen() {
            let (process, call) = line.split_once(' ').unwrap();
            let call = call.trim_start();
            let is_of_mounts = call.contains("CLONE_NEWNS");
            assert!(!(is_of_mounts && call.starts_with("clone")), "{line}");
            if is_of_mounts && call.starts_with("setns(") {
                left.insert(process.to_owned());
            }
            if is_of_mounts && call.starts_with("unshare(") {
                assert!(left.contains(process), "it copies the host's mounts: {line}");
                copies += 1;
            }
        }
        assert_eq!(copies, 1, "of the pod's, by the container's first process");
    });
}
