//! The choice of a container's seccomp profile: none, the runtime's own, one in a file of the node, or one from a
//! registry.
//!
//! Requests name it in two ways, of which older kubelets send only the older. Files and artifacts are read by others;
//! here is decided which one, and what is in it.

use std::sync::Mutex;

use oci_spec::runtime::LinuxSeccomp;
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::security_profile_base::BaseType;
use wharf_cri_api::v1::{
    ContainerConfig, LinuxContainerSecurityContext, SecurityProfile, SecurityProfileBase,
};
use wharf_types::Reference;
use wharf_types::lock::lock;

use super::intersection::intersect;
use super::{Arch, Profile, Target, resolve};
use crate::refuse::known;
use crate::request::{HostFacts, Request};
use crate::{Defaults, Refusal, process};

/// For how many targets the runtime's own profile is remembered: only a few sets of capabilities are in use on a node.
/// To resolve it takes longer than all other decisions about a container.
const RESOLVED_MAX: usize = 16;

/// A container's profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice<'a> {
    /// None.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// A profile in a file of the host, by its path.
    Localhost(&'a str),
    /// A profile from a registry, intersected with a base.
    Oci(Reference, Base<'a>),
}

/// What a profile from a registry is intersected with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base<'a> {
    /// The runtime's own profile.
    RuntimeDefault,
    /// A profile in a file of the host, by its path. It may allow more than the runtime's own.
    Localhost(&'a str),
}

impl<'a> Choice<'a> {
    /// The path of the profile that is in a file of the host, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&'a str> {
        match self {
            Self::Localhost(path) | Self::Oci(_, Base::Localhost(path)) => Some(path),
            Self::Unconfined | Self::RuntimeDefault | Self::Oci(_, Base::RuntimeDefault) => None,
        }
    }
}

/// The profile that a container requests; a privileged container is unconfined.
///
/// # Errors
/// The name has an unknown form, or the path is not absolute.
pub fn choice(context: &LinuxContainerSecurityContext) -> Result<Choice<'_>, Refusal> {
    if context.privileged {
        return Ok(Choice::Unconfined);
    }
    let choice = match &context.seccomp {
        Some(profile) => by_message(FIELD, profile)?,
        None => by_path(legacy_path(context))?,
    };
    match choice.file() {
        Some(path) if !path.starts_with('/') => Err(problem(path, "it is not an absolute path")),
        _ => Ok(choice),
    }
}

const FIELD: &str = "seccomp";

/// The reference of a profile that is from a registry.
///
/// # Errors
/// Its fields do not fit its type.
pub fn reference(profile: &SecurityProfile) -> Result<Option<Reference>, Refusal> {
    match by_message(FIELD, profile)? {
        Choice::Oci(reference, _) => Ok(Some(reference)),
        Choice::Unconfined | Choice::RuntimeDefault | Choice::Localhost(_) => Ok(None),
    }
}

/// Checks that the fields of a profile fit its type.
///
/// # Errors
/// [`Refusal`], which names the field of the security context.
pub(crate) fn check(field: &'static str, profile: &SecurityProfile) -> Result<ProfileType, Refusal> {
    by_message(field, profile)?;
    known(field, profile.profile_type)
}

fn by_message<'a>(field: &'static str, profile: &'a SecurityProfile) -> Result<Choice<'a>, Refusal> {
    let profile_type = known(field, profile.profile_type)?;
    if profile_type != ProfileType::Oci {
        let misplaced =
            [("oci_ref", !profile.oci_ref.is_empty()), ("base_profile", profile.base_profile.is_some())];
        if let Some((name, _)) = misplaced.iter().find(|(_, is_set)| *is_set) {
            return Err(Refusal::field(field, format!("{name} is only for the type OCI: leave it out")));
        }
    }
    match profile_type {
        ProfileType::RuntimeDefault => Ok(Choice::RuntimeDefault),
        ProfileType::Unconfined => Ok(Choice::Unconfined),
        ProfileType::Localhost => Ok(Choice::Localhost(&profile.localhost_ref)),
        ProfileType::Oci if profile.oci_ref.is_empty() => Err(Refusal::field(
            field,
            "the type OCI needs oci_ref, the reference of a profile that was pulled",
        )),
        ProfileType::Oci => {
            let reference = Reference::canonical(&profile.oci_ref);
            let reference = reference.map_err(|error| Refusal::field(field, format!("oci_ref: {error}")))?;
            Ok(Choice::Oci(reference, base(field, profile.base_profile.as_ref())?))
        }
    }
}

