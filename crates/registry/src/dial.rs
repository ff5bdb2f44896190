//! How a connection is made: directly to the host, or through a proxy.
//!
//! Names are looked up here, and the addresses are checked after that, so no name can lead a client to an address that
//! is out of its reach ([`Reach`]). An address in place of a name is checked by `transport`, because no name is looked
//! up for it. A proxy may be anywhere: the node's administrator has named it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use crate::error::Cause;
use crate::lookup;
use crate::proxy::{Kind, Proxies, Proxy};
use crate::transport::{inside_error, is_inside};
use crate::url::Url;

/// Which addresses a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Any address.
    Anywhere,
    /// No address of this machine or link: a registry must not send us to our own services or to a cloud's metadata
    /// service.
    Outside,
}

/// How connections are made: through which proxies, to which addresses.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) reach: Reach,
    /// The registry whose images are pulled, on whose account names are looked up.
    pub(crate) registry: Arc<str>,
    pub(crate) proxies: Arc<Proxies>,
    /// For proxies that are reached over TLS.
    pub(crate) proxy_tls: ClientConfig,
    pub(crate) dial_timeout: Duration,
}

type Direct = HttpConnector<Resolver>;

/// Makes connections; TLS with the host itself is added on top.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    direct: Direct,
    to_proxy: HttpsConnector<Direct>,
    proxies: Arc<Proxies>,
}

/// A proxy refused the connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect through the proxy {proxy}")]
struct ProxyFailure {
    /// The proxy's host and port.
    proxy: String,
    #[source]
    source: Cause,
}

impl Dial {
    /// `patience` is that with lookups of names.
    pub(crate) fn new(route: &Route, patience: Duration) -> Self {
        let connector = |reach| {
            let registry = Arc::clone(&route.registry);
            let mut connector = HttpConnector::new_with_resolver(Resolver { reach, registry, patience });
            connector.set_connect_timeout(Some(route.dial_timeout));
            connector.set_nodelay(true);
            connector.enforce_http(false);
            connector
        };
        // Any address is allowed for a proxy: whoever configured it decides where it is.
        let to_proxy = HttpsConnectorBuilder::new()
            .with_tls_config(route.proxy_tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector(Reach::Anywhere));
        Self { direct: connector(route.reach), to_proxy, proxies: Arc::clone(&route.proxies) }
    }

    async fn connect(mut self, uri: Uri) -> Result<DialedStream, Cause> {
        let url = Url::parse(&uri.to_string())?;
        let Some(proxy) = self.proxies.to(&url) else {
            let stream = self.direct.call(uri).await?;
            return Ok(DialedStream { stream: stream.into(), recipient: Recipient::Host });
        };
        let line = through(proxy, self.to_proxy, &url).await;
        line.map_err(|source| ProxyFailure { proxy: proxy.name(), source }.into())
    }
}

async fn through(
    proxy: &Proxy,
    mut connector: HttpsConnector<Direct>,
    url: &Url,
) -> Result<DialedStream, Cause> {
    // The libraries would otherwise assume the port of https.
    let target: Uri = format!("{}:{}", url.uri().host().unwrap_or_default(), url.port()).parse()?;
    let stream = match proxy.kind {
        Kind::Http if url.uri().scheme() == Some(&Scheme::HTTP) => {
            return Ok(DialedStream {
                stream: connector.call(proxy.uri.clone()).await?,
                recipient: Recipient::Proxy,
            });
        }
        Kind::Http => {
            let tunnel = Tunnel::new(proxy.uri.clone(), connector);
            match proxy.authorization() {
                Some(value) => tunnel.with_auth(value),
                None => tunnel,
            }
            .call(target)
            .await?
        }
        Kind::Socks => {
            let socks = SocksV5::new(proxy.uri.clone(), connector);
            match proxy.credentials() {
                Some((name, password)) => socks.with_auth(name, password),
                None => socks,
            }
            .call(target)
            .await
            .map_err(|error| error.to_string())?
        }
    };
    Ok(DialedStream { stream, recipient: Recipient::Host })
}

impl Service<Uri> for Dial {
    type Response = DialedStream;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<DialedStream, Cause>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// The party that reads the requests on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recipient {
    Host,
    /// A proxy, which needs the absolute URL.
    Proxy,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct DialedStream {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    recipient: Recipient,
}

impl Connection for DialedStream {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.recipient == Recipient::Proxy)
    }
}

impl Read for DialedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for DialedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The system's resolver, without the addresses that are out of reach.
#[derive(Debug, Clone)]
struct Resolver {
    reach: Reach,
    registry: Arc<str>,
    patience: Duration,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (reach, registry, patience) = (self.reach, Arc::clone(&self.registry), self.patience);
        Box::pin(async move {
            let mut found = lookup::addresses(name.as_str(), &registry, patience).await?;
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
