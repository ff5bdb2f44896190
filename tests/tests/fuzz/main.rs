//! Throws mutated bytes at the readers of all that comes from outside: from a client of streams, from a registry, from an
//! image's author, from whoever writes a `hosts.toml`. None panics, and none takes long or much memory.
#![allow(missing_docs, reason = "a test crate has no readers")]

#[cfg(test)]
mod harness;
#[cfg(test)]
mod images;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod streaming;
