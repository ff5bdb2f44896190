//! The names of pods and containers in requests: a retry has the same name, and joins the call in flight.
//!
//! Only what names a pod or container counts, not the rest of its request: a kubelet that retries may send other
//! annotations and means the same pod.

use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_types::PodId;

use crate::Refusal;

/// A pod's name on the node. Each attempt is a pod of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodKey {
    uid: String,
    namespace: String,
    name: String,
    attempt: u32,
}

impl PodKey {
    /// The name in a request.
    ///
    /// # Errors
    /// [`Refusal::Field`] if the request does not name the pod.
    pub fn of(config: &PodSandboxConfig) -> Result<Self, Refusal> {
        let metadata = config.metadata.clone().ok_or_else(|| Refusal::field("metadata", "it is missing"))?;
        if metadata.name.is_empty() {
            return Err(Refusal::field("metadata.name", "it is empty"));
        }
        Ok(Self {
            uid: metadata.uid,
            namespace: metadata.namespace,
            name: metadata.name,
            attempt: metadata.attempt,
        })
    }
}

/// A container's name in its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerKey {
    pod: PodId,
    name: String,
    attempt: u32,
}

impl ContainerKey {
    /// The name in a request.
    ///
    /// # Errors
    /// [`Refusal::Field`] if the request does not name the container.
    pub fn of(pod: &PodId, config: &ContainerConfig) -> Result<Self, Refusal> {
        let metadata = config.metadata.clone().ok_or_else(|| Refusal::field("metadata", "it is missing"))?;
        if metadata.name.is_empty() {
            return Err(Refusal::field("metadata.name", "it is empty"));
        }
        Ok(Self { pod: pod.clone(), name: metadata.name, attempt: metadata.attempt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{ContainerMetadata, PodSandboxMetadata};

    fn pod(uid: &str, namespace: &str, name: &str, attempt: u32) -> Result<PodKey, Refusal> {
        let metadata = PodSandboxMetadata {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            attempt,
        };
        PodKey::of(&PodSandboxConfig { metadata: Some(metadata), ..PodSandboxConfig::default() })
    }

    #[test]
    fn a_retry_has_the_key_of_the_call_and_nothing_else_has() {
        let key = pod("u", "n", "web", 0).unwrap();
        assert_eq!(pod("u", "n", "web", 0).unwrap(), key);
        for other in [("v", "n", "web", 0), ("u", "m", "web", 0), ("u", "n", "wed", 0), ("u", "n", "web", 1)]
        {
            assert_ne!(pod(other.0, other.1, other.2, other.3).unwrap(), key, "{other:?}");
        }
    }

    #[test]
    fn containers_of_two_pods_may_have_one_name() {
        let metadata = ContainerMetadata { name: "main".to_owned(), attempt: 0 };
        let config = ContainerConfig { metadata: Some(metadata), ..ContainerConfig::default() };
        let of = |byte| ContainerKey::of(&PodId::from_random([byte; 32]), &config).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn what_has_no_name_is_refused() {
        let nameless = PodSandboxConfig::default();
        assert_eq!(PodKey::of(&nameless).unwrap_err().to_string(), "metadata: it is missing");
        assert_eq!(pod("u", "n", "", 0).unwrap_err().to_string(), "metadata.name: it is empty");
        let pod = PodId::from_random([1; 32]);
        assert!(ContainerKey::of(&pod, &ContainerConfig::default()).is_err());
    }
}
