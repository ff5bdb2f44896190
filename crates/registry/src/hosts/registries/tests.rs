//! Files of each kind, and what they make of images' names.
#![expect(clippy::disallowed_methods, reason = "tests make files, and have nothing else to do")]

use super::*;
use crate::hosts::{HostFiles, load};
use crate::tls::Trust;

/// A `registries.conf` of these files; the first is the file itself, the others are in its directory.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    fn conf(text: &str) -> Self {
        Self::new(&[("registries.conf", text)])
    }

    fn files(&self) -> HostFiles {
        HostFiles {
            certs_dirs: vec![self.0.path().join("certs.d")],
            registries_conf: Some(self.0.path().join("registries.conf")),
            ..HostFiles::default()
        }
    }

    fn specs(&self, reference: &str) -> Result<Vec<HostSpec>, HostsError> {
        load(&self.files(), &reference.parse().unwrap())
    }

    /// The addresses that are asked for an image, with the repository there.
    fn asked(&self, reference: &str) -> Vec<String> {
        let reference: Reference = reference.parse().unwrap();
        let specs = load(&self.files(), &reference).unwrap();
        specs.iter().map(|spec| format!("{}/{}", spec.root.uri(), spec.repository(&reference))).collect()
    }

    fn names(&self, name: &str) -> Result<Vec<String>, HostsError> {
        crate::hosts::candidates(&self.files(), name)
    }

    /// The whole text of the error for any image.
    fn error(&self) -> String {
        wharf_types::chain(&self.specs("a.b/c").unwrap_err())
    }
}

const DIGEST: &str = "sha256:abababababababababababababababababababababababababababababababab";

#[test]
fn the_longest_prefix_decides_where_an_image_is() {
    let files = Files::conf(
        r#"
        [[registry]]
        location = "example.com"
        [[registry]]
        prefix = "example.com/foo"
        location = "inside.example:5000/bar"
        [[registry]]
        prefix = "example.com/foo/app:v2"
        location = "third.example/app"
        [[registry]]
        prefix = "*.example.net"
        location = "inside.example/net"
        [[registry]]
        prefix = "*.test.example.net"
        insecure = true
        "#,
    );
    for (name, want) in [
        ("example.com/foo/app:v1", "https://inside.example:5000/v2/bar/app"),
        ("example.com/foo", "https://inside.example:5000/v2/bar"),
        ("example.com/foobar", "https://example.com/v2/foobar"),
        ("example.com/foo/app:v2", "https://third.example/v2/app"),
        ("example.com/foo/app:v20", "https://inside.example:5000/v2/bar/app"),
        ("a.example.net/x/y", "https://inside.example/v2/net/x/y"),
        ("a.b.example.net:5000/x", "https://a.b.example.net:5000/v2/x"),
        ("example.com:5000/foo", "https://example.com:5000/v2/foo"),
        ("example.net/x", "https://example.net/v2/x"),
        ("example.com.evil/foo", "https://example.com.evil/v2/foo"),
        ("evil-example.net/x", "https://evil-example.net/v2/x"),
    ] {
        assert_eq!(files.asked(name), [want], "{name}");
    }
    let insecure = files.asked("a.test.example.net/x");
    assert_eq!(insecure, ["https://a.test.example.net/v2/x", "http://a.test.example.net/v2/x"]);
    let trusts: Vec<_> =
        files.specs("a.test.example.net/x").unwrap().iter().map(|spec| spec.tls.trust).collect();
    assert_eq!(trusts, [Trust::Blind; 2]);
}

#[test]
fn the_longer_prefix_decides_in_any_order_of_the_file() {
    let entry = |prefix: &str, rest: &str| format!("[[registry]]\nprefix = \"{prefix}\"\n{rest}\n");
    let blocked = |prefix: &str| entry(prefix, "blocked = true");
    let open = |prefix: &str| entry(prefix, "location = \"open.example/x\"");
    for (longer, shorter, name) in [
        ("*.bad.example.net", "*.example.net", "x.bad.example.net/app"),
        ("x.example.net", "*.example.net", "x.example.net/app"),
        ("*.example.net:5000", "*.net:5000", "x.example.net:5000/app"),
        ("docker.io/library/bad", "docker.io/library", "bad"),
        ("docker.io/bad", "docker.io/library", "bad"),
    ] {
        for texts in [[blocked(longer), open(shorter)], [open(shorter), blocked(longer)]] {
            let asked = Files::conf(&texts.concat()).specs(name);
            assert!(matches!(asked, Err(HostsError::Blocked { .. })), "{name}: {texts:?}");
        }
        for texts in [[open(longer), blocked(shorter)], [blocked(shorter), open(longer)]] {
            assert_eq!(Files::conf(&texts.concat()).specs(name).unwrap()[0].root.host(), "open.example");
        }
    }
}

