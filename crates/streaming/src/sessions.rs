//! Limits on the number of sessions: in all, with each container, and with each pod's ports.

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

/// Room for this many sessions in all, and with each container or pod.
pub(crate) fn bounded(limit: usize, limit_each: usize) -> Sessions {
    Sessions::new(CrowdLimits { of_one: limit_each, of_all: limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named_by_its_setting() {
        let sessions = bounded(3, 2);
        let enter = |id: &str| sessions.enter(&id.to_owned()).map_err(Full::from);
        let _places = [enter("a"), enter("a"), enter("b")].map(Result::unwrap);
        assert_eq!(enter("a").unwrap_err(), Full::Each { limit: 2 });
        assert_eq!(enter("c").unwrap_err(), Full::Server { limit: 3 });
    }
}
