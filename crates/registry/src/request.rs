//! One request to one host: its credentials, its redirects, and its retries when the host is busy.
//!
//! Whatever answers is hostile until its digest is checked, which is not done here. Here is decided who sees
//! credentials: the host that they are for, and nobody that it redirects to.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;

use crate::auth::Challenger;
use crate::challenge;
use crate::config::{Config, REDIRECT_LIMIT, TEXT_LIMIT_BYTES};
use crate::endpoint::{Endpoint, Standing};
use crate::error::FetchError;
use crate::transport::read_all;
use crate::url::{Url, Wire};

const AGENT: &str = concat!("wharf/", env!("CARGO_PKG_VERSION"));
/// How many hosts on the way to one response may challenge us, each once.
const CHALLENGES_LIMIT: usize = 3;
/// How much of a registry's own text an error shows, in characters.
const SAID_LIMIT_CHARS: usize = 200;

/// A request of the distribution API for one repository.
#[derive(Debug, Clone)]
pub(crate) struct ApiRequest {
    pub(crate) method: Method,
    /// `manifests/<tag or digest>` or `blobs/<digest>`.
    pub(crate) path: String,
    /// The accepted media types; empty for any.
    pub(crate) accept: String,
    /// The first byte of the range; 0 for all.
    pub(crate) from_byte: u64,
    pub(crate) patience: Patience,
}

/// Whether a busy host is worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// There is no other host.
    Wait,
    /// The next host may have it at once.
    Leave,
}

impl Patience {
    /// The patience with a host that others follow. The same host over another scheme does not count as another.
    pub(crate) fn for_one_before(endpoint: &Endpoint, others: &[&Endpoint]) -> Self {
        if others.iter().any(|other| other.place() != endpoint.place()) { Self::Leave } else { Self::Wait }
    }
}

/// A successful response whose body is still to be read.
#[derive(Debug)]
pub(crate) struct ApiResponse {
    /// The head and the body; the status is 200 or 206.
    pub(crate) response: Response<Incoming>,
    /// Host and port of the body's sender: after a redirect not the host that was asked.
    pub(crate) host: String,
}

/// Sends a request, and retries it a limited number of times if the host is busy.
pub(crate) async fn ask(
    endpoint: &Endpoint,
    config: &Config,
    api_request: &ApiRequest,
) -> Result<ApiResponse, FetchError> {
    let mut attempt = 0;
    loop {
        let error = match ask_once(endpoint, config, api_request).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        // A host that used up the whole timeout is left for the next one.
        let waits = api_request.patience == Patience::Wait;
        let worth = waits && error.is_passing() && !matches!(error, FetchError::Stalled { .. });
        if !worth || attempt == config.limits.retries {
            return Err(error);
        }
        let pause = config.limits.pause(attempt, error.retry_after());
        tracing::debug!(%error, attempt, pause_ms = pause.as_millis(), "retrying a request to a registry");
        tokio::time::sleep(pause).await;
        attempt += 1;
    }
}

async fn ask_once(
    endpoint: &Endpoint,
    config: &Config,
    api_request: &ApiRequest,
) -> Result<ApiResponse, FetchError> {
    let url = address(endpoint, api_request)?;
    let mut answered = Vec::new();
    loop {
        let landed = follow(endpoint, config, api_request, &url).await?;
        let needs_authorization = landed.response.status() == StatusCode::UNAUTHORIZED;
        if !needs_authorization || answered.len() == CHALLENGES_LIMIT || answered.contains(&landed.standing) {
            return judge(endpoint, landed).await;
        }
        let headers = landed.response.headers().get_all(WWW_AUTHENTICATE);
        let texts = headers.iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = texts.take(4).flat_map(challenge::parse).collect();
        let challenger = Challenger { endpoint, config, url: &landed.url, standing: &landed.standing };
        match challenger.answer(&challenges).await {
            Ok(Some(value)) => endpoint.authorize(&landed.standing, value),
            Ok(None) => return judge(endpoint, landed).await,
            Err(error) => return Err(endpoint.explain(error)),
        }
        answered.push(landed.standing);
    }
}

fn address(endpoint: &Endpoint, api_request: &ApiRequest) -> Result<Url, FetchError> {
    let root = endpoint.root.uri().to_string();
    let url = format!("{}/{}/{}", root.trim_end_matches('/'), endpoint.repository, api_request.path);
    let url = Url::parse(&url).and_then(|url| match &endpoint.namespace {
        Some(namespace) => url.with_query("ns", namespace),
        None => Ok(url),
    });
    url.map_err(|reason| FetchError::Redirect { host: endpoint.name(), reason })
}

/// Where a chain of redirects ended.
struct Landed {
    response: Response<Incoming>,
    url: Url,
    standing: Standing,
}

async fn follow(
    endpoint: &Endpoint,
    config: &Config,
    api_request: &ApiRequest,
    start: &Url,
) -> Result<Landed, FetchError> {
    let mut url = start.clone();
    let mut standing = Standing::Home;
    for _hop in 0..=REDIRECT_LIMIT {
        let transport = match standing {
            Standing::Home => endpoint.own(),
            Standing::Abroad(_) => endpoint.foreign(config).await,
        };
        let response = transport.send(request(endpoint, api_request, &url, &standing)?, &url).await?;
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(Landed { response, url, standing });
        }
        let wrong = |reason| FetchError::Redirect { host: url.host_and_port().to_owned(), reason };
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let target = url.join(location.ok_or_else(|| wrong("is missing"))?).map_err(wrong)?;
        if url.wire() == Wire::Tls && target.wire() == Wire::Plain {
            return Err(wrong("is not encrypted"));
        }
        let stays = target.same_origin(start) || target.is_encrypted_form_of(start);
        if standing != Standing::Home || !stays {
            standing = Standing::Abroad(target.origin());
        }
        url = target;
    }
    Err(FetchError::Redirect {
        host: url.host_and_port().to_owned(),
        reason: "is one of more than ten in a row",
    })
}

