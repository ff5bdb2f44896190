//! Devices by the Container Device Interface: what a container gets of its vendors' files, and what becomes of files
//! that are damaged, hostile or in each other's way.

use std::fs;
use std::path::Path;

use tonic::Code;
use wharf_cri_api::v1::*;

use crate::client::{Client, pod_security, security};
use crate::people::wharf;
use crate::world::{World, run};

/// A vendor's file as such tools write them.
const VENDORS: &str = "---
cdiVersion: 0.7.0
kind: vendor.com/gpu
devices:
- name: \"0\"
  containerEdits:
    deviceNodes:
    - path: /dev/gpu/card0
      hostPath: /dev/loop-control
      permissions: rw
    - path: /dev/gpu/missing
      type: c
      major: 10
      minor: 254
      fileMode: 0640
      uid: 7
      gid: 8
    env:
    - GPU=zero
    - PATH=/vendor/bin:/bin
    additionalGids: [4242]
containerEdits:
  env: [\"DRIVER=loaded\"]
  mounts:
  - hostPath: VENDOR
    containerPath: /vendor
    options: [ro, nosuid, nodev, rbind, rprivate]
";

/// A container that asks for devices by the field and by annotations, and waits.
fn container(client: &Client, devices: &[&str], annotated: &[&str]) -> ContainerConfig {
    let device = |name: &&str| CdiDevice { name: (*name).to_owned() };
    let annotation = |names: &&str| (format!("cdi.k8s.io/{}", names.len()), (*names).to_owned());
    ContainerConfig {
        cdi_devices: devices.iter().map(device).collect(),
        annotations: annotated.iter().map(annotation).collect(),
        ..client.container("main", "sleep 1000")
    }
}

/// A directory of the host with a library, and the file that mounts it.
fn write_vendors(world: &World) {
    let vendor = world.dir.join("vendor");
    fs::create_dir_all(vendor.join("lib")).unwrap();
    fs::write(vendor.join("lib/gpu.so"), "library").unwrap();
    write(world, "cdi/vendor.yaml", &VENDORS.replace("VENDOR", vendor.to_str().unwrap()));
}

fn write(world: &World, name: &str, text: &str) {
    let path = world.dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A file with a device that sets a variable.
fn simple(device: &str, value: &str) -> String {
    format!(
        r#"{{"cdiVersion": "0.5.0", "kind": "other.com/nic", "devices":
            [{{"name": "{device}", "containerEdits": {{"env": ["NIC={value}"]}}}}]}}"#
    )
}

