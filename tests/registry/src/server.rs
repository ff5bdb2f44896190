//! An HTTP/1.1 server that does what the test says, byte for byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::image::{Content, sha256};

/// A client's request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: String,
    /// How many requests with the same method and target came before it.
    pub nth: usize,
}

impl Request {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first byte of the requested range.
    fn first_byte(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What happens after the body.
#[derive(Debug, Clone)]
pub enum Then {
    /// The connection stays open for the next request.
    Keep,
    /// It is closed.
    Close,
    /// It is closed without a word: over TLS, without a close_notify.
    Vanish,
    /// Nothing more, until the client goes away.
    Stall,
    /// The body again and again, until the client goes away.
    Repeat,
}

/// One response.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    length: Option<usize>,
    pub then: Then,
    /// Whether the body waits for a permit of the server's gate.
    gated: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = Some(body.len());
        Self { status, headers: Vec::new(), body, length, then: Then::Keep, gated: false }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Announces another length; `None` means that the end of the connection ends the body.
    pub fn length(mut self, length: Option<usize>) -> Self {
        self.length = length;
        self
    }

    pub fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    pub fn gated(mut self) -> Self {
        self.gated = true;
        self
    }

    /// Announces the full length, sends `count` bytes, and closes the connection.
    pub fn cut(mut self, count: usize) -> Self {
        self.body.truncate(count);
        self.then(Then::Close)
    }
}

type Script = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

struct Inner {
    content: Content,
    script: Box<Script>,
    requests: Mutex<Vec<Request>>,
    gate: Semaphore,
}

/// A server; it ends when dropped.
pub struct Server {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    /// Serves content, except where the script says otherwise.
    pub async fn start(
        content: Content,
        script: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(content, Box::new(script), None).await
    }

    pub async fn honest(content: Content) -> Self {
        Self::start(content, |_| None).await
    }

    /// The same over TLS.
    pub async fn tls(
        content: Content,
        tls: TlsAcceptor,
        script: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(content, Box::new(script), Some(tls)).await
    }

    async fn start_with(content: Content, script: Box<Script>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Inner { content, script, requests: Mutex::default(), gate: Semaphore::new(0) };
        let inner = Arc::new(inner);
        let shared = Arc::clone(&inner);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (inner, tls) = (Arc::clone(&shared), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &inner).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &inner).await,
                            Err(_refused) => None,
                        },
                    }
                });
            }
        });
        Self { address, inner, accepting }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.inner.requests.lock().unwrap().clone()
    }

    /// How often a path was requested.
    pub fn count(&self, path: &str) -> usize {
        self.requests().iter().filter(|request| request.path() == path).count()
    }

    /// Lets one gated body pass.
    pub fn open_gate(&self) {
        self.inner.gate.add_permits(1);
    }

    /// Waits until a path has been requested `count` times.
    pub async fn until(&self, path: &str, count: usize) {
        let wait = async {
            while self.count(path) < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.expect("the request never came");
    }

    pub fn reference(&self, rest: &str) -> wharf_types::Reference {
        format!("{}/app{rest}", self.address).parse().unwrap()
    }
}

/// One connection; `None` when it is over.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, inner: &Inner) -> Option<()> {
    loop {
        let request = read(&mut stream, inner).await?;
        let mut reply = (inner.script)(&request).unwrap_or_else(|| honest(&inner.content, &request));
        if request.method == "HEAD" {
            reply.body.clear();
        }
        write(&mut stream, inner, reply).await?;
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin), inner: &Inner) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await.ok()?;
        // The first byte of a TLS handshake: not spoken here.
        if head.is_empty() && byte == 0x16 {
            return None;
        }
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let header =
        |line: &str| line.split_once(':').map(|(k, v)| (k.to_ascii_lowercase(), v.trim().to_owned()));
    let headers: Vec<_> = lines.filter_map(header).collect();
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let mut request = Request { method, target, headers, body: String::new(), nth: 0 };
    let length = request.header("content-length").map_or(0, |text| text.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    request.body = String::from_utf8(body).unwrap();
    let mut all = inner.requests.lock().unwrap();
    request.nth = all
        .iter()
        .filter(|before| (&before.target, &before.method) == (&request.target, &request.method))
        .count();
    all.push(request.clone());
    Some(request)
}

/// What an honest registry responds.
pub fn honest(content: &Content, request: &Request) -> Reply {
    let Some((kind, bytes)) = content.files.get(request.path()) else {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        return Reply::new(404, body);
    };
    let reply = match request.first_byte() {
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply::new(206, &bytes[from..]).header("Content-Type", kind).header("Content-Range", range)
        }
        None => Reply::new(200, bytes.as_slice()).header("Content-Type", kind),
    };
    if request.path().contains("/manifests/") {
        return reply.header("Docker-Content-Digest", sha256(bytes).to_string());
    }
    reply
}

async fn write(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    inner: &Inner,
    reply: Reply,
) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match reply.length {
        Some(length) => head.push_str(&format!("Content-Length: {length}\r\n\r\n")),
        None => head.push_str("Connection: close\r\n\r\n"),
    }
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.flush().await.ok()?;
    if reply.gated {
        inner.gate.acquire().await.unwrap().forget();
    }
    stream.write_all(&reply.body).await.ok()?;
    stream.flush().await.ok()?;
    match reply.then {
        Then::Keep if reply.length.is_some() => Some(()),
        Then::Keep | Then::Close => {
            // Only a response that a shutdown follows is sure to be delivered.
            stream.shutdown().await.ok();
            None
        }
        Then::Vanish => None,
        Then::Stall => {
            stream.read_u8().await.ok();
            None
        }
        Then::Repeat => loop {
            stream.write_all(&reply.body).await.ok()?;
        },
    }
}
