//! What RunPodSandbox may request; everything is checked before anything is made.

use wharf_cgroup::CgroupPath;
use wharf_cri_api::v1::{NamespaceOption, PodSandboxConfig};

use crate::request::SecurityModules;
use crate::{Defaults, Refusal, refuse, user_namespace};

/// The longest hostname, in bytes: gethostname(2).
const HOSTNAME_LIMIT_BYTES: usize = 64;

/// Checks a pod's request.
///
/// # Errors
/// [`Refusal`], which names the field and says what to do.
pub fn check(
    config: &PodSandboxConfig,
    modules: SecurityModules,
    defaults: &Defaults,
) -> Result<(), Refusal> {
    refuse::pod(config, modules)?;
    let linux = config.linux.as_ref();
    let context = linux.and_then(|linux| linux.security_context.as_ref());
    if context.is_some_and(|context| context.run_as_group.is_some() && context.run_as_user.is_none()) {
        return Err(Refusal::field("run_as_group", "it needs run_as_user"));
    }
    let namespaces = context.and_then(|context| context.namespace_options.as_ref());
    namespaces.map_or(Ok(()), |namespaces| check_ids(namespaces, defaults))?;
    let parent = linux.map(|linux| linux.cgroup_parent.as_str()).filter(|parent| !parent.is_empty());
    if let Some(parent) = parent {
        CgroupPath::new(parent).map_err(|error| Refusal::field("cgroup_parent", error))?;
    }
    check_log_directory(&config.log_directory)?;
    check_hostname(&config.hostname)
}

/// A user namespace must not use ids of the host that the node keeps to itself.
fn check_ids(namespaces: &NamespaceOption, defaults: &Defaults) -> Result<(), Refusal> {
    let Some(ids) = user_namespace::of(namespaces)? else { return Ok(()) };
    let bounds = [("uids", ids.users, defaults.least_uid), ("gids", ids.groups, defaults.least_gid)];
    match bounds.into_iter().find(|(_, range, least)| range.first() < *least) {
        Some((name, range, least)) => {
            let first = range.first();
            let problem = format!("{name}: {first} is one of the ids below {least} that this node keeps");
            Err(Refusal::field("userns_options", problem))
        }
        None => Ok(()),
    }
}

fn check_log_directory(path: &str) -> Result<(), Refusal> {
    let is_clean = path.starts_with('/') && path.split('/').all(|part| part != "..");
    if path.is_empty() || is_clean {
        return Ok(());
    }
    Err(Refusal::field("log_directory", format!("{path:?} is not an absolute path without ..")))
}

fn check_hostname(name: &str) -> Result<(), Refusal> {
    let is_short = name.len() <= HOSTNAME_LIMIT_BYTES;
    if is_short && name.bytes().all(|byte| !byte.is_ascii_control() && byte != b'/') {
        return Ok(());
    }
    let problem = format!("{name:?} is not a host name of at most {HOSTNAME_LIMIT_BYTES} bytes");
    Err(Refusal::field("hostname", problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Switch;
    use wharf_cri_api::v1::{Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    #[test]
    fn a_group_needs_a_user_and_a_cgroup_a_path() {
        let none = SecurityModules { apparmor: Switch::Off, selinux: Switch::Off };
        let asked = |cgroup_parent: &str, run_as_user, run_as_group| {
            let context = LinuxSandboxSecurityContext { run_as_user, run_as_group, ..Default::default() };
            let (cgroup_parent, security_context) = (cgroup_parent.to_owned(), Some(context));
            let linux = LinuxPodSandboxConfig { cgroup_parent, security_context, ..Default::default() };
            let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
            check(&config, none, &Defaults::default()).map_err(|refusal| refusal.to_string())
        };
        let id = Some(Int64Value { value: 1000 });
        assert_eq!(asked("/kubepods/pod1", id, id), Ok(()));
        assert_eq!(asked("", None, id).unwrap_err(), "run_as_group: it needs run_as_user");
        assert!(asked("/../up", None, None).unwrap_err().starts_with("cgroup_parent: "));
    }

    #[test]
    fn names_and_paths_are_checked_before_anything_is_made() {
        for good in ["", "/var/log/pods/a..b"] {
            check_log_directory(good).unwrap();
        }
        for bad in ["var/log", "/var/../etc", ".."] {
            assert!(check_log_directory(bad).is_err(), "{bad}");
        }
        check_hostname(&"h".repeat(HOSTNAME_LIMIT_BYTES)).unwrap();
        for bad in [&*"h".repeat(HOSTNAME_LIMIT_BYTES + 1), "a/b", "a\nb"] {
            assert!(check_hostname(bad).is_err(), "{bad}");
        }
    }
}
