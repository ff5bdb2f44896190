//! What holds for the response to every call of every service: it arrives before the client gives up, it has a status,
//! and it is counted and traced.
//!
//! By itself, the gRPC library responds to a client's deadline that expires first in the server with CANCELLED, where
//! the protocol demands DEADLINE_EXCEEDED; it does not end a stream at its deadline; and when a handler panics, it
//! resets the stream without a status.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as _, Frame};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tower::Service;
use wharf_tasks::Carried;

use crate::seen::{Observers, Seen};
use crate::status::{self, Fault};
use crate::underway::{Ticket, Underway};

/// How much earlier than at the client a deadline expires here, at most, so that the client is still waiting for the
/// response. It is a tenth of a short deadline.
const HEAD_START: Duration = Duration::from_millis(10);

/// The calls whose answers have no end, so that a daemon that is to end must not wait for them.
const ENDLESS: [&str; 2] =
    ["/runtime.v1.RuntimeService/GetContainerEvents", "/wharf.admin.v1.Admin/PullProgress"];

/// A layer for the server that gives all services such responses.
#[derive(Debug, Clone)]
pub struct Answers<S> {
    services: S,
    underway: Underway,
    observers: Observers,
}

impl<S> Answers<S> {
    /// Wraps the services, whose calls are known and observed from then on.
    #[must_use]
    pub fn of(services: S, underway: Underway, observers: Observers) -> Self {
        Self { services, underway, observers }
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
        let path = request.uri().path();
        let ticket = self.underway.begin().filter(|_| !ENDLESS.contains(&path));
        let call = self.observers.begin(path, request.headers());
        let answer = AssertUnwindSafe(Carried::by(call.traced(), self.services.call(request))).catch_unwind();
        Box::pin(async move {
            let answered = tokio::select! {
                biased;
                answered = answer => answered,
                () = passed(deadline) => Ok(Ok(overdue().into_http())),
            };
            let answer = answered.unwrap_or_else(|_panic| Ok(status::of(Fault::Panicked).into_http()))?;
            Ok(counted(answer, deadline, (call, ticket)))
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

/// An answer whose body ends at the deadline, with the status that says so, and whose end is counted. A body that has
/// already ended stays as it is: its status is in its headers.
fn counted(
    answer: Response<Body>,
    deadline: Option<Instant>,
    (mut call, ticket): (Seen, Option<Ticket>),
) -> Response<Body> {
    call.answered();
    if answer.body().is_end_stream() {
        call.ended_by(answer.headers());
        return answer;
    }
    let passed = deadline.map(|at| Box::pin(passed(Some(at))) as BoxFuture<'static, ()>);
    answer.map(|body| Body::new(Rest { body: Some(body), passed, call, _ticket: ticket }))
}

/// What is left of an answer. If nobody wants it any more, its call was given up.
struct Rest {
    body: Option<Body>,
    /// Resolves at the deadline.
    passed: Option<BoxFuture<'static, ()>>,
    call: Seen,
    /// As long as this is there, a daemon that is to end waits for the rest.
    _ticket: Option<Ticket>,
}

impl hyper::body::Body for Rest {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, passed, call, .. } = &mut *self;
        let Some(frames) = body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(frames).poll_frame(context) {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        call.ended_by(trailers);
                    }
                }
                Some(Err(status)) => call.ended(status),
                None => call.ended(&Status::unknown("")),
            }
            return Poll::Ready(frame);
        }
        match passed.as_mut().map(|passed| passed.as_mut().poll(context)) {
            Some(Poll::Ready(())) => {
                *body = None;
                let overdue = overdue();
                call.ended(&overdue);
                Poll::Ready(Some(trailers(&overdue)))
            }
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyStream, StreamBody};
    use tonic::Code;
    use wharf_metrics::{Calls, Metrics};

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
        counting(services, patience, &Calls::default()).await
    }

