//! wharfd's own small service beside the CRI's two: what the command line shows to people, and images without a
//! registry.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status, Streaming};
use wharf_cri_api::admin::admin_server::Admin as AdminService;
use wharf_cri_api::admin::layer::Phase as WirePhase;
use wharf_cri_api::admin::{
    ExplainRegistryRequest, ExplainRegistryResponse, InfoRequest, InfoResponse, Layer, LoadRequest,
    LoadResponse, NameMeaning, PodRequest, Pull, PullProgressRequest, PullProgressResponse, RegistryHost,
    RequestsRequest, SaveRequest, SaveResponse, TagRequest, TagResponse, UntagRequest, UntagResponse,
};
use wharf_images::Store;
use wharf_pods::Engine;
use wharf_registry::{Asked, LayerProgress, NameError, Phase, Puller};
use wharf_tasks::ThreadError;
use wharf_types::{Reference, ReferenceError, chain};

use crate::archives::Archives;
use crate::image::change;
use crate::names::Names;
use crate::readings::Shared;
use crate::runtime::Streamed;
use crate::status::{self, Fault};
use crate::view::pod_request;

/// How often a client gets an update: smooth for the eye, cheap for the daemon.
const PERIOD: Duration = Duration::from_millis(100);
/// How long people who ask the daemon about itself wait for a disk.
const INFO_PATIENCE: Duration = Duration::from_secs(10);
/// What they ask for.
const INFO: &str = "gathering what wharf info shows";

/// The service, with what the daemon knows about itself and the pulls.
#[derive(Clone)]
pub struct Admin {
    info: Arc<dyn Fn() -> InfoResponse + Send + Sync>,
    known: Arc<Shared<InfoResponse>>,
    engine: Arc<Engine>,
    puller: Arc<Puller>,
    store: Arc<Store>,
    names: Names,
    archives: Archives,
    ending: Arc<AtomicBool>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("puller", &self.puller).finish_non_exhaustive()
    }
}

impl Admin {
    /// Makes the service; `info` returns the daemon's present information, and may wait for a disk.
    #[must_use]
    pub fn new(
        info: impl Fn() -> InfoResponse + Send + Sync + 'static,
        engine: Arc<Engine>,
        puller: Arc<Puller>,
        store: Arc<Store>,
    ) -> Self {
        let archives = Archives::new(Arc::clone(&store));
        let names = Names::new(Arc::clone(&store), Arc::clone(&puller));
        let known = Arc::new(Shared::on_pool(INFO));
        Self { info: Arc::new(info), known, engine, puller, store, names, archives, ending: Arc::default() }
    }

    /// Ends the streams of progress, which otherwise end only when their clients leave.
    pub fn end_progress(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }
}

/// The state of the pulls of one image, or of all.
fn progress(puller: &Puller, wanted: Option<&Reference>) -> PullProgressResponse {
    let active = puller.active().into_iter();
    let chosen = active.filter(|pull| wanted.is_none_or(|wanted| pull.reference == *wanted));
    let pulls = chosen.map(|pull| Pull {
        image: pull.reference.to_string(),
        layers: pull.layers.into_iter().map(layer).collect(),
    });
    PullProgressResponse { pulls: pulls.collect() }
}

fn layer(layer: LayerProgress) -> Layer {
    let phase = match layer.phase {
        Phase::Waiting => WirePhase::Waiting,
        Phase::Downloading => WirePhase::Downloading,
        Phase::Unpacking => WirePhase::Unpacking,
        Phase::Done => WirePhase::Done,
        Phase::Exists => WirePhase::Exists,
    };
    Layer {
        digest: layer.digest.to_string(),
        total_bytes: layer.total_bytes,
        done_bytes: layer.done_bytes,
        phase: phase.into(),
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    type RequestsStream = Streamed<PodRequest>;
    type PullProgressStream = Streamed<PullProgressResponse>;
    type LoadStream = Streamed<LoadResponse>;
    type SaveStream = Streamed<SaveResponse>;

    async fn info(&self, _request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let info = Arc::clone(&self.info);
        let (known, registry_problems) =
            tokio::join!(known(self.known.take(move || info())), registry_problems(self.puller.problems()));
        let info = InfoResponse { registry_problems, ..known.map_err(status::of)? };
        Ok(Response::new(info))
    }

    async fn requests(
        &self,
        request: Request<RequestsRequest>,
    ) -> Result<Response<Self::RequestsStream>, Status> {
        let id = request.into_inner().pod_id;
        let pods = match id.as_str() {
            "" => self.engine.pods(),
            id => vec![self.engine.pod(id).map_err(status::of)?],
        };
        // Built one by one as the client takes them: all of them together may be long.
        let requests = pods.into_iter().map(|pod| {
            let containers = pod.containers().iter().map(|container| container.facts()).collect();
            Ok(pod_request(&pod.facts(), containers))
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(requests))))
    }

    async fn pull_progress(
        &self,
        request: Request<PullProgressRequest>,
    ) -> Result<Response<Self::PullProgressStream>, Status> {
        let wanted = wanted(&request.into_inner().image)?;
        let states = states(Arc::clone(&self.puller), Arc::clone(&self.ending), wanted);
        Ok(Response::new(states))
    }

    async fn load(
        &self,
        request: Request<Streaming<LoadRequest>>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        Ok(Response::new(self.archives.load(request.into_inner())))
    }

    async fn save(&self, request: Request<SaveRequest>) -> Result<Response<Self::SaveStream>, Status> {
        let mut images = request.into_inner().images;
        if images.is_empty() {
            return Err(status::of(Fault::empty("images")));
        }
        for image in &mut images {
            *image = self.names.here(std::mem::take(image)).await?;
        }
        Ok(Response::new(self.archives.save(images)))
    }

    async fn tag(&self, request: Request<TagRequest>) -> Result<Response<TagResponse>, Status> {
        let TagRequest { image, name } = request.into_inner();
        let name: Reference = name.parse().map_err(|error: ReferenceError| status::of(error))?;
        let found = self.names.here(image.clone()).await?;
        let tagged = change(&self.store, "naming an image", move |store| store.tag(&found, &name)).await?;
        if tagged { Ok(Response::new(TagResponse {})) } else { Err(no_image(&image)) }
    }

    async fn untag(&self, request: Request<UntagRequest>) -> Result<Response<UntagResponse>, Status> {
        let text = request.into_inner().name;
        let name = self.names.here(text.clone()).await?;
        let name: Reference = name.parse().map_err(|error: ReferenceError| status::of(error))?;
        let untagged =
            change(&self.store, "removing a name of an image", move |store| store.untag(&name)).await?;
        if untagged { Ok(Response::new(UntagResponse {})) } else { Err(no_image(&text)) }
    }

    async fn explain_registry(
        &self,
        request: Request<ExplainRegistryRequest>,
    ) -> Result<Response<ExplainRegistryResponse>, Status> {
        let mut meanings = Vec::new();
        for reference in self.puller.names(&request.into_inner().image).await.map_err(status::of)? {
            meanings.push(meaning(&reference, self.puller.explain(&reference).await));
        }
        Ok(Response::new(ExplainRegistryResponse { meanings }))
    }
}

