//! Profiles from a registry. Their authors are strangers, and the same profile must mean the same to every runtime:
//! what one would ignore is refused here.

use std::collections::HashMap;

use serde_json::Value;

use super::Error;
use super::json::{self, unknown, within};
use super::profile::{MAX_ERRNO, Profile};

/// The most entries for one call.
const MAX_ENTRIES: usize = 128;

const PROFILE_KEYS: &[&str] = &["defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls"];
const ENTRY_KEYS: &[&str] = &["names", "action", "errnoRet", "args"];
const CONDITION_KEYS: &[&str] = &["index", "value", "valueTwo", "op"];
/// They belong to a program that decides about calls in the container's place.
const LISTENER_KEYS: &[&str] = &["listenerPath", "listenerMetadata"];

/// Parses a profile from a registry.
pub(super) fn parse(text: &[u8]) -> Result<Profile, Error> {
    let profile = json::parse(text)?;
    let value: Value = serde_json::from_slice(text).map_err(|source| Error::Json { source })?;
    check_keys(&value, PROFILE_KEYS)?;
    check_errno(&value["defaultErrnoRet"])?;
    let mut entries: HashMap<&str, usize> = HashMap::new();
    for entry in list(&value["syscalls"]) {
        check_keys(entry, ENTRY_KEYS)?;
        check_errno(&entry["errnoRet"])?;
        list(&entry["args"]).iter().try_for_each(|condition| check_keys(condition, CONDITION_KEYS))?;
        if list(&entry["names"]).is_empty() {
            return Err(Error::Nameless);
        }
        for name in list(&entry["names"]).iter().filter_map(Value::as_str) {
            let count = entries.entry(name).or_default();
            *count += 1;
            within("entries for one call", *count, MAX_ENTRIES)?;
        }
    }
    Ok(profile)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn check_keys(value: &Value, known: &[&str]) -> Result<(), Error> {
    for key in value.as_object().into_iter().flat_map(|object| object.keys()) {
        if let Some(what) = LISTENER_KEYS.iter().find(|listener| *listener == key) {
            return Err(Error::Notify { what });
        }
        if !known.contains(&key.as_str()) {
            return Err(unknown("key", key));
        }
    }
    Ok(())
}

/// A value too large for an error, whether or not the action has one.
fn check_errno(value: &Value) -> Result<(), Error> {
    match value.as_u64().filter(|value| *value > MAX_ERRNO.into()) {
        Some(value) => Err(Error::OutOfRange { what: "a return value", value, limit: MAX_ERRNO.into() }),
        None => Ok(()),
    }
}
