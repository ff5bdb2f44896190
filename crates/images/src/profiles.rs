//! Security profiles from registries. They are no images: nothing that lists, pulls, removes or counts images sees
//! them.
//!
//! One file holds a profile, with the references by which it was pulled; its name is the digest of the profile. It is
//! read and verified each time. A profile whose file is missing or damaged is absent, so that it is pulled again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use wharf_state::record::{Durability, Format};
use wharf_state::records::{Content, ContentError, Quarantine, Records};
use wharf_types::lock::lock;
use wharf_types::{Digest, Reference};

use crate::manifest::digest_of;
use crate::records::RecordError;
use crate::store::StoreError;

/// The longest profile, in bytes.
pub const PROFILE_LIMIT_BYTES: usize = 1 << 20;

/// The most references that one profile may have: each is in its record, and that is written with each new one. What
/// one tenant pulls must not make another's pull fail, so beyond it references are not noted or are forgotten.
const REFERENCES_LIMIT: usize = 1000;

/// A profile, as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileItem {
    /// The digest of its bytes.
    pub digest: Digest,
    /// The references that it was pulled by, sorted.
    pub references: Vec<String>,
    /// Its length.
    pub size_bytes: u64,
}

/// The security profiles of a node.
#[derive(Debug)]
pub struct Profiles {
    records: Records<Record>,
    /// Lists are answered from it; whoever needs a profile reads its file.
    index: Mutex<BTreeMap<Digest, Arc<Entry>>>,
    /// Held by whoever changes a file.
    writer: Mutex<()>,
}

#[derive(Debug)]
struct Entry {
    references: Vec<Reference>,
    size_bytes: u64,
}

/// What is on disk. A profile is JSON, so it is text.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The oldest first; older builds sorted them.
    references: Vec<String>,
    profile: String,
}

impl Content for Record {
    const FORMAT: Format = Format { kind: "security-profile", version: 1 };

    fn encode(&self) -> Result<Vec<u8>, ContentError> {
        Ok(serde_json::to_vec(self)?)
    }

    fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

impl Record {
    fn entry(&self) -> Entry {
        let references = self.references.iter().filter_map(|text| text.parse().ok());
        Entry { references: references.collect(), size_bytes: self.profile.len() as u64 }
    }

    /// Adds a reference, if the profile needs it to be found or there is room; returns whether it did. To find an
    /// artifact one of its references is enough. For another artifact the oldest reference is forgotten.
    fn note(&mut self, reference: &Reference) -> bool {
        let text = reference.to_string();
        let has_artifact =
            || self.entry().references.iter().any(|known| known.digest() == reference.digest());
        let is_full = self.references.len() >= REFERENCES_LIMIT;
        if self.references.contains(&text) || is_full && has_artifact() {
            return false;
        }
        let surplus = (self.references.len() + 1).saturating_sub(REFERENCES_LIMIT);
        self.references.drain(..surplus);
        self.references.push(text);
        true
    }
}

impl Profiles {
    /// Opens the profiles in a directory, which is made if it does not exist.
    pub(crate) fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Profiles { source: RecordError::from(source) };
        let quarantine = Quarantine::new(directory.join("quarantine"));
        let records = Records::open(directory.join("records"), quarantine).map_err(failed)?;
        let profiles = Self { records, index: Mutex::default(), writer: Mutex::default() };
        for (name, loaded) in profiles.records.load_all().map_err(failed)? {
            match loaded {
                Ok(record) => profiles.check(&name, &record),
                Err(unusable) => warn(&name, &unusable),
            }
        }
        Ok(profiles)
    }

    /// Enters a record in the index, if it is what its name says.
    fn check(&self, name: &str, record: &Record) {
        let digest = digest_of(record.profile.as_bytes());
        if digest.hex() == name {
            lock(&self.index).insert(digest, Arc::new(record.entry()));
        } else {
            warn(name, &self.records.reject(name, format!("it has the digest {digest}").into()));
        }
    }

