//! Images without a registry: those of an archive, as `docker save`, `ctr images export`, skopeo and others write it.
//!
//! The archive is hostile. It is received whole before anything of it is looked at ([`spool`]), because what says which
//! images are in it may come last. Then its documents are read ([`layout`], [`docker`]), all layers of all images are
//! unpacked as those of a pull, under the same limits, everything else that the images need is made, and only then are
//! they published, one by one. So an archive of which something cannot be used adds no image and takes no name from
//! one, and layers that were whole by then are kept some hours, as after a pull that failed.

mod docker;
mod error;
mod layout;
mod listed;
pub(crate) mod spool;

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;

use wharf_types::Digest;

pub use error::LoadError;

use crate::image::Image;
use crate::layer::{Layer, UnpackedLayer};
use crate::store::{NewImage, Prepared, Store};
use crate::unpack::{LayerSource, Sender};
use listed::{Listed, images};
use spool::Spool;

/// How much is unpacked between two reports of it.
const REPORT_BYTES: u64 = 2 << 20;

/// What has come of an archive.
#[derive(Debug)]
pub enum LoadEvent<'a> {
    /// All of it has arrived, and these are the blobs of its layers, with their sizes in bytes; each once.
    Received(Vec<(Digest, u64)>),
    /// So many bytes of the blob of a layer have been unpacked.
    Unpacking(&'a Digest, u64),
    /// A layer is there.
    Unpacked(&'a Digest),
    /// A layer was in the store already.
    Exists(&'a Digest),
    /// An image is in the store.
    Loaded {
        /// The image.
        image: &'a Image,
        /// The names that the archive gives it.
        names: Vec<String>,
    },
}

/// What is told of an archive that is being loaded, and says whether anybody still wants it.
pub type Watch<'a> = &'a mut dyn FnMut(LoadEvent<'_>) -> ControlFlow<()>;

type Unpacked = HashMap<LayerKey, Arc<UnpackedLayer>>;

/// The digests of a layer's content and of its blob: a commit checks that they belong together.
type LayerKey = (Digest, Digest);

impl Store {
    /// Loads every image of an archive. Blocks for as long as `input` does, and for the disk. Once the sender is given
    /// up, it waits for nothing else.
    ///
    /// # Errors
    /// [`LoadError`]. Nothing of the archive is left, except for images that were published before the store failed or
    /// the client went away, and whole layers, which are kept for a retry.
    pub fn load(&self, input: &mut dyn Read, sender: &Sender, watch: Watch<'_>) -> Result<(), LoadError> {
        let spool = Spool::receive(&self.shared, input, sender);
        let loaded = spool.and_then(|spool| self.load_spooled(&spool, watch));
        loaded.inspect_err(|error| {
            if error.wants_disk() {
                self.shared.give_up_kept();
            }
        })
    }

    fn load_spooled(&self, spool: &Spool<'_>, watch: Watch<'_>) -> Result<(), LoadError> {
        let images = images(spool)?;
        report(watch, LoadEvent::Received(blobs(&images)))?;
        let (mut unpacked, mut prepared) = (Unpacked::new(), Vec::new());
        for image in &images {
            let layers = self.layers_of(image, spool, &mut unpacked, watch)?;
            prepared.push((image, self.prepare_listed(image, layers)?));
        }
        drop(unpacked);
        for (image, prepared) in prepared {
            let published = self.publish(&prepared);
            let published = published.map_err(|source| LoadError::Store { image: image.shown(), source })?;
            let names = image.names.iter().map(ToString::to_string).collect();
            report(watch, LoadEvent::Loaded { image: &published, names })?;
        }
        Ok(())
    }

    /// The layers of an image, each distinct one once, none of which is visible because of it.
    fn layers_of(
        &self,
        image: &Listed,
        spool: &Spool<'_>,
        unpacked: &mut Unpacked,
        watch: Watch<'_>,
    ) -> Result<Vec<Layer>, LoadError> {
        let (mut seen, mut layers) = (HashSet::new(), Vec::new());
        for (at, diff_id) in image.diff_ids.iter().enumerate() {
            let blob = &image.blobs[at];
            if !seen.insert(diff_id) {
                continue;
            }
            if let Some(layer) = self.stored_layer(diff_id) {
                report(watch, LoadEvent::Exists(&blob.digest))?;
                layers.push(layer);
                continue;
            }
            let key = (diff_id.clone(), blob.digest.clone());
            let layer = match unpacked.get(&key) {
                Some(layer) => Arc::clone(layer),
                None => {
                    let source = LayerSource {
                        diff_id: diff_id.clone(),
                        form: image.manifest.form(at),
                        blob_digest: blob.digest.clone(),
                        blob_size_bytes: blob.size_bytes,
                        sender: spool.sender.clone(),
                    };
                    let layer = Arc::new(self.layer_of(&source, spool, (image, at), watch)?);
                    unpacked.insert(key, Arc::clone(&layer));
                    layer
                }
            };
            layers.push(Layer::Unpacked(layer));
        }
        Ok(layers)
    }

    fn layer_of(
        &self,
        source: &LayerSource,
        spool: &Spool<'_>,
        (image, at): (&Listed, usize),
        watch: Watch<'_>,
    ) -> Result<UnpackedLayer, LoadError> {
        if let Some(layer) = self.kept_layer(source) {
            report(watch, LoadEvent::Exists(&source.blob_digest))?;
            return Ok(layer);
        }
        let file = std::fs::File::from(spool.open(&image.blobs[at])?);
        let mut blob =
            Watched { inner: file, digest: &source.blob_digest, read_bytes: 0, told_bytes: 0, watch };
        let unpacked = self.unpack(source, &mut blob);
        let watch = blob.watch;
        let unpacked = unpacked.map_err(|why| LoadError::Unpack {
            image: image.shown(),
            number: at + 1,
            count: image.diff_ids.len(),
            digest: source.blob_digest.clone(),
            source: Box::new(why),
        })?;
        report(watch, LoadEvent::Unpacked(&source.blob_digest))?;
        Ok(unpacked)
    }

    fn prepare_listed<'a>(
        &'a self,
        image: &'a Listed,
        layers: Vec<Layer>,
    ) -> Result<Prepared<'a>, LoadError> {
        let new = NewImage {
            names: &image.names,
            resolved: image.resolved.as_ref(),
            manifest: &image.manifest_bytes,
            manifest_digest: &image.manifest_digest,
            config: &image.config,
            layers,
            pinned: false,
        };
        self.prepare(new).map_err(|source| LoadError::Store { image: image.shown(), source })
    }
}

fn blobs(images: &[Listed]) -> Vec<(Digest, u64)> {
    let mut seen = HashSet::new();
    let all = images.iter().flat_map(|image| &image.blobs);
    all.filter(|blob| seen.insert(&blob.digest)).map(|blob| (blob.digest.clone(), blob.size_bytes)).collect()
}

fn report(watch: Watch<'_>, event: LoadEvent<'_>) -> Result<(), LoadError> {
    match watch(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(LoadError::Unwanted),
    }
}

/// The blob of a layer, whose reading is reported.
struct Watched<'a, 'w> {
    inner: std::fs::File,
    digest: &'a Digest,
    read_bytes: u64,
    told_bytes: u64,
    watch: Watch<'w>,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.read_bytes += count as u64;
        if self.read_bytes - self.told_bytes >= REPORT_BYTES {
            self.told_bytes = self.read_bytes;
            report(self.watch, LoadEvent::Unpacking(self.digest, self.read_bytes))
                .map_err(|gone| io::Error::new(io::ErrorKind::ConnectionAborted, gone))?;
        }
        Ok(count)
    }
}
