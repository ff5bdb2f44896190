//! The conditions in the runtime's status: whether it works, and whether pods can be made.
//!
//! A kubelet goes by them, so the answer comes within a bound: a part whose file system does not respond is reported as
//! that. Why a part is not ready is found out by its own crate; here it gets the CRI's form.

use std::time::Duration;

use wharf_cri_api::v1::RuntimeCondition;
use wharf_network::Readiness;
use wharf_pods::{Extent, Unready};
use wharf_tasks::ThreadError;
use wharf_types::chain;

use crate::readings::Shared;

/// How long Status waits for the parts, which have to read files.
const PATIENCE: Duration = Duration::from_secs(2);

/// The readings of the parts. Each has a thread of its own: what keeps one from its end says nothing of the other.
#[derive(Debug)]
pub(crate) struct Conditions {
    patience: Duration,
    network: Shared<Readiness>,
    state_directory: Shared<Option<Unready>>,
}

/// Why nothing is known of a part.
#[derive(Debug)]
enum Unread {
    /// Its file system does not respond within this time.
    Stuck(Duration),
    /// It could not be read.
    Failed(ThreadError),
}

impl Conditions {
    pub(crate) fn new() -> Self {
        Self {
            patience: PATIENCE,
            network: Shared::new("reading the network's configuration"),
            state_directory: Shared::new("looking at the state directory"),
        }
    }

    /// Reads the parts at the same time, and returns the conditions.
    pub(crate) async fn read(
        &self,
        network: impl FnOnce() -> Readiness + Send + 'static,
        state_directory: impl FnOnce() -> Option<Unready> + Send + 'static,
    ) -> Vec<RuntimeCondition> {
        let network = self.in_time(self.network.take(network));
        let state_directory = self.in_time(self.state_directory.take(state_directory));
        let (network, state_directory) = tokio::join!(network, state_directory);
        of(network, state_directory)
    }

    async fn in_time<T>(&self, reading: impl Future<Output = Result<T, ThreadError>>) -> Result<T, Unread> {
        let read = tokio::time::timeout(self.patience, reading).await;
        read.map_err(|_elapsed| Unread::Stuck(self.patience))?.map_err(Unread::Failed)
    }
}

/// Returns the conditions. A part of which nothing is known says why.
///
/// If pods can be stopped and removed but not made, the network is reported as not ready: a kubelet then starts no pods
/// and continues with those that it has. With a runtime that is not ready, it would not even remove them. So it is
/// where no thread can be started: what has to end there is the pod that uses up the processes.
fn of(
    network: Result<Readiness, Unread>,
    state_directory: Result<Option<Unready>, Unread>,
) -> Vec<RuntimeCondition> {
    let mut runtime = Readiness { ready: true, reason: String::new(), message: String::new() };
    let mut network = network.unwrap_or_else(|unread| unread.shown("NetworkConfigStuck", "NetworkUnknown"));
    match state_directory {
        Ok(None) => {}
        Ok(Some(Unready { extent: Extent::NewPods, reason, message })) => network = unready(reason, message),
        Ok(Some(Unready { extent: Extent::Everything, reason, message })) => {
            runtime = unready(reason, message);
        }
        Err(unread) => {
            let part = if matches!(unread, Unread::Stuck(_)) { &mut runtime } else { &mut network };
            *part = unread.shown("StateDirectoryStuck", "StateDirectoryUnknown");
        }
    }
    vec![condition("RuntimeReady", runtime), condition("NetworkReady", network)]
}

impl Unread {
    /// The part as it is shown, with the reason for each case.
    fn shown(self, stuck: &str, failed: &str) -> Readiness {
        match self {
            Self::Stuck(after) => {
                unready(stuck, format!("its file system does not respond within {after:?}"))
            }
            Self::Failed(error) => unready(failed, chain(&error)),
        }
    }
}

