//! Security profiles from registries. They are no images: nothing that lists, pulls, removes or counts images sees
//! them.
//!
//! One file holds a profile, with the references by which it was pulled; its name is the digest of the profile. It is
//! read and verified each time. A profile whose file is missing or damaged is absent, so that it is pulled again.
//!
//! Whoever may make pods can have any number pulled, and nothing says when one is needed no more. So there are only so
//! many, and for another the one goes that has not been used for the longest time: a container that runs needs it no
//! more, and for a new one it is pulled again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock};

use serde::{Deserialize, Serialize};
use wharf_state::record::{Durability, Format};
use wharf_state::records::{Content, ContentError, Quarantine, Records};
use wharf_types::lock::lock;
use wharf_types::{Digest, Reference, chain};

use crate::manifest::digest_of;
use crate::records::RecordError;
use crate::store::StoreError;

/// The longest profile, in bytes.
pub const PROFILE_LIMIT_BYTES: usize = 1 << 20;

/// The most references that one profile may have: each is in its record, and that is written with each new one. What
/// one tenant pulls must not make another's pull fail, so beyond it references are not noted or are forgotten.
const REFERENCES_LIMIT: usize = 1000;

/// The most profiles, and the most bytes of them and their references: all references are in memory. Profiles of the
/// size of the runtime's own are as many as a node has containers.
const LIMITS: Limits = Limits { profiles: 1000, bytes: 32 << 20 };

#[derive(Debug, Clone, Copy)]
struct Limits {
    profiles: usize,
    bytes: u64,
}

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
    limits: Limits,
    /// Made when it is first needed: most nodes have no profile. Whoever needs one reads its file.
    index: OnceLock<Mutex<Index>>,
    /// Held by whoever changes a file.
    writer: Mutex<()>,
}

/// What is there.
#[derive(Debug, Default)]
struct Index {
    entries: BTreeMap<Digest, Entry>,
    /// The number of uses so far.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    references: Vec<Reference>,
    size_bytes: u64,
    /// What it takes on disk, and about as much in memory for the references.
    cost_bytes: u64,
    /// The number of its last use.
    used: u64,
}

impl Index {
    /// Enters a profile, or what has changed about it, as used now.
    fn enter(&mut self, digest: Digest, record: &Record) {
        self.uses += 1;
        self.entries.insert(digest, record.entry(self.uses));
    }

