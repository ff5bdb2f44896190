//! Mounts of a request, seen from inside and from the host.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::mount::{MsFlags, mount, umount};
use wharf_cri_api::v1::*;

use crate::client::{pod_security, security};
use crate::world::run;

#[test]
fn mounts_are_as_asked() {
    run(async |world| {
        let client = &world.client;
        let source = world.dir.join("source");
        fs::create_dir_all(source.join("below")).unwrap();
        fs::write(source.join("file"), "of the host").unwrap();
        let bind = |target: &str, readonly, propagation: MountPropagation| Mount {
            container_path: target.to_owned(),
            host_path: source.display().to_string(),
            readonly,
            propagation: propagation.into(),
            ..Mount::default()
        };
        let pod = client.run(&client.pod("mounts")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        config.mounts = vec![
            bind("/deep/down/../er/ro/", true, MountPropagation::PropagationPrivate),
            bind("/rw", false, MountPropagation::PropagationPrivate),
            bind("/slave", false, MountPropagation::PropagationHostToContainer),
        ];
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&id, "cat /deep/er/ro/file").await, "of the host");
        assert_ne!(client.exec(&id, "touch /deep/er/ro/no", 5).await.unwrap().exit_code, 0);
        client.output(&id, "echo inside >/rw/written").await;
        assert_eq!(fs::read_to_string(source.join("written")).unwrap(), "inside\n");

        mount(Some("later"), &source.join("below"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(source.join("below/later"), "").unwrap();
        assert_eq!(client.output(&id, "ls /slave/below").await, "later");
        assert_eq!(client.output(&id, "ls /rw/below").await, "", "a private mount does not follow");
        umount(&source.join("below")).unwrap();
    });
}

#[test]
fn mounts_forbid_what_their_options_say() {
    run(async |world| {
        let client = &world.client;
        let source = world.dir.join("source");
        fs::create_dir(&source).unwrap();
        let pod = client.run(&client.pod("options")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        let options = ["noexec", "nodev", "nosuid"].map(str::to_owned);
        config.mounts = vec![Mount {
            container_path: "/mnt".to_owned(),
            host_path: source.display().to_string(),
            mount_options: options.to_vec(),
            ..Mount::default()
        }];
        let id = client.launch(&pod, &config).await.unwrap();
        let mounted = client.output(&id, "grep ' /mnt ' /proc/mounts | cut -d' ' -f4").await;
        assert!(mounted.starts_with("rw,nosuid,nodev,noexec"), "{mounted}");
        let script = "cp /bin/busybox /mnt/true; /mnt/true 2>&1 | grep -o 'Permission denied'";
        assert_eq!(client.output(&id, script).await, "Permission denied");
        assert_eq!(client.status(&id).await.unwrap().mounts, config.mounts);
    });
}

#[test]
fn a_directory_that_is_missing_is_made() {
    run(async |world| {
        let client = &world.client;
        let source = world.dir.join("made/for/it");
        let pod = client.run(&client.pod("missing")).await.unwrap();
        let mut config = client.container("main", "echo word >/mnt/file");
        config.mounts = vec![Mount {
            container_path: "/mnt".to_owned(),
            host_path: source.display().to_string(),
            ..Mount::default()
        }];
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.exited(&id).await.exit_code, 0);
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "word\n");
        let made = fs::metadata(&source).unwrap();
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o755, 0, 0));
    });
}

#[test]
fn no_mount_hides_another() {
    run(async |world| {
        let client = &world.client;
        let source = world.dir.join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("passwd"), "").unwrap();
        let pod = client.run(&client.pod("depths")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        let bind = |host_path: &str, container_path: &str| Mount {
            host_path: host_path.to_owned(),
            container_path: container_path.to_owned(),
            ..Mount::default()
        };
        config.mounts = vec![bind(source.to_str().unwrap(), "/etc"), bind("/dev", "/dev")];
        let one = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&one, "cat /etc/hostname").await, "depths");
        let two = client.launch(&pod, &client.container("two", "sleep 1000")).await.unwrap();
        client.output(&two, "echo shared >/dev/shm/word").await;
        assert_eq!(client.output(&one, "cat /dev/shm/word").await, "shared");
        let asked = client.output(&one, "grep -c ' /dev/pts devpts' /proc/mounts").await;
        let hosts = fs::read_to_string("/proc/mounts").unwrap();
        assert_eq!(asked, hosts.matches(" /dev/pts devpts").count().to_string(), "the host's, not another");
    });
}

