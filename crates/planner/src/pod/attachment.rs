//! A pod as the network attaches it, and as CNI plugins learn of it.

use std::os::fd::BorrowedFd;
use std::path::Path;

use wharf_cri_api::v1::{PodSandboxConfig, PodSandboxMetadata};
use wharf_network::{Attachment, Dns, PortMapping};
use wharf_types::PodId;

use super::cgroup_parent;

/// The pod with its network namespace, the path at which plugins find that, and its host ports.
#[must_use]
pub fn attachment<'a>(
    id: &'a PodId,
    config: &'a PodSandboxConfig,
    (netns, pin): (BorrowedFd<'a>, &'a Path),
    ports: &'a [PortMapping],
) -> Attachment<'a> {
    let metadata = |text: fn(&PodSandboxMetadata) -> &str| config.metadata.as_ref().map_or("", text);
    let dns = config.dns_config.as_ref().map(|dns| Dns {
        servers: &dns.servers,
        searches: &dns.searches,
        options: &dns.options,
    });
    Attachment {
        id,
        name: metadata(|metadata| &metadata.name),
        namespace: metadata(|metadata| &metadata.namespace),
        uid: metadata(|metadata| &metadata.uid),
        netns,
        pin,
        ports,
        annotations: &config.annotations,
        dns: dns.unwrap_or_default(),
        cgroup_parent: cgroup_parent(config).unwrap_or_default(),
    }
}
