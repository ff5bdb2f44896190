//! The spans of a call: one for the call, and one for each stage of its work. They follow OpenTelemetry's conventions
//! for calls of gRPC in their first stable version.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use tonic::Code;
use wharf_types::lock::lock;
use wharf_types::{Trace, Traced};

use crate::otlp::any_value::Value;
use crate::otlp::span::SpanKind;
use crate::otlp::status::StatusCode;
use crate::otlp::{AnyValue, KeyValue, Span, Status};
use crate::parent::Parent;
use crate::queue::Queue;

/// The longest value of an attribute and the longest message of a failure, in bytes. What is longer is cut.
const VALUE_LIMIT: usize = 256;
const MESSAGE_LIMIT: usize = 1024;

/// The most facts that a call may be about.
const FACTS_LIMIT: usize = 16;

/// The flags of a span: it is recorded; it is known where its parent is; that is another process.
const SAMPLED: u32 = 1;
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// The conventions' name for a method that no service has.
const OTHER: &str = "_OTHER";

/// The span of a call that has not ended. One that is dropped before was given up by its client.
#[derive(Debug)]
pub struct CallSpan {
    call: Arc<Recorded>,
    has_ended: bool,
}

/// What is known of a call.
#[derive(Debug)]
struct Recorded {
    queue: Arc<Queue>,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent: Option<Parent>,
    method: Option<(&'static str, &'static str)>,
    began: Instant,
    /// The same moment, in nanoseconds since 1970.
    began_ns: u64,
    facts: Mutex<Vec<KeyValue>>,
}

/// The ids of a new trace and a new span; `None` if the kernel has no random bytes.
pub(crate) fn random_ids() -> Option<([u8; 16], [u8; 8])> {
    let bytes = wharf_sys::random::bytes().ok()?;
    let (trace_id, rest) = bytes.split_first_chunk()?;
    Some((*trace_id, *rest.first_chunk()?))
}

impl CallSpan {
    /// A call has begun, in the trace of its parent or in a new one.
    pub(crate) fn begin(
        queue: Arc<Queue>,
        (new_trace, span_id): ([u8; 16], [u8; 8]),
        parent: Option<Parent>,
        method: Option<(&'static str, &'static str)>,
    ) -> Self {
        let trace_id = parent.map_or(new_trace, |parent| parent.trace_id);
        let (began, began_ns) = (Instant::now(), nanoseconds(UNIX_EPOCH.elapsed().unwrap_or_default()));
        let facts = Mutex::default();
        let call = Recorded { queue, trace_id, span_id, parent, method, began, began_ns, facts };
        Self { call: Arc::new(call), has_ended: false }
    }

    /// What the call's work belongs to.
    #[must_use]
    pub fn traced(&self) -> Traced {
        Traced::by(Arc::clone(&self.call) as Arc<dyn Trace>)
    }

    /// The call has come to its end, with this status. Only the first of these counts.
    pub fn ended(&mut self, code: Code, message: &str) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.call.queue.add(self.call.server(code, message));
        }
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.ended(Code::Cancelled, "");
    }
}

impl Trace for Recorded {
    fn stage(&self, name: &'static str, began: Instant, took: Duration) {
        let Some((_, span_id)) = random_ids() else { return };
        let start = self.at(began);
        self.queue.add(Span {
            trace_id: self.trace_id.to_vec(),
            span_id: span_id.to_vec(),
            parent_span_id: self.span_id.to_vec(),
            name: name.to_owned(),
            kind: SpanKind::Internal.into(),
            start_time_unix_nano: start,
            end_time_unix_nano: start.saturating_add(nanoseconds(took)),
            attributes: Vec::new(),
            status: None,
            flags: SAMPLED | HAS_IS_REMOTE,
        });
    }

    fn about(&self, key: &'static str, value: &str) {
        let mut facts = lock(&self.facts);
        if facts.len() < FACTS_LIMIT && facts.iter().all(|fact| fact.key != key) {
            facts.push(attribute(key, cut(value, VALUE_LIMIT)));
        }
    }
}

impl Recorded {
    /// The span of the whole call, which ends now.
    fn server(&self, code: Code, message: &str) -> Span {
        let method =
            self.method.map_or_else(|| OTHER.to_owned(), |(service, name)| format!("{service}/{name}"));
        let code_name = name(code);
        let mut attributes = vec![
            attribute("rpc.system.name", "grpc"),
            attribute("rpc.method", &method),
            attribute("rpc.response.status_code", code_name),
        ];
        let status = is_fault(code).then(|| {
            attributes.push(attribute("error.type", code_name));
            Status { message: cut(message, MESSAGE_LIMIT).to_owned(), code: StatusCode::Error.into() }
        });
        attributes.append(&mut lock(&self.facts));
        Span {
            trace_id: self.trace_id.to_vec(),
            span_id: self.span_id.to_vec(),
            parent_span_id: self.parent.map_or_else(Vec::new, |parent| parent.span_id.to_vec()),
            name: if self.method.is_some() { method } else { "grpc".to_owned() },
            kind: SpanKind::Server.into(),
            start_time_unix_nano: self.began_ns,
            end_time_unix_nano: self.at(Instant::now()),
            attributes,
            status,
            flags: SAMPLED | HAS_IS_REMOTE | self.parent.map_or(0, |_other_process| IS_REMOTE),
        }
    }

    /// A moment in nanoseconds since 1970, by the clock as it was when the call began: stages stand where they were
    /// even if somebody sets it.
    fn at(&self, moment: Instant) -> u64 {
        let before = self.began.saturating_duration_since(moment);
        let after = moment.saturating_duration_since(self.began);
        self.began_ns.saturating_sub(nanoseconds(before)).saturating_add(nanoseconds(after))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value }
}

