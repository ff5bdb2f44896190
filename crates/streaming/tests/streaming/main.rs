//! The server as its clients see it: on one side are SPDY and WebSocket clients written for these tests, on the other
//! the tests themselves play the processes.
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
