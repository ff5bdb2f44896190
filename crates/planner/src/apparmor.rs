//! The AppArmor profile of a container.

use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::{LinuxContainerSecurityContext, SecurityProfile};
use wharf_types::ProfileName;

use crate::request::{SecurityModules, Switch};
use crate::{Refusal, seccomp};

const FIELD: &str = "apparmor";

/// A request, in whichever field.
enum Choice {
    Nothing,
    Unconfined,
    RuntimeDefault,
    Localhost(ProfileName),
}

/// The profile that confines a container; `None` if nothing does. wharf's own is for those that ask for no other, and
/// not for the privileged; where there is no AppArmor, it has no effect, as the kubelet expects. `unasked` says whether
/// those get it that ask for nothing at all.
///
/// # Errors
/// [`Refusal`] for a profile of the node that cannot be given. Whether it is loaded is known when the container is
/// made.
pub(crate) fn profile(
    context: &LinuxContainerSecurityContext,
    modules: SecurityModules,
    unasked: Switch,
) -> Result<Option<ProfileName>, Refusal> {
    match (choice(context)?, modules.apparmor) {
        (Choice::Nothing, _) if unasked == Switch::Off => Ok(None),
        (Choice::Nothing | Choice::RuntimeDefault, Switch::On) if !context.privileged => {
            Ok(Some(ProfileName::default_profile()))
        }
        (Choice::Nothing | Choice::RuntimeDefault | Choice::Unconfined, _) => Ok(None),
        (Choice::Localhost(name), Switch::On) => Ok(Some(name)),
        (Choice::Localhost(name), Switch::Off) => {
            let problem = format!("profile {name} has no effect on this node: `wharf doctor` says why");
            Err(Refusal::field(FIELD, problem))
        }
    }
}

/// Checks that the fields of a profile fit its type.
///
/// # Errors
/// [`Refusal`], which says what does not.
pub(crate) fn check(profile: &SecurityProfile) -> Result<(), Refusal> {
    by_type(profile).map(drop)
}

fn choice(context: &LinuxContainerSecurityContext) -> Result<Choice, Refusal> {
    match &context.apparmor {
        Some(profile) => by_type(profile),
        None => by_name(context),
    }
}

fn by_type(profile: &SecurityProfile) -> Result<Choice, Refusal> {
    match seccomp::check(FIELD, profile)? {
        ProfileType::RuntimeDefault => Ok(Choice::RuntimeDefault),
        ProfileType::Unconfined => Ok(Choice::Unconfined),
        ProfileType::Localhost => named(FIELD, &profile.localhost_ref),
        ProfileType::Oci => {
            Err(Refusal::field(FIELD, "the type OCI is only for seccomp: name a profile of the node"))
        }
    }
}

#[allow(deprecated, reason = "older kubelets send the name alone")]
fn by_name(context: &LinuxContainerSecurityContext) -> Result<Choice, Refusal> {
    const FIELD: &str = "apparmor_profile";
    match context.apparmor_profile.as_str() {
        "" => Ok(Choice::Nothing),
        "runtime/default" => Ok(Choice::RuntimeDefault),
        "unconfined" => Ok(Choice::Unconfined),
        name if name.starts_with("localhost/") => named(FIELD, name),
        other => Err(Refusal::field(FIELD, format!("{other:?} is not a known form"))),
    }
}

