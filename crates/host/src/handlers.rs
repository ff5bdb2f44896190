//! The handlers of this node: the names by which pods choose how their containers are made, by wharf or by another
//! runtime of this machine.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use wharf_cgroup::{Access, Cgroup, CgroupPath, Cgroups, DeviceRule, DeviceType, Limits};
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_isolation::Plan;
use wharf_planner::defaults::PrivilegedDevices;
use wharf_planner::{
    Defaults, Description, Features, Filters, OtherRuntime, Refusal, SandboxPlace, Workplace,
};
use wharf_state::Layout;
use wharf_types::program::DEFAULT_PATH;
use wharf_types::{ContainerId, ErrorKind, Failure, HostPath, PodId, Stage as _, StageError};

use crate::cgroups::enclose;
use crate::error::Error;
use crate::places::{cgroup_places, host_path};
use crate::program::{self, Problem};

/// How long a runtime may take to say what it can do, or to delete what it keeps.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the configuration says of a handler.
#[derive(Debug, Clone)]
pub struct HandlerConfig {
    /// The program of its runtime; wharf itself if there is none.
    pub program: Option<HostPath>,
    /// What comes before each of the runtime's commands.
    pub options: Vec<String>,
    /// The annotations that the runtime is told.
    pub annotations: Vec<String>,
    /// What its privileged containers have of the machine's devices, if not what others have.
    pub privileged_devices: Option<PrivilegedDevices>,
}

/// A handler.
#[derive(Debug)]
pub struct Handler {
    /// Its runtime; wharf itself if there is none.
    pub runtime: Option<OtherRuntime>,
    /// What its privileged containers have of the machine's devices, if not what others have.
    pub privileged_devices: Option<PrivilegedDevices>,
    /// Why its runtime cannot be used, with the key of the configuration.
    pub problem: Option<String>,
    /// Why its runtime could not be asked what it can do, with the key of the configuration. It is used all the same.
    pub remark: Option<String>,
}

/// All handlers by their names. The one without a name is wharf, as it is.
#[derive(Debug, Clone, Default)]
pub struct Handlers(Arc<BTreeMap<String, Handler>>);

/// A runtime did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{runtime} {problem}")]
struct RuntimeError {
    runtime: String,
    problem: String,
}

impl Failure for RuntimeError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

impl Handlers {
    /// The handlers of a configuration. Each runtime is asked what it can do; older ones cannot say. One that cannot be
    /// executed is no reason to leave a node without its others.
    #[must_use]
    pub fn ask(configs: BTreeMap<String, HandlerConfig>) -> Self {
        let handler = |(name, config): (String, HandlerConfig)| {
            let HandlerConfig { program, options, annotations, privileged_devices } = config;
            let asked = program.as_ref().map(|program| features(program, PATIENCE)).transpose();
            let problem = asked.as_ref().err().map(|error| format!("handlers.{name}.path: {error}"));
            if let Some(problem) = &problem {
                tracing::warn!(problem, "a handler cannot be used until wharfd is started again");
            }
            let (features, unasked) = asked.ok().flatten().unwrap_or_default();
            let remark = unasked.map(|problem| format!("handlers.{name}.path: {problem}"));
            if let Some(remark) = &remark {
                tracing::warn!(remark, "a runtime is taken for one that does not say what it can do");
            }
            let handler = name.clone();
            let runtime =
                program.map(|program| OtherRuntime { handler, program, options, features, annotations });
            (name, Handler { runtime, privileged_devices, problem, remark })
        };
        Self(Arc::new(configs.into_iter().map(handler).collect()))
    }

