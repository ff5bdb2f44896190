//! The container's program: its arguments, environment, user, rights and streams.

use wharf_cri_api::v1::{KeyValue, LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use wharf_isolation::{DEFAULT_PATH, Input, LogFile, Process, Stdio, User};
use wharf_planner::{capabilities, seccomp};
use wharf_sys::capabilities::Capabilities;
use wharf_types::{ContainerPath, HostPath};

use super::Context;
use crate::error::Error;

/// The capabilities the container gets.
pub(crate) fn capabilities(context: &Context<'_>) -> Result<Capabilities, Error> {
    let security = context.security();
    if security.privileged {
        let all = context.bounding;
        return Ok(Capabilities { bounding: all, effective: all, permitted: all, ..Capabilities::default() });
    }
    let asked = security.capabilities.unwrap_or_default();
    let parse =
        |names: &[String]| capabilities::parse(names).map_err(|error| Error::invalid("capabilities", error));
    let (add, drop) = (parse(&asked.add_capabilities)?, parse(&asked.drop_capabilities)?);
    let ambient = parse(&asked.add_ambient_capabilities)?.bits() & context.bounding;
    let set = (capabilities::changed(add, drop) | ambient) & context.bounding;
    Ok(Capabilities { bounding: set, effective: set, permitted: set, inheritable: ambient, ambient })
}

pub(super) fn process(
    context: &Context<'_>,
    security: &LinuxContainerSecurityContext,
    filter: Option<&seccomp::Program>,
) -> Result<Process, Error> {
    let config = context.config;
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let args = context.image.command(&config.command, &config.args);
    if args.is_empty() {
        return Err(Error::invalid("command", "neither the request nor the image names a program"));
    }
    let cwd = if config.working_dir.is_empty() { context.image.working_dir() } else { &config.working_dir };
    Ok(Process {
        args: args.into_iter().map(String::into_bytes).collect(),
        env: environment(context)?,
        cwd: ContainerPath::new(cwd).map_err(|error| Error::invalid("working_dir", error))?,
        user: user(context, security)?,
        capabilities: capabilities(context)?,
        no_new_privileges: security.no_new_privs,
        limits: Vec::new(),
        // Without a wish not the daemon's, which is protected.
        oom_score_adj: resources.map_or(Some(0), |resources| i32::try_from(resources.oom_score_adj).ok()),
        seccomp: filter.map(seccomp::Program::to_bytes).unwrap_or_default(),
        seccomp_flags: filter.map_or(0, |program| program.flags),
    })
}

/// The name of the host, the image's environment, then the request's; a later value of a name replaces an earlier one.
fn environment(context: &Context<'_>) -> Result<Vec<Vec<u8>>, Error> {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut set = |key: &[u8], value: &[u8]| match pairs.iter_mut().find(|(known, _)| known == key) {
        Some(pair) => pair.1 = value.to_vec(),
        None => pairs.push((key.to_vec(), value.to_vec())),
    };
    set(b"HOSTNAME", context.pod.hostname().as_bytes());
    if context.config.tty {
        set(b"TERM", b"xterm");
    }
    for (key, value) in context.image.environment() {
        set(key.as_bytes(), value.as_bytes());
    }
    for KeyValue { key, value } in &context.config.envs {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains(&0) {
            return Err(Error::invalid(
                "envs",
                format!("{key:?} is not a name, or its value has a NUL byte"),
            ));
        }
        set(key.as_bytes(), value);
    }
    if !pairs.iter().any(|(key, _)| key == b"PATH") {
        pairs.push((b"PATH".to_vec(), DEFAULT_PATH.into()));
    }
    Ok(pairs.into_iter().map(|(key, value)| [&key[..], b"=", &value].concat()).collect())
}

fn user(context: &Context<'_>, security: &LinuxContainerSecurityContext) -> Result<User, Error> {
    let id = |field, value: i64| {
        let id = u32::try_from(value).ok().filter(|&id| id != u32::MAX);
        id.ok_or_else(|| Error::invalid(field, format!("{value} is out of range")))
    };
    let by_id = security.run_as_user.as_ref().map(|user| id("run_as_user", user.value)).transpose()?;
    let group = security.run_as_group.as_ref().map(|group| id("run_as_group", group.value)).transpose()?;
    let named = !security.run_as_username.is_empty();
    if group.is_some() && by_id.is_none() && !named {
        return Err(Error::invalid("run_as_group", "it needs run_as_user or run_as_username"));
    }
    let (user, image_group) = match by_id {
        Some(uid) => (uid.to_string(), String::new()),
        None if named => (security.run_as_username.clone(), String::new()),
        None => context.image.user(),
    };
    let additional: Result<Vec<u32>, Error> =
        security.supplemental_groups.iter().map(|&group| id("supplemental_groups", group)).collect();
    Ok(User {
        user,
        group: group.map_or(image_group, |gid| gid.to_string()),
        additional_groups: additional?,
        strict: security.supplemental_groups_policy() == SupplementalGroupsPolicy::Strict,
    })
}

pub(super) fn stdio(context: &Context<'_>) -> Result<Stdio, Error> {
    let directory = &context.pod.config.log_directory;
    let log = match log_name(&context.config.log_path)? {
        Some(name) if !directory.is_empty() => {
            let directory =
                HostPath::new(directory).map_err(|error| Error::invalid("log_directory", error))?;
            Some(LogFile { directory, name })
        }
        _ => None,
    };
    Ok(Stdio {
        log,
        input: match (context.config.stdin, context.config.stdin_once) {
            (false, _) => Input::Empty,
            (true, false) => Input::Kept,
            (true, true) => Input::Once,
        },
        terminal: context.config.tty,
    })
}

/// The name of a log below the pod's directory of logs; none for the empty one. The bounds are the kernel's.
fn log_name(name: &str) -> Result<Option<String>, Error> {
    const PATH_LIMIT_BYTES: usize = 4095;
    const PART_LIMIT_BYTES: usize = 255;
    if name.len() > PATH_LIMIT_BYTES || name.split('/').any(|part| part.len() > PART_LIMIT_BYTES) {
        let problem =
            format!("it is longer than {PATH_LIMIT_BYTES} bytes, or a part than {PART_LIMIT_BYTES}");
        return Err(Error::invalid("log_path", problem));
    }
    if name.split('/').any(|part| part == "..") || name.starts_with('/') || name.contains('\0') {
        return Err(Error::invalid("log_path", format!("{name:?} leads out of the log directory")));
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}
