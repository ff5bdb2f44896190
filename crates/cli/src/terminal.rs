//! The user's terminal: in raw mode during a session, and restored afterwards. A thread reads the input, because a
//! blocking read of a terminal cannot be cancelled.

use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::error::Error;

/// Control-P, Control-Q.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// A terminal in another mode, usually raw. Dropping this restores it.
#[derive(Debug)]
pub(crate) struct Terminal(Termios);

/// Checks that standard input is a terminal, before anything is created.
pub(crate) fn check() -> Result<(), Error> {
    tcgetattr(io::stdin()).map(drop).map_err(|errno| Error::NoTerminal { source: errno.into() })
}

impl Terminal {
    /// Puts the terminal of standard input into raw mode: every key goes to the command.
    pub(crate) fn raw() -> Result<Self, Error> {
        let not_one = |errno: nix::Error| Error::NoTerminal { source: errno.into() };
        let before = tcgetattr(io::stdin()).map_err(not_one)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw).map_err(not_one)?;
        Ok(Self(before))
    }

    /// Stops the terminal of standard input from echoing anything but the line feed; `None` if it is not a terminal.
    pub(crate) fn silent() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        silent.local_flags.insert(LocalFlags::ECHONL);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &silent).ok()?;
        Some(Self(before))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone need not be restored.
        tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0).unwrap_or_default();
    }
}

/// Detects the two detach keys, which may arrive in separate pieces.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The last piece ended with the first of the two keys, which is held back until the next piece.
    begun: bool,
}

/// The meaning of a piece of input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// Input for the program; empty if the piece was only the first of the two keys.
    Keys(Vec<u8>),
    Leave,
}

impl Keys {
    /// Takes the next piece of input.
    pub(crate) fn take(&mut self, piece: Vec<u8>) -> Typed {
        let mut keys = piece;
        if std::mem::take(&mut self.begun) {
            keys.insert(0, LEAVE[0]);
        }
        if keys.windows(LEAVE.len()).any(|keys| keys == LEAVE) {
            return Typed::Leave;
        }
        self.begun = keys.last() == Some(&LEAVE[0]);
        if self.begun {
            keys.pop();
        }
        Typed::Keys(keys)
    }
}

/// Standard input in pieces.
#[derive(Debug)]
pub(crate) struct Input(mpsc::Receiver<Vec<u8>>);

impl Input {
    pub(crate) fn start() -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel(4);
        start_thread(move || {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(receiver))
    }
}

/// Starts a thread that is not waited for.
pub(crate) fn start_thread(work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new().spawn(work).map(drop).map_err(|source| Error::Thread { source })
}

/// The next piece, or `None` at the end; without input it never resolves.
pub(crate) async fn next(input: &mut Option<Input>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.0.recv().await,
        None => std::future::pending().await,
    }
}

/// The terminal's sizes; the present one comes at once.
#[derive(Debug)]
pub(crate) struct Sizes {
    changed: Signal,
    is_first: bool,
}

pub(crate) fn sizes() -> Result<Sizes, Error> {
    let changed = signal(SignalKind::window_change()).map_err(|source| Error::Runtime { source })?;
    Ok(Sizes { changed, is_first: true })
}

/// The next size as a message of the session; without a terminal it never resolves.
pub(crate) async fn next_size(sizes: &mut Option<Sizes>) -> Option<String> {
    let Some(sizes) = sizes else { return std::future::pending().await };
    if !std::mem::take(&mut sizes.is_first) {
        sizes.changed.recv().await?;
    }
    let (height, width) = console::Term::stdout().size_checked()?;
    Some(format!("{{\"Width\":{width},\"Height\":{height}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let mut keys = Keys::default();
        let mut all = Vec::new();
        for piece in pieces {
            match keys.take(piece.to_vec()) {
                Typed::Keys(keys) => all.extend(keys),
                Typed::Leave => return None,
            }
        }
        Some(all)
    }

    #[test]
    fn two_keys_in_a_row_leave_in_one_piece_or_in_two() {
        let leave: [&[&[u8]]; 4] =
            [&[b"ab\x10\x11"], &[b"\x10", b"\x11"], &[b"a\x10", b"\x11b"], &[b"\x10", b"\x10\x11"]];
        for pieces in leave {
            assert_eq!(typed(pieces), None, "{pieces:?}");
        }
    }

    #[test]
    fn all_other_keys_reach_the_program_in_their_order() {
        let stay: [&[&[u8]]; 4] =
            [&[b"\x11\x10", b"a"], &[b"\x10", b"\x10", b"a"], &[b"\x10a", b"\x11"], &[b""]];
        for pieces in stay {
            assert_eq!(typed(pieces), Some(pieces.concat()), "{pieces:?}");
        }
    }
}
