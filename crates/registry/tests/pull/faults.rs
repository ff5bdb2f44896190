//! Registries that lie, break or dawdle.

use std::time::Duration;

use wharf_registry::Limits;
use wharf_types::{ErrorKind, Failure};

use crate::authority::{Valid, self_signed};
use crate::image::{Content, TestLayer, gzip, noise, plain, sha256};
use crate::server::{Reply, Request, Server, Then, honest};
use crate::world::{World, file_of, patient, short};

fn one_layer() -> (TestLayer, Content) {
    let layer = gzip("a", &noise(200_000));
    let content = Content::oci("v1", &[plain("b", b"two"), layer.clone()]);
    (layer, content)
}

/// A registry that misbehaves when it is asked for the layer.
async fn with_layer(
    reply: impl Fn(&Request, &[u8]) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, TestLayer) {
    let (layer, content) = one_layer();
    let (path, blob) = (layer.path(), layer.blob.clone());
    let script = move |request: &Request| if request.path() == path { reply(request, &blob) } else { None };
    (Server::start(content, script).await, layer)
}

/// The pull fails in this way, leaves nothing behind, and then works against an honest registry.
async fn must_fail(server: &Server, limits: Limits, kind: ErrorKind, words: &[&str]) {
    let world = World::with(limits, &[]);
    let (error, text) = world.fail(&server.reference(":v1")).await;
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    world.emptied().await;
    let good = Server::honest(one_layer().1).await;
    world.pull(&good.reference(":v1")).await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_is_noticed() {
    let (server, layer) = with_layer(|_, blob| {
        let mut bad = blob.to_vec();
        bad[100_000] ^= 1;
        Some(Reply::new(200, bad))
    })
    .await;
    let digest = layer.digest().to_string();
    must_fail(&server, patient(), ErrorKind::DataLoss, &["layer 2 of 2", &digest, "127.0.0.1"]).await;
}

#[tokio::test]
async fn another_blob_of_the_same_length_is_noticed() {
    let (server, _) = with_layer(|_, blob| Some(Reply::new(200, vec![0; blob.len()]))).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["layer 2 of 2"]).await;
}

#[tokio::test]
async fn wrong_lengths_are_noticed_before_a_byte_is_read() {
    let (server, layer) = with_layer(|_, blob| Some(Reply::new(200, [blob, b"x"].concat()))).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["but the manifest says"]).await;
    assert_eq!(server.count(&layer.path()), 1, "lies are not asked for twice");
    let (server, _) = with_layer(|_, blob| Some(Reply::new(200, &blob[1..]))).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["but the manifest says"]).await;
}

#[tokio::test]
async fn a_blob_without_end_is_left_at_its_size() {
    let (server, _) = with_layer(|_, blob| Some(Reply::new(200, blob).length(None).then(Then::Repeat))).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["but the manifest says"]).await;
}

#[tokio::test]
async fn a_broken_connection_is_resumed() {
    let (server, layer) = with_layer(|request, blob| match request.nth {
        0 => Some(Reply::new(200, blob).cut(50_000)),
        1 => {
            let range = format!("bytes 50000-{}/{}", blob.len() - 1, blob.len());
            Some(Reply::new(206, &blob[50_000..]).header("Content-Range", range).cut(70_000))
        }
        _ => None,
    })
    .await;
    let world = World::new();
    let image = world.pull(&server.reference(":v1")).await.unwrap();
    assert_eq!(file_of(&image, "a"), noise(200_000));
    let request: Vec<_> =
        server.requests().into_iter().filter(|request| request.path() == layer.path()).collect();
    let ranges: Vec<_> = request.iter().map(|request| request.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=50000-"), Some("bytes=120000-")]);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_all_again() {
    let (server, layer) = with_layer(|request, blob| {
        let whole = Reply::new(200, blob);
        Some(if request.nth == 0 { whole.cut(50_000) } else { whole })
    })
    .await;
    let world = World::new();
    let image = world.pull(&server.reference(":v1")).await.unwrap();
    assert_eq!(file_of(&image, "a"), noise(200_000));
    assert_eq!(server.count(&layer.path()), 2);
}

#[tokio::test]
async fn a_different_second_half_is_noticed() {
    let (server, _) = with_layer(|request, blob| {
        let range = format!("bytes 50000-{}/{}", blob.len() - 1, blob.len());
        let bad = vec![7; blob.len() - 50_000];
        Some(match request.nth {
            0 => Reply::new(200, blob).cut(50_000),
            _ => Reply::new(206, bad).header("Content-Range", range),
        })
    })
    .await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["layer 2 of 2"]).await;
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_refused() {
    let (server, _) = with_layer(|request, blob| {
        Some(match request.nth {
            0 => Reply::new(200, blob).cut(50_000),
            _ => {
                Reply::new(206, &blob[50_000..]).header("Content-Range", format!("bytes 0-9/{}", blob.len()))
            }
        })
    })
    .await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["another range"]).await;
    let (server, _) = with_layer(|_, blob| Some(Reply::new(206, blob))).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["another range"]).await;
}