#[test]
fn mirrors_come_first_and_only_for_what_they_are_for() {
    let files = Files::conf(&format!(
        r#"
        [[registry]]
        prefix = "example.com"
        [[registry.mirror]]
        location = "all.example/mirror"
        [[registry.mirror]]
        location = "digests.example"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "tags.example"
        pull-from-mirror = "tag-only"
        [[registry]]
        location = "{hub}"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "hub.example"
        "#,
        hub = "docker.io"
    ));
    let [all, digests, tags] = ["all.example/v2/mirror", "digests.example/v2", "tags.example/v2"];
    let want = |hosts: &[&str]| hosts.iter().map(|host| format!("https://{host}/app")).collect::<Vec<_>>();
    assert_eq!(files.asked("example.com/app:v1"), want(&[all, tags, "example.com/v2"]));
    assert_eq!(files.asked(&format!("example.com/app@{DIGEST}")), want(&[all, digests, "example.com/v2"]));
    assert_eq!(files.asked("nginx"), ["https://registry-1.docker.io/v2/library/nginx"]);
    assert_eq!(files.asked(&format!("nginx@{DIGEST}"))[0], "https://hub.example/v2/library/nginx");
    let roles: Vec<_> = files.specs("example.com/app").unwrap().iter().map(|spec| spec.role).collect();
    assert_eq!(roles, [Role::Mirror, Role::Mirror, Role::Registry]);
}

#[test]
fn what_is_blocked_is_named_with_its_file() {
    let files = Files::conf("[[registry]]\nprefix = \"example.com/bad\"\nblocked = true");
    let error = files.specs("example.com/bad/app:v1").unwrap_err().to_string();
    assert!(error.starts_with("example.com/bad/app:v1 is blocked by /"), "{error}");
    assert!(error.contains("registries.conf, below the prefix \"example.com/bad\""), "{error}");
    assert_eq!(files.asked("example.com/good"), ["https://example.com/v2/good"]);
}

#[test]
fn no_spelling_escapes_a_block() {
    for (prefix, name) in [
        ("evil.example", "EVIL.example/app"),
        ("Evil.Example", "evil.example/app"),
        ("*.evil.example", "x.Evil.example/app"),
        ("evil.example", "evil.example:443/app"),
        ("*.evil.example", "x.evil.example:443/app"),
        ("docker.io/library/nginx", "registry-1.docker.io/library/nginx"),
        ("registry-1.docker.io", "nginx"),
        ("*.docker.io", "registry-1.docker.io/library/nginx"),
        ("index.docker.io/bad", "bad/app"),
        ("index.docker.io/bad", "bad"),
        ("docker.io/nginx", "nginx:1"),
        ("docker.io/nginx", "nginx/app"),
        ("docker.io/nginx:1", "nginx:1"),
    ] {
        let files = Files::conf(&format!("[[registry]]\nprefix = \"{prefix}\"\nblocked = true"));
        assert!(matches!(files.specs(name), Err(HostsError::Blocked { .. })), "{name} below {prefix}");
        assert!(files.specs("other.example/app").is_ok());
    }
    let files = Files::conf("[[registry]]\nprefix = \"Docker.io/bad\"\nlocation = \"m.x/good\"");
    for (name, want) in [("bad", "good"), ("bad/app", "good/app"), ("library/bad", "good")] {
        assert_eq!(files.asked(name), [format!("https://m.x/v2/{want}")], "{name}");
    }
}

