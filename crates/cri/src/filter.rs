//! Filters for lists: fields are ANDed, unset ones match everything, and an id may be a prefix.

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

pub(crate) fn pod(filter: Option<&PodSandboxFilter>, pod: &PodSandbox) -> bool {
    let Some(filter) = filter else { return true };
    id(&filter.id, &pod.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == pod.state)
        && labels(&filter.label_selector, &pod.labels)
}

pub(crate) fn container(filter: Option<&ContainerFilter>, container: &Container) -> bool {
    let Some(filter) = filter else { return true };
    id(&filter.id, &container.id)
        && id(&filter.pod_sandbox_id, &container.pod_sandbox_id)
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
