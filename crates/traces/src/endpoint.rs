//! The address of a collector.

use http::Uri;
use http::uri::Scheme;

/// The port that collectors have for OTLP over gRPC.
const USUAL_PORT: u16 = 4317;

/// A collector's address: `http` without encryption, or `https`; a host, and a port.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub(crate) uri: Uri,
    pub(crate) is_encrypted: bool,
}

/// Why a text is no collector's address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is no address, or one without scheme or port.
    #[error(
        "{0:?} is not an address such as \"http://127.0.0.1:{USUAL_PORT}\" or \"https://collector.example:{USUAL_PORT}\""
    )]
    Shape(String),
    /// It has a password, which would be written to the log.
    #[error("a user name or a password cannot be sent to a collector: leave out what is before the @")]
    Credentials,
    /// It has a path, as that of OTLP over HTTP has.
    #[error(
        "{0:?} has a path, and OTLP over gRPC has none: leave it out, and give the port for gRPC, such as {USUAL_PORT}"
    )]
    Path(String),
}

impl Endpoint {
    /// Parses an address.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        if text.contains('@') {
            return Err(EndpointError::Credentials);
        }
        let uri: Result<Uri, _> = text.parse();
        let shape = |()| EndpointError::Shape(text.to_owned());
        let uri = uri.map_err(|_malformed| shape(()))?;
        let is_encrypted = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(shape(())),
        };
        let has_port = uri.port_u16().is_some_and(|port| port != 0);
        if !has_port || uri.host().is_none_or(str::is_empty) {
            return Err(shape(()));
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(EndpointError::Path(text.to_owned()));
        }
        Ok(Self { uri, is_encrypted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_says_whether_it_is_encrypted() {
        for (text, is_encrypted) in [
            ("http://127.0.0.1:4317", false),
            ("http://[::1]:4317/", false),
            ("HTTPS://collector.example:443", true),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().is_encrypted, is_encrypted, "{text}");
        }
    }

    #[test]
    fn what_is_no_collectors_address_is_refused() {
        let shape = |text: &str| EndpointError::Shape(text.to_owned());
        for text in [
            "",
            "127.0.0.1:4317",
            "collector:4317",
            "grpc://collector:4317",
            "http://collector",
            "http://:4317",
            "http://collector:0",
            "http://collector:port",
            "http:///v1/traces",
            "http://a b:1",
        ] {
            assert_eq!(Endpoint::parse(text).unwrap_err(), shape(text));
        }
        for text in ["http://collector:4318/v1/traces", "http://collector:4317/?x"] {
            assert_eq!(Endpoint::parse(text).unwrap_err(), EndpointError::Path(text.to_owned()));
        }
        let refused = Endpoint::parse("http://me:hunter2@collector:4317").unwrap_err();
        assert_eq!(refused, EndpointError::Credentials);
        assert!(!refused.to_string().contains("hunter2"));
    }
}
