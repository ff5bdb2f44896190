//! Opening: what is on disk becomes the index; what is damaged is moved to the quarantine; what cannot be read now, or
//! was written by a newer release, stays where it is. Only a disk that cannot be read at all is fatal.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat};
use wharf_snapshots::tree::Usage;
use wharf_snapshots::{Trash, ensure_directory, list_names, make_private};
use wharf_state::records::Quarantine;
use wharf_sys::Error;
use wharf_sys::error::Named;
use wharf_sys::fs::{Resolve, open, open_below};
use wharf_types::Digest;

use super::index::{Index, Known};
use super::{Shared, Store, StoreError, system};
use crate::config::facts_of_stored;
use crate::image::Image;
use crate::limits::Limits;
use crate::manifest::{CONFIG_LIMIT_BYTES, digest_of};
use crate::profiles::Profiles;
use crate::records::{ConfigFacts, ImageRecord, RecordError, load_usage};

/// The file whose lock is the store's.
const LOCK: &str = "lock";

impl Store {
    /// Opens the store in a directory, with the default limits on layers, and makes it if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open, [`StoreError::Foreign`] if somebody else has files in it,
    /// [`StoreError::System`] if the disk fails. Damaged records and layers are moved to `quarantine/` and logged; they
    /// are not errors.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, Limits::default())
    }

    /// Whether a store may be opened in a directory, which need not exist. Nothing is changed.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] if somebody else has files in it, [`StoreError::System`] if it cannot be read, or its
    /// disk has failed.
    pub fn check(root: &Path) -> Result<(), StoreError> {
        let foreign = || Err(StoreError::Foreign { path: root.to_owned() });
        match open(root, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Err(error) if error.errno == Errno::ENOENT => Ok(()),
            opened => {
                let opened = opened.map_err(system("be opened"))?;
                if !may_be_private(&opened).map_err(system("be opened"))? {
                    return foreign();
                }
                check_disk(&opened).map_err(system("be used"))
            }
        }
    }

    /// Like [`Store::open`], with other limits.
    ///
    /// # Errors
    /// Those of [`Store::open`].
    pub fn open_with(root: &Path, limits: Limits) -> Result<Self, StoreError> {
        let failed = system("be opened");
        std::fs::create_dir_all(root).named("mkdir", || root.display().to_string()).map_err(&failed)?;
        let root_path =
            root.canonicalize().named("realpath", || root.display().to_string()).map_err(&failed)?;
        let root = open(&root_path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(&failed)?;
        if !may_be_private(&root).map_err(&failed)? {
            return Err(StoreError::Foreign { path: root_path });
        }
        make_private(&root, &root_path).map_err(&failed)?;
        let lock = lock(&root, &root_path)?;
        let directory = |name: &str| make(&root, name).map_err(&failed);
        directory("content")?;
        let staging = directory("staging")?;
        directory("quarantine")?;
        directory("empty")?;
        let quarantine = Quarantine::new(root_path.join("quarantine"));
        let trash = Trash::open(root.as_fd(), "trash").map_err(&failed)?;
        let boot = super::kept::boot_id().map_err(&failed)?;
        let mut shared = Shared {
            layers_path: root_path.join("layers"),
            content: directory("content/sha256")?,
            kept: super::kept::open(&root, &boot, &trash, make).map_err(&failed)?,
            layers: directory("layers")?,
            images: directory("images")?,
            boot,
            staging,
            trash,
            limits,
            serial: AtomicU64::new(0),
            index: RwLock::new(Index::default()),
            profiles: Profiles::open(&root_path.join("profiles"))?,
            known: Known::Part,
            writer: Mutex::new(()),
            sweeps: Default::default(),
            tenants: Default::default(),
            root_path,
            _lock: lock,
        };
        let mut loader = Loader { shared: &shared, quarantine: &quarantine, unread: HashSet::new() };
        let next = loader.load().map_err(&failed)?;
        let unread = loader.unread.len();
        let aside = quarantine.count().named("readdir", || "quarantine".into()).map_err(&failed)?;
        if unread + aside > 0 {
            tracing::warn!(
                unread,
                aside,
                "some image records cannot be read: unused layers are kept until they can"
            );
        }
        let known = if unread + aside == 0 { Known::All } else { Known::Part };
        (shared.known, shared.serial) = (known, AtomicU64::new(next));
        shared.clear_staging().map_err(&failed)?;
        Ok(Self { shared: Arc::new(shared) })
    }
}

/// Whether nobody but wharf has files in a directory: it has been wharf's, or is empty, as a new file system is.
fn may_be_private(root: &OwnedFd) -> wharf_sys::Result<bool> {
    let names = list_names(root.as_fd())?;
    Ok(names.iter().any(|name| name == LOCK) || names.iter().all(|name| name == "lost+found"))
}

