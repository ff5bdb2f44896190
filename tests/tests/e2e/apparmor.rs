//! Where the kernel has AppArmor: here simulated by the files that show it, and a parser that only keeps what it is
//! given.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use futures_util::future::join_all;
use nix::mount::{MsFlags, mount, umount};
use tonic::Code;
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::*;

use crate::client::security;
use crate::world::{World, run, until};

const COVERED: [&str; 3] = ["/sys/module", "/sys/kernel/security", "/usr/local/sbin"];

/// Starts the daemon anew on a kernel that seems to have AppArmor, with a parser that ends as a shell command says.
pub(crate) async fn simulate(world: &mut World, end: &str) {
    for path in COVERED {
        mount(Some("x"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }
    let write = |path: &str, text: &str| {
        std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("/sys/module/apparmor/parameters/enabled", "Y\n");
    write("/sys/kernel/security/apparmor/profiles", "other (enforce)\n");
    let parser = "/usr/local/sbin/apparmor_parser";
    write(parser, &format!("#!/bin/sh\ncat >{}\n{end}\n", world.dir.join("profile").display()));
    std::fs::set_permissions(parser, std::fs::Permissions::from_mode(0o755)).unwrap();
    world.daemon.kill();
    world.start_again().await;
}

pub(crate) fn uncover() {
    COVERED.iter().for_each(|path| umount(*path).unwrap());
}

#[test]
fn a_profile_that_cannot_be_loaded_fails_the_container() {
    run(async |world| {
        simulate(world, "echo 'syntax error, line 7' >&2; exit 1").await;
        let client = &world.client;
        let pod = client.run(&client.pod("pod")).await.unwrap();
        let error = client.create(&pod, &client.container("default", "true")).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        let words = "AppArmor profile: apparmor_parser failed: exit status: 1: syntax error, line 7";
        assert!(error.message().contains(words), "{error}");
        let given = std::fs::read_to_string(world.dir.join("profile")).unwrap();
        for rule in
            ["profile wharf-default flags=(", "deny mount,", "deny network alg,", "deny network vsock,"]
        {
            assert!(given.contains(rule), "{rule}: {given}");
        }
        // Who is not to be confined is none the worse for it.
        let mut unconfined = client.container("unconfined", "exit 3");
        let profile_type = ProfileType::Unconfined.into();
        security(&mut unconfined).apparmor = Some(SecurityProfile { profile_type, ..Default::default() });
        let id = client.launch(&pod, &unconfined).await.unwrap();
        assert_eq!(client.exited(&id).await.exit_code, 3);
        uncover();
    });
}

/// There are more of them than threads for what blocks.
#[test]
fn a_parser_that_hangs_holds_up_only_containers_that_need_it() {
    const WAITING: usize = 66;
    run(async |world| {
        let [hang, runs] = ["hang", "runs"].map(|name| world.dir.join(name));
        let (hanging, counted) = (hang.display(), runs.display());
        let end = format!("echo run >>{counted}; while [ -e {hanging} ]; do sleep 0.2; done; exit 1");
        std::fs::write(&hang, "").unwrap();
        simulate(world, &end).await;
        let client = &world.client;
        let mut pods = Vec::new();
        for n in 0..WAITING {
            pods.push(client.run(&client.pod(&format!("pod-{n}"))).await.unwrap());
        }
        let config = client.container("main", "true");
        let waiting = join_all(pods.iter().map(|pod| client.create(pod, &config)));
        let other = async {
            until("the parser runs", async || runs.exists().then_some(())).await;
            let other = client.run(&client.pod("other")).await.unwrap();
            let mut unconfined = client.container("unconfined", "exit 3");
            let profile_type = ProfileType::Unconfined.into();
            security(&mut unconfined).apparmor = Some(SecurityProfile { profile_type, ..Default::default() });
            let id = client.launch(&other, &unconfined).await.unwrap();
            assert_eq!(client.exited(&id).await.exit_code, 3);
            std::fs::remove_file(&hang).unwrap();
        };
        let (failed, ()) = tokio::join!(waiting, other);
        for created in failed {
            let error = created.unwrap_err();
            assert!(error.message().contains("apparmor_parser failed"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&runs).unwrap(), "run\n", "all share one failure");
        uncover();
    });
}

/// A container does not run without its profile: this kernel cannot give it one.
#[test]
fn a_profile_that_is_not_applied_fails_the_container() {
    run(async |world| {
        simulate(world, "exit 0").await;
        let client = &world.client;
        let pod = client.run(&client.pod("pod")).await.unwrap();
        let mut own = client.container("own", "true");
        let (profile_type, localhost_ref) = (ProfileType::Localhost.into(), "mine".to_owned());
        security(&mut own).apparmor =
            Some(SecurityProfile { profile_type, localhost_ref, ..SecurityProfile::default() });
        for config in [client.container("default", "true"), own] {
            let error = client.create(&pod, &config).await.unwrap_err();
            assert!(error.message().contains("asking for the AppArmor profile failed"), "{error}");
        }
        assert_eq!(client.containers().await, []);
        uncover();
    });
}
