//! The progress of pulls: counters that the downloads advance and that anyone reads without a lock.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use wharf_images::manifest::Descriptor;
use wharf_types::{Digest, Reference};

use crate::totals::Totals;

/// What is happening to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a permit, or for another pull that is fetching it.
    Waiting,
    /// Its bytes are arriving, and are unpacked as they arrive.
    Downloading,
    /// All bytes have arrived; the rest is being unpacked and made durable.
    Unpacking,
    /// It was fetched.
    Done,
    /// It was in the store already.
    Exists,
}

impl Phase {
    const ALL: [Self; 5] = [Self::Waiting, Self::Downloading, Self::Unpacking, Self::Done, Self::Exists];
}

/// One layer of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// The blob.
    pub digest: Digest,
    /// Its size.
    pub total_bytes: u64,
    /// How many bytes have arrived.
    pub done_bytes: u64,
    /// What is happening to it.
    pub phase: Phase,
}

/// One pull in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The image.
    pub reference: Reference,
    /// Its layers, bottom first; none until the manifest is known.
    pub layers: Vec<LayerProgress>,
}

#[derive(Debug)]
pub(crate) struct Cell {
    digest: Digest,
    total_bytes: u64,
    done_bytes: AtomicU64,
    phase: AtomicU8,
}

impl Cell {
    pub(crate) fn enter(&self, phase: Phase) {
        let at = Phase::ALL.iter().position(|each| *each == phase).unwrap_or(0);
        self.phase.store(u8::try_from(at).unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn reach(&self, done_bytes: u64) {
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
    }

    fn snapshot(&self) -> LayerProgress {
        let phase = usize::from(self.phase.load(Ordering::Relaxed));
        LayerProgress {
            digest: self.digest.clone(),
            total_bytes: self.total_bytes,
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            phase: Phase::ALL.get(phase).copied().unwrap_or(Phase::Waiting),
        }
    }
}

/// The counters of one pull.
#[derive(Debug)]
pub(crate) struct Tracker {
    reference: Reference,
    cells: OnceLock<Vec<Cell>>,
    /// Those of all pulls.
    totals: Arc<Totals>,
}

impl Tracker {
    pub(crate) fn new(reference: Reference, totals: Arc<Totals>) -> Self {
        Self { reference, cells: OnceLock::new(), totals }
    }

    /// Sets the layers; a second call has no effect.
    pub(crate) fn begin(&self, layers: &[Descriptor]) {
        self.cells.get_or_init(|| {
            let cell = |layer: &Descriptor| Cell {
                digest: layer.digest.clone(),
                total_bytes: layer.size_bytes,
                done_bytes: AtomicU64::new(0),
                phase: AtomicU8::new(0),
            };
            layers.iter().map(cell).collect()
        });
    }

    /// Counts bytes that have arrived.
    pub(crate) fn fetched(&self, bytes: usize) {
        self.totals.fetched(bytes);
    }

    pub(crate) fn cell(&self, at: usize) -> Option<&Cell> {
        self.cells.get().and_then(|cells| cells.get(at))
    }

    pub(crate) fn snapshot(&self) -> PullProgress {
        let cells = self.cells.get().map(Vec::as_slice).unwrap_or_default();
        PullProgress { reference: self.reference.clone(), layers: cells.iter().map(Cell::snapshot).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_was_reached() {
        let tracker = Tracker::new("a.b/c".parse().unwrap(), Arc::default());
        assert!(tracker.snapshot().layers.is_empty());
        let digest = Digest::from_sha256([1; 32]);
        let descriptor = Descriptor { media_type: String::new(), digest, size_bytes: 9 };
        tracker.begin(&[descriptor]);
        tracker.begin(&[]);
        assert!(tracker.cell(1).is_none());
        for phase in Phase::ALL {
            tracker.cell(0).unwrap().enter(phase);
            tracker.cell(0).unwrap().reach(7);
            let layers = tracker.snapshot().layers;
            assert_eq!((layers[0].phase, layers[0].done_bytes, layers[0].total_bytes), (phase, 7, 9));
        }
    }
}
