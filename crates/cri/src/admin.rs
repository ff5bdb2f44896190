//! The daemon's own small service beside the CRI's two: what the command line shows people.

use std::sync::Arc;
use std::time::Duration;

use tokio_stream::StreamExt;
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status};
use wharf_cri_api::admin::admin_server::Admin as AdminService;
use wharf_cri_api::admin::layer::Phase as WirePhase;
use wharf_cri_api::admin::{
    InfoRequest, InfoResponse, Layer, Pull, PullProgressRequest, PullProgressResponse,
};
use wharf_registry::{LayerProgress, Phase, Puller};
use wharf_types::{ErrorKind, Reference};

use crate::runtime::Streamed;
use crate::status;

/// How often a listener is told: smooth for an eye, cheap for a daemon.
const PERIOD: Duration = Duration::from_millis(100);

/// The service over what the daemon knows of itself, which does not change, and the pulls.
#[derive(Debug, Clone)]
pub struct Admin {
    info: InfoResponse,
    puller: Arc<Puller>,
}

impl Admin {
    /// Makes the service.
    #[must_use]
    pub fn new(info: InfoResponse, puller: Arc<Puller>) -> Self {
        Self { info, puller }
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
    type PullProgressStream = Streamed<PullProgressResponse>;

    async fn info(&self, _request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn pull_progress(
        &self,
        request: Request<PullProgressRequest>,
    ) -> Result<Response<Self::PullProgressStream>, Status> {
        let image = request.into_inner().image;
        let parsed = (!image.is_empty()).then(|| image.parse::<Reference>()).transpose();
        let wanted = parsed.map_err(|error| status::of(ErrorKind::InvalidArgument, &error))?;
        let puller = Arc::clone(&self.puller);
        let ticks = IntervalStream::new(tokio::time::interval(PERIOD));
        let states = ticks.map(move |_tick| Ok(progress(&puller, wanted.as_ref())));
        Ok(Response::new(Box::pin(states)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin(dir: &tempfile::TempDir) -> Admin {
        let store = Arc::new(wharf_images::Store::open(dir.path()).unwrap());
        Admin::new(InfoResponse::default(), Arc::new(Puller::new(store, wharf_registry::Config::default())))
    }

    #[tokio::test]
    async fn a_listener_is_told_at_once_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request::new(PullProgressRequest { image: "nginx".into() });
        let mut states = admin(&dir).pull_progress(request).await.unwrap().into_inner();
        for _ in 0..2 {
            assert_eq!(states.next().await.unwrap().unwrap(), PullProgressResponse::default());
        }
    }

    #[tokio::test]
    async fn a_name_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let request = Request::new(PullProgressRequest { image: "NOT AN IMAGE".into() });
        let refused = admin(&dir).pull_progress(request).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
