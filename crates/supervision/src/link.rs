//! The state of a pod's connection to its supervisor.

use std::sync::Arc;

use tokio::sync::watch;

use crate::BRIEF_PATIENCE;
use crate::connection::Connection;

/// The state of the connection.
#[derive(Debug, Clone)]
pub enum Link {
    /// It is being made, or made again after it broke, as long as the supervisor lives.
    Connecting,
    /// The supervisor has responded on it.
    Up(Arc<Connection>),
    /// The supervisor is gone, with everything that it supervised.
    Gone,
}

/// The connection's state over time.
#[derive(Debug)]
pub struct Links(watch::Sender<Link>);

impl Default for Links {
    fn default() -> Self {
        Self(watch::Sender::new(Link::Connecting))
    }
}

impl Links {
    /// The present state.
    pub fn now(&self) -> Link {
        self.0.borrow().clone()
    }

    /// Whether the supervisor is gone.
    pub fn is_gone(&self) -> bool {
        matches!(*self.0.borrow(), Link::Gone)
    }

    /// Changes the state; a supervisor that is gone does not come back.
    pub fn set(&self, new: Link) {
        self.0.send_if_modified(|link| {
            let changes = !matches!(link, Link::Gone);
            if changes {
                *link = new;
            }
            changes
        });
    }

    /// Waits until the supervisor is gone.
    pub async fn gone(&self) {
        // The sender belongs to the pod, so it lives as long as the wait.
        drop(self.0.subscribe().wait_for(|link| matches!(link, Link::Gone)).await);
    }

    /// Waits until it is made or never will be, but not for a supervisor that does not respond soon.
    pub async fn settled(&self) -> Link {
        let mut links = self.0.subscribe();
        let settled = links.wait_for(|link| !matches!(link, Link::Connecting));
        // The sender belongs to the pod, so it lives as long as the wait.
        drop(tokio::time::timeout(BRIEF_PATIENCE, settled).await);
        self.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn up() -> Link {
        let (ours, _theirs) = wharf_sys::socket::pair().unwrap();
        Link::Up(Arc::new(Connection::new(ours).unwrap().0))
    }

    #[tokio::test]
    async fn a_connection_may_come_and_go_as_long_as_the_supervisor_lives() {
        let links = Links::default();
        assert!(links.settled().now_or_never().is_none(), "it is waited for");
        links.set(up());
        assert!(matches!(links.settled().await, Link::Up(_)));
        links.set(Link::Connecting);
        assert!(links.gone().now_or_never().is_none());
        links.set(up());
        assert!(matches!(links.now(), Link::Up(_)));
    }

    #[tokio::test]
    async fn a_supervisor_that_is_gone_does_not_come_back() {
        let links = Links::default();
        links.set(Link::Gone);
        links.set(up());
        links.set(Link::Connecting);
        assert!(links.is_gone());
        links.gone().await;
        assert!(matches!(links.settled().await, Link::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_answer_is_not_waited_for_without_end() {
        assert!(matches!(Links::default().settled().await, Link::Connecting));
    }
}
