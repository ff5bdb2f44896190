//! Pulls: each runs once for all callers that want it, as long as any of them waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;
use wharf_images::{Image, Store};
use wharf_types::Reference;
use wharf_types::lock::lock;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::error::PullError;
use crate::flights::Flights;
use crate::progress::{PullProgress, Tracker};
use crate::pull::Pull;
use crate::tls::system_roots;

/// How many images are assembled and made durable at a time.
const COMMITS_LIMIT: usize = 8;

pub(crate) type PullResult = Result<Arc<Image>, Arc<PullError>>;
type Key = (Reference, Option<Credentials>);

/// Pulls images into a store. Clones are the same puller.
#[derive(Debug, Clone)]
pub struct Puller {
    shared: Arc<PullerShared>,
}

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct PullerShared {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) flights: Flights,
    /// Permits for the layers that download at a time, in all pulls.
    pub(crate) downloads: Arc<Semaphore>,
    /// Permits for commits: an image whose layers take long to assemble must not hold up the others.
    pub(crate) commits: Arc<Semaphore>,
    roots: OnceLock<rustls::RootCertStore>,
    active: Mutex<Active>,
}

#[derive(Debug, Default)]
struct Active {
    pulls: HashMap<Key, Entry>,
    serial: u64,
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    flight: WeakShared<BoxFuture<'static, PullResult>>,
    tracker: Weak<Tracker>,
}

impl Puller {
    /// Makes a puller. It does nothing before the first pull.
    #[must_use]
    pub fn new(store: Arc<Store>, config: Config) -> Self {
        let downloads = Arc::new(Semaphore::new(config.limits.layers_in_all.max(1)));
        let shared = PullerShared {
            store: Arc::unwrap_or_clone(store),
            config,
            flights: Flights::default(),
            downloads,
            commits: Arc::new(Semaphore::new(COMMITS_LIMIT)),
            roots: OnceLock::new(),
            active: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Pulls an image, or joins a running pull of the same reference with equal credentials. An image that is already
    /// here is fetched again only as far as its manifest. Dropping the future gives up the wait; the pull itself ends
    /// when nobody waits for it any more, and leaves whole layers, which stay a few hours for a retry.
    ///
    /// # Errors
    /// [`PullError`], the same for all callers that waited.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Image>, Arc<PullError>> {
        self.join((reference.clone(), credentials)).await
    }

    /// The progress of the running pulls, in no particular order.
    #[must_use]
    pub fn active(&self) -> Vec<PullProgress> {
        let active = self.shared.lock();
        let trackers: Vec<_> = active.pulls.values().filter_map(|entry| entry.tracker.upgrade()).collect();
        drop(active);
        trackers.iter().map(|tracker| tracker.snapshot()).collect()
    }

    fn join(&self, key: Key) -> Shared<BoxFuture<'static, PullResult>> {
        let mut active = self.shared.lock();
        if let Some(flight) = active.pulls.get(&key).and_then(|entry| entry.flight.upgrade()) {
            return flight;
        }
        active.serial += 1;
        let serial = active.serial;
        let tracker = Arc::new(Tracker::new(key.0.clone()));
        let pull = Pull::new(Arc::clone(&self.shared), key.clone(), Arc::clone(&tracker));
        let departure = Departure { shared: Arc::clone(&self.shared), key: key.clone(), serial };
        let flight = async move {
            let _departure = departure;
            pull.run().await.map_err(Arc::new)
        };
        let flight = flight.boxed().shared();
        // A future that has never been polled can always be downgraded.
        if let Some(weak) = flight.downgrade() {
            active.pulls.insert(key, Entry { serial, flight: weak, tracker: Arc::downgrade(&tracker) });
        }
        flight
    }
}

impl PullerShared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Active> {
        lock(&self.active)
    }

    /// The system's root certificates, read once: there are hundreds of them. Blocking.
    pub(crate) fn roots(&self) -> &rustls::RootCertStore {
        self.roots.get_or_init(system_roots)
    }
}

/// Takes a pull off the list when it ends, however it ends.
struct Departure {
    shared: Arc<PullerShared>,
    key: Key,
    serial: u64,
}

impl Drop for Departure {
    fn drop(&mut self) {
        let mut active = self.shared.lock();
        // The key may already belong to a successor.
        if active.pulls.get(&self.key).is_some_and(|entry| entry.serial == self.serial) {
            active.pulls.remove(&self.key);
        }
    }
}
