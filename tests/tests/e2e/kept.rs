//! The layers of containers outlive the image, its record and a disk error of a moment, even across a restart of the
//! daemon.

use std::fs;
use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::world::{World, run, until};

/// A container's view of its layers: names that are looked up anew each time.
async fn view(client: &Client, container: &str) -> String {
    client.output(container, "ls -lR /bin /etc | md5sum; ls /bin | wc -l").await
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// Leaves a layer without an image, as a crash would: when it disappears, the daemon has swept.
pub(crate) fn leave_orphan(world: &World) -> PathBuf {
    let layer = entries(&world.dir.join("root/layers")).remove(0);
    let orphan = layer.with_file_name("0".repeat(64));
    fs::create_dir_all(orphan.join("fs")).unwrap();
    fs::copy(layer.join("info"), orphan.join("info")).unwrap();
    orphan
}

#[test]
fn layers_in_use_are_not_swept_though_their_image_is_gone() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("kept")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let before = view(client, &id).await;
        client.remove_image(&client.image).await.unwrap();
        let layers = world.dir.join("root/layers");
        let kept = entries(&layers);
        for is_killed in [true, true, false] {
            let orphan = leave_orphan(world);
            if is_killed {
                world.daemon.kill();
            } else {
                world.daemon.end().await;
                assert!(kept.iter().all(|layer| layer.join("fs").exists()));
            }
            world.start_again().await;
            until("the daemon has swept", async || (!orphan.exists()).then_some(())).await;
            assert_eq!(view(&world.client, &id).await, before);
        }
        let client = &world.client;
        client.down(&pod).await.unwrap();
        until("its layers go with it", async || entries(&layers).is_empty().then_some(())).await;
    });
}

/// The record as a release would write it that lays out records of this kind differently.
fn of_an_unknown_layout(kind: &str, whole: &[u8]) -> Vec<u8> {
    [format!("wharf {kind} 99 1 00000000\n").as_bytes(), whole].concat()
}

/// The record as a release would write it that gives it more content.
fn of_a_newer_release(kind: &str, whole: &[u8]) -> Vec<u8> {
    let rest = whole.strip_prefix(format!("wharf {kind} 1 ").as_bytes()).unwrap();
    [format!("wharf {kind} 99 ").as_bytes(), rest].concat()
}

/// Only the kernel knows of these mounts: this release cannot read the record.
#[test]
fn layers_that_only_the_kernel_knows_of_are_not_swept() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("kept")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let before = view(client, &id).await;
        client.remove_image(&client.image).await.unwrap();
        let record = world.dir.join("state/pods").join(&pod).join("containers").join(&id);
        let whole = fs::read(&record).unwrap();
        let newer = of_an_unknown_layout("container", &whole);
        let orphan = leave_orphan(world);
        world.daemon.kill();
        fs::write(&record, newer).unwrap();
        world.start_again().await;
        until("the daemon has swept", async || (!orphan.exists()).then_some(())).await;
        assert_eq!(world.client.containers().await, [], "it is left alone");
        world.daemon.kill();
        fs::write(&record, whole).unwrap();
        world.start_again().await;
        assert_eq!(view(&world.client, &id).await, before);
        world.client.down(&pod).await.unwrap();
    });
}

/// Whoever removes the image sees no container of it.
#[test]
fn layers_of_a_container_that_is_left_alone_outlive_their_image() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("kept")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let before = view(client, &id).await;
        let record = world.dir.join("state/pods").join(&pod).join("containers").join(&id);
        let whole = fs::read(&record).unwrap();
        world.daemon.kill();
        fs::write(&record, of_an_unknown_layout("container", &whole)).unwrap();
        world.start_again().await;
        assert_eq!(world.client.containers().await, [], "it is left alone");
        world.client.remove_image(&world.client.image).await.unwrap();
        assert_eq!(world.client.image_list().await, []);
        world.daemon.kill();
        fs::write(&record, whole).unwrap();
        world.start_again().await;
        assert_eq!(view(&world.client, &id).await, before);
        world.client.down(&pod).await.unwrap();
    });
}

