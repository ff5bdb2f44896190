//! What a container needs from its image. What the image says about itself is hostile and is bounded here.

use oci_spec::image::Config;
use wharf_images::{LayerLease, Store};
use wharf_types::HostPath;

use crate::error::{Error, Stage};

/// An image as a container uses it.
#[derive(Debug)]
pub(crate) struct ImageView {
    pub(crate) id: String,
    /// By digest if that is known.
    pub(crate) reference: String,
    /// Topmost first.
    pub(crate) layers: Vec<HostPath>,
    config: Config,
    /// Keeps the layers while the container has them mounted.
    pub(crate) lease: LayerLease,
}

impl ImageView {
    /// Finds the image that a request names.
    pub(crate) fn find(store: &Store, name: &str) -> Result<Self, Error> {
        let image = store.find(name).ok_or_else(|| Error::NotFound { what: "image", id: name.to_owned() })?;
        let layers = image.layers().iter().map(|layer| HostPath::new(&layer.to_string_lossy()));
        let layers = layers.collect::<Result<_, _>>().stage("naming the image's layers")?;
        let lease =
            store.lease(image.id()).ok_or_else(|| Error::NotFound { what: "image", id: name.to_owned() })?;
        let id = image.id().to_string();
        let reference = image.repo_digests().first().cloned().unwrap_or_else(|| id.clone());
        // The store has limited the length of each field.
        let config = image.config().admit(|document| document.config().clone()).unwrap_or_default();
        Ok(Self { id, reference, layers, config, lease })
    }

    /// What the image says about running it.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}