/// On a file system that has become read-only, the file of an earlier daemon is locked as it is.
fn lock(root: &OwnedFd, path: &Path) -> Result<Flock<OwnedFd>, StoreError> {
    // A FIFO in its place is not waited for.
    let open = |flags| {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        nix::fcntl::openat(root, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR)
    };
    let opened = open(OFlag::O_RDWR | OFlag::O_CREAT).or_else(|errno| match errno {
        Errno::EROFS => open(OFlag::O_RDONLY),
        errno => Err(errno),
    });
    let file = opened.named("openat", || LOCK.into()).map_err(system("be locked"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_file, errno)| match errno {
        Errno::EWOULDBLOCK => StoreError::InUse { path: path.to_owned() },
        errno => system("be locked")(Error::new("flock", LOCK, errno)),
    })
}

/// Finds what would keep the store from being locked, and whether the disk fails at a write: what is in memory can be
/// read from one that has failed. A read-only one is as good as its lock.
fn check_disk(root: &OwnedFd) -> wharf_sys::Result<()> {
    let open = |name, flags| {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        nix::fcntl::openat(root, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
    };
    match open(LOCK, OFlag::O_RDWR) {
        Err(errno) if !matches!(errno, Errno::ENOENT | Errno::EROFS) => {
            return Err(Error::new("openat", LOCK, errno));
        }
        _ => {}
    }
    match open(".", OFlag::O_TMPFILE | OFlag::O_RDWR) {
        Err(errno @ (Errno::EIO | Errno::ESTALE | Errno::ESHUTDOWN)) => {
            Err(Error::new("openat", "a file without a name", errno))
        }
        // Some file systems have no such files, and a full one is used all the same.
        _ => Ok(()),
    }
}

fn make(root: &OwnedFd, name: &str) -> wharf_sys::Result<OwnedFd> {
    ensure_directory(root.as_fd(), name)?;
    open_below(root.as_fd(), name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Resolve::BeneathNoLinks)
}

struct Loader<'a> {
    shared: &'a Shared,
    quarantine: &'a Quarantine,
    /// What stays where it is, because it may be whole.
    unread: HashSet<OsString>,
}

/// Why something does not enter the index.
enum Unusable {
    /// It is not what was saved.
    Damaged(String),
    /// It cannot be read now, or not by this release.
    Unread(String),
}

impl From<RecordError> for Unusable {
    fn from(error: RecordError) -> Self {
        let reason = wharf_types::chain(&error);
        if error.is_damage() { Self::Damaged(reason) } else { Self::Unread(reason) }
    }
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Self {
        let reason = error.to_string();
        match error.errno {
            // The last two are of what is no regular file.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EFBIG | Errno::EINVAL | Errno::ENXIO => {
                Self::Damaged(reason)
            }
            _ => Self::Unread(reason),
        }
    }
}

/// Reads, and tries once more after an error that may pass.
fn patiently<T>(read: impl Fn() -> Result<T, Unusable>) -> Result<T, Unusable> {
    match read() {
        Err(Unusable::Unread(_)) => read(),
        other => other,
    }
}

