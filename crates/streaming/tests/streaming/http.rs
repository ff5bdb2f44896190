//! The request before the upgrade.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use wharf_streaming::{Config, PortForwardGrant};
use wharf_types::{ErrorKind, Failure, PodId};

use crate::rig::{Rig, soon};

/// The headers of a SPDY request, except the version.
pub(crate) const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

/// A response, and the connection after it.
pub(crate) struct Response {
    pub(crate) head: String,
    pub(crate) stream: TcpStream,
}

impl Response {
    pub(crate) fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }
}

/// Sends a request. The bytes after the head may go out together with it.
pub(crate) async fn request(method: &str, url: &str, headers: &str, after: &[u8]) -> Response {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = soon(TcpStream::connect(address)).await.unwrap();
    let head = format!("{method} /{path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    stream.write_all(&[head.as_bytes(), after].concat()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    Response { head: String::from_utf8(head).unwrap(), stream }
}

async fn status(method: &str, url: &str) -> String {
    let headers = format!("{SPDY}X-Stream-Protocol-Version: v4.channel.k8s.io\r\n");
    request(method, url, &headers, b"").await.status().to_owned()
}

#[tokio::test]
async fn a_url_is_good_once_and_for_its_kind() {
    let rig = Rig::new().await;
    let url = rig.exec(crate::rig::ALL);
    assert!(url.starts_with("http://127.0.0.1:") && url.contains("/exec/"), "{url}");
    assert_eq!(status("POST", &format!("{url}x")).await, "404");
    assert_eq!(status("POST", &format!("{url}?stdin=false")).await, "101");
    assert_eq!(status("POST", &url).await, "404");
    let other = rig.attach(crate::rig::ALL).replace("/attach/", "/exec/");
    assert_eq!(status("GET", &other).await, "404");
    assert_eq!(status("GET", &format!("{}/", rig.urls.base())).await, "404");
}

#[tokio::test]
async fn a_refusal_says_what_would_do() {
    let rig = Rig::new().await;
    let answer = request("POST", &rig.exec(crate::rig::ALL), SPDY, b"").await;
    assert_eq!(answer.status(), "400");
    let headers = format!("{SPDY}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n");
    let mut answer = request("POST", &rig.exec(crate::rig::ALL), &headers, b"").await;
    assert_eq!(answer.status(), "403");
    assert!(answer.head.contains("\r\nX-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io\r\n"));
    let mut body = String::new();
    soon(answer.stream.read_to_string(&mut body)).await.unwrap();
    assert_eq!(body, "no protocol in common");
}

#[tokio::test]
async fn sessions_are_bounded() {
    let rig = Rig::with(Config { sessions: 1, ..Config::default() }).await;
    let headers = format!("{SPDY}X-Stream-Protocol-Version: v4.channel.k8s.io\r\n");
    let first = request("POST", &rig.exec(crate::rig::ALL), &headers, b"").await;
    assert_eq!(first.status(), "101");
    let url = rig.exec(crate::rig::ALL);
    let second = request("POST", &url, &headers, b"").await;
    assert_eq!(second.status(), "503");
    assert!(second.head.contains("\r\nRetry-After: 60\r\n"));
    drop((first, second));
    // The URL was not used up, and works once there is room.
    let room = async { while status("POST", &url).await == "503" {} };
    soon(room).await;
}

#[tokio::test]
async fn urls_are_bounded() {
    let rig = Rig::new().await;
    for _ in 0..1000 {
        rig.port_forward(&[]);
    }
    let grant = PortForwardGrant { pod: PodId::from_random([2; 32]), ports: Vec::new() };
    assert_eq!(rig.urls.port_forward(grant).unwrap_err().kind(), ErrorKind::ResourceExhausted);
}

#[tokio::test]
async fn an_unprotected_address_is_refused() {
    for address in ["192.0.2.1:0", "0.0.0.0:0", "[2001:db8::1]:0"] {
        let config = Config { address: address.parse().unwrap(), ..Config::default() };
        let error = Rig::refused(config).await;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}
