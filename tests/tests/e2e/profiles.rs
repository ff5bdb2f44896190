//! Seccomp profiles from a registry: how they are pulled and kept, and what they do to a container.

use std::fs;

use tonic::{Code, Status};
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::security_profile_base::BaseType;
use wharf_cri_api::v1::*;

use crate::client::{Client, image, pod_security, security};
use crate::image::{Content, sha256};
use crate::place;
use crate::server::{Reply, Server};
use crate::world::{World, run, run_on};

/// Forbids a call that every other profile allows.
const NO_CHMOD: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
/// Allows everything.
const MILD: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;

fn artifact(profile: &str) -> Content {
    Content::profile(profile.as_bytes(), |_| {})
}

/// A registry with a profile, and the name of the profile there.
async fn registry(profile: &str) -> (Server, String) {
    let content = artifact(profile);
    let server = Server::honest(content.clone()).await;
    let name = server.reference(&content.pinned()).to_string();
    (server, name)
}

async fn pull(client: &Client, name: &str) -> Result<bool, Status> {
    let request = PullSecurityProfileRequest {
        image: Some(image(name)),
        profile_kind: SecurityProfileKind::Seccomp.into(),
        ..PullSecurityProfileRequest::default()
    };
    Ok(client.images.clone().pull_security_profile(request).await?.into_inner().cached)
}

async fn list(client: &Client) -> Vec<SecurityProfileInfo> {
    let listed = client.images.clone().list_security_profiles(ListSecurityProfilesRequest {}).await;
    listed.unwrap().into_inner().profiles
}

async fn remove(client: &Client, digest: &str) -> Result<(), Status> {
    let request = RemoveSecurityProfileRequest { digest: digest.to_owned() };
    client.images.clone().remove_security_profile(request).await.map(drop)
}

async fn remove_all(client: &Client) {
    for profile in list(client).await {
        remove(client, &profile.digest).await.unwrap();
    }
    assert_eq!(list(client).await, []);
}

fn oci(name: &str) -> Option<SecurityProfile> {
    let profile_type = ProfileType::Oci.into();
    Some(SecurityProfile { profile_type, oci_ref: name.to_owned(), ..SecurityProfile::default() })
}

/// A container under a profile from a registry.
fn under(client: &Client, container: &str, profile: &str) -> ContainerConfig {
    let mut config = client.container(container, "exec sleep 1000");
    security(&mut config).seccomp = oci(profile);
    config
}

/// What a shell in the container says of these commands: `ok`, or how they fail.
async fn tried(client: &Client, container: &str, script: &str) -> String {
    client.output(container, &format!("{{ {script}; }} >/dev/null 2>&1 && echo ok || echo refused")).await
}

