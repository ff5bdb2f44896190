//! Feeds mutated bytes to the parsers of everything that comes from outside: from a streaming client, a registry, an
//! image's author, or the author of a `hosts.toml`. None of them panics, and none takes much time or memory.
#![allow(missing_docs, reason = "a test crate has no readers")]

#[cfg(test)]
mod harness;
#[cfg(test)]
mod images;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod streaming;
