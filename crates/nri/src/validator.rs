//! The runtime's own rules for the adjustments of plugins: NRI's default validator.

use crate::Error;
use crate::api::{Container, Field, PodSandbox, security_profile::ProfileType};
use crate::owners::Owners;
use crate::settings::{Rejected, Validation};
use crate::view::annotation;

/// The annotation that names further plugins without which a pod's containers are not created.
const REQUIRED: &str = "required-plugins.noderesource.dev";
const NAME: &str = "the configuration of wharf";

/// What is validated.
pub(crate) struct Subject<'a> {
    pub(crate) pod: &'a PodSandbox,
    /// The container before any adjustment.
    pub(crate) container: &'a Container,
    pub(crate) owners: &'a Owners,
    /// The names of the plugins that were asked.
    pub(crate) plugins: &'a [String],
}

impl Validation {
    pub(crate) fn check(&self, subject: &Subject<'_>) -> Result<(), Error> {
        if !self.is_on {
            return Ok(());
        }
        let rejected = |reason| Err(Error::Rejected { validator: NAME.to_owned(), reason });
        for rejection in &self.reject {
            if let Some(offence) = subject.offends(*rejection) {
                return rejected(offence);
            }
        }
        match self.missing(subject) {
            Ok(None) => Ok(()),
            Ok(Some(name)) => rejected(format!("the required plugin {name} is not there")),
            Err(reason) => rejected(reason),
        }
    }

    /// The names of plugins without which no container is created.
    pub(crate) fn required(&self) -> &[String] {
        if self.is_on { &self.required_plugins } else { &[] }
    }

    fn missing(&self, subject: &Subject<'_>) -> Result<Option<String>, String> {
        let value = |key| annotation(&subject.pod.annotations, key, &subject.container.name);
        let key = self.tolerate_missing_annotation.as_str();
        if let Some(value) = value(key).filter(|_| !key.is_empty()) {
            let is_tolerant = truth(value)
                .ok_or_else(|| format!("annotation {key}: {value:?} is neither true nor false"))?;
            if is_tolerant {
                return Ok(None);
            }
        }
        let mut required = self.required_plugins.clone();
        required.extend(value(REQUIRED).map(list).unwrap_or_default());
        Ok(required.into_iter().find(|name| !subject.plugins.contains(name)))
    }
}

impl Subject<'_> {
    /// The plugins that made a rejected adjustment, and which one.
    fn offends(&self, rejection: Rejected) -> Option<String> {
        let id = self.container.id.as_str();
        let set_by = |what: &str, plugins: &str| format!("{plugins} may not set {what}");
        let profile = self.container.linux.as_ref().and_then(|linux| linux.seccomp_profile.as_ref());
        let profile = profile.map_or(ProfileType::Unconfined, |profile| profile.profile_type());
        let seccomp = |of: ProfileType, what: &str| {
            let owner = self.owners.owner(id, Field::SeccompPolicy, None).filter(|_| profile == of)?;
            Some(set_by(&format!("the seccomp policy of a container with {what}"), owner))
        };
        let entries = |field, what: &str| {
            let owners = self.owners.owners(id, field);
            let (entry, owner) = owners.first_key_value()?;
            Some(set_by(&format!("the {what} {entry}"), owner.trim_start_matches('-')))
        };
        match rejection {
            Rejected::Hooks => {
                self.owners.owner(id, Field::OciHooks, None).map(|owners| set_by("OCI hooks", owners))
            }
            Rejected::RuntimeDefaultSeccomp => {
                seccomp(ProfileType::RuntimeDefault, "the runtime's default profile")
            }
            Rejected::UnconfinedSeccomp => seccomp(ProfileType::Unconfined, "no profile"),
            Rejected::CustomSeccomp => seccomp(ProfileType::Localhost, "a profile of the node"),
            Rejected::Namespaces => entries(Field::Namespace, "namespace"),
            Rejected::Sysctls => entries(Field::Sysctl, "sysctl"),
        }
    }
}

