//! What a runtime is told that runs all containers of a pod in one sandbox with a kernel of its own, as gVisor does.
//!
//! It knows by annotations, which are those of containerd, which container stands for the sandbox and which are inside.
//! PID namespaces exist only in there; the path of one is a name that containers share. The sandbox itself is what
//! confines programs, so of the profiles that Kubernetes' `RuntimeDefault` means, nothing is left to do. Whatever else
//! such a kernel cannot do is refused.

use std::collections::BTreeMap;

use oci_spec::runtime::{Hooks, LinuxNamespace, Spec};
use serde_json::{Value, json};
use wharf_cri_api::v1::security_profile::ProfileType;
use wharf_cri_api::v1::{ContainerConfig, NamespaceMode, PodSandboxConfig};
use wharf_isolation::bundle::{PAUSE, ROOT};
use wharf_isolation::{CgroupPlan, PidNamespace, Plan, Sandbox};
use wharf_sys::mount::Propagation;

use super::{Features, OCI_VERSION, OtherRuntime};
use crate::{Refusal, namespaces_of};

/// The prefix of the annotations by which gVisor's `features` names what it understands.
const OF_GVISOR: &str = "dev.gvisor.";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
/// The name of the PID namespace that containers share with the sandbox. It is no container's id.
const PODS: &str = "pod";
/// The cgroups are wharf's; and a filter that a container asks for is to be loaded.
const OPTIONS: [&str; 2] = ["--ignore-cgroups", "--oci-seccomp"];
/// The devices that every container has: the sandbox has its own.
const USUAL_DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Where a pod's sandbox is.
#[derive(Debug)]
pub struct SandboxPlace {
    /// The name by which its runtime knows it.
    pub id: String,
    /// Its cgroup.
    pub cgroup: CgroupPlan,
}

impl Features {
    /// Whether the runtime is gVisor, which has a sandbox for each pod.
    fn has_sandboxes(&self) -> bool {
        let annotations = self.0.get("annotations").and_then(Value::as_object);
        annotations.is_some_and(|all| all.keys().any(|name| name.starts_with(OF_GVISOR)))
    }
}

impl OtherRuntime {
    /// Whether it runs all containers of a pod in one sandbox.
    #[must_use]
    pub fn has_sandboxes(&self) -> bool {
        self.features.has_sandboxes()
    }

    /// Checks that a pod can be a sandbox.
    pub(super) fn check_sandbox(&self, pod: &PodSandboxConfig) -> Result<(), Refusal> {
        let options = namespaces_of(pod);
        let shared = [("network", options.network()), ("PID", options.pid()), ("IPC", options.ipc())];
        if let Some((kind, _)) = shared.iter().find(|(_, mode)| *mode == NamespaceMode::Node) {
            return Err(
                self.cannot(&format!("pods in the host's {kind} namespace: leave the runtime class out"))
            );
        }
        if pod.linux.as_ref().is_some_and(|linux| !linux.sysctls.is_empty()) {
            return Err(self.cannot("pods with sysctls: its sandbox has a kernel of its own"));
        }
        Ok(())
    }

    /// Checks that a container can be in a sandbox.
    pub(super) fn check_inside(
        &self,
        plan: &Plan,
        spec: &Spec,
        container: &ContainerConfig,
    ) -> Result<(), Refusal> {
        if spec.hooks().as_ref().is_some_and(|hooks| *hooks != Hooks::default()) {
            return Err(self.cannot("containers with hooks: nothing of them is on the host"));
        }
        if plan.namespaces.pid == PidNamespace::Host {
            return Err(self.cannot("containers in the host's PID namespace: leave the runtime class out"));
        }
        let is_usual = |path: &str| USUAL_DEVICES.contains(&path);
        if let Some(device) = plan.devices.iter().find(|device| !is_usual(device.path.as_str())) {
            return Err(self.cannot(&format!(
                "containers with devices of the machine, such as {}: if it is a privileged one, enter \
                 handlers.{}.privileged_devices = \"usual\" in wharfd's configuration",
                device.path, self.handler
            )));
        }
        if let Some(mount) = plan.mounts.iter().find(|mount| mount.propagation == Propagation::Shared) {
            return Err(self.cannot(&format!("mounts that propagate to the host, as {} is to", mount.target)));
        }
        let security = container.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let profile = security.and_then(|security| security.apparmor.as_ref());
        if profile.is_some_and(|profile| profile.profile_type() == ProfileType::Localhost) {
            return Err(self.cannot("containers with an AppArmor profile of the machine"));
        }
        Ok(())
    }

