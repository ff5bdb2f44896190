//! Registries that lie or do not exist, and malicious images: what the caller is told, and that nothing is left.

use std::io::Write;

use futures_util::future::join_all;
use tonic::Code;

use crate::image::{Content, TestLayer, noise, plain, sha256};
use crate::server::{Reply, Server, Then, honest};
use crate::world::run;

#[test]
fn pulls_that_cannot_be() {
    run(async |world| {
        let client = &world.client;
        let registry = world.registry.address;
        let cases = [
            ("upper/CASE:1".to_owned(), Code::InvalidArgument, "upper/CASE"),
            ("ab".repeat(32), Code::InvalidArgument, "id of an image"),
            ("a b".to_owned(), Code::InvalidArgument, "a b"),
            (String::new(), Code::InvalidArgument, ""),
            (format!("{registry}/app:missing"), Code::NotFound, "app:missing"),
            (format!("{registry}/app@sha256:{}", "0".repeat(64)), Code::NotFound, "app@sha256:0000"),
            // Nobody listens on the discard port.
            ("127.0.0.1:9/app:1".to_owned(), Code::Unknown, "RegistryUnavailable"),
        ];
        let answers = join_all(cases.iter().map(|(name, ..)| client.pull(name))).await;
        for ((name, code, words), answer) in cases.iter().zip(answers) {
            let error = answer.expect_err(name);
            assert_eq!(error.code(), *code, "{name}: {error}");
            assert!(error.message().contains(words), "{name}: {error}");
        }
        assert_eq!(client.image_list().await.len(), 1);
    });
}

#[test]
fn registries_that_lie() {
    run(async |world| {
        let client = &world.client;
        let layer = plain("file", &noise(100_000));
        let content = || Content::oci("1", std::slice::from_ref(&layer));
        let lie = |change: fn(Reply, &[u8]) -> Reply| {
            let (content, blob, path) = (content(), layer.blob.clone(), layer.path());
            let shown = content.clone();
            Server::start(content, move |asked| {
                (asked.path() == path).then(|| change(honest(&shown, asked), &blob))
            })
        };
        let flipped =
            lie(|_honest, blob| Reply::new(200, [&blob[..50_000], b"lie", &blob[50_003..]].concat())).await;
        let short = lie(|honest, _blob| honest.cut(10_000)).await;
        let endless = lie(|_honest, blob| Reply::new(200, blob).length(None).then(Then::Repeat)).await;
        let pulls = [("flipped", &flipped), ("short", &short), ("endless", &endless)];
        let answers = join_all(
            pulls.iter().map(async |(_, server)| client.pull(&format!("{}/app:1", server.address)).await),
        )
        .await;
        for ((what, server), answer) in pulls.iter().zip(answers) {
            let error = answer.expect_err(what);
            assert!(matches!(error.code(), Code::DataLoss | Code::Unknown), "{what}: {error}");
            let digest = layer.digest().to_string();
            assert!(
                error.message().contains(&server.address.to_string()) && error.message().contains(&digest),
                "{what}: {error}"
            );
        }
        assert_eq!(client.image_list().await.len(), 1);
        let good = Server::honest(content()).await;
        client.pull(&format!("{}/app:1", good.address)).await.unwrap();
    });
}

/// An archive with entries that `tar` itself would refuse to write.
pub(crate) fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, target) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(0);
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_ustar_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn layers_that_reach_out() {
    run(async |world| {
        let client = &world.client;
        let outside = world.dir.join("outside");
        let path = outside.to_str().unwrap();
        let up = format!("{}{path}", "../".repeat(20));
        let link = (tar::EntryType::Symlink, "way", "/tmp");
        let through = format!("way/{}", outside.strip_prefix("/tmp").unwrap().display());
        let cases = [
            ("upward", archive(&[(tar::EntryType::Regular, &up, "")])),
            ("absolute", archive(&[(tar::EntryType::Regular, path, "")])),
            ("through a link", archive(&[link, (tar::EntryType::Regular, &through, "")])),
            ("hard link out", archive(&[(tar::EntryType::Link, "hard", "../../../../../etc/passwd")])),
            ("no archive", b"this is no archive".repeat(100)),
        ];
        for (what, layer) in cases {
            let server = Server::honest(Content::oci("1", &[TestLayer::of(layer)])).await;
            let name = format!("{}/app:1", server.address);
            match client.pull(&name).await {
                // Contained: it was made below the layer's own root.
                Ok(_) => client.remove_image(&name).await.unwrap(),
                Err(error) => {
                    let fine = [Code::InvalidArgument, Code::DataLoss, Code::FailedPrecondition];
                    assert!(fine.contains(&error.code()), "{what}: {error}");
                    assert!(error.message().contains(&name), "{what}: {error}");
                }
            }
            assert!(!outside.exists(), "{what}");
        }
        assert_eq!(client.image_list().await.len(), 1);
    });
}

#[test]
fn a_layer_that_unpacks_without_end_is_stopped() {
    run(async |world| {
        let client = &world.client;
        // 768 MiB of zeros in less than a hundredth of that.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let mut header = tar::Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_mode(0o644);
        header.set_size(768 << 20);
        header.set_cksum();
        encoder.write_all(header.as_bytes()).unwrap();
        for _ in 0..768 {
            encoder.write_all(&[0; 1 << 20]).unwrap();
        }
        // It is refused long before anyone could know its digest.
        let layer = TestLayer { diff_id: sha256(b"unknown"), blob: encoder.finish().unwrap(), kind: "gzip" };
        let server = Server::honest(Content::oci("1", &[layer])).await;
        let name = format!("{}/app:1", server.address);
        let error = client.pull(&name).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(error.message().contains(&name), "{error}");
        world.is_clean().await;
    });
}

#[test]
fn a_container_of_an_image_without_a_program_is_refused() {
    run(async |world| {
        let client = &world.client;
        let server = Server::honest(Content::oci("1", &[plain("file", b"content")])).await;
        let name = format!("{}/app:1", server.address);
        client.pull(&name).await.unwrap();
        let pod = client.run(&client.pod("programless")).await.unwrap();
        let mut config = client.container("main", "");
        config.image = Some(crate::client::image(&name));
        config.command.clear();
        let id = client.create(&pod, &config).await.unwrap();
        let error = client.start(&id).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("/app"), "{error}");
        assert_eq!(client.status(&id).await.unwrap().reason, "StartError");
    });
}
