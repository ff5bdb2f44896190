//! Pulls that share work, and pulls that are given up.

use std::sync::Arc;

use wharf_registry::Phase;

use crate::image::{Content, TestLayer, gzip, noise, plain};
use crate::server::{Reply, Request, Server, honest};
use crate::world::{World, file_of, password};

/// A registry whose layers wait for the gate.
async fn gated(content: Content) -> Server {
    let shared = content.clone();
    Server::start(content, move |request| {
        let is_layer = shared.files.get(request.path()).is_some_and(|(_, bytes)| bytes.len() > 5_000);
        is_layer.then(|| honest(&shared, request).gated())
    })
    .await
}

fn layer() -> TestLayer {
    gzip("a", &noise(50_000))
}

#[tokio::test]
async fn equal_pulls_are_one() {
    let server = gated(Content::oci("v1", &[layer()])).await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    let pulls = futures_util::future::join_all((0..8).map(|_| world.pull(&reference)));
    let meanwhile = async {
        server.until(&layer().path(), 1).await;
        let active = world.puller.active();
        assert_eq!(active.len(), 1);
        assert_eq!(active[0].reference, reference);
        assert_eq!(active[0].layers[0].phase, Phase::Downloading);
        assert_eq!(active[0].layers[0].total_bytes, layer().blob.len() as u64);
        server.open_gate();
    };
    let (images, ()) = tokio::join!(pulls, meanwhile);
    assert!(images.iter().all(Result::is_ok));
    assert_eq!(server.requests().len(), 3, "manifest, config and layer, once each");
    assert!(world.puller.active().is_empty());
}

#[tokio::test]
async fn other_credentials_are_another_pull_but_not_another_download() {
    let server = gated(Content::oci("v1", &[layer()])).await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    let meanwhile = async {
        server.until("/v2/app/manifests/v1", 2).await;
        server.open_gate();
    };
    let mine = world.puller.pull(&reference, password("me", "hunter2"));
    let (a, b, ()) = tokio::join!(world.pull(&reference), mine, meanwhile);
    assert_eq!(a.unwrap().id(), b.unwrap().id());
    assert_eq!(server.count(&layer().path()), 1);
}

#[tokio::test]
async fn two_images_share_the_download_of_a_layer_in_any_order() {
    let other = plain("b", &noise(20_000));
    let first = Content::oci("v1", &[layer(), other.clone()]);
    let second = Content::oci("v2", &[other.clone(), layer()]);
    let server = gated(first.with(second)).await;
    let world = World::new();
    let (one, two) = (server.reference(":v1"), server.reference(":v2"));
    let meanwhile = async {
        server.until(&layer().path(), 1).await;
        server.until(&other.path(), 1).await;
        server.open_gate();
        server.open_gate();
    };
    let (a, b, ()) = tokio::join!(world.pull(&one), world.pull(&two), meanwhile);
    assert_eq!(file_of(&a.unwrap(), "a"), noise(50_000));
    assert_eq!(file_of(&b.unwrap(), "b"), noise(20_000));
    assert_eq!((server.count(&layer().path()), server.count(&other.path())), (1, 1));
}

#[tokio::test]
async fn a_registry_that_stalls_keeps_no_layer_from_the_pulls_of_others() {
    let stalling = gated(Content::oci("v1", &[layer()])).await;
    let honest = Server::honest(Content::oci("v1", &[layer(), plain("b", b"two")])).await;
    let world = World::new();
    let (puller, reference) = (world.puller.clone(), stalling.reference(":v1"));
    let stalled =
        tokio::spawn(async move { puller.pull(&reference, None).await.map(|image| image.id().clone()) });
    stalling.until(&layer().path(), 1).await;
    let other = honest.reference(":v1");
    let pulled = tokio::time::timeout(std::time::Duration::from_secs(20), world.pull(&other)).await;
    let image = pulled.expect("it waits for the layer of another registry").unwrap();
    assert_eq!(file_of(&image, "a"), noise(50_000));
    // What arrives after this is another copy of a layer that is already there.
    stalling.open_gate();
    stalled.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_waits_for_a_failed_download_takes_over() {
    let content = Content::oci("v1", &[layer()]).with(Content::oci("v2", &[layer()]));
    let shared = content.clone();
    let path = layer().path();
    let server = Server::start(content, move |request: &Request| {
        let fails = request.path() == path && request.nth == 0;
        fails.then(|| honest(&shared, request).gated().header("Content-Encoding", "br"))
    })
    .await;
    let world = World::new();
    let (one, two) = (server.reference(":v1"), server.reference(":v2"));
    let meanwhile = async {
        server.until("/v2/app/manifests/v1", 1).await;
        server.until("/v2/app/manifests/v2", 1).await;
        server.open_gate();
    };
    let (a, b, ()) = tokio::join!(world.pull(&one), world.pull(&two), meanwhile);
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1, "one failed, the other took over");
    assert_eq!(server.count(&layer().path()), 2);
}

