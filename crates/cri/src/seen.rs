//! A call as its observers see it: it is counted, and has a span if it is traced.

use http::HeaderMap;
use tonic::{Code, Status};
use wharf_metrics::{Call, Calls};
use wharf_traces::{CallSpan, Tracer};
use wharf_types::Traced;

/// Who observes calls. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Observers {
    /// Where calls are counted.
    pub calls: Calls,
    /// What traces them, if anything does.
    pub tracer: Option<Tracer>,
}

/// A call in flight. One that is dropped before its end was given up by its client.
#[derive(Debug)]
pub(crate) struct Seen {
    call: Call,
    span: Option<CallSpan>,
}

impl Observers {
    /// A call of the method at a path has begun.
    pub(crate) fn begin(&self, path: &str, headers: &HeaderMap) -> Seen {
        let call = self.calls.begin(path);
        let span = self.tracer.as_ref().and_then(|tracer| tracer.begin(headers, call.method()));
        Seen { call, span }
    }
}

impl Seen {
    /// What the call's work belongs to.
    pub(crate) fn traced(&self) -> Traced {
        self.span.as_ref().map_or_else(Traced::default, CallSpan::traced)
    }

    /// Its answer, or the beginning of it, is there.
    pub(crate) fn answered(&mut self) {
        self.call.answered();
    }

    /// It has come to its end, with this status. Only the first of these counts.
    pub(crate) fn ended(&mut self, status: &Status) {
        self.call.ended(status.code());
        if let Some(span) = &mut self.span {
            span.ended(status.code(), status.message());
        }
    }

    /// The same, with the status in headers or trailers.
    pub(crate) fn ended_by(&mut self, headers: &HeaderMap) {
        match &self.span {
            // Only a span shows a message.
            None => self.call.ended(code(headers)),
            Some(_) => {
                let status = Status::from_header_map(headers);
                self.ended(&status.unwrap_or_else(|| Status::unknown("")));
            }
        }
    }
}

/// The status in headers or trailers.
fn code(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}
