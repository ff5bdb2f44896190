//! Registries that behave.

use crate::image::{Content, TestLayer, gzip, noise, plain, zstd};
use crate::server::{Reply, Server};
use crate::world::{World, file_of, patient};

#[tokio::test]
async fn an_index_leads_to_an_image_of_all_compressions() {
    let layers = [gzip("a", b"one"), zstd("b", &noise(300_000)), plain("c", b"three"), plain("a", b"upper")];
    let (content, index) = Content::oci("v1", &layers).indexed("v1");
    let id = content.config.clone().unwrap();
    let (server, world) = (Server::honest(content).await, World::new());
    let reference = server.reference(":v1");
    let image = world.pull(&reference).await.unwrap();
    assert_eq!(*image.id(), id);
    assert_eq!(image.repo_tags(), [reference.to_string()]);
    assert_eq!(image.repo_digests(), [format!("{}@{index}", reference.name())]);
    assert_eq!(file_of(&image, "a"), b"upper");
    assert_eq!(file_of(&image, "b"), noise(300_000));
    assert_eq!(world.store.list().len(), 1);
    assert!(world.puller.active().is_empty());
}

#[tokio::test]
async fn a_docker_image_and_a_pull_by_digest() {
    let content = Content::docker("v1", &[gzip("a", b"one"), plain("b", b"two")]);
    let digest = content.manifest.clone().unwrap();
    let (server, world) = (Server::honest(content).await, World::new());
    let image = world.pull(&server.reference(&format!("@{digest}"))).await.unwrap();
    assert!(image.repo_tags().is_empty());
    assert_eq!(image.repo_digests(), [server.reference(&format!("@{digest}")).to_string()]);
    assert_eq!(file_of(&image, "b"), b"two");
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again() {
    let layer = gzip("a", b"one");
    let content = Content::oci("v1", std::slice::from_ref(&layer));
    let (kind, bytes) = content.file("manifests/v1").clone();
    let config = format!("/v2/app/blobs/{}", content.config.clone().unwrap());
    let mut content = content;
    content.put("manifests/v2", &kind, bytes);
    let (server, world) = (Server::honest(content).await, World::new());
    let first = world.pull(&server.reference(":v1")).await.unwrap();
    let again = world.pull(&server.reference(":v1")).await.unwrap();
    assert_eq!((first.id(), server.count(&config)), (again.id(), 1));
    let requests = server.requests().into_iter().filter(|request| request.path().ends_with("v1"));
    let methods: Vec<_> = requests.map(|request| request.method).collect();
    assert_eq!(methods, ["GET", "HEAD"], "registries count what they give");
    let digest = first.repo_digests()[0].parse().unwrap();
    assert_eq!(world.pull(&digest).await.unwrap().id(), first.id());
    assert_eq!(server.requests().last().unwrap().method, "HEAD");
    let retagged = world.pull(&server.reference(":v2")).await.unwrap();
    assert_eq!(retagged.id(), first.id());
    assert_eq!(retagged.repo_tags().len(), 2);
    assert_eq!(server.count(&layer.path()), 1, "a new tag needs no layer");
    assert_eq!(world.store.list().len(), 1);
}

#[tokio::test]
async fn a_config_that_is_damaged_here_is_fetched_again() {
    let layer = gzip("a", b"one");
    let content = Content::oci("v1", std::slice::from_ref(&layer));
    let config = content.config.clone().unwrap();
    let (server, world) = (Server::honest(content).await, World::new());
    let reference = server.reference(":v1");
    world.pull(&reference).await.unwrap();
    let path = world.dir().join("store/content/sha256").join(config.hex());
    let text = std::fs::read(&path).unwrap();
    for damaged in [Some(text.to_ascii_uppercase()), None] {
        match damaged {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let image = world.pull(&reference).await.unwrap();
        assert!(world.store.is_whole(&image) && std::fs::read(&path).unwrap() == text);
    }
    assert_eq!((server.count(&format!("/v2/app/blobs/{config}")), server.count(&layer.path())), (3, 1));
}

#[tokio::test]
async fn a_tag_that_moved_or_a_registry_without_heads_costs_a_get() {
    let (old, new) = (Content::oci("v1", &[gzip("a", b"old")]), Content::oci("v1", &[gzip("a", b"new")]));
    for head in [200, 404, 405, 500] {
        let first = Server::honest(old.clone()).await;
        let second = Server::start(new.clone(), move |request| {
            (request.method == "HEAD" && head != 200).then(|| Reply::new(head, ""))
        })
        .await;
        let at = |server: &Server| format!("server = \"http://{}\"\n", server.address);
        let world = World::with(patient(), &[("registry.example/hosts.toml", &at(&first))]);
        let reference = "registry.example/app:v1".parse().unwrap();
        world.pull(&reference).await.unwrap();
        std::fs::write(world.dir().join("certs.d/registry.example/hosts.toml"), at(&second)).unwrap();
        let image = world.pull(&reference).await.unwrap();
        assert_eq!(file_of(&image, "a"), b"new", "{head}");
        let methods: Vec<_> = second.requests().into_iter().take(2).map(|request| request.method).collect();
        assert_eq!(methods, ["HEAD", "GET"], "{head}");
    }
}

#[tokio::test]
async fn a_head_that_names_another_image_moves_no_tag() {
    let (one, two) = (Content::oci("v1", &[gzip("a", b"one")]), Content::oci("v2", &[gzip("a", b"two")]));
    let other = two.manifest.clone().unwrap().to_string();
    let server = Server::start(one.with(two), move |request| {
        let lies = request.method == "HEAD" && request.path().ends_with("v1");
        lies.then(|| Reply::new(200, "").header("Docker-Content-Digest", other.clone()))
    })
    .await;
    let (world, reference) = (World::new(), server.reference(":v1"));
    world.pull(&server.reference(":v2")).await.unwrap();
    for _ in 0..2 {
        let image = world.pull(&reference).await.unwrap();
        assert_eq!(file_of(&image, "a"), b"one");
    }
    let heads = server.requests().into_iter().filter(|request| request.method == "HEAD").count();
    assert_eq!(heads, 1, "it was asked, and not believed");
}

#[tokio::test]
async fn images_without_layers_and_with_one_layer_twice() {
    let twice = [gzip("a", b"one"), plain("b", b"two"), gzip("a", b"one")];
    let content = Content::oci("twice", &twice).with(Content::oci("none", &[]));
    let (server, world) = (Server::honest(content).await, World::new());
    let image = world.pull(&server.reference(":twice")).await.unwrap();
    assert_eq!(file_of(&image, "a"), b"one");
    assert_eq!(server.count(&twice[0].path()), 1, "one content is fetched once");
    // What the store makes of an image without layers is its own affair; the pull must end.
    let none = world.pull(&server.reference(":none")).await;
    assert!(none.is_ok_and(|image| image.size_bytes() > 0));
}

#[tokio::test]
async fn an_image_as_careless_builders_make_it() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_mode(0o644);
    header.set_size(0);
    builder.append_link(&mut header, "link", "a").unwrap();
    let to_below = TestLayer::of(builder.into_inner().unwrap());
    let called = |layer: TestLayer, kind| TestLayer { kind, ..layer };
    let layers = [
        called(gzip("a", b"one"), "zstd"),
        called(zstd("b", b"two"), ""),
        called(plain("c", b"three"), "gzip"),
        to_below,
    ];
    let mut content = Content::oci("v1", &layers);
    let (kind, bytes) = content.file("manifests/v1").clone();
    let text = String::from_utf8(bytes).unwrap();
    let text = text.replace("application/vnd.oci.image.config.v1+json", "application/octet-stream");
    content.put("manifests/v1", &kind, text.into_bytes());
    let (server, world) = (Server::honest(content).await, World::new());
    let image = world.pull(&server.reference(":v1")).await.unwrap();
    for (name, want) in [("a", &b"one"[..]), ("b", b"two"), ("c", b"three"), ("link", b"one")] {
        assert_eq!(file_of(&image, name), want, "{name}");
    }
}

#[tokio::test]
async fn many_layers_come_through_few_connections() {
    let layers: Vec<_> = (0..40).map(|n| gzip(&format!("f{n}"), &noise(1000 * n))).collect();
    let (server, world) = (Server::honest(Content::oci("v1", &layers)).await, World::new());
    let image = world.pull(&server.reference(":v1")).await.unwrap();
    assert_eq!(file_of(&image, "f39"), noise(39_000));
    assert!(layers.iter().all(|layer| server.count(&layer.path()) == 1));
}
