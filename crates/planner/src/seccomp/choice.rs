//! The choice of a container's seccomp profile.

use oci_spec::runtime::LinuxSeccomp;
use wharf_cri_api::v1::{LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType};

use super::{Arch, Profile, Target, resolve};
use crate::request::{HostFacts, Request};
use crate::{Refusal, process};

/// A container's profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// None.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// A profile in a file of the host, by its path.
    Localhost(&'a str),
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
        Some(profile) => by_message(profile),
        None => by_path(legacy_path(context))?,
    };
    match choice {
        Choice::Localhost(path) if !path.starts_with('/') => Err(problem(path, "is not an absolute path")),
        choice => Ok(choice),
    }
}

fn by_message(profile: &SecurityProfile) -> Choice<'_> {
    match profile.profile_type() {
        ProfileType::RuntimeDefault => Choice::RuntimeDefault,
        ProfileType::Unconfined => Choice::Unconfined,
        ProfileType::Localhost => Choice::Localhost(&profile.localhost_ref),
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
    Refusal::field("seccomp", format!("profile {path:?} {problem}"))
}

/// The chosen profile for this container on this machine; `None` if it is unconfined.
pub(crate) fn describe(request: &Request<'_>, facts: &HostFacts) -> Result<Option<LinuxSeccomp>, Refusal> {
    let capabilities = process::capabilities(request, facts)?.bounding;
    let profile = match choice(request.security())? {
        Choice::Unconfined => return Ok(None),
        Choice::RuntimeDefault => return runtime_default(capabilities, facts.kernel).map(Some),
        Choice::Localhost(path) => local(path, facts)?,
    };
    of_target(&profile, &Target { arch: native()?, capabilities, kernel: facts.kernel }).map(Some)
}

/// The runtime's own profile for a container with this bounding set, as in [`describe`](crate::describe).
///
/// # Errors
/// There is none for this machine.
pub fn runtime_default(bounding: u64, kernel: (u32, u32)) -> Result<LinuxSeccomp, Refusal> {
    let target = Target { arch: native()?, capabilities: bounding, kernel };
    of_target(&Profile::runtime_default(), &target)
}

fn of_target(profile: &Profile, target: &Target) -> Result<LinuxSeccomp, Refusal> {
    resolve(profile, target).map_err(|error| Refusal::field("seccomp", wharf_types::chain(&error)))
}

fn local(path: &str, facts: &HostFacts) -> Result<Profile, Refusal> {
    let json = match &facts.seccomp_profile {
        Some(Ok(json)) => json,
        Some(Err(unread)) => {
            return Err(Refusal::unread(
                "seccomp",
                unread.clone().of(&format!("profile {path:?} cannot be read")),
            ));
        }
        None => return Err(problem(path, "was not read")),
    };
    Profile::parse(json).map_err(|error| problem(path, &wharf_types::chain(&error)))
}

/// The architecture for which filters are compiled.
pub(super) fn native() -> Result<Arch, Refusal> {
    let missing = "profiles cannot be compiled for this machine's architecture";
    Arch::native().ok_or_else(|| Refusal::field("seccomp", missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(deprecated, reason = "older kubelets send the path alone")]
    fn old_and_new_words_mean_the_same() {
        let by_type = |profile: ProfileType, path: &str| LinuxContainerSecurityContext {
            seccomp: Some(SecurityProfile { profile_type: profile.into(), localhost_ref: path.into() }),
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
            assert_eq!(choice(new), Ok(*expected));
            assert_eq!(choice(old), Ok(*expected));
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
