//! One HTTP/1.1 client for one set of TLS settings, with the timeouts that every use of it has.
//!
//! It sends one request and waits for one response. Redirects, authentication and further attempts are its callers'.
//! Nobody here trusts a registry: heads and documents have limits, each wait for bytes a deadline, and an address
//! inside this machine or link is refused if the route says so.

use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

use crate::config::{CHUNK_LIMIT_BYTES, HEAD_LIMIT_BYTES, HEAD_LIMIT_LINES};
use crate::dial::{Dial, Reach, Route};
use crate::error::FetchError;
use crate::lookup;
use crate::proxy::Kind;
use crate::tls;
use crate::url::{Url, Wire};

// The library has a single buffer limit, for the head as well as for the chunks of a body.
const _: () = assert!(HEAD_LIMIT_BYTES == CHUNK_LIMIT_BYTES);

/// A client with its connections; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: HyperClient<HttpsConnector<Dial>, Full<Bytes>>,
    route: Route,
    stall_timeout: Duration,
}

impl Transport {
    pub(crate) fn new(tls: ClientConfig, route: Route, stall_timeout: Duration) -> Self {
        let patience = lookup::patience(route.dial_timeout, stall_timeout);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Dial::new(&route, patience));
        let client = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .http1_max_buf_size(HEAD_LIMIT_BYTES)
            .http1_max_headers(HEAD_LIMIT_LINES)
            .build(connector);
        Self { client, route, stall_timeout }
    }

    /// Sends a request and waits for the head of the response, whatever its status.
    pub(crate) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        url: &Url,
    ) -> Result<Response<Incoming>, FetchError> {
        let host = || url.host_and_port().to_owned();
        let literal = url.host().parse::<IpAddr>();
        if self.route.reach == Reach::Outside && literal.is_ok_and(is_inside) {
            return Err(FetchError::Connect { host: host(), source: Box::new(inside_error()) });
        }
        // A tunnel has sent it already; a proxy that is asked in place of the host wants it with each request.
        let in_its_place = self.route.proxies.to(url).filter(|proxy| proxy.kind == Kind::Http);
        let in_its_place = in_its_place.filter(|_| url.wire() == Wire::Plain);
        if let Some(value) = in_its_place.and_then(|proxy| proxy.authorization()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, value);
        }
        let answer = tokio::time::timeout(self.stall_timeout, self.client.request(request)).await;
        match answer {
            Err(_elapsed) => {
                Err(FetchError::Stalled { host: host(), after_ms: self.stall_timeout.as_millis() })
            }
            Ok(Err(error)) => Err(failure(host(), error)),
            // The library limits its buffer, which may hold almost twice as much before the limit is checked.
            Ok(Ok(response)) if head_bytes(&response) > HEAD_LIMIT_BYTES => {
                Err(FetchError::TooLarge { host: host(), limit_bytes: HEAD_LIMIT_BYTES as u64 })
            }
            Ok(Ok(response)) => Ok(response),
        }
    }

    pub(crate) fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }
}

fn head_bytes(response: &Response<Incoming>) -> usize {
    response.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// The next bytes of a body; `None` at its end.
pub(crate) async fn next_chunk(
    body: &mut Incoming,
    host: &str,
    stall_timeout: Duration,
) -> Result<Option<Bytes>, FetchError> {
    loop {
        match tokio::time::timeout(stall_timeout, body.frame()).await {
            Err(_elapsed) => {
                return Err(FetchError::Stalled {
                    host: host.to_owned(),
                    after_ms: stall_timeout.as_millis(),
                });
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                return Err(FetchError::Broken { host: host.to_owned(), source: Box::new(error) });
            }
            // Trailers are not needed.
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
        }
    }
}

/// A whole body of at most `limit_bytes`.
pub(crate) async fn read_all(
    mut body: Incoming,
    host: &str,
    limit_bytes: usize,
    stall_timeout: Duration,
) -> Result<Bytes, FetchError> {
    let too_large = || FetchError::TooLarge { host: host.to_owned(), limit_bytes: limit_bytes as u64 };
    if body.size_hint().lower() > limit_bytes as u64 {
        return Err(too_large());
    }
    // A byte now and then would satisfy the stall timeout for hours. Documents are small, so the whole read has a
    // deadline, too.
    let read = async {
        let mut all = BytesMut::new();
        while let Some(chunk) = next_chunk(&mut body, host, stall_timeout).await? {
            if all.len() + chunk.len() > limit_bytes {
                return Err(too_large());
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    };
    let whole = stall_timeout.saturating_mul(2);
    tokio::time::timeout(whole, read).await.unwrap_or_else(|_elapsed| {
        Err(FetchError::Stalled { host: host.to_owned(), after_ms: whole.as_millis() })
    })
}

/// Why there was no response.
fn failure(host: String, error: hyper_util::client::legacy::Error) -> FetchError {
    if let Some(advice) = tls::advice(&error) {
        return FetchError::Tls { host, advice, source: below(error) };
    }
    if error.is_connect() {
        return FetchError::Connect { host, source: below(error) };
    }
    FetchError::Broken { host, source: below(error) }
}

/// The cause of hyper-util's own error, whose text says only that a request failed.
fn below(error: hyper_util::client::legacy::Error) -> crate::error::Cause {
    match error.source() {
        Some(source) => {
            let mut text = source.to_string();
            let mut next = source.source();
            while let Some(cause) = next {
                let more = cause.to_string();
                // Some layers repeat the text of the layer below.
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                next = cause.source();
            }
            text.into()
        }
        None => Box::new(error),
    }
}

pub(crate) fn inside_error() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "the address is of this host, link-local or a metadata service, and the registry's is not",
    )
}

/// Metadata services and wire servers of clouds that do not use link-local addresses.
const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// The metadata services of Google, Oracle, Scaleway, Akamai and Alibaba.
const METADATA_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
];

