//! Images by names without a registry, which `registries.conf` may give several meanings.

use std::sync::Arc;

use wharf_cri_api::v1::ContainerConfig;
use wharf_images::Store;
use wharf_registry::Puller;

/// What says what names mean, and which images are here.
#[derive(Debug, Clone)]
pub struct Names {
    store: Arc<Store>,
    puller: Arc<Puller>,
}

impl Names {
    /// Makes one over an image store and a registry client.
    #[must_use]
    pub fn new(store: Arc<Store>, puller: Arc<Puller>) -> Self {
        Self { store, puller }
    }

    /// A name, or which of its meanings is here.
    pub(crate) async fn here(&self, name: String) -> String {
        // If it cannot be said, the name has no other, and a pull of it fails.
        let meanings = self.puller.names(&name).await.unwrap_or_default();
        let mut meanings = meanings.iter().map(ToString::to_string);
        meanings.find(|meaning| self.store.find(meaning).is_some()).unwrap_or(name)
    }

    /// The same of the images that a container needs.
    pub(crate) async fn of_container(&self, config: &mut ContainerConfig) {
        let mounted = config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut());
        for spec in config.image.iter_mut().chain(mounted) {
            spec.image = self.here(std::mem::take(&mut spec.image)).await;
        }
    }
}