#[test]
fn blocks_go_before_all_and_entries_before_the_default_host() {
    let conf = "[[registry]]\nprefix = \"a.b\"\nlocation = \"place.x\"\n\
                [[registry]]\nprefix = \"bad.x\"\nblocked = true\n\
                [[registry]]\nprefix = \"own.x/bad\"\nblocked = true\n\
                [[registry]]\nprefix = \"own.x/app\"\nlocation = \"place.x\"\n";
    let files = Files::new(&[
        ("registries.conf", conf),
        ("certs.d/_default/hosts.toml", "server = \"https://default.x\""),
        ("certs.d/own.x/hosts.toml", "server = \"https://up.x\""),
    ]);
    for blocked in ["bad.x/app", "own.x/bad"] {
        assert!(matches!(files.specs(blocked), Err(HostsError::Blocked { .. })), "{blocked}");
    }
    for (name, want) in [("a.b/app", "place.x"), ("c.d/app", "default.x"), ("own.x/app", "up.x")] {
        assert_eq!(files.specs(name).unwrap()[0].root.host(), want, "{name}");
    }
}

#[test]
fn later_files_go_before_and_hosts_toml_before_all() {
    let files = Files::new(&[
        (
            "registries.conf",
            "[[registry]]\nprefix = \"a.b\"\nlocation = \"one.x\"\n[aliases]\none = \"a.b/one\"",
        ),
        (
            "registries.conf.d/20.conf",
            "[[registry]]\nprefix = \"a.b\"\nlocation = \"three.x\"\n[aliases]\none = \"\"",
        ),
        (
            "registries.conf.d/10.conf",
            "[[registry]]\nprefix = \"a.b\"\nlocation = \"two.x\"\n[aliases]\ntwo = \"a.b/two\"",
        ),
        ("registries.conf.d/30.off", "rubbish"),
        ("certs.d/c.d/hosts.toml", "server = \"https://four.x\""),
        ("certs.d/a.b/ca.crt", ""),
        ("certs.d/three.x/ca.crt", ""),
    ]);
    assert_eq!(files.asked("a.b/c"), ["https://three.x/v2/c"]);
    let spec = &files.specs("a.b/c").unwrap()[0];
    assert_eq!(spec.tls.ca, [files.0.path().join("certs.d/three.x/ca.crt")]);
    assert_eq!(spec.source, Some(files.0.path().join("registries.conf.d/20.conf")));
    assert_eq!(files.specs("c.d/e").unwrap()[0].root.host(), "four.x");
    assert_eq!(files.names("one").unwrap(), ["one"], "the alias is taken back");
    assert_eq!(files.names("two:v1").unwrap(), ["a.b/two:v1"]);
}

#[test]
fn short_names_are_aliases_or_looked_for() {
    let search = "unqualified-search-registries = [\"a.b\", \"docker.io\"]\n";
    let aliases = "[aliases]\nnginx = \"c.d/library/nginx\"\n\"me/app\" = \"c.d/app\"";
    let asks = Files::conf(&format!("{search}{aliases}"));
    assert_eq!(asks.names("nginx:1.22").unwrap(), ["c.d/library/nginx:1.22"]);
    assert_eq!(asks.names("me/app").unwrap(), ["c.d/app"]);
    let error = asks.names("httpd:2").unwrap_err().to_string();
    assert!(error.starts_with("httpd:2 may be in several registries (a.b, docker.io): name one"), "{error}");
    for qualified in ["docker.io/httpd", "e.f/httpd", "localhost/httpd", "e:5000/httpd"] {
        assert_eq!(asks.names(qualified).unwrap(), [qualified]);
    }
    for mode in ["permissive", "disabled"] {
        let tries = Files::conf(&format!("{search}short-name-mode = \"{mode}\"\n"));
        assert_eq!(tries.names("httpd").unwrap(), ["a.b/httpd", "docker.io/httpd"]);
        let digest = format!("x/httpd@{DIGEST}");
        assert_eq!(tries.names(&digest).unwrap()[0], format!("a.b/{digest}"));
    }
    let one = Files::conf("unqualified-search-registries = [\"a.b:5000\"]");
    assert_eq!(one.names("httpd").unwrap(), ["a.b:5000/httpd"]);
    assert_eq!(Files::conf("").names("httpd").unwrap(), ["httpd"]);
    assert_eq!(Files::new(&[]).names("httpd").unwrap(), ["httpd"]);
}

