//! The features of a pod's supervisor. For its whole life it is of the release that made the pod, and it announces its
//! features by name. A plan that needs another feature is refused, with advice; what wharf adds by itself is left out.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use wharf_isolation::{LogLimits, MountPlan, Plan, Source, Traits};
use wharf_sys::mount::{Attributes, Propagation};
use wharf_types::lock::lock;
use wharf_types::{PodId, SelinuxLabel};
use wharf_wire::feature;

use crate::error::SupervisorError;

/// The features that a supervisor has named.
#[derive(Debug, Default, Clone)]
pub struct Features {
    names: Vec<String>,
    /// Of which missing ones it has been said that something is left out.
    said: Arc<Mutex<BTreeSet<String>>>,
}

impl Features {
    /// The features with these names.
    pub fn new(names: Vec<String>) -> Self {
        Self { names, said: Arc::default() }
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|feature| feature == name)
    }

    /// Whether what wharf adds by itself, and only this feature makes possible, may be added. If not, says so once: the
    /// kubelet keeps a pod that is ready, and so could not start any container in it if that were an error.
    pub fn may_add(&self, feature: &str, pod: &PodId) -> bool {
        let has = self.has(feature);
        if !has && lock(&self.said).insert(feature.to_owned()) {
            tracing::warn!(
                pod = pod.short(),
                feature,
                "the pod's supervisor is of an older release: its new containers go without what wharf now adds, until \
                 the pod is recreated"
            );
        }
        has
    }

    /// Changes a plan so that the supervisor makes the container as intended.
    ///
    /// # Errors
    /// FailedPrecondition if it cannot do what the container needs.
    pub fn fit(&self, plan: &mut Plan) -> Result<(), SupervisorError> {
        let shares_root = plan.rootfs.propagation == Propagation::Shared;
        if (shares_root || plan.process.traits != Traits::default()) && !self.has(feature::TRAITS) {
            let what = "a umask, a scheduling policy, a personality or a shared root file system";
            return Err(SupervisorError::Older { what });
        }
        if plan.process.apparmor.is_some() && !self.has(feature::APPARMOR) {
            return Err(SupervisorError::Older { what: "AppArmor profiles" });
        }
        self.check_labels([plan.process.selinux.as_ref(), plan.mount_label.as_ref()])?;
        if plan.runtime.is_some() && !self.has(feature::RUNTIMES) {
            return Err(SupervisorError::Older { what: "other runtimes" });
        }
        let sandbox = plan.runtime.as_ref().and_then(|runtime| runtime.sandbox.as_ref());
        if sandbox.is_some() && !self.has(feature::SANDBOXES) {
            return Err(SupervisorError::Older { what: "runtimes with sandboxes" });
        }
        let limits = plan.stdio.log.as_ref().map(|log| log.limits);
        if limits.is_some_and(|limits| limits != LogLimits::default()) && !self.has(feature::LOG_LIMITS) {
            return Err(SupervisorError::Older { what: "the configured limits of logs" });
        }
        self.fit_mounts(&mut plan.mounts)
    }

    fn check_labels(&self, labels: [Option<&SelinuxLabel>; 2]) -> Result<(), SupervisorError> {
        if labels != [None, None] && !self.has(feature::SELINUX) {
            return Err(SupervisorError::Older { what: "SELinux labels" });
        }
        Ok(())
    }

    fn fit_mounts(&self, mounts: &mut [MountPlan]) -> Result<(), SupervisorError> {
        for mount in &*mounts {
            let (feature, what) = match mount.source {
                Source::Volume(_) => (feature::VOLUMES, "an image's volumes"),
                Source::Image { .. } => (feature::IMAGES, "images as volumes"),
                Source::Tree(_) | Source::Single(_) | Source::OfPod(_) | Source::Filesystem { .. } => {
                    continue;
                }
            };
            if !self.has(feature) {
                return Err(SupervisorError::Older { what });
            }
        }
        if !self.has(feature::READ_ONLY_LAST) {
            leave_writable(mounts);
        }
        Ok(())
    }
}

