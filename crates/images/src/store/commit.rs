//! The commit of an image: from verified layers and documents to a durable record.
//!
//! The order is everything: layers and documents are in place and synced before the record that names them is renamed
//! into place. A crash in between leaves things without a record, which mean nothing and are removed by a sweep.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use wharf_snapshots::tree::Usage;
use wharf_sys::Error;
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open_below, rename_new};
use wharf_types::{Digest, Reference};

use super::{Shared, Store, StoreError, system};
use crate::chain::{self, Chain, ChainError, ChainLayer, Copies, Lookups, Plan, Relocation};
use crate::complete::complete;
use crate::config::{facts, parse_config};
use crate::image::Image;
use crate::layer::Layer;
use crate::manifest::{Document, Manifest, digest_of, parse_index_or_manifest};
use crate::records::{ConfigFacts, ImageRecord, load_layer, save_layer};
use crate::relocate::relocate;
use crate::unpack::{Contents, shown};

/// An image whose parts are all in the store or in hand.
#[derive(Debug)]
pub struct NewImage<'a> {
    /// Its names from now on, in addition to those that it has: for a pull, the reference that was requested.
    pub names: &'a [Reference],
    /// The digest that the names have, of an index or of the manifest; `None` if no registry can have it.
    pub resolved: Option<&'a Digest>,
    /// The bytes of the manifest for this platform.
    pub manifest: &'a [u8],
    /// Its digest, from the index or the registry.
    pub manifest_digest: &'a Digest,
    /// The bytes of the config.
    pub config: &'a [u8],
    /// The layers that the config lists, each distinct one once.
    pub layers: Vec<Layer>,
    /// Whether the kubelet should never collect the image.
    pub pinned: bool,
}

/// An image that is complete but not visible yet. All images of an archive are in this state at once, so it keeps no
/// parsed config and no descriptors.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    image: NewImage<'a>,
    id: Digest,
    config: ConfigFacts,
    /// The names of the layers as they will be mounted, topmost first.
    chain: Vec<String>,
    /// Layers that are not shared with other images.
    own: Vec<OwnLayer<'a>>,
}

/// A layer for one image only, in the staging directory until it is published.
#[derive(Debug)]
struct OwnLayer<'a> {
    shared: &'a Shared,
    staged: String,
    name: String,
    usage: Usage,
}

impl Drop for OwnLayer<'_> {
    fn drop(&mut self) {
        // It is no longer there if it was published.
        self.shared.discard_staged(&self.staged);
    }
}

/// What the documents of a new image say.
struct Verified {
    id: Digest,
    /// The digests of the uncompressed layers, bottom first.
    diff_ids: Vec<Digest>,
    config: ConfigFacts,
}

/// The most bytes of implied names in all layers of an image.
const NAMES_LIMIT_BYTES: usize = 16 << 20;
/// How many relocated copies an image may need, repeated ones included: a link may lead to another link.
const RELOCATIONS_LIMIT: usize = 40;

impl Store {
    /// Makes an image visible, durably. An image that already exists gets further names, and each tag leaves the image
    /// that had it. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`]; the store is as it was, except that whole layers may be kept for a later pull.
    pub fn commit(&self, image: NewImage<'_>) -> Result<Arc<Image>, StoreError> {
        self.publish(&self.prepare(image)?)
    }

    /// The first half of a commit: checks everything and makes what the image needs. What is refused is refused here.
    ///
    /// # Errors
    /// [`StoreError`]; the store is as it was, except that whole layers may be kept for a later pull.
    pub(crate) fn prepare<'a>(&'a self, image: NewImage<'a>) -> Result<Prepared<'a>, StoreError> {
        let shared = &self.shared;
        let Verified { id, diff_ids, config } = verify(&image)?;
        let layers = shared.chain_layers(&image, &id, &diff_ids)?;
        let copies = Copies::new(&shared.limits);
        let (chain, mut own) = shared.put_together(layers, &id, &copies)?;
        let thin = shared.make_thin(&chain, &id, &copies)?;
        let below = chain.layers.into_iter().map(|layer| layer.name);
        let chain = thin.iter().map(|thin| thin.name.clone()).chain(below).collect();
        own.extend(thin);
        Ok(Prepared { image, id, config, chain, own })
    }

