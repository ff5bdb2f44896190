//! Images and artifacts as volumes: what is seen of them, how they are shown, and how long their layers are kept.

use std::fs;

use serde_json::json;
use tar::EntryType::{Fifo, Symlink};
use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::{Client, image, security};
use crate::hostile::archive;
use crate::image::{Content, OCI_MANIFEST, TestLayer, plain, sha256};
use crate::server::{Reply, Server};
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

#[test]
fn who_may_mount_cannot_write_to_an_image() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("images")).await.unwrap();
        let mounts = vec![volume(&client.image, "/whole", ""), volume(&client.image, "/part", "etc")];
        let mut config = container(client, mounts);
        let add_capabilities = vec!["SYS_ADMIN".to_owned()];
        security(&mut config).capabilities = Some(Capability { add_capabilities, ..Capability::default() });
        let main = client.launch(&pod, &config).await.unwrap();
        for place in ["/whole", "/part"] {
            let script = format!(
                "mount -o remount,rw,bind {place} && echo may mount; touch {place}/new 2>&1 | grep -o Read-only"
            );
            assert_eq!(client.output(&main, &script).await, "may mount\nRead-only", "{place}");
        }
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

/// The files of an artifact, each with its title.
fn artifact(files: &[(Option<&str>, &[u8])]) -> Content {
    let mut content = Content::default();
    let blobs: Vec<_> = files.iter().map(|(title, bytes)| {
        let digest = sha256(bytes).to_string();
        content.put(&format!("blobs/{digest}"), "application/octet-stream", bytes.to_vec());
        let annotations = title.map(|title| json!({ "org.opencontainers.image.title": title }));
        json!({ "mediaType": "text/plain", "digest": digest, "size": bytes.len(), "annotations": annotations })
    }).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/x.words", "layers": blobs,
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}").to_string(), "size": 2 },
    });
    content.put("manifests/1", OCI_MANIFEST, manifest.to_string().into_bytes());
    content
}

#[test]
fn an_artifact_is_a_volume_of_its_files() {
    run(async |world| {
        let client = &world.client;
        let archive = plain("inside", b"an archive that stays one").blob;
        let files: [(Option<&str>, &[u8]); 3] =
            [(Some("deep/word"), b"a word"), (Some("layer.tar"), &archive), (None, b"untitled")];
        let server = Server::honest(artifact(&files)).await;
        let name = format!("{}/app:1", server.address);
        let id = client.pull(&name).await.unwrap();
        assert_eq!(client.pull(&name).await.unwrap(), id);
        let pod = client.run(&client.pod("artifacts")).await.unwrap();
        let mounts =
            vec![volume(&id, "/all", ""), volume(&name, "/deep", "deep"), volume(&name, "/a", "deep/word")];
        let main = client.launch(&pod, &container(client, mounts)).await.unwrap();
        let untitled = sha256(b"untitled");
        let script = format!(
            "ls /all | wc -l; cat /all/deep/word /deep/word /a /all/{}; tar tf /all/layer.tar",
            untitled.hex()
        );
        assert_eq!(client.output(&main, &script).await, "3\na worda worda worduntitledinside");
        client.remove_image(&name).await.unwrap();
        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(client.output(&main, "cat /all/deep/word").await, "a word");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn an_artifact_whose_names_lead_elsewhere_is_refused() {
    run(async |world| {
        let client = &world.client;
        let outside = world.dir.join("outside");
        for name in
            ["../outside", "../../../../outside", outside.to_str().unwrap(), "a/../../outside", ".wh.etc"]
        {
            let server = Server::honest(artifact(&[(Some(name), b"hostile")])).await;
            let error = client.pull(&format!("{}/app:1", server.address)).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains(&format!("{name:?}")), "{error}");
        }
        assert!(!outside.exists());
        // What is not the blob that the manifest names is no file either.
        let honest = artifact(&[(Some("word"), b"a word")]);
        let path = format!("/v2/app/blobs/{}", sha256(b"a word"));
        let lie =
            Server::start(honest, move |asked| (asked.path() == path).then(|| Reply::new(200, b"a lie!")))
                .await;
        client.pull(&format!("{}/app:1", lie.address)).await.unwrap_err();
        assert_eq!(client.image_list().await.len(), 1);
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
