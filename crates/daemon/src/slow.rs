//! Work in a directory whose disk may never respond. It is waited for, but not in silence.

use std::path::Path;
use std::time::Duration;

/// How long the work may take until that is logged.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does work in a directory, and logs it if that takes long.
pub(crate) fn work_in<T>(directory: &Path, work: impl FnOnce() -> T) -> T {
    let directory = directory.display().to_string();
    let tell = move || {
        tracing::warn!(
            directory,
            "waiting for the files in this directory: if it does not respond, check its disk, or the server that it is on"
        );
    };
    within(PATIENCE, tell, work)
}

/// Does work on this thread. Another one tells if it takes longer.
fn within<T>(patience: Duration, tell: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> T {
    let telling = tokio::spawn(async move {
        tokio::time::sleep(patience).await;
        tell();
    });
    let done = work();
    telling.abort();
    done
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_that_takes_long_is_told_of_while_it_goes_on() {
        let (tell, told) = channel();
        let tell_it = move || tell.send(()).unwrap();
        let heard = within(Duration::from_millis(1), tell_it, || told.recv_timeout(Duration::from_secs(20)));
        heard.unwrap();
        let (tell, told) = channel::<()>();
        let work = || ();
        within(Duration::from_secs(3600), move || tell.send(()).unwrap(), work);
        assert!(told.recv().is_err(), "what is done is not told of");
    }
}
