//! SPDY/3.1 as far as Kubernetes uses it: streams over one connection, without flow control, priorities or push.
//!
//! [`frame`] and [`headers`] do no I/O; [`session`] runs a connection; [`stream`] is one stream as its owner sees it.

pub(crate) mod frame;
pub(crate) mod headers;
mod room;
pub(crate) mod session;
pub(crate) mod stream;

pub(crate) use frame::Reset;
pub(crate) use stream::{Outlet, Stream};