#[test]
fn a_container_gets_what_its_devices_need_and_no_other_does() {
    run(async |world| {
        let client = &world.client;
        write_vendors(world);
        write(world, "cdi-of-drivers/nic.json", &simple("eth0", "first"));
        let pod = client.run(&client.pod("devices")).await.unwrap();
        let config = container(
            client,
            &["vendor.com/gpu=0", "vendor.com/gpu=0"],
            &["vendor.com/gpu=0,other.com/nic=eth0", "other.com/nic=eth0"],
        );
        let main = client.launch(&pod, &config).await.unwrap();
        let seen = client.output(&main, "echo $GPU $DRIVER $NIC $PATH; cat /vendor/lib/gpu.so; id -G").await;
        assert_eq!(seen, "zero loaded first /vendor/bin:/bin\nlibrary0 10 4242");
        let nodes = client.output(&main, "stat -c '%n %F %a %t:%T %u:%g' /dev/gpu/*").await;
        let expected = "/dev/gpu/card0 character special file 600 a:ed 0:0\n\
                        /dev/gpu/missing character special file 640 a:fe 7:8";
        assert_eq!(nodes, expected);
        let open = "(: < /dev/gpu/card0) 2>&1; touch /vendor/new 2>&1 | grep -o Read-only";
        assert_eq!(client.output(&main, open).await, "Read-only");
        let other = client.launch(&pod, &client.container("other", "sleep 1000")).await.unwrap();
        let script = "mknod /tmp/card c 10 237; (: < /tmp/card) 2>&1 | grep -o 'Operation not permitted'; \
                      echo ${GPU-none}; ls -d /vendor /dev/gpu 2>/dev/null | wc -l";
        assert_eq!(client.output(&other, script).await, "Operation not permitted\nnone\n0");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn a_privileged_container_and_one_in_a_user_namespace_get_devices_too() {
    run(async |world| {
        let client = &world.client;
        write_vendors(world);
        let mut privileged = client.pod("privileged");
        pod_security(&mut privileged).privileged = true;
        let ids = |count| vec![IdMapping { host_id: 100_000, container_id: 0, length: count }];
        let mut mapped = client.pod("mapped");
        let options = pod_security(&mut mapped).namespace_options.get_or_insert_default();
        let userns = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(65_536), gids: ids(65_536) };
        options.userns_options = Some(userns);
        for (pod, owner) in [(privileged, "7:8"), (mapped, "7:8")] {
            let is_privileged = pod.linux.as_ref().unwrap().security_context.as_ref().unwrap().privileged;
            let pod = client.run(&pod).await.unwrap();
            let mut config = container(client, &["vendor.com/gpu=0"], &[]);
            security(&mut config).privileged = is_privileged;
            let main = client.launch(&pod, &config).await.unwrap();
            let script = "cat /vendor/lib/gpu.so; stat -c ' %u:%g' /dev/gpu/missing";
            assert_eq!(client.output(&main, script).await, format!("library {owner}"));
            client.down(&pod).await.unwrap();
        }
    });
}

#[test]
fn a_file_that_changes_counts_from_the_next_container_on() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("changes")).await.unwrap();
        let value = async |name: &str| {
            let config = container(client, &["other.com/nic=eth0"], &[]);
            let metadata = Some(ContainerMetadata { name: name.to_owned(), attempt: 0 });
            let main = client.launch(&pod, &ContainerConfig { metadata, ..config }).await?;
            Ok::<_, tonic::Status>(client.output(&main, "echo $NIC").await)
        };
        assert!(value("none").await.is_err());
        write(world, "cdi/a.json", &simple("eth0", "first"));
        assert_eq!(value("first").await.unwrap(), "first");
        write(world, "cdi/a.json", &simple("eth0", "second"));
        assert_eq!(value("second").await.unwrap(), "second");
        // A driver's directory comes after the administrator's, so it counts.
        write(world, "cdi-of-drivers/b.json", &simple("eth0", "drivers"));
        assert_eq!(value("third").await.unwrap(), "drivers");
        write(world, "cdi-of-drivers/c.json", &simple("eth0", "conflict"));
        let conflict = value("conflict").await.unwrap_err();
        assert_eq!(conflict.code(), Code::FailedPrecondition);
        assert!(
            conflict.message().contains("b.json and ") && conflict.message().contains("c.json"),
            "{conflict}"
        );
        fs::remove_dir_all(world.dir.join("cdi-of-drivers")).unwrap();
        assert_eq!(value("fourth").await.unwrap(), "second");
        client.down(&pod).await.unwrap();
    });
}

/// What `wharf doctor` says of the files.
fn doctor(world: &World) -> (String, String) {
    let checks: serde_json::Value = serde_json::from_slice(&wharf(world, "--json doctor").stdout).unwrap();
    let check = checks.as_array().unwrap().iter().find(|check| check["what"] == "devices, hooks").unwrap();
    (check["verdict"].as_str().unwrap().to_owned(), check["found"].as_str().unwrap().to_owned())
}

#[test]
fn what_is_not_there_is_named_with_where_it_was_looked_for() {
    run(async |world| {
        let client = &world.client;
        write_vendors(world);
        fs::create_dir_all(world.dir.join("hooks.d")).unwrap();
        assert_eq!(doctor(world).0, "ok");
        let info: serde_json::Value = serde_json::from_slice(&wharf(world, "--json info").stdout).unwrap();
        let place = |name: &str| world.dir.join(name).display().to_string();
        assert_eq!(info["cdiDirs"], serde_json::json!([place("cdi"), place("cdi-of-drivers")]));
        let status = StatusRequest { verbose: true };
        let status = client.runtime.clone().status(status).await.unwrap().into_inner();
        assert!(
            status.info["config"].contains("\"cdi\":{\"enabled\":true,\"spec_dirs\""),
            "{:?}",
            status.info
        );
        write(world, "cdi/damaged.yaml", "cdiVersion: 0.5.0\nkind: vendor.com/gpu\ndevices: [\n");
        let pod = client.run(&client.pod("devices")).await.unwrap();
        let error = client.create(&pod, &container(client, &["vendor.com/gpu=7"], &[])).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        let words = ["vendor.com/gpu=7", &place("cdi"), &place("cdi-of-drivers"), &place("cdi/damaged.yaml")];
        for words in words {
            assert!(error.message().contains(words), "{words}: {error}");
        }
        let (verdict, found) = doctor(world);
        assert!(verdict == "warn" && found.contains("damaged.yaml"), "{verdict}: {found}");
        // What it may have had is broken, and nothing else.
        let main = client.launch(&pod, &container(client, &["vendor.com/gpu=0"], &[])).await.unwrap();
        assert_eq!(client.output(&main, "echo $GPU").await, "zero");
        client.down(&pod).await.unwrap();
    });
}

