//! Images as volumes: what is seen of them, how they are shown, and how long their layers are kept.

use std::fs;

use tar::EntryType::{Fifo, Symlink};
use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::{Client, image};
use crate::hostile::archive;
use crate::image::{Content, TestLayer, plain};
use crate::server::Server;
use crate::world::{run, until};

/// A mount of an image, as the kubelet asks for it.
fn volume(name: &str, target: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: target.to_owned(),
        readonly: true,
        image: Some(ImageSpec { user_specified_image: "app:1".to_owned(), ..image(name) }),
        image_sub_path: sub_path.to_owned(),
        ..Mount::default()
    }
}

/// A container with these mounts that waits.
fn container(client: &Client, mounts: Vec<Mount>) -> ContainerConfig {
    ContainerConfig { mounts, ..client.container("main", "sleep 1000") }
}

fn two_layers() -> [TestLayer; 2] {
    [plain("etc/lower", b"lower"), plain("etc/upper", b"upper")]
}

#[test]
fn an_image_is_seen_merged_and_read_only() {
    run(async |world| {
        let client = &world.client;
        let several = Server::honest(Content::oci("1", &two_layers())).await;
        let single = Server::honest(Content::oci("1", &[plain("etc/only", b"only")])).await;
        let names = [&several, &single].map(|server| format!("{}/app:1", server.address));
        let id = client.pull(&names[0]).await.unwrap();
        client.pull(&names[1]).await.unwrap();
        let pod = client.run(&client.pod("images")).await.unwrap();
        let mounts = vec![
            volume(&id, "/several", ""),
            volume(&names[0], "/deep/part", "etc/"),
            volume(&names[0], "/a-file", "etc/upper"),
            volume(&names[1], "/single", ""),
            Mount { mount_options: vec!["noexec".to_owned()], ..volume(&names[1], "/part", "./etc") },
            volume(&client.image, "/programs", "bin"),
        ];
        let hosts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = hosts();
        let main = client.launch(&pod, &container(client, mounts)).await.unwrap();
        assert_eq!(hosts(), before, "a container's mounts are its own");
        let script =
            "cat /several/etc/*; echo; cat /deep/part/*; echo; cat /a-file /single/etc/only /part/only";
        assert_eq!(client.output(&main, script).await, "lowerupper\nlowerupper\nupperonlyonly");
        for place in ["/several", "/deep/part", "/single", "/part"] {
            let script = format!("touch {place}/new 2>&1 | grep -o Read-only");
            assert_eq!(client.output(&main, &script).await, "Read-only", "{place}");
        }
        assert_eq!(client.output(&main, "/programs/busybox echo run").await, "run");
        let options = client.output(&main, "grep ' /part ' /proc/mounts | cut -d' ' -f4").await;
        assert!(options.starts_with("ro,noexec"), "{options}");
        let mounted = client
            .output(&main, "grep -cE ' /(several|deep|a-file|single|part|programs)' /proc/mounts")
            .await;
        assert_eq!(mounted, "6", "nothing is below the part that was asked for");
        client.down(&pod).await.unwrap();
    });
}