fn base<'a>(field: &'static str, base: Option<&'a SecurityProfileBase>) -> Result<Base<'a>, Refusal> {
    let Some(base) = base else { return Ok(Base::RuntimeDefault) };
    match (known(field, base.r#type)?, base.localhost_ref.as_str()) {
        (BaseType::RuntimeDefault, "") => Ok(Base::RuntimeDefault),
        (BaseType::RuntimeDefault, _) => Err(Refusal::field(
            field,
            "base_profile: localhost_ref is only for the type Localhost: leave it out",
        )),
        (BaseType::Localhost, path) if path.starts_with('/') => Ok(Base::Localhost(path)),
        (BaseType::Localhost, path) => {
            let problem = format!("base_profile: localhost_ref {path:?} is not an absolute path");
            Err(Refusal::field(field, problem))
        }
    }
}

/// Enters the profile for containers that request none in a request that has none. The request is kept as it is then,
/// so that a later change of the configuration changes nothing about the container.
pub fn fill(config: &mut ContainerConfig, defaults: &Defaults) {
    let Some(profile) = &defaults.seccomp else { return };
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    if !context.privileged && context.seccomp.is_none() && legacy_path(context).is_empty() {
        context.seccomp = Some(profile.clone());
    }
}

fn by_path(path: &str) -> Result<Choice<'_>, Refusal> {
    match path {
        "" | "unconfined" => Ok(Choice::Unconfined),
        "runtime/default" | "docker/default" => Ok(Choice::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(path) => Ok(Choice::Localhost(path)),
            None => Err(Refusal::field("seccomp_profile_path", format!("{other:?} is not a known form"))),
        },
    }
}

#[allow(deprecated, reason = "older kubelets send the path alone")]
fn legacy_path(context: &LinuxContainerSecurityContext) -> &str {
    &context.seccomp_profile_path
}

fn problem(path: &str, problem: &str) -> Refusal {
    Refusal::field(FIELD, format!("profile {path:?}: {problem}"))
}

/// The chosen profile for this container on this machine; `None` if it is unconfined.
pub(crate) fn describe(request: &Request<'_>, facts: &HostFacts) -> Result<Option<LinuxSeccomp>, Refusal> {
    let capabilities = process::capabilities(request, facts)?.bounding;
    let target = || Ok(Target { arch: native()?, capabilities, kernel: facts.kernel });
    let profile = match choice(request.security())? {
        Choice::Unconfined => return Ok(None),
        Choice::RuntimeDefault => return runtime_default(capabilities, facts.kernel).map(Some),
        Choice::Localhost(path) => parse(path, facts, Profile::parse)?,
        Choice::Oci(reference, base) => {
            let artifact =
                request.profile.ok_or_else(|| problem(&reference.to_string(), "it was not read"))?;
            let own = Profile::parse_artifact(artifact);
            let own = own.map_err(|error| problem(&reference.to_string(), &wharf_types::chain(&error)))?;
            let base = match base {
                Base::RuntimeDefault => Some(Profile::runtime_default()),
                Base::Localhost(path) => parse(path, facts, Profile::parse_base)?,
            };
            match base {
                Some(base) => intersect(&own, &base, &target()?).map_err(unusable)?,
                None => own,
            }
        }
    };
    of_target(&profile, &target()?).map(Some)
}

/// The runtime's own profile for a container with this bounding set, as in [`describe`](crate::describe).
///
/// # Errors
/// There is none for this machine.
pub fn runtime_default(bounding: u64, kernel: (u32, u32)) -> Result<LinuxSeccomp, Refusal> {
    static RESOLVED: Mutex<Vec<(Target, LinuxSeccomp)>> = Mutex::new(Vec::new());
    let target = Target { arch: native()?, capabilities: bounding, kernel };
    if let Some((_, profile)) = lock(&RESOLVED).iter().find(|(of, _)| *of == target) {
        return Ok(profile.clone());
    }
    let profile = of_target(&Profile::runtime_default(), &target)?;
    let mut resolved = lock(&RESOLVED);
    if resolved.len() == RESOLVED_MAX {
        resolved.remove(0);
    }
    resolved.push((target, profile.clone()));
    Ok(profile)
}

