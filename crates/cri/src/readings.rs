//! Responses that are read from the kernel on request: on a few threads of the pool that all share, with slow readings
//! taken once for all callers that wait.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Mutex, Semaphore};
use tonic::Status;
use wharf_cri_api::v1::PodSandboxMetrics;

use crate::status::{self, Fault};

/// How many threads read at a time: however many callers there are, other work finds threads in the pool.
const THREADS: usize = 4;
/// How many items of a list are worth a thread.
const SHARE: usize = 16;

/// The threads and the shared readings.
#[derive(Debug, Clone)]
pub(crate) struct Readings {
    /// Permits for threads of the pool.
    turns: Arc<Semaphore>,
    /// How many threads share the items of one list: more threads than CPUs would only wait.
    at_once: usize,
    /// The metrics that were gathered last. Held while they are gathered: who comes meanwhile shares the result.
    metrics: Arc<Mutex<Option<Gathered>>>,
}

#[derive(Debug)]
struct Gathered {
    begun: Instant,
    metrics: Vec<PodSandboxMetrics>,
}

impl Readings {
    pub(crate) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            turns: Arc::new(Semaphore::new(THREADS)),
            at_once: processors.min(THREADS),
            metrics: Arc::default(),
        }
    }

    /// Reads on a thread of the pool, in turn. A reading for which nobody waits any more keeps its turn until it ends.
    pub(crate) async fn take<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read()
        });
        reading.await.map_err(|_panic| status::of(Fault::Panicked))
    }

    /// Reads each item of a list, in order; several threads share the items of a long one.
    pub(crate) async fn each<I, T>(
        &self,
        mut items: Vec<I>,
        read: impl Fn(&I) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, Status>
    where
        I: Send + 'static,
        T: Send + 'static,
    {
        let share = items.len().div_ceil(self.at_once).max(SHARE);
        let mut shares = Vec::new();
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(share));
            let (share, read) = (std::mem::replace(&mut items, rest), read.clone());
            shares.push(self.take(move || share.iter().map(read).collect::<Vec<_>>()));
        }
        Ok(futures_util::future::try_join_all(shares).await?.into_iter().flatten().collect())
    }

    /// The metrics of all pods, for which every process of theirs is examined. Callers that arrive while others are
    /// being served share one gathering, which begins after the last of them arrived.
    pub(crate) async fn metrics(
        &self,
        gather: impl FnOnce() -> Vec<PodSandboxMetrics> + Send + 'static,
    ) -> Result<Vec<PodSandboxMetrics>, Status> {
        let came = Instant::now();
        let mut last = self.metrics.lock().await;
        if let Some(gathered) = last.as_ref().filter(|gathered| gathered.begun >= came) {
            return Ok(gathered.metrics.clone());
        }
        let begun = Instant::now();
        let metrics = self.take(gather).await?;
        *last = Some(Gathered { begun, metrics: metrics.clone() });
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(flavor = "multi_thread")]
    async fn only_so_many_are_read_at_once() {
        let readings = Readings::new();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let read = || {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            readings.take(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
            })
        };
        futures_util::future::try_join_all((0..200).map(|_| read())).await.unwrap();
        assert!(most.load(Ordering::SeqCst) <= THREADS);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_item_of_a_list_is_read_in_its_order() {
        let readings = Readings::new();
        for length in [0, 1, SHARE, SHARE + 1, 1000] {
            let items: Vec<usize> = (0..length).collect();
            let read = readings.each(items.clone(), |item| item + 7).await.unwrap();
            assert_eq!(read, items.iter().map(|item| item + 7).collect::<Vec<_>>());
        }
        let failed = readings.each(vec![1, 0], |item| 1 / item).await;
        assert_eq!(failed.unwrap_err().code(), tonic::Code::Internal);
    }

    #[tokio::test]
    async fn a_reading_that_panics_is_an_error_and_gives_its_turn_back() {
        let readings = Readings::new();
        for _ in 0..2 * THREADS {
            let failed: Result<(), _> = readings.take(|| panic!("on purpose")).await;
            assert_eq!(failed.unwrap_err().code(), tonic::Code::Internal);
        }
        assert_eq!(readings.take(|| 7).await.unwrap(), 7);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn callers_that_waited_share_one_gathering() {
        let (readings, count) = (Readings::new(), Arc::new(AtomicUsize::new(0)));
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let gather = |until: Option<std::sync::mpsc::Receiver<()>>| {
            let count = Arc::clone(&count);
            move || {
                count.fetch_add(1, Ordering::SeqCst);
                until.map(|until| until.recv()).transpose().unwrap();
                Vec::new()
            }
        };
        let mut first = Box::pin(readings.metrics(gather(Some(finished))));
        assert!((&mut first).now_or_never().is_none());
        let mut others: Vec<_> = (0..10).map(|_| Box::pin(readings.metrics(gather(None)))).collect();
        for other in &mut others {
            assert!(other.now_or_never().is_none(), "it waits for the one that is under way");
        }
        finish.send(()).unwrap();
        first.await.unwrap();
        futures_util::future::try_join_all(others).await.unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
}
