//! The steps of one pull: resolve → manifest of this platform → config → layers → commit.
//!
//! Each step checks what it got before the next one uses it. What is done twice by two pulls, such as the download of a
//! layer that both need, is shared by `puller`.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinSet, spawn_blocking};
use wharf_images::manifest::{
    Document, INDEX_NESTING_LIMIT, Manifest, ManifestError, Platform, select_platform,
};
use wharf_images::{Image, Layer, NewImage, parse_config};
use wharf_tasks::{Carried, ThreadError};
use wharf_types::trace::staged;
use wharf_types::{Digest, Reference, Traced};

use crate::credentials::Credentials;
use crate::disks::Disks;
use crate::error::{Failures, PullError, Stage};
use crate::flights::Flight;
use crate::layer::Job;
use crate::places::{Place, Places};
use crate::progress::{Phase, Tracker};
use crate::puller::PullerShared;
use crate::session::{Fetched, Resolved, Session};

/// One pull.
#[derive(Debug)]
pub(crate) struct Pull {
    shared: Arc<PullerShared>,
    reference: Reference,
    credentials: Option<Credentials>,
    tracker: Arc<Tracker>,
}

/// What is known once the documents have been fetched.
struct Plan {
    /// The digest that the reference was resolved to.
    resolved: Digest,
    manifest_bytes: Bytes,
    manifest_digest: Digest,
    manifest: Manifest,
    config: Bytes,
    diff_ids: Vec<Digest>,
}

impl Pull {
    pub(crate) fn new(
        shared: Arc<PullerShared>,
        (reference, credentials): (Reference, Option<Credentials>),
        tracker: Arc<Tracker>,
    ) -> Self {
        Self { shared, reference, credentials, tracker }
    }

    pub(crate) async fn run(self) -> Result<Arc<Image>, PullError> {
        let session = Arc::new(self.session().await?);
        let known = self.known();
        let mut resolved = self.resolve(&session, &known).await;
        if let Ok(Resolved::Known(digest)) = &resolved {
            if let Some(image) = self.whole(digest).await? {
                return Ok(image);
            }
            // It was removed in the meantime, or is damaged.
            resolved = self.resolve(&session, &[]).await;
        }
        let top = match resolved.map_err(self.fetching(Stage::Resolve))? {
            Resolved::Fetched(top) => top,
            Resolved::Known(_) => return Err(self.lost(Stage::Resolve)),
        };
        if let Some(image) = self.whole(&top.digest).await? {
            return Ok(image);
        }
        let plan = Arc::new(staged("manifest and config", self.plan(&session, top)).await?);
        self.tracker.begin(&plan.manifest.layers);
        let layers = staged("layers", self.layers(&session, &plan)).await?;
        staged("commit", self.commit(&plan, layers)).await
    }

    async fn resolve(&self, session: &Session, known: &[Digest]) -> Result<Resolved, Failures> {
        staged("resolve", session.resolve(&self.reference, known)).await
    }

    async fn session(&self) -> Result<Session, PullError> {
        let opened = self.shared.session(&self.reference, self.credentials.clone()).await;
        let opened = opened.map_err(self.threadless(Stage::Resolve))?;
        opened.map_err(|source| PullError::Hosts { reference: self.reference.clone(), source })
    }

    /// What the reference may resolve to that is here already: its digest, or the digests that the tag had before.
    fn known(&self) -> Vec<Digest> {
        if let Some(digest) = self.reference.digest() {
            return self.present(digest).map(|_image| digest.clone()).into_iter().collect();
        }
        let Some(image) = self.reference.tagged().and_then(|tag| self.shared.store.find(&tag)) else {
            return Vec::new();
        };
        let references = image.repo_digests().iter().filter_map(|text| text.parse::<Reference>().ok());
        let own = references.filter(|reference| reference.name() == self.reference.name());
        own.filter_map(|reference| reference.digest().cloned()).collect()
    }

    /// The image, if it is in the store under this name and with this digest.
    fn present(&self, resolved: &Digest) -> Option<Arc<Image>> {
        let image = self.shared.store.find(&self.reference.with_digest(resolved).to_string())?;
        let tag = self.reference.tagged();
        tag.is_none_or(|tag| image.repo_tags().contains(&tag)).then_some(image)
    }

