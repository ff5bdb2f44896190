//! Limits on the number of sessions: in all, with each container, and with each pod's ports. How many are open is also
//! counted by what they are for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use wharf_tasks::{Crowd, CrowdLimits, Crowded, Member};

/// The sessions of a server, by the id of their container or pod.
pub(crate) type Sessions = Crowd<String>;

/// A place among the sessions, until it is dropped.
pub(crate) type Place = Member<String>;

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

impl From<Crowded> for Full {
    fn from(crowded: Crowded) -> Self {
        match crowded {
            Crowded::All(limit) => Self::Server { limit },
            Crowded::One(limit) => Self::Each { limit },
        }
    }
}

/// How many sessions are open, by what they are for. Clones show the same.
#[derive(Debug, Clone, Default)]
pub struct OpenSessions(Arc<[AtomicUsize; Purpose::ALL.len()]>);

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Exec,
    Attach,
    PortForward,
}

impl Purpose {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Exec, "exec"), (Self::Attach, "attach"), (Self::PortForward, "port_forward")];
}

impl OpenSessions {
    /// What they are for, and how many.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, usize); Purpose::ALL.len()] {
        Purpose::ALL.map(|(purpose, name)| (name, self.of(purpose).load(Relaxed)))
    }

    pub(crate) fn enter(&self, purpose: Purpose) -> Open {
        self.of(purpose).fetch_add(1, Relaxed);
        Open { sessions: self.clone(), purpose }
    }

    fn of(&self, purpose: Purpose) -> &AtomicUsize {
        let [exec, attach, port_forward] = &*self.0;
        match purpose {
            Purpose::Exec => exec,
            Purpose::Attach => attach,
            Purpose::PortForward => port_forward,
        }
    }
}

/// A session that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    sessions: OpenSessions,
    purpose: Purpose,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.sessions.of(self.purpose).fetch_sub(1, Relaxed);
    }
}

/// Room for this many sessions in all, and with each container or pod.
pub(crate) fn bounded(limit: usize, limit_each: usize) -> Sessions {
    Sessions::new(CrowdLimits { of_one: limit_each, of_all: limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_counted_by_what_they_are_for() {
        let open = OpenSessions::default();
        let [first, _second] = [(); 2].map(|()| open.enter(Purpose::Exec));
        let _third = open.enter(Purpose::PortForward);
        drop(first);
        assert_eq!(open.counts(), [("exec", 1), ("attach", 0), ("port_forward", 1)]);
    }

    #[test]
    fn each_limit_is_named_by_its_setting() {
        let sessions = bounded(3, 2);
        let enter = |id: &str| sessions.enter(&id.to_owned()).map_err(Full::from);
        let _places = [enter("a"), enter("a"), enter("b")].map(Result::unwrap);
        assert_eq!(enter("a").unwrap_err(), Full::Each { limit: 2 });
        assert_eq!(enter("c").unwrap_err(), Full::Server { limit: 3 });
    }
}
