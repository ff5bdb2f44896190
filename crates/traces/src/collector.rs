//! The collector: a connection that is made when it is needed, and attempts to have it accept spans. Each attempt has a
//! deadline, and what it answers a bound.

use std::error::Error as _;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};
use wharf_types::{chain, one_line};

use crate::endpoint::Endpoint;
use crate::otlp::trace_service_client::TraceServiceClient;
use crate::otlp::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span, any_value,
};

/// How long the collector may take to accept a connection, and to answer. The latter is the protocol's default.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// After how long without a sign of life, while an answer is waited for, a connection is given up.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// The longest answer, and how much of the collector's words is logged, in bytes.
const ANSWER_LIMIT: usize = 64 * 1024;
const WORDS_LIMIT: usize = 200;

/// What became of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The collector has accepted all but so many.
    Accepted { rejected: u64 },
    /// It did not respond, or asks to be tried again.
    Failed,
    /// It will not accept this.
    Refused,
}

#[derive(Debug)]
pub(crate) struct Collector {
    endpoint: Endpoint,
    /// Once a connection could be prepared.
    client: Option<TraceServiceClient<Channel>>,
    resource: Resource,
    scope: InstrumentationScope,
    /// Whether the last attempt succeeded, as far as the log says.
    is_well: bool,
}

impl Collector {
    pub(crate) fn new(endpoint: Endpoint, version: &str, host: &str) -> Self {
        let attributes = [("service.name", "wharfd"), ("service.version", version), ("host.name", host)].map(
            |(key, value)| {
                let value = Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) });
                KeyValue { key: key.to_owned(), value }
            },
        );
        let scope = InstrumentationScope { name: "wharf".to_owned(), version: version.to_owned() };
        Self {
            endpoint,
            client: None,
            resource: Resource { attributes: attributes.into() },
            scope,
            is_well: true,
        }
    }

    /// Tries once to have these accepted. The first attempt that fails is logged, and so is the first after it that
    /// succeeds.
    pub(crate) async fn attempt(&mut self, spans: &[Span]) -> Attempt {
        let answer = timeout(CONNECT_TIME + ANSWER_TIME, self.export(spans)).await;
        let answer =
            answer.unwrap_or_else(|_elapsed| Err(Status::deadline_exceeded("it has not responded in time")));
        match answer {
            Ok((rejected, words)) => {
                self.note((rejected > 0).then(|| format!("it has rejected {rejected} spans: {words}")));
                Attempt::Accepted { rejected: rejected.min(spans.len() as u64) }
            }
            Err(status) => {
                self.note(Some(words(&status)));
                if is_passing(status.code()) { Attempt::Failed } else { Attempt::Refused }
            }
        }
    }

    /// How many spans the collector has rejected, and why.
    async fn export(&mut self, spans: &[Span]) -> Result<(u64, String), Status> {
        let scope_spans = vec![ScopeSpans { scope: Some(self.scope.clone()), spans: spans.to_vec() }];
        let resource_spans = vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans }];
        let request = ExportTraceServiceRequest { resource_spans };
        let answer = self.client()?.export(request).await?.into_inner().partial_success.unwrap_or_default();
        Ok((u64::try_from(answer.rejected_spans).unwrap_or(0), answer.error_message))
    }

    /// Nothing is connected before the first request. Reading the system's certificates takes a while, and may fail.
    fn client(&mut self) -> Result<&mut TraceServiceClient<Channel>, Status> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let channel = channel(&self.endpoint)?;
                TraceServiceClient::new(channel).max_decoding_message_size(ANSWER_LIMIT)
            }
        };
        Ok(self.client.insert(client))
    }

    fn note(&mut self, problem: Option<String>) {
        let was_well = std::mem::replace(&mut self.is_well, problem.is_none());
        let collector = &self.endpoint.uri;
        match problem {
            Some(words) if was_well => {
                let words = one_line(&words);
                let error = &words[..words.floor_char_boundary(WORDS_LIMIT)];
                tracing::warn!(%collector, error, "the collector does not accept traces: those without room are lost");
            }
            None if !was_well => tracing::info!(%collector, "the collector accepts traces again"),
            Some(_) | None => {}
        }
    }
}

fn channel(endpoint: &Endpoint) -> Result<Channel, Status> {
    let channel = Channel::builder(endpoint.uri.clone())
        .connect_timeout(CONNECT_TIME)
        .timeout(ANSWER_TIME)
        .http2_keep_alive_interval(SIGN_OF_LIFE)
        .keep_alive_timeout(SIGN_OF_LIFE);
    if endpoint.is_encrypted {
        Ok(channel.connect_with_connector_lazy(encrypted()?))
    } else {
        Ok(channel.connect_lazy())
    }
}

/// TLS with the system's roots. The gRPC library's own would be linked into all programs that use it.
fn encrypted() -> Result<HttpsConnector<HttpConnector>, Status> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unusable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(ToString::to_string);
        let why = why.unwrap_or_else(|| "install the package ca-certificates".to_owned());
        return Err(Status::unavailable(format!("this system has no usable root certificates: {why}")));
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http2().build())
}

/// Why an attempt failed: the causes, if it was here, or what the collector says.
fn words(status: &Status) -> String {
    let why = status.source().map_or_else(|| status.message().to_owned(), chain);
    format!("{:?}: {why}", status.code())
}

/// Whether the same may succeed later. These are the codes of the protocol, and what the gRPC library says of a
/// connection that has broken.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unknown
    )
}