#[test]
fn what_podman_takes_is_taken() {
    let files = Files::conf(
        r#"
        unqualified-search-registries = ["docker.io/"]
        short-name-mode = ""
        [[registry]]
        location = "x.y"
        [[registry.mirror]]
        location = "first.example"
        [[registry]]
        location = "x.y"
        [[registry.mirror]]
        location = "second.example"
        [aliases]
        alpine = "docker.io/alpine"
        port = "d.e:5000/port"
        "#,
    );
    assert_eq!(files.names("httpd").unwrap(), ["docker.io/httpd"]);
    assert_eq!(files.names("alpine:3").unwrap(), ["docker.io/library/alpine:3"]);
    assert_eq!(files.names("port").unwrap(), ["d.e:5000/port"]);
    assert_eq!(files.asked("x.y/app"), ["https://first.example/v2/app", "https://x.y/v2/app"]);
    let unset = "unqualified-search-registries = [\"a.b\", \"c.d\"]\nshort-name-mode = ";
    let files = Files::new(&[
        ("registries.conf", &format!("{unset}\"permissive\"")),
        ("registries.conf.d/1.conf", "short-name-mode = \"\""),
    ]);
    assert_eq!(files.names("x").unwrap().len(), 2, "what is not set changes nothing");
    assert!(matches!(Files::conf(&format!("{unset}\"\"")).names("x"), Err(HostsError::Ambiguous { .. })));
}

#[test]
fn a_location_below_which_no_image_can_be_is_refused_before_any_is_asked_for() {
    for text in [
        "prefix = \"c.d\"\nlocation = \"corp/m\"",
        "prefix = \"c.d\"\n[[registry.mirror]]\nlocation = \"corp/m\"",
    ] {
        let shown = Files::conf(&format!("[[registry]]\n{text}")).error();
        assert!(shown.contains("has no registry's host"), "{text}: {shown}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (text, want) in [
        ("[[registry]]\nlocation = \"x.y\"\nblockd = true", "blockd"),
        ("[[registry]]\nblocked = true", "prefix is missing"),
        ("[[registry]]\nprefix = \"*.x.y/z\"", "elsewhere than in *.DOMAIN"),
        ("[[registry]]\nprefix = \"x.*.y\"", "elsewhere than in *.DOMAIN"),
        ("[[registry]]\nlocation = \"https://x.y\"", "location has a scheme"),
        ("[[registry]]\nprefix = \"a.b\"\nlocation = \"x.y/z:v1\"", "location is not a host"),
        ("[[registry]]\nprefix = \"a.b\"\nlocation = \"inside/x\"", "has no registry's host"),
        ("[[registry]]\nprefix = \"a.b\"\nlocation = \"x.y/UPPER\"", "makes no repository"),
        (
            "[[registry]]\nlocation = \"x.y\"\n[[registry]]\nprefix = \"x.y\"\nblocked = true",
            "prefix is there twice",
        ),
        ("[[registry]]\nlocation = \"x.y\"\n[[registry.mirror]]\ninsecure = true", "location"),
        (
            "[[registry]]\nlocation = \"x.y\"\n[[registry.mirror]]\nlocation = \"m.x\"\npull-from-mirror = \"never\"",
            "is not all, digest-only or tag-only",
        ),
        (
            "[[registry]]\nlocation = \"x.y\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m.x\"\n\
             pull-from-mirror = \"all\"",
            "cannot be beside mirror-by-digest-only",
        ),
        ("[registries.search]\nregistries = [\"x.y\"]", "is of version 1"),
        ("short-name-mode = \"ask\"", "ask"),
        ("unqualified-search-registries = [\"a.b\", \"not a host\"]", "in the entry \"not a host\""),
        ("unqualified-search-registries = [\"a.b/c\"]", "no registry's host"),
        ("credential-helpers = [\"ecr-login\"]", "auth_files"),
        ("[aliases]\nd = \"d.e/f\"\n\"a.b/c\" = \"d.e/f\"", "in the alias \"a.b/c\" of \"d.e/f\""),
        ("[aliases]\n\"a.b/c\" = \"d.e/f\"", "name that is not short"),
        ("[aliases]\nc = \"f\"", "not a repository with its registry"),
        ("[aliases]\nc = \"f/g\"", "not a repository with its registry"),
        ("[aliases]\nc = \"d.e/f:v1\"", "not a repository with its registry"),
        ("[[registry]", "registries.conf"),
    ] {
        let shown = Files::conf(text).error();
        assert!(shown.contains(want) && shown.contains("/registries.conf"), "{text}: {shown}");
    }
    let drop_in = Files::new(&[("registries.conf", ""), ("registries.conf.d/bad.conf", "x = 1")]).error();
    assert!(drop_in.contains("registries.conf.d/bad.conf"), "{drop_in}");
}
