//! What another runtime is told of a container: the spec that it carries out, in the place of wharf's own steps.
//!
//! It is made of the description and of the plan, so that a container is the same whoever makes it. What of the plan a
//! runtime cannot do is refused: nothing is left out. Limits are not the runtime's business: the cgroup has them.
//! Mounts are added by who opens them.

mod sandbox;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxSeccomp,
    LinuxSeccompFilterFlag, Mount, Process,
};
use serde_json::Value;
use wharf_cri_api::v1::{ContainerConfig, PodSandboxConfig};
use wharf_isolation::bundle::{PID_NAMESPACE, ROOT};
use wharf_isolation::{MountPlan, Namespaces, PidNamespace, Plan, Runtime, Source, Traits};
use wharf_sys::mount::{Depth, Propagation};
use wharf_types::{HostPath, capability};

use crate::description::Description;
use crate::{Refusal, namespaces_of, seccomp, user_namespace};

pub use sandbox::SandboxPlace;

/// The version of the spec that every runtime in use knows; nothing newer is in it.
const OCI_VERSION: &str = "1.0.2";
/// What is decided for each process when it is made.
const DECIDED_LATER: [&str; 5] = ["terminal", "consoleSize", "user", "args", "env"];

/// What a runtime says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features(Value);

impl Features {
    /// Reads what its command `features` prints.
    ///
    /// # Errors
    /// It is no object.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        match serde_json::from_slice(text) {
            Ok(features @ Value::Object(_)) => Ok(Self(features)),
            Ok(_) => Err("it is no object".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// As it was printed; null if the runtime does not have the command.
    #[must_use]
    pub fn shown(&self) -> &Value {
        &self.0
    }

    /// Whether it was built without seccomp: then it may leave out filters and not say so.
    fn lacks_seccomp(&self) -> bool {
        self.0.pointer("/linux/seccomp/enabled") == Some(&Value::Bool(false))
    }

    /// Whether it was built without SELinux: then it may leave out labels and not say so.
    fn lacks_selinux(&self) -> bool {
        self.0.pointer("/linux/selinux/enabled") == Some(&Value::Bool(false))
    }

    /// The version of its libseccomp, if it says that.
    fn libseccomp(&self) -> Option<&str> {
        self.0.pointer("/annotations/io.github.seccomp.libseccomp.version").and_then(Value::as_str)
    }

    /// A runtime that does not say which flags it knows may refuse any.
    fn knows_flag(&self, flag: LinuxSeccompFilterFlag) -> bool {
        let name = serde_json::to_value(flag).unwrap_or_default();
        let known = self.0.pointer("/linux/seccomp/knownFlags").and_then(Value::as_array);
        known.is_some_and(|known| known.contains(&name))
    }
}

/// A runtime that is a handler's.
#[derive(Debug, Clone, PartialEq)]
pub struct OtherRuntime {
    /// The name of the handler.
    pub handler: String,
    /// Its program.
    pub program: HostPath,
    /// What comes before each of its commands.
    pub options: Vec<String>,
    /// What it says of itself.
    pub features: Features,
    /// The annotations of pods and of containers that it is told, by their names; one that ends with `*` stands for all
    /// that begin so.
    pub annotations: Vec<String>,
}

/// A namespace of a spec: its kind, and its path unless it is new.
type Named = (LinuxNamespaceType, Option<PathBuf>);

/// Where a runtime makes a container.
#[derive(Debug)]
pub struct Workplace {
    /// The directory in which it keeps its state.
    pub state: HostPath,
    /// The directory over which bundles are mounted.
    pub bundle: HostPath,
    /// The path of the cgroup of the container's processes.
    pub cgroup: String,
    /// The pod's sandbox, if the runtime has sandboxes.
    pub sandbox: Option<SandboxPlace>,
}

impl OtherRuntime {
    /// Checks that it can make a pod's containers.
    ///
    /// # Errors
    /// A user namespace, and what a sandbox cannot have.
    pub fn check_pod(&self, pod: &PodSandboxConfig) -> Result<(), Refusal> {
        if user_namespace::of(&namespaces_of(pod))?.is_some() {
            return Err(self.cannot("pods with a user namespace: leave the runtime class out"));
        }
        if self.has_sandboxes() { self.check_sandbox(pod) } else { Ok(()) }
    }

