//! A layer's bytes, in order and each once, from whichever hosts have them.
//!
//! A broken connection is resumed where it broke. The bytes before the break have gone to the reader, which hashes all
//! of them, so no server's word about a prefix is trusted. A host that ignores `Range` sends those bytes again, and
//! they are skipped.

use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;
use wharf_images::UnpackError;
use wharf_images::manifest::Descriptor;

use crate::config::{Config, Limits};
use crate::endpoint::Endpoint;
use crate::error::{Failures, FetchError};
use crate::places::Place;
use crate::request::{ApiRequest, ApiResponse, Patience, ask};
use crate::transport::next_chunk;

/// After this much progress, the count of resumptions starts again at zero.
const PROGRESS_BYTES: u64 = 1 << 20;

/// The lowest rate while a pull without any place waits for this one, in bytes per second. The names of registries cost
/// nothing, so a few servers with many of them could otherwise hold every place for hours.
const FLOOR_IF_WANTED_BYTES: u64 = 64 << 10;

/// A blob that is being fetched.
#[derive(Debug)]
pub(crate) struct Blob<'a> {
    config: &'a Config,
    descriptor: &'a Descriptor,
    place: &'a Place,
    /// The hosts that have not failed yet; the first is in use.
    endpoints: Vec<&'a Endpoint>,
    stream: Option<Stream>,
    /// How many bytes the reader has received.
    done_bytes: u64,
    resumes: u32,
    progress_from: u64,
    /// Whether the first bytes came from an earlier host.
    mixed: bool,
    pub(crate) failures: Failures,
}

/// Every host has failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

#[derive(Debug)]
struct Stream {
    body: Incoming,
    host: String,
    /// How many bytes at the start of the response the reader already has.
    skip_bytes: u64,
    rate: Rate,
}

impl<'a> Blob<'a> {
    pub(crate) fn new(
        config: &'a Config,
        descriptor: &'a Descriptor,
        place: &'a Place,
        endpoints: Vec<&'a Endpoint>,
    ) -> Self {
        Self {
            config,
            descriptor,
            place,
            endpoints,
            stream: None,
            done_bytes: 0,
            resumes: 0,
            progress_from: 0,
            mixed: false,
            failures: Failures::default(),
        }
    }

    /// The next bytes, as many as one read returned; `None` after exactly the whole blob. After an error no hosts are
    /// left, and [`Self::failures`] has the failure of each.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Exhausted> {
        loop {
            match self.step().await {
                Ok(chunk) => return Ok(chunk),
                Err(error) => self.recover(error).await?,
            }
        }
    }

    /// Starts again from the first byte at the next host, because the bytes of this one were not the layer.
    pub(crate) fn reject(&mut self, source: UnpackError) -> Result<(), Exhausted> {
        let host = self.stream.take().map(|stream| stream.host);
        let host =
            host.or_else(|| self.endpoints.first().map(|endpoint| endpoint.name())).unwrap_or_default();
        (self.done_bytes, self.progress_from) = (0, 0);
        // The part from an earlier host may have been wrong, so this host is judged again by its own bytes alone.
        if std::mem::take(&mut self.mixed) {
            return Ok(());
        }
        self.abandon(FetchError::Layer { host, source: Box::new(source) })
    }

    /// How many bytes of this attempt the reader has received.
    pub(crate) fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    async fn step(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.stream.is_none() {
            let Some(endpoint) = self.endpoints.first() else { return Ok(None) };
            let path = format!("blobs/{}", self.descriptor.digest);
            let api_request = ApiRequest {
                method: Method::GET,
                path,
                accept: String::new(),
                from_byte: self.done_bytes,
                patience: Patience::for_one_before(endpoint, &self.endpoints),
            };
            let answer = ask(endpoint, self.config, &api_request).await?;
            self.stream = Some(self.check(answer)?);
        }
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let limits = &self.config.limits;
        loop {
            let waited = Instant::now();
            let chunk = match next_chunk(&mut stream.body, &stream.host, limits.stall_timeout).await {
                // A server that closes the connection without a TLS close_notify has still sent everything.
                Err(FetchError::Broken { .. }) if self.done_bytes == self.descriptor.size_bytes => break,
                chunk => chunk?,
            };
            let Some(mut chunk) = chunk else { break };
            let is_wanted = || self.place.is_wanted();
            stream.rate.count((waited.elapsed(), chunk.len()), limits, is_wanted, &stream.host)?;
            let skipped = stream.skip_bytes.min(chunk.len() as u64);
            stream.skip_bytes -= skipped;
            chunk.advance(usize::try_from(skipped).unwrap_or(chunk.len()));
            if chunk.is_empty() {
                continue;
            }
            let total = self.done_bytes + chunk.len() as u64;
            if total > self.descriptor.size_bytes {
                return Err(FetchError::WrongLength {
                    host: stream.host.clone(),
                    expected_bytes: self.descriptor.size_bytes,
                    actual_bytes: total,
                });
            }
            self.done_bytes = total;
            return Ok(Some(chunk));
        }
        if self.done_bytes == self.descriptor.size_bytes {
            return Ok(None);
        }
        Err(FetchError::Truncated {
            host: stream.host.clone(),
            expected_bytes: self.descriptor.size_bytes,
            actual_bytes: self.done_bytes,
        })
    }

    /// Checks that the response's head fits the request.
    fn check(&self, answer: ApiResponse) -> Result<Stream, FetchError> {
        let ApiResponse { response, host } = answer;
        let malformed = |reason| FetchError::Malformed { host: host.clone(), reason };
        let size_bytes = self.descriptor.size_bytes;
        let encoding = response.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|value| value.as_bytes() != b"identity") {
            return Err(malformed("has a content encoding that was not asked for"));
        }
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial {
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let is_rest = range.is_some_and(|range| is_rest(range, self.done_bytes, size_bytes));
            if self.done_bytes == 0 || !is_rest {
                return Err(malformed("is of another range than was asked for"));
            }
        }
        let skip_bytes = if partial { 0 } else { self.done_bytes };
        let expected = if partial { size_bytes - self.done_bytes } else { size_bytes };
        if let Some(length) = content_length(&response).filter(|length| *length != expected) {
            return Err(FetchError::WrongLength { host, expected_bytes: expected, actual_bytes: length });
        }
        Ok(Stream { body: response.into_body(), host, skip_bytes, rate: Rate::default() })
    }

    /// After a failure: a pause and the same host again, or the next host, or the end.
    async fn recover(&mut self, error: FetchError) -> Result<(), Exhausted> {
        let streaming = self.stream.take().is_some();
        if self.done_bytes.saturating_sub(self.progress_from) >= PROGRESS_BYTES {
            (self.resumes, self.progress_from) = (0, self.done_bytes);
        }
        // A host that has already sent bytes may be restarting: then a refused connection passes, too.
        let refused = matches!(error, FetchError::Connect { .. }) && self.done_bytes > 0;
        let is_wanted = matches!(error, FetchError::Stalled { .. }) && self.place.is_wanted();
        let passing = ((error.is_passing() && streaming) || refused) && !is_wanted;
        if passing && self.resumes < self.config.limits.resumes {
            let pause = self.config.limits.pause(self.resumes, None);
            let at_byte = self.done_bytes;
            tracing::debug!(%error, digest = %self.descriptor.digest, at_byte, "resuming the download of a layer");
            tokio::time::sleep(pause).await;
            self.resumes += 1;
            return Ok(());
        }
        self.abandon(error)
    }

    fn abandon(&mut self, error: FetchError) -> Result<(), Exhausted> {
        self.failures.0.push(error);
        (self.resumes, self.progress_from) = (0, self.done_bytes);
        self.mixed = self.done_bytes > 0;
        if !self.endpoints.is_empty() {
            self.endpoints.remove(0);
        }
        if self.endpoints.is_empty() { Err(Exhausted) } else { Ok(()) }
    }
}

