//! Work that waits for a disk on behalf of pulls: for the settings of registries, or for the images.
//!
//! Either disk may not respond, and whoever gives up a pull comes back with another. So the pulls of one registry have
//! only some of this work at a time, what has begun is in threads of its own but for a little, and nobody waits for it
//! for good: all of wharfd's blocking work shares the pool.

use std::path::Path;
use std::time::Duration;

use wharf_tasks::{CrowdLimits, ThreadError, Threads, pool};

use crate::hosts::HostFiles;

/// How often settings are read at a time, of one registry and in all.
const SETTINGS_LIMITS: CrowdLimits = CrowdLimits { of_one: 4, of_all: 32 };
/// How often it is read at a time what names without a registry mean. The places are apart from those for settings, in
/// which credential helpers may be waited for.
const MEANINGS_LIMITS: CrowdLimits = CrowdLimits { of_one: 4, of_all: 4 };
/// How much waits for the disk of images at a time, for the pulls of one registry and in all.
const IMAGES_LIMITS: CrowdLimits = CrowdLimits { of_one: 8, of_all: 64 };
/// How many images are assembled and made durable at a time. One whose layers take long must not hold up the others.
const COMMITS_LIMIT: usize = 8;
/// How long an image waits for that: all its layers have arrived, and a kubelet's pull has no deadline.
const COMMITS_PATIENCE: Duration = Duration::from_hours(1);

/// Threads for what waits for a disk, by registry.
#[derive(Debug)]
pub(crate) struct Disks {
    settings: Threads<String>,
    meanings: Threads<()>,
    images: Threads<String>,
    commits: Threads<()>,
}

impl Default for Disks {
    fn default() -> Self {
        let commits = CrowdLimits { of_one: COMMITS_LIMIT, of_all: COMMITS_LIMIT };
        Self {
            settings: Threads::with_pool("settings", SETTINGS_LIMITS, pool::SETTINGS),
            meanings: Threads::with_pool("names", MEANINGS_LIMITS, 0),
            images: Threads::with_pool("images", IMAGES_LIMITS, pool::IMAGES),
            commits: Threads::new("commit", commits).patient(COMMITS_PATIENCE),
        }
    }
}

impl Disks {
    /// Reads the settings of a registry, which are in these files.
    pub(crate) async fn settings<T: Send + 'static>(
        &self,
        registry: &str,
        files: &HostFiles,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        let what = format!("reading the settings of {registry} in {files}");
        self.settings.run_in_time(&registry.to_owned(), what, read).await
    }

    /// Reads what a name without a registry means, in these files.
    pub(crate) async fn meanings<T: Send + 'static>(
        &self,
        files: &HostFiles,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        let what = format!("reading what names without a registry mean in {files}");
        self.meanings.run_in_time(&(), what, read).await
    }

    /// Does something short on the disk of images, below this directory.
    pub(crate) async fn images<T: Send + 'static>(
        &self,
        registry: &str,
        (what, root): (&str, &Path),
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        let what = format!("{what} in {}", root.display());
        self.images.run_in_time(&registry.to_owned(), what, work).await
    }

    /// Assembles an image, which may take minutes.
    pub(crate) async fn commit<T: Send + 'static>(
        &self,
        commit: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        self.commits.run(&(), "assembling the image", commit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt as _;
    use wharf_types::{ErrorKind, Failure as _};

    /// The threads of a small pool, of which this work may have fewer.
    const POOL: usize = pool::SETTINGS + pool::IMAGES + 1;

    fn on_a_small_pool(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(POOL).build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn what_is_given_up_again_and_again_leaves_the_pool_to_others() {
        on_a_small_pool(async {
            let (disks, dirs) =
                (Disks::default(), HostFiles { certs_dirs: vec!["/certs".into()], ..HostFiles::default() });
            let mut ends = Vec::new();
            for _retry in 0..4 * POOL {
                let [(end, until), (other_end, other_until), (third_end, third_until)] =
                    [(); 3].map(|()| channel::<()>());
                ends.extend([end, other_end, third_end]);
                let read = disks.settings("a.b", &dirs, move || until.recv());
                assert!(Box::pin(read).as_mut().now_or_never().is_none());
                let read = disks.images("a.b", ("reading", Path::new("/images")), move || other_until.recv());
                assert!(Box::pin(read).as_mut().now_or_never().is_none());
                assert!(Box::pin(disks.commit(move || third_until.recv())).as_mut().now_or_never().is_none());
            }
            let other = tokio::task::spawn_blocking(|| 7);
            let other = tokio::time::timeout(Duration::from_secs(20), other).await;
            assert_eq!(other.expect("the pool is stuck").unwrap(), 7);
            disks.settings("c.d", &dirs, || ()).await.expect("another registry's are not held up");
            let root = Path::new("/images");
            disks.images("c.d", ("reading", root), || ()).await.expect("another registry's are not held up");
        });
    }

    #[test]
    fn images_that_take_minutes_make_no_other_one_fail() {
        on_a_small_pool(async {
            let (disks, (end, until)) = (Disks::default(), channel::<()>());
            let until = Arc::new(Mutex::new(until));
            let slow = || {
                let until = Arc::clone(&until);
                Box::pin(disks.commit(move || until.lock().unwrap().recv().unwrap_err()))
            };
            let mut slow: Vec<_> = (0..COMMITS_LIMIT).map(|_| slow()).collect();
            assert!(slow.iter_mut().all(|commit| commit.now_or_never().is_none()));
            let mut next = Box::pin(disks.commit(|| 7));
            tokio::time::pause();
            for _minute in 0..30 {
                assert!((&mut next).now_or_never().is_none());
                tokio::time::advance(Duration::from_mins(1)).await;
            }
            tokio::time::resume();
            drop(end);
            assert_eq!(next.await.unwrap(), 7);
        });
    }

    #[test]
    fn what_does_not_respond_is_named() {
        on_a_small_pool(async {
            let dirs = HostFiles {
                certs_dirs: vec!["/certs".into(), "/more".into()],
                registries_conf: Some("/registries.conf".into()),
                auth_files: vec!["/auth.json".into()],
            };
            let disks = Disks::default();
            let (_end, until) = channel::<()>();
            tokio::time::pause();
            let stuck = disks.settings("a.b", &dirs, move || until.recv());
            let mut stuck = Box::pin(stuck);
            assert!(stuck.as_mut().now_or_never().is_none());
            // Time does not pass by itself while a thread of the pool is at work.
            tokio::time::advance(Duration::from_secs(91)).await;
            let stuck = stuck.await.unwrap_err();
            let named = "reading the settings of a.b in /certs, /more, /registries.conf and /auth.json: no result within 90 s: wharf doctor ";
            assert!(stuck.to_string().starts_with(named), "{stuck}");
            assert_eq!(stuck.kind(), ErrorKind::Unavailable);
        });
    }
}
