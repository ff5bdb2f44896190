//! Documents as registries serve them, honest and hostile.

use super::*;

const ZERO: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn descriptor(media: &str) -> String {
    format!(r#"{{"mediaType":"{media}","digest":"{ZERO}","size":7}}"#)
}

fn image(media: &str, config: &str, layer: &str, more: &str) -> String {
    let (config, layer) = (descriptor(config), descriptor(layer));
    format!(r#"{{"schemaVersion":2,{more}"mediaType":"{media}","config":{config},"layers":[{layer}]}}"#)
}

fn oci(more: &str) -> String {
    image(OCI_MANIFEST, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd", more)
}

#[test]
fn both_formats_are_read() {
    let layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    for text in [oci(""), image(DOCKER_MANIFEST, DOCKER_CONFIG, layer, "")] {
        let Document::Manifest(manifest) = parse_index_or_manifest(text.as_bytes(), None).unwrap() else {
            panic!("not a manifest")
        };
        assert_eq!((manifest.config.size_bytes, manifest.layers[0].size_bytes), (7, 7));
    }
    let entry = descriptor(OCI_MANIFEST);
    let list = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    for header in [
        None,
        Some(OCI_INDEX),
        Some("application/json"),
        Some("application/vnd.oci.image.index.v1+json; x=y"),
    ] {
        assert!(
            matches!(parse_index_or_manifest(list.as_bytes(), header), Ok(Document::Index(_))),
            "{header:?}"
        );
    }
}

#[test]
fn contradictions_are_refused() {
    let entry = descriptor(OCI_MANIFEST);
    let foreign = descriptor("application/vnd.in-toto+json");
    for (what, text, header) in [
        ("both kinds", oci(&format!(r#""manifests":[{entry}],"#)), None),
        (
            "index with layers",
            format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[],"layers":[]}}"#),
            None,
        ),
        ("header says index", oci(""), Some(OCI_INDEX)),
        ("type says index", oci("").replace(OCI_MANIFEST, OCI_INDEX), None),
        ("duplicate layers", oci(r#""layers":[],"#), None),
        ("duplicate deep key", oci(r#""annotations":{"a":"1","a":"2"},"#), None),
        ("schema 1", r#"{"schemaVersion":1,"fsLayers":[]}"#.into(), None),
        ("schema 1 by header", oci(""), Some("application/vnd.docker.distribution.manifest.v1+prettyjws")),
        ("no version", oci("").replace(r#""schemaVersion":2,"#, ""), None),
        ("another type", oci("").replace(OCI_MANIFEST, "application/vnd.x"), None),
        ("encrypted layer", oci("").replace("tar+zstd", "tar+zstd+encrypted"), None),
        (
            "a plugin",
            image(DOCKER_MANIFEST, "application/vnd.docker.plugin.v1+json", "application/x", ""),
            None,
        ),
        (
            "attestation",
            oci("").replace(&descriptor("application/vnd.oci.image.layer.v1.tar+zstd"), &foreign),
            None,
        ),
        ("traversal", oci("").replace(ZERO, "sha256:../../../../etc/passwd"), None),
        ("sha512", oci("").replace("sha256:", "sha512:"), None),
        ("negative size", oci("").replace(":7", ":-7"), None),
        ("huge size", oci("").replace(":7", ":18446744073709551615"), None),
        ("large config", oci("").replace(":7", ":9999999"), None),
        ("null layers", r#"{"schemaVersion":2,"config":null,"layers":null}"#.into(), None),
        ("no JSON", "<html>".into(), None),
        ("array", "[]".into(), None),
        ("BOM", format!("\u{feff}{}", oci("")), None),
        ("two documents", format!("{}{}", oci(""), oci("")), None),
    ] {
        assert!(parse_index_or_manifest(text.as_bytes(), header).is_err(), "{what}");
    }
    let long = vec![b' '; MANIFEST_LIMIT_BYTES + 1];
    assert!(matches!(parse_index_or_manifest(&long, None), Err(ManifestError::TooLarge { .. })));
    let sha512 = oci("").replace("sha256:", "sha512:");
    let sha512 = parse_index_or_manifest(sha512.as_bytes(), None).unwrap_err();
    assert_eq!(sha512.kind(), ErrorKind::Unimplemented);
    assert!(wharf_types::chain(&sha512).contains("sha512"), "{sha512}");
    let schema1 = parse_index_or_manifest(br#"{"schemaVersion":1}"#, None).unwrap_err();
    assert!(schema1.to_string().contains("schema 1"), "{schema1}");
}

#[test]
fn what_builders_and_registries_confuse_is_taken() {
    for (what, text, header) in [
        ("the other format's name in the header", oci(""), Some(DOCKER_MANIFEST)),
        ("an artifact that is an image", oci(r#""artifactType":"application/x","#), None),
        ("an untyped config", oci("").replace(OCI_CONFIG, "application/octet-stream"), None),
        ("a config without a type", oci("").replace(&format!(r#""mediaType":"{OCI_CONFIG}","#), ""), None),
        ("a config typed null", oci("").replace(&format!(r#""{OCI_CONFIG}""#), "null"), None),
        ("an empty type", oci("").replace(OCI_MANIFEST, ""), None),
    ] {
        let read = parse_index_or_manifest(text.as_bytes(), header);
        assert!(matches!(read, Ok(Document::Manifest(_))), "{what}: {read:?}");
    }
}

#[test]
fn the_best_variant_is_chosen() {
    let platform = |os: &str, architecture: &str, variant: &str| Platform {
        os: os.into(),
        architecture: architecture.into(),
        variant: Some(variant.to_owned()).filter(|variant| !variant.is_empty()),
    };
    let entries: Vec<_> = [
        ("unknown", "unknown", ""),
        ("windows", "amd64", ""),
        ("linux", "amd64", "v3"),
        ("linux", "amd64", ""),
        ("linux", "arm", "v5"),
        ("linux", "arm", "v7"),
        ("linux", "arm64", "v9.2"),
        ("linux", "arm64", "odd"),
        ("linux", "arm64", "v8"),
    ]
    .iter()
    .enumerate()
    .map(|(at, (os, architecture, variant))| IndexEntry {
        descriptor: Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: ZERO.parse().unwrap(),
            size_bytes: at as u64,
        },
        platform: Some(platform(os, architecture, variant)),
        name: None,
    })
    .collect();
    let chosen = |host: &Platform| select_platform(&entries, host).map(|descriptor| descriptor.size_bytes);
    assert_eq!(chosen(&platform("linux", "amd64", "")).unwrap(), 3);
    assert_eq!(chosen(&platform("linux", "arm", "v7")).unwrap(), 5);
    assert_eq!(chosen(&platform("linux", "arm", "v6")).unwrap(), 4);
    assert_eq!(chosen(&platform("linux", "arm64", "v8")).unwrap(), 8);
    let old: Vec<_> = entries[..6].to_vec();
    let second = select_platform(&old, &platform("linux", "arm64", "v8")).map(|it| it.size_bytes);
    assert_eq!(second.unwrap(), 5, "an image of 32 bits where there is no other");
    select_platform(&entries[4..6], &platform("linux", "amd64", "")).unwrap_err();
    let error = chosen(&platform("linux", "s390x", "")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("linux/arm/v7"), "{error}");
}