/// The kubelet's image garbage collection compares these ids with those of a list.
#[test]
fn a_status_says_which_images_are_mounted() {
    run(async |world| {
        let client = &world.client;
        let server = Server::honest(Content::oci("1", &two_layers())).await;
        let name = format!("{}/app:1", server.address);
        let id = client.pull(&name).await.unwrap();
        let pod = client.run(&client.pod("images")).await.unwrap();
        let source = world.dir.join("source");
        let of_host = Mount {
            container_path: "/host".to_owned(),
            host_path: source.display().to_string(),
            ..Mount::default()
        };
        let main = container(client, vec![of_host.clone(), volume(&name, "/image", "etc")]);
        let main = client.launch(&pod, &main).await.unwrap();
        for start in 0..2 {
            let shown = world.client.status(&main).await.unwrap().mounts;
            let mut expected = volume(&id, "/image", "etc");
            expected.image.as_mut().unwrap().image_ref.clone_from(&id);
            assert_eq!(shown, [of_host.clone(), expected]);
            assert!(world.client.image_list().await.iter().any(|image| image.id == id));
            if start == 0 {
                world.daemon.kill();
                world.start_again().await;
            }
        }
        world.client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_mounted_image_is_kept_though_it_is_removed() {
    run(async |world| {
        let several = Server::honest(Content::oci("1", &two_layers())).await;
        let single = Server::honest(Content::oci("1", &[plain("etc/only", b"only")])).await;
        let names = [&several, &single].map(|server| format!("{}/app:1", server.address));
        let client = &world.client;
        for name in &names {
            client.pull(name).await.unwrap();
        }
        let pod = client.run(&client.pod("images")).await.unwrap();
        let mounts = vec![volume(&names[0], "/several", ""), volume(&names[1], "/single", "etc")];
        let main = client.launch(&pod, &container(client, mounts)).await.unwrap();
        for name in &names {
            client.remove_image(name).await.unwrap();
        }
        let record = world.dir.join("state/pods").join(&pod).join("containers").join(&main);
        let whole = fs::read(&record).unwrap();
        let script = "ls /several/etc /single; cat /several/etc/* /single/*";
        // Once its record names the layers, and once only the kernel knows of them.
        for readable in [true, false] {
            let orphan = crate::kept::leave_orphan(world);
            world.daemon.kill();
            if !readable {
                fs::write(&record, [b"wharf container 99 1 00000000\n", &whole[..]].concat()).unwrap();
            }
            world.start_again().await;
            until("the daemon has swept", async || (!orphan.exists()).then_some(())).await;
            if !readable {
                world.daemon.kill();
                fs::write(&record, &whole).unwrap();
                world.start_again().await;
            }
            let seen = world.client.output(&main, script).await;
            assert_eq!(seen, "/several/etc:\nlower\nupper\n\n/single:\nonly\nlowerupperonly");
        }
        let client = &world.client;
        client.down(&pod).await.unwrap();
        client.remove_image(&client.image).await.unwrap();
        let layers = world.dir.join("root/layers");
        let empty = async || fs::read_dir(&layers).unwrap().next().is_none().then_some(());
        until("the layers go with the container", empty).await;
    });
}

#[test]
fn what_cannot_be_mounted_of_an_image_is_refused_with_the_kubelets_word() {
    run(async |world| {
        let client = &world.client;
        let hostile = archive(&[
            (Symlink, "absolute", "/etc/hostname"),
            (Symlink, "upward", "../../../../../../.."),
            (Symlink, "magic", "/proc/self/root"),
            (Fifo, "fifo", ""),
        ]);
        for layers in [vec![TestLayer::of(hostile.clone())], vec![plain("a", b""), TestLayer::of(hostile)]] {
            let server = Server::honest(Content::oci("1", &layers)).await;
            let name = format!("{}/app:1", server.address);
            client.pull(&name).await.unwrap();
            let pod = client.run(&client.pod("images")).await.unwrap();
            let cases = [
                (volume("some/image:1", "/x", ""), Code::NotFound, "\"some/image:1\" not found"),
                (volume(&name, "/x", "missing"), Code::InvalidArgument, "\"missing\" of the image"),
                (volume(&name, "/x", "absolute"), Code::InvalidArgument, "\"absolute\" of the image"),
                (volume(&name, "/x", "upward/etc"), Code::InvalidArgument, "\"upward/etc\" of the image"),
                (volume(&name, "/x", "magic"), Code::InvalidArgument, "\"magic\" of the image"),
                (volume(&name, "/x", "fifo"), Code::InvalidArgument, "neither a file nor a directory"),
                (volume(&name, "/x", "../etc"), Code::InvalidArgument, "has a .. in it"),
                (Mount { readonly: false, ..volume(&name, "/x", "") }, Code::InvalidArgument, "set readonly"),
            ];
            for (mount, code, words) in cases {
                let error = client.create(&pod, &container(client, vec![mount])).await.unwrap_err();
                assert_eq!(error.code(), code, "{error}");
                let message = error.message();
                assert!(message.starts_with("ImageVolumeMountFailed: image volume /x: "), "{message}");
                assert!(message.contains(words), "{message}");
            }
            assert_eq!(client.containers().await, []);
            // A link that leads up is the image's root, for whoever looks from inside.
            let seen = container(client, vec![volume(&name, "/x", "upward")]);
            let seen = client.launch(&pod, &seen).await.unwrap();
            assert_eq!(client.output(&seen, "readlink /x/absolute").await, "/etc/hostname");
            client.down(&pod).await.unwrap();
            client.remove_image(&name).await.unwrap();
        }
    });
}
