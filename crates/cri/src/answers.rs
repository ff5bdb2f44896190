//! What holds for the response to every call of every service: it arrives before the client gives up, and it has a
//! status.
//!
//! By itself, the gRPC library responds to a client's deadline that expires first in the server with CANCELLED, where
//! the protocol demands DEADLINE_EXCEEDED; it does not end a stream at its deadline; and when a handler panics, it
//! resets the stream without a status.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyStream, StreamBody};
use hyper::body::{Body as _, Frame};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::status::{self, Fault};
use crate::underway::Underway;

/// How much earlier than at the client a deadline expires here, at most, so that the client is still waiting for the
/// response. It is a tenth of a short deadline.
const HEAD_START: Duration = Duration::from_millis(10);

/// A layer for the server that gives all services such responses.
#[derive(Debug, Clone)]
pub struct Answers<S> {
    services: S,
    underway: Underway,
}

impl<S> Answers<S> {
    /// Wraps the services, whose calls are known from then on.
    #[must_use]
    pub fn of(services: S, underway: Underway) -> Self {
        Self { services, underway }
    }
}

impl<S> Service<Request<Body>> for Answers<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let deadline = deadline(request.headers());
        let ticket = self.underway.begin();
        let answer = AssertUnwindSafe(self.services.call(request)).catch_unwind();
        Box::pin(async move {
            let _ticket = ticket;
            let answered = tokio::select! {
                biased;
                answered = answer => answered,
                () = passed(deadline) => return Ok(overdue().into_http()),
            };
            match answered {
                Ok(answer) => answer.map(|response| response.map(|body| until(deadline, body))),
                Err(_panic) => Ok(status::of(Fault::Panicked).into_http()),
            }
        })
    }
}

/// The deadline of the call, if its client has set one.
fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let patience = timeout(headers.get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(patience - HEAD_START.min(patience / 10))
}

/// Parses a duration as gRPC writes it: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_hours(count)),
        "M" => Some(Duration::from_mins(count)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Waits for the deadline, if there is one, and also checks the clock: a timer fires up to a millisecond late, and the
/// gRPC library's own timer for the same call must not be seen before this one.
async fn passed(deadline: Option<Instant>) {
    let Some(at) = deadline else { return std::future::pending().await };
    let mut timer = pin!(tokio::time::sleep_until(at));
    poll_fn(|context| if Instant::now() >= at { Poll::Ready(()) } else { timer.as_mut().poll(context) })
        .await;
}

fn overdue() -> Status {
    status::of(Fault::Overdue)
}

/// A body that ends at the deadline, with the status that says so. A body that has already ended stays as it is: its
/// status is in its headers.
fn until(deadline: Option<Instant>, body: Body) -> Body {
    if deadline.is_none() || body.is_end_stream() {
        return body;
    }
    let parts = (BodyStream::new(body), Box::pin(passed(deadline)));
    let frames = stream::unfold(Some(parts), async |parts| {
        let (mut frames, mut passed) = parts?;
        tokio::select! {
            biased;
            frame = frames.next() => Some((frame?, Some((frames, passed)))),
            () = &mut passed => Some((trailers(&overdue()), None)),
        }
    });
    Body::new(StreamBody::new(frames))
}

fn trailers(status: &Status) -> Result<Frame<tonic::codegen::Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_they_are_written() {
        let table = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("999999999n", None),
            ("", None),
            ("1", None),
            ("S", None),
            ("-1S", None),
            ("1ü", None),
        ];
        for (text, expected) in table {
            assert_eq!(timeout(text), expected, "{text}");
        }
    }

    /// The response of such services to a client with this deadline.
    async fn answer<F>(services: impl Fn() -> F + Send, patience: &str) -> Response<Body>
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler = tower::service_fn(|_request| {
            let answer = services();
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let request = Request::builder().header("grpc-timeout", patience).body(Body::empty()).unwrap();
        Answers::of(handler, Underway::new().0).call(request).await.unwrap()
    }

    fn status(headers: &HeaderMap) -> Option<tonic::Code> {
        Status::from_header_map(headers).map(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_beyond_its_deadline_is_deadline_exceeded() {
        let answer = answer(std::future::pending, "50m").await;
        assert_eq!(status(answer.headers()), Some(tonic::Code::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_beyond_its_deadline_ends_and_says_why() {
        let endless =
            async || Response::new(Body::new(StreamBody::new(stream::pending::<Result<_, Status>>())));
        let mut frames = BodyStream::new(answer(endless, "50m").await.into_body());
        let last = frames.next().await.unwrap().unwrap();
        assert_eq!(status(last.trailers_ref().unwrap()), Some(tonic::Code::DeadlineExceeded));
        assert!(frames.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_is_left_alone() {
        let error = answer(async || Status::not_found("x").into_http(), "50m").await;
        assert!(error.body().is_end_stream(), "its status is among the headers, so nothing may follow");
        assert_eq!(status(error.headers()), Some(tonic::Code::NotFound));
        let one = async || {
            let frames =
                stream::iter([Ok::<_, Status>(Frame::data(tonic::codegen::Bytes::from_static(b"x")))]);
            Response::new(Body::new(StreamBody::new(frames)))
        };
        let whole = answer(one, "50m").await;
        let frames: Vec<_> = BodyStream::new(whole.into_body()).collect().await;
        assert_eq!(frames.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_panics_is_an_internal_error() {
        let answer = answer(async || panic!("on purpose"), "50m").await;
        assert_eq!(status(answer.headers()), Some(tonic::Code::Internal));
    }
}