/// Some clients write the prefix of the older field in the newer one, too.
fn named(field: &'static str, reference: &str) -> Result<Choice, Refusal> {
    let name = ProfileName::new(reference.strip_prefix("localhost/").unwrap_or(reference));
    name.map(Choice::Localhost).map_err(|error| Refusal::field(field, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: SecurityModules = SecurityModules { apparmor: Switch::On };
    const OFF: SecurityModules = SecurityModules { apparmor: Switch::Off };

    fn profile(
        context: &LinuxContainerSecurityContext,
        modules: SecurityModules,
    ) -> Result<Option<ProfileName>, Refusal> {
        super::profile(context, modules, Switch::On)
    }

    fn by_type(profile_type: ProfileType, reference: &str) -> LinuxContainerSecurityContext {
        let (profile_type, localhost_ref) = (profile_type.into(), reference.to_owned());
        let profile = SecurityProfile { profile_type, localhost_ref, ..SecurityProfile::default() };
        LinuxContainerSecurityContext { apparmor: Some(profile), ..LinuxContainerSecurityContext::default() }
    }

    #[allow(deprecated, reason = "older kubelets send the name alone")]
    fn by_name(name: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            apparmor_profile: name.to_owned(),
            ..LinuxContainerSecurityContext::default()
        }
    }

    #[test]
    fn old_and_new_words_mean_the_same() {
        for (new, old, expected) in [
            (by_type(ProfileType::RuntimeDefault, ""), by_name(""), Some("wharf-default")),
            (by_type(ProfileType::RuntimeDefault, ""), by_name("runtime/default"), Some("wharf-default")),
            (by_type(ProfileType::Unconfined, ""), by_name("unconfined"), None),
            (by_type(ProfileType::Localhost, "mine"), by_name("localhost/mine"), Some("mine")),
            (by_type(ProfileType::Localhost, "localhost/mine"), by_name("localhost/mine"), Some("mine")),
        ] {
            for context in [new, old] {
                let chosen = profile(&context, ON).unwrap();
                assert_eq!(chosen.as_ref().map(ProfileName::as_str), expected, "{context:?}");
            }
        }
        let both =
            LinuxContainerSecurityContext { apparmor: by_name("").apparmor, ..by_name("localhost/old") };
        assert_eq!(profile(&both, ON).unwrap().unwrap().as_str(), "old");
        let both = LinuxContainerSecurityContext {
            apparmor: by_type(ProfileType::Unconfined, "").apparmor,
            ..by_name("localhost/old")
        };
        assert_eq!(profile(&both, ON), Ok(None), "the newer field comes first");
    }

    #[test]
    fn who_asks_for_nothing_can_do_without() {
        let unasked = |context| super::profile(&context, ON, Switch::Off).unwrap();
        assert_eq!(unasked(by_name("")), None);
        for asked in [by_name("runtime/default"), by_type(ProfileType::RuntimeDefault, "")] {
            assert_eq!(unasked(asked), Some(ProfileName::default_profile()));
        }
        assert!(unasked(by_name("localhost/mine")).is_some());
    }

    #[test]
    fn the_privileged_are_confined_by_what_they_ask_for_alone() {
        let privileged = |context| LinuxContainerSecurityContext { privileged: true, ..context };
        assert_eq!(profile(&privileged(by_name("")), ON), Ok(None));
        assert_eq!(profile(&privileged(by_type(ProfileType::RuntimeDefault, "")), ON), Ok(None));
        assert!(profile(&privileged(by_name("localhost/mine")), ON).unwrap().is_some());
    }

    #[test]
    fn without_apparmor_a_profile_of_the_node_is_refused() {
        for context in [by_name(""), by_name("runtime/default"), by_type(ProfileType::Unconfined, "")] {
            assert_eq!(profile(&context, OFF), Ok(None));
        }
        let refusal = profile(&by_type(ProfileType::Localhost, "mine"), OFF).unwrap_err();
        assert!(refusal.to_string().contains("profile mine has no effect on this node"), "{refusal}");
    }

    #[test]
    fn nobody_becomes_unconfined_by_the_name_of_a_profile() {
        for name in [
            "",
            "u",
            "unconfine",
            "unconfined",
            " unconfined",
            "mine//&unconfined",
            ":root:unconfined",
            "a\nb",
        ] {
            for context in [by_type(ProfileType::Localhost, name), by_name(&format!("localhost/{name}"))] {
                assert!(profile(&context, ON).is_err(), "{name:?}");
            }
        }
        for context in [by_name("mine"), by_type(ProfileType::Oci, "")] {
            assert!(profile(&context, ON).is_err(), "{context:?}");
        }
    }
}
