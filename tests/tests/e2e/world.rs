//! Everything that a test has: a daemon, a client of it, a registry with an image, and the check at the end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wharf_cri_api::v1::StatusRequest;

use crate::client::Client;
use crate::daemon::Daemon;
use crate::footprint::Footprint;
use crate::server::Server;
use crate::{layouts, place};

/// How long a wait may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a whole test may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What is remembered about the node itself outlives its pods.
const OF_THE_NODE: &str = "root/network/settings";

/// A test's world.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) daemon: Daemon,
    pub(crate) client: Client,
    /// Serves the image that the client's containers use.
    pub(crate) registry: Server,
    before: Footprint,
    descriptors: Vec<String>,
}

/// Runs a test in its own rig, with a daemon that has the image. Afterwards everything is removed, and nothing may be
/// left.
pub(crate) fn run(test: impl AsyncFnOnce(&mut World)) {
    run_on(|_dir| {}, test);
}

/// The same; `prepare` may change the test's directory before the daemon starts.
pub(crate) fn run_on(prepare: impl FnOnce(&Path), test: impl AsyncFnOnce(&mut World)) {
    let Some(dir) = place::enter() else { return };
    prepare(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let whole = async {
        let mut world = World::new(dir).await;
        test(&mut world).await;
        world.end().await;
    };
    // Boxed, because a test's future contains many requests.
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, Box::pin(whole)).await.expect("the test takes too long")
    });
}

impl World {
    async fn new(dir: PathBuf) -> Self {
        let layout = place::built().images.join("e2e-test-images/busybox");
        let registry = Server::honest(layouts::content(&layout)).await;
        let image = format!("{}/app:latest", registry.address);
        let daemon = Daemon::start(&dir);
        let client = Client::connect(&daemon.socket(), &image, &dir.join("logs")).await;
        let mut world =
            Self { dir, daemon, client, registry, before: Footprint::default(), descriptors: Vec::new() };
        world.await_ready().await;
        // CNI plugins that are asked at the start would count.
        until("no plugin runs", async || (!world.daemon.has_children()).then_some(())).await;
        world.before = world.footprint();
        world.descriptors = world.daemon.descriptors();
        world.client.pull(&image).await.unwrap();
        world
    }

    async fn await_ready(&self) {
        let ready = async || {
            let status = self.client.runtime.clone().status(StatusRequest::default()).await.ok()?;
            let conditions = status.into_inner().status?.conditions;
            conditions.iter().all(|condition| condition.status).then_some(())
        };
        until("wharfd is ready", ready).await;
    }

    /// Starts a daemon after one has exited, and waits until it responds.
    pub(crate) async fn start_again(&mut self) {
        self.daemon.start_again();
        self.connect().await;
    }

    /// Waits until a started daemon responds and is ready.
    pub(crate) async fn connect(&mut self) {
        self.reach().await;
        self.await_ready().await;
    }

    /// Waits until a started daemon responds.
    pub(crate) async fn reach(&mut self) {
        let image = self.client.image.clone();
        self.client = Client::connect(&self.daemon.socket(), &image, &self.dir.join("logs")).await;
    }

    /// What there is of wharf now.
    pub(crate) fn footprint(&self) -> Footprint {
        let (root, state) = (self.dir.join("root"), self.dir.join("state"));
        Footprint::take(&[self.daemon.pid()], &[&root, &state])
    }

    /// How many cgroups have these words in their paths.
    pub(crate) fn cgroups(&self, words: &str) -> usize {
        self.footprint().count(&["cgroup", words])
    }

    /// Removes every pod.
    pub(crate) async fn clear(&self) {
        for pod in self.client.pods().await {
            self.client.down(&pod.id).await.unwrap();
        }
        assert_eq!((self.client.pods().await, self.client.containers().await), (vec![], vec![]));
    }

    /// Waits until nothing exists except the image and what the daemon had before its first pod.
    pub(crate) async fn is_clean(&self) {
        self.clean(&["root/layers", "root/images", "root/content"]).await;
    }

    async fn clean(&self, fine: &[&str]) {
        let fine: Vec<String> = fine
            .iter()
            .chain([&OF_THE_NODE])
            .map(|name| format!("file {}", self.dir.join(name).display()))
            .collect();
        let start = Instant::now();
        loop {
            let mut left = self.footprint().beyond(&self.before);
            left.retain(|line| !fine.iter().any(|fine| line.starts_with(fine)));
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "this was left behind: {left:#?}");
            pause().await;
        }
    }

    /// Removes everything, and checks what is left: while the daemon lives, after it has exited, and after another
    /// start.
    async fn end(mut self) {
        self.clear().await;
        for image in self.client.image_list().await {
            self.client.remove_image(&image.id).await.unwrap();
        }
        self.clean(&[]).await;
        let settled = async || (self.daemon.descriptors() == self.descriptors).then_some(());
        drop(tokio::time::timeout(PATIENCE / 2, until("descriptors are closed", settled)).await);
        assert_eq!(self.daemon.descriptors(), self.descriptors, "descriptors of wharfd");
        let status = self.daemon.end().await;
        assert!(status.success(), "{status}");
        assert!(self.daemon.socket().exists(), "the next daemon needs no other file for it");
        self.start_again().await;
        self.clean(&[]).await;
        self.daemon.end().await;
    }
}

/// Polls until there is an answer.
///
/// # Panics
/// There is none in time.
pub(crate) async fn until<T>(what: &str, mut answer: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = answer().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        pause().await;
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}