    /// The second half of a commit.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    pub(crate) fn publish(&self, prepared: &Prepared<'_>) -> Result<Arc<Image>, StoreError> {
        let published = self.show(prepared);
        if published.is_err() {
            let shared_ones = prepared.image.layers.iter().map(|layer| layer.diff_id().hex());
            let names = shared_ones.chain(prepared.own.iter().map(|own| own.name.as_str()));
            self.shared.forsake(&names.map(str::to_owned).collect::<Vec<_>>());
        }
        published
    }

    fn show(&self, prepared: &Prepared<'_>) -> Result<Arc<Image>, StoreError> {
        let shared = &self.shared;
        let Prepared { image, id, own, .. } = prepared;
        if !own.is_empty() || image.layers.iter().any(|layer| matches!(layer, Layer::Unpacked(_))) {
            // One sync for the whole image. It also waits for what others have written to this disk. An fsync for each
            // file does not, but flushes the disk's cache each time, which costs ten times as much when nobody else
            // writes.
            nix::unistd::syncfs(&shared.layers)
                .map_err(|errno| system("sync its layers")(Error::new("syncfs", "layers", errno)))?;
        }
        let _writer = shared.writer();
        let mut layers = Vec::new();
        for layer in &image.layers {
            if let Layer::Unpacked(unpacked) = layer {
                shared.show_layer(&unpacked.staged, unpacked.diff_id().hex(), unpacked.usage)?;
                unpacked.lease.get_or_init(|| self.lease_shown(unpacked.diff_id()));
            }
            layers.push(layer.diff_id().hex().to_owned());
        }
        for layer in own {
            shared.show_layer(&layer.staged, &layer.name, layer.usage)?;
            layers.push(layer.name.clone());
        }
        nix::unistd::fsync(&shared.layers)
            .map_err(|errno| system("sync its layers")(Error::new("fsync", "layers", errno)))?;
        layers.sort();
        layers.dedup();
        shared.write_content(image.manifest_digest, image.manifest)?;
        shared.write_content(id, image.config)?;
        let record = shared.record(prepared, layers);
        let failed = |source| StoreError::Record { id: id.clone(), source };
        record.save(&shared.image_path(id)).map_err(failed)?;
        let new = Image::new(id.clone(), record, &shared.layers_path);
        let new = Arc::new(new);
        shared.take_tags(image.names, &new)?;
        let names: Vec<_> = image.names.iter().map(ToString::to_string).collect();
        tracing::info!(image = %new.id(), names = names.join(", "), "image stored");
        Ok(new)
    }
}

/// Checks that all parts belong together.
fn verify(image: &NewImage<'_>) -> Result<Verified, StoreError> {
    let mismatch = |reason: String| Err(StoreError::Mismatch { reason });
    let found = digest_of(image.manifest);
    if found != *image.manifest_digest {
        return mismatch(format!("the manifest is {found}, not {}", image.manifest_digest));
    }
    let is_other = |name: &&Reference| name.digest().is_some_and(|asked| Some(asked) != image.resolved);
    if let Some(name) = image.names.iter().find(is_other) {
        let resolved = image.resolved.map_or("no digest", Digest::as_str);
        return mismatch(format!("{name} was resolved to {resolved}"));
    }
    let manifest = match parse_index_or_manifest(image.manifest, None) {
        Ok(Document::Manifest(manifest)) => manifest,
        Ok(Document::Index(_)) => return mismatch("it is an index, not a manifest".into()),
        Err(source) => return Err(StoreError::Document { what: "manifest", source }),
    };
    let id = digest_of(image.config);
    if id != manifest.config.digest || image.config.len() as u64 != manifest.config.size_bytes {
        return mismatch(format!("the config is {id}, the manifest says {}", manifest.config.digest));
    }
    let (config, diff_ids) =
        parse_config(image.config).map_err(|source| StoreError::Document { what: "config", source })?;
    verify_layers(image, &manifest, &diff_ids)?;
    Ok(Verified { id, diff_ids, config: facts(image.config, &config) })
}

