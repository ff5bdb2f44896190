//! The levels of SELinux that pods have: two pods have the same one only if they ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use wharf_types::lock::lock;

/// The levels, and how many pods have each.
#[derive(Debug, Default)]
pub(super) struct Levels(Mutex<HashMap<String, usize>>);

/// The level of a pod, which is given back with it; empty if the node's policy has none.
#[derive(Debug)]
pub struct Level {
    text: String,
    of: Arc<Levels>,
}

impl Levels {
    /// Takes a level that a pod asks for, or had when an earlier daemon made it.
    pub(super) fn take(self: &Arc<Self>, level: &str) -> Level {
        *lock(&self.0).entry(level.to_owned()).or_default() += 1;
        Level { text: level.to_owned(), of: Arc::clone(self) }
    }

    /// Takes one that no pod has: `find` gets to know which are taken.
    pub(super) fn take_free(
        self: &Arc<Self>,
        find: impl FnOnce(&dyn Fn(&str) -> bool) -> Option<String>,
    ) -> Option<Level> {
        let mut taken = lock(&self.0);
        let level = find(&|level| taken.contains_key(level))?;
        *taken.entry(level.clone()).or_default() += 1;
        drop(taken);
        Some(Level { text: level, of: Arc::clone(self) })
    }
}

impl Level {
    /// As the kernel has it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        let mut taken = lock(&self.of.0);
        if let Some(count) = taken.get_mut(&self.text) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_free_again_when_the_last_pod_with_it_is_gone() {
        let levels = Arc::new(Levels::default());
        let first_free = || {
            levels.take_free(|is_taken| {
                let all = (0..3).map(|number| format!("s0:c{number},c9"));
                all.into_iter().find(|level| !is_taken(level))
            })
        };
        let asked = [levels.take("s0:c1,c9"), levels.take("s0:c1,c9")];
        let own = first_free().unwrap();
        let next = first_free().unwrap();
        assert_eq!((own.as_str(), next.as_str()), ("s0:c0,c9", "s0:c2,c9"));
        assert!(first_free().is_none());
        let [one, other] = asked;
        drop(one);
        assert!(first_free().is_none());
        drop(other);
        assert_eq!(first_free().unwrap().as_str(), "s0:c1,c9");
        drop(own);
        assert_eq!(first_free().unwrap().as_str(), "s0:c0,c9");
    }
}