    /// Gives a container to this runtime: changes its plan so that the supervisor has the runtime make it.
    ///
    /// # Errors
    /// The runtime, or its spec, cannot do what the plan says.
    pub fn take(
        &self,
        plan: &mut Plan,
        description: &Description,
        (pod, container): (&PodSandboxConfig, &ContainerConfig),
        place: Workplace,
    ) -> Result<(), Refusal> {
        self.check(plan)?;
        match place.sandbox {
            Some(_) => self.check_inside(plan, &description.spec, container)?,
            None => self.check_tracing(plan, container)?,
        }
        leave_cgroups(plan, description);
        let fault = |error| Refusal::spec("bundle", error);
        let mut spec = description.spec.clone();
        if place.sandbox.is_some() {
            sandbox::leave_profiles(plan, &mut spec, container);
        }
        let process = spec.process().as_ref().map(rest_of_process).transpose().map_err(fault)?;
        let mut annotations = spec.annotations().clone().unwrap_or_default();
        annotations.extend(self.passed(&pod.annotations));
        annotations.extend(self.passed(&container.annotations));
        let inside = place.sandbox.as_ref().map(|place| sandbox::annotations(&place.id, container));
        annotations.extend(inside.into_iter().flatten());
        spec.set_version(OCI_VERSION.to_owned())
            .set_process(None)
            // The daemon executes them.
            .set_hooks(None)
            .set_annotations(Some(annotations))
            // What restricts them is only known when they are opened.
            .set_mounts(None);
        if let Some(root) = spec.root_mut() {
            root.set_path(PathBuf::from(ROOT));
        }
        if let Some(linux) = spec.linux_mut() {
            self.change(linux, plan, &place)?;
        }
        plan.runtime_spec = serde_json::to_vec(&spec).map_err(fault)?;
        let options = if place.sandbox.is_some() { self.options_of_sandbox() } else { self.options.clone() };
        let sandbox = place.sandbox.map(|place| {
            // Who runs out of memory is the sandbox.
            plan.cgroup.oom_file.clone_from(&place.cgroup.oom_file);
            self.sandbox(place, pod, &of_sandbox(&plan.namespaces)?)
        });
        let sandbox = sandbox.transpose()?;
        plan.runtime = Some(Runtime {
            program: self.program.clone(),
            options,
            state_directory: place.state,
            bundle_directory: place.bundle,
            process: process.unwrap_or_default(),
            sandbox,
        });
        Ok(())
    }

    fn cannot(&self, what: &str) -> Refusal {
        Refusal::field("runtime_handler", format!("{:?} cannot make {what}", self.handler))
    }

    fn check(&self, plan: &Plan) -> Result<(), Refusal> {
        if plan.namespaces.user.is_some() {
            return Err(self.cannot("containers with a user namespace: leave the runtime class out"));
        }
        if (plan.process.selinux.is_some() || plan.mount_label.is_some()) && self.features.lacks_selinux() {
            return Err(self.cannot("containers with SELinux labels: it was built without SELinux"));
        }
        // Older runtimes ignore these fields.
        if (Traits { umask: 0, ..plan.process.traits }) != (Traits { umask: 0, ..Traits::default() }) {
            return Err(self.cannot("containers with a scheduling policy, an I/O priority or a personality"));
        }
        match plan.process.env.iter().find(|variable| std::str::from_utf8(variable).is_err()) {
            Some(variable) => {
                let name = String::from_utf8_lossy(variable);
                let name = name.split('=').next().unwrap_or_default();
                Err(self.cannot(&format!("containers with a variable that is not UTF-8: {name}")))
            }
            None => Ok(()),
        }
    }