/// An older supervisor makes a new file system read-only before others are mounted in it, and then cannot mount them.
/// So the file system stays writable: the cost is that names can be made beside those mounts, in a few kilobytes, as in
/// the pod's other containers.
fn leave_writable(mounts: &mut [MountPlan]) {
    for mount in mounts {
        if matches!(&mount.source, Source::Filesystem { kind, .. } if kind == "tmpfs") {
            mount.attributes = mount.attributes.without(Attributes::READ_ONLY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_isolation::Ids;
    use wharf_types::{ContainerPath, ErrorKind, Failure as _, HostPath};

    fn mount(target: &str, source: Source) -> MountPlan {
        MountPlan {
            target: ContainerPath::new(target).unwrap(),
            source,
            attributes: Attributes::READ_ONLY,
            recursive_read_only: false,
            propagation: Propagation::Private,
            ids: Ids::Hosts,
        }
    }

    fn cgroup_mounts() -> Vec<MountPlan> {
        let tmpfs = Source::Filesystem { kind: "tmpfs".to_owned(), options: Vec::new() };
        let bound = Source::Tree(HostPath::new("/x").unwrap());
        vec![mount("/sys/fs/cgroup", tmpfs), mount("/sys/fs/cgroup/cpu", bound)]
    }

    fn read_only(mounts: &[MountPlan]) -> Vec<bool> {
        mounts.iter().map(|mount| mount.attributes.has(Attributes::READ_ONLY)).collect()
    }

    #[test]
    fn a_supervisor_gets_what_it_says_that_it_can_do() {
        let mut mounts = cgroup_mounts();
        Features::default().fit_mounts(&mut mounts).unwrap();
        assert_eq!(read_only(&mounts), [false, true], "an older one: a tmpfs, and the bind in it");
        let mut mounts = cgroup_mounts();
        let ours = Features::new(wharf_wire::FEATURES.map(str::to_owned).to_vec());
        ours.fit_mounts(&mut mounts).unwrap();
        assert_eq!(read_only(&mounts), [true, true]);
    }

    #[test]
    fn what_wharf_adds_by_itself_is_left_out_and_that_is_said_once() {
        let pod = PodId::from_random([1; 32]);
        let older = Features::new(vec![feature::VOLUMES.to_owned()]);
        let said = || lock(&older.clone().said).iter().cloned().collect::<Vec<_>>();
        assert!(older.may_add(feature::VOLUMES, &pod) && said().is_empty());
        for _ in 0..2 {
            assert!(!older.may_add(feature::TRAITS, &pod));
            assert_eq!(said(), [feature::TRAITS]);
        }
        assert!(!older.may_add(feature::APPARMOR, &pod));
        let mut both = [feature::APPARMOR, feature::TRAITS];
        both.sort_unstable();
        assert_eq!(said(), both, "each is said by itself");
    }

    #[test]
    fn labels_that_an_older_supervisor_cannot_give_are_refused() {
        let label = SelinuxLabel::new("u:r:t:s0").unwrap();
        let older = Features::new(vec![feature::APPARMOR.to_owned()]);
        older.check_labels([None, None]).unwrap();
        let able = Features::new(vec![feature::SELINUX.to_owned()]);
        for labels in [[Some(&label), None], [None, Some(&label)]] {
            let error = older.check_labels(labels).unwrap_err();
            assert!(error.to_string().contains("SELinux labels: recreate the pod"), "{error}");
            able.check_labels(labels).unwrap();
        }
    }

    #[test]
    fn what_an_older_supervisor_cannot_do_is_refused() {
        let path = || HostPath::new("/x").unwrap();
        let sub_path = ContainerPath::new("/").unwrap();
        let rows = [
            (Source::Volume(path()), feature::VOLUMES),
            (Source::Image { layers: vec![path()], sub_path }, feature::IMAGES),
        ];
        for (source, feature) in rows {
            let mut mounts = vec![mount("/data", source)];
            let older = Features::new(vec![feature::READ_ONLY_LAST.to_owned()]);
            let error = older.fit_mounts(&mut mounts).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert!(error.to_string().contains("recreate the pod"), "{error}");
            Features::new(vec![feature.to_owned()]).fit_mounts(&mut mounts).unwrap();
        }
    }
}