/// The rate of one stream; only the time spent waiting for it counts.
#[derive(Debug, Default)]
struct Rate {
    waited: Duration,
    bytes: u64,
}

impl Rate {
    fn count(
        &mut self,
        (waited, bytes): (Duration, usize),
        limits: &Limits,
        is_wanted: impl FnOnce() -> bool,
        host: &str,
    ) -> Result<(), FetchError> {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < limits.rate_window {
            return Ok(());
        }
        let is_below = |floor_bytes: u64| {
            u128::from(self.bytes) < u128::from(floor_bytes) * self.waited.as_millis() / 1000
        };
        let host = || host.to_owned();
        if is_below(limits.rate_floor_bytes) {
            return Err(FetchError::Slow { host: host(), floor_bytes: limits.rate_floor_bytes });
        }
        if is_below(FLOOR_IF_WANTED_BYTES) && is_wanted() {
            return Err(FetchError::Overtaken { host: host(), floor_bytes: FLOOR_IF_WANTED_BYTES });
        }
        *self = Self::default();
        Ok(())
    }
}

/// Whether a `Content-Range` covers all bytes from `from_byte` on. A server need not know the total.
pub(crate) fn is_rest(range: &str, from_byte: u64, size_bytes: u64) -> bool {
    let wanted = format!("bytes {from_byte}-{}/", size_bytes.saturating_sub(1));
    let total = range.strip_prefix(&wanted);
    total.is_some_and(|total| total == "*" || total == size_bytes.to_string())
}

fn content_length(response: &Response<Incoming>) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_that_is_left_is_the_rest() {
        for (range, is) in [
            ("bytes 10-99/100", true),
            ("bytes 10-99/*", true),
            ("bytes 10-98/100", false),
            ("bytes 9-99/100", false),
            ("bytes 10-99/1000", false),
            ("bytes 10-99/", false),
            ("bytes */100", false),
            ("", false),
        ] {
            assert_eq!(is_rest(range, 10, 100), is, "{range}");
        }
    }

    #[test]
    fn a_trickle_is_noticed_and_a_flow_is_not() {
        let limits = Limits::default();
        let mut rate = Rate::default();
        let half = limits.rate_window / 2;
        rate.count((half, 10), &limits, || false, "h").unwrap();
        assert!(matches!(rate.count((half, 10), &limits, || false, "h"), Err(FetchError::Slow { .. })));
        let mut rate = Rate::default();
        for _ in 0..100 {
            rate.count((half, 100_000), &limits, || false, "h").unwrap();
        }
    }

    #[test]
    fn a_slow_download_gives_its_place_up_to_who_waits_and_a_fast_one_does_not() {
        let limits = Limits::default();
        let half = limits.rate_window / 2;
        let in_a_window = |bytes| {
            let mut rate = Rate::default();
            rate.count((half, bytes), &limits, || panic!("it is not asked yet"), "h").unwrap();
            rate.count((half, bytes), &limits, || true, "h")
        };
        assert!(matches!(in_a_window(100_000), Err(FetchError::Overtaken { .. })));
        in_a_window(4_000_000).unwrap();
    }
}
