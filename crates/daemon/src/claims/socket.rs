//! The claim to a network as an abstract socket. Its name is the network namespace's own, whereas a wharfd with mounts
//! of its own does not see the files of others.
//!
//! Anybody may make a socket with this name. One of a process without a wharfd's power over the machine, or in a
//! container that is not privileged, is no claim: else a container in the host's network could keep wharfd from
//! starting.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, UnixCredentials, bind, connect, getsockopt, listen,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wharf_sys::fs::kernel_text;
use wharf_sys::socket::accept;
use wharf_types::ContainerId;
use wharf_types::capability::SYS_ADMIN;

use super::Unclaimed;
use crate::killed::Killed;
use crate::listener::has_one;

const NAME: &[u8] = b"wharf-network";
/// How many connections are taken from the queue between two pauses. A full queue, of 4,096 as the kernel has it, is
/// empty after two seconds.
const AT_ONCE: usize = 256;
/// The pause, so that somebody who does nothing but connect does not keep wharfd busy.
const PAUSE: Duration = Duration::from_millis(100);
/// The pause if no connection can be accepted: descriptors may have run short.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for a place in the queue of whoever has the name: a wharfd takes out what is in its own.
const PATIENCE_MS: i64 = 5_000;

/// A socket, which is a claim once it has the name. It only shows whose it is: whoever connects to it gets nothing.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new() -> io::Result<Self> {
        open(SockFlag::SOCK_NONBLOCK).map(Self)
    }

    /// Takes the name, unless another wharfd has it. If it cannot be had for another reason, there is no claim.
    pub(super) fn claim(&self) -> Result<(), Unclaimed> {
        let bound = UnixAddr::new_abstract(NAME).and_then(|name| bind(self.0.as_raw_fd(), &name));
        let Err(errno) = bound.and_then(|()| listen(&self.0, Backlog::MAXCONN)) else { return Ok(()) };
        if errno == Errno::EADDRINUSE
            && let Ok(Some(other)) = owner(PATIENCE_MS)
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

    /// Closes what others connect, as long as this process lives: with a full queue nobody could find out whose the
    /// name is. Ends at once if this is no claim.
    pub(super) async fn clear_queue(&self) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "what its successor asks of the caller, unsafely, a borrowed descriptor upholds by itself"
        )]
        let queue = AsyncFd::with_interest(self.0.as_fd(), Interest::READABLE)?;
        loop {
            let mut ready = queue.readable().await?;
            let refused = (0..AT_ONCE).find_map(|_| accept(self.0.as_fd()).err());
            let pause = match refused.map(|error| error.errno) {
                None => PAUSE,
                Some(Errno::EAGAIN) => {
                    ready.clear_ready();
                    PAUSE
                }
                Some(unnamed @ Errno::EINVAL) => return Err(unnamed.into()),
                Some(_) => LONG_PAUSE,
            };
            tokio::time::sleep(pause).await;
        }
    }
}

fn open(flags: SockFlag) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags | SockFlag::SOCK_CLOEXEC, None)?)
}

/// Who has the name, for people, if that may be a wharfd. Whose queue stays full is none: anybody can fill their own.
fn owner(patience_ms: i64) -> io::Result<Option<String>> {
    let own = open(SockFlag::empty())?;
    setsockopt(&own, SendTimeout, &TimeVal::milliseconds(patience_ms))?;
    connect(own.as_raw_fd(), &UnixAddr::new_abstract(NAME)?)?;
    let owner = getsockopt(&own, PeerCredentials)?;
    if owner.pid() == 0 {
        // It is outside of the container in which this one is.
        return Ok((owner.uid() == 0).then(|| "outside of this container".to_owned()));
    }
    let status = kernel_text(format!("/proc/{}/status", owner.pid()))?;
    let is_wharfd = is_powerful(owner, &status)
        && has_own_users(owner.pid())?
        && (!is_in_a_container(owner.pid())? || is_as_powerful(&status, &kernel_text("/proc/self/status")?))
        && listens(owner.pid())?
        && Killed::find(owner.pid()).is_none();
    Ok(is_wharfd.then(|| format!("pid {}", owner.pid())))
}

/// Whether a process has the socket that listens on the name. The kernel keeps the number of the process that called
/// listen(2). That may have ended, while others have the socket, and its number be another's by now.
fn listens(pid: i32) -> io::Result<bool> {
    let table = kernel_text("/proc/thread-self/net/unix")?;
    has_one(pid, &table.lines().filter_map(listening_socket).collect::<Vec<_>>())
}

/// The socket of a line of `/proc/net/unix`, as a descriptor shows it, if it listens on the name.
fn listening_socket(line: &str) -> Option<PathBuf> {
    /// `__SO_ACCEPTCON` in the column of flags.
    const LISTENS: &str = "00010000";
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (flags, inode, name) = (fields.next()?, fields.nth(2)?, fields.next()?);
    let is_claim = flags == LISTENS && name.strip_prefix('@').map(str::as_bytes) == Some(NAME);
    is_claim.then(|| format!("socket:[{inode}]").into())
}

