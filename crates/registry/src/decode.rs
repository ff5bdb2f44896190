//! The readers of what a registry says beside its documents, and of what people write about one, on their own: for tests
//! that throw bytes at them.

use std::str::from_utf8;

use wharf_types::Reference;

use crate::url::Url;
use crate::{auth, blob, challenge, hosts, request};

/// Reads a `hosts.toml`, and says how many hosts it names.
///
/// # Errors
/// Why pulls would be refused with this file.
pub fn hosts_toml(bytes: &[u8]) -> Result<usize, String> {
    let reference: Reference = "registry.example/app:v1".parse().map_err(shown)?;
    hosts::count_hosts(from_utf8(bytes).map_err(shown)?, &reference)
        .map_err(|error| wharf_types::chain(&error))
}

/// Reads a `WWW-Authenticate` header, and says how many challenges are in it.
///
/// # Errors
/// There is none in it.
pub fn challenges(bytes: &[u8]) -> Result<usize, String> {
    match challenge::parse(from_utf8(bytes).map_err(shown)?).len() {
        0 => Err("there is no challenge in it".into()),
        count => Ok(count),
    }
}

/// Resolves a `Location` header, and says how long the address is that it leads to.
///
/// # Errors
/// Why a redirect would not be followed.
pub fn location(bytes: &[u8]) -> Result<usize, String> {
    let here = Url::parse("https://registry.example:5000/v2/app/blobs/x?y=z")?;
    let there = here.join(from_utf8(bytes).map_err(shown)?)?;
    Ok(there.uri().to_string().len())
}

/// Compares a `Content-Range` header with the rest of a blob of 100 bytes after its first 10; 90 are left.
///
/// # Errors
/// It is another range.
pub fn content_range(bytes: &[u8]) -> Result<usize, String> {
    let range = from_utf8(bytes).map_err(shown)?;
    if blob::is_rest(range, 10, 100) { Ok(90) } else { Err("it is another range".into()) }
}

/// Reads what the host of tokens answers, and says how long the token is.
///
/// # Errors
/// There is none in it.
pub fn token(bytes: &[u8]) -> Result<usize, String> {
    auth::token_in(bytes).map(|token| token.len()).map_err(shown)
}

/// Reads what a registry says of an error, and says how many characters of it are shown.
///
/// # Errors
/// Nothing of it can be.
pub fn words(bytes: &[u8]) -> Result<usize, String> {
    match request::words(bytes).chars().count() {
        0 => Err("it says nothing".into()),
        count => Ok(count),
    }
}

fn shown(error: impl ToString) -> String {
    error.to_string()
}
