//! Name resolution by the system's resolver, which blocks a thread until the name's own servers answer.
//!
//! Any image can name a host whose servers never answer, and a registry can lead each layer's download to another such
//! host. So the pulls of one registry have only some of the lookups at a time, and those that have begun are in threads
//! of their own but for a few: all of wharfd's blocking work shares the pool. Whoever looks up the same name for the
//! same registry joins, also while it waits for its turn: the pulls of another one do not wait there. A lookup that
//! nobody waits for any longer keeps its place until it ends.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::timeout;
use wharf_tasks::{Call, CrowdLimits, Joins, Threads, pool};

/// How many lookups run at a time, for the pulls of one registry and in all.
const LIMITS: CrowdLimits = CrowdLimits { of_one: 4, of_all: 64 };

/// What is so if a lookup takes long.
const ADVICE: &str = "the name servers of this machine do not answer";

static LOOKUPS: LazyLock<Lookups> =
    LazyLock::new(|| Lookups::new(Threads::with_pool("lookup", LIMITS, pool::LOOKUPS)));

/// A registry, and a name that its pulls need.
type Key = (Arc<str>, String);
/// What all who wait get.
type Found = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

/// Lookups that go on.
#[derive(Debug)]
struct Lookups {
    /// By registry.
    threads: Arc<Threads<Arc<str>>>,
    joined: Joins<Key, Found>,
}

/// How long a lookup is waited for: no longer than a connection, and less long than the response, so that the error
/// says what was waited for.
pub(crate) fn patience(dial_timeout: Duration, stall_timeout: Duration) -> Duration {
    dial_timeout.min(stall_timeout / 4 * 3)
}

/// All addresses of a host, with port 0, for a pull of this registry.
pub(crate) async fn addresses(
    host: &str,
    registry: &Arc<str>,
    patience: Duration,
) -> io::Result<Vec<SocketAddr>> {
    let name = host.to_owned();
    let lookup = move || Ok((name.as_str(), 0).to_socket_addrs()?.collect());
    let found = timeout(patience, LOOKUPS.join(host, registry, lookup)).await;
    let found = found.map_err(|_elapsed| unanswered(host, patience))?;
    found.map(|found| found.to_vec()).map_err(|error| io::Error::new(error.kind(), error))
}

fn unanswered(host: &str, patience: Duration) -> io::Error {
    let text = format!("the name {host} was not found within {} ms: {ADVICE}", patience.as_millis());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

impl Lookups {
    fn new(threads: Threads<Arc<str>>) -> Self {
        Self { threads: Arc::new(threads.advising(ADVICE)), joined: Joins::default() }
    }

    /// Joins the lookup of this name for this registry, or begins it.
    fn join(
        &self,
        host: &str,
        registry: &Arc<str>,
        lookup: impl FnOnce() -> io::Result<Arc<[SocketAddr]>> + Send + 'static,
    ) -> Call<Found> {
        let (threads, of) = (Arc::clone(&self.threads), Arc::clone(registry));
        let what = format!("looking up {host}");
        self.joined.share((Arc::clone(registry), host.to_owned()), move || async move {
            let found = threads.run(&of, what, lookup).await;
            found.map_err(io::Error::other).flatten().map_err(Arc::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    fn lookups(of_one: usize, of_all: usize) -> Lookups {
        Lookups::new(Threads::with_pool("lookup", CrowdLimits { of_one, of_all }, of_one))
    }

    fn here() -> Arc<[SocketAddr]> {
        Arc::new([([127, 0, 0, 1], 0).into()])
    }

    #[tokio::test]
    async fn a_lookup_has_its_place_until_it_is_over() {
        let one = lookups(1, 1);
        let registry: Arc<str> = "a.b".into();
        let (answer, answered) = mpsc::channel::<()>();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let given_up = tokio::spawn(one.join("name.test", &registry, move || {
            begun.send(()).ok();
            answered.recv().map_err(io::Error::other)?;
            Ok(here())
        }));
        has_begun.await.unwrap();
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        assert_eq!(one.threads.pooled(), 1);
        let mut next = one.join("name.test", &registry, || Ok(here()));
        assert!((&mut next).now_or_never().is_none(), "it waits for the place");
        answer.send(()).unwrap();
        assert_eq!(next.await.unwrap(), here());
    }

    #[tokio::test]
    async fn who_wants_the_same_name_for_the_same_registry_joins() {
        let (lookups, begun) = (lookups(1, 9), Arc::new(AtomicUsize::new(0)));
        let [registry, other]: [Arc<str>; 2] = ["a.b".into(), "c.d".into()];
        let (answer, answered) = mpsc::channel::<()>();
        let mut answered = Some(answered);
        let mut join = |name: &str, registry| {
            let (begun, answered) = (Arc::clone(&begun), answered.take());
            lookups.join(name, registry, move || {
                begun.fetch_add(1, Ordering::SeqCst);
                // The first takes its time, as with a server that does not answer.
                answered.map(|answered| answered.recv());
                Ok(here())
            })
        };
        let mut all: Vec<_> = (0..12).map(|_pull| join("name.test", &registry)).collect();
        all.extend((0..12).map(|_pull| join("other.test", &registry)));
        assert!(all.iter_mut().all(|lookup| lookup.now_or_never().is_none()));
        let of_other = tokio::time::timeout(Duration::from_secs(20), join("other.test", &other));
        assert_eq!(of_other.await.expect("it waits for another registry's turn").unwrap(), here());
        answer.send(()).unwrap();
        for found in join_all(all).await {
            assert_eq!(found.unwrap(), here());
        }
        assert_eq!(begun.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn names_that_one_registry_leads_to_hold_up_its_own_pulls() {
        let (slow, other): (Arc<str>, Arc<str>) = ("slow.test".into(), "other.test".into());
        let mut ends = Vec::new();
        let hang = |number| {
            let (end, until) = mpsc::channel::<()>();
            ends.push(end);
            LOOKUPS.join(&format!("name-{number}.test"), &slow, move || {
                until.recv().map_err(io::Error::other)?;
                Ok(here())
            })
        };
        let mut hanging: Vec<_> = (0..LIMITS.of_all).map(hang).collect();
        assert!(hanging.iter_mut().all(|lookup| lookup.now_or_never().is_none()));
        let looked_up = LOOKUPS.join("name.test", &other, || Ok(here()));
        let looked_up = tokio::time::timeout(Duration::from_secs(20), looked_up).await;
        assert_eq!(looked_up.expect("it waits for another registry's names").unwrap(), here());
    }

    #[tokio::test]
    async fn a_name_without_an_answer_is_what_the_error_says() {
        let registry: Arc<str> = "silent.test".into();
        let (_end, until) = mpsc::channel::<()>();
        let mut hanging = LOOKUPS.join("name.test", &registry, move || {
            until.recv().map_err(io::Error::other)?;
            Ok(here())
        });
        assert!((&mut hanging).now_or_never().is_none());
        let late = addresses("name.test", &registry, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(late.to_string(), format!("the name name.test was not found within 20 ms: {ADVICE}"));
    }

    #[test]
    fn a_lookup_is_given_up_before_the_response() {
        let [dial, stall] = [30, 60].map(Duration::from_secs);
        assert_eq!((patience(dial, stall), patience(2 * stall, stall)), (dial, Duration::from_secs(45)));
    }

    #[tokio::test]
    async fn addresses_are_the_systems() {
        let registry: Arc<str> = "registry.test".into();
        let patience = Duration::from_secs(60);
        let found = addresses("localhost", &registry, patience).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert!(addresses("no such host", &registry, patience).await.is_err());
    }
}
