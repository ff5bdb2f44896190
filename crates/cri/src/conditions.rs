//! The conditions in the runtime's status: whether it works, and whether pods can be made.

use wharf_cri_api::v1::RuntimeCondition;
use wharf_network::Readiness;
use wharf_pods::{Extent, Unready};

/// Returns the conditions. A part that did not respond in time says why.
///
/// If pods can be stopped and removed but not made, the network is reported as not ready: a kubelet then starts no pods
/// and continues with those that it has. With a runtime that is not ready, it would not even remove them.
pub(crate) fn of(
    network: Result<Readiness, String>,
    state_directory: Result<Option<Unready>, String>,
) -> Vec<RuntimeCondition> {
    let mut runtime = Readiness { ready: true, reason: String::new(), message: String::new() };
    let mut network = network.unwrap_or_else(|message| unready("NetworkConfigStuck", message));
    match state_directory {
        Ok(None) => {}
        Ok(Some(Unready { extent: Extent::NewPods, reason, message })) => network = unready(reason, message),
        Ok(Some(Unready { extent: Extent::Everything, reason, message })) => {
            runtime = unready(reason, message);
        }
        Err(message) => runtime = unready("StateDirectoryStuck", message),
    }
    vec![condition("RuntimeReady", runtime), condition("NetworkReady", network)]
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
    fn seen(network: Result<Readiness, String>, state_directory: Result<Option<Unready>, String>) -> Seen {
        let conditions = of(network, state_directory);
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

    fn network() -> Result<Readiness, String> {
        Ok(Readiness { ready: true, reason: String::new(), message: String::new() })
    }

    fn full(extent: Extent) -> Result<Option<Unready>, String> {
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
        let stuck = || "it does not respond".to_owned();
        let expected = [ill("StateDirectoryStuck"), ill("NetworkConfigStuck")];
        assert_eq!(seen(Err(stuck()), Err(stuck())), expected);
        assert_eq!(of(Err(stuck()), Ok(None))[1].message, stuck());
    }
}
