//! Which proxy leads to a host: `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, interpreted as Go programs do, because a
//! node's settings were written for those; or the `proxy` of a host in `hosts.toml`.

use std::net::IpAddr;

use http::{HeaderValue, Uri};

use crate::auth::basic;
use crate::credentials::Secret;
use crate::hosts::is_loopback;
use crate::url::{Url, Wire};

/// Why the settings of a proxy cannot be used. It never shows their content, which may include a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {reason}; write a proxy as http://proxy.example:3128, or with https:// or socks5://")]
pub struct ProxyError {
    /// The variable.
    pub name: &'static str,
    /// What is wrong with its value.
    pub reason: &'static str,
}

/// The proxies to use, and the hosts that need none.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    plain: Option<Proxy>,
    tls: Option<Proxy>,
    exempt: Vec<Exempt>,
    /// Loopback hosts are reached directly, unless the proxy was configured for that very host.
    with_loopback: bool,
}

/// One proxy.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    /// Scheme, host and port.
    pub(crate) uri: Uri,
    credentials: Option<(Secret, Secret)>,
}

/// The proxy's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Http,
    Socks,
}

/// A host that is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exempt {
    All,
    /// The addresses with this prefix.
    Network(IpAddr, u32),
    /// A name or an address, optionally at one port.
    Host {
        name: String,
        port: Option<u16>,
    },
    /// The subdomains of a domain, optionally at one port.
    Below {
        domain: String,
        port: Option<u16>,
    },
}

impl Proxies {
    /// Takes the values of the three variables; empty means unset.
    ///
    /// # Errors
    /// [`ProxyError`] if a value is not a proxy. Entries of `NO_PROXY` that cannot be understood exempt nothing, as
    /// elsewhere.
    pub fn parse(http: &str, https: &str, no_proxy: &str) -> Result<Self, ProxyError> {
        let proxy = |name, text: &str| match text.trim() {
            "" => Ok(None),
            text => Proxy::parse(text).map(Some).map_err(|reason| ProxyError { name, reason }),
        };
        let exempt = no_proxy.split(',').filter_map(Exempt::parse).collect();
        Ok(Self {
            plain: proxy("HTTP_PROXY", http)?,
            tls: proxy("HTTPS_PROXY", https)?,
            exempt,
            with_loopback: false,
        })
    }

    /// Reads the environment of this process; a name in capitals takes precedence over one in small letters.
    ///
    /// # Errors
    /// Those of [`Self::parse`].
    pub fn from_environment() -> Result<Self, ProxyError> {
        let value = |name: &str| {
            let set = |name: String| std::env::var(name).ok().filter(|value| !value.is_empty());
            set(name.to_owned()).or_else(|| set(name.to_ascii_lowercase())).unwrap_or_default()
        };
        Self::parse(&value("HTTP_PROXY"), &value("HTTPS_PROXY"), &value("NO_PROXY"))
    }

    /// One proxy for everything, or none for anything.
    pub(crate) fn always(proxy: Option<Proxy>) -> Self {
        Self { plain: proxy.clone(), tls: proxy, exempt: Vec::new(), with_loopback: true }
    }

    /// The proxy for a URL.
    pub(crate) fn to(&self, url: &Url) -> Option<&Proxy> {
        let proxy = match url.wire() {
            Wire::Plain => self.plain.as_ref(),
            Wire::Tls => self.tls.as_ref(),
        };
        let (host, port) = (url.host(), url.port());
        let direct = !self.with_loopback && is_loopback(&host);
        proxy.filter(|_| !direct && !self.exempt.iter().any(|exempt| exempt.covers(&host, port)))
    }
}

impl Proxy {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (kind, wire, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http, "http", 80),
            "https" => (Kind::Http, "https", 443),
            "socks5" | "socks5h" => (Kind::Socks, "http", 1080),
            _ => return Err("is not an http, https or socks5 address"),
        };
        let (who, host) =
            authority.rsplit_once('@').map_or((None, authority), |(who, host)| (Some(who), host));
        let url = Url::parse(&format!("{wire}://{host}"))?;
        let bare = url.uri().host().unwrap_or_default();
        let port = match url.uri().port_u16() {
            Some(port) => port,
            None if url.host_and_port() == bare => port,
            None => return Err("has a malformed port"),
        };
        let uri = format!("{wire}://{bare}:{port}").parse().map_err(|_syntax| "is malformed")?;
        let credentials = who.map(|who| {
            let (name, password) = who.split_once(':').unwrap_or((who, ""));
            (decoded(name), decoded(password))
        });
        Ok(Self { kind, uri, credentials })
    }

    /// Host and port, for messages.
    pub(crate) fn name(&self) -> String {
        self.uri.authority().map_or_else(String::new, ToString::to_string)
    }

    /// `Proxy-Authorization` for an HTTP proxy.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        let (name, password) = self.credentials.as_ref()?;
        basic(name.expose(), password.expose())
    }

    /// User name and password for a SOCKS proxy.
    pub(crate) fn credentials(&self) -> Option<(String, String)> {
        let (name, password) = self.credentials.as_ref()?;
        Some((name.expose().to_owned(), password.expose().to_owned()))
    }
}

