//! The signals that end a command which would leave something behind.
//!
//! Once this process listens for a signal, the signal no longer ends it. So whatever is done from then on goes through
//! [`Signals`], also what cleans up: a wharfd that does not respond would otherwise keep this process for ever.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::error::Error;
use crate::output;

/// After this time, a SIGTERM or a SIGHUP counts once more: whoever sent it sends no second one. It is as long as a
/// program may take to exit, and wharfd to remove it. systemd waits 90 seconds, in which this passes four times.
const AGAIN: Duration = Duration::from_secs(20);

/// They are listened for as long as this exists; none is lost in between.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Unless this process is to go on when its terminal is gone.
    hangup: Option<Signal>,
    /// The first one that has come.
    pub(crate) first: Option<SignalKind>,
    /// One that counts once more, and when.
    again: Option<(SignalKind, Instant)>,
    again_after: Duration,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(|source| Error::Runtime { source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: if ignores_hangup() { None } else { Some(listen(SignalKind::hangup())?) },
            first: None,
            again: None,
            again_after: AGAIN,
        })
    }

    /// Waits for the first one, which may have come already.
    pub(crate) async fn first(&mut self) -> SignalKind {
        match self.first {
            Some(first) => first,
            None => self.next().await,
        }
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> SignalKind {
        let hangup = async {
            match &mut self.hangup {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let again = self.again;
        let again = async {
            match again {
                Some((kind, at)) => {
                    sleep_until(at).await;
                    kind
                }
                None => std::future::pending().await,
            }
        };
        let came = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = hangup => SignalKind::hangup(),
            kind = again => kind,
        };
        self.first.get_or_insert(came);
        // Ctrl-C is pressed again by whoever loses patience.
        if came != SignalKind::interrupt() {
            self.again = Some((came, Instant::now() + self.again_after));
        }
        came
    }

    /// Does something that leaves nothing behind: the first signal cuts it off.
    pub(crate) async fn cut<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            signal = self.next() => Err(Error::Interrupted { signal }),
        }
    }

    /// Does something that leaves `name` behind if it is cut off. Unless one has come before, the first signal only
    /// says what is waited for; each further one cuts it off.
    pub(crate) async fn hold<T>(
        &mut self,
        name: &str,
        doing: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let mut work = std::pin::pin!(work);
        loop {
            let is_first = self.first.is_none();
            let signal = tokio::select! {
                biased;
                done = &mut work => {
                    self.note().await;
                    return Ok(done);
                }
                signal = self.next() => signal,
            };
            if !is_first {
                return Err(Error::LeftBehind { name: name.to_owned(), signal });
            }
            output::report(&format!("{doing} {name}; press Ctrl-C again to give up"));
        }
    }

    /// Notes a signal that has come by now.
    async fn note(&mut self) {
        tokio::select! {
            biased;
            _ = self.next() => {}
            () = std::future::ready(()) => {}
        }
    }
}

/// Does something that cleans up after itself when a signal cuts it off.
pub(crate) async fn or_cut<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    Signals::listen()?.cut(work).await
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
pub(crate) mod tests {
    use std::future::{pending, ready};

    use nix::sys::signal::raise;
    use tokio::sync::{Mutex, MutexGuard};

    use super::*;

    /// The signals of all tests are this process's.
    static TURN: Mutex<()> = Mutex::const_new(());

    /// As long as a test has this, no other test sends signals.
    pub(crate) async fn turn() -> MutexGuard<'static, ()> {
        TURN.lock().await
    }

    /// Sends this process a signal, and waits until everybody has been told and has done what follows.
    pub(crate) async fn send(kind: SignalKind) {
        let mut told = signal(kind).unwrap();
        raise(kind.as_raw_value().try_into().unwrap()).unwrap();
        told.recv().await;
        tokio::task::yield_now().await;
    }

    /// Sends signals while something is done that goes on without an end. Only the last one ends it.
    pub(crate) async fn end<T>(work: impl Future<Output = T>, signals: &[SignalKind]) -> T {
        let mut work = std::pin::pin!(work);
        for (at, kind) in signals.iter().enumerate() {
            tokio::select! {
                biased;
                done = &mut work => {
                    assert_eq!(at + 1, signals.len(), "an earlier one has ended it");
                    return done;
                }
                () = send(*kind) => {}
            }
        }
        tokio::time::timeout(Duration::from_secs(10), work).await.expect("the last one ends it")
    }

    fn is_left<T>(result: Result<T, Error>, by: SignalKind) -> bool {
        matches!(result, Err(Error::LeftBehind { name, signal }) if name == "web" && signal == by)
    }

    const INTERRUPT: SignalKind = SignalKind::interrupt();
    const TERMINATE: SignalKind = SignalKind::terminate();

    #[tokio::test]
    async fn a_signal_while_something_is_made_is_not_lost() {
        let _turn = turn().await;
        let mut signals = Signals::listen().unwrap();
        assert_eq!((signals.hold("web", "", ready(7)).await.unwrap(), signals.first), (7, None));
        let making = async {
            send(INTERRUPT).await;
            8
        };
        assert_eq!((signals.hold("web", "", making).await.unwrap(), signals.first), (8, Some(INTERRUPT)));
        assert_eq!(signals.first().await, INTERRUPT);
    }

    #[tokio::test]
    async fn each_signal_but_the_first_of_all_ends_a_wait() {
        let _turn = turn().await;
        let mut signals = Signals::listen().unwrap();
        let cut = end(signals.hold("web", "", pending::<()>()), &[TERMINATE, INTERRUPT]).await;
        assert!(is_left(cut, INTERRUPT));
        let cut = end(signals.hold("web", "", pending::<()>()), &[TERMINATE]).await;
        assert!(is_left(cut, TERMINATE));
        let cut = end(signals.cut(pending::<Result<(), _>>()), &[INTERRUPT]).await;
        assert!(matches!(cut, Err(Error::Interrupted { signal: INTERRUPT })));
    }

    #[tokio::test]
    async fn what_nobody_sends_twice_counts_once_more() {
        let _turn = turn().await;
        let mut signals = Signals::listen().unwrap();
        signals.again_after = Duration::from_millis(1);
        for _ in 0..2 {
            let cut = end(signals.hold("web", "", pending::<()>()), &[TERMINATE]).await;
            assert!(is_left(cut, TERMINATE));
        }
        let mut signals = Signals::listen().unwrap();
        assert_eq!(end(signals.next(), &[INTERRUPT]).await, INTERRUPT);
        assert_eq!(signals.again, None);
    }
}
