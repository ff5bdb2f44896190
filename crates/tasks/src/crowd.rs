//! Limits on how many of a kind go on at a time, for each key and for all. Nobody waits: what does not fit is refused.
//!
//! They are for work that others cause and that may be stuck: if those who come later waited as well, they would only
//! be more. Whoever gets in is counted until its [`Member`] is dropped, however its work ends. The limit for one key is
//! what keeps it from taking the places of all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard};

use wharf_types::lock::lock;

/// How many may go on at a time.
#[derive(Debug, Clone, Copy)]
pub struct CrowdLimits {
    /// For one key.
    pub of_one: usize,
    /// For all keys together.
    pub of_all: usize,
}

/// Why one more does not fit, with the number that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    /// There are too many of its key.
    One(usize),
    /// There are too many.
    All(usize),
}

/// What goes on, by key.
#[derive(Debug, Clone)]
pub struct Crowd<K> {
    limits: CrowdLimits,
    /// How many go on for each key; never zero.
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Clone> Crowd<K> {
    /// An empty one.
    #[must_use]
    pub fn new(limits: CrowdLimits) -> Self {
        Self { limits, counts: Arc::default() }
    }

    /// How many go on, for all keys together.
    #[must_use]
    pub fn count(&self) -> usize {
        self.counts().values().sum()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        lock(&self.counts)
    }

    /// Counts one more until the member is dropped.
    ///
    /// # Errors
    /// It does not fit.
    pub fn enter(&self, key: &K) -> Result<Member<K>, Crowded> {
        let mut counts = self.counts();
        let (here, everywhere) = (counts.get(key).copied().unwrap_or(0), counts.values().sum::<usize>());
        if here >= self.limits.of_one {
            return Err(Crowded::One(here));
        }
        if everywhere >= self.limits.of_all {
            return Err(Crowded::All(everywhere));
        }
        counts.insert(key.clone(), here + 1);
        Ok(Member { crowd: self.clone(), key: key.clone() })
    }
}

/// One of a crowd, as long as this exists.
#[derive(Debug)]
pub struct Member<K: Eq + Hash + Clone> {
    crowd: Crowd<K>,
    key: K,
}

impl<K: Eq + Hash + Clone> Drop for Member<K> {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        match counts.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_so_many_members_and_all_together_so_many() {
        let crowd = Crowd::new(CrowdLimits { of_one: 2, of_all: 3 });
        let mut members = vec![crowd.enter(&'a').unwrap(), crowd.enter(&'a').unwrap()];
        assert_eq!(crowd.enter(&'a').unwrap_err(), Crowded::One(2));
        members.pop();
        members.push(crowd.enter(&'a').unwrap());
        members.push(crowd.enter(&'b').unwrap());
        assert_eq!(crowd.enter(&'c').unwrap_err(), Crowded::All(3));
        drop(members);
        assert!(crowd.counts().is_empty());
    }
}
