//! WebSocket as Kubernetes uses it: numbered channels in messages, or a SPDY connection in a tunnel.
//!
//! The framing is wharf's own. A server library would own the connection and the buffers. Here a frame must be written
//! from the buffer into which a pipe was read, and large messages must pass through without being assembled. What is
//! left of RFC 6455 is then one head and an exclusive-or.

pub(crate) mod channels;
pub(crate) mod frame;
pub(crate) mod session;
pub(crate) mod tunnel;

pub(crate) use channels::{Channels, Encoding, Outlet, Shape};