fn of_target(profile: &Profile, target: &Target) -> Result<LinuxSeccomp, Refusal> {
    resolve(profile, target).map_err(unusable)
}

fn unusable(error: super::Error) -> Refusal {
    Refusal::field(FIELD, wharf_types::chain(&error))
}

/// Parses the profile that is in a file of the host.
fn parse<T>(
    path: &str,
    facts: &HostFacts,
    parse: impl Fn(&[u8]) -> Result<T, super::Error>,
) -> Result<T, Refusal> {
    let json = match &facts.seccomp_profile {
        Some(Ok(json)) => json,
        Some(Err(unread)) => {
            return Err(Refusal::unread("seccomp", unread.clone().of(&format!("profile {path:?}"))));
        }
        None => return Err(problem(path, "it was not read")),
    };
    parse(json).map_err(|error| problem(path, &wharf_types::chain(&error)))
}

/// The architecture for which filters are compiled.
pub(super) fn native() -> Result<Arch, Refusal> {
    let missing = "profiles cannot be compiled for this machine's architecture";
    Arch::native().ok_or_else(|| Refusal::field(FIELD, missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::seccomp;
    use wharf_types::{ErrorKind, Failure as _};

    fn artifact() -> String {
        format!("registry.test/p@sha256:{}", "ab".repeat(32))
    }

    fn on(kind: BaseType, path: &str) -> Option<SecurityProfileBase> {
        Some(SecurityProfileBase { r#type: kind.into(), localhost_ref: path.to_owned() })
    }

    #[test]
    fn a_profile_from_a_registry_has_a_base() {
        let oci = SecurityProfile {
            profile_type: ProfileType::Oci.into(),
            oci_ref: artifact(),
            ..SecurityProfile::default()
        };
        for (base_profile, expected, file) in [
            (None, Base::RuntimeDefault, None),
            (on(BaseType::RuntimeDefault, ""), Base::RuntimeDefault, None),
            (on(BaseType::Localhost, "/p"), Base::Localhost("/p"), Some("/p")),
        ] {
            let profile = SecurityProfile { base_profile, ..oci.clone() };
            let context = LinuxContainerSecurityContext { seccomp: Some(profile), ..Default::default() };
            let chosen = choice(&context).unwrap();
            assert_eq!(chosen.file(), file);
            assert_eq!(chosen, Choice::Oci(artifact().parse().unwrap(), expected));
            assert_eq!(
                reference(context.seccomp.as_ref().unwrap()).unwrap().unwrap().to_string(),
                artifact()
            );
            let privileged = LinuxContainerSecurityContext { privileged: true, ..context };
            assert_eq!(choice(&privileged), Ok(Choice::Unconfined));
        }
    }

    #[test]
    fn the_runtimes_own_profile_is_remembered_by_what_it_depends_on() {
        let made = |capabilities, kernel| {
            let target = Target { arch: native().unwrap(), capabilities, kernel };
            of_target(&Profile::runtime_default(), &target).unwrap()
        };
        // More than are remembered, each twice.
        for bounding in (0..40).chain(0..40).map(|number| 1 << number) {
            for kernel in [(6, 18), (4, 7)] {
                assert_eq!(runtime_default(bounding, kernel).unwrap(), made(bounding, kernel));
            }
        }
    }

    #[test]
    fn fields_that_do_not_fit_the_type_are_refused() {
        let of = |profile_type: ProfileType| SecurityProfile {
            profile_type: profile_type.into(),
            ..SecurityProfile::default()
        };
        let oci = || SecurityProfile { oci_ref: artifact(), ..of(ProfileType::Oci) };
        let base = |kind, path: &str| SecurityProfile { base_profile: on(kind, path), ..oci() };
        let mut rows = vec![
            (of(ProfileType::Oci), "needs oci_ref"),
            (SecurityProfile { oci_ref: "registry.test/p:v1".to_owned(), ..oci() }, "no digest"),
            (SecurityProfile { oci_ref: artifact().replace("registry.test/", ""), ..oci() }, "spelt out"),
            (base(BaseType::Localhost, ""), "not an absolute path"),
            (base(BaseType::Localhost, "p.json"), "not an absolute path"),
            (base(BaseType::RuntimeDefault, "/p"), "localhost_ref is only for the type Localhost"),
            (SecurityProfile { profile_type: 9, ..of(ProfileType::Oci) }, "9"),
        ];
        let mut unknown = oci();
        unknown.base_profile = Some(SecurityProfileBase { r#type: 2, ..SecurityProfileBase::default() });
        rows.push((unknown, "2"));
        for kind in [ProfileType::RuntimeDefault, ProfileType::Unconfined, ProfileType::Localhost] {
            rows.push((
                SecurityProfile { oci_ref: artifact(), ..of(kind) },
                "oci_ref is only for the type OCI",
            ));
            // An empty base is a base.
            let base_profile = Some(SecurityProfileBase::default());
            rows.push((
                SecurityProfile { base_profile, ..of(kind) },
                "base_profile is only for the type OCI",
            ));
        }
        for (profile, words) in rows {
            let refusal = check(FIELD, &profile).unwrap_err();
            assert_eq!(refusal.kind(), ErrorKind::InvalidArgument);
            assert!(refusal.to_string().contains(words), "{words}: {refusal}");
            assert!(reference(&profile).is_err());
        }
    }

    #[test]
    #[allow(deprecated, reason = "older kubelets send the path alone")]
    fn a_default_is_for_who_asks_for_nothing() {
        let default = |text| Defaults { seccomp: seccomp(text).unwrap(), ..Defaults::default() };
        let filled = |context: LinuxContainerSecurityContext| {
            let mut config = ContainerConfig::default();
            config.linux.get_or_insert_default().security_context = Some(context);
            fill(&mut config, &default("runtime/default"));
            config.linux.unwrap().security_context.unwrap()
        };
        let nothing = LinuxContainerSecurityContext::default();
        assert_eq!(choice(&filled(nothing.clone())), Ok(Choice::RuntimeDefault));
        let unconfined =
            SecurityProfile { profile_type: ProfileType::Unconfined.into(), ..Default::default() };
        for asked in [
            LinuxContainerSecurityContext { privileged: true, ..nothing.clone() },
            LinuxContainerSecurityContext {
                seccomp_profile_path: "unconfined".to_owned(),
                ..nothing.clone()
            },
            LinuxContainerSecurityContext { seccomp: Some(unconfined), ..nothing },
        ] {
            assert_eq!(filled(asked.clone()), asked);
        }
        let mut bare = ContainerConfig::default();
        fill(&mut bare, &default("unconfined"));
        assert_eq!(bare, ContainerConfig::default());
        fill(&mut bare, &default("/p.json"));
        let context = bare.linux.unwrap().security_context.unwrap();
        assert_eq!(choice(&context), Ok(Choice::Localhost("/p.json")));
        for bad in ["", "default", "p.json", "localhost//p"] {
            assert!(seccomp(bad).is_err(), "{bad}");
        }
    }

    #[test]
    #[allow(deprecated, reason = "older kubelets send the path alone")]
    fn old_and_new_words_mean_the_same() {
        let by_type = |profile: ProfileType, path: &str| LinuxContainerSecurityContext {
            seccomp: Some(SecurityProfile {
                profile_type: profile.into(),
                localhost_ref: path.into(),
                ..SecurityProfile::default()
            }),
            ..LinuxContainerSecurityContext::default()
        };
        let by_path = |path: &str| LinuxContainerSecurityContext {
            seccomp_profile_path: path.into(),
            ..LinuxContainerSecurityContext::default()
        };
        let rows = [
            (by_type(ProfileType::Unconfined, ""), by_path("unconfined"), Choice::Unconfined),
            (by_type(ProfileType::Unconfined, ""), by_path(""), Choice::Unconfined),
            (by_type(ProfileType::RuntimeDefault, ""), by_path("docker/default"), Choice::RuntimeDefault),
            (by_type(ProfileType::Localhost, "/p"), by_path("localhost//p"), Choice::Localhost("/p")),
        ];
        for (new, old, expected) in &rows {
            assert_eq!(choice(new).as_ref(), Ok(expected));
            assert_eq!(choice(old).as_ref(), Ok(expected));
        }
        for bad in [by_type(ProfileType::Localhost, "p"), by_path("localhost/p"), by_path("mine")] {
            assert!(choice(&bad).is_err(), "{bad:?}");
            assert_eq!(
                choice(&LinuxContainerSecurityContext { privileged: true, ..bad }),
                Ok(Choice::Unconfined)
            );
        }
    }
}