/// Whether a process is in a container in which this one is not: its cgroups are named after the container's id.
fn is_in_a_container(pid: i32) -> io::Result<bool> {
    let (own, shown) = (kernel_text("/proc/self/cgroup")?, kernel_text(format!("/proc/{pid}/cgroup"))?);
    Ok(ContainerId::all_in(&shown).any(|id| !own.contains(id)))
}

/// Whether a process has this one's user namespace. In a new one everybody has all capabilities, but over nothing.
fn has_own_users(pid: i32) -> io::Result<bool> {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/user"));
    Ok(namespace("self")? == namespace(&pid.to_string())?)
}

/// Whether a process can be a wharfd. Few containers have this capability.
fn is_powerful(process: UnixCredentials, status: &str) -> bool {
    process.uid() == 0 && effective(status).is_some_and(|set| set & SYS_ADMIN != 0)
}

/// Whether a process in a container can be a wharfd, by its status and by this process's: it lacks nothing. Privileged
/// containers alone are like that, and these can do anything to the machine.
fn is_as_powerful(status: &str, own: &str) -> bool {
    effective(status).zip(effective(own)).is_some_and(|(set, own)| own & !set == 0)
}

/// The effective capabilities in a process's status.
fn effective(status: &str) -> Option<u64> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_network_namespace_has_one_claim_whatever_is_mounted() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let claim = || Socket::new().map(|socket| socket.claim().map(|()| socket)).unwrap();
        let first = claim().unwrap();
        match claim() {
            Err(Unclaimed::Refused(error)) => {
                let own = format!("another wharfd (pid {},", std::process::id());
                assert!(error.to_string().starts_with(&own), "{error}");
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        // A process that another test starts has a copy of it until it executes.
        let begin = std::time::Instant::now();
        while claim().is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "the name is still taken");
            std::thread::yield_now();
        }
    }

    /// As if the process that listened had ended, and its number were this one's.
    #[test]
    fn a_socket_that_its_listener_does_not_have_is_no_claim() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let Socket(listening) = Socket::new().unwrap();
        bind(listening.as_raw_fd(), &UnixAddr::new_abstract(NAME).unwrap()).unwrap();
        listen(&listening, Backlog::MAXCONN).unwrap();
        assert_eq!(owner(PATIENCE_MS).unwrap(), Some(format!("pid {}", std::process::id())));
        #[expect(clippy::disallowed_methods, reason = "a test's own process")]
        let mut command = std::process::Command::new("sleep");
        let mut child = command.arg("1000").stdin(std::process::Stdio::from(listening)).spawn().unwrap();
        drop(command);
        assert!(listens(child.id().cast_signed()).unwrap(), "it has the socket");
        assert_eq!(owner(PATIENCE_MS).unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn who_has_the_name_can_be_found_out_however_often() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let claim = Socket::new().unwrap();
        assert_eq!(claim.clear_queue().await.unwrap_err().raw_os_error(), Some(Errno::EINVAL as i32));
        claim.claim().unwrap();
        listen(&claim.0, Backlog::new(1).unwrap()).unwrap();
        let connects = || owner(1).is_ok();
        let is_full = || !(0..10).all(|_| connects());
        assert!(is_full());
        let cleared = tokio::time::timeout(PAUSE, claim.clear_queue()).await;
        assert!(cleared.is_err() && connects(), "{cleared:?}");
        assert!(is_full());
        let cleared = tokio::time::timeout(PAUSE, claim.clear_queue()).await;
        assert!(cleared.is_err() && connects(), "not only once: {cleared:?}");
    }

    #[test]
    fn what_has_no_power_over_the_machine_is_no_wharfd() {
        let own = UnixCredentials::new();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(is_powerful(own, &status), "these tests need root");
        assert!(!is_powerful(own, "Name:\tsh\nCapEff:\t00000000a80425fb\n"), "of an ordinary container");
        assert!(!is_powerful(own, ""));
        assert!(is_as_powerful(&status, &status));
        assert!(
            !is_as_powerful("CapEff:\t0000000000200000\n", &status),
            "of a container with SYS_ADMIN alone"
        );
    }

    #[test]
    fn who_has_power_over_a_user_namespace_of_its_own_is_no_wharfd() {
        assert!(has_own_users(UnixCredentials::new().pid()).unwrap());
        #[expect(clippy::disallowed_methods, reason = "a test's own process")]
        let mut unshared = std::process::Command::new("unshare");
        let mut child = unshared
            .args(["--user", "--map-root-user", "sh", "-c", "echo in; read forever"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        assert_eq!(&word, b"in\n");
        assert!(!has_own_users(child.id().cast_signed()).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
