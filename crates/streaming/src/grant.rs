//! What a streaming URL grants. The RPC that requested the URL decides it; nothing that a client sends over HTTP
//! extends it.

use wharf_types::{ContainerId, PodId, StreamOptions};

use crate::error::Error;
use crate::sessions::Purpose;

/// How many ports one RPC may name: each uses two of a WebSocket's 256 channels.
const PORTS_LIMIT: usize = 128;

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecGrant {
    /// The container.
    pub container: ContainerId,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The requested streams.
    pub wanted: StreamOptions,
}

/// A container to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachGrant {
    /// The container.
    pub container: ContainerId,
    /// The requested streams; `terminal` is as in the container's config.
    pub wanted: StreamOptions,
}

/// A pod to whose ports a client may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardGrant {
    /// The pod.
    pub pod: PodId,
    /// The ports, for a client that uses the older WebSocket form. Over SPDY each connection names its own.
    pub ports: Vec<u16>,
}

/// What a token grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Grant {
    Exec(ExecGrant),
    Attach(AttachGrant),
    PortForward(PortForwardGrant),
}

impl Grant {
    /// The first segment of the URL's path.
    pub(crate) fn path(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }

    /// What the session is for.
    pub(crate) fn purpose(&self) -> Purpose {
        match self {
            Self::Exec(_) => Purpose::Exec,
            Self::Attach(_) => Purpose::Attach,
            Self::PortForward(_) => Purpose::PortForward,
        }
    }

    /// The id of the container or pod.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Exec(ExecGrant { container, .. }) | Self::Attach(AttachGrant { container, .. }) => {
                container.as_str()
            }
            Self::PortForward(grant) => grant.pod.as_str(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match self {
            Self::Exec(ExecGrant { wanted, .. }) | Self::Attach(AttachGrant { wanted, .. }) => check(*wanted),
            Self::PortForward(grant) if grant.ports.len() > PORTS_LIMIT => {
                Err(Error::Invalid { problem: "ask for at most 128 ports" })
            }
            Self::PortForward(_) => Ok(()),
        }
    }
}

/// Checks the flags as the CRI requires: at least one stream, and no stderr with a terminal.
fn check(wanted: StreamOptions) -> Result<(), Error> {
    if wanted.terminal && wanted.stderr {
        return Err(Error::Invalid {
            problem: "a terminal has no stderr of its own: ask for tty or for stderr",
        });
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Error::Invalid { problem: "ask for at least one of stdin, stdout and stderr" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_the_cri_allows() {
        let none = StreamOptions { stdin: false, stdout: false, stderr: false, terminal: false };
        assert!(check(none).is_err());
        assert!(check(StreamOptions { terminal: true, ..none }).is_err());
        assert!(check(StreamOptions { terminal: true, stdout: true, stderr: true, ..none }).is_err());
        assert!(check(StreamOptions { terminal: true, stdout: true, ..none }).is_ok());
        assert!(check(StreamOptions { stdin: true, ..none }).is_ok());
    }

    #[test]
    fn ports_have_channels() {
        let forward = |count| {
            let ports = vec![80; count];
            Grant::PortForward(PortForwardGrant { pod: PodId::from_random([0; 32]), ports }).check()
        };
        assert!(forward(PORTS_LIMIT).is_ok());
        assert!(forward(PORTS_LIMIT + 1).is_err());
    }
}
