//! `wharf rm`: removes containers and pods, and the logs of those that `wharf run` made.

use std::path::{Component, Path};

use futures_util::future::join_all;
use wharf_cri_api::v1::{PodSandbox, RemoveContainerRequest};

use crate::args::Rm;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::find::{Found, Listing, runs};
use crate::output::Output;
use crate::run::{LOGS, LOGS_ANNOTATION};
use crate::stop::each;
use crate::units::short;

pub(crate) async fn remove(daemon: &mut Daemon, output: Output, rm: Rm) -> Result<(), Error> {
    let listing = daemon.listing().await?;
    let names = if rm.all { ids(&listing) } else { rm.names };
    let force = if rm.force { Force::Yes } else { Force::No };
    let removes = names.iter().map(|name| one(daemon.clone(), &listing, name, force));
    each(output, &names, join_all(removes)).await
}

fn ids(listing: &Listing) -> Vec<String> {
    listing.pods.iter().map(|pod| short(&pod.id).to_owned()).collect()
}

/// Whether what runs is removed too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Force {
    Yes,
    No,
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
            // A pod that `wharf run` made for one container goes with its last one.
            if let Some(pod) = listing.pod_of(container)
                && is_own(pod)
                && listing.containers_of(pod).count() == 1
            {
                return whole_pod(&mut daemon, pod).await;
            }
            self::container(&mut daemon, &container.id).await
        }
    }
}

/// Removes one container, and leaves its pod.
pub(crate) async fn container(daemon: &mut Daemon, id: &str) -> Result<(), Error> {
    let request = RemoveContainerRequest { container_id: id.to_owned() };
    let removed = daemon.runtime.remove_container(request).await;
    removed.map(drop).map_err(Error::call("removing the container"))
}

/// Removes a pod, and its logs if `wharf run` chose where they are.
pub(crate) async fn whole_pod(daemon: &mut Daemon, pod: &PodSandbox) -> Result<(), Error> {
    daemon.remove_pod(&pod.id).await?;
    let Some(logs) = own_logs(pod) else { return Ok(()) };
    match std::fs::remove_dir_all(logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::File { path: logs.to_owned(), source: error });
        }
        _ => {}
    }
    // It goes with the last pod; until then it is not empty.
    let _others_are_left = std::fs::remove_dir(LOGS);
    Ok(())
}

fn is_own(pod: &PodSandbox) -> bool {
    own_logs(pod).is_some()
}

/// The directory of a pod's logs, if it is one of those that `wharf run` makes: anyone can write an annotation.
fn own_logs(pod: &PodSandbox) -> Option<&Path> {
    let directory = Path::new(pod.annotations.get(LOGS_ANNOTATION)?);
    let mut below = directory.strip_prefix(LOGS).ok()?.components();
    let is_direct = matches!((below.next(), below.next()), (Some(Component::Normal(_)), None));
    is_direct.then_some(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_logs_are_removed() {
        let pod = |directory: &str| PodSandbox {
            annotations: [(LOGS_ANNOTATION.to_owned(), directory.to_owned())].into(),
            ..PodSandbox::default()
        };
        assert_eq!(own_logs(&pod("/var/log/wharf/web-1")), Some(Path::new("/var/log/wharf/web-1")));
        for other in [
            "",
            "/",
            "/var/log/wharf",
            "/var/log/wharf/..",
            "/var/log/wharf/a/b",
            "/var/log/wharfx/a",
            "/etc",
        ] {
            assert_eq!(own_logs(&pod(other)), None, "{other}");
        }
        assert_eq!(own_logs(&PodSandbox::default()), None);
    }
}
