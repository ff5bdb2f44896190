//! Layers that several pulls want at once are fetched once.
//!
//! A layer becomes visible only with the commit of an image, so who wants one that another pull is fetching shares the
//! unpacked layer itself: it waits in a slot until the first of them commits and takes it; the others then find it in
//! the store. If the one that fetched it fails, or is given up, the next in line fetches. No pull ever holds one layer
//! while it waits for the commit of another pull, so there is no circle of waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;
use wharf_images::{Layer, Store, UnpackedLayer};
use wharf_types::Digest;

/// Which layer: content, blob, and how many like it stand below it in the image, since an image with the same layer
/// twice needs two.
pub(crate) type Key = (Digest, Digest, usize);

/// A layer that at least one pull wants.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Who holds the permit fetches.
    pub(crate) turn: Arc<Semaphore>,
    slot: Mutex<Option<UnpackedLayer>>,
}

impl Flight {
    pub(crate) fn is_landed(&self) -> bool {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn land(&self, layer: UnpackedLayer) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(layer);
    }

    fn take(&self) -> Option<UnpackedLayer> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// All layers in flight.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    all: Mutex<HashMap<Key, Weak<Flight>>>,
}

impl Flights {
    /// Joins the flight of a layer, or begins one. It lasts as long as anyone has it.
    pub(crate) fn join(&self, key: Key) -> Arc<Flight> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = all.get(&key).and_then(Weak::upgrade) {
            return flight;
        }
        all.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(Flight { turn: Arc::new(Semaphore::new(1)), slot: Mutex::new(None) });
        all.insert(key, Arc::downgrade(&flight));
        flight
    }
}

/// A layer that a pull is sure of until it commits.
#[derive(Debug)]
pub(crate) enum Ready {
    /// It is in the store, and kept there.
    Stored(Layer),
    /// It was unpacked, by this pull or another.
    Landed { diff_id: Digest, flight: Arc<Flight> },
}

/// Turns what a pull has into what a commit takes; `Err` gives everything back if another pull took a layer from its
/// slot and failed to commit it. To be called by one pull at a time.
pub(crate) fn collect(store: &Store, ready: Vec<Ready>) -> Result<Vec<Layer>, Vec<Ready>> {
    let mut fixed = Vec::with_capacity(ready.len());
    for item in ready {
        fixed.push(match item {
            Ready::Landed { diff_id, flight } => match store.stored_layer(&diff_id) {
                Some(layer) => Ready::Stored(layer),
                None => Ready::Landed { diff_id, flight },
            },
            stored @ Ready::Stored(_) => stored,
        });
    }
    let whole = |item: &Ready| {
        matches!(item, Ready::Stored(_)) || matches!(item, Ready::Landed { flight, .. } if flight.is_landed())
    };
    if !fixed.iter().all(whole) {
        return Err(fixed);
    }
    let layers = fixed.into_iter().filter_map(|item| match item {
        Ready::Stored(layer) => Some(layer),
        Ready::Landed { flight, .. } => flight.take().map(Layer::Unpacked),
    });
    Ok(layers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_is_shared_while_someone_has_it() {
        let flights = Flights::default();
        let key = |n| (Digest::from_sha256([n; 32]), Digest::from_sha256([n; 32]), 0);
        let first = flights.join(key(1));
        assert!(Arc::ptr_eq(&first, &flights.join(key(1))));
        assert!(!Arc::ptr_eq(&first, &flights.join(key(2))));
        let weak = Arc::downgrade(&first);
        drop(first);
        assert!(weak.upgrade().is_none());
        flights.join(key(1));
        flights.join(key(3));
        assert_eq!(flights.all.lock().unwrap().len(), 1, "the dead are forgotten");
    }
}