fn verify_layers(image: &NewImage<'_>, manifest: &Manifest, diff_ids: &[Digest]) -> Result<(), StoreError> {
    let mismatch = |reason: String| Err(StoreError::Mismatch { reason });
    if manifest.layers.len() != diff_ids.len() {
        let (listed, named) = (manifest.layers.len(), diff_ids.len());
        return mismatch(format!("{listed} layers in the manifest, {named} in the config"));
    }
    let given: HashMap<_, _> = image.layers.iter().map(|layer| (layer.diff_id(), layer)).collect();
    let blobs: HashSet<_> =
        diff_ids.iter().zip(manifest.layers.iter().map(|listed| &listed.digest)).collect();
    for diff_id in diff_ids {
        match given.get(diff_id) {
            None => return mismatch(format!("layer {diff_id} of the config was not given")),
            Some(Layer::Unpacked(layer)) if !blobs.contains(&(diff_id, &layer.source.blob_digest)) => {
                return mismatch(format!("layer {diff_id} came from another blob"));
            }
            Some(_) => {}
        }
    }
    let wanted: HashSet<_> = diff_ids.iter().collect();
    match given.keys().find(|diff_id| !wanted.contains(*diff_id)) {
        Some(foreign) => mismatch(format!("layer {foreign} is not one of the config's")),
        None => Ok(()),
    }
}

impl Shared {
    /// The layers in the order of the config, bottom first.
    fn chain_layers(
        &self,
        image: &NewImage<'_>,
        id: &Digest,
        diff_ids: &[Digest],
    ) -> Result<Vec<ChainLayer>, StoreError> {
        let by_content: HashMap<_, _> = image.layers.iter().map(|layer| (layer.diff_id(), layer)).collect();
        let mut names_bytes = 0;
        let mut layers = Vec::new();
        for layer in diff_ids.iter().filter_map(|diff_id| by_content.get(diff_id)) {
            let layer = self.chain_layer(layer, id)?;
            names_bytes += layer.contents.names_bytes();
            if names_bytes > NAMES_LIMIT_BYTES {
                return Err(ChainError::TooMuchToLookUp.into());
            }
            layers.push(layer);
        }
        Ok(layers)
    }

    fn chain_layer(&self, layer: &Layer, image: &Digest) -> Result<ChainLayer, StoreError> {
        let name = layer.diff_id().hex().to_owned();
        let open = |directory: &OwnedFd, name: &str| {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            open_below(directory.as_fd(), format!("{name}/fs"), flags, Resolve::BeneathNoLinks)
        };
        let staged = match layer {
            // The commit of another image may have made it visible in the meantime.
            Layer::Unpacked(layer) => match open(&self.staging, &layer.staged) {
                Err(error) if error.errno == Errno::ENOENT => None,
                opened => Some((opened.map_err(system("open a layer"))?, &layer.staged)),
            },
            Layer::Stored { .. } => None,
        };
        let (root, directory) = match staged {
            Some((root, staged)) => (root, self.staged_path(staged)),
            None => {
                let root = open(&self.layers, &name).map_err(system("open a layer"))?;
                (root, self.layers_path.join(&name))
            }
        };
        let contents = load_layer(&directory).or_else(|_moved| load_layer(&self.layers_path.join(&name)));
        let contents = contents.map_err(|source| StoreError::Record { id: image.clone(), source })?;
        Ok(ChainLayer { name, root, contents: Arc::new(contents) })
    }

    /// Puts the layers together, and makes the copies that this image needs. A copy replaces an earlier one of the same
    /// layer.
    fn put_together(
        &self,
        mut layers: Vec<ChainLayer>,
        id: &Digest,
        copies: &Copies<'_>,
    ) -> Result<(Chain, Vec<OwnLayer<'_>>), StoreError> {
        let (mut own, mut made_so_far, mut relocations) = (BTreeMap::new(), 0, 0);
        let lookups = Lookups::new();
        loop {
            let name = format!("moved-{}-{made_so_far}", id.hex());
            let (at, (made, layer)) = match chain::plan(layers, &lookups)? {
                Plan::Whole(chain) => return Ok((chain, own.into_values().collect())),
                Plan::Complete(those, at) => {
                    layers = those;
                    (at, self.make_own(name, id, |root| complete(&layers, at, root, (&lookups, copies)))?)
                }
                Plan::Relocate(those, Relocation { layer: at, links }) => {
                    layers = those;
                    let layer = &layers[at];
                    relocations += 1;
                    if relocations > RELOCATIONS_LIMIT {
                        let path = links.keys().next().map(|path| shown(path)).unwrap_or_default();
                        return Err(ChainError::HiddenLink { layer: layer.name.clone(), path }.into());
                    }
                    (at, self.make_own(name, id, |root| relocate(layer, &links, root, copies))?)
                }
            };
            layers[at] = layer;
            own.insert(at, made);
            made_so_far += 1;
        }
    }