    /// Why handlers cannot be used, by their keys in the configuration.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter_map(|handler| handler.problem.as_deref())
    }

    /// What could not be found out about handlers that are used all the same, by their keys in the configuration.
    pub fn remarks(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter_map(|handler| handler.remark.as_deref())
    }

    /// All with a name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Handler)> {
        self.0.iter().map(|(name, handler)| (name.as_str(), handler))
    }

    /// The handler of a name; `None` for that without a name.
    ///
    /// # Errors
    /// The name is not known, or its runtime cannot be used.
    pub fn find(&self, name: &str) -> Result<Option<&Handler>, Refusal> {
        match self.0.get(name) {
            None if !name.is_empty() => {
                let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
                let problem = format!(
                    "{name:?} is not known; known are: {}: enter [handlers.{name}] in wharfd's configuration",
                    known.join(", ")
                );
                Err(Refusal::Field { field: "runtime_handler", problem })
            }
            Some(Handler { problem: Some(problem), .. }) => {
                let problem = format!("{problem}: mend that, and restart wharfd");
                Err(Refusal::Host { kind: ErrorKind::FailedPrecondition, field: "runtime_handler", problem })
            }
            handler => Ok(handler),
        }
    }

    /// The runtime of a handler, unless that is wharf itself.
    ///
    /// # Errors
    /// The name is not known.
    pub fn runtime(&self, name: &str) -> Result<Option<&OtherRuntime>, Refusal> {
        Ok(self.find(name)?.and_then(|handler| handler.runtime.as_ref()))
    }

    /// Checks that a pod of a handler can be made.
    ///
    /// # Errors
    /// The name is not known, or the handler's runtime cannot make such pods.
    pub fn check(&self, name: &str, pod: &PodSandboxConfig) -> Result<(), Refusal> {
        let runtime = self.runtime(name)?;
        runtime.map_or(Ok(()), |runtime| runtime.check_pod(pod))
    }

    /// Checks that something can be done from the host to what is in a handler's pods.
    ///
    /// # Errors
    /// Each of them is a sandbox; `what` says what cannot be done.
    pub fn check_reach(&self, name: &str, what: &str) -> Result<(), Refusal> {
        match self.0.get(name).and_then(|handler| handler.runtime.as_ref()) {
            Some(runtime) if runtime.has_sandboxes() => {
                let problem = format!("{name:?} cannot {what}, because each of its pods is a sandbox");
                Err(Refusal::Host { kind: ErrorKind::FailedPrecondition, field: "runtime_handler", problem })
            }
            _ => Ok(()),
        }
    }

    /// What requests leave open in pods of a handler.
    ///
    /// # Errors
    /// The name is not known.
    pub fn defaults<'a>(&self, name: &str, all: &'a Defaults) -> Result<Cow<'a, Defaults>, Refusal> {
        let devices = self.find(name)?.and_then(|handler| handler.privileged_devices);
        Ok(match devices {
            Some(privileged_devices) => Cow::Owned(Defaults { privileged_devices, ..all.clone() }),
            None => Cow::Borrowed(all),
        })
    }

    /// Decides everything about a container that follows from its description, and gives it to the runtime of its pod's
    /// handler, if that is another one.
    ///
    /// # Errors
    /// Nobody can make the container as it is described, or the runtime cannot.
    pub fn plan(&self, description: &mut Description, given: &Given<'_>) -> Result<Planned, Error> {
        let mut limits = wharf_planner::limits(&description.resources())?;
        let (cgroups, path) = given.cgroup;
        let is_enclosed = enclose(description, &limits, cgroups, path)?;
        let mut plan = wharf_planner::plan(description, given.filters)?;
        let mut rules = None;
        if let Some(runtime) = self.runtime(given.handler)? {
            let cgroup = cgroups.at(path);
            let cgroup = if is_enclosed { cgroup.enclosed() } else { cgroup };
            let cgroup = cgroup.path_of_processes().as_str().to_owned();
            let path = |name| host_path(&given.layout.runtime(given.pod.0, name));
            let sandbox = runtime
                .has_sandboxes()
                .then(|| make_sandbox(&description.extra.container, given))
                .transpose()?;
            let place = Workplace { state: path("state")?, bundle: path("bundle")?, cgroup, sandbox };
            make_workplace(&place)?;
            runtime.take(&mut plan, description, (given.pod.1, given.container), place)?;
            rules = Some(Limits { devices: limits.devices.clone(), ..Limits::default() });
            limits.devices.get_or_insert_default().push(console());
        }
        Ok(Planned { plan, limits, rules, is_enclosed })
    }

    /// Has the runtime that made a container delete what it keeps of it; no process is left. If that runtime is no
    /// handler any more, or fails, this goes with the pod's directory: no container stays for its runtime's sake.
    pub fn delete(&self, name: &str, (layout, pod, container): (&Layout, &PodId, &ContainerId)) {
        let Ok(Some(runtime)) = self.runtime(name) else { return };
        let state = layout.runtime(pod, "state");
        if !state.join(container.as_str()).exists() {
            return;
        }
        let mut command = command(&runtime.program);
        command.args(&runtime.options).arg("--root").arg(&state);
        command.args(["delete", "--force", container.as_str()]);
        if let Err(problem) = program::output(&mut command, PATIENCE) {
            let problem = problem.to_string();
            let (runtime, container) = (runtime.program.as_str(), container.short());
            tracing::warn!(runtime, container, problem, "a runtime did not delete its state for a container");
        }
    }
}