fn request(
    endpoint: &Endpoint,
    api_request: &ApiRequest,
    url: &Url,
    standing: &Standing,
) -> Result<Request<Full<Bytes>>, FetchError> {
    let mut request = Request::builder().method(&api_request.method).uri(url.uri()).header(USER_AGENT, AGENT);
    if !api_request.accept.is_empty() {
        request = request.header(ACCEPT, &api_request.accept);
    }
    if api_request.from_byte > 0 {
        request = request.header(RANGE, format!("bytes={}-", api_request.from_byte));
    }
    let mut request = request.body(Full::default()).map_err(|error| FetchError::Broken {
        host: url.host_and_port().to_owned(),
        source: Box::new(error),
    })?;
    if *standing == Standing::Home {
        for (name, value) in &endpoint.headers {
            request.headers_mut().append(name, value.clone());
        }
    }
    if let Some(value) = endpoint.authorization(standing) {
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    Ok(request)
}

async fn judge(endpoint: &Endpoint, landed: Landed) -> Result<ApiResponse, FetchError> {
    let Landed { response, url, standing } = landed;
    let host = url.host_and_port().to_owned();
    if matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(ApiResponse { response, host });
    }
    let failure = failure_of(&response, &host, String::new());
    // The text of a host that we were redirected to could come from a service that only we can reach.
    if standing != Standing::Home {
        return Err(failure);
    }
    let said =
        match read_all(response.into_body(), &host, TEXT_LIMIT_BYTES, endpoint.own().stall_timeout()).await {
            Ok(body) => words(&body),
            Err(_unread) => String::new(),
        };
    Err(endpoint.explain(with_words(failure, said)))
}

/// The error for an unsuccessful response.
pub(crate) fn failure_of(response: &Response<Incoming>, host: &str, said: String) -> FetchError {
    let host = host.to_owned();
    match response.status().as_u16() {
        404 | 410 => FetchError::NotFound { host, said },
        status @ (401 | 403) => FetchError::Denied { host, status, said },
        status => FetchError::Status {
            host,
            status,
            said,
            retry_after: retry_after(response.headers().get(RETRY_AFTER)),
        },
    }
}

fn with_words(mut failure: FetchError, words: String) -> FetchError {
    match &mut failure {
        FetchError::NotFound { said, .. }
        | FetchError::Denied { said, .. }
        | FetchError::Status { said, .. } => {
            *said = words;
        }
        _ => {}
    }
    failure
}

/// Seconds. The date form is not worth a parser: without a value our own pause applies.
fn retry_after(value: Option<&HeaderValue>) -> Option<Duration> {
    value?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// `: manifest unknown (MANIFEST_UNKNOWN)`, or nothing. Long words and anything after a question mark are left out:
/// they may be signed URLs or tokens.
pub(crate) fn words(body: &[u8]) -> String {
    let Ok(ErrorBody { errors }) = serde_json::from_slice(body) else { return String::new() };
    let Some(first) = errors.first() else { return String::new() };
    let code: String = first.code.chars().filter(|c| c.is_ascii_uppercase() || *c == '_').take(40).collect();
    let clean = |word: &str| {
        let word = word.split('?').next().unwrap_or_default();
        if word.len() > 80 { "…".to_owned() } else { word.replace(char::is_control, " ") }
    };
    let message: Vec<_> = first.message.split_whitespace().map(clean).collect();
    let message: String = message.join(" ").chars().take(SAID_LIMIT_CHARS).collect();
    match (message.is_empty(), code.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!(": {message}"),
        (true, false) => format!(": {code}"),
        (false, false) => format!(": {message} ({code})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_registry_are_kept_short_and_clean() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\n unknown"}]}"#;
        assert_eq!(words(body), ": manifest unknown (MANIFEST_UNKNOWN)");
        let body = br#"{"errors":[{"message":"see https://a.b/c?sig=secret now"}]}"#;
        assert_eq!(words(body), ": see https://a.b/c now");
        let long =
            format!(r#"{{"errors":[{{"code":"X","message":"{} {}"}}]}}"#, "s".repeat(90), "a b ".repeat(200));
        assert!(words(long.as_bytes()).chars().count() < 220 && words(long.as_bytes()).starts_with(": …"));
        for nothing in [&b"<html>"[..], b"{}", br#"{"errors":[]}"#, br#"{"errors":[{}]}"#] {
            assert_eq!(words(nothing), "");
        }
    }

    #[test]
    fn only_seconds_are_a_time_to_wait() {
        let value = |text| HeaderValue::from_static(text);
        assert_eq!(retry_after(Some(&value(" 7 "))), Some(Duration::from_secs(7)));
        for bad in ["-1", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(retry_after(Some(&value(bad))), None);
        }
        assert_eq!(retry_after(None), None);
    }
}
