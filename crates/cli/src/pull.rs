//! `wharf pull`, and the pull of an image that `wharf run` needs: with a progress bar for each layer on a terminal.

use std::collections::HashMap;
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use wharf_cri_api::admin::layer::Phase;
use wharf_cri_api::admin::{Layer, PullProgressRequest, PullProgressResponse};
use wharf_cri_api::v1::{AuthConfig, ImageSpec, PullImageRequest};

use crate::args::Pull;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::output::{self, Output};
use crate::{credentials, signals, units};

/// The template of a progress bar whose end is known.
pub(crate) const BAR: &str = "  {prefix}  {bar:30}  {msg}";

/// What `wharf pull --json` prints.
#[derive(Debug, Serialize)]
struct Pulled<'a> {
    image: &'a str,
    id: &'a str,
}

pub(crate) async fn command(daemon: &mut Daemon, output: Output, pull: Pull) -> Result<(), Error> {
    // While a password is typed, a terminal is silent, and must not stay so.
    signals::or_cut(Box::pin(pull_one(daemon, output, pull))).await
}

async fn pull_one(daemon: &mut Daemon, output: Output, pull: Pull) -> Result<(), Error> {
    let Pull { image, creds } = pull;
    let auth = match creds {
        Some(creds) => Some(creds.complete().await?),
        None => credentials::stored(&image)?,
    };
    let (id, image) = (fetch(daemon, &image, auth).await?, &image);
    output.result(&Pulled { image, id: &id }, &format!("{}\n", units::short(&id)))
}

/// Pulls an image, shows the progress, and returns the image's id.
pub(crate) async fn fetch(
    daemon: &mut Daemon,
    image: &str,
    auth: Option<AuthConfig>,
) -> Result<String, Error> {
    let begun = Instant::now();
    if !output::is_watched() {
        output::report(&format!("pulling {image}"));
    }
    let spec = Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() });
    let request = PullImageRequest { image: spec, auth, ..PullImageRequest::default() };
    let mut images = daemon.images.clone();
    let pull = images.pull_image(request);
    let shown = show(daemon.clone(), image.to_owned());
    tokio::pin!(pull, shown);
    let pulled = tokio::select! {
        pulled = &mut pull => pulled,
        // It completes only if there is nothing to show.
        () = &mut shown => pull.await,
    };
    let id = pulled.map_err(|status| refusal(image, status))?.into_inner().image_ref;
    output::report(&format!("pulled {image} in {:.1} s", begun.elapsed().as_secs_f32()));
    Ok(id)
}

fn refusal(image: &str, status: Status) -> Error {
    if status.code() == Code::PermissionDenied {
        return Error::Login { image: image.to_owned(), message: status.message().to_owned() };
    }
    Error::call(format!("cannot pull {image}"))(status)
}

/// Draws the progress bars of a pull as long as it is polled. An older daemon may not report progress; that is not an
/// error.
async fn show(mut daemon: Daemon, image: String) {
    let Ok(states) = daemon.admin.pull_progress(PullProgressRequest { image }).await else { return };
    let mut states = states.into_inner();
    let mut bars = Bars::new();
    while let Some(Ok(state)) = states.next().await {
        bars.update(&state);
    }
}

/// A progress bar for each layer; dropping this clears them.
#[derive(Debug)]
pub(crate) struct Bars {
    screen: MultiProgress,
    layers: HashMap<String, ProgressBar>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        // Nothing is drawn unless standard error is a terminal.
        Self { screen: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), layers: HashMap::new() }
    }

    fn update(&mut self, state: &PullProgressResponse) {
        state.pulls.iter().flat_map(|pull| &pull.layers).for_each(|layer| self.layer(layer));
    }

    pub(crate) fn layer(&mut self, layer: &Layer) {
        let screen = &self.screen;
        let bar = self.layers.entry(layer.digest.clone()).or_insert_with(|| screen.add(new_bar(layer)));
        bar.set_position(layer.done_bytes);
        bar.set_message(describe(layer));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.layers.values().for_each(ProgressBar::finish_and_clear);
    }
}

fn new_bar(layer: &Layer) -> ProgressBar {
    let bar = ProgressBar::no_length().with_prefix(units::short(&layer.digest).to_owned());
    bar.set_length(layer.total_bytes);
    styled(bar, BAR)
}

/// Gives a progress bar a template, in the style of all of them.
pub(crate) fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_malformed) => bar,
    }
}

/// What is happening to a layer.
fn describe(layer: &Layer) -> String {
    let total = units::size(layer.total_bytes);
    match layer.phase() {
        Phase::Waiting => "waiting".into(),
        Phase::Downloading => format!("{} of {total}", units::size(layer.done_bytes)),
        Phase::Unpacking => "unpacking".into(),
        Phase::Done => format!("{total}, done"),
        Phase::Exists => "exists".into(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::signal::unix::SignalKind;

    use super::*;
    use crate::daemon;
    use crate::signals::tests::{end, turn};

    #[tokio::test]
    async fn a_signal_ends_a_pull_with_a_login() {
        let _turn = turn().await;
        let (mut daemon, _socket) = daemon::tests::silent().await;
        let pull = Pull { image: "busybox".into(), creds: Some("me:secret".parse().unwrap()) };
        let pulling = command(&mut daemon, Output::new(false), pull);
        let ended = end(Box::pin(pulling), &[SignalKind::interrupt()]).await;
        assert!(matches!(ended, Err(Error::Interrupted { .. })), "{ended:?}");
    }

    #[test]
    fn a_layer_is_described() {
        let layer = |phase: Phase| Layer {
            digest: "sha256:abc".into(),
            total_bytes: 10 << 20,
            done_bytes: 1 << 20,
            phase: phase.into(),
        };
        let told = [Phase::Waiting, Phase::Downloading, Phase::Done].map(|phase| describe(&layer(phase)));
        assert_eq!(told, ["waiting", "1.0 MiB of 10.0 MiB", "10.0 MiB, done"]);
    }

    #[test]
    fn each_layer_has_one_bar() {
        let mut bars = Bars::new();
        let layer = |done_bytes| Layer { digest: "sha256:a".into(), total_bytes: 9, done_bytes, phase: 1 };
        for done in [1, 5, 9] {
            let pull = wharf_cri_api::admin::Pull { image: String::new(), layers: vec![layer(done)] };
            bars.update(&PullProgressResponse { pulls: vec![pull] });
        }
        assert_eq!(bars.layers.len(), 1);
        assert_eq!(bars.layers["sha256:a"].position(), 9);
    }
}