    /// Refuses a container that may trace. A runtime enters the container's PID namespace before it has left the host,
    /// also for each command: its process has the host's root there, and a line to another one on the host. A
    /// privileged container may reach the host anyway, and so may one in the host's PID namespace that may trace.
    fn check_tracing(&self, plan: &Plan, container: &ContainerConfig) -> Result<(), Refusal> {
        let security = container.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let is_privileged = security.is_some_and(|security| security.privileged);
        let may_trace = plan.process.capabilities.bounding & capability::SYS_PTRACE != 0;
        if may_trace && !is_privileged && plan.namespaces.pid != PidNamespace::Host {
            return Err(self.cannot(
                "containers with CAP_SYS_PTRACE, which could reach the host through the runtime's own processes: leave \
                 the capability or the runtime class out",
            ));
        }
        Ok(())
    }

    fn passed(&self, annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
        let is_passed = |name: &str| {
            self.annotations.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == pattern,
            })
        };
        let passed = annotations.iter().filter(move |(name, _)| is_passed(name));
        passed.map(|(name, value)| (name.clone(), value.clone()))
    }

    fn change(&self, linux: &mut Linux, plan: &Plan, place: &Workplace) -> Result<(), Refusal> {
        let pid = pid_namespace(&plan.namespaces.pid, plan.container.as_str(), place);
        let mut devices = LinuxResources::default();
        devices.set_devices(linux.resources().as_ref().and_then(|resources| resources.devices().clone()));
        linux
            .set_namespaces(Some(namespaces(&plan.namespaces, pid)?))
            .set_cgroups_path(Some(PathBuf::from(&place.cgroup)))
            .set_resources(Some(devices));
        let propagations = plan.mounts.iter().map(|mount| mount.propagation);
        let needed = propagations.chain([plan.rootfs.propagation]).max_by_key(|one| reach(*one));
        linux.set_rootfs_propagation(needed.map(|one| one.option(Depth::Recursive).to_owned()));
        if let Some(seccomp) = linux.seccomp_mut() {
            self.check_seccomp(seccomp)?;
            let flags = seccomp.flags().as_deref().and_then(|flags| self.known_flags(flags));
            seccomp.set_flags(flags);
        }
        Ok(())
    }

    fn check_seccomp(&self, profile: &LinuxSeccomp) -> Result<(), Refusal> {
        if self.features.lacks_seccomp() {
            return Err(self.cannot("containers with a seccomp profile: it was built without seccomp"));
        }
        let logs = LinuxSeccompFilterFlag::SeccompFilterFlagLog;
        if profile.flags().iter().flatten().any(|flag| *flag == logs) && !self.features.knows_flag(logs) {
            return Err(self.cannot("containers whose seccomp profile has calls logged"));
        }
        let overlooked = seccomp::overlooked(profile, self.features.libseccomp());
        match overlooked.map_err(|error| Refusal::spec("linux.seccomp", error))? {
            Some(name) => Err(self.cannot(&format!(
                "containers whose seccomp profile allows calls by default and forbids {name:?}, which its libseccomp \
                 may not know: list what is allowed instead"
            ))),
            None => Ok(()),
        }
    }

    /// The flags that the runtime knows; the others change only how fast a program is. A list without any says that
    /// none is wanted, and no list leaves it to the runtime, which then has speculation left alone.
    fn known_flags(&self, flags: &[LinuxSeccompFilterFlag]) -> Option<Vec<LinuxSeccompFilterFlag>> {
        let known: Vec<_> = flags.iter().copied().filter(|flag| self.features.knows_flag(*flag)).collect();
        (flags.is_empty() || !known.is_empty()).then_some(known)
    }
}

/// Leaves mounting the cgroups to the runtime: it would take binds of them for the machine's own hierarchies.
fn leave_cgroups(plan: &mut Plan, description: &Description) {
    let of_cgroups = |mount: &&Mount| mount.typ().as_deref() == Some("cgroup");
    let targets = description.spec.mounts().iter().flatten().filter(of_cgroups);
    let targets: Vec<String> = targets.map(|mount| mount.destination().display().to_string()).collect();
    let directories = &description.extra.cgroup.v1;
    let is_bind = |mount: &MountPlan| match &mount.source {
        Source::Single(path) => directories.iter().any(|(_name, directory)| directory == path),
        _ => false,
    };
    plan.mounts.retain(|mount| !is_bind(mount));
    let is_target = |mount: &&mut MountPlan| targets.contains(&mount.target.as_str().to_owned());
    // On v2 alone a bind is of the host's own, whose options a new mount would change.
    let is_hosts = |mount: &MountPlan| directories.is_empty() && matches!(mount.source, Source::Single(_));
    for mount in plan.mounts.iter_mut().filter(is_target).filter(|mount| !is_hosts(mount)) {
        mount.source = Source::Filesystem { kind: "cgroup".to_owned(), options: Vec::new() };
    }
}