/// A container to plan.
#[derive(Debug)]
pub struct Given<'a> {
    /// The handler of its pod.
    pub handler: &'a str,
    /// Where everything is.
    pub layout: &'a Layout,
    /// Its pod.
    pub pod: (&'a PodId, &'a PodSandboxConfig),
    /// Its request.
    pub container: &'a ContainerConfig,
    /// The path of its cgroup, which need not exist.
    pub cgroup: (&'a Cgroups, &'a CgroupPath),
    /// The compiled seccomp profiles.
    pub filters: &'a Filters,
}

/// What is decided about a container.
#[derive(Debug)]
pub struct Planned {
    /// What its supervisor does.
    pub plan: Plan,
    /// The limits of its new cgroup.
    pub limits: Limits,
    /// The rules for devices that are set when another runtime has set its own.
    pub rules: Option<Limits>,
    /// Whether its processes are in a cgroup below that.
    pub is_enclosed: bool,
}

/// The machine's console, which runtimes allow every container by themselves: as long as they make one, its cgroup must
/// allow that.
fn console() -> DeviceRule {
    DeviceRule::allow(DeviceType::Char, Some(5), Some(1), Access::ALL)
}

/// What a runtime says that it can do; nothing if it does not have the command, or if it could not be asked, for the
/// reason that is returned as well.
fn features(runtime: &HostPath, patience: Duration) -> Result<(Features, Option<String>), RuntimeError> {
    let failed = |problem| RuntimeError { runtime: runtime.to_string(), problem };
    match program::output(command(runtime).arg("features"), patience) {
        Ok(text) => {
            let unusable =
                |problem| failed(format!("does not answer the command `features` with JSON: {problem}"));
            Ok((Features::parse(&text).map_err(unusable)?, None))
        }
        Err(problem) if !matches!(wharf_sys::fs::is_program(runtime.as_path()), Ok(true)) => {
            Err(failed(problem.to_string()))
        }
        Err(Problem::Failed(problem)) => {
            tracing::info!(runtime = runtime.as_str(), problem, "a runtime does not say what it can do");
            Ok((Features::default(), None))
        }
        Err(Problem::Unfinished(problem)) => {
            let unasked = format!("{runtime} could not be asked for its features: it {problem}");
            Ok((Features::default(), Some(unasked)))
        }
    }
}

/// Sets the rules for devices of a container that another runtime has made, and that does not run yet: that runtime may
/// have allowed more.
///
/// # Errors
/// The rule that the kernel refused.
pub fn set_rules(cgroup: &Cgroup, planned: &Planned) -> Result<(), StageError> {
    let set = planned.rules.as_ref().map_or(Ok(()), |rules| cgroup.update(rules));
    set.stage("setting the container's devices")
}

/// Makes the directories of a pod's runtime, which go with the pod's.
fn make_workplace(Workplace { state, bundle, .. }: &Workplace) -> Result<(), StageError> {
    let make = |path: &HostPath| DirBuilder::new().recursive(true).mode(0o700).create(path.as_path());
    [state, bundle].into_iter().try_for_each(make).stage("making the runtime's directories")
}

/// Makes the cgroup of a pod's sandbox, which is that of a container with the pod's id.
fn make_sandbox(container: &ContainerId, given: &Given<'_>) -> Result<SandboxPlace, StageError> {
    const STAGE: &str = "making the cgroup of the pod's sandbox";
    let ((cgroups, path), id) = (given.cgroup, given.pod.0.as_str());
    let name = path.as_str().replace(container.as_str(), id);
    let path = CgroupPath::new(&name).stage(STAGE)?;
    let cgroup = cgroups.create(&path).stage(STAGE)?;
    Ok(SandboxPlace { id: id.to_owned(), cgroup: cgroup_places(&cgroup)?.plan })
}

