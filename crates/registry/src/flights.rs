//! Downloads in flight: a layer that several pulls want at once is fetched once.
//!
//! A layer becomes visible only when an image is committed. So a pull that wants a layer that another pull is fetching
//! shares the unpacked layer itself, and the first to commit makes it visible. If the fetching pull fails or is given
//! up, the next in line fetches. No pull holds a layer while it waits for another pull's commit, so pulls cannot
//! deadlock. Nor does one hold a layer's turn while it waits for room to download it: another may have room now.
//!
//! Only pulls from the same registry share: any registry can list a layer that everybody uses, and then send it at one
//! byte a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tokio::sync::Semaphore;
use wharf_images::UnpackedLayer;
use wharf_types::Digest;
use wharf_types::lock::lock;

/// Which layer, and of which registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The registry's host and port, as images name it.
    pub(crate) registry: String,
    pub(crate) diff_id: Digest,
    pub(crate) blob_digest: Digest,
}

/// A layer that at least one pull wants.
#[derive(Debug)]
pub(crate) struct Flight {
    /// The holder of the permit fetches.
    pub(crate) turn: Arc<Semaphore>,
    landed: OnceLock<Arc<UnpackedLayer>>,
}

impl Flight {
    /// The layer, if it has been fetched.
    pub(crate) fn landed(&self) -> Option<Arc<UnpackedLayer>> {
        self.landed.get().cloned()
    }

    /// Hands the layer to all that wait. The caller must hold the permit.
    pub(crate) fn land(&self, layer: UnpackedLayer) -> Arc<UnpackedLayer> {
        Arc::clone(self.landed.get_or_init(|| Arc::new(layer)))
    }
}

/// All layers in flight.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    /// Without keeping them: a flight ends with the last pull that wants it. Locked to join one, not while it is
    /// fetched.
    all: Mutex<HashMap<Key, Weak<Flight>>>,
}

impl Flights {
    /// Joins the flight of a layer, or begins one. The flight exists as long as anyone holds it.
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
