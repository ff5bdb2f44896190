//! Filters for lists: fields are ANDed, unset ones match everything, and an id may be a prefix.
//!
//! They look at the CRI's messages, which are made from memory. What an id alone decides has a function of its own, so
//! that no message is made for nothing. Whatever matches nothing, such as a state that does not exist, gives an empty
//! list and no error.

use std::collections::BTreeMap;

use wharf_cri_api::v1::{
    Container, ContainerFilter, ContainerStatsFilter, PodSandbox, PodSandboxFilter, PodSandboxStatsFilter,
};

fn id(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted)
}

fn labels(wanted: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a pod has the id that is wanted, for which no message about it has to be made.
pub(crate) fn pod_id(filter: Option<&PodSandboxFilter>, pod: &str) -> bool {
    filter.is_none_or(|filter| id(&filter.id, pod))
}

pub(crate) fn pod(filter: Option<&PodSandboxFilter>, pod: &PodSandbox) -> bool {
    let has_id = pod_id(filter, &pod.id);
    let Some(filter) = filter else { return true };
    has_id
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == pod.state)
        && labels(&filter.label_selector, &pod.labels)
}

/// Whether containers of a pod are wanted, for which none of them has to be looked at.
pub(crate) fn container_pod(filter: Option<&ContainerFilter>, pod: &str) -> bool {
    filter.is_none_or(|filter| id(&filter.pod_sandbox_id, pod))
}

/// Whether a container has the id that is wanted, for which no message about it has to be made.
pub(crate) fn container_id(filter: Option<&ContainerFilter>, container: &str) -> bool {
    filter.is_none_or(|filter| id(&filter.id, container))
}

pub(crate) fn container(filter: Option<&ContainerFilter>, container: &Container) -> bool {
    let has_ids = container_id(filter, &container.id) && container_pod(filter, &container.pod_sandbox_id);
    let Some(filter) = filter else { return true };
    has_ids
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == container.state)
        && labels(&filter.label_selector, &container.labels)
}

pub(crate) fn container_stats(filter: Option<&ContainerStatsFilter>, container: &Container) -> bool {
    let Some(filter) = filter else { return true };
    id(&filter.id, &container.id)
        && id(&filter.pod_sandbox_id, &container.pod_sandbox_id)
        && labels(&filter.label_selector, &container.labels)
}

pub(crate) fn pod_stats(filter: Option<&PodSandboxStatsFilter>, pod: &PodSandbox) -> bool {
    let Some(filter) = filter else { return true };
    id(&filter.id, &pod.id) && labels(&filter.label_selector, &pod.labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{ContainerStateValue, PodSandboxStateValue};

    #[test]
    fn fields_are_anded() {
        let label = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
        let item = PodSandbox { id: "abcd".into(), labels: label("a"), state: 0, ..PodSandbox::default() };
        assert!(pod(None, &item));
        let filter =
            PodSandboxFilter { id: "ab".into(), label_selector: label("a"), ..PodSandboxFilter::default() };
        assert!(pod(Some(&filter), &item));
        let other = PodSandboxFilter { label_selector: label("b"), ..filter.clone() };
        assert!(!pod(Some(&other), &item));
        let state = PodSandboxFilter { state: Some(PodSandboxStateValue { state: 1 }), ..filter };
        assert!(!pod(Some(&state), &item));
    }

    #[test]
    fn each_field_of_a_filter_can_leave_a_container_out() {
        let labels = |value: &str| BTreeMap::from([("app".to_owned(), value.to_owned())]);
        let item = Container {
            id: "abcd".to_owned(),
            pod_sandbox_id: "1234".to_owned(),
            state: 1,
            labels: labels("a"),
            ..Container::default()
        };
        let all = ContainerFilter {
            id: "abcd".to_owned(),
            pod_sandbox_id: "12".to_owned(),
            state: Some(ContainerStateValue { state: 1 }),
            label_selector: labels("a"),
        };
        assert!(container(None, &item) && container(Some(&all), &item));
        assert!(container_id(None, "abcd") && container_id(Some(&all), "abcd"));
        assert!(container_pod(None, "1234") && container_pod(Some(&all), "1234"));
        assert!(!container_id(Some(&all), "bbcd") && !container_pod(Some(&all), "2234"));
        let others = [
            ContainerFilter { id: "b".to_owned(), ..all.clone() },
            ContainerFilter { pod_sandbox_id: "2".to_owned(), ..all.clone() },
            ContainerFilter { state: Some(ContainerStateValue { state: 2 }), ..all.clone() },
            ContainerFilter { label_selector: labels("b"), ..all.clone() },
        ];
        for other in others {
            assert!(!container(Some(&other), &item), "{other:?}");
            let ContainerFilter { id, pod_sandbox_id, label_selector, state } = other;
            let stats = ContainerStatsFilter { id, pod_sandbox_id, label_selector };
            let by_state = state != all.state;
            assert_eq!(container_stats(Some(&stats), &item), by_state, "statistics have no state: {stats:?}");
        }
    }

    #[test]
    fn statistics_of_pods_are_chosen_as_pods_are() {
        let item = PodSandbox { id: "abcd".to_owned(), ..PodSandbox::default() };
        let filter =
            |id: &str| PodSandboxStatsFilter { id: id.to_owned(), ..PodSandboxStatsFilter::default() };
        assert!(pod_stats(None, &item) && pod_stats(Some(&filter("")), &item));
        assert!(pod_stats(Some(&filter("ab")), &item) && !pod_stats(Some(&filter("b")), &item));
    }
}
