//! What a container's rights let it do outside of itself.

use wharf_cri_api::v1::{ContainerConfig, LinuxContainerSecurityContext};

/// Whether a container can make network interfaces of its own in its pod.
#[must_use]
pub fn can_make_interfaces(config: &ContainerConfig) -> bool {
    let context = context(config);
    let added = context.and_then(|context| context.capabilities.as_ref());
    let is_enough = |name: &String| {
        let name = name.to_ascii_uppercase();
        matches!(name.strip_prefix("CAP_").unwrap_or(&name), "NET_ADMIN" | "ALL")
    };
    context.is_some_and(|context| context.privileged)
        || added.is_some_and(|added| {
            added.add_capabilities.iter().chain(&added.add_ambient_capabilities).any(is_enough)
        })
}

fn context(config: &ContainerConfig) -> Option<&LinuxContainerSecurityContext> {
    config.linux.as_ref().and_then(|linux| linux.security_context.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_cri_api::v1::{Capability, LinuxContainerConfig};

    #[test]
    fn who_may_administer_the_network_may_make_interfaces() {
        let with = |change: &dyn Fn(&mut LinuxContainerSecurityContext, &mut Capability)| {
            let (mut context, mut capabilities) = Default::default();
            change(&mut context, &mut capabilities);
            context.capabilities = Some(capabilities);
            let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
            can_make_interfaces(&ContainerConfig { linux: Some(linux), ..Default::default() })
        };
        assert!(!can_make_interfaces(&ContainerConfig::default()));
        assert!(with(&|context, _| context.privileged = true));
        for (name, can) in [("NET_ADMIN", true), ("cap_net_admin", true), ("all", true), ("NET_RAW", false)] {
            assert_eq!(with(&|_, added| added.add_capabilities = vec!["CHOWN".into(), name.into()]), can);
            assert_eq!(with(&|_, added| added.add_ambient_capabilities = vec![name.into()]), can);
        }
    }
}