    async fn counting<F>(services: impl Fn() -> F + Send, patience: &str, calls: &Calls) -> Response<Body>
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler = tower::service_fn(|_request| {
            let answer = services();
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let request = Request::builder().uri("http://x/runtime.v1.RuntimeService/Version");
        let request = request.header("grpc-timeout", patience).body(Body::empty()).unwrap();
        let observers = Observers { calls: calls.clone(), tracer: None };
        Answers::of(handler, Underway::new().0, observers).call(request).await.unwrap()
    }

    /// An answer of one message, and a status if there is one.
    fn message(code: Option<Code>) -> Response<Body> {
        let data = Ok::<_, Status>(Frame::data(Bytes::from_static(b"x")));
        let status = code.map(|code| trailers(&Status::new(code, "")));
        Response::new(Body::new(StreamBody::new(stream::iter([data].into_iter().chain(status)))))
    }

    /// What is counted of calls by their codes, and the number of those in flight.
    fn counts(metrics: &Metrics) -> (Vec<(String, u64)>, u64) {
        let text = metrics.text().unwrap();
        let value = |line: &str| line.rsplit_once(' ')?.1.parse::<u64>().ok();
        let lines = |name: &'static str| text.lines().filter(move |line| line.starts_with(name));
        let codes = lines("wharf_cri_calls_total{").filter_map(|line| {
            let code = line.split_once("code=\"")?.1.split_once('"')?.0;
            Some((code.to_owned(), value(line)?))
        });
        (codes.collect(), lines("wharf_cri_calls_in_flight{").filter_map(value).sum())
    }

    #[tokio::test(start_paused = true)]
    async fn each_end_of_a_call_is_counted_with_its_code() {
        let whole = async |answer: Response<Body>| {
            drop(BodyStream::new(answer.into_body()).collect::<Vec<_>>().await)
        };
        let endless = || Response::new(Body::new(StreamBody::new(stream::pending::<Result<_, Status>>())));
        let failing = || {
            let frames = stream::iter([Err::<Frame<Bytes>, _>(Status::data_loss("x"))]);
            Response::new(Body::new(StreamBody::new(frames)))
        };
        type Handler = Box<dyn Fn() -> BoxFuture<'static, Response<Body>> + Send>;
        let rows: [(&str, Handler); 8] = [
            ("OK", Box::new(|| async { message(Some(Code::Ok)) }.boxed())),
            ("NotFound", Box::new(|| async { Status::not_found("x").into_http() }.boxed())),
            ("Aborted", Box::new(|| async { message(Some(Code::Aborted)) }.boxed())),
            ("Unknown", Box::new(|| async { message(None) }.boxed())),
            ("DataLoss", Box::new(move || async move { failing() }.boxed())),
            ("DeadlineExceeded", Box::new(|| std::future::pending().boxed())),
            ("DeadlineExceeded", Box::new(move || async move { endless() }.boxed())),
            ("Internal", Box::new(|| async { panic!("on purpose") }.boxed())),
        ];
        for (code, handler) in rows {
            let metrics = Metrics::new("");
            whole(counting(handler, "50m", &metrics.calls()).await).await;
            assert_eq!(counts(&metrics), (vec![(code.to_owned(), 1)], 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_in_flight_until_its_end_or_its_clients() {
        let metrics = Metrics::new("");
        let endless =
            async || Response::new(Body::new(StreamBody::new(stream::pending::<Result<_, Status>>())));
        let answer = counting(endless, "1H", &metrics.calls()).await;
        assert_eq!(counts(&metrics), (vec![], 1));
        drop(answer);
        assert_eq!(counts(&metrics), (vec![("Canceled".to_owned(), 1)], 0));
        let calls = metrics.calls();
        let mut waiting = Box::pin(counting(std::future::pending, "1H", &calls));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(counts(&metrics).1, 1);
        drop(waiting);
        assert_eq!(counts(&metrics), (vec![("Canceled".to_owned(), 2)], 0));
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
        let whole = answer(async || message(None), "50m").await;
        let frames: Vec<_> = BodyStream::new(whole.into_body()).collect().await;
        assert_eq!(frames.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_panics_is_an_internal_error() {
        let answer = answer(async || panic!("on purpose"), "50m").await;
        assert_eq!(status(answer.headers()), Some(tonic::Code::Internal));
    }
}