/// The process of a spec without what is decided for each.
fn rest_of_process(process: &Process) -> Result<Vec<u8>, serde_json::Error> {
    let mut rest = serde_json::to_value(process)?;
    if let Some(fields) = rest.as_object_mut() {
        DECIDED_LATER.iter().for_each(|name| drop(fields.remove(*name)));
    }
    serde_json::to_vec(&rest)
}

/// The PID namespace that a container enters, with its path unless it is new; `None` for the host's.
fn pid_namespace(pid: &PidNamespace, container: &str, place: &Workplace) -> Option<Named> {
    let path = match (pid, &place.sandbox) {
        (PidNamespace::Host, _) => return None,
        (_, Some(_)) => Some(sandbox::pid_namespace(pid, container).into()),
        (PidNamespace::Container, None) => None,
        (PidNamespace::Pod | PidNamespace::Target(_), None) => {
            Some(place.bundle.as_path().join(PID_NAMESPACE))
        }
    };
    Some((LinuxNamespaceType::Pid, path))
}

/// The namespaces of a sandbox, for those of a container in it.
fn of_sandbox(plan: &Namespaces) -> Result<Vec<LinuxNamespace>, Refusal> {
    let pid = sandbox::pid_namespace(&PidNamespace::Pod, "");
    namespaces(plan, Some((LinuxNamespaceType::Pid, Some(pid.into()))))
}

fn namespaces(plan: &Namespaces, pid: Option<Named>) -> Result<Vec<LinuxNamespace>, Refusal> {
    use LinuxNamespaceType as Type;
    let path = |path: &Option<HostPath>| path.as_ref().map(|path| path.as_path().to_owned());
    let pods = [(Type::Network, &plan.net), (Type::Ipc, &plan.ipc), (Type::Uts, &plan.uts)];
    let pods = pods.into_iter().filter_map(|(kind, of)| Some((kind, Some(path(of)?))));
    let own = [(Type::Mount, None)].into_iter().chain(plan.cgroup.then_some((Type::Cgroup, None)));
    let namespace = |(kind, path): (Type, Option<PathBuf>)| {
        let named = LinuxNamespaceBuilder::default().typ(kind);
        let named = if let Some(path) = path { named.path(path) } else { named };
        named.build().map_err(|error| Refusal::spec("linux.namespaces", error))
    };
    pods.chain(pid).chain(own).map(namespace).collect()
}

