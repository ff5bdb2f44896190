//! The signals that end a run: what it has made must not be left because this process ends.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;
use crate::output;

/// They are listened for as long as this exists; none is lost in between.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Unless this process is to go on when its terminal is gone.
    hangup: Option<Signal>,
    /// Whether one has come while something was being made.
    pub(super) has_come: bool,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|source| Error::Runtime { source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) },
            has_come: false,
        })
    }

    /// Waits for the next one; one that has come while something was being made is the first.
    pub(super) async fn next(&mut self) {
        if std::mem::take(&mut self.has_come) {
            return;
        }
        self.wait().await;
    }

    async fn wait(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hangup => {}
        }
    }

    /// Makes something, and notes a signal meanwhile: what is half made could not be removed. The second one ends the
    /// wait.
    pub(super) async fn hold<T>(
        &mut self,
        making: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut making = std::pin::pin!(making);
        tokio::select! {
            biased;
            made = &mut making => {
                self.note().await;
                return made;
            }
            () = self.wait() => self.has_come = true,
        }
        output::report("waiting for wharfd, to undo what it is making; press Ctrl-C again to leave that");
        tokio::select! {
            made = making => made,
            () = self.wait() => Err(Error::Interrupted),
        }
    }

    /// Notes a signal that has come by now.
    async fn note(&mut self) {
        tokio::select! {
            biased;
            () = self.wait() => self.has_come = true,
            () = std::future::ready(()) => {}
        }
    }
}

/// Whether this process is to go on when its terminal is gone, as after nohup(1).
fn ignores_hangup() -> bool {
    /// `1 << (SIGHUP - 1)`.
    const HANGUP: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & HANGUP != 0)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    /// Sends this process a signal, and waits until everybody has been told.
    async fn send(kind: SignalKind) {
        let mut told = signal(kind).unwrap();
        raise(kind.as_raw_value().try_into().unwrap()).unwrap();
        told.recv().await;
    }

    #[tokio::test]
    async fn a_signal_while_something_is_made_is_not_lost_and_the_second_ends_the_wait() {
        let mut signals = Signals::listen().unwrap();
        let making = async {
            send(SignalKind::interrupt()).await;
            Ok(8)
        };
        assert_eq!((signals.hold(making).await.unwrap(), signals.has_come), (8, true));
        signals.next().await;
        assert_eq!((signals.hold(async { Ok(7) }).await.unwrap(), signals.has_come), (7, false));
        let stalled = async {
            send(SignalKind::terminate()).await;
            send(SignalKind::interrupt()).await;
            std::future::pending::<Result<(), Error>>().await
        };
        assert!(matches!(signals.hold(stalled).await, Err(Error::Interrupted)));
    }
}
