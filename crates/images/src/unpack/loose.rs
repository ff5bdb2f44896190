//! Loose names: directories and hard links of a layer that mean something only together with the layers below it.
//!
//! A layer is unpacked on its own and shared by images with different layers below it. So these names are noted,
//! within a bound, and each image resolves them when it is committed (`chain`).

use std::collections::{BTreeMap, BTreeSet};

use wharf_snapshots::tree::Usage;

use super::parents::join;
use super::{Contents, Effect, HardLink, UnpackError};

/// The most bytes of loose names for one layer, in memory while it is unpacked and on disk afterwards.
const NAMES_LIMIT_BYTES: u64 = 4 << 20;
/// The cost of a name besides its own bytes.
const ENTRY_BYTES: u64 = 64;

/// The loose names of an archive.
#[derive(Debug, Default)]
pub(super) struct Loose {
    /// Directories that have files in them but no entry; the root is the empty path.
    implied: BTreeSet<Vec<u8>>,
    /// Hard links to files that it does not have, by their own paths.
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: u64,
}

impl Loose {
    /// Notes a directory that has no entry so far.
    pub(super) fn imply(&mut self, path: Vec<u8>) -> Result<(), UnpackError> {
        let bytes = cost(&path);
        if self.implied.insert(path) { self.charge(bytes) } else { Ok(()) }
    }

    /// Forgets an implied directory, which has got an entry or hides what is below.
    pub(super) fn settle(&mut self, path: &[u8]) {
        if self.implied.remove(path) {
            self.bytes -= cost(path);
        }
    }

    /// Notes a hard link to a file of a lower layer.
    pub(super) fn link(&mut self, path: Vec<u8>, target: Vec<u8>) -> Result<(), UnpackError> {
        let bytes = cost(&path) + cost(&target);
        self.links.insert(path, target);
        self.charge(bytes)
    }

    /// Forgets such a link, because something else is made in its place.
    pub(super) fn unlink(&mut self, path: &[u8]) {
        if let Some(target) = self.links.remove(path) {
            self.bytes -= cost(path) + cost(&target);
        }
    }

    /// The target of such a link.
    pub(super) fn target(&self, path: &[u8]) -> Option<&Vec<u8>> {
        self.links.get(path)
    }

    /// Forgets a path and everything below it, because something else is made there.
    pub(super) fn forget(&mut self, path: &[u8]) {
        let below = join(path, b"");
        let within = |name: &Vec<u8>| name == path || name.starts_with(&below);
        // Names that sort between the path and what is below it, such as `a-b` between `a` and `a/b`, stay.
        let from = path.to_vec();
        let beginning = |name: &&Vec<u8>| name.starts_with(path);
        let implied: Vec<_> = self
            .implied
            .range(from.clone()..)
            .take_while(beginning)
            .filter(|name| within(name))
            .cloned()
            .collect();
        for name in implied {
            self.settle(&name);
        }
        let links: Vec<_> = self
            .links
            .range(from..)
            .map(|(name, _)| name)
            .take_while(beginning)
            .filter(|name| within(name))
            .cloned()
            .collect();
        links.iter().for_each(|name| self.unlink(name));
    }

    /// Everything known about the layer, with sorted names.
    pub(super) fn finish(self, usage: Usage, effect: Effect) -> Contents {
        let links = self.links.into_iter().map(|(path, target)| HardLink { path, target }).collect();
        Contents { usage, implied: self.implied.into_iter().collect(), links, effect }
    }

    fn charge(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.bytes += bytes;
        if self.bytes > NAMES_LIMIT_BYTES {
            let what =
                "bytes of names of directories that it does not name, or of hard links to other layers";
            return Err(UnpackError::Limit { what, limit: NAMES_LIMIT_BYTES });
        }
        Ok(())
    }
}

fn cost(path: &[u8]) -> u64 {
    path.len() as u64 + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_is_forgotten_with_all_below_and_nothing_else() {
        let mut loose = Loose::default();
        for path in ["a", "a-b", "a/b", "a/b/c", "ab", "b"] {
            loose.imply(path.into()).unwrap();
            loose.link(format!("{path}/link").into(), b"x".to_vec()).unwrap();
        }
        loose.settle(b"b");
        loose.forget(b"a");
        let Contents { implied, links, .. } = loose.finish(Usage::default(), Effect::Merges);
        assert_eq!(implied, [b"a-b".to_vec(), b"ab".to_vec()]);
        let links: Vec<_> = links.into_iter().map(|link| link.path).collect();
        assert_eq!(links, [b"a-b/link".to_vec(), b"ab/link".to_vec(), b"b/link".to_vec()]);
    }

    #[test]
    fn names_have_a_bound_that_counts_only_what_is_kept() {
        let mut loose = Loose::default();
        for n in 0..100_000 {
            let path = format!("{n}").into_bytes();
            loose.imply(path.clone()).unwrap();
            loose.forget(&path);
        }
        assert_eq!(loose.bytes, 0);
        let error = (0..100_000).try_for_each(|n| loose.imply(format!("{n}").into_bytes())).unwrap_err();
        assert!(matches!(error, UnpackError::Limit { limit: NAMES_LIMIT_BYTES, .. }));
    }
}
