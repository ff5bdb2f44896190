//! Images without a registry: `wharf load`, `save` and `tag`, with real images, hostile archives, clients that go away
//! and a disk that is full.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use wharf_cri_api::v1::Image;

use crate::image::noise;
use crate::people::{command, printed, refused, run};
use crate::place;
use crate::world::{World, run_on, until};

/// A docker-like archive of one image with one layer, which has one file of this size.
fn docker(bytes: usize) -> Vec<u8> {
    let layer = files(&[("file", &noise(bytes))]);
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "config": { "Cmd": ["/file"] },
        "rootfs": { "type": "layers", "diff_ids": [crate::image::sha256(&layer).to_string()] },
    });
    let list = serde_json::json!([
        { "Config": "config.json", "RepoTags": ["made.test/by:hand"], "Layers": ["1/layer.tar"] },
    ]);
    let (config, list) = (config.to_string(), list.to_string());
    files(&[("1/layer.tar", &layer), ("config.json", config.as_bytes()), ("manifest.json", list.as_bytes())])
}

fn files(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What the staging directory has.
fn staged(world: &World) -> usize {
    fs::read_dir(world.dir.join("root/staging")).unwrap().count()
}

async fn named(world: &World, name: &str) -> Option<Image> {
    world.client.image_list().await.into_iter().find(|image| image.repo_tags.iter().any(|tag| tag == name))
}

/// Loads an archive from standard input; returns the exit code, and what was written.
fn load(world: &World, archive: &[u8]) -> (Option<i32>, String, String) {
    let mut child = command(world, "load");
    let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    // An archive that is refused early is not read to its end.
    let sent = child.stdin.take().unwrap().write_all(archive);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(sent.is_ok() || !output.status.success(), "{sent:?} {stderr}");
    (output.status.code(), stdout, stderr)
}

#[test]
fn an_image_is_saved_removed_loaded_and_run() {
    run(async |world| {
        let (name, dir) = (world.client.image.clone(), world.dir.clone());
        let [first, second] = ["first.tar", "second.tar"].map(|file| dir.join(file).display().to_string());
        let saved = printed(world, &format!("--json save -o {first} IMAGE"));
        let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
        let (id, archived) = (saved[0]["id"].as_str().unwrap(), saved[0]["archivedId"].as_str().unwrap());
        assert!(id != archived && saved[0]["names"][0] == name.as_str(), "{saved}");
        printed(world, "rmi IMAGE");
        let loaded = printed(world, &format!("load -i {first}"));
        assert_eq!(loaded, format!("{name}  {}\n", &archived[7..20]));
        assert_eq!(named(world, &name).await.unwrap().id, archived);
        assert_eq!(printed(world, "run --rm IMAGE sh -c echo${IFS}$0;id${IFS}-u"), "sh\n0\n");
        // Saved again it is the same, and as an id it is known already.
        printed(world, &format!("save -o {second} {archived}"));
        assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&fs::read(&first).unwrap()).unwrap();
        let (code, stdout, stderr) = load(world, &gzip.finish().unwrap());
        assert_eq!((code, stdout), (Some(0), loaded), "{stderr}");
        assert_eq!(world.client.image_list().await.len(), 1);
        let (code, why) = refused(world, &format!("save -o {first}.x no.such/image:1"));
        assert!(code == Some(1) && why.contains("there is no image \"no.such/image:1\""), "{why}");
        for file in [first, second] {
            fs::remove_file(file).unwrap();
        }
    });
}