fn unready(reason: &str, message: String) -> Readiness {
    Readiness { ready: false, reason: reason.to_owned(), message }
}

fn condition(kind: &str, found: Readiness) -> RuntimeCondition {
    let Readiness { ready: status, reason, message } = found;
    RuntimeCondition { r#type: kind.to_owned(), status, reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seen = [(bool, String); 2];

    /// Whether the runtime and the network are ready, with the reasons.
    fn seen(network: Result<Readiness, Unread>, state_directory: Result<Option<Unready>, Unread>) -> Seen {
        both(of(network, state_directory))
    }

    fn both(conditions: Vec<RuntimeCondition>) -> Seen {
        let kinds: Vec<_> = conditions.iter().map(|condition| condition.r#type.as_str()).collect();
        assert_eq!(kinds, ["RuntimeReady", "NetworkReady"], "as the kubelet looks for them");
        let seen: Vec<_> =
            conditions.into_iter().map(|condition| (condition.status, condition.reason)).collect();
        seen.try_into().unwrap()
    }

    fn well() -> (bool, String) {
        (true, String::new())
    }

    fn ill(reason: &str) -> (bool, String) {
        (false, reason.to_owned())
    }

    fn ready() -> Readiness {
        Readiness { ready: true, reason: String::new(), message: String::new() }
    }

    fn network() -> Result<Readiness, Unread> {
        Ok(ready())
    }

    fn full(extent: Extent) -> Result<Option<Unready>, Unread> {
        Ok(Some(Unready { extent, reason: "StateDirectoryFull", message: String::new() }))
    }

    #[test]
    fn a_node_without_room_for_pods_can_still_remove_them() {
        assert_eq!(seen(network(), full(Extent::NewPods)), [well(), ill("StateDirectoryFull")]);
        assert_eq!(seen(network(), full(Extent::Everything)), [ill("StateDirectoryFull"), well()]);
    }

    #[test]
    fn each_part_has_its_own_condition() {
        assert_eq!(seen(network(), Ok(None)), [well(), well()]);
        let missing = Ok(unready("NoCniConfig", String::new()));
        assert_eq!(seen(missing, Ok(None)), [well(), ill("NoCniConfig")]);
    }

    #[test]
    fn what_does_not_answer_is_not_ready() {
        let stuck = || Unread::Stuck(PATIENCE);
        let expected = [ill("StateDirectoryStuck"), ill("NetworkConfigStuck")];
        assert_eq!(seen(Err(stuck()), Err(stuck())), expected);
        assert_eq!(of(Err(stuck()), Ok(None))[1].message, "its file system does not respond within 2s");
    }

    #[test]
    fn without_a_thread_for_a_reading_pods_can_still_be_removed() {
        let failed = || {
            let source = std::io::Error::from_raw_os_error(11);
            Err(Unread::Failed(ThreadError::NoRoom { what: "looking".into(), source }))
        };
        let found = of(network(), failed());
        assert!(found[1].message.starts_with("looking: no thread can be started"), "{found:?}");
        assert_eq!(both(found), [well(), ill("StateDirectoryUnknown")]);
        assert_eq!(seen(failed().map(|_| ready()), Ok(None)), [well(), ill("NetworkUnknown")]);
    }

    #[tokio::test]
    async fn a_part_that_is_stuck_has_one_thread_and_takes_nothing_from_the_other() {
        let conditions = Conditions { patience: Duration::from_millis(500), ..Conditions::new() };
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let stuck = move || {
            told.recv().unwrap();
            ready()
        };
        let expected = [well(), ill("NetworkConfigStuck")];
        assert_eq!(both(conditions.read(stuck, || None).await), expected);
        for _ in 0..2 {
            let again = || panic!("it is read beside itself");
            assert_eq!(both(conditions.read(again, || None).await), expected);
        }
        go_on.send(()).unwrap();
        assert_eq!(both(conditions.read(ready, || None).await), [well(), well()]);
    }
}