    fn make_thin(
        &self,
        chain: &Chain,
        id: &Digest,
        copies: &Copies<'_>,
    ) -> Result<Option<OwnLayer<'_>>, StoreError> {
        if !chain.needs_thin_layer() {
            return Ok(None);
        }
        let name = format!("attrs-{}", id.hex());
        self.make_own(name, id, |root| chain.make_thin_layer(root, copies)).map(|(thin, _layer)| Some(thin))
    }

    /// Makes a layer for one image in the staging directory; `fill` gets its root.
    fn make_own(
        &self,
        name: String,
        id: &Digest,
        fill: impl FnOnce(&OwnedFd) -> Result<Contents, ChainError>,
    ) -> Result<(OwnLayer<'_>, ChainLayer), StoreError> {
        let (staged, directory) = self.stage().map_err(system("make a layer"))?;
        let mut own = OwnLayer { shared: self, staged, name, usage: Usage::default() };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let root = open_below(directory.as_fd(), "fs", flags, Resolve::BeneathNoLinks)
            .map_err(system("make a layer"))?;
        let contents = fill(&root)?;
        save_layer(&self.staged_path(&own.staged), &contents)
            .map_err(|source| StoreError::Record { id: id.clone(), source })?;
        own.usage = contents.usage;
        let layer = ChainLayer { name: own.name.clone(), root, contents: Arc::new(contents) };
        Ok((own, layer))
    }

    /// Moves a staged layer into its place. If another pull has put one there already, that one is as good.
    fn show_layer(&self, staged: &str, name: &str, usage: Usage) -> Result<(), StoreError> {
        match rename_new(&self.staging, staged, &self.layers, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // It is the same unpacked layer, made visible by the commit of another image.
            Err(Errno::ENOENT) if self.read().has_layer(name) => {}
            Err(errno) => return Err(system("show a layer")(Error::new("rename", name, errno))),
        }
        self.write().insert_layer(name.to_owned(), usage);
        Ok(())
    }

    /// Gives up layers that were made visible for an image that could not be committed. Leased ones are removed later.
    fn forsake(&self, names: &[String]) {
        self.write().doom(names);
        self.sweep_and_log();
    }

    fn write_content(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let failed = system("keep a document");
        let staged = format!("{}", self.next_serial());
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let write = || {
            let fd = nix::fcntl::openat(&self.staging, staged.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
            let mut file = std::fs::File::from(fd.named("openat", || staged.clone())?);
            std::io::Write::write_all(&mut file, bytes).named("write", || staged.clone())?;
            file.sync_all().named("fsync", || staged.clone())?;
            let hex = digest.hex();
            nix::fcntl::renameat(&self.staging, staged.as_str(), &self.content, hex)
                .named("rename", || hex.into())?;
            nix::unistd::fsync(&self.content).named("fsync", || "content".into())
        };
        let written = write();
        if written.is_err() {
            self.discard_staged(&staged);
        }
        written.map_err(failed)
    }

    /// The record of a new image, or of an existing one with a further name.
    fn record(&self, prepared: &Prepared<'_>, layers: Vec<String>) -> ImageRecord {
        let Prepared { image, id, config, chain, .. } = prepared;
        let index = self.read();
        let old = index.image(id).map(|image| image.record().clone());
        let usage = layers.iter().filter_map(|name| index.usage_of(name)).map(|usage| usage.bytes);
        let size_bytes = usage.sum::<u64>() + (image.manifest.len() + image.config.len()) as u64;
        drop(index);
        let mut record = old.unwrap_or_else(|| ImageRecord {
            id: id.to_string(),
            manifests: Vec::new(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            serial: 0,
            size_bytes,
            layers,
            chain: chain.clone(),
            pinned: false,
            config: None,
        });
        record.config = Some(config.clone());
        record.serial = self.next_serial();
        record.pinned |= image.pinned;
        add(&mut record.manifests, image.manifest_digest.to_string());
        for name in image.names {
            if let Some(resolved) = image.resolved {
                add(&mut record.repo_digests, name.with_digest(resolved).to_string());
            }
            if let Some(tag) = name.tagged() {
                add(&mut record.repo_tags, tag);
            }
        }
        record
    }
}

pub(super) fn add(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}
