//! A state directory and a data root without a free byte or inode: what frees space works; what needs space is refused
//! and changes nothing.

use std::fs;
use std::path::Path;

use tonic::Status;
use wharf_cri_api::v1::{ContainerState, LinuxContainerResources};

use crate::client::Client;
use crate::place;
use crate::world::run_on;

/// Puts both on file systems of their own. wharf requires 512 MiB and 10,000 inodes to be free for an image.
fn small(dir: &Path) {
    for (name, options) in
        [("state", "size=4m,nr_inodes=600,mode=0700"), ("root", "size=600m,nr_inodes=16000,mode=0700")]
    {
        place::tmpfs(&dir.join(name), options);
    }
}

/// Uses up everything that is left of a file system in a directory; again and again, in case some was freed.
fn fill(filler: &Path) {
    use std::io::Write as _;
    // This fails if there is no inode for it; then the directory exists and has some bytes already.
    fs::create_dir_all(filler).ok();
    let bytes = fs::File::options().create(true).append(true).open(filler.join("bytes"));
    let mut block = 1 << 20;
    while let (Ok(mut file), true) = (bytes.as_ref(), block > 0) {
        if file.write_all(&vec![0; block]).is_err() {
            block /= 2;
        }
    }
    for number in 0.. {
        match fs::File::create_new(filler.join(format!("inode-{number}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return,
            _ => {}
        }
    }
}

async fn limit(client: &Client, id: &str, bytes: i64) -> Result<(), Status> {
    let linux = LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    client.update(id, linux).await
}

async fn memory(client: &Client, id: &str) -> i64 {
    client.status(id).await.unwrap().resources.unwrap().linux.unwrap().memory_limit_in_bytes
}

#[test]
fn without_a_byte_and_an_inode_everything_can_be_stopped_and_removed() {
    run_on(small, async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("full")).await.unwrap();
        let runs = client.launch(&pod, &client.container("runs", "sleep 1000")).await.unwrap();
        let made = client.create(&pod, &client.container("made", "exit 6")).await.unwrap();
        let other = client.run(&client.pod("other")).await.unwrap();
        limit(client, &runs, 64 << 20).await.unwrap();
        let fillers = ["state", "root"].map(|name| world.dir.join(name).join("filler"));
        fillers.iter().for_each(|filler| fill(filler));

        limit(client, &runs, 128 << 20).await.unwrap_err();
        assert_eq!(memory(client, &runs).await, 64 << 20, "told and done are one");
        let limits = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null";
        assert_eq!(client.output(&runs, &format!("{limits}; true")).await, (64 << 20).to_string());
        client.create(&pod, &client.container("more", "true")).await.unwrap_err();
        client.run(&client.pod("more")).await.unwrap_err();
        client.stop(&other).await.unwrap();
        client.remove(&other).await.unwrap();

        fillers.iter().for_each(|filler| fill(filler));
        world.daemon.kill();
        // No pod could be made, so it is not ready; it still takes over its pods.
        world.daemon.start_again();
        world.reach().await;
        let client = &world.client;
        let status = client.status(&runs).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        client.start(&made).await.unwrap();
        assert_eq!(client.exited(&made).await.exit_code, 6);
        client.stop_container(&runs, 0).await.unwrap();
        client.remove_container(&runs).await.unwrap();
        fillers.iter().for_each(|filler| fill(filler));
        client.stop(&pod).await.unwrap();
        client.remove(&pod).await.unwrap();
        client.remove_image(&client.image).await.unwrap();
        assert_eq!((client.pods().await, client.image_list().await), (vec![], vec![]));
        for filler in fillers {
            fs::remove_dir_all(filler).unwrap();
        }
        world.is_clean().await;
    });
}
