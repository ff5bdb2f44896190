//! `wharf explain`: why containers do not run, from what wharfd, the kernel and the logs say of real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::{ContainerConfig, Mount, SecurityProfile};

use crate::client::{security, words};
use crate::people::{printed, refused, wharf};
use crate::wedge::Supervisor;
use crate::world::{World, run, until};

/// An ELF file for the other architecture, with as much as the kernel looks at.
fn foreign() -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    let mut file = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 1000]].concat();
    (file[16], file[20], file[52], file[54]) = (2, 1, 64, 56);
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file
}

/// Files that cannot be executed, each with a part of what is said of it.
fn programs() -> [(&'static str, Vec<u8>, u32, &'static str); 5] {
    [
        ("foreign", foreign(), 0o755, "it is a program for "),
        ("script", b"#!/no/interpreter -x\n".to_vec(), 0o755, "\"/no/interpreter\", is not in the container"),
        ("dos", b"#!/bin/sh\r\necho\r\n".to_vec(), 0o755, "\"/bin/sh\\r\", is not in the container"),
        ("text", b"echo hello\n".to_vec(), 0o755, "neither a binary nor a script that begins with #!"),
        ("denied", b"#!/no/interpreter\n".to_vec(), 0o644, "failed: permission denied"),
    ]
}

/// What is printed of a container, once it has exited.
async fn told(world: &World, name: &str, id: &str) -> String {
    world.client.exited(id).await;
    printed(world, &format!("explain why/{name}"))
}

#[test]
fn a_program_that_cannot_be_executed_says_what_its_file_is() {
    run(async |world| {
        let (client, files) = (&world.client, world.dir.join("files"));
        fs::create_dir(&files).unwrap();
        let pod = client.run(&client.pod("why")).await.unwrap();
        for (name, content, mode, words_told) in programs() {
            let file = files.join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let mut config = client.container(name, "");
            config.command = words(&[&format!("/files/{name}")]);
            config.mounts = vec![Mount {
                host_path: files.display().to_string(),
                container_path: "/files".to_owned(),
                ..Mount::default()
            }];
            let id = client.create(&pod, &config).await.unwrap();
            let error = client.start(&id).await.unwrap_err();
            assert!(error.message().contains(words_told), "{error}");
            let told = told(world, name, &id).await;
            assert!(told.contains(words_told) && told.contains("the stage that failed: start"), "{told}");
        }
    });
}

/// A container that is killed for the call that makes a directory.
fn without_mkdir(world: &World, config: &mut ContainerConfig) {
    let profile = world.dir.join("profile.json");
    let rule = r#"{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}"#;
    fs::write(&profile, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#)).unwrap();
    security(config).seccomp = Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: profile.display().to_string(),
        ..SecurityProfile::default()
    });
}

#[test]
fn an_end_says_what_it_means_and_who_asked_for_it() {
    const LIMIT_BYTES: i64 = 8 << 20;
    const GOES_ON: &str = "touch /tmp/there; while :; do sleep 0.05; done";
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("why")).await.unwrap();
        for (name, script, said) in [
            ("memory", "echo eats; exec tail /dev/zero", &["its memory limit (8.0 MiB)", "    eats\n"][..]),
            ("child", "tail /dev/zero; exit 3", &["exit code 3", "what this code means"]),
            (
                "unfound",
                "no-such-command",
                &["has not found a command", "    sh: no-such-command: not found\n"],
            ),
            (
                "fault",
                "sh -c 'kill -SEGV $$'; exit $?",
                &["stands for SIGSEGV", "memory that it does not have"],
            ),
            ("call", "exec mkdir /tmp/x", &["stands for SIGSYS", "seccomp profile kills a program"]),
            ("done", "echo bye", &["with exit code 0", "must stay in the foreground", "    bye\n"]),
        ] {
            let mut config = client.container(name, script);
            config.linux.as_mut().unwrap().resources.as_mut().unwrap().memory_limit_in_bytes = LIMIT_BYTES;
            if name == "call" {
                without_mkdir(world, &mut config);
            }
            let id = client.launch(&pod, &config).await.unwrap();
            let told = told(world, name, &id).await;
            assert!(said.iter().all(|words| told.contains(words)), "{said:?} in {told}");
        }
        for (name, script, grace_s, said) in [
            ("stopped", format!("trap 'exit 0' TERM; {GOES_ON}"), 20, "with 20 s to end by itself"),
            ("deaf", GOES_ON.to_owned(), 1, "it did not end on SIGTERM, and was killed after that time"),
        ] {
            let id = client.launch(&pod, &client.container(name, &script)).await.unwrap();
            let there = async || {
                client.exec(&id, "test -e /tmp/there", 5).await.ok().filter(|done| done.exit_code == 0)
            };
            until("it is there", there).await;
            client.stop_container(&id, grace_s).await.unwrap();
            let told = told(world, name, &id).await;
            assert!(
                told.contains("a client, such as the kubelet, asked wharfd") && told.contains(said),
                "{told}"
            );
        }
    });
}

#[test]
fn a_supervisor_that_was_killed_and_a_container_that_is_gone_are_told() {
    run(async |world| {
        let client = &world.client;
        let pod = client.run(&client.pod("why")).await.unwrap();
        let id = client.launch(&pod, &client.container("main", "sleep 1000")).await.unwrap();
        assert!(printed(world, "explain why").contains("why/main runs since "));
        kill(Pid::from_raw(Supervisor::of(&pod).await.pid()), Signal::SIGKILL).unwrap();
        client.exited(&id).await;
        let told: serde_json::Value =
            serde_json::from_slice(&wharf(world, "--json explain why").stdout).unwrap();
        let [of_pod, of_container] = told["verdicts"].as_array().unwrap().as_slice() else {
            panic!("{told:#}")
        };
        assert_eq!(of_pod["why"][0], "its supervisor is gone, and its containers went with it", "{told:#}");
        assert_eq!((&of_container["exitCode"], &of_container["reason"]), (&255.into(), &"Unknown".into()));
        assert!(
            of_container["next"][0].as_str().unwrap().contains("supervisor (wharf-shim) ended"),
            "{told:#}"
        );
        client.down(&pod).await.unwrap();
        let (code, why) = refused(world, "explain why/main");
        assert!(code == Some(1) && why.contains("was never made, or is removed"), "{why}");
    });
}
