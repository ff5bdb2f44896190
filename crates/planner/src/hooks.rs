//! Hooks: programs of the host that are executed at some point of a container's life. They are in the description's
//! runtime spec; whoever changes descriptions [`add`]s them there.
//!
//! They are executed by the daemon, which keeps them beside the container's record ([`Kept`]): those for the end of a
//! container must be known to a later daemon, too.

pub mod configured;

use std::collections::BTreeMap;
use std::time::Duration;

use oci_spec::runtime::{self as oci, Spec};
use serde::{Deserialize, Serialize};
use serde_json::json;
use wharf_types::{ContainerId, HostPath};

use crate::plan::parts;
use crate::{Refusal, user_namespace};

/// How long a hook without a timeout may run.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest timeout: the call that waits for a hook holds up its pod.
const TIMEOUT_LIMIT_S: u64 = 600;
/// The most hooks of one container.
const HOOKS_MAX: usize = 128;

/// A point of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The container is made, its program not yet executed; outside of the container. An older name for the next.
    Prestart,
    /// The same.
    CreateRuntime,
    /// The same, with the container's mounts visible and in its network.
    CreateContainer,
    /// Inside the container, before its program.
    StartContainer,
    /// The program is executed; outside.
    Poststart,
    /// Nothing is left of the container; outside.
    Poststop,
}

impl Point {
    /// All points, in the order of a container's life.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// Its name in the runtime spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The point with a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|point| point.name() == name)
    }

    /// The names of all points, for people.
    pub(crate) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

/// A program to be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its file.
    pub program: HostPath,
    /// Its arguments, its name first; never empty.
    pub arguments: Vec<String>,
    /// Its environment, and nothing else; `NAME=value` each.
    pub environment: Vec<(String, String)>,
    /// How long it may run.
    pub patience: Duration,
}

/// Adds a hook to a spec, after those that it has at this point.
pub fn add(spec: &mut Spec, point: Point, hook: oci::Hook) {
    let hooks = spec.hooks_mut().get_or_insert_default();
    let list = match point {
        Point::Prestart => hooks.prestart_mut(),
        Point::CreateRuntime => hooks.create_runtime_mut(),
        Point::CreateContainer => hooks.create_container_mut(),
        Point::StartContainer => hooks.start_container_mut(),
        Point::Poststart => hooks.poststart_mut(),
        Point::Poststop => hooks.poststop_mut(),
    };
    list.get_or_insert_default().push(hook);
}

fn list(hooks: &oci::Hooks, point: Point) -> &[oci::Hook] {
    let list = match point {
        Point::Prestart => hooks.prestart(),
        Point::CreateRuntime => hooks.create_runtime(),
        Point::CreateContainer => hooks.create_container(),
        Point::StartContainer => hooks.start_container(),
        Point::Poststart => hooks.poststart(),
        Point::Poststop => hooks.poststop(),
    };
    list.as_deref().unwrap_or_default()
}

/// Checks that all hooks of a spec can be executed as the runtime spec says.
pub(crate) fn check(spec: &Spec) -> Result<(), Refusal> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    let count: usize = Point::ALL.iter().map(|&point| list(hooks, point).len()).sum();
    if count > HOOKS_MAX {
        return Err(Refusal::addition(
            "hooks",
            format!("there are {count}; at most {HOOKS_MAX} are allowed"),
        ));
    }
    for point in Point::ALL {
        list(hooks, point).iter().try_for_each(|hook| plan(point, hook).map(drop))?;
    }
    if let Some(hook) = list(hooks, Point::StartContainer).first() {
        return Err(refusal(Point::StartContainer, hook, INSIDE));
    }
    let (linux, _process) = parts(spec)?;
    match list(hooks, Point::CreateContainer).first() {
        Some(hook) if user_namespace::ids_of(linux)?.is_some() => {
            Err(refusal(Point::CreateContainer, hook, MAPPED))
        }
        _ => Ok(()),
    }
}

const INSIDE: &str = "a program that runs inside the container before its own could take over the process that executes \
                      it: use createContainer, or an init container";