    /// The profile that has not been used for the longest time, if there are too many, or more than one and too large
    /// ones.
    fn surplus(&self, limits: Limits) -> Option<Digest> {
        let bytes: u64 = self.entries.values().map(|entry| entry.cost_bytes).sum();
        let is_over = self.entries.len() > limits.profiles || bytes > limits.bytes;
        let oldest =
            self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(digest, _)| digest.clone());
        oldest.filter(|_| is_over && self.entries.len() > 1)
    }
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
    fn entry(&self, used: u64) -> Entry {
        let size_bytes = self.profile.len() as u64;
        let cost_bytes = size_bytes + self.references.iter().map(|text| text.len() as u64).sum::<u64>();
        Entry { references: self.parsed().collect(), size_bytes, cost_bytes, used }
    }

    fn parsed(&self) -> impl Iterator<Item = Reference> {
        self.references.iter().filter_map(|text| text.parse().ok())
    }

    /// Adds a reference, if the profile needs it to be found or there is room; returns whether it did. To find an
    /// artifact one of its references is enough. For another artifact the oldest reference is forgotten.
    fn note(&mut self, reference: &Reference) -> bool {
        let text = reference.to_string();
        let has_artifact = || self.parsed().any(|known| known.digest() == reference.digest());
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
        Ok(Self { records, limits: LIMITS, index: OnceLock::new(), writer: Mutex::default() })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        lock(self.index.get_or_init(|| Mutex::new(self.read_all())))
    }

    /// Reads what an earlier daemon kept, the oldest first.
    fn read_all(&self) -> Index {
        let mut all = self.records.load_all().unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "security profiles are absent until they are pulled again");
            Vec::new()
        });
        all.sort_by_cached_key(|(name, _)| self.records.saved_at(name));
        let mut index = Index::default();
        for (name, loaded) in all {
            match loaded {
                Ok(record) => self.check(&mut index, &name, &record),
                Err(unusable) => warn(&name, &unusable),
            }
        }
        index
    }

    /// Enters a record in the index, if it is what its name says.
    fn check(&self, index: &mut Index, name: &str, record: &Record) {
        let digest = digest_of(record.profile.as_bytes());
        if digest.hex() == name {
            index.enter(digest, record);
        } else {
            warn(name, &self.records.reject(name, format!("it has the digest {digest}").into()));
        }
    }

    /// All profiles, sorted by digest. It may wait for the disk.
    #[must_use]
    pub fn list(&self) -> Vec<ProfileItem> {
        let item = |(digest, entry): (&Digest, &Entry)| {
            let mut references: Vec<_> = entry.references.iter().map(ToString::to_string).collect();
            references.sort();
            ProfileItem { digest: digest.clone(), references, size_bytes: entry.size_bytes }
        };
        self.index().entries.iter().map(item).collect()
    }

    /// The profile in the artifact with the digest of this reference, from whatever repository it came; `None` if it is
    /// absent. It waits for the disk.
    #[must_use]
    pub fn find(&self, reference: &Reference) -> Option<String> {
        let _writer = lock(&self.writer);
        let (digest, record) = self.load(reference)?;
        self.index().enter(digest, &record);
        Some(record.profile)
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

    /// Keeps a profile that was pulled by this reference, in place of its oldest one if it has too many, and of other
    /// profiles if there are too many of these.
    ///
    /// # Errors
    /// [`StoreError::Profile`]; what was there before is still there, except for profiles that others replace.
    pub fn keep(&self, reference: &Reference, profile: String) -> Result<(), StoreError> {
        let _writer = lock(&self.writer);
        let digest = digest_of(profile.as_bytes());
        let record = self.read(&digest).unwrap_or(Record { references: Vec::new(), profile });
        self.save(digest, record, reference)?;
        let surplus = || self.index().surplus(self.limits);
        while let Some(oldest) = surplus() {
            self.forget(&oldest)?;
        }
        Ok(())
    }

    /// Removes a profile with all its references. It is not an error if it is absent.
    ///
    /// # Errors
    /// [`StoreError::Profile`]; the profile stays.
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let _writer = lock(&self.writer);
        self.forget(digest)
    }

    fn forget(&self, digest: &Digest) -> Result<(), StoreError> {
        let removed = self.records.remove(digest.hex());
        removed.map_err(|source| StoreError::Profile { digest: digest.clone(), source: source.into() })?;
        self.index().entries.remove(digest);
        Ok(())
    }

    fn load(&self, reference: &Reference) -> Option<(Digest, Record)> {
        let artifact = reference.digest()?;
        let has = |entry: &Entry| entry.references.iter().any(|known| known.digest() == Some(artifact));
        let found: Vec<Digest> = {
            let index = self.index();
            index.entries.iter().filter(|(_, entry)| has(entry)).map(|(digest, _)| digest.clone()).collect()
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
        self.index().entries.remove(digest);
        None
    }

    fn save(&self, digest: Digest, mut record: Record, reference: &Reference) -> Result<(), StoreError> {
        if record.note(reference)
            && let Err(source) = self.records.save(digest.hex(), &record, Durability::Durable)
        {
            return Err(StoreError::Profile { digest, source: source.into() });
        }
        self.index().enter(digest, &record);
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

    #[test]
    fn there_are_only_so_many_and_the_last_used_stay() {
        let directory = tempfile::tempdir().unwrap();
        let limited = |profiles, bytes| Profiles { limits: Limits { profiles, bytes }, ..open(&directory) };
        let kept = |profiles: &Profiles| {
            let found = |artifact: &u8| profiles.find(&reference("any", *artifact)).is_some();
            (1..=6).filter(found).collect::<Vec<u8>>()
        };
        let keep = |profiles: &Profiles, artifact: u8, text: &str| {
            profiles.keep(&reference("any", artifact), text.to_owned()).unwrap();
        };
        let profiles = limited(3, 1 << 20);
        (1..=3).for_each(|artifact| keep(&profiles, artifact, &artifact.to_string()));
        assert!(profiles.find(&reference("any", 1)).is_some());
        keep(&profiles, 4, "4");
        assert_eq!(kept(&profiles), [1, 3, 4], "the second is the one that was not used");
        assert_eq!(std::fs::read_dir(directory.path().join("records")).unwrap().count(), 3);
        assert!(profiles.refer(&reference("other", 1)).unwrap());
        keep(&profiles, 2, "2");
        assert_eq!(kept(&profiles), [1, 2, 4], "to be pulled again is a use, too");
        // A release that kept more left these: only what is kept now has others go.
        assert_eq!(kept(&limited(1, 1 << 20)), [1, 2, 4]);
        let profiles = limited(3, 500);
        keep(&profiles, 5, &"x".repeat(400));
        assert_eq!(kept(&profiles), [5], "one that is too large for any other");
        keep(&profiles, 6, &"y".repeat(600));
        assert_eq!(kept(&profiles), [6], "nothing is refused for its size here");
    }
}
