//! Waiting until a container exits.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt;
use tonic::Code;
use wharf_cri_api::v1::{ContainerState, ContainerStatus, GetEventsRequest};

use crate::daemon::Daemon;
use crate::error::Error;

/// How long the daemon may be away: containers continue without it, and so does the wait.
const AWAY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(200);

/// Waits until a container has exited, and returns its last status. A restart of the daemon does not end the wait.
pub(crate) async fn for_end(mut daemon: Daemon, id: String) -> Result<ContainerStatus, Error> {
    let mut away_since: Option<Instant> = None;
    loop {
        match for_change(&mut daemon, &id).await {
            Ok(status) if status.state() == ContainerState::ContainerExited => return Ok(status),
            Ok(_goes_on) => away_since = None,
            Err(Error::Call { status, what }) if is_away(status.code()) => {
                if away_since.get_or_insert_with(Instant::now).elapsed() > AWAY {
                    return Err(Error::Call { what, status });
                }
                sleep(AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The status code of a call whose daemon was killed or is not back yet.
fn is_away(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled)
}

/// The status of a container: at once if it has exited, else after the next event about it.
async fn for_change(daemon: &mut Daemon, id: &str) -> Result<ContainerStatus, Error> {
    // Events first, so that an exit between the two calls is not missed.
    let events = daemon.runtime.get_container_events(GetEventsRequest {}).await;
    let mut events = events.map_err(Error::call("listening to events"))?.into_inner();
    let status = daemon.container_status(id).await?;
    if status.state() == ContainerState::ContainerExited {
        return Ok(status);
    }
    while let Some(event) = events.next().await {
        // A client that was too slow gets an error instead of the event, and looks for itself.
        if event.is_err() || event.is_ok_and(|event| event.container_id == id) {
            break;
        }
    }
    daemon.container_status(id).await
}
