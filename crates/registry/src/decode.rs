//! The parsers of headers, error texts and `hosts.toml` one by one, for tests that feed them arbitrary bytes.

use std::str::from_utf8;

use wharf_types::Reference;

use crate::url::Url;
use crate::{auth, auth_files, blob, challenge, hosts, request};

/// Parses a `hosts.toml` and returns the number of hosts in it.
///
/// # Errors
/// Why pulls with this file would be refused.
pub fn hosts_toml(bytes: &[u8]) -> Result<usize, String> {
    let reference: Reference = "registry.example/app:v1".parse().map_err(shown)?;
    hosts::count_hosts(from_utf8(bytes).map_err(shown)?, &reference)
        .map_err(|error| wharf_types::chain(&error))
}

/// Parses a `registries.conf` and returns the number of prefixes in it.
///
/// # Errors
/// Why pulls with this file would be refused.
pub fn registries_conf(bytes: &[u8]) -> Result<usize, String> {
    hosts::count_prefixes(from_utf8(bytes).map_err(shown)?).map_err(|error| wharf_types::chain(&error))
}

/// Parses a file of credentials, in the format of Docker's `config.json`, and returns the number of entries in it.
///
/// # Errors
/// Why pulls with this file would be refused.
pub fn auth_file(bytes: &[u8]) -> Result<usize, String> {
    auth_files::count_entries(bytes).map_err(shown)
}

/// Parses a `WWW-Authenticate` header and returns the number of challenges.
///
/// # Errors
/// It has none.
pub fn challenges(bytes: &[u8]) -> Result<usize, String> {
    match challenge::parse(from_utf8(bytes).map_err(shown)?).len() {
        0 => Err("there is no challenge in it".into()),
        count => Ok(count),
    }
}

/// Resolves a `Location` header and returns the length of the resulting URL.
///
/// # Errors
/// Why the redirect would not be followed.
pub fn location(bytes: &[u8]) -> Result<usize, String> {
    let here = Url::parse("https://registry.example:5000/v2/app/blobs/x?y=z")?;
    let there = here.join(from_utf8(bytes).map_err(shown)?)?;
    Ok(there.uri().to_string().len())
}

/// Checks a `Content-Range` header against a request for the last 90 bytes of a blob of 100, and returns 90.
///
/// # Errors
/// It is another range.
pub fn content_range(bytes: &[u8]) -> Result<usize, String> {
    let range = from_utf8(bytes).map_err(shown)?;
    if blob::is_rest(range, 10, 100) { Ok(90) } else { Err("it is another range".into()) }
}

/// Parses a token host's response and returns the length of the token.
///
/// # Errors
/// It has none.
pub fn token(bytes: &[u8]) -> Result<usize, String> {
    auth::token_in(bytes).map(|token| token.len()).map_err(shown)
}

/// Parses a registry's error body and returns how many characters of it are shown.
///
/// # Errors
/// Nothing in it can be shown.
pub fn words(bytes: &[u8]) -> Result<usize, String> {
    match request::words(bytes).chars().count() {
        0 => Err("it says nothing".into()),
        count => Ok(count),
    }
}

fn shown(error: impl ToString) -> String {
    error.to_string()
}