/// The beginning of a text, in whole characters.
fn cut(text: &str, limit_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(limit_bytes)]
}

/// Whether a server that responds with a code has failed; with the others its client has.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The name of a code in the specification of gRPC.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    use wharf_types::{Timings, trace};

    const METHOD: (&str, &str) = ("runtime.v1.RuntimeService", "RunPodSandbox");
    const PARENT: Parent = Parent { trace_id: [7; 16], span_id: [8; 8], is_sampled: true };

    fn begin(parent: Option<Parent>, method: Option<(&'static str, &'static str)>) -> (Arc<Queue>, CallSpan) {
        let queue = Arc::<Queue>::default();
        let span = CallSpan::begin(Arc::clone(&queue), ([1; 16], [2; 8]), parent, method);
        (queue, span)
    }

    fn text(attribute: &KeyValue) -> (&str, &str) {
        match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(value)) => (&attribute.key, value),
            other => panic!("{other:?}"),
        }
    }

    fn attributes(span: &Span) -> Vec<(&str, &str)> {
        span.attributes.iter().map(text).collect()
    }

    #[test]
    fn a_call_is_a_span_below_its_parent_with_what_the_conventions_demand() {
        let (queue, mut span) = begin(Some(PARENT), Some(METHOD));
        span.traced().within(|| trace::about("k8s.pod.name", "web"));
        span.ended(Code::Ok, "");
        span.ended(Code::Internal, "only the first counts");
        drop(span);
        let [server] = &queue.take()[..] else { panic!("one span") };
        assert_eq!((&server.trace_id[..], &server.parent_span_id[..]), (&[7; 16][..], &[8; 8][..]));
        assert_eq!(
            (server.name.as_str(), server.kind()),
            ("runtime.v1.RuntimeService/RunPodSandbox", SpanKind::Server)
        );
        let expected = [
            ("rpc.system.name", "grpc"),
            ("rpc.method", "runtime.v1.RuntimeService/RunPodSandbox"),
            ("rpc.response.status_code", "OK"),
            ("k8s.pod.name", "web"),
        ];
        assert_eq!(attributes(server), expected);
        assert_eq!((server.status.as_ref(), server.flags), (None, 0x301));
        assert!(server.end_time_unix_nano >= server.start_time_unix_nano);
        assert!(server.start_time_unix_nano > 1_700_000_000_000_000_000);
    }

    #[test]
    fn a_server_that_fails_says_why_and_a_client_that_asks_for_what_is_not_there_is_no_failure() {
        for (code, is_failure) in
            [(Code::NotFound, false), (Code::Internal, true), (Code::DeadlineExceeded, true)]
        {
            let (queue, mut span) = begin(None, Some(METHOD));
            span.ended(code, &"ö".repeat(MESSAGE_LIMIT));
            let span = queue.take().remove(0);
            assert_eq!((span.parent_span_id.as_slice(), span.flags), (&[][..], 0x101));
            assert_eq!(attributes(&span).contains(&("error.type", name(code))), is_failure, "{code:?}");
            let status = span.status.unwrap_or_default();
            assert_eq!(status.code() == StatusCode::Error, is_failure, "{code:?}");
            assert_eq!(status.message.len(), if is_failure { MESSAGE_LIMIT } else { 0 });
        }
        let (queue, span) = begin(None, None);
        drop(span);
        let span = queue.take().remove(0);
        assert_eq!(span.name, "grpc", "it has no client's word in it");
        assert!(attributes(&span).contains(&("rpc.method", "_OTHER")));
        assert!(attributes(&span).contains(&("rpc.response.status_code", "CANCELLED")));
    }

    #[test]
    fn stages_are_children_that_stand_where_they_happened_in_whatever_thread() {
        let (queue, mut span) = begin(Some(PARENT), Some(METHOD));
        let timings = Timings::default();
        span.traced().within(|| {
            timings.time("network", || ());
            thread::scope(|scope| {
                scope.spawn(Traced::here().carry(|| timings.time("supervisor", || ())));
            });
        });
        timings.time("of nobody", || ());
        span.ended(Code::Ok, "");
        // Others may wait for work that a client has given up.
        span.traced().within(|| timings.time("late", || ()));
        let spans = queue.take();
        assert_eq!(
            spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>()[..2],
            ["network", "supervisor"]
        );
        let [network, supervisor, server, late] = &spans[..] else { panic!("{spans:?}") };
        for stage in [network, supervisor, late] {
            assert_eq!((&stage.trace_id, &stage.parent_span_id), (&server.trace_id, &server.span_id));
            assert_eq!((stage.kind(), stage.flags), (SpanKind::Internal, 0x101));
        }
        assert_ne!(network.span_id, supervisor.span_id);
        assert!(server.start_time_unix_nano <= network.start_time_unix_nano);
        assert!(network.end_time_unix_nano <= supervisor.start_time_unix_nano);
        assert!(supervisor.end_time_unix_nano <= server.end_time_unix_nano);
    }

    #[test]
    fn what_a_call_is_about_has_bounds() {
        let (queue, mut span) = begin(None, Some(METHOD));
        let traced = span.traced();
        traced.within(|| {
            trace::about("container.id", &"x".repeat(1000));
            trace::about("container.id", "twice");
            for number in 0..100 {
                trace::about(number.to_string().leak(), "");
            }
        });
        span.ended(Code::Ok, "");
        let span = queue.take().remove(0);
        assert_eq!(span.attributes.len(), 3 + FACTS_LIMIT);
        assert_eq!(attributes(&span)[3], ("container.id", "x".repeat(VALUE_LIMIT).as_str()));
    }
}
