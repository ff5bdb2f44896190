//! The HTTP server behind the URLs of Exec, Attach and PortForward.
//!
//! It owns the one-time tokens, the upgrade, SPDY/3.1 and WebSocket. Of pods and containers it knows only the ids: a
//! [`Backend`] starts processes and opens connections and returns descriptors, and the server pumps bytes between these
//! and the client.
//!
//! ```text
//! socket ─ head, upgrade ─┬─ spdy ──────┬─ remote_command ─ pump ─ descriptors of a process
//!                         └─ websocket ─┴─ port_forward ─── pump ─ sockets into a pod
//! ```
//!
//! A session is one future: the demultiplexer of its connection and the work on its streams run side by side in it, and
//! when one of them ends, the other is dropped with everything that it holds. So a client that leaves frees everything,
//! in any state, and nothing has to be told to stop.

mod backend;
mod channel;
mod connection;
#[doc(hidden)]
pub mod decode;
mod descriptor;
mod error;
mod grant;
mod hangup;
mod head;
mod port_forward;
mod pump;
mod remote_command;
mod resize;
mod server;
mod sessions;
mod spdy;
mod status;
mod tls;
mod token;
mod upgrade;
mod websocket;
mod wire;

pub use backend::{Backend, BackendError, Resize, Session};
pub use error::Error;
pub use grant::{AttachGrant, ExecGrant, PortForwardGrant};
pub use server::{Config, Server, Urls};
pub use sessions::OpenSessions;
pub use tls::{TlsError, TlsFiles};
