//! Filters of lists: fields are ANDed, unset ones let everything through, ids may be given by their beginning.

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
    use wharf_cri_api::v1::PodSandboxStateValue;

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
}