/// Percent-decodes a text; a `%` that begins no escape stays.
fn decoded(text: &str) -> Secret {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escape = tail.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let escape = escape.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escape.unwrap_or(first));
        rest = if escape.is_some() { &tail[2..] } else { tail };
    }
    Secret::new(String::from_utf8_lossy(&bytes).into_owned())
}

impl Exempt {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
            let width = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= width).then_some(Self::Network(address, bits));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if text.parse::<IpAddr>().is_err() && !port.contains(']') => {
                (name, Some(port.parse().ok()?))
            }
            _ => (text.as_str(), None),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
        match below {
            Some("") => None,
            Some(domain) => Some(Self::Below { domain: domain.to_owned(), port }),
            None if name.is_empty() => None,
            None => Some(Self::Host { name: name.to_owned(), port }),
        }
    }

    fn covers(&self, host: &str, at_port: u16) -> bool {
        let is_below = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        match self {
            Self::All => true,
            Self::Network(network, bits) => {
                host.parse().is_ok_and(|address| shares(*network, address, *bits))
            }
            Self::Host { name, port } => {
                let same = host == name || (name.parse::<IpAddr>().is_err() && is_below(name));
                same && port.is_none_or(|port| port == at_port)
            }
            Self::Below { domain, port } => is_below(domain) && port.is_none_or(|port| port == at_port),
        }
    }
}

/// Whether two addresses of one family share their first bits.
fn shares(network: IpAddr, address: IpAddr, bits: u32) -> bool {
    let differ = match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    differ >= bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.to(&Url::parse(url).unwrap()).map(|proxy| proxy.uri.to_string())
    }

    #[test]
    fn the_scheme_of_the_registry_chooses_the_proxy() {
        let proxies = Proxies::parse("plain.x:3128", "https://tls.x", "").unwrap();
        assert_eq!(leads(&proxies, "http://a.b/").unwrap(), "http://plain.x:3128/");
        assert_eq!(leads(&proxies, "https://a.b/").unwrap(), "https://tls.x:443/");
        for loopback in ["http://localhost:5000/", "https://127.0.0.1/", "http://[::1]:5000/"] {
            assert_eq!(leads(&proxies, loopback), None, "{loopback}");
        }
        assert_eq!(leads(&Proxies::default(), "https://a.b/"), None);
        let always = Proxies::always(Some(Proxy::parse("socks5://s.x").unwrap()));
        assert_eq!(leads(&always, "http://localhost/").unwrap(), "http://s.x:1080/");
    }

    #[test]
    fn exempt_hosts_are_those_that_go_exempts() {
        for (no_proxy, url, exempt) in [
            ("a.b", "https://a.b/", true),
            ("a.b", "https://x.a.b/", true),
            ("a.b", "https://xa.b/", false),
            (".a.b", "https://a.b/", false),
            (".a.b, x", "https://x.a.b/", true),
            ("*.a.b", "https://x.a.b/", true),
            ("A.B:5000", "https://a.b:5000/", true),
            ("a.b:5000", "https://a.b/", false),
            ("*", "https://a.b/", true),
            ("10.0.0.0/8", "https://10.9.9.9:5000/", true),
            ("10.0.0.0/8", "https://11.0.0.1/", false),
            ("10.0.0.0/8", "https://10.example/", false),
            ("10.0.0.1", "https://10.0.0.1:5000/", true),
            ("fd00::/8", "https://[fd12::1]/", true),
            ("fd00::1", "https://[fd00::1]:5000/", true),
            ("[fd00::1]:5000", "https://[fd00::1]:5000/", true),
            ("0.0.0.0/0", "https://a.b/", false),
            ("10.0.0.0/99,,:,x:y,.", "https://10.0.0.1/", false),
        ] {
            let proxies = Proxies::parse("", "p.x:1", no_proxy).unwrap();
            assert_eq!(leads(&proxies, url).is_none(), exempt, "{no_proxy} for {url}");
        }
    }

    #[test]
    fn a_password_is_decoded_and_never_shown() {
        let proxies = Proxies::parse("", "http://me%40x:hunter%32%@p.x:3128/ignored", "").unwrap();
        let proxy = proxies.to(&Url::parse("https://a.b/").unwrap()).unwrap();
        assert_eq!(proxy.credentials().unwrap(), ("me@x".to_owned(), "hunter2%".to_owned()));
        assert_eq!(proxy.authorization().unwrap(), "Basic bWVAeDpodW50ZXIyJQ==");
        assert!(!format!("{proxies:?} {}", proxy.name()).contains("hunter"));
    }

    #[test]
    fn what_is_no_proxy_is_named_without_its_content() {
        for bad in
            ["ftp://hunter2.x", "http://", "http://hunter2:hunter2@", "http://a b.hunter2", "p.x:99999999"]
        {
            let error = Proxies::parse("", bad, "").unwrap_err();
            assert_eq!(error.name, "HTTPS_PROXY");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