#[test]
fn the_source_of_a_mount_that_propagates_must_propagate() {
    run(async |world| {
        let client = &world.client;
        let source = world.dir.join("source");
        fs::create_dir(&source).unwrap();
        mount(Some("x"), &source, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let set = |flag| mount(None::<&str>, &source, None::<&str>, flag, None::<&str>).unwrap();
        let mut config = client.pod("ways");
        pod_security(&mut config).privileged = true;
        let pod = client.run(&config).await.unwrap();
        let create = async |name: &str, propagation: MountPropagation| {
            let mut config = client.container(name, "true");
            security(&mut config).privileged = true;
            config.mounts = vec![Mount {
                container_path: "/mnt".to_owned(),
                host_path: source.display().to_string(),
                propagation: propagation.into(),
                ..Mount::default()
            }];
            client.create(&pod, &config).await.map_err(|error| error.message().to_owned())
        };
        set(MsFlags::MS_PRIVATE);
        let error = create("one", MountPropagation::PropagationHostToContainer).await.unwrap_err();
        assert!(error.contains("neither shared nor slave"), "{error}");
        let error = create("two", MountPropagation::PropagationBidirectional).await.unwrap_err();
        assert!(error.contains("not shared"), "{error}");
        set(MsFlags::MS_SHARED);
        create("three", MountPropagation::PropagationHostToContainer).await.unwrap();
        create("four", MountPropagation::PropagationBidirectional).await.unwrap();
        client.down(&pod).await.unwrap();
        umount(&source).unwrap();
    });
}

/// They work below a read-only root, too; they begin with the image's content and are removed with the container.
#[test]
fn the_volumes_of_an_image_are_directories_of_the_container() {
    run(async |world| {
        let client = &world.client;
        let layout = crate::place::built().images.join("e2e-test-images/busybox");
        let content = crate::layouts::with_config(crate::layouts::content(&layout), |config| {
            config["config"]["Volumes"] =
                serde_json::json!({"/etc": {}, "data/": {}, "/asked": {}, "/proc": {}});
        });
        let registry = crate::server::Server::honest(content).await;
        let image = format!("{}/app:latest", registry.address);
        client.pull(&image).await.unwrap();
        let pod = client.run(&client.pod("volumes")).await.unwrap();
        let mut config = client.container("main", "sleep 1000");
        config.image = Some(crate::client::image(&image));
        security(&mut config).readonly_rootfs = true;
        config.mounts = vec![Mount {
            container_path: "/asked".to_owned(),
            host_path: world.dir.display().to_string(),
            ..Mount::default()
        }];
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(
            client.output(&id, "cat /etc/hostname; head -n 1 /etc/passwd | cut -d: -f1").await,
            "volumes\nroot"
        );
        assert_eq!(
            client.output(&id, "touch /file 2>&1 | grep -o 'Read-only'; ls -d /proc/1").await,
            "Read-only\n/proc/1"
        );
        client.output(&id, "echo kept >/data/file; echo changed >/etc/passwd; touch /asked/file").await;
        let volumes = world.dir.join("root/snapshots").join(&id).join("volumes");
        assert_eq!(fs::read_dir(&volumes).unwrap().count(), 2);
        let kept = |number: &str| fs::read_to_string(volumes.join(number).join("file"));
        assert!(["0", "1"].iter().any(|number| kept(number).is_ok_and(|kept| kept == "kept\n")));
        client.remove_container(&id).await.unwrap();
        assert!(!volumes.exists());
        let again = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&again, "ls /data; head -n 1 /etc/passwd | cut -d: -f1").await, "root");
        client.down(&pod).await.unwrap();
        client.remove_image(&image).await.unwrap();
    });
}
