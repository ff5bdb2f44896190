//! The clients that are attached to a container's output. The supervisor waits for none of them: a client whose pipe is
//! full gets no more.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::log::Stream;

/// How many clients one container may have: each costs a write for every read of the output.
pub(crate) const CLIENT_LIMIT: usize = 64;

/// The clients of one container, by number.
#[derive(Debug, Default)]
pub(crate) struct Clients(BTreeMap<u64, Client>);

/// The write ends of a client's pipes, which are never waited for.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) pace: Pace,
}

/// Whether a client keeps up with the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    KeepsUp,
    FellBehind,
}

impl Client {
    fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Stdout => self.stdout.as_ref().map(AsFd::as_fd),
            Stream::Stderr => self.stderr.as_ref().map(AsFd::as_fd),
        }
    }

    /// The pipe by which its leaving is noticed: a client closes both at once.
    pub(crate) fn watched_pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe(Stream::Stdout).or(self.pipe(Stream::Stderr))
    }
}

impl Clients {
    pub(crate) fn add(&mut self, number: u64, client: Client) {
        self.0.insert(number, client);
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<Client> {
        self.0.remove(&number)
    }

    /// Writes to every client of a stream. A client that accepts only a part of the bytes, or none, has fallen behind.
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        for client in self.0.values_mut().filter(|client| client.pace == Pace::KeepsUp) {
            let Some(pipe) = client.pipe(stream) else { continue };
            if nix::unistd::write(pipe, bytes) != Ok(bytes.len()) {
                client.pace = Pace::FellBehind;
            }
        }
    }

    /// The clients that have fallen behind.
    pub(crate) fn behind(&self) -> Vec<u64> {
        let behind = self.0.iter().filter(|(_, client)| client.pace == Pace::FellBehind);
        behind.map(|(number, _)| *number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    fn client() -> (OwnedFd, Client) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        (read, Client { stdout: Some(write), stderr: None, pace: Pace::KeepsUp })
    }

    #[test]
    fn a_full_pipe_loses_its_client_and_no_other() {
        let mut clients = Clients::default();
        let (slow, client_a) = client();
        let (quick, client_b) = client();
        clients.add(1, client_a);
        clients.add(2, client_b);
        let block = [7; 4096];
        let mut buffer = [0; 4096];
        for _ in 0..100 {
            clients.write(Stream::Stdout, &block);
            assert_eq!(nix::unistd::read(&quick, &mut buffer), Ok(4096));
        }
        assert_eq!(clients.behind(), [1]);
        drop(slow);
    }

    #[test]
    fn a_client_gets_only_the_streams_that_it_requested() {
        let mut clients = Clients::default();
        let (read, client) = client();
        clients.add(1, client);
        clients.write(Stream::Stderr, b"no");
        clients.write(Stream::Stdout, b"yes");
        let mut buffer = [0; 8];
        assert_eq!(nix::unistd::read(&read, &mut buffer), Ok(3));
        assert!(clients.behind().is_empty());
    }

    #[test]
    fn a_client_that_left_falls_behind_at_the_next_output() {
        let mut clients = Clients::default();
        let (read, client) = client();
        clients.add(1, client);
        drop(read);
        clients.write(Stream::Stdout, b"x");
        assert_eq!(clients.behind(), [1]);
    }
}