/// What the daemon knows about itself, if it is known in time.
async fn known(
    reading: impl Future<Output = Result<InfoResponse, ThreadError>>,
) -> Result<InfoResponse, ThreadError> {
    let advice = "the disk with the files of devices or hooks may not respond";
    let stuck = || ThreadError::Stuck { what: INFO.into(), patience: INFO_PATIENCE, advice };
    timeout(INFO_PATIENCE, reading).await.unwrap_or_else(|_elapsed| Err(stuck()))
}

/// What is wrong with the settings of registries; that they cannot be read in time is among it.
async fn registry_problems(reading: impl Future<Output = Result<Vec<String>, ThreadError>>) -> Vec<String> {
    match timeout(INFO_PATIENCE, reading).await {
        Ok(Ok(problems)) => problems,
        Ok(Err(error)) => vec![chain(&error)],
        Err(_elapsed) => vec![format!(
            "the files with the settings of registries could not be read within {} s: their disk may not respond",
            INFO_PATIENCE.as_secs()
        )],
    }
}

fn meaning(reference: &Reference, asked: Result<Vec<Asked>, NameError>) -> NameMeaning {
    let image = reference.to_string();
    match asked {
        Ok(hosts) => {
            NameMeaning { image, hosts: hosts.into_iter().map(host).collect(), problem: String::new() }
        }
        Err(error) => NameMeaning { image, hosts: Vec::new(), problem: chain(&error) },
    }
}

fn host(asked: Asked) -> RegistryHost {
    let texts = |paths: Vec<PathBuf>| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    RegistryHost {
        url: asked.url,
        is_mirror: asked.is_mirror,
        capabilities: asked.capabilities.into_iter().map(str::to_owned).collect(),
        file: asked.file.map(|file| file.to_string_lossy().into_owned()).unwrap_or_default(),
        authorities: texts(asked.authorities),
        client_certificates: texts(asked.client_certificates),
        proof: asked.proof.to_owned(),
        proxy: asked.proxy.unwrap_or_default(),
        credentials: asked.credentials.unwrap_or_default(),
    }
}

fn no_image(name: &str) -> Status {
    status::of(Fault::NoImage { name: name.chars().take(300).collect() })
}

/// The requested image, if one is named.
fn wanted(image: &str) -> Result<Option<Reference>, Status> {
    let parsed = (!image.is_empty()).then(|| image.parse::<Reference>()).transpose();
    parsed.map_err(status::of)
}

/// The state of the pulls, at intervals, until the daemon exits.
fn states(
    puller: Arc<Puller>,
    ending: Arc<AtomicBool>,
    wanted: Option<Reference>,
) -> Streamed<PullProgressResponse> {
    let ticks = IntervalStream::new(tokio::time::interval(PERIOD));
    let ticks = ticks.take_while(move |_tick| !ending.load(Ordering::Relaxed));
    Box::pin(ticks.map(move |_tick| Ok(progress(&puller, wanted.as_ref()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_sent_changes_until_the_daemon_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(wharf_images::Store::open(dir.path()).unwrap());
        let puller = Arc::new(Puller::new(store, wharf_registry::Config::default()));
        let ending = Arc::new(AtomicBool::new(false));
        let mut states = states(puller, Arc::clone(&ending), wanted("nginx").unwrap());
        for _ in 0..2 {
            assert_eq!(states.next().await.unwrap().unwrap(), PullProgressResponse::default());
        }
        ending.store(true, Ordering::Relaxed);
        assert!(states.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_the_daemon_about_itself_need_not_wait_for_a_disk() {
        let [told] = &*registry_problems(std::future::pending()).await else { panic!("it says so once") };
        assert!(told.contains("could not be read within 10 s"), "{told}");
        let stuck = status::of(known(std::future::pending()).await.unwrap_err());
        assert_eq!(stuck.code(), tonic::Code::Unavailable);
        assert!(stuck.message().contains("no result within 10 s"), "{stuck}");
        let bad = async { Ok(vec!["bad".to_owned()]) };
        assert_eq!(registry_problems(bad).await, ["bad"]);
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        assert_eq!(wanted("NOT AN IMAGE").unwrap_err().code(), tonic::Code::InvalidArgument);
        assert!(wanted("").unwrap().is_none());
    }
}
