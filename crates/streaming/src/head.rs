//! The only HTTP/1.1 request of a connection. What follows its head belongs to the protocol that it asks for, so there
//! is neither a body nor a second request.

use std::fmt::Write as _;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest head, in bytes.
const HEAD_LIMIT: usize = 16 * 1024;

/// The most headers in a head.
const HEADERS_LIMIT: usize = 64;

/// A request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) method: String,
    /// The path without the query, which is not used.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The items of all headers with this lower-case name: they are lists, separated by commas.
    pub(crate) fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = self.headers.iter().filter(move |(known, _)| known == name);
        values.flat_map(|(_, value)| value.split(',').map(str::trim))
    }

    /// Whether a header exists.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(known, _)| known == name)
    }

    /// Whether any header with this name contains a lower-case text, ignoring case.
    pub(crate) fn contains(&self, name: &str, text: &str) -> bool {
        self.list(name).any(|item| item.to_ascii_lowercase().contains(text))
    }
}

/// Reads a head, and returns it with the bytes after it. `None` if the client left, or does not speak HTTP within the
/// limits.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<(Head, BytesMut)> {
    let mut bytes = BytesMut::with_capacity(4096);
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some((head, length)) = parse(&bytes)? {
            bytes.advance(length);
            return Some((head, bytes));
        }
        if bytes.len() > HEAD_LIMIT {
            return None;
        }
    }
}

/// Parses a head, and returns it with its length; the inner `None` means that more bytes are needed.
fn parse(bytes: &[u8]) -> Option<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes).ok()? else { return Some(None) };
    let path = request.path?.split('?').next()?.to_owned();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let headers = request.headers.iter().map(|header| (header.name.to_ascii_lowercase(), text(header.value)));
    let head = Head { method: request.method?.to_owned(), path, headers: headers.collect() };
    Some(Some((head, length)))
}

/// A response that ends the HTTP exchange instead of upgrading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(status: &'static str, text: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), text: text.into() }
    }

    /// The response as it is sent.
    pub(crate) fn to_response(&self) -> String {
        let length = [("Content-Length", self.text.len().to_string())];
        let fixed = [("Content-Type", "text/plain; charset=utf-8".into()), ("Connection", "close".into())];
        let headers = self.headers.iter().chain(&fixed).chain(&length);
        response(self.status, headers.map(|(name, value)| (*name, value.as_str()))) + &self.text
    }
}

/// The head of a response.
pub(crate) fn response<'a>(status: &str, headers: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in headers {
        // Writing to a string cannot fail.
        write!(text, "{name}: {value}\r\n").ok();
    }
    text + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_where_the_protocol_begins() {
        let bytes = b"POST /exec/x?a=b HTTP/1.1\r\nA: 1, 2\r\na: 3\r\n\r\nrest";
        let (head, length) = parse(bytes).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/exec/x"));
        assert_eq!(head.list("a").collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(&bytes[length..], b"rest");
        assert_eq!(parse(&bytes[..length - 1]), Some(None));
        assert_eq!(parse(b"\x80\x03\0\x01"), None);
    }

    #[tokio::test]
    async fn a_head_is_bounded() {
        let endless = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'x'; HEAD_LIMIT]].concat();
        assert_eq!(read(&mut endless.as_slice()).await, None);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_LIMIT + 1));
        assert_eq!(read(&mut many.as_bytes()).await, None);
        assert_eq!(read(&mut b"GET / HT".as_slice()).await, None);
    }

    #[test]
    fn a_refusal_closes() {
        let refusal = Refusal::new("404 Not Found", "no");
        let expected = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\
            Content-Length: 2\r\n\r\nno";
        assert_eq!(refusal.to_response(), expected);
    }
}
