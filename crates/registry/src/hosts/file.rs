//! The parser of one `hosts.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::{Table, Value};
use wharf_types::Reference;

use super::{ALL, Capability, HostSpec, HostsError, Role, by_tls_first, direct};
use crate::proxy::{Proxies, Proxy};
use crate::tls::{TlsFiles, Trust};
use crate::url::{Url, Wire};

const TOP_LEVEL: &str = "the top level";

/// The keys that a host's table shares with the top level, which describes the server.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawHost {
    capabilities: Option<Vec<Capability>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    dial_timeout: Option<String>,
    proxy: Option<String>,
    #[serde(default)]
    header: std::collections::BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// One file with certificate and key, several such files, or pairs of files.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a file, a list of files, or a list of [certificate, key]")]
enum Client {
    Files(OneOrMany),
    Pairs(Vec<(String, String)>),
}

/// Where a table is in the file, for error messages.
struct Section<'a> {
    path: &'a Path,
    name: &'a str,
}

impl Section<'_> {
    fn value(&self, key: &'static str, reason: &'static str) -> HostsError {
        HostsError::Value { path: self.path.to_owned(), section: self.name.to_owned(), key, reason }
    }

    fn key(&self, source: toml::de::Error) -> HostsError {
        HostsError::Key {
            path: self.path.to_owned(),
            section: self.name.to_owned(),
            source: Box::new(source),
        }
    }

    /// A file name, relative to the directory of `hosts.toml`.
    fn file(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(name)
    }
}

