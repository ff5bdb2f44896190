//! A store and a puller of the test's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use wharf_images::{Image, Store};
use wharf_registry::{AuthFields, Config, Credentials, HostFiles, Limits, PullError, Puller};
use wharf_types::Reference;

pub(crate) struct World {
    dir: TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) puller: Puller,
}

/// Limits with timeouts so short that a test can wait for them.
pub(crate) fn short() -> Limits {
    Limits {
        dial_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(200),
        backoff: Duration::from_millis(1),
        backoff_limit: Duration::from_millis(20),
        retries: 2,
        resumes: 3,
        ..Limits::default()
    }
}

/// Limits with timeouts that never expire within a test.
pub(crate) fn patient() -> Limits {
    Limits { stall_timeout: Duration::from_secs(60), ..short() }
}

/// A directory of `hosts.toml` files alone.
pub(crate) fn certificates(certs: PathBuf) -> HostFiles {
    HostFiles { certs_dirs: vec![certs], ..HostFiles::default() }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(patient(), &[])
    }

    /// A world with files, by name, in the directory of hosts.
    pub(crate) fn with(limits: Limits, hosts: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs.d");
        for (name, text) in hosts {
            let path = certs.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let store = Arc::new(Store::open(&dir.path().join("store")).unwrap());
        let config = Config { files: certificates(certs), limits, ..Config::default() };
        let puller = Puller::new(Arc::clone(&store), config);
        Self { dir, store, puller }
    }

    /// The same world after a restart of the process.
    pub(crate) fn restarted(self) -> Self {
        let Self { dir, store, puller } = self;
        drop((store, puller));
        let store = Arc::new(Store::open(&dir.path().join("store")).unwrap());
        let config = Config { limits: patient(), ..Config::default() };
        let puller = Puller::new(Arc::clone(&store), config);
        Self { dir, store, puller }
    }

    pub(crate) async fn pull(&self, reference: &Reference) -> Result<Arc<Image>, Arc<PullError>> {
        self.puller.pull(reference, None).await
    }

    /// The error of a pull that must fail, with its whole chain.
    pub(crate) async fn fail(&self, reference: &Reference) -> (Arc<PullError>, String) {
        let error = self.pull(reference).await.expect_err("the pull should fail");
        let text = wharf_types::chain(&*error);
        (error, text)
    }

    /// Waits until nothing of any pull is on disk or visible. Threads that unpack notice a moment later than the pull's
    /// future that nobody waits for them.
    pub(crate) async fn emptied(&self) {
        let emptied = async {
            while !self.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), emptied).await.expect("something stays");
    }

    fn is_empty(&self) -> bool {
        let count = |name: &str| {
            let path = self.dir.path().join("store").join(name);
            std::fs::read_dir(path).unwrap().count()
        };
        self.store.list().is_empty() && count("staging") == 0 && count("layers") == 0 && count("images") == 0
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

pub(crate) fn password(user: &str, word: &str) -> Option<Credentials> {
    let fields = AuthFields { username: user.into(), password: word.into(), ..AuthFields::default() };
    Credentials::from_fields(fields).unwrap()
}

/// The content of a file of an image, from the highest layer that has it.
pub(crate) fn file_of(image: &Image, name: &str) -> Vec<u8> {
    let found = image.layers().iter().map(|layer| layer.join(name)).find(|path| path.exists());
    std::fs::read(found.expect("no layer has the file")).unwrap()
}