/// Whether an address is loopback, unspecified, or that of a metadata service (169.254.169.254 and fd00:ec2::254 among
/// them), also in its IPv6 forms of IPv4 addresses.
pub(crate) fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || METADATA.contains(&v4)
        }
        IpAddr::V6(v6) => match carried(v6) {
            Some(v4) => is_inside(IpAddr::V4(v4)),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_unicast_link_local()
                    || v6.segments()[..2] == [0xfd00, 0xec2]
                    || METADATA_V6.contains(&v6)
            }
        },
    }
}

/// The IPv4 address embedded in an IPv6 one: mapped, or with the well-known prefix of NAT64.
fn carried(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d] = v6.octets().last_chunk().copied()?;
    let nat64 = v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    v6.to_ipv4_mapped().or_else(|| nat64.then(|| Ipv4Addr::new(a, b, c, d)))
}

/// Whether a registry's own host has such an address, so that the hosts that it names may have one, too.
pub(crate) async fn resolves_inside(url: &Url, registry: &Arc<str>, patience: Duration) -> bool {
    let host = url.host();
    if let Ok(address) = host.parse::<IpAddr>() {
        return is_inside(address);
    }
    lookup::addresses(&host, registry, patience).await.is_ok_and(|all| are_inside(&all))
}

/// Whether all addresses of a name are inside. Of a name that has others, too, anybody may be the owner.
fn are_inside(addresses: &[SocketAddr]) -> bool {
    !addresses.is_empty() && addresses.iter().all(|address| is_inside(address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_inside_opens_nothing() {
        let addresses = |all: &[&str]| -> Vec<SocketAddr> {
            all.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect()
        };
        assert!(are_inside(&addresses(&["127.0.0.1", "::1"])));
        for open in [&["203.0.113.5", "127.0.0.1"][..], &["127.0.0.1", "203.0.113.5"], &["203.0.113.5"], &[]]
        {
            assert!(!are_inside(&addresses(open)), "{open:?}");
        }
    }

    #[test]
    fn inner_addresses_are_known() {
        for inside in ["127.0.0.1", "127.9.9.9", "169.254.169.254", "0.0.0.0", "::1", "::", "fe80::1"] {
            assert!(is_inside(inside.parse().unwrap()), "{inside}");
        }
        for inside in
            ["::ffff:127.0.0.1", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "168.63.129.16", "100.100.100.200"]
        {
            assert!(is_inside(inside.parse().unwrap()), "{inside}");
        }
        for inside in
            ["fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "fd00:100::100:200"]
        {
            assert!(is_inside(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd00::1", "64:ff9b::808:808"] {
            assert!(!is_inside(outside.parse().unwrap()), "{outside}");
        }
    }

    #[tokio::test]
    async fn a_client_for_outside_does_not_connect_inside() {
        let tls =
            crate::tls::load(&crate::tls::TlsFiles::default(), &rustls::RootCertStore::empty()).unwrap();
        let second = Duration::from_secs(1);
        let route = Route {
            reach: Reach::Outside,
            registry: "registry.test".into(),
            proxies: Arc::default(),
            proxy_tls: tls.foreign,
            dial_timeout: second,
        };
        let transport = Transport::new(tls.own, route, second);
        for text in ["http://127.0.0.1:9/", "http://localhost:9/"] {
            let url = Url::parse(text).unwrap();
            let request = Request::get(url.uri()).body(Full::default()).unwrap();
            let error = transport.send(request, &url).await.unwrap_err();
            let source = error.source().unwrap().to_string();
            assert!(source.contains("metadata"), "{source}");
        }
    }
}
