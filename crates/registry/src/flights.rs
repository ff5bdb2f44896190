//! Layers that several pulls want at once are fetched once.
//!
//! A layer becomes visible only with the commit of an image, so who wants one that another pull is fetching shares the
//! unpacked layer itself, and whoever commits first makes it visible. If the one that fetched it fails, or is given up, the
//! next in line fetches. No pull ever holds one layer while it waits for the commit of another pull, so there is no circle
//! of waiting.
//!
//! Only pulls of one registry share: anybody's registry can list a layer that everybody has, and send it a byte a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio::sync::Semaphore;
use wharf_images::UnpackedLayer;
use wharf_types::Digest;
use wharf_types::lock::lock;

/// Which layer, and of which registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Host and port, as images name it.
    pub(crate) registry: String,
    pub(crate) diff_id: Digest,
    pub(crate) blob_digest: Digest,
}

/// A layer that at least one pull wants.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Who holds the permit fetches.
    pub(crate) turn: Arc<Semaphore>,
    landed: OnceLock<Arc<UnpackedLayer>>,
}

impl Flight {
    /// The layer, if someone has fetched it.
    pub(crate) fn landed(&self) -> Option<Arc<UnpackedLayer>> {
        self.landed.get().cloned()
    }

    /// Gives the layer to all who wait; called by whoever has the turn.
    pub(crate) fn land(&self, layer: UnpackedLayer) -> Arc<UnpackedLayer> {
        Arc::clone(self.landed.get_or_init(|| Arc::new(layer)))
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
        let mut all = lock(&self.all);
        if let Some(flight) = all.get(&key).and_then(Weak::upgrade) {
            return flight;
        }
        all.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(Flight { turn: Arc::new(Semaphore::new(1)), landed: OnceLock::new() });
        all.insert(key, Arc::downgrade(&flight));
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_is_shared_while_someone_has_it() {
        let flights = Flights::default();
        let key_at = |registry: &str, n| Key {
            registry: registry.to_owned(),
            diff_id: Digest::from_sha256([n; 32]),
            blob_digest: Digest::from_sha256([n; 32]),
        };
        let key = |n| key_at("a.b", n);
        let first = flights.join(key(1));
        assert!(Arc::ptr_eq(&first, &flights.join(key(1))));
        assert!(!Arc::ptr_eq(&first, &flights.join(key(2))));
        assert!(!Arc::ptr_eq(&first, &flights.join(key_at("c.d", 1))));
        let weak = Arc::downgrade(&first);
        drop(first);
        assert!(weak.upgrade().is_none());
        flights.join(key(1));
        flights.join(key(3));
        assert_eq!(flights.all.lock().unwrap().len(), 1, "the dead are forgotten");
    }
}
