//! A layer's bytes, in order and each once, from whichever hosts have them.
//!
//! A broken connection is resumed where it broke. The bytes before the break have gone to the reader, which hashes all
//! of them, so no server's word about a prefix is trusted. A host that ignores `Range` sends those bytes again, and
//! they are skipped.
//!
//! A download that hardly proceeds gives its place up to a pull that has none, whatever holds it up: all the time that
//! its host keeps it waiting counts, for heads, for bytes and in pauses, over all connections. So there is no other
//! rule for connections that break or stall, and a fast download that is cut off goes on.

use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};
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

/// The lowest rate while a pull without any download waits for this one's place, in bytes per second. The names of
/// registries cost nothing, so a few servers with many of them could otherwise hold every place for hours.
const FLOOR_IF_WANTED_BYTES: u64 = 64 << 10;

/// A blob that is being fetched.
#[derive(Debug)]
pub(crate) struct Blob<'a> {
    config: &'a Config,
    descriptor: &'a Descriptor,
    /// The hosts that have not failed yet; the first is in use.
    endpoints: Vec<&'a Endpoint>,
    stream: Option<Stream>,
    rate: Rate<'a>,
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
            endpoints,
            stream: None,
            rate: Rate::new(&config.limits, place),
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
            let answer = ask(endpoint, self.config, &api_request);
            let answer = self.rate.wait(&endpoint.name(), answer).await??;
            self.stream = Some(self.check(answer)?);
        }
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let stall_timeout = self.config.limits.stall_timeout;
        loop {
            let waited = Instant::now();
            let chunk = next_chunk(&mut stream.body, &stream.host, stall_timeout);
            let chunk = self.rate.wait(&stream.host, chunk).await;
            self.rate.bodies.waited += waited.elapsed();
            let chunk = match chunk? {
                // A server that closes the connection without a TLS close_notify has still sent everything.
                Err(FetchError::Broken { .. }) if self.done_bytes == self.descriptor.size_bytes => break,
                chunk => chunk?,
            };
            let Some(mut chunk) = chunk else { break };
            let skipped = stream.skip_bytes.min(chunk.len() as u64);
            self.rate.count(&stream.host, chunk.len() as u64, skipped)?;
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
        Ok(Stream { body: response.into_body(), host, skip_bytes })
    }

    /// After a failure: a pause and the same host again, or the next host, or the end.
    async fn recover(&mut self, error: FetchError) -> Result<(), Exhausted> {
        let streaming = self.stream.take().is_some();
        if matches!(error, FetchError::Slow { .. } | FetchError::Stalled { .. }) {
            // It is resumed for that, so the time does not count once more.
            self.rate.bodies = Measure::default();
        }
        if self.done_bytes.saturating_sub(self.progress_from) >= PROGRESS_BYTES {
            (self.resumes, self.progress_from) = (0, self.done_bytes);
        }
        // A host that has already sent bytes may be restarting: then a refused connection passes, too.
        let refused = matches!(error, FetchError::Connect { .. }) && self.done_bytes > 0;
        let passing = (error.is_passing() && streaming) || refused;
        if passing && self.resumes < self.config.limits.resumes {
            let pause = self.config.limits.pause(self.resumes, None);
            let at_byte = self.done_bytes;
            tracing::debug!(%error, digest = %self.descriptor.digest, at_byte, "resuming the download of a layer");
            tokio::time::sleep(pause).await;
            self.rate.all.waited += pause;
            self.resumes += 1;
            return Ok(());
        }
        if matches!(error, FetchError::Overtaken { .. }) {
            // The place is another pull's, so the other hosts are not for this one.
            self.endpoints.clear();
        }
        self.abandon(error)
    }

    fn abandon(&mut self, error: FetchError) -> Result<(), Exhausted> {
        self.failures.0.push(error);
        (self.resumes, self.progress_from) = (0, self.done_bytes);
        self.mixed = self.done_bytes > 0;
        self.rate = Rate::new(&self.config.limits, self.rate.place);
        if !self.endpoints.is_empty() {
            self.endpoints.remove(0);
        }
        if self.endpoints.is_empty() { Err(Exhausted) } else { Ok(()) }
    }
}

/// The rates of one host, over all its streams. What the reader takes does not count.
#[derive(Debug)]
struct Rate<'a> {
    limits: &'a Limits,
    place: &'a Place,
    bodies: Measure,
    /// With the waits for heads, and the pauses. A busy registry may ask for these, but not for the place meanwhile.
    all: Measure,
}

/// What has come since the last window ended.
#[derive(Debug, Default)]
struct Measure {
    waited: Duration,
    bytes: u64,
}

impl<'a> Rate<'a> {
    fn new(limits: &'a Limits, place: &'a Place) -> Self {
        Self { limits, place, bodies: Measure::default(), all: Measure::default() }
    }

