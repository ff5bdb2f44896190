//! A registry for tests, and what it serves: it does what a test says, byte for byte. The tests of the registry's
//! client use it, and so do those of the whole program.
#![allow(missing_docs, missing_debug_implementations, reason = "the readers are tests")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "where a test ends, so does this")]

pub mod authority;
pub mod image;
pub mod server;
