//! Absolute http and https URLs, and the resolution of a redirect's target.

use http::Uri;
use http::uri::Scheme;

/// The longest URL, in bytes.
const LIMIT_BYTES: usize = 8 << 10;

/// An absolute URL without user information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    uri: Uri,
}

/// Whether the connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Tls,
    Plain,
}

impl Url {
    /// Parses an absolute http or https URL.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > LIMIT_BYTES {
            return Err("is longer than 8 KiB");
        }
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = text.parse().map_err(|_syntax| "is malformed")?;
        let known = [Scheme::HTTP, Scheme::HTTPS];
        if !uri.scheme().is_some_and(|scheme| known.contains(scheme)) {
            return Err("is not an http or https address");
        }
        match uri.authority() {
            None => Err("has no host"),
            Some(authority) if authority.as_str().contains('@') => Err("has user information"),
            Some(authority) if authority.host().is_empty() => Err("has no host"),
            Some(_) => Ok(Self { uri }),
        }
    }

    /// Resolves a `Location` header in a response from this URL.
    pub(crate) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let scheme = self.uri.scheme_str().unwrap_or("https");
        if location.contains("://") && !location.starts_with(['/', '?']) {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let origin = format!("{scheme}://{}", self.host_and_port());
        if location.starts_with('/') {
            return Self::parse(&format!("{origin}{location}"));
        }
        let path = self.uri.path();
        if location.starts_with('?') {
            return Self::parse(&format!("{origin}{path}{location}"));
        }
        let directory = path.rfind('/').map_or("/", |at| &path[..=at]);
        Self::parse(&format!("{origin}{directory}{location}"))
    }

    /// The same URL with one more query parameter, whose value is percent-encoded.
    pub(crate) fn with_query(&self, name: &str, value: &str) -> Result<Self, &'static str> {
        let separator = if self.uri.query().is_some() { '&' } else { '?' };
        Self::parse(&format!("{}{separator}{name}={}", self.uri, encode(value)))
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Host and port as written, without the scheme, as messages show them.
    pub(crate) fn host_and_port(&self) -> &str {
        self.uri.authority().map_or("", |authority| authority.as_str())
    }

    /// The host without the port, in lower case; an IPv6 address has no brackets.
    pub(crate) fn host(&self) -> String {
        let host = self.uri.host().unwrap_or_default();
        host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase()
    }

    pub(crate) fn port(&self) -> u16 {
        let default = if self.wire() == Wire::Tls { 443 } else { 80 };
        self.uri.port_u16().unwrap_or(default)
    }

    pub(crate) fn wire(&self) -> Wire {
        if self.uri.scheme() == Some(&Scheme::HTTPS) { Wire::Tls } else { Wire::Plain }
    }

    /// Scheme, host and port: what [`Self::same_origin`] compares.
    pub(crate) fn origin(&self) -> String {
        let scheme = if self.wire() == Wire::Tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host(), self.port())
    }

    /// Whether it is the https form of an http URL: the same host, both at the default ports.
    pub(crate) fn is_encrypted_form_of(&self, other: &Self) -> bool {
        (self.wire(), self.port()) == (Wire::Tls, 443)
            && (other.wire(), other.port()) == (Wire::Plain, 80)
            && self.host() == other.host()
    }

    /// Whether scheme, host and port are the same.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        self.wire() == other.wire() && self.host() == other.host() && self.port() == other.port()
    }
}

/// Percent-encodes everything but unreserved characters.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Whether two hosts are in one registrable domain, judged by the usual shape of names: the last two labels, or three
/// below a country's second level (`co.uk`). An address is only in its own.
pub(crate) fn same_domain(a: &str, b: &str) -> bool {
    let domain = |host: &str| {
        if host.parse::<std::net::IpAddr>().is_ok() {
            return host.to_owned();
        }
        let labels: Vec<_> = host.trim_end_matches('.').rsplit('.').collect();
        let country = labels.len() > 2 && labels[0].len() == 2 && labels[1].len() <= 3;
        let kept = if country { 3 } else { 2 };
        labels.iter().take(kept).rev().copied().collect::<Vec<_>>().join(".")
    };
    a == b || (domain(a) == domain(b) && domain(a).contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_addresses_are_refused() {
        for bad in
            ["", "a.b/c", "/x", "ftp://a.b/", "https://u:p@a.b/", "https:///x", "http://a b/", "mailto:x"]
        {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        assert!(Url::parse(&format!("https://a.b/{}", "x".repeat(9000))).is_err());
    }

    #[test]
    fn locations_are_resolved() {
        let base = Url::parse("https://a.b:5000/v2/x/blobs/d?q=1").unwrap();
        for (location, want) in [
            ("https://c.d/e?f=g#h", "https://c.d/e?f=g"),
            ("//c.d/e", "https://c.d/e"),
            ("/e?u=http://x/", "https://a.b:5000/e?u=http://x/"),
            ("e", "https://a.b:5000/v2/x/blobs/e"),
            ("?z", "https://a.b:5000/v2/x/blobs/d?z"),
        ] {
            assert_eq!(base.join(location).unwrap().uri().to_string(), want);
        }
        assert!(base.join("file:///etc/passwd").is_err());
    }

    #[test]
    fn origins_compare_scheme_host_and_port() {
        let url = |text| Url::parse(text).unwrap();
        assert!(url("https://a.b/x").same_origin(&url("https://A.b:443/y")));
        assert!(!url("https://a.b/").same_origin(&url("http://a.b:443/")));
        assert!(!url("https://a.b/").same_origin(&url("https://a.b:444/")));
        assert_eq!(url("http://[::1]:5/").host(), "::1");
        assert_eq!(url("https://A.b/x?y").origin(), "https://a.b:443");
        for (https, http, same) in [
            ("https://a.b/", "http://a.b/", true),
            ("https://a.b:444/", "http://a.b/", false),
            ("https://a.b/", "http://a.b:5000/", false),
            ("https://c.b/", "http://a.b/", false),
            ("http://a.b/", "http://a.b/", false),
        ] {
            assert_eq!(url(https).is_encrypted_form_of(&url(http)), same, "{https} for {http}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        let url = Url::parse("https://a.b/t?x=1").unwrap().with_query("scope", "r:a/b:pull &c").unwrap();
        assert_eq!(url.uri().to_string(), "https://a.b/t?x=1&scope=r%3Aa%2Fb%3Apull%20%26c");
    }

    #[test]
    fn domains_are_told_apart() {
        for (a, b, same) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("a.example.co.uk", "b.example.co.uk", true),
            ("a.co.uk", "b.co.uk", false),
            ("a.com", "b.com", false),
            ("10.0.0.1", "11.0.0.1", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("localhost", "localhost", true),
            ("com", "a.com", false),
        ] {
            assert_eq!(same_domain(a, b), same, "{a} {b}");
        }
    }
}