    /// The options of every call.
    pub(super) fn options_of_sandbox(&self) -> Vec<String> {
        OPTIONS.iter().map(|one| (*one).to_owned()).chain(self.options.iter().cloned()).collect()
    }

    /// The sandbox of a pod, for any of its containers.
    pub(super) fn sandbox(
        &self,
        place: SandboxPlace,
        pod: &PodSandboxConfig,
        namespaces: &[LinuxNamespace],
    ) -> Result<Sandbox, Refusal> {
        let mut annotations: BTreeMap<String, String> = self.passed(&pod.annotations).collect();
        annotations.insert(CONTAINER_TYPE.to_owned(), "sandbox".to_owned());
        annotations.insert(SANDBOX_ID.to_owned(), place.id.clone());
        let spec = json!({
            "ociVersion": OCI_VERSION,
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [PAUSE],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "root": {"path": ROOT, "readonly": true},
            "hostname": pod.hostname,
            "annotations": annotations,
            "linux": {"namespaces": namespaces},
        });
        let spec = serde_json::to_vec(&spec).map_err(|error| Refusal::spec("bundle", error))?;
        Ok(Sandbox { id: place.id, spec, cgroup: place.cgroup })
    }
}

/// The annotations of a container in a sandbox.
pub(super) fn annotations(sandbox: &str, container: &ContainerConfig) -> [(String, String); 3] {
    let name = container.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    [(CONTAINER_TYPE, "container".to_owned()), (SANDBOX_ID, sandbox.to_owned()), (CONTAINER_NAME, name)]
        .map(|(key, value)| (key.to_owned(), value))
}

/// The name by which a container's PID namespace is known in its sandbox.
pub(super) fn pid_namespace(pid: &PidNamespace, container: &str) -> String {
    match pid {
        PidNamespace::Container => container.to_owned(),
        PidNamespace::Target(target) => target.to_string(),
        PidNamespace::Pod | PidNamespace::Host => PODS.to_owned(),
    }
}

/// Leaves out the profiles whose work the sandbox does.
pub(super) fn leave_profiles(plan: &mut Plan, spec: &mut Spec, container: &ContainerConfig) {
    let security = container.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let seccomp = security.and_then(|security| security.seccomp.as_ref());
    let is_own = seccomp.is_some_and(|profile| profile.profile_type() == ProfileType::Localhost);
    if let (false, Some(linux)) = (is_own, spec.linux_mut()) {
        linux.set_seccomp(None);
    }
    if let Some(process) = spec.process_mut() {
        process.set_apparmor_profile(None);
    }
    plan.process.apparmor = None;
}

#[cfg(test)]
mod tests {
    use super::super::tests::{runtime, taken};
    use super::*;
    use crate::tests::Asked;
    use oci_spec::runtime::{HookBuilder, HooksBuilder};
    use wharf_cri_api::v1::{LinuxSandboxSecurityContext, NamespaceOption, SecurityProfile};
    use wharf_types::ContainerPath;

    /// What gVisor says of itself, as far as it matters.
    const GVISOR: &str = r#"{"annotations": {"dev.gvisor.flag.debug": "false"}}"#;

    fn told(change: impl FnOnce(&mut Asked)) -> Result<(Sandbox, Value), Refusal> {
        let (plan, spec) = taken(&runtime(GVISOR), change)?;
        Ok((plan.runtime.unwrap().sandbox.unwrap(), spec))
    }

    #[test]
    fn a_runtime_with_sandboxes_is_known_by_its_annotations() {
        assert!(runtime(GVISOR).has_sandboxes());
        for other in ["{}", r#"{"annotations": {"io.github.seccomp.libseccomp.version": "2.5.4"}}"#] {
            let (plan, spec) = taken(&runtime(other), |_asked| ()).unwrap();
            assert!(plan.runtime.unwrap().sandbox.is_none());
            assert_ne!(spec["annotations"][CONTAINER_TYPE], "sandbox", "{spec}");
        }
    }

    #[test]
    fn the_sandbox_and_what_is_inside_are_told_apart() {
        let (sandbox, spec) = told(|asked| {
            asked.pod.hostname = "host".to_owned();
            asked.pod.annotations.insert("example.com/a".to_owned(), "of the pod".to_owned());
            asked.pod.annotations.insert(CONTAINER_TYPE.to_owned(), "sandbox".to_owned());
        })
        .unwrap();
        let outer: Value = serde_json::from_slice(&sandbox.spec).unwrap();
        assert_eq!(sandbox.id, "the-pod");
        for (spec, kind) in [(&outer, "sandbox"), (&spec, "container")] {
            let annotations = &spec["annotations"];
            assert_eq!(
                (&annotations[CONTAINER_TYPE], &annotations[SANDBOX_ID]),
                (&json!(kind), &json!("the-pod"))
            );
            assert_eq!(annotations["example.com/a"], "of the pod");
        }
        assert_eq!((&outer["hostname"], &outer["process"]["args"][0]), (&json!("host"), &json!(PAUSE)));
    }