    /// All profiles, sorted by digest.
    #[must_use]
    pub fn list(&self) -> Vec<ProfileItem> {
        let item = |(digest, entry): (&Digest, &Arc<Entry>)| {
            let mut references: Vec<_> = entry.references.iter().map(ToString::to_string).collect();
            references.sort();
            ProfileItem { digest: digest.clone(), references, size_bytes: entry.size_bytes }
        };
        lock(&self.index).iter().map(item).collect()
    }

    /// The profile in the artifact with the digest of this reference, from whatever repository it came; `None` if it is
    /// absent. It waits for the disk.
    #[must_use]
    pub fn find(&self, reference: &Reference) -> Option<String> {
        let _writer = lock(&self.writer);
        self.load(reference).map(|(_digest, record)| record.profile)
    }

    /// Notes that a profile was also pulled by this reference, if there is room; returns whether it is present.
    ///
    /// # Errors
    /// [`StoreError::Profile`]; the reference is not noted.
    pub fn refer(&self, reference: &Reference) -> Result<bool, StoreError> {
        let _writer = lock(&self.writer);
        let Some((digest, record)) = self.load(reference) else { return Ok(false) };
        self.save(digest, record, reference).map(|()| true)
    }

    /// Keeps a profile that was pulled by this reference, in place of its oldest one if it has too many.
    ///
    /// # Errors
    /// [`StoreError::Profile`]; what was there before is still there.
    pub fn keep(&self, reference: &Reference, profile: String) -> Result<(), StoreError> {
        let _writer = lock(&self.writer);
        let digest = digest_of(profile.as_bytes());
        let record = self.read(&digest).unwrap_or(Record { references: Vec::new(), profile });
        self.save(digest, record, reference)
    }

    /// Removes a profile with all its references. It is not an error if it is absent.
    ///
    /// # Errors
    /// [`StoreError::Profile`]; the profile stays.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let _writer = lock(&self.writer);
        let removed = self.records.remove(digest.hex());
        removed.map_err(|source| StoreError::Profile { digest: digest.clone(), source: source.into() })?;
        lock(&self.index).remove(digest);
        Ok(())
    }

    fn load(&self, reference: &Reference) -> Option<(Digest, Record)> {
        let artifact = reference.digest()?;
        let has = |entry: &Entry| entry.references.iter().any(|known| known.digest() == Some(artifact));
        let found: Vec<Digest> = {
            let index = lock(&self.index);
            index.iter().filter(|(_, entry)| has(entry)).map(|(digest, _)| digest.clone()).collect()
        };
        found.into_iter().find_map(|digest| Some((digest.clone(), self.read(&digest)?)))
    }

    /// Reads a file. If it is not whole any more, its profile is absent from now on.
    fn read(&self, digest: &Digest) -> Option<Record> {
        let name = digest.hex();
        match self.records.load(name) {
            Ok(Some(record)) if digest_of(record.profile.as_bytes()) == *digest => return Some(record),
            Ok(Some(_other)) => warn(name, &self.records.reject(name, "it has another digest".into())),
            Ok(None) => {}
            Err(unusable) => warn(name, &unusable),
        }
        lock(&self.index).remove(digest);
        None
    }

    fn save(&self, digest: Digest, mut record: Record, reference: &Reference) -> Result<(), StoreError> {
        if record.note(reference)
            && let Err(source) = self.records.save(digest.hex(), &record, Durability::Durable)
        {
            return Err(StoreError::Profile { digest, source: source.into() });
        }
        lock(&self.index).insert(digest, Arc::new(record.entry()));
        Ok(())
    }
}

