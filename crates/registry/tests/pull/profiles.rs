//! Security profiles: honest and hostile artifacts, and what the store keeps of them.

use std::sync::Arc;

use wharf_images::ProfileItem;
use wharf_registry::{ProfileError, ProfileOrigin};
use wharf_types::{Reference, chain};

use crate::image::{Content, OCI_INDEX, sha256};
use crate::server::{Reply, Server, Then, honest};
use crate::world::{World, password, short};

const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;

fn good() -> Content {
    Content::profile(PROFILE.as_bytes(), |_| {})
}

fn blob() -> String {
    format!("/v2/app/blobs/{}", sha256(PROFILE.as_bytes()))
}

async fn pull(world: &World, reference: &Reference) -> Result<ProfileOrigin, Arc<ProfileError>> {
    world.puller.pull_profile(reference, None).await
}

/// The pull fails with this word for the kubelet, and nothing is kept.
async fn fails(server: &Server, pinned: &str, prefix: Option<&str>, words: &str) {
    let world = World::with(short(), &[]);
    let error = pull(&world, &server.reference(pinned)).await.expect_err(words);
    let text = chain(&*error);
    assert_eq!(error.cri_prefix(), prefix, "{text}");
    assert!(text.contains(words), "{words}: {text}");
    assert_eq!(world.store.profiles().list(), []);
}

const INVALID: Option<&str> = Some("SecurityProfileInvalid");
const UNAVAILABLE: Option<&str> = Some("RegistryUnavailable");

#[tokio::test]
async fn a_profile_is_fetched_once_and_kept() {
    let (server, other) = (Server::honest(good()).await, Server::honest(Content::default()).await);
    let (mut world, reference) = (World::new(), server.reference(&good().pinned()));
    assert_eq!(pull(&world, &reference).await.unwrap(), ProfileOrigin::Registry);
    assert_eq!(server.requests().len(), 2, "manifest and profile; nobody needs the config");
    assert_eq!(pull(&world, &reference).await.unwrap(), ProfileOrigin::Store);
    world = world.restarted();
    let elsewhere = other.reference(&good().pinned());
    for reference in [&reference, &elsewhere] {
        assert_eq!(pull(&world, reference).await.unwrap(), ProfileOrigin::Store);
    }
    assert_eq!((server.requests().len(), other.requests().len()), (2, 0));
    let mut references = vec![reference.to_string(), elsewhere.to_string()];
    references.sort();
    let (digest, size_bytes) = (sha256(PROFILE.as_bytes()), PROFILE.len() as u64);
    let profiles = world.store.profiles();
    assert_eq!(profiles.list(), [ProfileItem { digest: digest.clone(), references, size_bytes }]);
    assert!(world.store.list().is_empty(), "it is no image");
    profiles.remove(&digest).unwrap();
    assert_eq!(pull(&world, &reference).await.unwrap(), ProfileOrigin::Registry);
}

#[tokio::test]
async fn equal_pulls_are_one_and_who_gives_up_stops_nobody() {
    let shared = good();
    let server = Server::start(good(), move |request| {
        (request.path() == blob()).then(|| honest(&shared, request).gated())
    })
    .await;
    let (world, reference) = (World::new(), server.reference(&good().pinned()));
    let pulls = futures_util::future::join_all((0..8).map(|_| pull(&world, &reference)));
    let impatient = tokio::time::timeout(std::time::Duration::from_millis(50), pull(&world, &reference));
    let mine = world.puller.pull_profile(&reference, password("me", "hunter2"));
    let meanwhile = async {
        server.until(&blob(), 2).await;
        assert!(impatient.await.is_err());
        server.open_gate();
        server.open_gate();
    };
    let (pulled, mine, ()) = tokio::join!(pulls, mine, meanwhile);
    for origin in pulled.into_iter().chain([mine]) {
        assert_eq!(origin.unwrap(), ProfileOrigin::Registry);
    }
    assert_eq!(server.count(&blob()), 2, "once for each of the credentials");
}