const MAPPED: &str = "in a pod with a user namespace, the files that it makes would belong to the host's root user: use \
                      createRuntime, or a pod without a user namespace";

fn refusal(point: Point, hook: &oci::Hook, problem: impl ToString) -> Refusal {
    Refusal::addition(format!("the hook {} at {}", hook.path().display(), point.name()), problem)
}

fn plan(point: Point, hook: &oci::Hook) -> Result<Hook, Refusal> {
    let fail = |problem: String| refusal(point, hook, problem);
    let path = hook.path().to_str().ok_or_else(|| fail("its path is not UTF-8".to_owned()))?;
    let program = HostPath::new(path).map_err(|error| fail(error.to_string()))?;
    let mut arguments = hook.args().clone().unwrap_or_default();
    if arguments.is_empty() {
        arguments.push(path.to_owned());
    }
    let environment = hook.env().iter().flatten().map(|variable| {
        let pair = variable.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.ok_or_else(|| fail(format!("{variable:?} is not NAME=value")))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    let environment = environment.collect::<Result<Vec<_>, Refusal>>()?;
    let texts = arguments.iter().chain(environment.iter().flat_map(|(name, value)| [name, value]));
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(fail("an argument or a variable has a NUL byte".to_owned()));
    }
    let patience = match hook.timeout() {
        None => PATIENCE,
        Some(seconds) => {
            let allowed =
                u64::try_from(seconds).ok().filter(|seconds| (1..=TIMEOUT_LIMIT_S).contains(seconds));
            let problem = || format!("its timeout of {seconds} s is not between 1 and {TIMEOUT_LIMIT_S}");
            Duration::from_secs(allowed.ok_or_else(|| fail(problem()))?)
        }
    };
    Ok(Hook { program, arguments, environment, patience })
}

/// What is kept for a container with hooks: the hooks, and the state of the container that they are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    oci_version: String,
    annotations: BTreeMap<String, String>,
    hooks: oci::Hooks,
}

/// What a hook is told of the container's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// Its first process; 0 if it has none.
    pub pid: i32,
    /// The directory of its bundle.
    pub bundle: &'a str,
}

impl Kept {
    /// The hooks of a container, as text; empty if it has none.
    ///
    /// # Errors
    /// Never: it contains only text and numbers.
    pub(crate) fn text_of(spec: &Spec) -> Result<String, serde_json::Error> {
        let Some(hooks) = spec.hooks() else { return Ok(String::new()) };
        let annotations = spec.annotations().clone().unwrap_or_default().into_iter().collect();
        let kept = Self { oci_version: spec.version().clone(), annotations, hooks: hooks.clone() };
        serde_json::to_string(&kept)
    }

    /// Reads such a text; `None` if it is empty.
    ///
    /// # Errors
    /// The text is not what was kept.
    pub fn read(text: &str) -> Result<Option<Self>, Refusal> {
        let parse = || serde_json::from_str(text).map_err(|error| Refusal::spec("hooks", error));
        (!text.is_empty()).then(parse).transpose()
    }

    /// The hooks at a point, in order.
    ///
    /// # Errors
    /// [`Refusal::Addition`] for one that cannot be executed; those of a container that was made can.
    pub fn at(&self, point: Point) -> Result<Vec<Hook>, Refusal> {
        list(&self.hooks, point).iter().map(|hook| plan(point, hook)).collect()
    }

    /// The container's state as a hook at a point reads it from its standard input.
    #[must_use]
    pub fn state(&self, point: Point, state: &State<'_>) -> Vec<u8> {
        let status = match point {
            Point::Prestart | Point::CreateRuntime | Point::CreateContainer => "creating",
            Point::StartContainer => "created",
            Point::Poststart => "running",
            Point::Poststop => "stopped",
        };
        let mut json = json!({
            "ociVersion": self.oci_version,
            "id": state.id.as_str(),
            "status": status,
            "bundle": state.bundle,
            "annotations": self.annotations,
        });
        if let (true, Some(fields)) = (state.pid > 0, json.as_object_mut()) {
            fields.insert("pid".to_owned(), state.pid.into());
        }
        json.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests;
