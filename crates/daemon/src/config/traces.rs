//! Where calls are traced to.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use wharf_traces::{ALL_PER_MILLION, Endpoint, Settings};

/// Traces of calls by OpenTelemetry's protocol, OTLP over gRPC.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tracing {
    /// The collector: `http://` without encryption or `https://`, a host and a port; if empty, nothing is traced.
    pub(crate) endpoint: String,
    /// How many of a million calls begin a trace of their own; a caller's trace is recorded if the caller records it.
    pub(crate) sampling_rate_per_million: u32,
}

impl Tracing {
    /// What is traced and where to; `None` if nothing is.
    pub(crate) fn settings(&self) -> anyhow::Result<Option<Settings>> {
        let rate_per_million = self.sampling_rate_per_million;
        ensure!(
            rate_per_million <= ALL_PER_MILLION,
            "tracing.sampling_rate_per_million: {rate_per_million} is not from 0 to {ALL_PER_MILLION}"
        );
        if self.endpoint.is_empty() {
            ensure!(rate_per_million == 0, "tracing.sampling_rate_per_million: there is no tracing.endpoint");
            return Ok(None);
        }
        let endpoint = Endpoint::parse(&self.endpoint).context("tracing.endpoint")?;
        Ok(Some(Settings { endpoint, rate_per_million, version: env!("CARGO_PKG_VERSION") }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_a_whole_address_and_a_rate_needs_one() {
        let tracing = |endpoint: &str, rate| {
            Tracing { endpoint: endpoint.to_owned(), sampling_rate_per_million: rate }.settings()
        };
        assert!(tracing("", 0).unwrap().is_none());
        assert_eq!(tracing("http://127.0.0.1:4317", 7).unwrap().unwrap().rate_per_million, 7);
        for (endpoint, rate, words) in [
            ("127.0.0.1:4317", 0, "tracing.endpoint: \"127.0.0.1:4317\" is not an address such as"),
            ("http://me:hunter2@c:4317", 0, "tracing.endpoint: a user name or a password"),
            ("http://c:4318/v1/traces", 0, "tracing.endpoint: \"http://c:4318/v1/traces\" has a path"),
            (
                "http://c:4317",
                1_000_001,
                "tracing.sampling_rate_per_million: 1000001 is not from 0 to 1000000",
            ),
            ("", 1, "tracing.sampling_rate_per_million: there is no tracing.endpoint"),
        ] {
            let refused = format!("{:#}", tracing(endpoint, rate).unwrap_err());
            assert!(refused.starts_with(words), "{refused}");
        }
    }
}
