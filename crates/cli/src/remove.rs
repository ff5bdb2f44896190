//! `wharf rm`: removes containers and pods, and the logs of those that `wharf run` created.

use std::path::{Component, Path};

use futures_util::future::join_all;
use tokio::sync::OnceCell;
use wharf_cri_api::v1::{Container, PodSandbox, PodSandboxConfig, RemoveContainerRequest};
use wharf_types::POD_LOGS;

use crate::args::Rm;
use crate::daemon::{Daemon, patiently, still_there};
use crate::error::Error;
use crate::find::{self, Found, Listing, container_name, runs};
use crate::output::{self, Output};
use crate::run::LOGS_ANNOTATION;
use crate::stop::each;
use crate::touch;

pub(crate) async fn remove(daemon: &mut Daemon, output: Output, rm: Rm) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let names = match &rm.namespace {
        Some(namespace) => ids(&listing, |pod| in_namespace(pod, namespace)),
        // Pods that others created, such as a kubelet, are not wharf's to remove.
        None if rm.all => own(daemon, &listing).await?,
        None => rm.names,
    };
    if rm.all || rm.namespace.is_some() {
        confirm(&listing, &names, rm.yes)?;
    }
    let force = Force::from_flag(rm.force);
    let removes = names.iter().map(|name| one(daemon.clone(), &listing, name, force));
    each(output, &names, join_all(removes)).await
}

fn ids(listing: &Listing, wanted: impl Fn(&PodSandbox) -> bool) -> Vec<String> {
    listing.pods.iter().filter(|pod| wanted(pod)).map(|pod| pod.id.clone()).collect()
}

/// The ids of the pods that `wharf run` created.
async fn own(daemon: &mut Daemon, listing: &Listing) -> Result<Vec<String>, Error> {
    let mut own = Vec::new();
    for pod in &listing.pods {
        if is_own(daemon, pod).await? {
            own.push(pod.id.clone());
        }
    }
    Ok(own)
}

fn in_namespace(pod: &PodSandbox, namespace: &str) -> bool {
    pod.metadata.as_ref().is_some_and(|metadata| metadata.namespace == namespace)
}

/// Asks for confirmation; without a terminal to ask on, --yes must give it.
#[expect(
    clippy::fn_params_excessive_bools,
    reason = "the flag of the command line, which is asked here alone"
)]
fn confirm(listing: &Listing, ids: &[String], yes: bool) -> Result<(), Error> {
    if yes || ids.is_empty() {
        return Ok(());
    }
    let pods = listing.pods.iter().filter(|pod| ids.contains(&pod.id));
    let names: Vec<&str> = pods.map(find::pod_name).collect();
    let what = format!("{} of {} pods ({})", names.len(), listing.pods.len(), names.join(", "));
    match output::confirm(&format!("remove {what}?")) {
        Some(true) => Ok(()),
        Some(false) | None => Err(Error::NotConfirmed { what }),
    }
}

/// Whether containers and pods in use are removed as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    Yes,
    No,
}

impl Force {
    #[expect(clippy::fn_params_excessive_bools, reason = "the flag of the command line becomes a type here")]
    pub(crate) fn from_flag(force: bool) -> Self {
        if force { Self::Yes } else { Self::No }
    }
}

async fn one(mut daemon: Daemon, listing: &Listing, name: &str, force: Force) -> Result<(), Error> {
    let found = listing.find(name)?;
    let running = match found {
        Found::Pod(pod) => listing.containers_of(pod).any(runs),
        Found::Container(container) => runs(container),
    };
    if running && force == Force::No {
        return Err(Error::Runs { name: name.to_owned() });
    }
    match found {
        Found::Pod(pod) => whole_pod(&mut daemon, pod).await,
        Found::Container(container) => {
            // A pod that `wharf run` created for one container is removed with its last container.
            if let Some(pod) = listing.pod_of(container)
                && listing.containers_of(pod).count() == 1
                && is_own(&mut daemon, pod).await?
            {
                return whole_pod(&mut daemon, pod).await;
            }
            // `wharf start` lets a successor of the same name continue the log.
            let goes_on = |other: &Container| {
                other.id != container.id && container_name(other) == container_name(container)
            };
            let others = listing.pod_of(container).into_iter().flat_map(|pod| listing.containers_of(pod));
            if others.filter(|other| goes_on(other)).count() > 0 {
                return self::container(&mut daemon, &container.id).await;
            }
            with_log(&mut daemon, &container.id).await
        }
    }
}

