//! A full disk: what does not fit is refused and leaves nothing, and what frees space needs none.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use tonic::Code;

use crate::image::{Content, noise, plain};
use crate::place;
use crate::server::Server;
use crate::world::{World, run_on};

/// The size of the disk: wharf keeps a twentieth of it free, 28 MiB.
const SIZE_BYTES: u64 = 560 << 20;

fn small_disk(dir: &Path) {
    place::tmpfs(&dir.join("root"), &format!("size={SIZE_BYTES},mode=0700"));
}

/// Uses up space on the disk, as something else on it would; returns the file.
fn fill(world: &World, leave_bytes: u64) -> PathBuf {
    let path = world.dir.join("root/images.filler");
    place::fill(&path, leave_bytes);
    path
}

#[test]
fn a_pull_that_does_not_fit_leaves_nothing_and_can_be_repeated() {
    run_on(small_disk, async |world| {
        let client = &world.client;
        // It fits, but not without using the reserve.
        let filler = fill(world, 25 << 20);
        let server = Server::honest(Content::oci("1", &[plain("file", &noise(1 << 20))])).await;
        let name = format!("{}/app:1", server.address);
        let error = client.pull(&name).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains("free"), "{error}");
        assert_eq!(client.image_list().await.len(), 1);
        fs::remove_file(filler).unwrap();
        world.is_clean().await;
        client.pull(&name).await.unwrap();
    });
}

#[test]
fn a_full_disk_can_be_emptied() {
    run_on(small_disk, async |world| {
        let pod = world.client.run(&world.client.pod("full")).await.unwrap();
        let config = world.client.container("main", "sleep 1000");
        let id = world.client.launch(&pod, &config).await.unwrap();
        let filler = fill(world, 0);
        let client = &world.client;
        let full = client.exec(&id, "dd if=/dev/zero of=/file bs=1M count=1", 5).await.unwrap();
        assert!(
            full.exit_code != 0 && String::from_utf8_lossy(&full.stderr).contains("No space"),
            "{full:?}"
        );
        assert_eq!(client.image_list().await.len(), 1);

        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.output(&id, "echo still").await, "still");
        client.stop_container(&id, 0).await.unwrap();
        client.remove_container(&id).await.unwrap();
        client.down(&pod).await.unwrap();
        client.remove_image(&client.image).await.unwrap();
        assert_eq!(client.image_list().await, []);
        fs::remove_file(filler).unwrap();
        client.pull(&client.image).await.unwrap();
    });
}

#[test]
fn a_daemon_starts_on_a_disk_that_has_become_read_only() {
    run_on(small_disk, async |world| {
        let pod = world.client.run(&world.client.pod("failing")).await.unwrap();
        let config = world.client.container("main", "sleep 1000");
        let id = world.client.launch(&pod, &config).await.unwrap();
        let root = world.dir.join("root");
        let remount = |flags| {
            let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            nix::mount::mount(None::<&str>, &root, None::<&str>, flags, None::<&str>).unwrap();
        };
        world.daemon.kill();
        // What a pull leaves that is killed.
        fs::create_dir(root.join("staging/1")).unwrap();
        remount(MsFlags::MS_RDONLY);
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.image_list().await.len(), 1);
        assert_eq!(client.output(&id, "echo still").await, "still");
        client.stop_container(&id, 0).await.unwrap();
        let error = client.remove_container(&id).await.unwrap_err();
        assert!(error.message().contains("Read-only file system"), "{error}");

        world.daemon.kill();
        remount(MsFlags::empty());
        world.start_again().await;
        world.client.down(&pod).await.unwrap();
    });
}
