//! A container's runtime spec as it is saved and shown to people and tools, which look for it in `info.runtimeSpec`.
//! Nothing in wharf depends on it. The hooks are kept once more on their own: they must be known at the container's
//! end. Only if the container's record is damaged are they read from here.
//!
//! The runtime's own seccomp profile is left out: it is the longest part, and follows from the rest. What is known only
//! later is filled in: the ids that belong to the user's name, and the present limits.

use std::borrow::Cow;

use oci_spec::runtime::Spec;
use serde_json::Value;
use wharf_cri_api::v1::ContainerConfig;

use crate::capabilities::bits_of;
use crate::seccomp::{Choice, choice, runtime_default};
use crate::{Refusal, Seccomp, hooks, limits};

/// The longest text that is kept whole. An environment with the services of a large cluster fits.
const KEPT_LIMIT_BYTES: usize = 256 << 10;

/// The identity of a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All groups.
    pub groups: &'a [u32],
}

/// The text that is saved of the spec, and that of its hooks, which is empty if it has none.
///
/// # Errors
/// Never: the spec contains only text and numbers.
pub fn to_saved(mut spec: Spec, seccomp: Seccomp) -> Result<(Vec<u8>, String), Refusal> {
    if let (Seccomp::Runtimes, Some(linux)) = (seccomp, spec.linux_mut()) {
        linux.set_seccomp(None);
    }
    let fault = |error| Refusal::spec("saved", error);
    Ok((serde_json::to_vec(&spec).map_err(fault)?, hooks::Kept::text_of(&spec).map_err(fault)?))
}

/// The text of the hooks in a saved text, as [`to_saved`] has returned it.
///
/// # Errors
/// The text is not what was saved.
pub fn saved_hooks(text: &[u8]) -> Result<String, Refusal> {
    let damaged = |error| Refusal::spec("saved", error);
    hooks::Kept::text_of(&serde_json::from_slice(text).map_err(damaged)?).map_err(damaged)
}

/// What is kept of a saved text. The state directory is memory of the host, which no limit of a pod holds, and an image
/// decides how long its environment, its arguments and the paths of its volumes are. Of a text that is too long because
/// of them, as few as must be are left out. What is no saved text stays as it is.
#[must_use]
pub fn kept(text: &[u8]) -> Cow<'_, [u8]> {
    if text.len() <= KEPT_LIMIT_BYTES {
        return Cow::Borrowed(text);
    }
    let shorter = serde_json::from_slice(text).and_then(shortened);
    shorter.map_or(Cow::Borrowed(text), Cow::Owned)
}

fn shortened(mut spec: Value) -> Result<Vec<u8>, serde_json::Error> {
    for (part, names) in [("/process", &["env", "args"][..]), ("", &["mounts"])] {
        if let Some(part) = spec.pointer_mut(part).and_then(Value::as_object_mut) {
            part.retain(|name, _value| !names.contains(&name.as_str()));
        }
        let text = serde_json::to_vec(&spec)?;
        if text.len() <= KEPT_LIMIT_BYTES {
            return Ok(text);
        }
    }
    serde_json::to_vec(&spec)
}

/// The spec from a saved text, for a container that now has this request.
///
/// # Errors
/// The text is not what was saved.
pub fn from_saved(
    text: &[u8],
    request: &ContainerConfig,
    identity: Identity<'_>,
    kernel: (u32, u32),
) -> Result<Value, Refusal> {
    let damaged = |error: serde_json::Error| Refusal::spec("saved", error);
    let mut spec: Spec = serde_json::from_slice(text).map_err(damaged)?;
    let mut bounding = 0;
    let resources = request.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    if let Some(process) = spec.process_mut() {
        let user = process.user_mut();
        user.set_uid(identity.uid).set_gid(identity.gid).set_additional_gids(Some(identity.groups.to_vec()));
        bounding = process.capabilities().as_ref().map_or(0, |sets| bits_of(sets.bounding()));
        if let Some(score) = resources.and_then(limits::oom_score) {
            process.set_oom_score_adj(Some(score));
        }
    }
    if let Some(linux) = spec.linux_mut() {
        let mut now = limits::resources(&resources.cloned().unwrap_or_default());
        // What the CRI cannot express is as it was.
        let kept = linux.resources().clone().unwrap_or_default();
        now.set_devices(kept.devices().clone()).set_pids(*kept.pids());
        linux.set_resources(Some(now));
        if linux.seccomp().is_none() && has_default_profile(request) {
            linux.set_seccomp(Some(runtime_default(bounding, kernel)?));
        }
    }
    to_json(&spec).map_err(damaged)
}

fn has_default_profile(request: &ContainerConfig) -> bool {
    let context = request.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.is_some_and(|context| choice(context) == Ok(Choice::RuntimeDefault))
}

