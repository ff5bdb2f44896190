//! Negotiates the protocol of a request, and builds the response that names it. It does no I/O.
//!
//! The client lists what it speaks, and the first of that which is known here is chosen. The names are Kubernetes'.
//! Whether the caller may have a session is not asked here: the connection redeems its token.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use crate::head::{Head, Refusal, response};
use crate::remote_command::Version;
use crate::status::StatusForm::{Json, Plain};
use crate::websocket::{Encoding, Shape};

/// The service that was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Exec and attach.
    Command,
    PortForward,
}

/// The protocol after the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) carrier: Carrier,
    pub(crate) version: Version,
}

/// What carries the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Spdy,
    WebSocket(Shape),
    /// SPDY in a WebSocket.
    Tunnel,
}

/// A protocol and its name.
type Offer = (&'static str, Protocol);

/// The header in which a client lists the versions of the protocol that runs over SPDY.
const VERSIONS: &str = "x-stream-protocol-version";

/// What RFC 6455, section 4.2.2, appends to a key.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const V1: Version = Version { status: Plain, resize: false };
const V3: Version = Version { status: Plain, resize: true };
const V4: Version = Version { status: Json, resize: true };

const BINARY: Shape = Shape { encoding: Encoding::Binary, half_close: false };
const BASE64: Shape = Shape { encoding: Encoding::Base64, half_close: false };
const V5_BINARY: Shape = Shape { encoding: Encoding::Binary, half_close: true };

const fn spdy(version: Version) -> Protocol {
    Protocol { carrier: Carrier::Spdy, version }
}

const fn websocket(shape: Shape, version: Version) -> Protocol {
    Protocol { carrier: Carrier::WebSocket(shape), version }
}

/// v5 differs from v4 only in WebSocket.
const COMMAND_SPDY: &[Offer] = &[
    ("v4.channel.k8s.io", spdy(V4)),
    ("v3.channel.k8s.io", spdy(V3)),
    ("v2.channel.k8s.io", spdy(V1)),
    ("channel.k8s.io", spdy(V1)),
];

const COMMAND_WEBSOCKET: &[Offer] = &[
    ("v5.channel.k8s.io", websocket(V5_BINARY, V4)),
    ("v4.channel.k8s.io", websocket(BINARY, V4)),
    ("v4.base64.channel.k8s.io", websocket(BASE64, V4)),
    ("channel.k8s.io", websocket(BINARY, V3)),
    ("base64.channel.k8s.io", websocket(BASE64, V3)),
    ("", websocket(BINARY, V3)),
];

/// Port-forward has no versions.
const FORWARD_SPDY: &[Offer] = &[("portforward.k8s.io", spdy(V4))];

const FORWARD_WEBSOCKET: &[Offer] = &[
    ("SPDY/3.1+portforward.k8s.io", Protocol { carrier: Carrier::Tunnel, version: V4 }),
    // As for commands: a client can end its direction.
    ("v5.channel.k8s.io", websocket(V5_BINARY, V4)),
    ("v4.channel.k8s.io", websocket(BINARY, V4)),
    ("v4.base64.channel.k8s.io", websocket(BASE64, V4)),
    ("", websocket(BINARY, V4)),
];

/// Chooses the protocol and builds the response.
pub(crate) fn negotiate(head: &Head, service: Service) -> Result<(Protocol, String), Refusal> {
    if !matches!(head.method.as_str(), "GET" | "POST") {
        return Err(Refusal::new("405 Method Not Allowed", "use GET or POST"));
    }
    let asks = |protocol| head.contains("connection", "upgrade") && head.contains("upgrade", protocol);
    let (spdy, websocket) = match service {
        Service::Command => (COMMAND_SPDY, COMMAND_WEBSOCKET),
        Service::PortForward => (FORWARD_SPDY, FORWARD_WEBSOCKET),
    };
    if asks("websocket") {
        negotiate_websocket(head, websocket)
    } else if asks("spdy/3.1") {
        negotiate_spdy(head, spdy)
    } else {
        Err(Refusal::new("400 Bad Request", "request an upgrade to SPDY/3.1 or to websocket"))
    }
}

/// The first protocol in the client's list that the server supports.
fn choose<'a>(mut wanted: impl Iterator<Item = &'a str>, offers: &[Offer]) -> Option<Offer> {
    wanted.find_map(|wanted| offers.iter().copied().find(|(name, _)| *name == wanted))
}

