//! The index: everything that is asked often, in memory. It does no I/O.
//!
//! It counts who uses each layer, images and leases alike, and says which layers nobody uses any more. A sweep removes
//! them, under the writer's lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use wharf_snapshots::tree::Usage;
use wharf_types::{Digest, Reference};

use crate::image::Image;

#[derive(Debug, Default)]
pub(crate) struct Index {
    images: BTreeMap<Digest, Arc<Image>>,
    /// Tags and digest references.
    references: HashMap<String, Digest>,
    layers: HashMap<String, LayerState>,
}

/// Which records of images are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    All,
    /// Others cannot be read, or are in quarantine. They might name any layer.
    Part,
}

#[derive(Debug)]
struct LayerState {
    usage: Usage,
    /// How many images have it.
    images: usize,
    /// How many leases containers and pulls have on it.
    leases: usize,
    /// Its last image was removed. So it may go even if a record cannot be read, which might name it.
    doomed: bool,
}

impl Index {
    pub(super) fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values()
    }

    pub(super) fn image(&self, id: &Digest) -> Option<&Arc<Image>> {
        self.images.get(id)
    }

    pub(super) fn by_reference(&self, reference: &str) -> Option<&Arc<Image>> {
        self.images.get(self.references.get(reference)?)
    }

    pub(super) fn find(&self, text: &str) -> Option<Arc<Image>> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            return self.by_prefix(hex);
        }
        if let Ok(reference) = text.parse::<Reference>() {
            let key = match reference.digest() {
                Some(digest) => reference.with_digest(digest).to_string(),
                None => reference.to_string(),
            };
            if let Some(image) = self.by_reference(&key) {
                return Some(Arc::clone(image));
            }
        }
        self.by_prefix(text)
    }

    /// The only image whose id has this prefix.
    pub(super) fn by_prefix(&self, hex: &str) -> Option<Arc<Image>> {
        if hex.is_empty() {
            return None;
        }
        let mut matches = self.images.values().filter(|image| image.id().hex().starts_with(hex));
        let first = matches.next()?;
        matches.next().is_none().then(|| Arc::clone(first))
    }

    /// Adds or replaces an image, whose layers must be in the index.
    pub(super) fn insert_image(&mut self, image: Arc<Image>) {
        if let Some(old) = self.images.get(image.id()).cloned() {
            self.forget_references(&old);
        } else {
            for name in &image.record().layers {
                if let Some(layer) = self.layers.get_mut(name) {
                    layer.images += 1;
                    layer.doomed = false;
                }
            }
        }
        for reference in image.repo_tags().iter().chain(image.repo_digests()) {
            self.references.insert(reference.clone(), image.id().clone());
        }
        self.images.insert(image.id().clone(), image);
    }

    fn forget_references(&mut self, image: &Image) {
        for reference in image.repo_tags().iter().chain(image.repo_digests()) {
            if self.references.get(reference) == Some(image.id()) {
                self.references.remove(reference);
            }
        }
    }

    /// Removes an image. Its layers stay until a sweep.
    pub(super) fn remove_image(&mut self, id: &Digest) {
        let Some(image) = self.images.remove(id) else { return };
        self.forget_references(&image);
        for name in &image.record().layers {
            if let Some(layer) = self.layers.get_mut(name) {
                layer.images = layer.images.saturating_sub(1);
                layer.doomed = layer.images == 0;
            }
        }
    }

    pub(super) fn has_layer(&self, name: &str) -> bool {
        self.layers.contains_key(name)
    }

    pub(super) fn usage_of(&self, name: &str) -> Option<Usage> {
        self.layers.get(name).map(|layer| layer.usage)
    }

    pub(super) fn insert_layer(&mut self, name: String, usage: Usage) {
        self.layers.entry(name).or_insert(LayerState { usage, images: 0, leases: 0, doomed: false });
    }

    /// Leases those of these layers that are in the index, and returns their names.
    pub(super) fn lease_present(&mut self, names: impl Iterator<Item = String>) -> Vec<String> {
        let mut held = Vec::new();
        for name in names {
            if let Some(layer) = self.layers.get_mut(&name) {
                layer.leases += 1;
                held.push(name);
            }
        }
        held
    }

    /// Leases all of these layers, or none if one is missing.
    pub(super) fn lease(&mut self, names: &[String]) -> bool {
        if !names.iter().all(|name| self.layers.contains_key(name)) {
            return false;
        }
        for name in names {
            if let Some(layer) = self.layers.get_mut(name) {
                layer.leases += 1;
            }
        }
        true
    }

    /// Ends a lease. The layers stay until a sweep.
    pub(crate) fn release(&mut self, names: &[String]) {
        for name in names {
            if let Some(layer) = self.layers.get_mut(name) {
                layer.leases = layer.leases.saturating_sub(1);
            }
        }
    }

    /// Dooms layers without an image.
    pub(super) fn doom(&mut self, names: &[String]) {
        for name in names {
            if let Some(layer) = self.layers.get_mut(name) {
                layer.doomed |= layer.images == 0;
            }
        }
    }

    /// The layers without an image and without a lease; if not all records are known, the doomed ones among them.
    pub(super) fn unused(&self, known: Known) -> HashSet<String> {
        let unused = self.layers.iter().filter(|(_, layer)| layer.is_unused(known));
        unused.map(|(name, _)| name.clone()).collect()
    }

    /// Removes those of these layers from the index that are still unused.
    pub(super) fn take_unused(&mut self, names: &HashSet<String>, known: Known) -> Vec<(String, Usage)> {
        let unused = self.layers.extract_if(|name, layer| layer.is_unused(known) && names.contains(name));
        unused.map(|(name, layer)| (name, layer.usage)).collect()
    }

    /// Puts back a layer that was taken and could not be removed.
    pub(super) fn put_back(&mut self, name: String, usage: Usage) {
        self.layers.insert(name, LayerState { usage, images: 0, leases: 0, doomed: true });
    }

    /// How many images and layers there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.images.len(), self.layers.len())
    }

    /// What is on disk, also layers that only a container or an interrupted pull still has.
    pub(super) fn usage(&self) -> Usage {
        let layers = self.layers.values().map(|layer| layer.usage);
        // The record, the config and the manifest.
        let documents = Usage { bytes: 3 * 4096, inodes: 3 };
        layers.chain(self.images.values().map(|_| documents)).sum()
    }
}

impl LayerState {
    fn is_unused(&self, known: Known) -> bool {
        self.images == 0 && self.leases == 0 && (self.doomed || known == Known::All)
    }
}
