//! Work that takes the trace of its caller along, into whatever task does it.

use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use wharf_types::Traced;

pin_project! {
    /// Work that belongs to a trace wherever it is polled.
    #[derive(Debug)]
    pub struct Carried<F> {
        trace: Traced,
        #[pin]
        work: F,
    }
}

impl<F> Carried<F> {
    /// Work that belongs to this.
    pub fn by(trace: Traced, work: F) -> Self {
        Self { trace, work }
    }

    /// Work that belongs to whatever its caller does.
    pub(crate) fn on(work: F) -> Self {
        Self::by(Traced::here(), work)
    }
}

impl<F: Future> Future for Carried<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let carried = self.project();
        carried.trace.within(|| carried.work.poll(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CrowdLimits, Joins, Threads, spawn};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use tokio::task::JoinError;
    use wharf_types::lock::lock;
    use wharf_types::{Timings, Trace};

    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<&'static str>>);

    impl Trace for Told {
        fn stage(&self, name: &'static str, _began: Instant, _took: Duration) {
            lock(&self.0).push(name);
        }

        fn about(&self, _key: &'static str, _value: &str) {}
    }

    fn note(name: &'static str) {
        Timings::default().time(name, || ());
    }

    /// Ends after a while, so that it is polled by whoever waits for it then.
    async fn note_later(name: &'static str) -> Result<(), Arc<JoinError>> {
        tokio::task::yield_now().await;
        note(name);
        Ok(())
    }

    #[tokio::test]
    async fn a_trace_goes_along_into_tasks_threads_and_joined_calls() {
        let told = Arc::new(Told::default());
        let within = |work| Carried::by(Traced::by(Arc::clone(&told) as Arc<dyn Trace>), work);
        let limits = CrowdLimits { of_one: 1, of_all: 1 };
        let (pooled, own) = (Threads::with_pool("pooled", limits, 1), Threads::new("own", limits));
        let (kept, shared) = (Joins::default(), Joins::default());
        let work = async {
            kept.run('k', || note_later("kept")).await.unwrap();
            spawn(note_later("spawned")).await.unwrap();
            pooled.run(&'p', "work", || note("pooled")).await.unwrap();
            own.run(&'o', "work", || note("own")).await.unwrap();
            vec![shared.share('s', || note_later("shared"))]
        };
        let waiting = Box::pin(within(work)).await;
        assert_eq!(*lock(&told.0), ["kept", "spawned", "pooled", "own"]);
        note("after");
        for call in waiting {
            call.await.unwrap();
        }
        assert_eq!(
            lock(&told.0).last(),
            Some(&"shared"),
            "whoever waits for it, it belongs to whoever began it"
        );
    }
}