/// A kubelet that did not see it would make another pod in its place.
#[test]
fn a_pod_of_a_newer_release_is_listed_and_lives_on() {
    run(async |world| {
        let client = &world.client;
        let request = client.pod("newer");
        let pod = client.run(&request).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let before = (view(client, &id).await, client.pods().await, client.containers().await);
        let directory = world.dir.join("state/pods").join(&pod);
        let records =
            [("pod", directory.join("record")), ("container", directory.join("containers").join(&id))];
        let newer: Vec<_> =
            records.iter().map(|(kind, path)| of_a_newer_release(kind, &fs::read(path).unwrap())).collect();
        world.daemon.kill();
        for ((_, path), content) in records.iter().zip(&newer) {
            fs::write(path, content).unwrap();
        }
        world.start_again().await;
        let client = &world.client;
        assert_eq!((view(client, &id).await, client.pods().await, client.containers().await), before);
        assert_eq!(client.run(&request).await.unwrap(), pod, "a retry finds it");
        let next = client.launch(&pod, &client.container("next", "sleep 1000")).await.unwrap();
        assert_eq!(client.output(&next, "hostname").await, "newer");
        for ((_, path), content) in records.iter().zip(&newer) {
            assert_eq!(fs::read(path).unwrap(), *content, "{}", path.display());
        }
        client.down(&pod).await.unwrap();
        world.is_clean().await;
    });
}

#[test]
fn a_pod_that_says_nothing_to_this_release_is_left_alone_and_lives_on() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("newer")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let before = (view(client, &id).await, client.pod_status(&pod).await.unwrap().network);
        let record = world.dir.join("state/pods").join(&pod).join("record");
        let whole = fs::read(&record).unwrap();
        let newer = of_an_unknown_layout("pod", &whole);
        world.daemon.kill();
        fs::write(&record, &newer).unwrap();
        world.start_again().await;
        let client = &world.client;
        assert_eq!((client.pods().await, client.containers().await), (vec![], vec![]));
        // What is tidied up in the meantime is not this pod's.
        let other = client.run(&client.pod("other")).await.unwrap();
        assert_ne!(
            client.pod_status(&other).await.unwrap().network,
            before.1,
            "its address is still its own"
        );
        client.down(&other).await.unwrap();
        world.daemon.kill();
        assert_eq!(fs::read(&record).unwrap(), newer);
        fs::write(&record, whole).unwrap();
        world.start_again().await;
        let client = &world.client;
        assert_eq!((view(client, &id).await, client.pod_status(&pod).await.unwrap().network), before);
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_damaged_image_costs_its_containers_nothing() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("kept")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let before = view(client, &id).await;
        world.daemon.kill();
        let record = entries(&world.dir.join("root/images")).remove(0);
        fs::write(&record, "damaged").unwrap();
        let orphan = leave_orphan(world);
        world.start_again().await;
        until("layers are let be", async || {
            const KEPT: &str = "some image records cannot be read: unused layers are kept until they can";
            world.daemon.has_logged(KEPT).then_some(())
        })
        .await;
        let client = &world.client;
        assert!(orphan.exists() && client.image_list().await.is_empty());
        assert_eq!(view(client, &id).await, before);
        client.down(&pod).await.unwrap();
        // A person has looked: now the next start removes what belongs to nothing.
        for aside in entries(&world.dir.join("root/quarantine")) {
            fs::remove_file(aside).unwrap();
        }
        world.daemon.kill();
        world.start_again().await;
        let layers = world.dir.join("root/layers");
        until("the layers are gone", async || entries(&layers).is_empty().then_some(())).await;
        for document in entries(&world.dir.join("root/content/sha256")) {
            fs::remove_file(document).unwrap();
        }
    });
}

#[test]
fn a_disk_that_refuses_at_the_start_loses_no_layer() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("kept")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        let before = view(client, &id).await;
        let root = world.dir.join("root");
        let image = entries(&root.join("images")).remove(0);
        let files = [entries(&root.join("layers")).remove(0).join("info"), image];
        for (file, times, images) in
            files.iter().flat_map(|file| [(file, "1", 1), (file, "1+", 0)].into_iter())
        {
            world.daemon.kill();
            let inject = format!("--inject=openat:error=EIO:when={times}");
            let path = format!("--trace-path={}", file.display());
            world.daemon.start_traced(&[&path, "--trace=openat", &inject]);
            world.connect().await;
            let client = &world.client;
            assert_eq!(client.image_list().await.len(), images, "{} {times}", file.display());
            assert_eq!(view(client, &id).await, before);
            assert_eq!(entries(&root.join("quarantine")), Vec::<PathBuf>::new());
        }
        world.daemon.kill();
        world.start_again().await;
        assert_eq!(world.client.image_list().await.len(), 1);
        assert_eq!(view(&world.client, &id).await, before);
        world.client.down(&pod).await.unwrap();
    });
}
