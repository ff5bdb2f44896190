//! Kills a daemon with SIGKILL, and starts the next one the way the first was started.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{MissedTickBehavior, interval};
use wharf_cri_api::v1::{ListContainersRequest, StatusRequest};

use crate::client::{Endpoint, Runtime};

/// How often to ask a starting daemon whether it is ready.
const LOOK: Duration = Duration::from_millis(2);

/// A daemon that is not ready after this time has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the killed daemon was started.
#[derive(Debug)]
pub(crate) struct Killed {
    at: Instant,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
    log: File,
}

/// The next daemon, once it is ready.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) runtime: Runtime,
    /// The time since the first daemon's death.
    pub(crate) after: Duration,
    child: Child,
}

impl Killed {
    /// Remembers how the daemon was started, and kills it.
    pub(crate) fn kill(daemon: u32) -> anyhow::Result<Self> {
        let proc = PathBuf::from(format!("/proc/{daemon}"));
        let words = |name| -> anyhow::Result<Vec<OsString>> {
            let bytes = fs::read(proc.join(name)).with_context(|| format!("read the daemon's {name}"))?;
            let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
            Ok(words.map(|word| OsString::from_vec(word.to_vec())).collect())
        };
        let log = fs::read_link(proc.join("fd/2")).context("find the daemon's log")?;
        let log =
            File::options().append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
        let mut killed = Self {
            at: Instant::now(),
            program: fs::read_link(proc.join("exe")).context("find the daemon's program")?,
            arguments: words("cmdline")?.split_off(1),
            environment: words("environ")?.into_iter().filter_map(variable).collect(),
            directory: fs::read_link(proc.join("cwd")).context("find the daemon's directory")?,
            log,
        };
        killed.at = Instant::now();
        kill(Pid::from_raw(daemon.cast_signed()), Signal::SIGKILL).context("kill the daemon")?;
        await_death(daemon)?;
        Ok(killed)
    }

    /// Starts the next daemon, and waits until it and its network are ready and it knows all containers.
    pub(crate) async fn start_again(
        &self,
        endpoint: &Endpoint,
        before: &Runtime,
        containers: usize,
    ) -> anyhow::Result<Next> {
        let mut child = self.spawn().context("start the next daemon")?;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(runtime) = ready(&endpoint.of_process(child.id()), before, containers).await {
                return Ok(Next { runtime, after: self.at.elapsed(), child });
            }
            if let Some(status) = child.try_wait().context("look at the next daemon")? {
                anyhow::bail!("the next daemon ended: {status}");
            }
            anyhow::ensure!(self.at.elapsed() < PATIENCE, "the next daemon is not ready");
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "wharf itself starts only supervisors and plugins; the bench starts wharf"
    )]
    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(self.environment.iter().cloned());
        command.current_dir(&self.directory).stdin(Stdio::null());
        command.stdout(self.log.try_clone()?).stderr(self.log.try_clone()?).spawn()
    }
}

impl Next {
    /// Asks the daemon to end, and waits for it.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        // A daemon that ends waits for its clients to hang up.
        drop(self.runtime);
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).context("end the daemon")?;
        self.child.wait().context("wait for the daemon").map(drop)
    }
}

/// A client of the daemon, if the daemon is ready and lists this many containers.
async fn ready(endpoint: &Endpoint, before: &Runtime, containers: usize) -> Option<Runtime> {
    let logs = before.logs.parent()?;
    let runtime = Runtime::connect(endpoint, logs).await.ok()?;
    let mut client = runtime.calls.runtime.clone();
    let status = client.status(StatusRequest::default()).await.ok()?.into_inner().status?;
    let listed = client.list_containers(ListContainersRequest::default()).await.ok()?.into_inner();
    // Runtimes add conditions of their own, which may say no forever.
    let is_met =
        |name: &str| status.conditions.iter().any(|condition| condition.r#type == name && condition.status);
    let all = listed.containers.len() == containers && is_met("RuntimeReady") && is_met("NetworkReady");
    all.then_some(runtime)
}

fn variable(word: OsString) -> Option<(OsString, OsString)> {
    let bytes = word.into_vec();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let (name, value) = bytes.split_at(at);
    Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value[1..].to_vec())))
}

/// Waits until the process is gone, or is a zombie that its parent has not reaped yet.
fn await_death(pid: u32) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_dead(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()) {
        anyhow::ensure!(Instant::now() < deadline, "the daemon does not die");
        nix::sched::sched_yield().context("yield")?;
    }
    Ok(())
}

fn is_dead(stat: &str) -> bool {
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::{is_dead, variable};

    #[test]
    fn a_zombie_is_dead_whatever_it_was_called() {
        assert!(is_dead("") && is_dead("7 (wharfd) Z 1 7") && is_dead("7 (a) R) X 1"));
        assert!(!is_dead("7 (wharfd) S 1 7") && !is_dead("7 (a) Z) R 1"));
    }

    #[test]
    fn a_variable_ends_at_the_first_sign() {
        assert_eq!(variable(OsString::from("A=b=c")), Some((OsString::from("A"), OsString::from("b=c"))));
        assert_eq!(variable(OsString::from("A")), None);
    }
}