/// The words that Go accepts as booleans.
fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A list of names in YAML, in its two usual forms: `[a, b]`, or a line `- a` for each.
fn list(text: &str) -> Vec<String> {
    let text = text.trim();
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let name = |name: &str| name.trim().trim_matches(['"', '\'']).to_owned();
    let names: Vec<String> = match inner {
        Some(inner) => inner.split(',').map(name).collect(),
        None => text.lines().map(|line| name(line.trim().trim_start_matches("- "))).collect(),
    };
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{LinuxContainer, SecurityProfile};

    fn validate(
        validation: &Validation,
        pod: &PodSandbox,
        owners: &Owners,
        profile: ProfileType,
    ) -> Result<(), Error> {
        let seccomp_profile =
            Some(SecurityProfile { profile_type: profile.into(), ..SecurityProfile::default() });
        let container = Container {
            id: "c".to_owned(),
            name: "main".to_owned(),
            linux: Some(LinuxContainer { seccomp_profile, ..LinuxContainer::default() }),
            ..Container::default()
        };
        let plugins = ["there".to_owned()];
        validation.check(&Subject { pod, container: &container, owners, plugins: &plugins })
    }

    #[test]
    fn what_may_not_be_set_is_rejected_with_the_plugins_name() {
        use ProfileType::{Localhost, RuntimeDefault, Unconfined};
        type Claim = fn(&mut crate::owners::Claims<'_>);
        let seccomp: Claim = |claims| claims.claim(Field::SeccompPolicy).unwrap();
        let cases: [(Rejected, Claim, &[ProfileType]); 6] = [
            (
                Rejected::Hooks,
                |claims| claims.share(Field::OciHooks),
                &[RuntimeDefault, Unconfined, Localhost],
            ),
            (Rejected::RuntimeDefaultSeccomp, seccomp, &[RuntimeDefault]),
            (Rejected::UnconfinedSeccomp, seccomp, &[Unconfined]),
            (Rejected::CustomSeccomp, seccomp, &[Localhost]),
            (
                Rejected::Namespaces,
                |claims| claims.claim_entry(Field::Namespace, "pid").unwrap(),
                &[RuntimeDefault, Unconfined, Localhost],
            ),
            (
                Rejected::Sysctls,
                |claims| claims.claim_entry(Field::Sysctl, "a.b").unwrap(),
                &[RuntimeDefault, Unconfined, Localhost],
            ),
        ];
        for (rejected, claim, profiles) in cases {
            let validation = Validation { is_on: true, reject: vec![rejected], ..Validation::default() };
            let mut owners = Owners::default();
            claim(&mut owners.of("c", "10-a"));
            for profile in [RuntimeDefault, Unconfined, Localhost] {
                let checked = validate(&validation, &PodSandbox::default(), &owners, profile);
                assert_eq!(checked.is_err(), profiles.contains(&profile), "{rejected:?} {profile:?}");
                if let Err(error) = checked {
                    assert!(error.to_string().contains("10-a"), "{error}");
                }
                let nobody = validate(&validation, &PodSandbox::default(), &Owners::default(), profile);
                assert_eq!(nobody, Ok(()));
            }
        }
    }

    #[test]
    fn required_plugins_must_be_there() {
        let validation = Validation {
            is_on: true,
            required_plugins: vec!["there".to_owned()],
            tolerate_missing_annotation: "tolerate".to_owned(),
            ..Validation::default()
        };
        let mut pod = PodSandbox::default();
        let check = |pod: &PodSandbox| {
            validate(&validation, pod, &Owners::default(), ProfileType::Unconfined)
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(&pod), Ok(()));
        let annotate = |pod: &mut PodSandbox, key: &str, value: &str| {
            pod.annotations.insert(key.to_owned(), value.to_owned());
        };
        for names in ["[other]", "- there\n- other", "[there, \"other\"]"] {
            annotate(&mut pod, REQUIRED, names);
            assert!(check(&pod).unwrap_err().contains("required plugin other is not there"), "{names}");
        }
        annotate(&mut pod, "required-plugins.noderesource.dev/container.main", "[there]");
        assert_eq!(check(&pod), Ok(()), "the container's own annotation goes first");
        annotate(&mut pod, "required-plugins.noderesource.dev/container.main", "[other]");
        annotate(&mut pod, "tolerate/pod", "true");
        assert_eq!(check(&pod), Ok(()));
        annotate(&mut pod, "tolerate/pod", "perhaps");
        assert!(check(&pod).unwrap_err().contains("perhaps"));
    }
}