/// Parses the text of the file at `path`.
pub(super) fn parse(path: &Path, text: &str, reference: &Reference) -> Result<Vec<HostSpec>, HostsError> {
    let mut table: Table = toml::from_str(text)
        .map_err(|source| HostsError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
    let top = Section { path, name: TOP_LEVEL };
    let server: Option<String> = take(&top, &mut table, "server")?;
    let hosts: Option<Table> = take(&top, &mut table, "host")?;
    let mut specs = Vec::new();
    for (url, value) in hosts.unwrap_or_default() {
        let name = format!("[host.{url:?}]");
        let section = Section { path, name: &name };
        let raw = value.try_into().map_err(|source| section.key(source))?;
        specs.extend(both_schemes(spec(&section, &address(&section, "host", &url)?, raw, Role::Mirror)?));
    }
    let raw: RawHost = Value::Table(table).try_into().map_err(|source| top.key(source))?;
    match server {
        Some(server) => {
            specs.extend(both_schemes(spec(&top, &address(&top, "server", &server)?, raw, Role::Registry)?));
        }
        None => specs.extend(registry(&top, raw, reference)?),
    }
    // A mirror that is the registry itself, with its own settings, is still the registry.
    let home: Vec<_> = direct(reference.host()).iter().map(|spec| spec.root.clone()).collect();
    for spec in &mut specs {
        if home.iter().any(|root| root.same_origin(&spec.root)) {
            spec.role = Role::Registry;
        }
    }
    Ok(specs)
}

fn take<T: serde::de::DeserializeOwned>(
    section: &Section<'_>,
    table: &mut Table,
    key: &str,
) -> Result<Option<T>, HostsError> {
    table.remove(key).map(Value::try_into).transpose().map_err(|source| section.key(source))
}

/// The registry's own entry. Without `server` it is the image's host, with the settings of the top level.
fn registry(top: &Section<'_>, raw: RawHost, reference: &Reference) -> Result<Vec<HostSpec>, HostsError> {
    let direct = direct(reference.host());
    let Some(first) = direct.first() else { return Ok(Vec::new()) };
    let says_trust = raw.skip_verify.is_some() || raw.ca.is_some();
    let mut template = spec(top, &first.root, raw, Role::Registry)?;
    if !says_trust {
        template.tls.trust = first.tls.trust;
    }
    let says_tls = says_trust || !template.tls.client.is_empty();
    let specs = direct.iter().map(|each| HostSpec { root: each.root.clone(), ..template.clone() }).collect();
    Ok(if says_tls { by_tls_first(specs) } else { specs })
}

/// A host given as http that has TLS settings is tried over https first, as containerd does and documents it; port 80
/// leaves no doubt.
fn both_schemes(spec: HostSpec) -> Vec<HostSpec> {
    let plain = spec.root.wire() == Wire::Plain && spec.root.uri().port_u16() != Some(80);
    let encrypted = spec.root.uri().to_string().replacen("http://", "https://", 1);
    match Url::parse(&encrypted) {
        Ok(root) if plain && spec.tls != TlsFiles::default() => vec![HostSpec { root, ..spec.clone() }, spec],
        _ => vec![spec],
    }
}

/// A URL without a query; https if it names no scheme.
fn address(section: &Section<'_>, key: &'static str, text: &str) -> Result<Url, HostsError> {
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = Url::parse(&text).map_err(|reason| section.value(key, reason))?;
    if url.uri().query().is_some() {
        return Err(section.value(key, "has a query"));
    }
    Ok(url)
}

fn spec(section: &Section<'_>, url: &Url, raw: RawHost, role: Role) -> Result<HostSpec, HostsError> {
    let path = url.uri().path().trim_end_matches('/');
    let suffix = if raw.override_path == Some(true) || path.ends_with("/v2") { "" } else { "/v2" };
    let scheme = url.uri().scheme_str().unwrap_or("https");
    let root = Url::parse(&format!("{scheme}://{}{path}{suffix}", url.host_and_port()))
        .map_err(|reason| section.value("host", reason))?;
    let capabilities = raw.capabilities.unwrap_or_else(|| ALL.to_vec());
    let trust = if raw.skip_verify == Some(true) { Trust::Blind } else { Trust::Verified };
    let ca = raw.ca.map(OneOrMany::into_vec).unwrap_or_default();
    let client = match raw.client {
        None => Vec::new(),
        Some(Client::Files(files)) => files.into_vec().into_iter().map(|file| (file.clone(), file)).collect(),
        Some(Client::Pairs(pairs)) => pairs,
    };
    // An empty key means that the certificate's file holds the key as well.
    let pair = |(cert, key): (String, String)| {
        let key = if key.is_empty() { &cert } else { &key };
        (section.file(&cert), section.file(key))
    };
    Ok(HostSpec {
        root,
        role,
        capabilities,
        tls: TlsFiles {
            ca: ca.iter().map(|file| section.file(file)).collect(),
            client: client.into_iter().map(pair).collect(),
            trust,
        },
        dial_timeout: raw
            .dial_timeout
            .map(|text| {
                duration(&text).ok_or_else(|| section.value("dial_timeout", "is not like 10s or 1m30s"))
            })
            .transpose()?,
        proxies: raw.proxy.map(|text| proxies(section, &text)).transpose()?,
        headers: headers(section, raw.header)?,
        repository: None,
        source: Some(section.path.to_owned()),
    })
}

/// An empty value means that the host is asked directly, whatever the node's settings.
fn proxies(section: &Section<'_>, text: &str) -> Result<Proxies, HostsError> {
    let proxy = Some(text).filter(|text| !text.is_empty()).map(Proxy::parse).transpose();
    proxy.map(Proxies::always).map_err(|reason| section.value("proxy", reason))
}

fn headers(
    section: &Section<'_>,
    raw: std::collections::BTreeMap<String, OneOrMany>,
) -> Result<HeaderMap, HostsError> {
    let mut headers = HeaderMap::new();
    for (name, values) in raw {
        let name =
            HeaderName::try_from(name).map_err(|_name| section.value("header", "has a malformed name"))?;
        for value in values.into_vec() {
            let mut value = HeaderValue::try_from(value)
                .map_err(|_secret| section.value("header", "has a malformed value"))?;
            value.set_sensitive(true);
            headers.append(name.clone(), value);
        }
    }
    Ok(headers)
}

/// Go's notation: numbers with a unit each. It must be between 1 ms and an hour.
fn duration(text: &str) -> Option<Duration> {
    let mut total_ms = 0.0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        total_ms += number
            * match &rest[digits..unit_end] {
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 60e3,
                "h" => 3600e3,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    (1.0..=3_600_000.0).contains(&total_ms).then(|| Duration::from_secs_f64(total_ms / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<HostSpec>, HostsError> {
        parse(Path::new("/c/a.b/hosts.toml"), text, &"a.b/c".parse().unwrap())
    }

    fn roots(specs: &[HostSpec]) -> Vec<String> {
        specs.iter().map(|spec| spec.root.uri().to_string()).collect()
    }

    #[test]
    fn hosts_keep_their_order_and_the_server_is_last() {
        let specs = read(
            r#"
            server = "https://up.x"
            [host."https://z.x"]
              capabilities = ["pull"]
            [host."http://m.x:5000/prefix"]
            [host."a.x/v2/proxy"]
              override_path = true
              capabilities = ["Pull", "resolve", "push", "referrers"]
            "#,
        )
        .unwrap();
        let want = ["https://z.x/v2", "http://m.x:5000/prefix/v2", "https://a.x/v2/proxy", "https://up.x/v2"];
        assert_eq!(roots(&specs), want);
        assert_eq!(specs[0].capabilities, [Capability::Pull]);
        let roles: Vec<_> = specs.iter().map(|spec| spec.role).collect();
        assert_eq!(roles, [Role::Mirror, Role::Mirror, Role::Mirror, Role::Registry]);
    }

    #[test]
    fn every_setting_is_taken() {
        let specs = read(
            r#"
            ca = "root.pem"
            [host."https://a.b"]
              ca = ["x.pem", "/abs/y.pem"]
              client = [["c.pem", "k.pem"], ["both.pem", ""]]
              skip_verify = true
              dial_timeout = "1m1.5s"
              [host."https://a.b".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."https://c.d"]
              client = "both.pem"
            "#,
        )
        .unwrap();
        let file = |name: &str| PathBuf::from("/c/a.b").join(name);
        let tls = &specs[0].tls;
        assert_eq!(tls.ca, [file("x.pem"), PathBuf::from("/abs/y.pem")]);
        assert_eq!(tls.client, [(file("c.pem"), file("k.pem")), (file("both.pem"), file("both.pem"))]);
        assert_eq!((tls.trust, specs[0].role), (Trust::Blind, Role::Registry));
        assert_eq!(specs[0].dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(specs[0].headers.get_all("x-two").iter().count(), 2);
        assert_eq!(specs[1].tls.client, [(file("both.pem"), file("both.pem"))]);
        assert_eq!(specs[2].root.uri().to_string(), "https://a.b/v2");
        assert_eq!(specs[2].tls.ca, [file("root.pem")]);
    }

    #[test]
    fn http_with_settings_of_tls_is_asked_by_tls_first() {
        let specs = read(
            r#"
            [host."http://m.x:5000/p"]
              skip_verify = true
            [host."http://n.x:80"]
              ca = "x.pem"
            [host."http://o.x"]
            "#,
        )
        .unwrap();
        let want = [
            "https://m.x:5000/p/v2",
            "http://m.x:5000/p/v2",
            "http://n.x:80/v2",
            "http://o.x/v2",
            "https://a.b/v2",
        ];
        assert_eq!(roots(&specs), want);
    }

    #[test]
    fn a_host_may_have_a_proxy_of_its_own_or_none() {
        let specs =
            read("[host.\"https://m.x\"]\nproxy = \"p.x:3128\"\n[host.\"https://n.x\"]\nproxy = \"\"")
                .unwrap();
        let leads = |at: usize| {
            let spec: &HostSpec = &specs[at];
            spec.proxies.as_ref().map(|proxies| proxies.to(&spec.root).map(Proxy::name))
        };
        assert_eq!((leads(0), leads(1), leads(2)), (Some(Some("p.x:3128".into())), Some(None), None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, want) in [
            ("servr = \"x\"", "servr"),
            ("[host.\"https://m.x\"]\ncapabilites = [\"pull\"]", "capabilites"),
            ("[host.\"https://m.x\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"https://m.x\"]\nskip_verify = \"yes\"", "boolean"),
            ("[host.\"https://m.x\"]\ndial_timeout = \"soon\"", "dial_timeout"),
            ("[host.\"https://m.x\"]\nproxy = \"ftp://p\"", "proxy is not an http, https or socks5 address"),
            ("[host.\"https://m.x?secret\"]", "query"),
            ("[host.\"https://u:p@m.x\"]", "user information"),
            ("server = \"ftp://x\"", "server"),
            ("header = { \"bad name\" = \"x\" }", "header"),
            ("server =", "hosts.toml"),
        ] {
            let error = read(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let shown = format!("{error}: {source}");
            assert!(shown.contains(want) && shown.contains("/c/a.b/hosts.toml"), "{shown}");
        }
    }

    #[test]
    fn durations_are_bounded() {
        for bad in ["", "0s", "10", "s", "1d", "2h", "-1s", "1..2s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
    }
}