/// How far mounts reach: what a mount has, the whole tree above it must allow.
fn reach(propagation: Propagation) -> u8 {
    match propagation {
        Propagation::Private => 0,
        Propagation::Slave => 1,
        Propagation::Shared => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selinux::Policy;
    use crate::tests::requests::{mount as mount_of, privileged, users};
    use crate::tests::{Asked, host};
    use crate::{Filters, describe, plan};
    use serde_json::json;
    use wharf_cri_api::v1::{Capability, Mount as Asking, NamespaceMode, NamespaceOption};

    pub(super) fn runtime(features: &str) -> OtherRuntime {
        OtherRuntime {
            handler: "runc".to_owned(),
            program: host("/usr/sbin/runc"),
            options: vec!["--debug".to_owned()],
            features: Features::parse(features.as_bytes()).unwrap(),
            annotations: vec!["example.com/*".to_owned(), "exact".to_owned()],
        }
    }

    /// The plan of a container that a runtime takes, and the spec that it is told.
    pub(super) fn taken(
        runtime: &OtherRuntime,
        change: impl FnOnce(&mut Asked),
    ) -> Result<(Plan, Value), Refusal> {
        let mut asked = Asked::default();
        change(&mut asked);
        let description = describe(&asked.request(), &asked.facts, &asked.places)?;
        let mut plan = plan(&description, &Filters::default())?;
        let place = Workplace {
            state: host("/pod/runtime/state"),
            bundle: host("/pod/runtime/bundle"),
            cgroup: "/pods/one/container".to_owned(),
            sandbox: runtime
                .has_sandboxes()
                .then(|| SandboxPlace { id: "the-pod".to_owned(), cgroup: asked.places.cgroup.plan.clone() }),
        };
        runtime.take(&mut plan, &description, (&asked.pod, &asked.container), place)?;
        let spec = serde_json::from_slice(&plan.runtime_spec).unwrap();
        Ok((plan, spec))
    }

    #[test]
    fn mounts_are_left_to_who_opens_them() {
        let (plan, spec) = taken(&runtime("{}"), |asked| {
            let mount = Asking { container_path: "/data".to_owned(), ..Asking::default() };
            mount_of(asked, mount, Propagation::Private);
        })
        .unwrap();
        assert!(plan.mounts.iter().any(|mount| mount.target.as_str() == "/data"));
        assert!(spec["mounts"].is_null(), "{spec}");
        assert_eq!(spec["root"]["path"], ROOT);
        assert_eq!(spec["ociVersion"], OCI_VERSION);
    }

    #[test]
    fn the_cgroup_has_the_limits_and_the_runtime_the_devices() {
        let (plan, spec) = taken(&runtime("{}"), |asked| {
            asked.linux().resources.get_or_insert_default().memory_limit_in_bytes = 1 << 20;
        })
        .unwrap();
        let linux = &spec["linux"];
        assert_eq!(linux["cgroupsPath"], "/pods/one/container");
        assert!(linux["resources"]["devices"].is_array() && linux["resources"]["memory"].is_null());
        assert!(spec["process"].is_null() && spec["hooks"].is_null());
        let process: Value = serde_json::from_slice(&plan.runtime.unwrap().process).unwrap();
        assert!(
            process["capabilities"].is_object() && process["args"].is_null() && process["user"].is_null()
        );
    }

    #[test]
    fn a_shared_pid_namespace_is_in_the_bundle() {
        for (pid, path) in [
            (PidNamespace::Container, Some(Value::Null)),
            (PidNamespace::Pod, Some(json!("/pod/runtime/bundle/pid"))),
            (PidNamespace::Host, None),
        ] {
            let plan = Namespaces { net: None, ipc: None, uts: None, user: None, pid, cgroup: true };
            let place = Workplace {
                state: host("/s"),
                bundle: host("/pod/runtime/bundle"),
                cgroup: String::new(),
                sandbox: None,
            };
            let pid = pid_namespace(&plan.pid, "", &place);
            let told = serde_json::to_value(namespaces(&plan, pid).unwrap()).unwrap();
            let told = told.as_array().unwrap().iter().find(|namespace| namespace["type"] == "pid");
            assert_eq!(told.map(|namespace| namespace["path"].clone()), path);
        }
    }

    #[test]
    fn only_known_flags_and_chosen_annotations_are_passed() {
        let with = |name: &str| [(name.to_owned(), "value".to_owned())];
        let asked = |asked: &mut Asked| {
            asked.security().seccomp = Some(wharf_cri_api::v1::SecurityProfile::default());
            asked.pod.annotations.extend(with("example.com/a"));
            asked.pod.annotations.extend(with("other.com/a"));
            asked.container.annotations.extend(with("exact"));
        };
        let (_, spec) = taken(&runtime("{}"), asked).unwrap();
        assert_eq!(spec["linux"]["seccomp"]["flags"], Value::Null, "{spec}");
        let annotations = spec["annotations"].as_object().unwrap();
        assert!(annotations.contains_key("example.com/a") && annotations.contains_key("exact"));
        assert!(!annotations.contains_key("other.com/a"));
        let one = runtime(r#"{"linux": {"seccomp": {"knownFlags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}}}"#);
        let (_, spec) = taken(&one, asked).unwrap();
        assert_eq!(spec["linux"]["seccomp"]["flags"], json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]));
        for runtime in [runtime("{}"), one] {
            let (_, spec) = taken(&runtime, |asked| profile(asked, r#""flags": []"#)).unwrap();
            assert_eq!(spec["linux"]["seccomp"]["flags"], json!([]), "nobody adds one");
        }
    }

    /// A profile that allows calls by default, and what else is in it.
    fn profile(asked: &mut Asked, more: &str) {
        let profile = wharf_cri_api::v1::security_profile::ProfileType::Localhost;
        asked.security().seccomp = Some(wharf_cri_api::v1::SecurityProfile {
            profile_type: profile.into(),
            localhost_ref: "/p".to_owned(),
            ..wharf_cri_api::v1::SecurityProfile::default()
        });
        let text = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", {more}}}"#);
        asked.facts.seccomp_profile = Some(Ok(text.into_bytes()));
    }

    #[test]
    fn a_forbidden_call_that_a_runtime_may_not_know_is_refused() {
        let forbidding = |name: &str| {
            let name = name.to_owned();
            move |asked: &mut Asked| {
                let rule = format!(r#""syscalls": [{{"names": ["{name}"], "action": "SCMP_ACT_ERRNO"}}]"#);
                profile(asked, &rule);
            }
        };
        let runc = runtime(r#"{"annotations": {"io.github.seccomp.libseccomp.version": "2.5.4"}}"#);
        for (runtime, name) in [(&runc, "cachestat"), (&runtime("{}"), "futex_waitv"), (&runc, "mispelt")] {
            let refused = taken(runtime, forbidding(name)).unwrap_err().to_string();
            assert!(refused.contains(&format!("forbids {name:?}")), "{refused}");
        }
        taken(&runc, forbidding("futex_waitv")).unwrap();
    }

    #[test]
    fn what_a_runtime_cannot_do_is_refused() {
        let refused = taken(&runtime("{}"), |asked| users(asked, 65_536)).unwrap_err();
        assert!(refused.to_string().contains("\"runc\" cannot make containers with a user namespace"));
        let labelled = |asked: &mut Asked| {
            let contexts = "process = u:r:container_t:s0\nfile = u:o:container_file_t:s0\n";
            asked.selinux = Some((Policy::parse(contexts).unwrap(), "s0:c1,c2".to_owned()));
        };
        let without = runtime(r#"{"linux": {"selinux": {"enabled": false}}}"#);
        let refused = taken(&without, labelled).unwrap_err();
        assert!(refused.to_string().contains("SELinux labels: it was built without SELinux"), "{refused}");
        let (plan, spec) = taken(&runtime("{}"), labelled).unwrap();
        assert_eq!(spec["linux"]["mountLabel"], "u:o:container_file_t:s0:c1,c2");
        let process: Value = serde_json::from_slice(&plan.runtime.unwrap().process).unwrap();
        assert_eq!(process["selinuxLabel"], "u:r:container_t:s0:c1,c2");
        let without = runtime(r#"{"linux": {"seccomp": {"enabled": false}}}"#);
        let confined = |asked: &mut Asked| {
            asked.security().seccomp = Some(wharf_cri_api::v1::SecurityProfile::default());
        };
        let refused = taken(&without, confined).unwrap_err();
        assert!(refused.to_string().contains("it was built without seccomp"), "{refused}");
        let tracing = |asked: &mut Asked| {
            let add_capabilities = vec!["SYS_PTRACE".to_owned()];
            asked.security().capabilities = Some(Capability { add_capabilities, ..Capability::default() });
        };
        let refused = taken(&runtime("{}"), tracing).unwrap_err().to_string();
        assert!(refused.contains("cannot make containers with CAP_SYS_PTRACE"), "{refused}");
        taken(&runtime("{}"), privileged).unwrap();
        taken(&runtime("{}"), |asked| {
            tracing(asked);
            let node = NamespaceOption { pid: NamespaceMode::Node.into(), ..NamespaceOption::default() };
            asked.security().namespace_options = Some(node);
        })
        .unwrap();
        assert!(Features::parse(b"unknown command features").is_err() && Features::parse(b"[]").is_err());
    }
}
