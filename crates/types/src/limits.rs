//! Limits on which two programs must agree.

/// The longest message of the CRI and of the admin service in either direction, in bytes: the kubelet's own limit.
pub const MESSAGE_LIMIT_BYTES: usize = 16 << 20;