impl Loader<'_> {
    /// Fills the index; returns the next serial number.
    fn load(&mut self) -> wharf_sys::Result<u64> {
        for name in list_names(self.shared.layers.as_fd())? {
            self.load_layer(&name);
        }
        let mut records = Vec::new();
        for name in list_names(self.shared.images.as_fd())? {
            records.extend(self.load_image(&name));
        }
        records.sort_by_key(|(_, record)| record.serial);
        let next = records.last().map_or(1, |(_, record)| record.serial + 1);
        // A tag that two records claim belongs to the later one.
        let mut owners = HashMap::new();
        for (_, record) in &records {
            owners.extend(record.repo_tags.iter().map(|tag| (tag.clone(), record.id.clone())));
        }
        for (id, mut record) in records {
            record.repo_tags.retain(|tag| owners.get(tag) == Some(&record.id));
            let image = Image::new(id, record, &self.shared.layers_path);
            self.shared.write().insert_image(Arc::new(image));
        }
        Ok(next)
    }

    fn load_layer(&mut self, name: &OsStr) {
        match (patiently(|| self.read_layer(name)), name.to_str()) {
            (Ok(usage), Some(name)) => {
                self.shared.write().insert_layer(name.to_owned(), usage);
            }
            (Ok(_), None) => {
                let reason = Unusable::Damaged("its name is not UTF-8".into());
                self.pass_over(&self.shared.layers_path.join(name), name, reason);
            }
            (Err(reason), _) => self.pass_over(&self.shared.layers_path.join(name), name, reason),
        }
    }

    fn read_layer(&self, name: &OsStr) -> Result<Usage, Unusable> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        open_below(self.shared.layers.as_fd(), Path::new(name).join("fs"), flags, Resolve::BeneathNoLinks)?;
        Ok(load_usage(&self.shared.layers_path.join(name))?)
    }

    fn load_image(&mut self, name: &OsStr) -> Option<(Digest, ImageRecord)> {
        if Path::new(name).extension().is_some() {
            // A record that was being written: the older one, if any, is whole beside it.
            self.shared.trash.discard_remains(self.shared.images.as_fd(), name);
            return None;
        }
        match patiently(|| self.read_image(name)) {
            Ok(loaded) => Some(loaded),
            Err(reason) => {
                self.pass_over(&self.shared.root_path.join("images").join(name), name, reason);
                None
            }
        }
    }

    fn read_image(&self, name: &OsStr) -> Result<(Digest, ImageRecord), Unusable> {
        let path = self.shared.root_path.join("images").join(name);
        let mut record = ImageRecord::load(&path)?;
        let id = record.id()?;
        if name != id.hex() {
            return Err(Unusable::Damaged(format!("it is the record of {id}")));
        }
        let index = self.shared.read();
        let mut layers = record.layers.iter().chain(&record.chain);
        if let Some(missing) = layers.find(|name| !index.has_layer(name)) {
            let unread = self.unread.contains(OsStr::new(missing));
            return Err(if unread {
                Unusable::Unread(format!("its layer {missing} could not be read"))
            } else {
                Unusable::Damaged(format!("its layer {missing} is missing"))
            });
        }
        drop(index);
        if record.chain.is_empty() {
            return Err(Unusable::Damaged("it has no layer to mount".into()));
        }
        match &record.config {
            Some(facts) => self.check_config(&id, facts)?,
            None => self.add_facts(&id, &mut record, &path)?,
        }
        Ok((id, record))
    }

    /// Checks that a config is there and has its length. It is not read: its length is up to the image's author, and a
    /// start must not wait for all of them. A file that was cut off or lost with a power cut is found by this. Bytes
    /// that have changed are found by the digest, whenever the config is used; until then only facts are shown, which
    /// the record has with a checksum.
    fn check_config(&self, id: &Digest, facts: &ConfigFacts) -> Result<(), Unusable> {
        let flags = OFlag::O_PATH;
        let fd = open_below(self.shared.content.as_fd(), id.hex(), flags, Resolve::BeneathNoLinks)?;
        let stat = fstat(&fd).named("fstat", || id.to_string())?;
        let is_file = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        if !is_file || u64::try_from(stat.st_size) != Ok(facts.size_bytes) {
            return Err(Unusable::Damaged("its config is damaged".into()));
        }
        Ok(())
    }

    /// Completes the record of an earlier release from the config, and saves it, so that the next start need not do it
    /// again.
    fn add_facts(&self, id: &Digest, record: &mut ImageRecord, path: &Path) -> Result<(), Unusable> {
        let bytes = self.shared.read_document(id, CONFIG_LIMIT_BYTES)?;
        if digest_of(&bytes) != *id {
            return Err(Unusable::Damaged("its config is damaged".into()));
        }
        let facts = facts_of_stored(&bytes).map_err(|error| Unusable::Damaged(wharf_types::chain(&error)))?;
        record.config = Some(facts);
        if let Err(error) = record.save(path) {
            let error = wharf_types::chain(&error);
            tracing::debug!(%id, error, "cannot complete the record of an image; the next start reads its config again");
        }
        Ok(())
    }

    /// Moves what is damaged to the quarantine, where only a person looks at it. What cannot be read or moved stays.
    fn pass_over(&mut self, path: &Path, name: &OsStr, reason: Unusable) {
        let shown = path.display();
        let stays = match reason {
            Unusable::Unread(reason) => {
                tracing::warn!(path = %shown, reason, "cannot read a record or layer yet; it stays in place");
                true
            }
            Unusable::Damaged(reason) => match self.quarantine.put_aside(path, name) {
                Ok(_place) => {
                    tracing::warn!(path = %shown, reason, "quarantined a damaged record or layer");
                    false
                }
                Err(error) => {
                    let error = wharf_types::chain(&error);
                    tracing::warn!(path = %shown, reason, error, "cannot quarantine a damaged record or layer");
                    true
                }
            },
        };
        if stays {
            self.unread.insert(name.to_owned());
        }
    }
}
