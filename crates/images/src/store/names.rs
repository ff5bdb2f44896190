//! The names of images: a tag is given to an image, taken from another, or removed, each time durably.
//!
//! A tag belongs to one image. While a crash has left it in the records of two, the one with the higher serial has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use wharf_types::{Digest, Reference};

use super::commit::add;
use super::{Shared, Store, StoreError};
use crate::image::Image;
use crate::records::ImageRecord;

impl Store {
    /// Gives the image that a text refers to (see [`Store::find`]) a tag, which leaves the image that had it; `false`
    /// if there is no such image.
    ///
    /// # Errors
    /// [`StoreError::NoTag`] if the name has a digest, [`StoreError::Record`] if a record cannot be written.
    pub fn tag(&self, text: &str, name: &Reference) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let tag = name.tagged().ok_or_else(|| StoreError::NoTag { name: name.clone() })?;
        let _writer = shared.writer();
        let Some(image) = shared.read().find(text) else { return Ok(false) };
        let mut record = image.record().clone();
        record.serial = shared.next_serial();
        add(&mut record.repo_tags, tag);
        shared.save(image.id(), &record)?;
        shared.take_tags(std::slice::from_ref(name), &Arc::new(image.with_record(record)))?;
        tracing::info!(image = %image.id(), %name, "image tagged");
        Ok(true)
    }

    /// Removes a tag from an image that has others; `false` if no image has it. Digests under the tag's repository go
    /// with its last tag there.
    ///
    /// # Errors
    /// [`StoreError::NoTag`] if the name has a digest, [`StoreError::OnlyTag`] if the image would be left without a
    /// tag, [`StoreError::Record`] if its record cannot be written.
    pub fn untag(&self, name: &Reference) -> Result<bool, StoreError> {
        let shared = &self.shared;
        let tag = name.tagged().ok_or_else(|| StoreError::NoTag { name: name.clone() })?;
        let _writer = shared.writer();
        let Some(image) = shared.read().by_reference(&tag).cloned() else { return Ok(false) };
        let mut record = image.record().clone();
        record.repo_tags.retain(|other| *other != tag);
        if record.repo_tags.is_empty() {
            return Err(StoreError::OnlyTag { name: name.clone() });
        }
        let repository = name.name();
        let is_of = |text: &String, mark| text.rsplit_once(mark).is_some_and(|(own, _)| own == repository);
        if !record.repo_tags.iter().any(|other| is_of(other, ':')) {
            record.repo_digests.retain(|digest| !is_of(digest, '@'));
        }
        shared.save(image.id(), &record)?;
        shared.write().insert_image(Arc::new(image.with_record(record)));
        tracing::info!(image = %image.id(), %name, "tag removed");
        Ok(true)
    }
}

impl Shared {
    fn save(&self, id: &Digest, record: &ImageRecord) -> Result<(), StoreError> {
        record.save(&self.image_path(id)).map_err(|source| StoreError::Record { id: id.clone(), source })
    }

    /// Puts an image into the index, and takes its new tags from the images that had them.
    pub(super) fn take_tags(&self, names: &[Reference], new: &Arc<Image>) -> Result<(), StoreError> {
        let mut before: BTreeMap<Digest, (Arc<Image>, ImageRecord)> = BTreeMap::new();
        for tag in names.iter().filter_map(Reference::tagged) {
            let had = self.read().by_reference(&tag).filter(|image| image.id() != new.id()).cloned();
            if let Some(image) = had {
                let with_record = || (Arc::clone(&image), image.record().clone());
                let (_, record) = before.entry(image.id().clone()).or_insert_with(with_record);
                record.repo_tags.retain(|other| *other != tag);
            }
        }
        let saved = before.iter().try_for_each(|(id, (_, record))| self.save(id, record));
        // At once, so that no tag is missing for a moment.
        let mut index = self.write();
        for (image, record) in before.into_values() {
            index.insert_image(Arc::new(image.with_record(record)));
        }
        index.insert_image(Arc::clone(new));
        drop(index);
        saved
    }
}