#[tokio::test]
async fn what_is_not_a_profile_is_refused_before_it_is_fetched() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(Change, &str); 5] = [
        (
            |manifest| manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json".into(),
            "config",
        ),
        (
            |manifest| manifest["layers"] = serde_json::json!([manifest["layers"][0], manifest["layers"][0]]),
            "2 layers",
        ),
        (|manifest| manifest["layers"][0]["size"] = ((1 << 20) + 1).into(), "1048576"),
        (|manifest| manifest["layers"][0]["urls"] = serde_json::json!(["http://127.0.0.1:9"]), "urls"),
        (|manifest| manifest["mediaType"] = OCI_INDEX.into(), "manifest"),
    ];
    for (change, words) in changes {
        let content = Content::profile(PROFILE.as_bytes(), change);
        let server = Server::honest(content.clone()).await;
        fails(&server, &content.pinned(), INVALID, words).await;
        assert_eq!(server.count(&blob()), 0);
    }
    let large = Content::profile(PROFILE.as_bytes(), |manifest| manifest["x"] = "x".repeat(64 << 10).into());
    fails(&Server::honest(large.clone()).await, &large.pinned(), INVALID, "65536 bytes").await;
    let index = (OCI_INDEX.to_owned(), br#"{"schemaVersion": 2, "manifests": []}"#.to_vec());
    let pinned = format!("@{}", sha256(&index.1));
    let mut content = Content::default();
    content.put(&format!("manifests/{}", sha256(&index.1)), &index.0, index.1.clone());
    fails(&Server::honest(content).await, &pinned, INVALID, "manifest").await;
}

#[tokio::test]
async fn a_profile_that_is_not_valid_is_not_kept() {
    let entries = vec![r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}"#; 129].join(",");
    for (profile, words) in [
        (br#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_vec(), "SCMP_ACT_NOTIFY"),
        (br#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}"#.to_vec(), "listenerPath"),
        (br#"{"defaultAction": "SCMP_ACT_ALLOW", "x": 1}"#.to_vec(), "unknown key"),
        (
            format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{entries}]}}"#).into_bytes(),
            "129 entries",
        ),
        (Vec::new(), "not valid JSON"),
        (vec![0x1f, 0x8b, 8, 0], "not text"),
    ] {
        let content = Content::profile(&profile, |_| {});
        fails(&Server::honest(content.clone()).await, &content.pinned(), INVALID, words).await;
    }
}

#[tokio::test]
async fn a_registry_that_breaks_or_lies_is_no_fault_of_the_profile() {
    let lie = |change: fn(Reply) -> Reply| {
        let content = good();
        Server::start(good(), move |request| {
            (request.path() == blob()).then(|| change(honest(&content, request)))
        })
    };
    let pinned = good().pinned();
    fails(&lie(|_| Reply::new(200, vec![b' '; PROFILE.len()])).await, &pinned, UNAVAILABLE, "digest").await;
    fails(&lie(|_| Reply::new(200, "{}")).await, &pinned, UNAVAILABLE, "bytes").await;
    fails(&lie(|reply| reply.length(None).then(Then::Repeat)).await, &pinned, UNAVAILABLE, "bytes").await;
    fails(&lie(|reply| reply.cut(10)).await, &pinned, UNAVAILABLE, "lost").await;
    fails(&lie(|_| Reply::new(503, "")).await, &pinned, UNAVAILABLE, "503").await;
    fails(&lie(|_| Reply::new(404, "")).await, &pinned, None, "not found").await;
    fails(&lie(|_| Reply::new(403, "")).await, &pinned, None, "denies access").await;
    let other = format!("@sha256:{}", "0".repeat(64));
    fails(&Server::honest(good()).await, &other, None, "not found").await;
    let mut wrong = Content::default();
    wrong.put(&format!("manifests/sha256:{}", "0".repeat(64)), OCI_INDEX, b"{}".to_vec());
    fails(&Server::honest(wrong).await, &other, UNAVAILABLE, "instead of").await;
    let world = World::with(short(), &[]);
    let nobody: Reference = format!("127.0.0.1:9/app{other}").parse().unwrap();
    assert_eq!(pull(&world, &nobody).await.unwrap_err().cri_prefix(), UNAVAILABLE);
    let tagged: Reference = "127.0.0.1:9/app:v1".parse().unwrap();
    assert_eq!(pull(&world, &tagged).await.unwrap_err().cri_prefix(), INVALID);
}
