//! Bindings of the Container Runtime Interface, `runtime.v1`, and of wharf's own small interface beside it,
//! `wharf.admin.v1`: messages, clients and servers.
//!
//! All of [`v1`] and [`admin`] is generated from `proto/` and checked in, so a build needs no proto compiler.
//! `tests/generate.rs` checks the bindings against the proto, and `tests/descriptor.rs` checks the proto against the
//! published interface. Nothing here is written by hand except the `Debug` that hides credentials.
//!
//! Message sizes have tonic's limits; whoever makes a client or a server sets others.

mod redacted;

/// All calls of all services, each with the full name of its service.
pub const CALLS: &[(&str, &str)] = include!("calls/generated.rs");

/// The messages and services of package `runtime.v1`.
///
/// Maps are `BTreeMap`, so the encoding of equal messages is equal. Enum fields are `i32` as on the wire:
/// convert with `TryFrom`, whose error is an unknown value.
#[allow(missing_docs, reason = "the interface's own documentation explains its fields")]
#[allow(clippy::struct_excessive_bools, reason = "the shape of a message is fixed by the interface")]
#[allow(clippy::too_many_lines, reason = "tonic dispatches all calls of a service in one function")]
#[allow(clippy::allow_attributes_without_reason, reason = "tonic writes attributes without reasons")]
pub mod v1 {
    include!("generated.rs");
}

/// The messages and the service of package `wharf.admin.v1`, documented in `proto/admin/v1/admin.proto`.
#[allow(missing_docs, reason = "the proto documents its fields")]
#[allow(clippy::allow_attributes_without_reason, reason = "tonic writes attributes without reasons")]
#[allow(clippy::too_many_lines, reason = "tonic dispatches all calls of a service in one function")]
pub mod admin {
    include!("admin/generated.rs");
}
