//! Whether there is contact with a pod's supervisor, over time.
//!
//! It comes and goes with the connection as long as the supervisor lives; once the supervisor is gone it does not come
//! back. Whoever needs contact waits for it a moment, but never for a supervisor that does not respond.

use std::sync::Arc;

use tokio::sync::watch;
use wharf_types::PodId;

use crate::BRIEF_PATIENCE;
use crate::connection::Connection;

/// All words for how wharfd stands with a supervisor that exists.
pub const STANDINGS: [&str; 3] = ["connected", "silent", "connecting"];

/// The state of the connection.
#[derive(Debug, Clone)]
pub enum Contact {
    /// It is being made, or made again after it broke, as long as the supervisor lives.
    Connecting,
    /// The supervisor has responded on it.
    Up(Arc<Connection>),
    /// The supervisor is gone, with everything that it supervised.
    Gone,
}

/// The connection's state over time.
#[derive(Debug)]
pub struct ContactWatch(watch::Sender<Contact>);

impl Default for ContactWatch {
    fn default() -> Self {
        Self(watch::Sender::new(Contact::Connecting))
    }
}

impl ContactWatch {
    /// How wharfd stands with the supervisor, one of [`STANDINGS`]; `None` if the supervisor is gone.
    pub fn standing(&self) -> Option<&'static str> {
        let [connected, silent, connecting] = STANDINGS;
        match &*self.0.borrow() {
            Contact::Up(connection) if connection.is_silent() => Some(silent),
            Contact::Up(_) => Some(connected),
            Contact::Connecting => Some(connecting),
            Contact::Gone => None,
        }
    }

    /// The present state.
    pub fn now(&self) -> Contact {
        self.0.borrow().clone()
    }

    /// Whether the supervisor is gone.
    pub fn is_gone(&self) -> bool {
        matches!(*self.0.borrow(), Contact::Gone)
    }

    /// Changes the state; a supervisor that is gone does not come back.
    pub fn set(&self, new: Contact) {
        self.0.send_if_modified(|contact| {
            let changes = !matches!(contact, Contact::Gone);
            if changes {
                *contact = new;
            }
            changes
        });
    }

    /// Waits until the supervisor is gone.
    pub async fn gone(&self) {
        // The sender belongs to the pod, so it lives as long as the wait.
        let mut contacts = self.0.subscribe();
        let _gone = contacts.wait_for(|contact| matches!(contact, Contact::Gone)).await;
    }

    /// Waits until it is made or never will be, but not for a supervisor that does not respond soon.
    pub async fn settled(&self) -> Contact {
        let mut contacts = self.0.subscribe();
        let settled = contacts.wait_for(|contact| !matches!(contact, Contact::Connecting));
        // The sender belongs to the pod, so it lives as long as the wait.
        let _settled_in_time = tokio::time::timeout(BRIEF_PATIENCE, settled).await.map(drop);
        self.now()
    }
}

/// Waits for a response of a pod's supervisor, and logs it if that takes long.
pub async fn patiently<T>(pod: &PodId, answer: impl Future<Output = T>) -> T {
    tokio::pin!(answer);
    match tokio::time::timeout(BRIEF_PATIENCE, &mut answer).await {
        Ok(answered) => answered,
        Err(_elapsed) => {
            tracing::warn!(pod = pod.short(), "a pod's supervisor does not respond; waiting for it");
            let answered = answer.await;
            tracing::info!(pod = pod.short(), "the pod's supervisor responds again");
            answered
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn up() -> Contact {
        let (ours, _theirs) = wharf_sys::socket::pair().unwrap();
        Contact::Up(Arc::new(Connection::new(ours).unwrap().0))
    }

    #[tokio::test]
    async fn a_connection_may_come_and_go_as_long_as_the_supervisor_lives() {
        let contacts = ContactWatch::default();
        assert!(contacts.settled().now_or_never().is_none(), "it is waited for");
        assert_eq!(contacts.standing(), Some("connecting"));
        contacts.set(up());
        assert!(matches!(contacts.settled().await, Contact::Up(_)));
        assert_eq!(contacts.standing(), Some("connected"));
        contacts.set(Contact::Connecting);
        assert!(contacts.gone().now_or_never().is_none());
        contacts.set(up());
        assert!(matches!(contacts.now(), Contact::Up(_)));
    }

    #[tokio::test]
    async fn a_supervisor_that_is_gone_does_not_come_back() {
        let contacts = ContactWatch::default();
        contacts.set(Contact::Gone);
        contacts.set(up());
        contacts.set(Contact::Connecting);
        assert!(contacts.is_gone());
        assert_eq!(contacts.standing(), None);
        contacts.gone().await;
        assert!(matches!(contacts.settled().await, Contact::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_answer_is_not_waited_for_without_end() {
        assert!(matches!(ContactWatch::default().settled().await, Contact::Connecting));
    }
}
