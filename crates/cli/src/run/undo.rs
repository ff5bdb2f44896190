//! Removes what a run has created and does not leave, also while wharfd restarts.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use wharf_cri_api::v1::{PodSandbox, PodSandboxConfig};

use super::make::Created;
use super::request::is_of;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::{output, remove};

/// How long wharfd may be away. A restart takes about a second.
pub(super) const AWAY: Duration = Duration::from_secs(10);
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
    once_back(AWAY, async || remove::made_pod(daemon, pod).await).await
}

/// Removes a pod after an error of its creation, if the run with these random characters has created it all the same,
/// as when wharfd went away before it responded. Another one of the same name is another run's.
pub(super) async fn pod(daemon: &mut Daemon, config: &PodSandboxConfig, random: &str) -> Result<(), Error> {
    let remove = async || {
        let pods = daemon.listing().await?.pods;
        match pods.iter().find(|pod| is_of(&pod.annotations, random)) {
            Some(pod) => remove::made_pod(daemon, pod).await,
            None => Ok(()),
        }
    };
    once_back(AWAY, remove).await?;
    remove::unused_logs(config).await;
    Ok(())
}

/// The same for a container in a pod that stays.
pub(super) async fn container(daemon: &mut Daemon, random: &str) -> Result<(), Error> {
    let remove = async || {
        let all = daemon.listing().await?.containers;
        match all.iter().find(|container| is_of(&container.annotations, random)) {
            Some(container) => remove::with_log(daemon, &container.id).await,
            None => Ok(()),
        }
    };
    once_back(AWAY, remove).await
}

/// Does something again until wharfd is there, for a while.
pub(super) async fn once_back<T>(
    patience: Duration,
    mut work: impl AsyncFnMut() -> Result<T, Error>,
) -> Result<T, Error> {
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
        let mut lost = Status::unavailable("no connection");
        lost.set_source(std::sync::Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)));
        Error::call("removing the pod")(lost)
    }

    #[tokio::test]
    async fn a_removal_waits_for_a_wharfd_that_restarts_but_not_for_ever() {
        let mut calls = 0;
        let mut twice_away = async || {
            calls += 1;
            if calls < 3 { Err(away()) } else { Ok(()) }
        };
        once_back(AWAY, &mut twice_away).await.unwrap();
        for refusal in [Status::internal, Status::unavailable] {
            let mut calls = 0;
            let mut refused = async || {
                calls += 1;
                Err::<(), _>(Error::call("removing the pod")(refusal("it is busy")))
            };
            assert!(once_back(AWAY, &mut refused).await.is_err());
            assert_eq!(calls, 1, "wharfd is there, and has its own patience");
        }
        let told = once_back(Duration::ZERO, async || Err::<(), _>(away())).await.unwrap_err();
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
        let cause = "removing the pod: wharfd went away before it responded (no connection)";
        let words = format!("cannot run busybox: it went away\n  web may be left ({cause})");
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
