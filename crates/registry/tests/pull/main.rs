//! Whole pulls against registries that behave, lie, break, dawdle or require authentication: real sockets on loopback,
//! and the real store in a directory of the test's own.
#![expect(clippy::disallowed_methods, reason = "a test may wait for a disk")]

#[cfg(test)]
use wharf_test_registry::{authority, image, server};

#[cfg(test)]
mod auth;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod good;
#[cfg(test)]
mod mirrors;
#[cfg(test)]
mod profiles;
#[cfg(test)]
mod proxies;
#[cfg(test)]
mod registries;
#[cfg(test)]
mod shared;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod world;