fn warn(name: &str, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(name, error, "a security profile cannot be used; it is absent until it is pulled again");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(repository: &str, artifact: u8) -> Reference {
        format!("registry.test/{repository}@{}", digest_of(&[artifact])).parse().unwrap()
    }

    fn open(directory: &tempfile::TempDir) -> Profiles {
        Profiles::open(directory.path()).unwrap()
    }

    fn file(directory: &tempfile::TempDir, profile: &str) -> std::path::PathBuf {
        directory.path().join("records").join(digest_of(profile.as_bytes()).hex())
    }

    #[test]
    fn a_profile_has_all_its_references_and_outlives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let profiles = open(&directory);
        let (one, moved, again) = (reference("one", 1), reference("moved", 1), reference("again", 2));
        assert!(!profiles.refer(&one).unwrap());
        profiles.keep(&one, "{}".to_owned()).unwrap();
        assert!(profiles.refer(&moved).unwrap(), "the same artifact, wherever it is");
        assert!(!profiles.refer(&again).unwrap(), "another artifact");
        profiles.keep(&again, "{}".to_owned()).unwrap();
        profiles.keep(&one, "{}".to_owned()).unwrap();
        let expected = ProfileItem {
            digest: digest_of(b"{}"),
            references: [&again, &moved, &one].map(ToString::to_string).to_vec(),
            size_bytes: 2,
        };
        assert_eq!(profiles.list(), std::slice::from_ref(&expected));
        drop(profiles);
        let profiles = open(&directory);
        assert_eq!(profiles.list(), [expected]);
        assert_eq!(profiles.find(&reference("third", 2)).as_deref(), Some("{}"));
        for _twice in 0..2 {
            profiles.remove(&digest_of(b"{}")).unwrap();
        }
        assert_eq!((profiles.list(), profiles.find(&one)), (Vec::new(), None));
        assert!(open(&directory).list().is_empty());
    }

    #[test]
    fn a_damaged_profile_is_absent_until_it_is_pulled_again() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (reference("one", 1), reference("two", 2));
        let path = file(&directory, "{}");
        let damages: [&dyn Fn(); 3] = [
            &|| std::fs::remove_file(&path).unwrap(),
            &|| std::fs::write(&path, "garbage").unwrap(),
            &|| assert!(std::fs::copy(file(&directory, "[]"), &path).is_ok()),
        ];
        for damage in damages {
            let profiles = open(&directory);
            profiles.keep(&one, "{}".to_owned()).unwrap();
            profiles.keep(&two, "[]".to_owned()).unwrap();
            damage();
            assert_eq!(open(&directory).list().len(), 1, "seen at a start");
            assert!(!profiles.refer(&one).unwrap(), "and by whoever needs it");
            assert_eq!(profiles.list().len(), 1);
            profiles.keep(&one, "{}".to_owned()).unwrap();
            assert_eq!(profiles.find(&one).as_deref(), Some("{}"));
        }
    }

    #[test]
    fn what_cannot_be_saved_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let profiles = open(&directory);
        let (one, two) = (reference("one", 1), reference("two", 2));
        profiles.keep(&one, "{}".to_owned()).unwrap();
        std::fs::create_dir(file(&directory, "[]")).unwrap();
        let error = profiles.keep(&two, "[]".to_owned()).unwrap_err();
        assert!(matches!(error, StoreError::Profile { .. }), "{error}");
        assert_eq!((profiles.find(&two), profiles.list().len()), (None, 1));
    }

    #[test]
    fn many_references_make_no_other_pull_fail() {
        let directory = tempfile::tempdir().unwrap();
        let profiles = open(&directory);
        let (one, other) = (reference("one", 1), reference("other", 2));
        profiles.keep(&one, "{}".to_owned()).unwrap();
        let many = (1..REFERENCES_LIMIT).map(|number| reference(&format!("r{number}"), 1).to_string());
        let references = std::iter::once(one.to_string()).chain(many).collect();
        let record = Record { references, profile: "{}".to_owned() };
        profiles.records.save(digest_of(b"{}").hex(), &record, Durability::Volatile).unwrap();
        let listed = |reference: &Reference| {
            let item = profiles.list().remove(0);
            assert!(item.references.is_sorted());
            assert_eq!(item.references.len(), REFERENCES_LIMIT);
            item.references.contains(&reference.to_string())
        };
        assert!(profiles.refer(&reference("more", 1)).unwrap());
        assert!(!listed(&reference("more", 1)) && listed(&one), "its artifact is found without it");
        profiles.keep(&other, "{}".to_owned()).unwrap();
        assert!(listed(&other) && !listed(&one), "another artifact needs its reference");
        for present in [&one, &other] {
            assert_eq!(profiles.find(present).as_deref(), Some("{}"));
            assert!(profiles.refer(present).unwrap());
        }
    }
}
