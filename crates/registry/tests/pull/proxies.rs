//! Registries behind proxies of every kind.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use wharf_registry::{Config, Proxies, Puller};
use wharf_types::Reference;

use crate::authority::{Authority, Clients};
use crate::image::{Content, gzip};
use crate::server::{Reply, Request, Server, honest};
use crate::world::{World, certificates, patient};

/// base64 of `me:hunter2`
const BASIC: &str = "Basic bWU6aHVudGVyMg==";

fn content() -> Content {
    Content::oci("v1", &[gzip("a", b"one")])
}

fn reference() -> Reference {
    "registry.example/app:v1".parse().unwrap()
}

/// A proxy that leads every tunnel to one server; returns what it was told before the tunnel began.
async fn tunnel(server: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, told) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let kept = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(lead(stream, server, Arc::clone(&kept)));
        }
    });
    (address, told)
}

async fn lead(mut stream: TcpStream, server: SocketAddr, told: Arc<Mutex<Vec<String>>>) {
    let mut head = vec![stream.read_u8().await.unwrap()];
    if head[0] == 5 {
        // SOCKS: the methods, then the target as a name.
        let mut methods = vec![0; usize::from(stream.read_u8().await.unwrap())];
        stream.read_exact(&mut methods).await.unwrap();
        stream.write_all(&[5, 0]).await.unwrap();
        let mut start = [0; 5];
        stream.read_exact(&mut start).await.unwrap();
        let mut name = vec![0; usize::from(start[4])];
        stream.read_exact(&mut name).await.unwrap();
        let port = stream.read_u16().await.unwrap();
        told.lock().unwrap().push(format!("{}:{port}", String::from_utf8(name).unwrap()));
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    } else {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        told.lock().unwrap().push(String::from_utf8(head).unwrap());
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
    }
    let mut onward = TcpStream::connect(server).await.unwrap();
    // Either side may close the connection.
    copy_bidirectional(&mut stream, &mut onward).await.ok();
}

/// A world with proxies, and with an authority for registry.example.
fn world(proxies: Proxies, authority: &Authority, hosts: &str) -> World {
    let pem = authority.pem();
    let settings = format!("ca = \"ca.pem\"\n{hosts}");
    let files =
        [("registry.example/hosts.toml", settings.as_str()), ("registry.example/ca.pem", pem.as_str())];
    let mut world = World::with(patient(), &files);
    let files = certificates(world.dir().join("certs.d"));
    let config = Config { files, proxies, limits: patient(), ..Config::default() };
    world.puller = Puller::new(Arc::clone(&world.store), config);
    world
}

#[tokio::test]
async fn a_registry_is_reached_through_tunnels_of_http_and_socks() {
    let authority = Authority::generate();
    let acceptor = authority.server(&["registry.example"], Clients::Anybody);
    let server = Server::tls(content(), acceptor, |_| None).await;
    let (proxy, told) = tunnel(server.address).await;
    let by_environment = Proxies::parse("", &format!("http://me:hunter2@{proxy}"), "other.example").unwrap();
    world(by_environment, &authority, "").pull(&reference()).await.unwrap();
    let head = told.lock().unwrap().remove(0);
    assert!(head.starts_with("CONNECT registry.example:443 HTTP/1.1\r\n"), "{head}");
    assert!(
        head.to_ascii_lowercase().contains(&format!("proxy-authorization: {BASIC}").to_ascii_lowercase()),
        "{head}"
    );
    assert!(server.requests().iter().all(|request| request.header("proxy-authorization").is_none()));

    told.lock().unwrap().clear();
    let nowhere = Proxies::parse("", "http://127.0.0.1:9", "").unwrap();
    let of_the_host = format!("proxy = \"socks5://{proxy}\"\n");
    world(nowhere, &authority, &of_the_host).pull(&reference()).await.unwrap();
    assert!(told.lock().unwrap().iter().all(|target| target == "registry.example:443"));
    assert!(!told.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_proxy_is_asked_for_plain_http_with_the_whole_address() {
    let shared = content();
    let proxy = Server::start(Content::default(), move |request: &Request| {
        if request.header("proxy-authorization") != Some(BASIC) {
            return Some(Reply::new(407, ""));
        }
        let mut request = request.clone();
        request.target = request.target.strip_prefix("http://registry.example:80")?.to_owned();
        Some(honest(&shared, &request))
    })
    .await;
    let proxies = Proxies::parse(&format!("http://me:hunter2@{}", proxy.address), "", "").unwrap();
    let world = world(proxies, &Authority::generate(), "server = \"http://registry.example:80\"\n");
    world.pull(&reference()).await.unwrap();
    assert_eq!(proxy.requests().len(), 3, "manifest, config, layer");
}

#[tokio::test]
async fn a_host_that_is_exempt_is_asked_directly_and_a_proxy_that_is_down_is_named() {
    let server = Server::honest(content()).await;
    let proxies = Proxies::parse("http://me:hunter2@127.0.0.1:9", "", "").unwrap();
    let hosts = format!("server = \"http://{}\"\n", server.address);
    world(proxies, &Authority::generate(), &hosts).pull(&reference()).await.unwrap();
    let proxies = || Proxies::parse("", "http://me:hunter2@127.0.0.1:9", "").unwrap();
    let (error, text) = world(proxies(), &Authority::generate(), "").fail(&reference()).await;
    assert_eq!(error.cri_prefix(), Some("RegistryUnavailable"));
    assert!(
        text.contains("cannot connect through the proxy 127.0.0.1:9") && !text.contains("hunter"),
        "{text}"
    );
}
