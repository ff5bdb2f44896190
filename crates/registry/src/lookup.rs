//! Name resolution by the system's resolver, which blocks a thread until the name's own servers answer.
//!
//! Any image can name a host whose servers never answer, and a registry can lead each layer's download to another such
//! host. So the pulls of one registry have only some of the lookups at a time, and those that have begun are in threads
//! of their own but for a few: all of wharfd's blocking work shares the pool. A lookup that nobody waits for any longer
//! keeps its place until it ends.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock};

use wharf_tasks::{CrowdLimits, Threads};

/// How many lookups run at a time, for the pulls of one registry and in all.
const LIMITS: CrowdLimits = CrowdLimits { of_one: 4, of_all: 64 };
/// How many of them may have threads of the pool.
const POOLED: usize = 4;

static LOOKUPS: LazyLock<Threads<Arc<str>>> = LazyLock::new(|| Threads::with_pool("lookup", LIMITS, POOLED));

/// All addresses of a host, with port 0, for a pull of this registry.
pub(crate) async fn addresses(host: &str, registry: &Arc<str>) -> io::Result<Vec<SocketAddr>> {
    let host = host.to_owned();
    within(&LOOKUPS, registry, move || Ok((host.as_str(), 0).to_socket_addrs()?.collect())).await
}

async fn within<T: Send + 'static>(
    lookups: &Threads<Arc<str>>,
    registry: &Arc<str>,
    lookup: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    lookups.run(registry, "looking up a registry's name", lookup).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn a_lookup_has_its_place_until_it_is_over() {
        let one = Arc::new(Threads::with_pool("lookup", CrowdLimits { of_one: 1, of_all: 1 }, 1));
        let registry: Arc<str> = "a.b".into();
        let (answer, answered) = mpsc::channel();
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (lookups, of) = (Arc::clone(&one), Arc::clone(&registry));
        let given_up = tokio::spawn(async move {
            let lookup = move || {
                begun.send(()).ok();
                answered.recv().map_err(io::Error::other)
            };
            within(&lookups, &of, lookup).await
        });
        has_begun.await.unwrap();
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        assert_eq!(one.pooled(), 1);
        answer.send(()).unwrap();
        assert_eq!(within(&one, &registry, || Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn names_that_one_registry_leads_to_hold_up_its_own_pulls() {
        let (slow, other): (Arc<str>, Arc<str>) = ("slow.test".into(), "other.test".into());
        let mut ends = Vec::new();
        let hang = || {
            let (end, until) = mpsc::channel::<()>();
            ends.push(end);
            Box::pin(within(&LOOKUPS, &slow, move || until.recv().map_err(io::Error::other)))
        };
        let mut hanging: Vec<_> = std::iter::repeat_with(hang).take(LIMITS.of_all).collect();
        assert!(hanging.iter_mut().all(|lookup| lookup.now_or_never().is_none()));
        let looked_up = within(&LOOKUPS, &other, || Ok(7));
        let looked_up = tokio::time::timeout(std::time::Duration::from_secs(20), looked_up).await;
        assert_eq!(looked_up.expect("it waits for another registry's names").unwrap(), 7);
    }

    #[tokio::test]
    async fn addresses_are_the_systems() {
        let registry: Arc<str> = "registry.test".into();
        let found = addresses("localhost", &registry).await.unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()));
        assert!(addresses("no such host", &registry).await.is_err());
    }
}