/// Removes one container, and keeps its pod and its log.
pub(crate) async fn container(daemon: &mut Daemon, id: &str) -> Result<(), Error> {
    let request = RemoveContainerRequest { container_id: id.to_owned() };
    let removed = patiently(daemon.runtime.remove_container(request)).await;
    removed.map(drop).map_err(Error::call("removing the container"))
}

/// Removes one container, and its log if that is in a directory of `wharf run`; keeps its pod.
pub(crate) async fn with_log(daemon: &mut Daemon, id: &str) -> Result<(), Error> {
    // What cannot be asked for is not there any more, or will not be removed either.
    let log = daemon.container_status(id).await.map(|status| status.log_path).unwrap_or_default();
    container(daemon, id).await?;
    let log = Path::new(&log);
    if !log.parent().is_some_and(is_of_a_pod) {
        return Ok(());
    }
    if !disk_responds().await {
        tell_stays("container", log);
        return Ok(());
    }
    match std::fs::remove_file(log) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { path: log.to_owned(), cause })
        }
        _ => Ok(()),
    }
}

/// Removes a pod, and its logs if `wharf run` created it.
async fn whole_pod(daemon: &mut Daemon, pod: &PodSandbox) -> Result<(), Error> {
    let logs = own_logs(daemon, pod).await?;
    with_logs(daemon, pod, logs).await
}

/// Removes a pod that the caller's run created, and its logs, even if the pod is gone.
pub(crate) async fn made_pod(daemon: &mut Daemon, pod: &PodSandbox) -> Result<(), Error> {
    with_logs(daemon, pod, named_logs(pod)).await
}

async fn with_logs(daemon: &mut Daemon, pod: &PodSandbox, logs: Option<&Path>) -> Result<(), Error> {
    daemon.remove_pod(&pod.id).await?;
    let Some(logs) = logs else { return Ok(()) };
    if !disk_responds().await {
        tell_stays("pod", logs);
        return Ok(());
    }
    match std::fs::remove_dir_all(logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::File { path: logs.to_owned(), cause: error });
        }
        _ => {}
    }
    // The directory is removed with the last pod; until then it is not empty.
    let _others_are_left = std::fs::remove_dir(POD_LOGS);
    Ok(())
}

/// Removes the directory of the logs of a pod that could not be made, for which wharfd may have made it.
pub(crate) async fn unused_logs(config: &PodSandboxConfig) {
    if !disk_responds().await {
        return;
    }
    // One that does not exist or that has a file in it is not meant.
    let _none = std::fs::remove_dir(&config.log_directory);
    let _others_are_left = std::fs::remove_dir(POD_LOGS);
}

/// Whether the disk of the logs of `wharf run` responds: this process could not be ended while it waits for it. All
/// removals of a call ask once.
async fn disk_responds() -> bool {
    static RESPONDS: OnceCell<bool> = OnceCell::const_new();
    *RESPONDS.get_or_init(|| touch::responds(Path::new(POD_LOGS))).await
}

fn tell_stays(gone: &str, logs: &Path) {
    let logs = logs.display();
    output::report(&format!(
        "the {gone} is removed; its logs in {logs} stay, because their disk does not respond\n  once it does, remove \
         them: rm -r {logs}"
    ));
}

/// Whether `wharf run` created a pod.
pub(crate) async fn is_own(daemon: &mut Daemon, pod: &PodSandbox) -> Result<bool, Error> {
    Ok(own_logs(daemon, pod).await?.is_some())
}

