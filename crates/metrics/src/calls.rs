//! Calls of the gRPC services: how many have ended and how, how long their answers took, and how many are in flight.
//!
//! A label is never a client's word: what the services do not have is counted as one call, "other".

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;
use wharf_cri_api::CALLS;

/// The upper ends of the ranges of durations, in seconds: lists take less than a millisecond, and a stop or a pull may
/// take minutes.
const RANGES_S: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What stands for every call that no service has.
const OTHER: Method = Method { service: "other", method: "other" };

/// The calls that there are, by service and name.
static KNOWN: LazyLock<HashMap<(&str, &str), Method>> = LazyLock::new(|| {
    let known = CALLS.iter().map(|&(service, method)| ((service, method), Method { service, method }));
    known.collect()
});

/// The calls since the start. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<Families>);

#[derive(Debug)]
struct Families {
    ended: Family<Outcome, Counter>,
    durations: Family<Method, Histogram, fn() -> Histogram>,
    in_flight: Family<Method, Gauge>,
}

impl Default for Families {
    fn default() -> Self {
        Self {
            ended: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(RANGES_S)),
            in_flight: Family::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    service: &'static str,
    method: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    service: &'static str,
    method: &'static str,
    code: &'static str,
}

impl Calls {
    /// A call of the method at a path has begun.
    #[must_use]
    pub fn begin(&self, path: &str) -> Call {
        let method = method(path);
        self.0.in_flight.get_or_create(&method).inc();
        Call { calls: self.clone(), method, begin: Instant::now(), progress: Progress::Begun }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let Families { ended, durations, in_flight } = &*self.0;
        registry.register("wharf_cri_calls", "Calls that have ended, by their status", ended.clone());
        registry.register(
            "wharf_cri_call_duration_seconds",
            "Time until a call was answered; for a stream, until it began",
            durations.clone(),
        );
        registry.register(
            "wharf_cri_calls_in_flight",
            "Calls that have not ended, streams included",
            in_flight.clone(),
        );
    }
}

/// A call in flight. One that is dropped before its end was given up by its client.
#[derive(Debug)]
pub struct Call {
    calls: Calls,
    method: Method,
    begin: Instant,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Begun,
    Answered,
    Ended,
}

impl Call {
    /// Its service and its method, unless no service has that.
    #[must_use]
    pub fn method(&self) -> Option<(&'static str, &'static str)> {
        let Method { service, method } = self.method;
        (self.method != OTHER).then_some((service, method))
    }

    /// Its answer, or the beginning of it, is there. Only the first of these counts.
    pub fn answered(&mut self) {
        if self.progress == Progress::Begun {
            self.progress = Progress::Answered;
            let durations = &self.calls.0.durations;
            durations.get_or_create(&self.method).observe(self.begin.elapsed().as_secs_f64());
        }
    }

    /// It has come to its end, with this status. Only the first of these counts.
    pub fn ended(&mut self, code: Code) {
        self.answered();
        if self.progress == Progress::Answered {
            self.progress = Progress::Ended;
            let Method { service, method } = self.method;
            self.calls.0.in_flight.get_or_create(&self.method).dec();
            self.calls.0.ended.get_or_create(&Outcome { service, method, code: name(code) }).inc();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.ended(Code::Cancelled);
    }
}

fn method(path: &str) -> Method {
    let known: &HashMap<(&str, &str), Method> = &KNOWN;
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    parts.and_then(|parts| known.get(&parts)).copied().unwrap_or(OTHER)
}

/// As other servers of gRPC call it in their metrics.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    /// The samples that a page shows of these calls, without those of ranges and sums.
    fn shown(calls: &Calls) -> Vec<String> {
        let mut registry = Registry::default();
        calls.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let mut samples: Vec<_> = samples
            .filter(|line| !line.contains("_bucket") && !line.contains("_sum"))
            .map(str::to_owned)
            .collect();
        samples.sort();
        samples
    }

    #[test]
    fn a_call_counts_once_with_the_first_status_that_it_has() {
        let calls = Calls::default();
        let mut call = calls.begin("/runtime.v1.RuntimeService/Version");
        let of = "service=\"runtime.v1.RuntimeService\",method=\"Version\"";
        assert_eq!(shown(&calls), [format!("wharf_cri_calls_in_flight{{{of}}} 1")]);
        call.answered();
        call.ended(Code::NotFound);
        call.ended(Code::Ok);
        drop(call);
        let expected = [
            format!("wharf_cri_call_duration_seconds_count{{{of}}} 1"),
            format!("wharf_cri_calls_in_flight{{{of}}} 0"),
            format!("wharf_cri_calls_total{{{of},code=\"NotFound\"}} 1"),
        ];
        assert_eq!(shown(&calls), expected);
    }

    #[test]
    fn a_call_that_is_given_up_is_cancelled() {
        let calls = Calls::default();
        drop(calls.begin("/runtime.v1.ImageService/PullImage"));
        let shown = shown(&calls);
        assert!(shown[2].ends_with("method=\"PullImage\",code=\"Canceled\"} 1"), "{shown:?}");
    }

    #[test]
    fn no_client_makes_a_label() {
        let calls = Calls::default();
        for path in ["/runtime.v1.RuntimeService/Made", "/up/Version", "", "/", "x", "/\"}/x", "//Version"] {
            let mut call = calls.begin(path);
            assert_eq!(call.method(), None);
            call.ended(Code::Unimplemented);
        }
        let of = "service=\"other\",method=\"other\"";
        assert_eq!(shown(&calls)[2], format!("wharf_cri_calls_total{{{of},code=\"Unimplemented\"}} 7"));
        assert_eq!(shown(&calls).len(), 3);
        for (service, of_service) in CALLS {
            let call = calls.begin(&format!("/{service}/{of_service}"));
            assert_eq!(call.method(), Some((*service, *of_service)));
        }
    }
}