    /// Waits for the host, and looks at the end of each window whether to go on: a head may come only after many
    /// redirects and retries.
    async fn wait<T>(&mut self, host: &str, answer: impl Future<Output = T>) -> Result<T, FetchError> {
        let mut answer = pin!(answer);
        loop {
            let (began, left) = (Instant::now(), self.limits.rate_window.saturating_sub(self.all.waited));
            let answer = timeout(left, &mut answer).await;
            self.all.waited += began.elapsed();
            match answer {
                Ok(answer) => return Ok(answer),
                Err(_elapsed) => self.keep_place(host)?,
            }
        }
    }

    /// `skipped` of the bytes had come before: a host without ranges is not slow for that, but proceeds no faster.
    fn count(&mut self, host: &str, bytes: u64, skipped: u64) -> Result<(), FetchError> {
        self.bodies.bytes += bytes;
        self.all.bytes += bytes - skipped;
        if self.bodies.waited >= self.limits.rate_window {
            let floor_bytes = self.limits.rate_floor_bytes;
            if self.bodies.is_below(floor_bytes) {
                return Err(FetchError::Slow { host: host.to_owned(), floor_bytes });
            }
            self.bodies = Measure::default();
        }
        self.keep_place(host)
    }

    fn keep_place(&mut self, host: &str) -> Result<(), FetchError> {
        if self.all.waited >= self.limits.rate_window {
            let floor_bytes = FLOOR_IF_WANTED_BYTES;
            if self.all.is_below(floor_bytes) && self.place.must_go() {
                return Err(FetchError::Overtaken { host: host.to_owned(), floor_bytes });
            }
            self.all = Measure::default();
        }
        Ok(())
    }
}

impl Measure {
    fn is_below(&self, floor_bytes: u64) -> bool {
        u128::from(self.bytes) < u128::from(floor_bytes) * self.waited.as_millis() / 1000
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
    use crate::places::Room;
    use futures_util::FutureExt as _;
    use tokio::time::sleep;

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

    /// A shared download's place, for which a pull waits that has none.
    async fn with_wanted_place(limits: &Limits, test: impl AsyncFnOnce(&Place)) {
        let room = Room::new(&Limits { layers_in_all: 1, ..limits.clone() });
        let pulls: Vec<_> = (0..=room.limit()).map(|n| room.of_pull(limits, &n.to_string())).collect();
        let (waiting, pulls) = pulls.split_last().unwrap();
        let places: Vec<_> = pulls.iter().map(|pull| pull.try_take().unwrap()).collect();
        let mut waiting = pin!(waiting.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        test(places.last().unwrap()).await;
    }

    /// Bytes after a wait for them.
    async fn chunk(rate: &mut Rate<'_>, after: Duration, bytes: u64) -> Result<(), FetchError> {
        rate.wait("h", sleep(after)).await?;
        rate.bodies.waited += after;
        rate.count("h", bytes, 0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_noticed_and_a_flow_is_not() {
        let limits = Limits::default();
        let place = Room::new(&limits).of_pull(&limits, "a").try_take().unwrap();
        let mut rate = Rate::new(&limits, &place);
        let half = limits.rate_window / 2;
        chunk(&mut rate, half, 10).await.unwrap();
        assert!(matches!(chunk(&mut rate, half, 10).await, Err(FetchError::Slow { .. })));
        let mut rate = Rate::new(&limits, &place);
        for _ in 0..100 {
            chunk(&mut rate, half, 100_000).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_download_gives_its_place_up_to_who_waits_and_a_fast_one_does_not() {
        let limits = Limits::default();
        let half = limits.rate_window / 2;
        with_wanted_place(&limits, async |place| {
            let mut rate = Rate::new(&limits, place);
            for _ in 0..100 {
                chunk(&mut rate, half, 4_000_000).await.unwrap();
            }
            chunk(&mut rate, half, 100_000).await.expect("it is not asked yet");
            assert!(matches!(chunk(&mut rate, half, 100_000).await, Err(FetchError::Overtaken { .. })));
            assert!(!place.must_go(), "once is enough");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_for_a_head_costs_the_place_and_nothing_else() {
        let limits = Limits::default();
        let long = limits.rate_window * 5 / 2;
        let own = Room::new(&limits).of_pull(&limits, "a").try_take().unwrap();
        let mut rate = Rate::new(&limits, &own);
        rate.wait("h", sleep(long)).await.unwrap();
        chunk(&mut rate, limits.rate_window, 100_000).await.unwrap();
        with_wanted_place(&limits, async |place| {
            let mut rate = Rate::new(&limits, place);
            let began = Instant::now();
            assert!(matches!(rate.wait("h", sleep(long)).await, Err(FetchError::Overtaken { .. })));
            assert!(began.elapsed() < long / 2);
        })
        .await;
    }
}