/// The directory of a pod's logs, if `wharf run` created the pod: then its annotation and its request name the same.
/// Whoever describes a pod to a kubelet can write the annotation, and cannot choose the directory.
async fn own_logs<'a>(daemon: &mut Daemon, pod: &'a PodSandbox) -> Result<Option<&'a Path>, Error> {
    let Some(named) = named_logs(pod) else { return Ok(None) };
    let requests = still_there(daemon.requests(&pod.id).await)?.unwrap_or_default();
    let mut configs = requests.into_iter().filter_map(|request| request.config);
    Ok(configs.any(|config| logs_in(&config, named)).then_some(named))
}

/// Whether a pod's request has its logs there.
fn logs_in(request: &PodSandboxConfig, directory: &Path) -> bool {
    Path::new(&request.log_directory) == directory
}

/// The directory of a pod's logs by its annotation, if it is one that `wharf run` makes.
fn named_logs(pod: &PodSandbox) -> Option<&Path> {
    let directory = Path::new(pod.annotations.get(LOGS_ANNOTATION)?);
    is_of_a_pod(directory).then_some(directory)
}

/// Whether `wharf run` makes directories for the logs of a pod there.
pub(crate) fn is_of_a_pod(directory: &Path) -> bool {
    let Ok(below) = directory.strip_prefix(POD_LOGS) else { return false };
    let mut below = below.components();
    matches!((below.next(), below.next()), (Some(Component::Normal(_)), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon;

    #[tokio::test]
    async fn many_are_removed_only_if_it_is_said() {
        let listing = Listing {
            pods: vec![PodSandbox { id: "a".into(), ..PodSandbox::default() }],
            containers: vec![],
        };
        let (mut daemon, _silent) = daemon::tests::silent().await;
        let own = own(&mut daemon, &listing).await.unwrap();
        assert_eq!(own, [""; 0], "it is not known who made it");
        assert!(confirm(&listing, &["a".to_owned()], true).is_ok() && confirm(&listing, &[], false).is_ok());
    }

    #[tokio::test]
    async fn the_directory_of_logs_of_a_pod_that_was_not_made_goes_unless_it_has_any() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("web-1");
        let log_directory = logs.to_str().unwrap().to_owned();
        let config = PodSandboxConfig { log_directory, ..PodSandboxConfig::default() };
        unused_logs(&config).await;
        std::fs::create_dir(&logs).unwrap();
        std::fs::write(logs.join("0.log"), "").unwrap();
        unused_logs(&config).await;
        std::fs::remove_file(logs.join("0.log")).unwrap();
        unused_logs(&config).await;
        assert!(!logs.exists());
    }

    #[test]
    fn only_own_logs_are_removed() {
        let pod = |directory: &str| PodSandbox {
            annotations: [(LOGS_ANNOTATION.to_owned(), directory.to_owned())].into(),
            ..PodSandbox::default()
        };
        assert_eq!(named_logs(&pod("/var/log/wharf/web-1")), Some(Path::new("/var/log/wharf/web-1")));
        for other in [
            "",
            "/",
            "/var/log/wharf",
            "/var/log/wharf/..",
            "/var/log/wharf/a/b",
            "/var/log/wharfx/a",
            "/etc",
        ] {
            assert_eq!(named_logs(&pod(other)), None, "{other}");
        }
        assert_eq!(named_logs(&PodSandbox::default()), None);
        let asked = |directory: &str| PodSandboxConfig {
            log_directory: directory.to_owned(),
            ..PodSandboxConfig::default()
        };
        let named = Path::new("/var/log/wharf/web-1");
        assert!(logs_in(&asked("/var/log/wharf/web-1"), named));
        for other in ["", "/var/log/pods/web", "/var/log/wharf/web-2"] {
            assert!(!logs_in(&asked(other), named), "{other}");
        }
    }
}