fn negotiate_spdy(head: &Head, offers: &[Offer]) -> Result<(Protocol, String), Refusal> {
    if head.list(VERSIONS).all(str::is_empty) {
        return Err(Refusal::new("400 Bad Request", "send a version in X-Stream-Protocol-Version"));
    }
    let Some((name, protocol)) = choose(head.list(VERSIONS), offers) else {
        let mut refusal = Refusal::new("403 Forbidden", "no protocol in common");
        let accepted =
            offers.iter().map(|(name, _)| ("X-Accepted-Stream-Protocol-Versions", (*name).to_owned()));
        refusal.headers.extend(accepted);
        return Err(refusal);
    };
    let headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", name)];
    Ok((protocol, response("101 Switching Protocols", headers.into_iter())))
}

fn negotiate_websocket(head: &Head, offers: &[Offer]) -> Result<(Protocol, String), Refusal> {
    if head.method != "GET" || head.list("sec-websocket-version").next() != Some("13") {
        return Err(Refusal::new("400 Bad Request", "open a WebSocket of version 13 with GET"));
    }
    let Some(key) = head.list("sec-websocket-key").next().filter(|key| !key.is_empty()) else {
        return Err(Refusal::new("400 Bad Request", "a WebSocket needs Sec-WebSocket-Key"));
    };
    let named = head.has("sec-websocket-protocol");
    let wanted = head.list("sec-websocket-protocol").chain((!named).then_some(""));
    let Some((name, protocol)) = choose(wanted, offers) else {
        return Err(Refusal::new("403 Forbidden", "no protocol in common"));
    };
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(WEBSOCKET_GUID).finalize());
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", accept.as_str()),
        ("Sec-WebSocket-Protocol", name),
    ];
    let headers = headers.into_iter().filter(|(_, value)| !value.is_empty());
    Ok((protocol, response("101 Switching Protocols", headers)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head;

    async fn ask(service: Service, request: &str) -> Result<(Protocol, String), Refusal> {
        let text = format!("{}\r\n\r\n", request.trim().replace('\n', "\r\n"));
        negotiate(&head::read(&mut text.as_bytes()).await.unwrap().0, service)
    }

    async fn refused(service: Service, request: &str) -> Refusal {
        ask(service, request).await.unwrap_err()
    }

    const SPDY: &str = "POST /exec/x HTTP/1.1\nconnection: keep-alive, Upgrade\nUpgrade: spdy/3.1\n";
    const WEBSOCKET: &str = "GET /exec/x HTTP/1.1\nConnection: upgrade\nUpgrade: WebSocket\n\
        Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n";

    #[tokio::test]
    async fn the_clients_first_version_wins() {
        let offers = "X-Stream-Protocol-Version: v5.channel.k8s.io, v3.channel.k8s.io\n\
            X-Stream-Protocol-Version: v4.channel.k8s.io";
        let (protocol, answer) = ask(Service::Command, &format!("{SPDY}{offers}")).await.unwrap();
        assert_eq!(protocol, spdy(V3));
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"));
        assert!(answer.contains("\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n"));
    }

    #[tokio::test]
    async fn requests_without_a_protocol_are_refused() {
        let (command, forward) = (Service::Command, Service::PortForward);
        assert_eq!(refused(command, SPDY).await.status, "400 Bad Request");
        let empty = format!("{SPDY}X-Stream-Protocol-Version: ,");
        assert_eq!(refused(command, &empty).await.status, "400 Bad Request");
        let foreign = format!("{SPDY}X-Stream-Protocol-Version: v9.channel.k8s.io");
        let refusal = refused(command, &foreign).await;
        assert_eq!((refusal.status, refusal.headers.len()), ("403 Forbidden", 4));
        let command_for_forward = format!("{SPDY}X-Stream-Protocol-Version: v4.channel.k8s.io");
        assert_eq!(refused(forward, &command_for_forward).await.status, "403 Forbidden");
        let plain = "GET /exec/x HTTP/1.1\nX-Stream-Protocol-Version: v4.channel.k8s.io";
        assert_eq!(refused(command, plain).await.status, "400 Bad Request");
        assert_eq!(refused(command, "PUT /exec/x HTTP/1.1").await.status, "405 Method Not Allowed");
    }

    #[tokio::test]
    async fn websockets_are_answered_as_the_standard_says() {
        let (protocol, answer) = ask(Service::Command, WEBSOCKET).await.unwrap();
        assert_eq!(protocol, websocket(BINARY, V3));
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(!answer.contains("Sec-WebSocket-Protocol"));
        let named = format!("{WEBSOCKET}Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io");
        let (protocol, answer) = ask(Service::PortForward, &named).await.unwrap();
        assert_eq!(protocol.carrier, Carrier::Tunnel);
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n"));
        assert_eq!(refused(Service::Command, &named).await.status, "403 Forbidden");
        let old = WEBSOCKET.replace(": 13", ": 8");
        assert_eq!(refused(Service::Command, &old).await.status, "400 Bad Request");
        let keyless = WEBSOCKET.replace("Key", "Kay");
        assert_eq!(refused(Service::Command, &keyless).await.status, "400 Bad Request");
    }
}