    /// The same, unless it is damaged on disk: then the pull goes on, and stores it again.
    async fn whole(&self, resolved: &Digest) -> Result<Option<Arc<Image>>, PullError> {
        let Some(image) = self.present(resolved) else { return Ok(None) };
        let (registry, store) = (self.reference.host(), self.shared.store.clone());
        let what = ("reading the image", self.shared.store.root());
        let read = self.shared.disks.images(registry, what, move || store.is_whole(&image).then_some(image));
        read.await.map_err(self.threadless(Stage::Resolve))
    }

    async fn plan(&self, session: &Session, top: Fetched) -> Result<Plan, PullError> {
        let resolved = top.digest.clone();
        let (fetched, manifest) = self.manifest(session, top).await?;
        let config = match &manifest.artifact {
            Some(artifact) => Bytes::from(artifact.config().to_owned()),
            None => session.config_blob(&manifest.config).await.map_err(self.fetching(Stage::Config))?,
        };
        // Of a long config that takes a while.
        let bytes = config.clone();
        let parsed = spawn_blocking(move || parse_config(&bytes).map(|(_config, diff_ids)| diff_ids)).await;
        let parsed = parsed.map_err(|_ended| self.lost(Stage::Config))?;
        let diff_ids = parsed.map_err(self.unusable(Stage::Config))?;
        if diff_ids.len() != manifest.layers.len() {
            let reason =
                format!("{} layers in the manifest, {} in the config", manifest.layers.len(), diff_ids.len());
            return Err(self.unusable(Stage::Config)(ManifestError::Ambiguous { reason }));
        }
        let Fetched { bytes: manifest_bytes, digest: manifest_digest, .. } = fetched;
        Ok(Plan { resolved, manifest_bytes, manifest_digest, manifest, config, diff_ids })
    }

    /// Follows an index, or an index of indexes, to this platform's manifest.
    async fn manifest(&self, session: &Session, top: Fetched) -> Result<(Fetched, Manifest), PullError> {
        let platform = Platform::host();
        let mut fetched = top;
        for _level in 0..=INDEX_NESTING_LIMIT {
            let entries = match &fetched.document {
                Document::Manifest(manifest) => {
                    let manifest = manifest.clone();
                    return Ok((fetched, manifest));
                }
                Document::Index(entries) => entries,
            };
            let entry = select_platform(entries, &platform).map_err(self.unusable(Stage::Manifest))?.clone();
            fetched = session.entry(&entry).await.map_err(self.fetching(Stage::Manifest))?;
        }
        let reason = format!("more than {INDEX_NESTING_LIMIT} indexes in a row");
        Err(self.unusable(Stage::Manifest)(ManifestError::Ambiguous { reason }))
    }

    /// Ensures that every layer is present, each distinct one once. The first failure cancels the others.
    async fn layers(
        &self,
        session: &Arc<Session>,
        plan: &Plan,
    ) -> Result<Vec<(Layer, Arc<Flight>)>, PullError> {
        let places = Arc::new(self.shared.room.of_pull(&self.shared.config.limits, self.reference.host()));
        let mut seen = HashSet::new();
        let mut tasks = JoinSet::new();
        for (at, diff_id) in plan.diff_ids.iter().enumerate() {
            if !seen.insert(diff_id) {
                self.job(session, plan, at).enter(Phase::Exists);
                continue;
            }
            let job = self.job(session, plan, at);
            let fetch = Fetch::new(&self.shared, &places, job).run();
            tasks.spawn(Carried::by(Traced::here(), staged("layer", fetch)));
        }
        let mut layers = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            let layer = joined.map_err(|error| {
                tracing::error!(%error, "the task of a layer ended without a result");
                self.lost(Stage::Commit)
            })?;
            layers.push(layer?);
        }
        Ok(layers)
    }

    fn job(&self, session: &Arc<Session>, plan: &Plan, at: usize) -> Job {
        Job {
            store: self.shared.store.clone(),
            unpacking: Arc::clone(&self.shared.unpacking),
            session: Arc::clone(session),
            tracker: Arc::clone(&self.tracker),
            reference: self.reference.clone(),
            layer: plan.manifest.layers[at].clone(),
            diff_id: plan.diff_ids[at].clone(),
            form: plan.manifest.form(at),
            at,
            count: plan.diff_ids.len(),
        }
    }

    async fn commit(
        &self,
        plan: &Arc<Plan>,
        layers: Vec<(Layer, Arc<Flight>)>,
    ) -> Result<Arc<Image>, PullError> {
        let (store, plan, reference) = (self.shared.store.clone(), Arc::clone(plan), self.reference.clone());
        let commit = move || {
            // Other pulls can find a flight until its layer is in the store. Dropping the last reference may wait for
            // the disk.
            let (layers, _flights): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
            store.commit(NewImage {
                names: std::slice::from_ref(&reference),
                resolved: Some(&plan.resolved),
                manifest: &plan.manifest_bytes,
                manifest_digest: &plan.manifest_digest,
                config: &plan.config,
                layers,
                pinned: false,
            })
        };
        let committed = self.shared.disks.commit(commit).await.map_err(self.threadless(Stage::Commit))?;
        let (reference, stage) = (self.reference.clone(), Stage::Commit);
        committed.map_err(|source| PullError::Store { reference, stage, source })
    }

    fn fetching(&self, stage: Stage) -> impl FnOnce(Failures) -> PullError {
        let reference = self.reference.clone();
        move |failures| PullError::Fetch { reference, stage, failures }
    }

    fn unusable(&self, stage: Stage) -> impl FnOnce(ManifestError) -> PullError {
        let reference = self.reference.clone();
        move |source| PullError::Manifest { reference, stage, source }
    }

    fn threadless(&self, stage: Stage) -> impl FnOnce(ThreadError) -> PullError {
        let reference = self.reference.clone();
        move |source| PullError::Thread { reference, stage, source }
    }

    fn lost(&self, stage: Stage) -> PullError {
        PullError::Lost { reference: self.reference.clone(), stage }
    }
}

