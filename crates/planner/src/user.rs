//! The container's user: numbers go into the spec, and names are looked up in the container's own files once these
//! exist.

use oci_spec::runtime as oci;
use wharf_cri_api::v1::SupplementalGroupsPolicy;
use wharf_isolation::User;
use wharf_types::OwnerId;

use crate::description::{Group, Names};
use crate::request::Request;
use crate::{Refusal, annotations};

/// The longest name of a user or a group: `LOGIN_NAME_MAX`. The pod's supervisor keeps it.
const NAME_LIMIT_BYTES: usize = 255;

/// The request's user and groups, or else the image's.
pub(crate) fn describe(request: &Request<'_>) -> Result<(oci::User, Names), Refusal> {
    let security = request.security();
    let by_id = security.run_as_user.as_ref().map(|user| id("run_as_user", user.value)).transpose()?;
    let group = security.run_as_group.as_ref().map(|group| id("run_as_group", group.value)).transpose()?;
    let named = !security.run_as_username.is_empty();
    if group.is_some() && by_id.is_none() && !named {
        return Err(Refusal::field("run_as_group", "it needs run_as_user or run_as_username"));
    }
    let groups = security.supplemental_groups.iter();
    let additional: Vec<u32> =
        groups.map(|&group| id("supplemental_groups", group)).collect::<Result<_, _>>()?;
    let (user, images_group) = match by_id {
        Some(uid) => (Who::Number(uid), Group::OfUser),
        None if named => (who(&security.run_as_username), Group::OfUser),
        None => images_user(request),
    };
    let of_group = if let Group::Named(name) = &images_group { Some(name) } else { None };
    let of_user = if let Who::Name(name) = &user { Some(name) } else { None };
    of_user.into_iter().chain(of_group).try_for_each(|name| check_length(name))?;
    let mut spec = oci::User::default();
    spec.set_additional_gids(Some(additional)).set_umask(annotations::umask(request.pod, request.defaults)?);
    let mut names = Names {
        user: None,
        group: images_group,
        strict: security.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict,
    };
    match user {
        Who::Number(uid) => {
            spec.set_uid(uid);
        }
        Who::Name(name) => {
            spec.set_username(Some(name.clone()));
            names.user = Some(name);
        }
    }
    if let Some(gid) = group {
        spec.set_gid(gid);
        names.group = Group::Number;
    }
    Ok((spec, names))
}

fn id(field: &'static str, value: i64) -> Result<u32, Refusal> {
    let id = u32::try_from(value).ok().and_then(OwnerId::new);
    id.map(OwnerId::number).ok_or_else(|| Refusal::field(field, format!("{value} is out of range")))
}

fn check_length(name: &str) -> Result<(), Refusal> {
    match name.len() {
        0..=NAME_LIMIT_BYTES => Ok(()),
        length => {
            let problem = format!("a name with {length} bytes, but it may have at most {NAME_LIMIT_BYTES}");
            Err(Refusal::field("user", problem))
        }
    }
}

enum Who {
    Number(u32),
    Name(String),
}

/// Digits are a number; too many for a number are refused when names are looked up.
fn who(text: &str) -> Who {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Who::Number(number),
        _ if text.is_empty() => Who::Number(0),
        _ => Who::Name(text.to_owned()),
    }
}

fn images_user(request: &Request<'_>) -> (Who, Group) {
    let text = request.image.user().as_deref().unwrap_or_default();
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let group = if group.is_empty() { Group::OfUser } else { Group::Named(group.to_owned()) };
    (who(user), group)
}

/// The user of the plan, in the form that the supervisor expects. A number together with a name would be lost, so that
/// is refused.
pub(crate) fn plan(spec: &oci::User, names: &Names) -> Result<User, Refusal> {
    let user = match &names.user {
        None => spec.uid().to_string(),
        Some(name) if spec.uid() == 0 => name.clone(),
        Some(_) => return Err(Refusal::spec("process.user.uid", "the user is given by its name")),
    };
    let group = match &names.group {
        Group::Number => spec.gid().to_string(),
        Group::OfUser if spec.gid() == 0 => String::new(),
        Group::Named(name) if spec.gid() == 0 => name.clone(),
        Group::OfUser | Group::Named(_) => {
            return Err(Refusal::spec(
                "process.user.gid",
                "the group follows from the image's /etc/passwd and /etc/group: leave it as it is",
            ));
        }
    };
    let group_of = |&id: &u32| {
        OwnerId::try_from(id).map_err(|error| Refusal::spec("process.user.additionalGids", error))
    };
    let additional_groups =
        spec.additional_gids().iter().flatten().map(group_of).collect::<Result<_, _>>()?;
    Ok(User { user, group, additional_groups, strict: names.strict })
}