#[test]
fn hostile_files_hold_up_nobody_and_give_nothing_away() {
    run(async |world| {
        let client = &world.client;
        write_vendors(world);
        let at = |name: &str| world.dir.join("cdi").join(name);
        nix::unistd::mkfifo(&at("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::File::create(at("huge.json")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero.yaml")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("passwd.yaml")).unwrap();
        write(world, "cdi/deep.yaml", &"[".repeat(1 << 20));
        let aliases: Vec<String> =
            (1..30).map(|level| format!("a{level}: &a{level} [*a{0}, *a{0}]\n", level - 1)).collect();
        write(world, "cdi/bomb.yaml", &format!("a0: &a0 x\n{}", aliases.concat()));
        let hostile = |name: &str, edits: &str| {
            let device = format!(r#"{{"name": "0", "containerEdits": {edits}}}"#);
            let file =
                format!(r#"{{"cdiVersion": "1.1.0", "kind": "evil.com/{name}", "devices": [{device}]}}"#);
            write(world, &format!("cdi/{name}.json"), &file);
        };
        let rows = [
            (
                "root",
                r#"{"mounts": [{"hostPath": "/", "containerPath": "/tmp/../.."}]}"#,
                "the container's root",
            ),
            (
                "relative",
                r#"{"mounts": [{"hostPath": "/etc", "containerPath": "../../etc"}]}"#,
                "not absolute",
            ),
            ("missing", r#"{"mounts": [{"hostPath": "/no/such", "containerPath": "/x"}]}"#, "/no/such"),
            ("node", r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/etc/passwd"}]}"#, "not a device"),
            ("link", r#"{"netDevices": [{"hostInterfaceName": "lo", "name": "lo"}]}"#, "linux.netDevices"),
            ("rdt", r#"{"intelRdt": {"closID": "gold"}}"#, "linux.intelRdt"),
            ("inside", r#"{"hooks": [{"hookName": "startContainer", "path": "/bin/x"}]}"#, "startContainer"),
            (
                "endless",
                r#"{"hooks": [{"hookName": "poststop", "path": "/bin/x", "timeout": 99999}]}"#,
                "99999",
            ),
        ];
        let pod = client.run(&client.pod("hostile")).await.unwrap();
        for (name, edits, words) in rows {
            hostile(name, edits);
            let device = format!("evil.com/{name}=0");
            let error = client.create(&pod, &container(client, &[&device], &[])).await.unwrap_err();
            assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
            assert!(error.message().contains(words), "{words}: {error}");
        }
        let shown = doctor(world).1;
        for name in ["fifo.yaml", "huge.json", "zero.yaml", "passwd.yaml", "deep.yaml", "bomb.yaml"] {
            assert!(shown.contains(name), "{name}: {shown}");
        }
        assert!(!shown.contains("root:x:0:0"), "a message shows what is in a file: {shown}");
        // A link in the image leads nowhere but in the container.
        let link = r#"{"mounts": [{"hostPath": "/etc/hostname", "containerPath": "/link/file", "options": ["bind"]}]}"#;
        hostile("through", link);
        let begin = "ln -s /../../../tmp /link";
        let mut config = container(client, &["evil.com/through=0", "vendor.com/gpu=0"], &[]);
        config.command = vec!["sh".to_owned(), "-c".to_owned(), format!("{begin}; sleep 1000")];
        let main = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&main, "ls -d /link/file").await, "/link/file");
        assert!(!Path::new("/link").exists());
        client.down(&pod).await.unwrap();
    });
}
