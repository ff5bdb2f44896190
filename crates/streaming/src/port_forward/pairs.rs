//! Matches the two streams of each forwarded SPDY connection.

use std::collections::HashMap;
use std::future::pending;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::channel::{Inbound, Outbound};
use crate::port_forward::{Forwarded, refuse};
use crate::spdy::{Reset, Stream};
use crate::wire::WireError;

/// The longest request id that is kept, in bytes.
const REQUEST_ID_LIMIT: usize = 256;

/// How many incomplete pairs may wait before those with a reset stream are dropped.
const HALVES_LIMIT: usize = 64;

/// Pairs with one stream still missing. There are never more than a connection may have streams.
pub(super) struct Pairs {
    creation: Duration,
    halves: HashMap<String, Half>,
}

/// An incomplete pair.
pub(super) struct Half {
    deadline: Instant,
    error: Option<Outbound>,
    data: Option<(u16, Inbound, Outbound)>,
}

/// The headers of a stream, parsed.
#[derive(Debug, PartialEq, Eq)]
struct Label {
    role: Role,
    port: u16,
    request: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Error,
    Data,
}

impl Pairs {
    pub(super) fn new(creation: Duration) -> Self {
        Self { creation, halves: HashMap::new() }
    }

    /// Accepts a stream, and returns its pair if that is complete. A stream with invalid headers is reset.
    pub(super) async fn take(&mut self, stream: Stream) -> Result<Option<Forwarded>, WireError> {
        let Stream { headers, inbound, outlet } = stream;
        let Some(Label { role, port, request }) = label(|name| headers.value(name), outlet.id()) else {
            outlet.reset(Reset::Protocol).await?;
            return Ok(None);
        };
        outlet.accept().await?;
        let deadline = Instant::now() + self.creation;
        self.forget_given_up();
        let mut half = self.halves.remove(&request).unwrap_or(Half { deadline, error: None, data: None });
        let outbound = Outbound::Spdy(outlet);
        let second = match role {
            Role::Error => half.error.replace(outbound),
            Role::Data => half.data.replace((port, inbound, outbound)).map(|(.., outbound)| outbound),
        };
        if let Some(second) = second {
            second.reset().await?;
            half.refuse("a connection has two streams of one kind").await?;
            return Ok(None);
        }
        match half {
            Half { error: Some(error), data: Some((port, inbound, data)), .. } => {
                Ok(Some(Forwarded { port, inbound, data, error }))
            }
            half => {
                self.halves.insert(request, half);
                Ok(None)
            }
        }
    }

    /// Drops pairs whose stream was reset, which makes room at once.
    fn forget_given_up(&mut self) {
        if self.halves.len() >= HALVES_LIMIT {
            self.halves.retain(|_, half| !half.is_given_up());
        }
    }

    /// Waits until a pair is overdue.
    pub(super) async fn expired(&mut self) -> Half {
        let oldest = self.halves.iter().min_by_key(|(_, half)| half.deadline);
        if let Some((request, deadline)) = oldest.map(|(request, half)| (request.clone(), half.deadline)) {
            sleep_until(deadline).await;
            if let Some(half) = self.halves.remove(&request) {
                return half;
            }
        }
        pending().await
    }
}

impl Half {
    fn is_given_up(&self) -> bool {
        let data = self.data.as_ref().map(|(.., outbound)| outbound);
        self.error.iter().chain(data).all(Outbound::is_reset)
    }

    /// Resets the streams of the pair, and sends the reason if the error stream exists.
    pub(super) async fn refuse(self, why: &str) -> Result<(), WireError> {
        let data = self.data.map(|(.., data)| data);
        match (self.error, data) {
            (Some(error), data) => refuse(&error, data.as_ref(), why).await,
            (None, Some(data)) => data.reset().await,
            (None, None) => Ok(()),
        }
    }
}

/// Parses the headers of a stream; `None` if they are invalid. A client that makes one connection at a time may leave
/// out the request id: it opens the error stream first and the data stream next.
fn label<'a>(header: impl Fn(&str) -> Option<&'a str>, id: u32) -> Option<Label> {
    let (role, first) = match header("streamtype")? {
        "error" => (Role::Error, id),
        "data" => (Role::Data, id.wrapping_sub(2)),
        _ => return None,
    };
    let port = header("port")?.parse().ok().filter(|port| *port > 0)?;
    let request = header("requestid").map_or_else(|| first.to_string(), str::to_owned);
    (request.len() <= REQUEST_ID_LIMIT).then_some(Label { role, port, request })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::headers::Headers;
    use crate::spdy::stream::Connection;

    fn read(headers: &[(&'static str, &'static str)], id: u32) -> Option<Label> {
        label(|name| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value), id)
    }

    #[test]
    fn streams_are_paired_by_request_or_by_order() {
        let error = read(&[("streamtype", "error"), ("port", "80"), ("requestid", "r")], 1).unwrap();
        assert_eq!(error, Label { role: Role::Error, port: 80, request: "r".into() });
        let error = read(&[("streamtype", "error"), ("port", "80")], 5).unwrap();
        let data = read(&[("streamtype", "data"), ("port", "80")], 7).unwrap();
        assert_eq!(error.request, data.request);
    }

    #[tokio::test]
    async fn streams_that_are_given_up_leave_nothing() {
        let (wire, _client) = crate::wire::tests::connected().await;
        let connection = Connection::new(wire, 1);
        let mut pairs = Pairs::new(Duration::from_secs(3600));
        for id in (1..2000).step_by(2) {
            let request = id.to_string();
            let headers = [("streamtype", "error"), ("port", "80"), ("requestid", &request)];
            let stream = connection.open(id, Headers::of(&headers)).ok().unwrap();
            assert!(pairs.take(stream).await.unwrap().is_none());
            connection.forget(id);
        }
        assert!(pairs.halves.len() <= HALVES_LIMIT, "{}", pairs.halves.len());
    }

    #[test]
    fn headers_without_sense_are_refused() {
        for port in ["0", "65536", "", "http", "-1"] {
            assert_eq!(read(&[("streamtype", "data"), ("port", port)], 1), None, "{port}");
        }
        assert_eq!(read(&[("streamtype", "stdin"), ("port", "80")], 1), None);
        assert_eq!(read(&[("streamtype", "data")], 1), None);
        assert_eq!(read(&[("port", "80")], 1), None);
    }
}
