//! Limits the number of sessions: in all, with each container, and with each pod's ports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use wharf_types::lock::lock;

/// The sessions of a server.
pub(crate) struct Sessions {
    limit: usize,
    limit_each: usize,
    /// The number for each container or pod id; never zero.
    counts: Mutex<HashMap<String, usize>>,
}

/// A place among the sessions, until it is dropped.
pub(crate) struct Place {
    sessions: Arc<Sessions>,
    id: String,
}

/// Which limit has been reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("all {limit} streaming sessions are in use; retry later, or raise streaming.sessions")]
    Server { limit: usize },
    #[error(
        "all {limit} streaming sessions of this container or pod are in use; retry later, or raise streaming.sessions_each"
    )]
    Each { limit: usize },
}

impl Sessions {
    pub(crate) fn new(limit: usize, limit_each: usize) -> Arc<Self> {
        Arc::new(Self { limit, limit_each, counts: Mutex::default() })
    }

    /// Takes a place for a session with a container or a pod.
    pub(crate) fn enter(self: &Arc<Self>, id: &str) -> Result<Place, Full> {
        let mut counts = self.counts();
        if counts.values().sum::<usize>() >= self.limit {
            return Err(Full::Server { limit: self.limit });
        }
        if counts.get(id).is_some_and(|&count| count >= self.limit_each) {
            return Err(Full::Each { limit: self.limit_each });
        }
        *counts.entry(id.to_owned()).or_default() += 1;
        Ok(Place { sessions: Arc::clone(self), id: id.to_owned() })
    }

    /// How many sessions there are.
    pub(crate) fn count(&self) -> usize {
        self.counts().values().sum()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        lock(&self.counts)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sessions.counts();
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let sessions = Sessions::new(3, 2);
        let (a, b) = (sessions.enter("a").ok(), sessions.enter("a").ok());
        assert_eq!(sessions.enter("a").err(), Some(Full::Each { limit: 2 }));
        let c = sessions.enter("b").ok();
        assert!(a.is_some() && b.is_some() && c.is_some() && sessions.count() == 3);
        assert_eq!(sessions.enter("b").err(), Some(Full::Server { limit: 3 }));
        drop(a);
        assert!(sessions.enter("a").is_ok());
        drop((b, c));
        assert!(sessions.counts().is_empty(), "nothing is remembered of what is over");
    }
}