#[test]
fn names_come_and_go_one_by_one() {
    run(async |world| {
        let (code, stdout, stderr) = load(world, &docker(1000));
        assert_eq!(code, Some(0), "{stderr}");
        let id = stdout.strip_prefix("made.test/by:hand  ").unwrap().trim();
        assert_eq!(printed(world, &format!("tag {id} nginx")), "docker.io/library/nginx:latest\n");
        printed(world, "tag nginx made.test/by:2");
        let (code, why) = refused(world, "tag no.such/image:1 x:1");
        assert!(code == Some(1) && why.contains("there is no image"), "{why}");
        let (code, why) = refused(world, &format!("tag nginx x@sha256:{}", "0".repeat(64)));
        assert!(code == Some(2) && why.contains("give it a tag"), "{why}");
        printed(world, "rmi made.test/by:hand");
        let image = named(world, "docker.io/library/nginx:latest").await.unwrap();
        assert_eq!(image.repo_tags, ["docker.io/library/nginx:latest", "made.test/by:2"]);
        // The name moves to another image.
        printed(world, "tag IMAGE nginx");
        assert_eq!(named(world, "made.test/by:2").await.unwrap().repo_tags, ["made.test/by:2"]);
        world.daemon.kill();
        world.start_again().await;
        assert_eq!(named(world, "docker.io/library/nginx:latest").await.unwrap().repo_tags.len(), 2);
        printed(world, "rmi made.test/by:2");
        assert_eq!(world.client.image_list().await.len(), 1);
        // Its last two names at once are the image.
        assert_eq!(printed(world, "rmi IMAGE nginx").lines().count(), 2);
        assert_eq!(world.client.image_list().await, []);
    });
}

#[test]
fn a_hostile_archive_is_refused_and_leaves_nothing() {
    run(async |world| {
        let whole = docker(300_000);
        let other = files(&[("1/layer.tar", b"x"), ("manifest.json", b"[]")]);
        let up = files(&[]);
        let cases: [(&str, Vec<u8>, &str); 5] = [
            ("cut off", whole[..200_000].to_vec(), "cannot read the archive"),
            ("no image", other, "no image in the archive"),
            ("empty", up, "no image in the archive"),
            ("no archive", noise(100_000), "cannot read the archive"),
            ("another layer", flipped(&whole), "the digest of the layer's content"),
        ];
        for (what, archive, words) in cases {
            let (code, stdout, stderr) = load(world, &archive);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{what}: {stderr}");
            assert!(stderr.contains("cannot load the archive") && stderr.contains(words), "{what}: {stderr}");
            assert_eq!((staged(world), world.client.image_list().await.len()), (0, 1), "{what}");
        }
        let (code, why) = refused(world, "load -i /no/such/archive");
        assert!(code == Some(1) && why.contains("/no/such/archive: No such file"), "{why}");
    });
}

/// The same archive with another byte in its layer.
fn flipped(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    archive[100_000] ^= 1;
    archive
}

#[test]
fn a_client_or_a_daemon_that_goes_away_leaves_nothing() {
    run(async |world| {
        let archive = docker(3 << 20);
        for which in ["client", "daemon"] {
            let mut child = command(world, "load");
            let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut input = child.stdin.take().unwrap();
            input.write_all(&archive[..2 << 20]).unwrap();
            let arrives = async || (staged(world) == 1).then_some(());
            until("the archive arrives", arrives).await;
            if which == "client" {
                child.kill().unwrap();
            } else {
                world.daemon.kill();
                world.start_again().await;
            }
            drop(input);
            assert!(!child.wait_with_output().unwrap().status.success());
            until("nothing of it is left", async || (staged(world) == 0).then_some(())).await;
            assert_eq!(world.client.image_list().await.len(), 1);
        }
        assert_eq!(load(world, &archive).0, Some(0));
        printed(world, "rmi made.test/by:hand");
    });
}

#[test]
fn an_archive_that_does_not_fit_leaves_nothing_and_can_be_repeated() {
    let small = |dir: &Path| {
        place::tmpfs(&dir.join("root"), &format!("size={},mode=0700", 560_u64 << 20));
    };
    run_on(small, async |world| {
        let archive = docker(1 << 20);
        let filler = world.dir.join("root/images.filler");
        place::fill(&filler, 25 << 20);
        let (code, stdout, stderr) = load(world, &archive);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.contains("free; remove images or enlarge the disk"), "{stderr}");
        assert_eq!((staged(world), world.client.image_list().await.len()), (0, 1));
        fs::remove_file(filler).unwrap();
        world.is_clean().await;
        let (code, _, stderr) = load(world, &archive);
        assert_eq!(code, Some(0), "{stderr}");
    });
}
