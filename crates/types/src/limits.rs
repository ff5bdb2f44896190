//! Bounds that two programs have to agree on.

/// The longest message of the CRI and of the admin service either way, in bytes: the kubelet's own limit.
pub const MESSAGE_LIMIT_BYTES: usize = 16 << 20;
