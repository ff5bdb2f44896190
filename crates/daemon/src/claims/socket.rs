//! The claim to a network as an abstract socket. Its name is the network namespace's own, whereas a wharfd with mounts
//! of its own does not see the files of others.
//!
//! Anybody may make a socket with this name. One of a process without a wharfd's power over the machine is no claim:
//! else a container in the host's network could keep wharfd from starting.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, UnixCredentials, bind, connect, getsockopt, listen,
    socket,
};
use wharf_types::capability::SYS_ADMIN;

use super::Unclaimed;

const NAME: &[u8] = b"wharf-network";

/// A socket, which is a claim once it has the name. Nobody accepts connections to it: it only shows whose it is.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?))
    }

    /// Takes the name, unless another wharfd has it. If it cannot be had for another reason, there is no claim.
    pub(super) fn claim(&mut self) -> Result<(), Unclaimed> {
        let bound = UnixAddr::new_abstract(NAME).and_then(|name| bind(self.0.as_raw_fd(), &name));
        let Err(errno) = bound.and_then(|()| listen(&self.0, Backlog::MAXCONN)) else { return Ok(()) };
        if errno == Errno::EADDRINUSE
            && let Ok(Some(other)) = owner()
        {
            return Err(Unclaimed::Refused(anyhow::anyhow!(
                "another wharfd ({other}, with mounts of its own) has the network of this machine: stop that one first, \
                 or run this one in a network namespace of its own"
            )));
        }
        tracing::warn!(
            error = %errno,
            "cannot claim this machine's network by a socket: do not start another wharfd beside this one"
        );
        Ok(())
    }
}

/// Who has the name, for people, if that may be a wharfd.
fn owner() -> io::Result<Option<String>> {
    // Never waits: the queue of somebody else's socket may be full.
    let Socket(own) = Socket::new()?;
    connect(own.as_raw_fd(), &UnixAddr::new_abstract(NAME)?)?;
    let owner = getsockopt(&own, PeerCredentials)?;
    if owner.pid() == 0 {
        // It is outside of the container in which this one is.
        return Ok((owner.uid() == 0).then(|| "outside of this container".to_owned()));
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", owner.pid()))?;
    Ok(is_powerful(owner, &status).then(|| format!("pid {}", owner.pid())))
}

/// Whether a process can be a wharfd. Containers have no such capability, except for privileged ones.
fn is_powerful(process: UnixCredentials, status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    process.uid() == 0 && effective.is_some_and(|set| set & SYS_ADMIN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_namespace_has_one_claim_whatever_is_mounted() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let claim = || Socket::new().map(|mut socket| socket.claim().map(|()| socket)).unwrap();
        let first = claim().unwrap();
        match claim() {
            Err(Unclaimed::Refused(error)) => {
                let own = format!("another wharfd (pid {},", std::process::id());
                assert!(error.to_string().starts_with(&own), "{error}");
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        claim().unwrap();
    }

    #[test]
    fn what_has_no_power_over_the_machine_is_no_wharfd() {
        let own = UnixCredentials::new();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(is_powerful(own, &status), "these tests need root");
        assert!(!is_powerful(own, "Name:\tsh\nCapEff:\t00000000a80425fb\n"), "of an ordinary container");
        assert!(!is_powerful(own, ""));
    }
}