#[test]
fn a_profile_is_pulled_once_and_outlives_the_daemon() {
    run(async |world| {
        let (server, name) = registry(NO_CHMOD).await;
        assert!(!pull(&world.client, &name).await.unwrap());
        assert!(pull(&world.client, &name).await.unwrap(), "no registry is asked again");
        let elsewhere = name.replace("/app@", "/other@");
        assert!(pull(&world.client, &elsewhere).await.unwrap(), "its digest is known");
        assert_eq!(server.requests().len(), 2);
        let digest = sha256(NO_CHMOD.as_bytes()).to_string();
        let refs = vec![name.clone(), elsewhere];
        let expected = SecurityProfileInfo { digest: digest.clone(), refs, size: NO_CHMOD.len() as u64 };
        assert_eq!(list(&world.client).await, std::slice::from_ref(&expected));
        assert_eq!(world.client.image_list().await.len(), 1, "it is no image");
        let status = ImageStatusRequest { image: Some(image(&name)), ..ImageStatusRequest::default() };
        assert_eq!(world.client.images.clone().image_status(status).await.unwrap().into_inner().image, None);

        world.daemon.kill();
        world.start_again().await;
        let client = &world.client;
        assert_eq!(list(client).await, [expected]);
        assert!(pull(client, &name).await.unwrap());
        let file = world.dir.join("root/profiles/records").join(digest.strip_prefix("sha256:").unwrap());
        fs::remove_file(file).unwrap();
        assert!(!pull(client, &name).await.unwrap(), "what is damaged is pulled again");
        for _twice in 0..2 {
            remove(client, &digest).await.unwrap();
        }
        assert_eq!(list(client).await, []);
        for bad in ["", &name, "sha256:0"] {
            assert_eq!(remove(client, bad).await.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
    });
}

#[test]
fn a_container_has_what_its_profile_and_the_base_allow() {
    run(async |world| {
        let client = &world.client;
        let (_strict, no_chmod) = registry(NO_CHMOD).await;
        let (_mild, mild) = registry(MILD).await;
        pull(client, &no_chmod).await.unwrap();
        pull(client, &mild).await.unwrap();
        let mut pod = client.pod("profiles");
        pod_security(&mut pod).seccomp = oci(&mild);
        let pod = client.run(&pod).await.unwrap();

        let strict = client.launch(&pod, &under(client, "strict", &no_chmod)).await.unwrap();
        assert_eq!(client.output(&strict, "grep ^Seccomp: /proc/1/status").await, "Seccomp:\t2");
        assert_eq!(tried(client, &strict, "touch /f && chmod 600 /f").await, "refused");
        assert_eq!(tried(client, &strict, "touch /f && chown 1 /f").await, "ok");

        let id = client.launch(&pod, &under(client, "mild", &mild)).await.unwrap();
        assert_eq!(tried(client, &id, "touch /f && chmod 600 /f").await, "ok");
        assert_eq!(tried(client, &id, "unshare -U true").await, "refused", "by the base");

        let file = world.dir.join("base.json");
        fs::write(&file, NO_CHMOD).unwrap();
        let mut config = under(client, "based", &mild);
        let localhost_ref = file.display().to_string();
        let base = SecurityProfileBase { r#type: BaseType::Localhost.into(), localhost_ref };
        security(&mut config).seccomp.as_mut().unwrap().base_profile = Some(base);
        let based = client.launch(&pod, &config).await.unwrap();
        assert_eq!(tried(client, &based, "touch /f && chmod 600 /f").await, "refused", "by the file");
        assert_eq!(tried(client, &based, "unshare -U true").await, "ok", "the file replaces the default");
        fs::remove_file(&file).unwrap();
        let again = ContainerMetadata { name: "based".to_owned(), attempt: 1 };
        let error =
            client.create(&pod, &ContainerConfig { metadata: Some(again), ..config }).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("base.json"), "{error}");

        remove_all(client).await;
        assert_eq!(tried(client, &strict, "chmod 600 /f").await, "refused", "what runs keeps its filter");
        let error = client.create(&pod, &under(client, "late", &mild)).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        assert!(error.message().contains(&mild), "{error}");
        let mut config = under(client, "privileged", &mild);
        security(&mut config).privileged = true;
        let mut pod = client.pod("privileged");
        pod_security(&mut pod).privileged = true;
        let pod = client.run(&pod).await.unwrap();
        let id = client.launch(&pod, &config).await.unwrap();
        assert_eq!(client.output(&id, "grep ^Seccomp: /proc/1/status").await, "Seccomp:\t0");
    });
}

/// Checks that a pull fails with this code, a message that begins so, and words about the reason.
async fn fails(client: &Client, name: &str, (code, prefix): (Code, &str), words: &str) {
    let error = pull(client, name).await.expect_err(words);
    assert_eq!(error.code(), code, "{words}: {error}");
    assert!(error.message().starts_with(prefix) && error.message().contains(words), "{words}: {error}");
}

#[test]
fn profiles_that_cannot_be() {
    run(async |world| {
        let client = &world.client;
        let invalid = (Code::Unknown, "SecurityProfileInvalid: ");
        let entries = vec![r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#; 129].join(",");
        for (profile, words) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(), "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}"#.to_owned(), "listenerPath"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "includes": {}}"#.to_owned(), "includes"),
            (format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{entries}]}}"#), "129 entries"),
            (format!("{}{MILD}", " ".repeat(1 << 20)), "1048576"),
            ("no JSON".to_owned(), "JSON"),
        ] {
            let (_server, name) = registry(&profile).await;
            fails(client, &name, invalid, words).await;
        }
        type Change = fn(&mut serde_json::Value);
        let changes: [(Change, &str); 3] = [
            (|manifest| manifest["config"]["mediaType"] = "application/x".into(), "config"),
            (|manifest| manifest["layers"] = serde_json::json!([]), "0 layers"),
            (|manifest| manifest["x"] = "x".repeat(64 << 10).into(), "65536"),
        ];
        for (change, words) in changes {
            let content = Content::profile(MILD.as_bytes(), change);
            let server = Server::honest(content.clone()).await;
            fails(client, &server.reference(&content.pinned()).to_string(), invalid, words).await;
        }
        let refused = (Code::InvalidArgument, "SecurityProfileInvalid: ");
        let pinned = artifact(MILD).pinned();
        for (name, words) in [
            (String::new(), "image"),
            (format!("app{pinned}"), "spelt out"),
            ("registry.test/app:v1".to_owned(), "digest"),
            (format!("registry.test/app:v1{pinned}"), "tag"),
            ("registry.test/app@sha256:0".to_owned(), "digest"),
        ] {
            fails(client, &name, refused, words).await;
        }
        for profile_kind in [0, 2] {
            let request = PullSecurityProfileRequest {
                image: Some(image("registry.test/app")),
                profile_kind,
                ..Default::default()
            };
            let error = client.images.clone().pull_security_profile(request).await.unwrap_err();
            assert!(error.message().starts_with("SecurityProfileInvalid: profile_kind"), "{error}");
        }
        let nobody = format!("127.0.0.1:9/app{pinned}");
        fails(client, &nobody, (Code::Unknown, "RegistryUnavailable: "), "127.0.0.1:9").await;
        let guarded = Server::start(artifact(MILD), |_| Some(Reply::new(401, ""))).await;
        let guarded = guarded.reference(&pinned).to_string();
        fails(client, &guarded, (Code::PermissionDenied, "pull of"), "denies access").await;
        assert_eq!((list(client).await, client.image_list().await.len()), (vec![], 1));
    });
}