    #[test]
    fn pid_namespaces_have_names() {
        let of = |spec: &Value| {
            let all = spec["linux"]["namespaces"].as_array().unwrap().clone();
            all.into_iter().find(|namespace| namespace["type"] == "pid").unwrap()["path"].clone()
        };
        let mode = |pid: NamespaceMode| {
            move |asked: &mut Asked| {
                let options = NamespaceOption { pid: pid.into(), ..NamespaceOption::default() };
                asked.security().namespace_options = Some(options);
            }
        };
        let (sandbox, shared) = told(mode(NamespaceMode::Pod)).unwrap();
        let outer: Value = serde_json::from_slice(&sandbox.spec).unwrap();
        assert_eq!((of(&outer), of(&shared)), (json!(PODS), json!(PODS)));
        let (_, own) = told(mode(NamespaceMode::Container)).unwrap();
        assert!(of(&own).is_string() && of(&own) != PODS, "{own}");
        assert!(told(mode(NamespaceMode::Node)).unwrap_err().to_string().contains("host's PID"));
    }

    #[test]
    fn only_profiles_of_the_node_are_left() {
        let profile =
            |kind: ProfileType| SecurityProfile { profile_type: kind.into(), ..SecurityProfile::default() };
        let (_, spec) =
            told(|asked| asked.security().seccomp = Some(profile(ProfileType::RuntimeDefault))).unwrap();
        assert!(spec["linux"]["seccomp"].is_null(), "{spec}");
        let apparmor =
            SecurityProfile { localhost_ref: "mine".to_owned(), ..profile(ProfileType::Localhost) };
        let refused = told(|asked| {
            asked.facts.modules.apparmor = crate::Switch::On;
            asked.security().apparmor = Some(apparmor);
        });
        assert!(refused.unwrap_err().to_string().contains("AppArmor"));
    }

    #[test]
    fn what_only_the_host_has_is_refused() {
        let runtime = runtime(GVISOR);
        let (mut plan, _) = taken(&runtime, |_asked| ()).unwrap();
        let check = |plan: &Plan, spec: &Spec| {
            let checked = runtime.check_inside(plan, spec, &ContainerConfig::default());
            checked.map_err(|refusal| refusal.to_string())
        };
        let mut hooked = Spec::default();
        assert_eq!(check(&plan, &hooked), Ok(()));
        let hook = HookBuilder::default().path("/hook").build().unwrap();
        hooked.set_hooks(Some(HooksBuilder::default().create_runtime(vec![hook]).build().unwrap()));
        assert!(check(&plan, &hooked).unwrap_err().contains("hooks"));
        let mut with_device = plan.clone();
        with_device.devices.last_mut().unwrap().path = ContainerPath::new("/dev/fuse").unwrap();
        let refused = check(&with_device, &Spec::default()).unwrap_err();
        assert!(
            refused.contains("/dev/fuse") && refused.contains("privileged_devices = \"usual\""),
            "{refused}"
        );
        plan.mounts.last_mut().unwrap().propagation = Propagation::Shared;
        assert!(check(&plan, &Spec::default()).unwrap_err().contains("propagate"));
        for change in [
            (|options: &mut NamespaceOption| options.network = NamespaceMode::Node.into()) as fn(&mut _),
            |options| options.pid = NamespaceMode::Node.into(),
            |options| options.ipc = NamespaceMode::Node.into(),
        ] {
            let mut pod = PodSandboxConfig::default();
            let linux = pod.linux.get_or_insert_default();
            let mut options = NamespaceOption::default();
            runtime.check_pod(&PodSandboxConfig::default()).unwrap();
            change(&mut options);
            linux.security_context = Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..LinuxSandboxSecurityContext::default()
            });
            assert!(runtime.check_pod(&pod).unwrap_err().to_string().contains("host's"));
        }
        let mut pod = PodSandboxConfig::default();
        pod.linux.get_or_insert_default().sysctls.insert("net.core.somaxconn".to_owned(), "1".to_owned());
        assert!(runtime.check_pod(&pod).unwrap_err().to_string().contains("sysctls"));
    }
}
