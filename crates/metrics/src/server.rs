//! The server of the page: HTTP/1.1, one request a connection, no TLS and no authentication.
//!
//! Whoever can connect may be slow or hostile. Connections that have sent no request yet, and those that do not read
//! their response, are bounded in number and in time; at the limit a new one takes the place of the oldest. A page that
//! was written a moment ago is served again, so that writing takes at most a tenth of this thread's time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use wharf_tasks::PendingConnections;
use wharf_types::lock::lock;

/// Where the page is.
const PATH: &str = "/metrics";

/// How many connections may be without a request, and how many may not have read their response.
const PLACES: usize = 32;

/// The longest head of a request, in bytes, and the most headers in it. Those of Prometheus have less than 1 KiB.
const HEAD_LIMIT: usize = 8 * 1024;
const HEADERS_LIMIT: usize = 64;

/// How long a client may take for its request, and for reading the response.
const REQUEST_TIME: Duration = Duration::from_secs(5);
const RESPONSE_TIME: Duration = Duration::from_secs(10);

/// How many times as long as it took to write a page, that page is served again.
const REUSE: u32 = 10;

/// How long nothing is accepted after an accept has failed, which happens when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long after an attempt to listen comes the next.
const LISTEN_PAUSE: Duration = Duration::from_secs(5);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A server, which ends when this is dropped.
#[derive(Debug)]
pub struct Serving(#[expect(dead_code, reason = "dropping it ends the server")] oneshot::Sender<Infallible>);

/// Starts the server in a thread of its own.
pub(crate) fn start(address: SocketAddr, registry: Registry) -> io::Result<Serving> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (serving, ended) = oneshot::channel();
    let work = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = ended => {}
                never = async { serve(listen(address).await, Shared::new(registry)).await } => match never {},
            }
        });
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(work)?;
    Ok(Serving(serving))
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    registry: Registry,
    without_request: Arc<PendingConnections>,
    without_end: Arc<PendingConnections>,
    /// The latest page in each format.
    latest: Mutex<[Option<Latest>; 2]>,
}

#[derive(Debug)]
struct Latest {
    text: Bytes,
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    OpenMetrics,
    Text,
}

impl Shared {
    fn new(registry: Registry) -> Arc<Self> {
        let [without_request, without_end] = [(); 2].map(|()| PendingConnections::new(PLACES));
        Arc::new(Self { registry, without_request, without_end, latest: Mutex::default() })
    }

    fn answer(&self, request: &Request<impl Sized>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return refusal(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "the metrics can only be read\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let format = format(request);
        match self.page(format) {
            Ok(page) => {
                let kind = match format {
                    Format::OpenMetrics => OPEN_METRICS,
                    Format::Text => prometheus_text::CONTENT_TYPE,
                };
                with_kind(Response::new(Full::new(page)), kind)
            }
            Err(std::fmt::Error) => {
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n")
            }
        }
    }

    /// The page, as it was written a moment ago or is now.
    fn page(&self, format: Format) -> Result<Bytes, std::fmt::Error> {
        let begin = Instant::now();
        let mut latest = lock(&self.latest);
        let [open_metrics, plain] = &mut *latest;
        let latest = match format {
            Format::OpenMetrics => open_metrics,
            Format::Text => plain,
        };
        if let Some(latest) = latest.as_ref().filter(|latest| begin < latest.until) {
            return Ok(latest.text.clone());
        }
        let mut page = String::new();
        match format {
            Format::OpenMetrics => text::encode(&mut page, &self.registry)?,
            Format::Text => prometheus_text::encode(&mut page, &self.registry)?,
        }
        let until = Instant::now() + begin.elapsed() * REUSE;
        Ok(latest.insert(Latest { text: page.into(), until }).text.clone())
    }
}

/// The format that a client has named. A library for the newer one names it, and people's tools name none.
fn format<B>(request: &Request<B>) -> Format {
    let accepted = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(','));
    let is_named = kinds.any(|kind| kind.trim_start().starts_with("application/openmetrics-text"));
    if is_named { Format::OpenMetrics } else { Format::Text }
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    with_kind(response, "text/plain; charset=utf-8")
}

