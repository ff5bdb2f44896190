//! The server as its clients see it: SPDY and WebSocket clients of our own on one side, and the tests themselves as the
//! processes on the other.
#![expect(
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    clippy::panic,
    reason = "an integration test is nothing but tests"
)]

mod command;
mod end;
mod forward;
mod hostile;
mod http;
mod rig;
mod spdy;
mod tls;
mod websocket;
