//! Traces of the daemon's calls, for a collector of OpenTelemetry's.
//!
//! Each call that is traced has a span ([`CallSpan`]), whose parent is the caller's ([`Parent`]), and below it one for
//! each stage of its work, of which it is told (`wharf_types::Trace`). What is recorded goes to a queue ([`Tracer`]),
//! and from there, by a thread of its own, to the collector ([`Exporting`]).
//!
//! Nobody waits for a collector: if it is slow, or does not respond, the queue becomes full, and what has no room is
//! counted and forgotten. A span says which call, which pod and which container; it has nothing else of a request.

mod collector;
mod endpoint;
mod export;
mod parent;
mod queue;
mod span;

/// The messages and the service generated from `proto/otlp/v1/trace.proto`.
#[allow(missing_docs, reason = "the protocol's own documentation explains its fields")]
#[allow(clippy::allow_attributes_without_reason, reason = "tonic writes attributes without reasons")]
pub mod otlp {
    include!("generated.rs");
}

use std::sync::Arc;

use http::HeaderMap;

pub use endpoint::{Endpoint, EndpointError};
pub use export::Exporting;
pub use parent::{ALL_PER_MILLION, Parent, is_sampled};
pub use queue::Figures;
pub use span::CallSpan;

use queue::Queue;

/// Where spans go, and which calls get some.
#[derive(Debug)]
pub struct Settings {
    /// The collector.
    pub endpoint: Endpoint,
    /// How many of a million traces that begin here are recorded; a caller's is recorded if the caller records it.
    pub rate_per_million: u32,
    /// The version of this program.
    pub version: &'static str,
}

/// Traces calls. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Tracer {
    queue: Arc<Queue>,
    rate_per_million: u32,
}

impl Tracer {
    /// Begins to export what this records.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(settings: Settings) -> std::io::Result<(Self, Exporting)> {
        let queue = Arc::<Queue>::default();
        let exporting = export::start(Arc::clone(&queue), settings.endpoint, settings.version)?;
        Ok((Self { queue, rate_per_million: settings.rate_per_million }, exporting))
    }

    /// A call has begun, with these headers and of this method of a service, if the services have it. `None` if it is
    /// not recorded.
    #[must_use]
    pub fn begin(
        &self,
        headers: &HeaderMap,
        method: Option<(&'static str, &'static str)>,
    ) -> Option<CallSpan> {
        let parent = Parent::of(headers);
        let may_be = parent.map_or(self.rate_per_million > 0, |parent| parent.is_sampled);
        let (trace_id, span_id) = may_be.then(span::random_ids)??;
        let is_recorded = parent.is_some() || is_sampled(trace_id, self.rate_per_million);
        is_recorded.then(|| CallSpan::begin(Arc::clone(&self.queue), (trace_id, span_id), parent, method))
    }

    /// What has become of spans; from memory.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.queue.figures()
    }
}