#[tokio::test]
async fn resuming_has_an_end() {
    let (server, layer) = with_layer(|_, blob| Some(Reply::new(200, blob).cut(50_000))).await;
    must_fail(&server, short(), ErrorKind::Unavailable, &["was lost during the response"]).await;
    assert_eq!(server.count(&layer.path()), 4, "three resumptions");
}

#[tokio::test]
async fn an_orderly_end_before_the_end_is_resumed_too() {
    let (server, _) =
        with_layer(|request, blob| (request.nth == 0).then(|| Reply::new(200, &blob[..50_000]).length(None)))
            .await;
    let world = World::new();
    world.pull(&server.reference(":v1")).await.unwrap();
    let (server, _) = with_layer(|_, blob| Some(Reply::new(200, &blob[..9]).length(None))).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["after 9 of"]).await;
}

/// Such an end could be anybody's: only a close_notify, or the announced length, says that a body is whole.
#[tokio::test]
async fn a_tls_connection_that_vanishes_ends_no_document_and_no_blob_before_its_end() {
    let (certificate, acceptor) = self_signed(&["127.0.0.1"], Valid::Now);
    let (layer, content) = one_layer();
    let (path, blob) = (layer.path(), layer.blob.clone());
    let vanishes = |reply: Reply| reply.length(None).then(Then::Vanish);
    let script = move |request: &Request| {
        let whole = vanishes(Reply::new(200, blob.as_slice()));
        (request.path() == path).then_some(whole)
    };
    let server = Server::tls(content.clone(), acceptor.clone(), script).await;
    let trusting = |server: &Server| {
        let host = format!("{}/hosts.toml", server.address);
        World::with(
            patient(),
            &[(&host, "ca = \"ca.pem\""), (&host.replace("hosts.toml", "ca.pem"), &certificate)],
        )
    };
    trusting(&server).pull(&server.reference(":v1")).await.unwrap();
    assert_eq!(server.count(&layer.path()), 1, "all of it was there");
    let server = Server::tls(content.clone(), acceptor, move |request| {
        let is_manifest = request.method == "GET" && request.path().contains("/manifests/");
        is_manifest.then(|| vanishes(Reply::new(200, r#"{"schemaVersion":2"#)))
    })
    .await;
    let (error, text) = trusting(&server).fail(&server.reference(":v1")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{text}");
}

#[tokio::test]
async fn a_stalled_blob_is_resumed_and_given_up() {
    let (server, _) = with_layer(|request, blob| {
        (request.nth == 0).then(|| {
            let mut reply = Reply::new(200, blob).cut(50_000);
            reply.then = Then::Stall;
            reply
        })
    })
    .await;
    let world = World::with(short(), &[]);
    world.pull(&server.reference(":v1")).await.unwrap();
    let (server, _) = with_layer(|_, blob| Some(Reply::new(200, blob).cut(10).then(Then::Stall))).await;
    must_fail(&server, short(), ErrorKind::Unavailable, &["sent nothing for 200 ms"]).await;
}

#[tokio::test]
async fn a_trickle_is_given_up() {
    let (server, _) = with_layer(|_, blob| Some(Reply::new(200, blob).cut(10).then(Then::Stall))).await;
    let limits = Limits { rate_window: Duration::ZERO, rate_floor_bytes: u64::MAX, ..short() };
    must_fail_slow(&server, limits).await;
}

async fn must_fail_slow(server: &Server, limits: Limits) {
    let world = World::with(limits, &[]);
    let (error, text) = world.fail(&server.reference(":v1")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(text.contains("bytes per second") || text.contains("sent nothing"), "{text}");
    world.emptied().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (server, world) = (Server::honest(one_layer().1).await, World::new());
    let (error, text) = world.fail(&server.reference(":v9")).await;
    assert_eq!((error.kind(), error.cri_prefix()), (ErrorKind::NotFound, None));
    let host = server.address.to_string();
    for word in ["manifest unknown", ":v9", "resolve", &host] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(server.count("/v2/app/manifests/v9"), 1);
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let server = Server::honest(Content::default()).await;
    let reference = server.reference(":v1");
    drop(server);
    let world = World::new();
    // The listener's task closes it, and the wait above is not for that task.
    let (error, text) = world.fail(&reference).await;
    assert_eq!((error.kind(), error.cri_prefix()), (ErrorKind::Unavailable, Some("RegistryUnavailable")));
    assert!(text.contains("refused") || text.contains("was lost during the response"), "{text}");
}

#[tokio::test]
async fn documents_must_be_what_they_are_called() {
    let (_, content) = one_layer();
    let digest = content.manifest.clone().unwrap();
    let (kind, bytes) = content.file("manifests/v1").clone();
    let mut other = content.clone();
    let swapped = [bytes.as_slice(), b" "].concat();
    other.put(&format!("manifests/{digest}"), &kind, swapped.clone());
    let server = Server::honest(other).await;
    let world = World::new();
    let (error, text) = world.fail(&server.reference(&format!("@{digest}"))).await;
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(text.contains(&sha256(&swapped).to_string()) && text.contains(&digest.to_string()), "{text}");

    let announced = digest.to_string();
    let lying = move |request: &Request| {
        let named = request.path().ends_with("v1");
        named.then(|| Reply::new(200, swapped.clone()).header("Docker-Content-Digest", announced.clone()))
    };
    let server = Server::start(content, lying).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["resolve"]).await;
}

#[tokio::test]
async fn an_index_entry_binds_type_size_and_digest() {
    let (content, _) = one_layer().1.indexed("v1");
    let manifest = format!("/v2/app/manifests/{}", content.manifest.clone().unwrap());
    let shared = content.clone();
    let retyped = move |request: &Request| {
        let (_, bytes) = &shared.files[request.path()];
        let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
        (request.path() == manifest).then(|| Reply::new(200, bytes.as_slice()).header("Content-Type", kind))
    };
    let server = Server::start(content, retyped).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["manifest"]).await;
}

#[tokio::test]
async fn oversized_answers_are_cut_off() {
    let five_mib = vec![b' '; 5 << 20];
    let body = five_mib.clone();
    let huge =
        move |request: &Request| request.path().contains("manifests").then(|| Reply::new(200, body.clone()));
    let server = Server::start(one_layer().1, huge).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["4194304"]).await;
    let endless = move |request: &Request| {
        let reply = || Reply::new(200, vec![b' '; 9999]).length(None).then(Then::Repeat);
        request.path().contains("manifests").then(reply)
    };
    let server = Server::start(one_layer().1, endless).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["4194304"]).await;
    for (size, kind, word) in [
        (70 << 10, ErrorKind::DataLoss, "65536"),
        (2 << 20, ErrorKind::Unavailable, "was lost during the response"),
    ] {
        let head = move |request: &Request| {
            request.path().contains("manifests").then(|| Reply::new(200, "").header("X", "x".repeat(size)))
        };
        let server = Server::start(one_layer().1, head).await;
        must_fail(&server, patient(), kind, &[word]).await;
    }
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let content = one_layer().1;
    let shared = content.clone();
    let busy = move |request: &Request| {
        Some(match request.nth {
            0 => Reply::new(429, "").header("Retry-After", "1"),
            1 => Reply::new(503, ""),
            _ => honest(&shared, request),
        })
    };
    let (server, world) = (Server::start(content, busy).await, World::new());
    world.pull(&server.reference(":v1")).await.unwrap();
    let always = |_: &Request| {
        Some(Reply::new(503, r#"{"errors":[{"code":"X","message":"at https://a/?sig=s3cret"}]}"#))
    };
    let server = Server::start(Content::default(), always).await;
    let (error, text) = world.fail(&server.reference(":v1")).await;
    assert_eq!(error.cri_prefix(), Some("RegistryUnavailable"));
    assert!(text.contains("503") && !text.contains("s3cret"), "{text}");
    assert_eq!(server.count("/v2/app/manifests/v1"), 3, "two repetitions");
}

#[tokio::test]
async fn redirects_have_an_end() {
    let around = |request: &Request| Some(Reply::new(307, "").header("Location", request.target.clone()));
    let server = Server::start(Content::default(), around).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["more than ten"]).await;
    assert_eq!(server.count("/v2/app/manifests/v1"), 11);
    for bad in ["ftp://a/b", "http://u:p@a/b", ""] {
        let script = move |_: &Request| Some(Reply::new(302, "").header("Location", bad));
        let server = Server::start(Content::default(), script).await;
        let text = World::new().fail(&server.reference(":v1")).await.1;
        assert!(text.contains("redirects") || text.contains("more than ten"), "{text}");
    }
}

#[tokio::test]
async fn layers_and_config_must_agree() {
    let (layer, content) = one_layer();
    let mut short_config = content.clone();
    let config = content.config.clone().unwrap();
    short_config.put(&format!("blobs/{config}"), "x", b"{}".to_vec());
    let server = Server::honest(short_config).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["config"]).await;
    let mut wrong = layer;
    wrong.diff_id = sha256(b"something else");
    let server = Server::honest(Content::oci("v1", &[wrong])).await;
    must_fail(&server, patient(), ErrorKind::DataLoss, &["layer 1 of 1"]).await;
}
