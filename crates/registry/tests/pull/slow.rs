//! Pulls beside those whose registries send hardly anything.

use std::time::Duration;

use wharf_registry::{LayerProgress, Limits, PullProgress};

use crate::image::{Content, TestLayer, noise, plain};
use crate::server::{Reply, Request, Server, Then, honest};
use crate::world::{World, file_of, patient};

/// Layers that hardly arrive.
fn slow_layers(count: usize) -> Vec<TestLayer> {
    (0..count).map(|n| plain(&format!("slow-{n}"), &noise(20_000 + n))).collect()
}

/// A registry that sends nothing of the slow layers, and all else at once.
async fn slow(content: Content, layers: &[TestLayer]) -> Server {
    let paths: Vec<_> = layers.iter().map(TestLayer::path).collect();
    let stalls = move |request: &Request| {
        let stalled = || Reply::new(200, "").length(None).then(Then::Stall);
        paths.iter().any(|path| path == request.path()).then(stalled)
    };
    Server::start(content, stalls).await
}

/// Waits until so many of the layers have been requested.
async fn until_requested(server: &Server, layers: &[TestLayer], count: usize) {
    let wait = async {
        while requested(server, layers) < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("too few downloads have begun");
}

fn requested(server: &Server, layers: &[TestLayer]) -> usize {
    layers.iter().filter(|layer| server.count(&layer.path()) > 0).count()
}

/// Begins a pull that does not end.
fn begin(world: &World, server: &Server) -> tokio::task::JoinHandle<()> {
    begin_one(world, server, ":slow")
}

fn begin_one(world: &World, server: &Server, which: &str) -> tokio::task::JoinHandle<()> {
    let (puller, reference) = (world.puller.clone(), server.reference(which));
    tokio::spawn(async move { drop(puller.pull(&reference, None).await) })
}

/// Pulls an image of two layers from a registry that works.
async fn pull_beside(world: &World) {
    let honest = Server::honest(Content::oci("v1", &[plain("a", b"one"), plain("b", b"two")])).await;
    let reference = honest.reference(":v1");
    let pulled = tokio::time::timeout(Duration::from_secs(20), world.pull(&reference)).await;
    assert_eq!(file_of(&pulled.expect("it waits for slow ones").unwrap(), "b"), b"two");
}

#[tokio::test]
async fn slow_pulls_take_all_shared_downloads_and_no_other_pulls_own() {
    let world = World::with(Limits { layers_per_pull: 4, layers_in_all: 2, ..patient() }, &[]);
    let layers = slow_layers(4);
    let server = slow(Content::oci("slow", &layers), &layers).await;
    let other = slow(Content::oci("slow", &layers), &layers).await;
    let stuck = [begin(&world, &server), begin(&world, &other)];
    until_requested(&server, &layers, 1).await;
    until_requested(&other, &layers, 1).await;
    let all = async {
        while requested(&server, &layers) + requested(&other, &layers) < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the shared downloads are not used");
    pull_beside(&world).await;
    assert_eq!(requested(&server, &layers) + requested(&other, &layers), 4, "two of their own, two shared");
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn slow_pulls_from_one_registry_do_not_hold_up_those_from_others() {
    // More than there is room for; at most half of the pulls that have a download of their own are of one registry.
    let (count, most) = (70, 32 + 2);
    let world = World::with(Limits { layers_in_all: 2, ..patient() }, &[]);
    let layers = slow_layers(count);
    let images = layers.iter().enumerate();
    let images = images.map(|(n, layer)| Content::oci(&format!("slow-{n}"), std::slice::from_ref(layer)));
    let server = slow(images.fold(Content::default(), Content::with), &layers).await;
    let stuck: Vec<_> = (0..count).map(|n| begin_one(&world, &server, &format!(":slow-{n}"))).collect();
    until_requested(&server, &layers, most).await;
    pull_beside(&world).await;
    assert_eq!(requested(&server, &layers), most);
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A registry that has all shared downloads, and replies so where an honest one sends a layer, gives one up to a pull
/// that has none, whichever of its hosts is slow.
async fn must_give_way(reply: impl Fn(Reply) -> Reply + Send + Sync + 'static) {
    let (pause, rate_window) = (Duration::from_millis(100), Duration::from_millis(500));
    let limits = Limits { backoff: pause, backoff_limit: pause, rate_window, ..patient() };
    let layers = [0, 1].map(|n| plain(&format!("slow-{n}"), &noise(1_000_000 + n)));
    let content = Content::oci("slow", &layers);
    let (honestly, paths) = (content.clone(), layers.each_ref().map(TestLayer::path));
    let script = move |request: &Request| {
        paths.iter().any(|path| path == request.path()).then(|| reply(honest(&honestly, request)))
    };
    let server = Server::start(content, script).await;
    let (address, port) = (server.address, server.address.port());
    let hosts = format!("server = \"http://localhost:{port}\"\n[host.\"http://{address}\"]\n");
    let limits = Limits { layers_in_all: 2, retries: 10_000, resumes: 10_000, ..limits };
    let world = World::with(limits, &[(&format!("{address}/hosts.toml"), &hosts)]);
    let one = slow_layers(1);
    let mut owners = Vec::new();
    // As many as there are downloads of a pull's own.
    for _ in 0..64 {
        let owner = slow(Content::oci("slow", &one), &one).await;
        let pull = begin(&world, &owner);
        until_requested(&owner, &one, 1).await;
        owners.push((owner, pull));
    }
    let (puller, reference) = (world.puller.clone(), server.reference(":slow"));
    let overtaken = tokio::spawn(async move { puller.pull(&reference, None).await });
    until_requested(&server, &layers, 2).await;
    pull_beside(&world).await;
    // The layer that gave way begins anew, and fails nothing.
    assert!(!overtaken.is_finished());
    overtaken.abort();
    owners.iter().for_each(|(_, pull)| pull.abort());
}

#[tokio::test]
async fn a_registry_that_cuts_each_connection_is_slow() {
    must_give_way(|whole| whole.cut(1000)).await;
}

#[tokio::test]
async fn a_registry_that_is_always_busy_is_slow() {
    must_give_way(|_whole| Reply::new(503, "")).await;
}

#[tokio::test]
async fn a_layer_that_waits_for_its_turn_in_a_slow_pull_is_downloaded_by_another() {
    let world = World::with(Limits { layers_per_pull: 1, ..patient() }, &[]);
    // So many that the common one is hardly ever the first.
    let (layers, common) = (slow_layers(20), plain("common", b"here"));
    let of_slow = [layers.clone(), vec![common.clone()]].concat();
    let content = Content::oci("slow", &of_slow).with(Content::oci("v1", std::slice::from_ref(&common)));
    let server = slow(content, &layers).await;
    let stuck = begin(&world, &server);
    until_requested(&server, &layers, 1).await;
    let reference = server.reference(":v1");
    let pulled = tokio::time::timeout(Duration::from_secs(20), world.pull(&reference)).await;
    let image = pulled.expect("it waits for a download that has not begun").unwrap();
    assert_eq!(file_of(&image, "common"), b"here");
    stuck.abort();
}

/// The same layer, but to decompress it takes a window of 64 MiB.
fn wide(layer: TestLayer) -> TestLayer {
    let blocks = layer.blob.chunks(100_000);
    let last = blocks.len() - 1;
    let mut blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (26 - 10) << 3];
    for (number, block) in blocks.enumerate() {
        let head = u32::try_from(block.len()).unwrap() << 3 | u32::from(number == last);
        blob.extend([&head.to_le_bytes()[..3], block].concat());
    }
    TestLayer { blob, kind: "zstd", ..layer }
}

#[tokio::test]
async fn slow_layers_have_no_memory_for_windows() {
    /// More than is read before any of it is decompressed.
    const BEGINNING_BYTES: usize = 400_000;
    let world = World::new();
    // As many as would have all that one registry may have.
    let layer = |n| wide(plain(&format!("slow-{n}"), &noise(600_000 + n)));
    let layers: Vec<_> = (0..6_usize).map(layer).collect();
    let blobs: Vec<_> = layers.iter().map(|layer| (layer.path(), layer.blob.clone())).collect();
    let begins = move |request: &Request| {
        let (_, blob) = blobs.iter().find(|(path, _)| path == request.path())?;
        Some(Reply::new(200, &blob[..BEGINNING_BYTES]).length(None).then(Then::Stall))
    };
    let content = Content::oci("slow", &layers).with(Content::oci("v1", &[wide(plain("a", b"one"))]));
    let server = Server::start(content, begins).await;
    let stuck = begin(&world, &server);
    let have_begun = async {
        let begun = |layer: &LayerProgress| layer.done_bytes >= BEGINNING_BYTES as u64;
        let all_begun = |pull: &PullProgress| pull.layers.len() == 6 && pull.layers.iter().all(begun);
        while !world.puller.active().iter().any(all_begun) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), have_begun).await.expect("they do not arrive");
    let reference = server.reference(":v1");
    let pulled = tokio::time::timeout(Duration::from_secs(20), world.pull(&reference)).await;
    assert_eq!(file_of(&pulled.expect("it waits for slow ones").unwrap(), "a"), b"one");
    pull_beside(&world).await;
    stuck.abort();
}

/// A layer is unpacked while it arrives. The threads for that are not those that everything else needs.
#[test]
fn slow_pulls_take_no_thread_of_the_pool() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let world = World::with(Limits { layers_per_pull: 3, ..patient() }, &[]);
        let layers = slow_layers(3);
        let server = slow(Content::oci("slow", &layers), &layers).await;
        let stuck = begin(&world, &server);
        until_requested(&server, &layers, 3).await;
        pull_beside(&world).await;
        stuck.abort();
    });
}
