//! Removes what a run has created and does not leave, also while wharfd restarts.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use wharf_cri_api::v1::{ContainerMetadata, PodSandbox, PodSandboxConfig, PodSandboxMetadata};

use super::make::Created;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::{output, remove};

/// How long wharfd may be away. A restart takes about a second.
const AWAY: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

/// Removes everything that a run has created.
pub(super) async fn created(daemon: &mut Daemon, created: &Created) -> Result<(), Error> {
    match &created.own_pod {
        Some(pod) => own_pod(daemon, pod).await,
        None => once_back(AWAY, async || remove::with_log(daemon, &created.container_id).await).await,
    }
}

/// Removes the pod that a run has created.
pub(super) async fn own_pod(daemon: &mut Daemon, pod: &PodSandbox) -> Result<(), Error> {
    once_back(AWAY, async || remove::whole_pod(daemon, pod).await).await
}

/// Removes a pod after an error of its creation. If wharfd went away, it may have created the pod all the same.
pub(super) async fn pod(daemon: &mut Daemon, config: &PodSandboxConfig, error: &Error) -> Result<(), Error> {
    if error.is_away() {
        let uid = |metadata: &Option<PodSandboxMetadata>| metadata.as_ref().map(|it| it.uid.clone());
        let asked = uid(&config.metadata);
        let remove = async || {
            let pods = daemon.listing().await?.pods;
            match pods.iter().find(|pod| uid(&pod.metadata) == asked) {
                Some(pod) => remove::whole_pod(daemon, pod).await,
                None => Ok(()),
            }
        };
        once_back(AWAY, remove).await?;
    }
    remove::unused_logs(config);
    Ok(())
}

/// The same for a container in a pod that stays. No other one has its name and number.
pub(super) async fn container(
    daemon: &mut Daemon,
    (pod_id, metadata): (&str, Option<&ContainerMetadata>),
    error: &Error,
) -> Result<(), Error> {
    if !error.is_away() {
        return Ok(());
    }
    let remove = async || {
        let all = daemon.listing().await?.containers;
        let mut of_pod = all.iter().filter(|container| container.pod_sandbox_id == pod_id);
        match of_pod.find(|container| container.metadata.as_ref() == metadata) {
            Some(container) => remove::with_log(daemon, &container.id).await,
            None => Ok(()),
        }
    };
    once_back(AWAY, remove).await
}

/// Does something again until wharfd is there, for a while.
async fn once_back(
    patience: Duration,
    mut work: impl AsyncFnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    let end = Instant::now() + patience;
    loop {
        match work().await {
            Err(error) if error.is_away() && Instant::now() < end => sleep(AGAIN).await,
            ended => return ended,
        }
    }
}

/// The result of something, and of the removal after it. What cannot be removed is told, and does not change the
/// result.
pub(super) fn after<T>(result: Result<T, Error>, name: &str, removed: Result<(), Error>) -> Result<T, Error> {
    match (result, removed) {
        (result, Ok(())) => result,
        (Ok(value), Err(cause)) => {
            let told = wharf_types::chain(&cause);
            output::report(&format!("{told}\n  {name} may be left: wharf rm --force {name}"));
            Ok(value)
        }
        (Err(first), Err(cause)) => Err(first.but_left(name, cause)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::daemon;

    fn away() -> Error {
        Error::call("removing the pod")(Status::unavailable("no connection"))
    }

    #[tokio::test]
    async fn a_removal_waits_for_a_wharfd_that_restarts_but_not_for_ever() {
        let mut calls = 0;
        let mut twice_away = async || {
            calls += 1;
            if calls < 3 { Err(away()) } else { Ok(()) }
        };
        once_back(AWAY, &mut twice_away).await.unwrap();
        let mut calls = 0;
        let mut refused = async || {
            calls += 1;
            Err(Error::call("removing the pod")(Status::internal("it is busy")))
        };
        assert!(once_back(AWAY, &mut refused).await.is_err());
        assert_eq!(calls, 1);
        let told = once_back(Duration::ZERO, async || Err(away())).await.unwrap_err();
        assert!(told.is_away());
    }

    #[tokio::test]
    async fn a_wharfd_that_is_gone_is_away() {
        let (mut daemon, socket) = daemon::tests::silent().await;
        drop(socket);
        let told = daemon.listing().await.map(drop).unwrap_err();
        assert!(told.is_away(), "{told:?}");
    }

    #[test]
    fn the_first_error_is_told_first_and_what_is_left_after_it() {
        let first = || Error::call("cannot run busybox")(Status::unavailable("it went away"));
        let told = after::<()>(Err(first()), "web", Err(away())).unwrap_err().to_string();
        let words = "cannot run busybox: it went away\n  web may be left (removing the pod: no connection)";
        assert_eq!(told, format!("{words}: wharf rm --force web"));
        assert_eq!(after::<()>(Err(first()), "web", Ok(())).unwrap_err().to_string(), first().to_string());
        assert_eq!(after(Ok(7), "web", Err(away())).unwrap(), 7);
        let missing = Status::failed_precondition(wharf_types::program::MISSING);
        let missing = Error::call("cannot run busybox")(missing);
        let left = after::<()>(Err(missing), "web", Err(away())).unwrap_err();
        assert_eq!(left.program_code(), Some(127));
        let signal = tokio::signal::unix::SignalKind::terminate();
        let left = after::<()>(Err(Error::Interrupted { signal }), "web", Err(away())).unwrap_err();
        assert_eq!(left.signal_code(), Some(143));
    }
}