#[tokio::test]
async fn a_pull_lasts_while_one_waits_for_it() {
    let server = gated(Content::oci("v1", &[layer()])).await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    let puller = world.puller.clone();
    let given_up = tokio::spawn({
        let (puller, reference) = (puller.clone(), reference.clone());
        async move { puller.pull(&reference, None).await.map(|_| ()) }
    });
    server.until(&layer().path(), 1).await;
    let stays = tokio::spawn(async move { puller.pull(&reference, None).await.map(|_| ()) });
    // Once the second pull holds the permit, it is known to wait, and the first may continue.
    tokio::task::yield_now().await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    server.open_gate();
    stays.await.unwrap().unwrap();
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_leaves_nothing() {
    let content = Content::oci("v1", &[layer(), plain("b", b"two")]);
    let path = layer().path();
    let server = Server::start(content.clone(), move |request: &Request| {
        let reply = || honest(&content, request).cut(20_000).then(crate::server::Then::Stall);
        (request.path() == path && request.nth == 0).then(reply)
    })
    .await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    let puller = world.puller.clone();
    let pull = tokio::spawn({
        let reference = reference.clone();
        async move { puller.pull(&reference, None).await.map(|_| ()) }
    });
    server.until(&layer().path(), 1).await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    assert!(world.puller.active().is_empty());
    world.emptied().await;
    let image = world.pull(&reference).await.unwrap();
    assert_eq!(file_of(&image, "a"), noise(50_000));
}

#[tokio::test]
async fn a_retry_has_the_layers_that_had_come_also_after_a_restart() {
    let content = Content::oci("v1", &[layer(), plain("b", b"two")]);
    let (shared, first, second) = (content.clone(), layer(), plain("b", b"two"));
    let path = second.path();
    let server = Server::start(content, move |request: &Request| {
        let fails = request.path() == path && request.nth < 2;
        fails.then(|| {
            if request.nth == 0 { Reply::new(404, "later").gated() } else { honest(&shared, request).cut(3) }
        })
    })
    .await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    let whole = async {
        while world
            .puller
            .active()
            .iter()
            .all(|pull| pull.layers.first().is_none_or(|it| it.phase != Phase::Done))
        {
            tokio::task::yield_now().await;
        }
        server.open_gate();
    };
    let (failed, ()) = tokio::join!(world.pull(&reference), whole);
    failed.unwrap_err();
    world.emptied().await;
    let world = world.restarted();
    let image = world.pull(&reference).await.unwrap();
    assert_eq!((file_of(&image, "a"), file_of(&image, "b")), (noise(50_000), b"two".to_vec()));
    assert_eq!(server.count(&first.path()), 1, "it came whole before");
}

#[tokio::test]
async fn a_finished_pull_is_not_joined() {
    let server = Server::honest(Content::oci("v1", &[layer()])).await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    world.pull(&reference).await.unwrap();
    assert_eq!(world.store.remove(&reference.to_string()).ok(), Some(true));
    world.pull(&reference).await.unwrap();
    assert_eq!(server.count("/v2/app/manifests/v1"), 2);
}

#[tokio::test]
async fn a_failure_is_everyones_and_the_next_pull_is_new() {
    let content = Content::oci("v1", &[layer()]);
    let shared = content.clone();
    let server = Server::start(content, move |request: &Request| match request.nth {
        0 if request.path().contains("manifests") => Some(Reply::new(404, "").gated()),
        _ => Some(honest(&shared, request)),
    })
    .await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    let meanwhile = async {
        server.until("/v2/app/manifests/v1", 1).await;
        server.open_gate();
    };
    let (a, b, ()) = tokio::join!(world.pull(&reference), world.pull(&reference), meanwhile);
    assert!(Arc::ptr_eq(&a.unwrap_err(), &b.unwrap_err()));
    world.pull(&reference).await.unwrap();
}
