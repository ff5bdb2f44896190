//! Feeds mutated bytes to the parsers of everything that comes from outside: from a streaming client, a registry, an
//! image's author, or the author of a `hosts.toml`. None of them panics, and none takes much time or memory.
#![cfg(test)]
#![allow(missing_docs, reason = "a test crate has no readers")]

mod harness;
mod images;
mod registry;
mod streaming;
mod traces;