#[test]
fn a_profile_that_finds_no_room_is_not_kept() {
    let small = |dir: &std::path::Path| place::tmpfs(&dir.join("root"), "size=64m,mode=0700");
    run_on(small, async |world| {
        let (_server, name) = registry(NO_CHMOD).await;
        let filler = world.dir.join("root/images.filler");
        place::fill(&filler, 0);
        let error = pull(&world.client, &name).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert_eq!(list(&world.client).await, []);
        fs::remove_file(filler).unwrap();
        assert!(!pull(&world.client, &name).await.unwrap());
        remove_all(&world.client).await;
    });
}

/// What the kernel says of the filter of a container whose request says nothing about one.
async fn unasked(world: &World, pod: &str) -> String {
    let client = &world.client;
    let pod = client.run(&client.pod(pod)).await.unwrap();
    let mut config = client.container("unasked", "exec sleep 1000");
    security(&mut config).seccomp = None;
    let id = client.launch(&pod, &config).await.unwrap();
    client.output(&id, "grep ^Seccomp: /proc/1/status").await
}

#[test]
fn who_asks_for_nothing_gets_the_default_of_the_configuration() {
    run(async |world| {
        assert_eq!(unasked(world, "before").await, "Seccomp:\t0");
        world.daemon.kill();
        let path = world.dir.join("config.toml");
        let text = fs::read_to_string(&path).unwrap();
        let containers = "[containers]\ndefault_seccomp = \"runtime/default\"\n";
        fs::write(&path, format!("{text}{containers}")).unwrap();
        world.start_again().await;
        assert_eq!(unasked(world, "after").await, "Seccomp:\t2");
    });
}

#[test]
fn profiles_are_announced() {
    run(async |world| {
        let status =
            world.client.runtime.clone().status(StatusRequest::default()).await.unwrap().into_inner();
        assert!(status.features.unwrap().seccomp_profile_oci);
        for handler in status.runtime_handlers {
            assert!(handler.features.unwrap().cgroup_namespaces, "{}", handler.name);
        }
    });
}
