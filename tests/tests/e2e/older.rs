//! What an older build left, in that build's layout.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::world::run;

/// Lays out a pod's directory as before pods had a tmpfs for all their files.
fn lay_out_as_before(pod: &Path) {
    let (memory, shm) = (pod.join("memory"), pod.join("shm"));
    for name in ["hostname", "hosts", "resolv.conf"] {
        fs::copy(memory.join(name), pod.join(name)).unwrap();
    }
    umount2(&memory, MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir(&memory).unwrap();
    fs::create_dir(&shm).unwrap();
    mount(Some("shm"), &shm, Some("tmpfs"), MsFlags::empty(), Some("mode=1777,size=65536k")).unwrap();
    fs::write(shm.join("note"), "kept").unwrap();
}

/// The end of each test checks that nothing of it is left.
#[test]
fn a_pod_of_an_older_build_takes_containers_and_can_be_removed() {
    run(async |world| {
        let client = &world.client;
        let used = client.run(&client.pod("used")).await.unwrap();
        let stopped = client.run(&client.pod("stopped")).await.unwrap();
        let main = client.launch(&used, &client.container("main", "sleep 1000")).await.unwrap();
        client.launch(&stopped, &client.container("main", "sleep 1000")).await.unwrap();
        world.daemon.kill();
        for pod in [&used, &stopped] {
            lay_out_as_before(&world.dir.join("state/pods").join(pod));
        }
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.output(&main, "hostname").await, "used");
        let next = client.launch(&used, &client.container("next", "sleep 1000")).await.unwrap();
        let files = "cat /etc/hostname /dev/shm/note; grep -c localhost /etc/hosts; test -f /etc/resolv.conf";
        assert_eq!(client.output(&next, files).await, "used\nkept2");
        client.stop(&stopped).await.unwrap();
        client.down(&stopped).await.unwrap();
        client.down(&used).await.unwrap();
    });
}
