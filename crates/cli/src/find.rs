//! Resolves a name on the command line to a pod or a container.
//!
//! An id takes precedence over a name, and a name over the beginning of an id. A container's name is unique only within
//! its pod, so it may be written POD/NAME; a pod's name is unique only within its namespace, so NAMESPACE/ may stand
//! before either. Where a command needs a container, a pod stands for its main container.

use wharf_cri_api::v1::{Container, ContainerState, PodSandbox, PodSandboxState};

use crate::error::Error;
use crate::units::short;

/// All pods and containers at one moment.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) pods: Vec<PodSandbox>,
    pub(crate) containers: Vec<Container>,
}

/// The result of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Found<'a> {
    Pod(&'a PodSandbox),
    Container(&'a Container),
}

pub(crate) fn pod_name(pod: &PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

fn pod_namespace(pod: &PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.namespace)
}

pub(crate) fn container_name(container: &Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

pub(crate) fn runs(container: &Container) -> bool {
    container.state() == ContainerState::ContainerRunning
}

pub(crate) fn is_over(container: &Container) -> bool {
    container.state() == ContainerState::ContainerExited
}

pub(crate) fn is_ready(pod: &PodSandbox) -> bool {
    pod.state() == PodSandboxState::SandboxReady
}

impl Listing {
    /// The pod or container with a name.
    pub(crate) fn find(&self, text: &str) -> Result<Found<'_>, Error> {
        let pods = self.pods.iter().map(Found::Pod);
        let all: Vec<Found<'_>> = pods.chain(self.containers.iter().map(Found::Container)).collect();
        let ways: [&dyn Fn(&Found<'_>) -> bool; 5] = [
            &|item| id(item) == text,
            &|item| matches!(item, Found::Pod(pod) if pod_name(pod) == text),
            &|item| matches!(item, Found::Container(container) if self.is_named(container, text)),
            &|item| self.is_named_with_namespace(item, text),
            &|item| !text.is_empty() && id(item).starts_with(text),
        ];
        for way in ways {
            let found: Vec<_> = all.iter().filter(|item| way(item)).collect();
            match found.as_slice() {
                [] => {}
                [one] => return Ok(**one),
                several => {
                    let candidates = several.iter().map(|item| self.describe(item)).collect();
                    return Err(Error::Ambiguous { name: text.to_owned(), candidates });
                }
            }
        }
        Err(Error::Unknown {
            what: "pod or container",
            name: text.to_owned(),
            advice: "list them: wharf pods, wharf ps --all",
        })
    }

    /// The container with a name. If a pod has the name, it is the pod's container of the same name, its only
    /// container, or its only running one.
    pub(crate) fn container(&self, text: &str) -> Result<&Container, Error> {
        let pod = match self.find(text)? {
            Found::Container(container) => return Ok(container),
            Found::Pod(pod) => pod,
        };
        let all: Vec<_> = self.containers_of(pod).collect();
        if let Some(main) = all.iter().find(|container| container_name(container) == pod_name(pod)) {
            return Ok(main);
        }
        let running: Vec<_> = all.iter().copied().filter(|container| runs(container)).collect();
        match (running.as_slice(), all.as_slice()) {
            ([one], _) | ([], [one]) => Ok(one),
            (_, []) => Err(Error::EmptyPod { pod: text.to_owned() }),
            (_, several) => {
                let describe = |container: &&Container| self.describe(&Found::Container(container));
                let candidates = several.iter().map(describe).collect();
                Err(Error::Ambiguous { name: text.to_owned(), candidates })
            }
        }
    }

    /// The pod with a name; a container's name stands for its pod.
    pub(crate) fn pod(&self, text: &str) -> Result<&PodSandbox, Error> {
        let unknown =
            || Error::Unknown { what: "pod", name: text.to_owned(), advice: "list them: wharf pods" };
        match self.find(text)? {
            Found::Pod(pod) => Ok(pod),
            Found::Container(container) => self.pod_of(container).ok_or_else(unknown),
        }
    }

    pub(crate) fn pod_of(&self, container: &Container) -> Option<&PodSandbox> {
        self.pods.iter().find(|pod| pod.id == container.pod_sandbox_id)
    }

    pub(crate) fn containers_of<'a>(&'a self, pod: &'a PodSandbox) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(|container| container.pod_sandbox_id == pod.id)
    }

    /// POD/NAME.
    pub(crate) fn full_name(&self, container: &Container) -> String {
        format!("{}/{}", self.pod_of(container).map_or("", pod_name), container_name(container))
    }

    fn is_named(&self, container: &Container, text: &str) -> bool {
        let name = container_name(container);
        match text.split_once('/') {
            None => name == text,
            Some((pod, own)) => own == name && self.pod_of(container).map(pod_name) == Some(pod),
        }
    }

    fn is_named_with_namespace(&self, item: &Found<'_>, text: &str) -> bool {
        let Some((namespace, name)) = text.split_once('/') else { return false };
        match item {
            Found::Pod(pod) => pod_namespace(pod) == namespace && pod_name(pod) == name,
            Found::Container(container) => {
                let is_there = self.pod_of(container).map(pod_namespace) == Some(namespace);
                is_there && name.contains('/') && self.is_named(container, name)
            }
        }
    }

    fn describe(&self, item: &Found<'_>) -> String {
        match item {
            Found::Pod(pod) => format!("{}  the pod {}{}", short(&pod.id), before(Some(pod)), pod_name(pod)),
            Found::Container(container) => {
                let (pod, name) = (self.pod_of(container), self.full_name(container));
                format!("{}  the container {}{name}", short(&container.id), before(pod))
            }
        }
    }
}

/// NAMESPACE/, if the pod has one.
fn before(pod: Option<&PodSandbox>) -> String {
    let namespace = pod.map(pod_namespace).filter(|namespace| !namespace.is_empty());
    namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default()
}

fn id<'a>(item: &Found<'a>) -> &'a str {
    match item {
        Found::Pod(pod) => &pod.id,
        Found::Container(container) => &container.id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{ContainerMetadata, PodSandboxMetadata};

    fn pod(id: &str, name: &str) -> PodSandbox {
        let metadata = Some(PodSandboxMetadata { name: name.into(), ..PodSandboxMetadata::default() });
        PodSandbox { id: id.into(), metadata, ..PodSandbox::default() }
    }

    fn container(id: &str, name: &str, pod: &str, state: ContainerState) -> Container {
        let metadata = Some(ContainerMetadata { name: name.into(), attempt: 0 });
        Container {
            id: id.into(),
            metadata,
            pod_sandbox_id: pod.into(),
            state: state.into(),
            ..Container::default()
        }
    }

    fn listing() -> Listing {
        use ContainerState::{ContainerExited, ContainerRunning};
        Listing {
            pods: vec![pod("aa11", "web"), pod("ab22", "db"), pod("ac33", "empty")],
            containers: vec![
                container("b111", "web", "aa11", ContainerExited),
                container("b199", "more", "aa11", ContainerRunning),
                container("b122", "client", "aa11", ContainerExited),
                container("c133", "main", "ab22", ContainerRunning),
                container("c144", "side", "ab22", ContainerRunning),
                container("d155", "side", "aa11", ContainerExited),
            ],
        }
    }

    fn found(text: &str) -> Result<String, String> {
        let listing = listing();
        let found = listing.find(text);
        found.map(|item| id(&item).to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn ids_names_and_beginnings_are_found() {
        for (text, id) in [
            ("aa11", "aa11"),
            ("web", "aa11"),
            ("web/web", "b111"),
            ("client", "b122"),
            ("web/side", "d155"),
            ("b11", "b111"),
            ("ac", "ac33"),
        ] {
            assert_eq!(found(text).as_deref(), Ok(id), "{text}");
        }
    }

    #[test]
    fn what_is_not_clear_is_asked_back() {
        let ambiguous = found("side").unwrap_err();
        assert!(ambiguous.contains("db/side") && ambiguous.contains("web/side"), "{ambiguous}");
        assert!(found("a").unwrap_err().contains("the pod empty"));
        for unknown in ["", "nobody", "db/client", "aa11x"] {
            assert!(found(unknown).unwrap_err().contains("there is no"), "{unknown}");
        }
    }

    #[test]
    fn of_pods_with_one_name_the_namespace_tells_which_is_meant() {
        let mut listing = listing();
        listing.pods.push(pod("aa44", "web"));
        for (pod, namespace) in [(0, "shop"), (3, "blog")] {
            listing.pods[pod].metadata.as_mut().unwrap().namespace = namespace.to_owned();
        }
        listing.containers.push(container("e166", "side", "aa44", ContainerState::ContainerRunning));
        let find = |text: &str| listing.find(text).map(|item| id(&item).to_owned());
        for text in ["web", "web/side"] {
            let asked = find(text).unwrap_err().to_string();
            assert!(["shop/web", "blog/web"].iter().all(|name| asked.contains(name)), "{asked}");
        }
        for (text, id) in [("shop/web", "aa11"), ("blog/web", "aa44"), ("blog/web/side", "e166")] {
            assert_eq!(find(text).unwrap(), id, "{text}");
        }
        assert!(find("shop/db").is_err() && find("blog/side").is_err());
    }

    #[test]
    fn a_pod_stands_for_its_one_container() {
        let listing = listing();
        assert_eq!(listing.container("web").unwrap().id, "b111", "the one of its name");
        let mut alone = self::listing();
        alone.containers.retain(|container| container.id != "b111");
        assert_eq!(alone.container("web").unwrap().id, "b199", "the one that runs");
        assert!(matches!(listing.container("db"), Err(Error::Ambiguous { .. })));
        assert!(matches!(listing.container("empty"), Err(Error::EmptyPod { .. })));
        assert_eq!(listing.pod("client").unwrap().id, "aa11");
    }
}
