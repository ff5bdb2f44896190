//! The spans that wait to be exported. What has no room is counted, and nobody waits.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use wharf_types::lock::lock;

use crate::otlp::Span;

/// How many spans may wait, of less than a KiB each: those of some hundred pods.
const LIMIT: usize = 2048;

/// The most spans that are exported at a time.
pub(crate) const BATCH: usize = 512;

/// What has become of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// How many the collector has accepted.
    pub exported: u64,
    /// How many had no room in the queue.
    pub no_room: u64,
    /// How many it has not accepted, or not within all attempts.
    pub failed: u64,
    /// How many wait now.
    pub waiting: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    spans: Mutex<Vec<Span>>,
    /// Told of the first span, and of one that makes a batch whole.
    grown: Notify,
    exported: AtomicU64,
    no_room: AtomicU64,
    failed: AtomicU64,
}

impl Queue {
    /// Adds a span, if there is room.
    pub(crate) fn add(&self, span: Span) {
        let mut spans = lock(&self.spans);
        if spans.len() == LIMIT {
            self.no_room.fetch_add(1, Ordering::Relaxed);
            return;
        }
        spans.push(span);
        if matches!(spans.len(), 1 | BATCH) {
            self.grown.notify_one();
        }
    }

    /// Waits until there are so many.
    pub(crate) async fn has(&self, count: usize) {
        while lock(&self.spans).len() < count {
            self.grown.notified().await;
        }
    }

    /// Takes the oldest, as many as a batch has.
    pub(crate) fn take(&self) -> Vec<Span> {
        let mut spans = lock(&self.spans);
        let count = spans.len().min(BATCH);
        spans.drain(..count).collect()
    }

    pub(crate) fn count_exported(&self, count: u64) {
        self.exported.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn count_failed(&self, count: u64) {
        self.failed.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn figures(&self) -> Figures {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            exported: count(&self.exported),
            no_room: count(&self.no_room),
            failed: count(&self.failed),
            waiting: lock(&self.spans).len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_leave_first_and_what_has_no_room_is_counted() {
        let queue = Queue::default();
        for number in 0..LIMIT + 3 {
            queue.add(Span { name: number.to_string(), ..Span::default() });
        }
        queue.has(BATCH).await;
        let figures = Figures { no_room: 3, waiting: LIMIT, ..Figures::default() };
        assert_eq!(queue.figures(), figures);
        let names = |batch: &[Span]| batch.iter().map(|span| span.name.clone()).collect::<Vec<_>>();
        let batches: Vec<_> = (0..LIMIT / BATCH).map(|_| queue.take()).collect();
        assert_eq!(names(&batches.concat()), (0..LIMIT).map(|number| number.to_string()).collect::<Vec<_>>());
        assert_eq!(queue.take(), []);
    }
}