fn command(runtime: &HostPath) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the one place where the daemon asks other runtimes")]
    let mut command = Command::new(runtime.as_path());
    command.env_clear().env("PATH", DEFAULT_PATH);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    /// A runtime that notes its words.
    fn script(directory: &Path, body: &str) -> HostPath {
        let path = directory.join("runtime");
        std::fs::write(&path, format!("#!/bin/sh\necho \"$@\" >>{}/said\n{body}\n", directory.display()))
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        HostPath::new(path.to_str().unwrap()).unwrap()
    }

    fn handlers(program: HostPath) -> Handlers {
        let other = HandlerConfig {
            program: Some(program),
            options: vec!["--debug".to_owned()],
            annotations: Vec::new(),
            privileged_devices: Some(PrivilegedDevices::Usual),
        };
        let own = HandlerConfig { program: None, options: Vec::new(), ..other.clone() };
        Handlers::ask([("other".to_owned(), other), ("own".to_owned(), own)].into())
    }

    #[test]
    fn a_runtime_is_asked_what_it_can_do() {
        let directory = tempfile::tempdir().unwrap();
        let handlers = handlers(script(directory.path(), "echo '{\"ociVersionMax\": \"1.2.0\"}'"));
        let runtime = handlers.runtime("other").unwrap().unwrap();
        assert_eq!(runtime.features.shown()["ociVersionMax"], "1.2.0");
        assert!(handlers.runtime("own").unwrap().is_none() && handlers.runtime("").unwrap().is_none());
        let unknown = handlers.find("kata").unwrap_err().to_string();
        assert!(unknown.contains("\"kata\" is not known; known are: other, own"), "{unknown}");
        assert!(unknown.contains("[handlers.kata]"), "{unknown}");
        let all = Defaults::default();
        assert_eq!(handlers.defaults("own", &all).unwrap().privileged_devices, PrivilegedDevices::Usual);
        assert_eq!(*handlers.defaults("", &all).unwrap(), all);
    }

    #[test]
    fn an_older_runtime_says_nothing_and_a_missing_one_refuses_its_pods_alone() {
        let directory = tempfile::tempdir().unwrap();
        let older = handlers(script(directory.path(), "echo unknown command >&2; exit 1"));
        assert!(older.runtime("other").unwrap().unwrap().features.shown().is_null());
        std::fs::write(directory.path().join("text"), "").unwrap();
        let text = HostPath::new(directory.path().join("text").to_str().unwrap()).unwrap();
        assert_eq!(handlers(text).problems().count(), 1);
        let silent = handlers(script(directory.path(), "exit 0"));
        let told: Vec<&str> = silent.problems().collect();
        assert!(told[0].contains(" does not answer the command `features` with JSON: "), "{told:?}");
        let without = handlers(HostPath::new("/no/such/runtime").unwrap());
        let refused = without.find("other").unwrap_err().to_string();
        assert!(refused.contains("handlers.other.path: /no/such/runtime "), "{refused}");
        assert_eq!(without.problems().count(), 1);
        assert!(without.find("own").is_ok() && without.iter().count() == 2);
    }

    #[test]
    fn a_runtime_that_cannot_be_asked_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let hangs = script(directory.path(), "exec sleep 1000");
        let (features, unasked) = features(&hangs, Duration::from_millis(50)).unwrap();
        assert!(features.shown().is_null());
        let unasked = unasked.unwrap();
        assert!(unasked.starts_with(hangs.as_str()) && unasked.contains("its features"), "{unasked}");
        let broken = directory.path().join("broken");
        std::fs::write(&broken, "\x7fELF").unwrap();
        std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
        let broken = handlers(HostPath::new(broken.to_str().unwrap()).unwrap());
        assert_eq!((broken.problems().count(), broken.remarks().count()), (0, 1));
    }

    #[test]
    fn what_a_runtime_keeps_is_deleted_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("run"), directory.path().join("lib"));
        let (pod, id) = (PodId::from_random([6; 32]), ContainerId::from_random([7; 32]));
        let state = layout.runtime(&pod, "state");
        let body = format!("[ \"$4\" != delete ] && echo {{}} || rmdir {}/$6", state.display());
        let handlers = handlers(script(directory.path(), &body));
        let delete = |name: &str| handlers.delete(name, (&layout, &pod, &id));
        delete("other");
        std::fs::create_dir_all(state.join(id.as_str())).unwrap();
        delete("own");
        delete("gone");
        delete("other");
        let said = std::fs::read_to_string(directory.path().join("said")).unwrap();
        let wanted = format!("--debug --root {} delete --force {id}", state.display());
        assert_eq!(said.lines().last(), Some(&*wanted));
        assert!(!state.join(id.as_str()).exists());
        // It has been uninstalled since.
        std::fs::create_dir_all(state.join(id.as_str())).unwrap();
        std::fs::remove_file(directory.path().join("runtime")).unwrap();
        delete("other");
    }
}