/// One layer of a pull: found in the store, taken from another pull, or downloaded.
struct Fetch {
    places: Arc<Places>,
    flight: Arc<Flight>,
    disks: Arc<Disks>,
    job: Job,
}

impl Fetch {
    fn new(shared: &PullerShared, places: &Arc<Places>, job: Job) -> Self {
        let flight = shared.flights.join(job.key());
        Self { places: Arc::clone(places), flight, disks: Arc::clone(&shared.disks), job }
    }

    async fn run(self) -> Result<(Layer, Arc<Flight>), PullError> {
        let mut place = None;
        loop {
            let Some(turn) = self.turn(place.as_ref()).await? else {
                place = None;
                continue;
            };
            if let Some(layer) = self.present().await? {
                self.job.enter(Phase::Exists);
                return Ok((layer, self.flight));
            }
            let Some(taken) = place.take().or_else(|| self.places.try_take()) else {
                // Another pull may have room now, and this one has to wait for its other layers, however slow.
                drop(turn);
                place = Some(self.places.take().await.ok_or_else(|| self.job.lost())?);
                continue;
            };
            // The permit is held until the layer is there for the next one in line.
            let turn = Arc::new(turn);
            match self.job.run(&taken, Arc::clone(&turn)).await {
                // The other layers go on, and this one waits for its pull's next place.
                Err(error) if error.is_overtaken() => tracing::debug!(%error, "a slow layer begins anew"),
                fetched => {
                    let layer = self.flight.land(fetched?);
                    drop((turn, taken));
                    self.job.enter(Phase::Done);
                    return Ok((Layer::Unpacked(layer), self.flight));
                }
            }
        }
    }

    /// The turn to fetch. Whoever has a place for it does not wait: another pull that has its turn is downloading, and
    /// the place is for who can use it.
    async fn turn(&self, place: Option<&Place>) -> Result<Option<OwnedSemaphorePermit>, PullError> {
        let turn = Arc::clone(&self.flight.turn);
        match place {
            Some(_) => Ok(turn.try_acquire_owned().ok()),
            None => turn.acquire_owned().await.map(Some).map_err(|_closed| self.job.lost()),
        }
    }

    /// The layer, if it need not be downloaded.
    async fn present(&self) -> Result<Option<Layer>, PullError> {
        if let Some(layer) = self.job.store.stored_layer(&self.job.diff_id) {
            return Ok(Some(layer));
        }
        if let Some(layer) = self.flight.landed() {
            return Ok(Some(Layer::Unpacked(layer)));
        }
        let (store, source) = (self.job.store.clone(), self.job.source());
        let what = ("looking for a layer that was kept", self.job.store.root());
        let registry = self.job.reference.host();
        let kept = self.disks.images(registry, what, move || store.kept_layer(&source)).await;
        let kept = kept.map_err(|source| self.job.threadless(source))?;
        Ok(kept.map(|kept| Layer::Unpacked(self.flight.land(kept))))
    }
}
