//! WebSocket as Kubernetes uses it: numbered channels in messages, or a SPDY connection in a tunnel.
//!
//! The framing is our own. A library for servers would own the connection and the buffers; here a frame has to be
//! written from the buffer that a pipe was read into, large messages have to pass through without being assembled, and
//! what is left of RFC 6455 then is one head and an exclusive-or.

pub(crate) mod channels;
pub(crate) mod frame;
pub(crate) mod session;
pub(crate) mod tunnel;

pub(crate) use channels::{Channels, Encoding, Outlet, Shape};
