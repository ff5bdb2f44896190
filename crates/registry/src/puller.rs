//! Pulls: each runs once for all callers that want it, as long as any of them waits.
//!
//! Two pulls are the same if their reference and their credentials are: nobody gets an image by way of another's
//! password. What a pull does is not here.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use wharf_images::{Image, Store};
use wharf_tasks::{Call, CrowdLimits, Joins, ThreadError, Threads};
use wharf_types::Reference;
use wharf_types::lock::lock;

use crate::config::Config;
use crate::credentials::Credentials;
use crate::disks::Disks;
use crate::error::PullError;
use crate::explain::{Asked, NameError, explain};
use crate::flights::Flights;
use crate::hosts::{self, HostsError};
use crate::places::Room;
use crate::profile::ProfileError;
use crate::progress::{PullProgress, Tracker};
use crate::pull::Pull;
use crate::session::Session;
use crate::tls::system_roots;
use crate::totals::{PullFigures, Totals};

pub(crate) type PullResult = Result<Arc<Image>, Arc<PullError>>;
type Key = (Reference, Option<Credentials>);

/// Pulls images into a store. Clones are the same puller.
#[derive(Debug, Clone)]
pub struct Puller {
    pub(crate) shared: Arc<PullerShared>,
}

/// What all pulls share.
#[derive(Debug)]
pub(crate) struct PullerShared {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) flights: Flights,
    /// Room for downloads.
    pub(crate) room: Room,
    /// Threads that unpack layers while they arrive. A slow registry keeps its layer's for hours, so that they are not
    /// those of the pool, which everything else needs. The room for downloads bounds them.
    pub(crate) unpacking: Arc<Threads<()>>,
    /// Threads for what waits for a disk.
    pub(crate) disks: Arc<Disks>,
    roots: OnceLock<rustls::RootCertStore>,
    pulls: Joins<Key, PullResult>,
    pub(crate) profiles: Joins<Key, Result<(), Arc<ProfileError>>>,
    /// The pulls that are running, as lists show them.
    running: Mutex<Vec<Weak<Running>>>,
    totals: Arc<Totals>,
}

/// A running pull, as lists show it. It belongs to the pull, and ends with it.
#[derive(Debug)]
struct Running(Arc<Tracker>);

impl Puller {
    /// Makes a puller. It does nothing before the first pull.
    #[must_use]
    pub fn new(store: Arc<Store>, config: Config) -> Self {
        let room = Room::new(&config.limits);
        // What was given up needs a moment to end.
        let threads = room.limit().saturating_mul(2);
        let threads = CrowdLimits { of_one: threads, of_all: threads };
        let shared = PullerShared {
            store: Arc::unwrap_or_clone(store),
            config,
            flights: Flights::default(),
            room,
            unpacking: Arc::new(Threads::new("unpack", threads)),
            disks: Arc::default(),
            roots: OnceLock::new(),
            pulls: Joins::default(),
            profiles: Joins::default(),
            running: Mutex::default(),
            totals: Arc::default(),
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

    /// What an image's name may mean, in the order in which it is tried: one reference, unless the name has no registry
    /// and `registries.conf` names several for such names.
    ///
    /// # Errors
    /// [`NameError`].
    pub async fn names(&self, name: &str) -> Result<Vec<Reference>, NameError> {
        let reference: Reference = name.parse()?;
        if self.shared.config.files.registries_conf.is_none() || !hosts::is_short(name) {
            return Ok(vec![reference]);
        }
        let (shared, own) = (Arc::clone(&self.shared), name.to_owned());
        let read = move || hosts::candidates(&shared.config.files, &own);
        let names = self.shared.disks.meanings(&self.shared.config.files, read).await??;
        names.iter().map(|name| Ok(name.parse()?)).collect()
    }

    /// Which hosts would be asked for an image now, in order.
    ///
    /// # Errors
    /// [`NameError`].
    pub async fn explain(&self, reference: &Reference) -> Result<Vec<Asked>, NameError> {
        let (shared, own) = (Arc::clone(&self.shared), reference.clone());
        let read = move || explain(&shared.config, &own);
        Ok(self.shared.settings(reference, read).await??)
    }

    /// What is wrong with the files that have the settings of registries, and which do not exist.
    ///
    /// # Errors
    /// No thread could read them in time.
    pub async fn problems(&self) -> Result<Vec<String>, ThreadError> {
        let (shared, files) = (Arc::clone(&self.shared), &self.shared.config.files);
        let read = move || {
            let files = &shared.config.files;
            [files.problems(), files.missing()].concat()
        };
        self.shared.disks.settings("all", files, read).await
    }

    /// The progress of the running pulls, in no particular order.
    #[must_use]
    pub fn active(&self) -> Vec<PullProgress> {
        let running: Vec<_> = lock(&self.shared.running).iter().filter_map(Weak::upgrade).collect();
        running.iter().map(|pull| pull.0.snapshot()).collect()
    }

    /// What has become of all pulls since this was made; from memory.
    #[must_use]
    pub fn figures(&self) -> PullFigures {
        self.shared.totals.figures()
    }

    fn join(&self, key: Key) -> Call<PullResult> {
        self.shared.pulls.share(key.clone(), || {
            let running = self.shared.list(key.0.clone());
            let pull = Pull::new(Arc::clone(&self.shared), key, Arc::clone(&running.0));
            let counted = self.shared.totals.begin();
            async move {
                let _running = running;
                counted.ended(pull.run().await.map_err(Arc::new))
            }
        })
    }
}

impl PullerShared {
    /// Lists a pull that is about to run.
    fn list(&self, reference: Reference) -> Arc<Running> {
        let pull = Arc::new(Running(Arc::new(Tracker::new(reference, Arc::clone(&self.totals)))));
        let mut running = lock(&self.running);
        running.retain(|pull| pull.strong_count() > 0);
        running.push(Arc::downgrade(&pull));
        pull
    }

    /// Reads the settings of an image's registry, and opens a session with its hosts.
    pub(crate) async fn session(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Result<Session, HostsError>, ThreadError> {
        let (shared, own) = (Arc::clone(self), reference.clone());
        let open = move || Session::open(&shared.config, &own, credentials.as_ref(), shared.roots());
        self.settings(reference, open).await
    }

    /// Reads the files with settings of registries.
    async fn settings<T: Send + 'static>(
        &self,
        reference: &Reference,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        self.disks.settings(reference.host(), &self.config.files, read).await
    }

    /// The system's root certificates, read once: there are hundreds of them. Blocking.
    fn roots(&self) -> &rustls::RootCertStore {
        self.roots.get_or_init(system_roots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn slow_settings_of_docker_hold_up_no_name_without_a_registry() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("store")).unwrap());
        let mut config = Config::default();
        config.files.registries_conf = Some(dir.path().join("registries.conf"));
        let puller = Puller::new(store, config);
        let mut ends = Vec::new();
        // As many as there are places for all registries.
        for registry in ["docker.io", "a.b", "c.d", "e.f", "g.h", "i.j", "k.l", "m.n"].repeat(4) {
            let (end, until) = channel::<()>();
            ends.push(end);
            let files = &puller.shared.config.files;
            let slow = puller.shared.disks.settings(registry, files, move || until.recv());
            assert!(Box::pin(slow).as_mut().now_or_never().is_none());
        }
        let named = tokio::time::timeout(std::time::Duration::from_secs(20), puller.names("team/app")).await;
        assert_eq!(named.expect("it waits").unwrap(), ["team/app".parse().unwrap()]);
    }
}
