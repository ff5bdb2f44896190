//! One HTTP/1.1 client for one set of TLS settings, and the waits that every use of it has.

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tower::Service;

use crate::config::{CHUNK_LIMIT_BYTES, HEAD_LIMIT_BYTES, HEAD_LIMIT_LINES};
use crate::error::FetchError;
use crate::tls;
use crate::url::Url;

// The library's one buffer bound serves for the head and for the chunks of a body alike.
const _: () = assert!(HEAD_LIMIT_BYTES == CHUNK_LIMIT_BYTES);

/// Which addresses a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All.
    Anywhere,
    /// None of this host or link: where a registry sends us must not be our own services or a cloud's metadata.
    Outside,
}

/// A client with its connections; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    client: HyperClient<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>,
    reach: Reach,
    stall_timeout: Duration,
}

impl Transport {
    pub(crate) fn new(
        tls: ClientConfig,
        reach: Reach,
        dial_timeout: Duration,
        stall_timeout: Duration,
    ) -> Self {
        let mut http = HttpConnector::new_with_resolver(Resolver { reach });
        http.set_connect_timeout(Some(dial_timeout));
        http.set_nodelay(true);
        http.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .http1_max_buf_size(HEAD_LIMIT_BYTES)
            .http1_max_headers(HEAD_LIMIT_LINES)
            .build(connector);
        Self { client, reach, stall_timeout }
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        url: &Url,
    ) -> Result<Response<Incoming>, FetchError> {
        let host = || url.host_and_port().to_owned();
        let literal = url.host().parse::<IpAddr>();
        if self.reach == Reach::Outside && literal.is_ok_and(is_inside) {
            return Err(FetchError::Connect { host: host(), source: Box::new(inside_error()) });
        }
        let answer = tokio::time::timeout(self.stall_timeout, self.client.request(request)).await;
        match answer {
            Err(_elapsed) => {
                Err(FetchError::Stalled { host: host(), after_ms: self.stall_timeout.as_millis() })
            }
            Ok(Err(error)) => Err(failure(host(), error)),
            // The library's bound is on its buffer, which may hold almost twice as much before it is looked at.
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
            // Trailers are of no use.
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
    // A byte now and then would pass the stall timeout for hours; documents are small, so the whole has a bound too.
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

/// Why there was no answer.
fn failure(host: String, error: hyper_util::client::legacy::Error) -> FetchError {
    if let Some(advice) = tls::advice(&error) {
        return FetchError::Tls { host, advice, source: below(error) };
    }
    if error.is_connect() {
        return FetchError::Connect { host, source: below(error) };
    }
    FetchError::Broken { host, source: below(error) }
}

/// The cause below hyper-util's own error, whose text says no more than that a request failed.
fn below(error: hyper_util::client::legacy::Error) -> crate::error::Cause {
    match error.source() {
        Some(source) => {
            let mut text = source.to_string();
            let mut next = source.source();
            while let Some(cause) = next {
                let more = cause.to_string();
                // Some layers repeat the layer below.
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

/// The system's resolver, minus the addresses out of reach.
#[derive(Debug, Clone)]
struct Resolver {
    reach: Reach,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let reach = self.reach;
        Box::pin(async move {
            let mut found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if reach == Reach::Outside {
                found.retain(|address| !is_inside(address.ip()));
                if found.is_empty() {
                    return Err(inside_error());
                }
            }
            Ok(found.into_iter())
        })
    }
}

fn inside_error() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "the address is of this host, link-local or a metadata service, and the registry's is not",
    )
}

/// Loopback, link-local (cloud metadata at 169.254.169.254 and fd00:ec2::254 included) or unspecified.
pub(crate) fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_inside(IpAddr::V4(v4)),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_unicast_link_local()
                    || v6.segments()[..2] == [0xfd00, 0xec2]
            }
        },
    }
}

/// Whether a registry's own host is one of those inside, so that what it names may be so too.
pub(crate) async fn resolves_inside(url: &Url) -> bool {
    let host = url.host();
    if let Ok(address) = host.parse::<IpAddr>() {
        return is_inside(address);
    }
    tokio::net::lookup_host((host.as_str(), 0)).await.is_ok_and(|mut all| all.any(|a| is_inside(a.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_addresses_are_known() {
        for inside in ["127.0.0.1", "127.9.9.9", "169.254.169.254", "0.0.0.0", "::1", "::", "fe80::1"] {
            assert!(is_inside(inside.parse().unwrap()), "{inside}");
        }
        for inside in ["::ffff:127.0.0.1", "fd00:ec2::254"] {
            assert!(is_inside(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd00::1"] {
            assert!(!is_inside(outside.parse().unwrap()), "{outside}");
        }
    }

    #[tokio::test]
    async fn a_client_for_outside_does_not_connect_inside() {
        let tls =
            crate::tls::load(&crate::tls::TlsFiles::default(), &rustls::RootCertStore::empty()).unwrap();
        let second = Duration::from_secs(1);
        let transport = Transport::new(tls.own, Reach::Outside, second, second);
        for text in ["http://127.0.0.1:9/", "http://localhost:9/"] {
            let url = Url::parse(text).unwrap();
            let request = Request::get(url.uri()).body(Full::default()).unwrap();
            let error = transport.send(request, &url).await.unwrap_err();
            let source = error.source().unwrap().to_string();
            assert!(source.contains("metadata"), "{source}");
        }
    }
}