/// The spec as JSON, with sorted sets so that it is the same each time.
pub(crate) fn to_json(spec: &Spec) -> Result<Value, serde_json::Error> {
    let mut json = serde_json::to_value(spec)?;
    let sets = json.pointer_mut("/process/capabilities").and_then(Value::as_object_mut);
    for names in sets.into_iter().flatten().filter_map(|(_, names)| names.as_array_mut()) {
        names.sort_by(|one, other| one.as_str().cmp(&other.as_str()));
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{Asked, defaults, requests::CASES};
    use crate::{Description, describe};

    const ROOT: Identity<'_> = Identity { uid: 0, gid: 0, groups: &[] };

    fn shown(asked: &Asked, identity: Identity<'_>) -> (Value, Value) {
        let Description { spec, extra } = describe(&asked.request(), &asked.facts, &asked.places).unwrap();
        let (text, _hooks) = to_saved(spec.clone(), extra.seccomp).unwrap();
        let shown = from_saved(&text, &asked.container, identity, asked.facts.kernel).unwrap();
        (to_json(&spec).unwrap(), shown)
    }

    #[test]
    fn what_was_kept_is_shown_whole() {
        let cases = [
            "the runtime's seccomp profile",
            "a seccomp profile of the host",
            "huge pages and files of v2",
            "processes",
        ];
        for case in CASES.iter().chain(defaults::CASES).filter(|case| cases.contains(&case.name)) {
            let mut asked = Asked::default();
            (case.change)(&mut asked);
            let (made, shown) = shown(&asked, ROOT);
            assert_eq!(made, shown, "{}", case.name);
        }
    }

    #[test]
    fn the_default_profile_takes_no_room() {
        let mut asked = Asked::default();
        let case = CASES.iter().find(|case| case.name == "the runtime's seccomp profile").unwrap();
        (case.change)(&mut asked);
        let Description { spec, extra } = describe(&asked.request(), &asked.facts, &asked.places).unwrap();
        let whole = serde_json::to_vec(&spec).unwrap().len();
        let kept = to_saved(spec, extra.seccomp).unwrap().0.len();
        assert!(kept < 4096 && kept * 2 < whole, "{kept} of {whole} bytes");
    }

    #[test]
    fn what_an_image_makes_too_long_is_not_kept() {
        let made = |change: fn(&mut Asked)| {
            let mut asked = Asked::default();
            change(&mut asked);
            let Description { spec, extra } =
                describe(&asked.request(), &asked.facts, &asked.places).unwrap();
            let (text, _hooks) = to_saved(spec, extra.seccomp).unwrap();
            let kept = kept(&text).into_owned();
            let shown = from_saved(&kept, &asked.container, ROOT, asked.facts.kernel).unwrap();
            (text, kept, shown)
        };
        let (text, kept, _) = made(|_| {});
        assert_eq!(text, kept);
        // JSON needs six bytes for this one.
        let env = |asked: &mut Asked| {
            let variable = |number| format!("A{number}={}", "\u{1}".repeat(1000));
            asked.image.set_env(Some((0..2000).map(variable).collect()));
        };
        let (text, kept, shown) = made(env);
        assert!(text.len() > 12_000_000 && kept.len() < 8 << 10, "{} of {}", kept.len(), text.len());
        let is_there = |part: &str| shown.pointer(part).is_some();
        assert!(!is_there("/process/env") && is_there("/process/cwd") && is_there("/mounts/0"));
        let (_, kept, shown) = made(|asked| {
            let volume = |number| format!("/{number}{}", "/x".repeat(2000));
            asked.image.set_volumes(Some((0..100).map(volume).collect()));
        });
        assert!(kept.len() < 8 << 10, "{}", kept.len());
        assert!(shown.pointer("/mounts").is_none() && shown.pointer("/linux/resources").is_some());
    }

    #[test]
    fn what_came_later_is_shown() {
        let mut asked = Asked::default();
        asked.image.set_user(Some("me:staff".to_owned()));
        let Description { spec, extra } = describe(&asked.request(), &asked.facts, &asked.places).unwrap();
        let (text, _hooks) = to_saved(spec, extra.seccomp).unwrap();
        asked.linux().resources.get_or_insert_default().memory_limit_in_bytes = 5;
        let identity = Identity { uid: 7, gid: 8, groups: &[8, 9] };
        let shown = from_saved(&text, &asked.container, identity, (6, 18)).unwrap();
        let user = &shown["process"]["user"];
        assert_eq!((user["uid"].as_u64(), user["gid"].as_u64()), (Some(7), Some(8)));
        assert_eq!(user["additionalGids"], serde_json::json!([8, 9]));
        assert_eq!(shown["linux"]["resources"]["memory"]["limit"], 5);
        assert!(!shown["linux"]["resources"]["devices"].as_array().unwrap().is_empty());
        assert!(from_saved(b"{", &asked.container, ROOT, (6, 18)).is_err());
    }
}
