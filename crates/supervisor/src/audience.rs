//! Clients attached to a container's output. The supervisor waits for none of them: a client whose pipe is full gets no
//! more.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::log::Stream;

/// How many clients one container may have: each costs a write for every read of the output.
pub(crate) const CLIENT_LIMIT: usize = 64;

/// The clients of one container, by number.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    clients: BTreeMap<u64, Client>,
}

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
    Keeps,
    Lost,
}

impl Client {
    fn of(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Stdout => self.stdout.as_ref().map(AsFd::as_fd),
            Stream::Stderr => self.stderr.as_ref().map(AsFd::as_fd),
        }
    }

    /// The end by which its leaving is noticed: a client closes both at once.
    pub(crate) fn witness(&self) -> Option<BorrowedFd<'_>> {
        self.of(Stream::Stdout).or(self.of(Stream::Stderr))
    }
}

impl Audience {
    pub(crate) fn add(&mut self, number: u64, client: Client) {
        self.clients.insert(number, client);
    }

    pub(crate) fn remove(&mut self, number: u64) -> Option<Client> {
        self.clients.remove(&number)
    }

    /// Writes to every client of a stream. A client that accepts only a part of the bytes, or none, has not kept up.
    pub(crate) fn show(&mut self, stream: Stream, bytes: &[u8]) {
        for client in self.clients.values_mut().filter(|client| client.pace == Pace::Keeps) {
            let Some(pipe) = client.of(stream) else { continue };
            if nix::unistd::write(pipe, bytes) != Ok(bytes.len()) {
                client.pace = Pace::Lost;
            }
        }
    }

    /// The clients that have not kept up.
    pub(crate) fn lost(&self) -> Vec<u64> {
        let lost = self.clients.iter().filter(|(_, client)| client.pace == Pace::Lost);
        lost.map(|(number, _)| *number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;

    fn client() -> (OwnedFd, Client) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        (read, Client { stdout: Some(write), stderr: None, pace: Pace::Keeps })
    }

    #[test]
    fn a_full_pipe_loses_its_client_and_no_other() {
        let mut audience = Audience::default();
        let (slow, client_a) = client();
        let (quick, client_b) = client();
        audience.add(1, client_a);
        audience.add(2, client_b);
        let block = [7; 4096];
        let mut buffer = [0; 4096];
        for _ in 0..100 {
            audience.show(Stream::Stdout, &block);
            assert_eq!(nix::unistd::read(&quick, &mut buffer), Ok(4096));
        }
        assert_eq!(audience.lost(), [1]);
        drop(slow);
    }

    #[test]
    fn a_stream_that_was_not_asked_for_is_not_shown() {
        let mut audience = Audience::default();
        let (read, client) = client();
        audience.add(1, client);
        audience.show(Stream::Stderr, b"no");
        audience.show(Stream::Stdout, b"yes");
        let mut buffer = [0; 8];
        assert_eq!(nix::unistd::read(&read, &mut buffer), Ok(3));
        assert!(audience.lost().is_empty());
    }

    #[test]
    fn a_client_that_left_is_lost_at_the_next_output() {
        let mut audience = Audience::default();
        let (read, client) = client();
        audience.add(1, client);
        drop(read);
        audience.show(Stream::Stdout, b"x");
        assert_eq!(audience.lost(), [1]);
    }
}