fn with_kind(mut response: Response<Full<Bytes>>, kind: &'static str) -> Response<Full<Bytes>> {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Listens, as soon as nobody else does at this address: that is no reason to leave a node without its runtime.
async fn listen(address: SocketAddr) -> TcpListener {
    let mut is_told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "metrics are served");
                return listener;
            }
            Err(error) if !std::mem::replace(&mut is_told, true) => {
                tracing::warn!(%address, %error, "metrics cannot be served: trying again until they can");
            }
            Err(_again) => {}
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((socket, _address)) => drop(tokio::spawn(connection(socket, Arc::clone(&shared)))),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection, which has one place until its request and another until its end.
async fn connection(socket: TcpStream, shared: Arc<Shared>) {
    let (ask, asked) = oneshot::channel();
    let ask = Mutex::new(Some(ask));
    let service = service_fn(|request| {
        if let Some(ask) = lock(&ask).take() {
            // The other end is gone only if the connection is.
            ask.send(()).ok();
        }
        std::future::ready(Ok::<_, Infallible>(shared.answer(&request)))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIME).keep_alive(false);
    http.max_headers(HEADERS_LIMIT).max_header_size(HEAD_LIMIT).max_buf_size(HEAD_LIMIT);
    let mut served = pin!(http.serve_connection(TokioIo::new(socket), service));
    let mut place = shared.without_request.enter();
    let ended = tokio::select! {
        served = &mut served => Some(served),
        Ok(()) = asked => None,
        () = place.lost() => return,
        () = tokio::time::sleep(REQUEST_TIME) => return,
    };
    drop(place);
    let mut place = shared.without_end.enter();
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::select! {
            served = timeout(RESPONSE_TIME, served) => served.unwrap_or(Ok(())),
            () = place.lost() => return,
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client of the metrics was cut off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A server with one figure, which is told how often it was asked for.
    struct Rig {
        address: SocketAddr,
        counter: Counter,
    }

    async fn rig() -> Rig {
        let (mut registry, counter) = (Registry::default(), Counter::default());
        registry.register("seen", "What was seen", counter.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { match serve(listener, Shared::new(registry)).await {} });
        Rig { address, counter }
    }

    impl Rig {
        async fn send(&self, bytes: &[u8]) -> TcpStream {
            let mut client = TcpStream::connect(self.address).await.unwrap();
            client.write_all(bytes).await.unwrap();
            client
        }

        async fn ask(&self, request: &str) -> String {
            let mut client = self.send(format!("{request}\r\nHost: a\r\n\r\n").as_bytes()).await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    /// Whether the server has ended a connection, and what it said before.
    async fn end(mut client: TcpStream) -> String {
        let mut said = Vec::new();
        // Whether it was reset or shut down.
        drop(timeout(Duration::from_secs(20), client.read_to_end(&mut said)).await.expect("it goes on"));
        String::from_utf8(said).unwrap()
    }

    #[tokio::test]
    async fn the_page_is_served_in_both_formats_and_nothing_else_is() {
        let rig = rig().await;
        rig.counter.inc();
        let plain = rig.ask("GET /metrics?x=y HTTP/1.1").await;
        assert!(plain.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4"), "{plain}");
        assert!(plain.contains("connection: close") && plain.ends_with("\nseen_total 1\n"), "{plain}");
        let asked = rig
            .ask("GET /metrics HTTP/1.1\r\nAccept: text/plain;q=0.3, application/openmetrics-text;q=0.5")
            .await;
        assert!(asked.contains("content-type: application/openmetrics-text; version=1.0.0"), "{asked}");
        assert!(asked.ends_with("\nseen_total 1\n# EOF\n"), "{asked}");
        let head = rig.ask("HEAD /metrics HTTP/1.1").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [
            ("GET / HTTP/1.1", "404 Not Found"),
            ("GET /metrics/ HTTP/1.1", "404 Not Found"),
            ("POST /other HTTP/1.1", "404 Not Found"),
            ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
            ("DELETE /metrics HTTP/1.1", "405 Method Not Allowed"),
            ("nonsense", "400 Bad Request"),
        ] {
            let answer = rig.ask(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_page_counts_what_came_before_it() {
        let rig = rig().await;
        for seen in 1..=3 {
            rig.counter.inc();
            let begin = Instant::now();
            while !rig.ask("GET /metrics HTTP/1.1").await.contains(&format!("seen_total {seen}\n")) {
                assert!(begin.elapsed() < Duration::from_secs(5), "the page is old");
            }
        }
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let rig = rig().await;
        let long = format!("GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(2 * HEAD_LIMIT));
        assert!(end(rig.send(long.as_bytes()).await).await.starts_with("HTTP/1.1 431"));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_LIMIT + 1));
        assert!(end(rig.send(many.as_bytes()).await).await.starts_with("HTTP/1.1 431"));
    }

    #[tokio::test]
    async fn whoever_stays_silent_makes_room_for_others() {
        let rig = rig().await;
        let mut silent = Vec::new();
        for _ in 0..PLACES + 5 {
            silent.push(rig.send(b"GET /met").await);
            assert!(rig.ask("GET /metrics HTTP/1.1").await.contains("seen_total"));
        }
        for first in silent.drain(..5) {
            end(first).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_time() {
        let rig = rig().await;
        let begin = Instant::now();
        end(rig.send(b"GET /metrics HTTP/1.1\r\nA: b\r\n").await).await;
        assert!(begin.elapsed() <= 2 * REQUEST_TIME, "{:?}", begin.elapsed());
    }
}
