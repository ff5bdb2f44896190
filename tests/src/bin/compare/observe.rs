//! Sends one request to one runtime, and collects everything that can be seen of the result.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};
use tonic::Status;
use wharf_cri_api::v1::{
    ContainerState, ContainerStatus, ContainerStatusRequest, ExecSyncRequest, ImageSpec, ImageStatusRequest,
    PodSandboxStatusRequest,
};
use wharf_tests::calls::Calls;

use crate::facts::{Facts, OUTCOME};
use crate::process;
use crate::request::{Asked, Request, Until};
use crate::spec;

/// The script that runs inside.
const INSIDE: &str = include_str!("inside.sh");
/// How long a program may take until it can be examined.
const PATIENCE: Duration = Duration::from_secs(20);

/// A runtime, and the directories with its pods' files.
#[derive(Debug)]
pub(crate) struct Runtime {
    calls: Calls,
    /// Everything that it stores is below this.
    state: PathBuf,
    logs: PathBuf,
    files: PathBuf,
}

impl Runtime {
    pub(crate) async fn connect(socket: &Path, files: &Path) -> anyhow::Result<Self> {
        let state = socket.parent().context("a socket has a directory")?.to_owned();
        let logs = state.join("logs");
        Ok(Self { calls: Calls::connect(socket).await?, state, logs, files: files.to_owned() })
    }

    /// Sends the request, examines the result, and removes it.
    pub(crate) async fn observe(&self, request: &Request) -> anyhow::Result<Facts> {
        // Boxed, here and below, because many requests together are too large for a future.
        Box::pin(self.asked_and_removed(request))
            .await
            .with_context(|| format!("the request {:?}", request.name))
    }

    async fn asked_and_removed(&self, request: &Request) -> anyhow::Result<Facts> {
        let mut asked = Asked::new(&self.files, &self.logs);
        (request.change)(&mut asked);
        let mut facts = Facts::default();
        facts.names.add(self.logs.display().to_string(), "LOGS");
        facts.names.add(self.state.display().to_string(), "STATE");
        facts.names.add(self.files.display().to_string(), "FILES");
        if let Some(image) = &asked.container.image {
            Box::pin(self.image(&image.image, &mut facts)).await?;
        }
        // As the kubelet does.
        if let Some(directory) = self.logs.join(&asked.container.log_path).parent() {
            fs::create_dir_all(directory)?;
        }
        match self.calls.run(&asked.pod).await {
            Err(refused) => outcome("RunPodSandbox", &refused, &mut facts),
            Ok(pod) => {
                facts.names.add(pod.clone(), "POD");
                let seen = Box::pin(self.in_pod(&pod, &asked, &mut facts)).await;
                self.calls.stop(&pod).await.context("StopPodSandbox")?;
                self.calls.remove(&pod).await.context("RemovePodSandbox")?;
                seen?;
            }
        }
        self.log(&asked, &mut facts);
        fs::remove_dir_all(&self.logs).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        Ok(facts)
    }

    /// Pulls an image, and adds what is reported about it.
    async fn image(&self, name: &str, facts: &mut Facts) -> anyhow::Result<()> {
        self.calls.pull(name).await.with_context(|| format!("pull {name}"))?;
        let image = Some(ImageSpec { image: name.to_owned(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image, ..ImageStatusRequest::default() };
        let image = self.calls.images.clone().image_status(request).await?.into_inner().image;
        let image = image.with_context(|| format!("{name} was pulled and is not there"))?;
        for (what, text) in [
            ("image: tags", format!("{:?}", image.repo_tags)),
            ("image: digests", format!("{:?}", image.repo_digests)),
            ("image: user", format!("{:?} {:?}", image.uid, image.username)),
            ("image: id", image.id),
            ("image: pinned", image.pinned.to_string()),
        ] {
            facts.add(what, text);
        }
        Ok(())
    }

    async fn in_pod(&self, pod: &str, asked: &Asked, facts: &mut Facts) -> anyhow::Result<()> {
        Box::pin(self.pod_status(pod, facts)).await?;
        let id = match self.calls.create(pod, &asked.pod, asked.container.clone()).await {
            Ok(id) => id,
            Err(refused) => {
                outcome("CreateContainer", &refused, facts);
                return Ok(());
            }
        };
        facts.names.add(id.clone(), "CONTAINER");
        spec::look(&self.info(&id).await?["runtimeSpec"], facts);
        if let Err(refused) = self.calls.start(&id).await {
            outcome("StartContainer", &refused, facts);
        } else if asked.until == Until::Runs {
            facts.add(OUTCOME, "runs");
            Box::pin(self.inside(&id, asked, facts)).await?;
            process::look(self.pid(&id).await?, facts)?;
        }
        Box::pin(self.container_status(&id, asked, facts)).await
    }

    async fn pod_status(&self, pod: &str, facts: &mut Facts) -> anyhow::Result<()> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        let answer =
            self.calls.runtime.clone().pod_sandbox_status(request).await.context("PodSandboxStatus")?;
        let status = answer.into_inner().status.context("a pod without a status")?;
        let network = status.network.clone().unwrap_or_default();
        facts.names.add(network.ip, "ADDRESS");
        for address in network.additional_ips {
            facts.names.add(address.ip, "ADDRESS");
        }
        for (what, text) in [
            ("pod status: state", format!("{:?}", status.state())),
            ("pod status: network", format!("{:?}", status.network)),
            ("pod status: linux", format!("{:?}", status.linux)),
            ("pod status: labels", format!("{:?} {:?}", status.labels, status.annotations)),
            ("pod status: handler", status.runtime_handler),
        ] {
            facts.add(what, text);
        }
        Ok(())
    }

    /// Runs the script that examines the inside.
    async fn inside(&self, id: &str, asked: &Asked, facts: &mut Facts) -> anyhow::Result<()> {
        let mut cmd = vec!["sh".to_owned(), "-c".to_owned(), INSIDE.to_owned(), "sh".to_owned()];
        cmd.extend(asked.paths());
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 20 };
        let answer = match self.calls.runtime.clone().exec_sync(request).await {
            Ok(answer) => answer.into_inner(),
            Err(_refused) => {
                facts.add("exec", "fails");
                return Ok(());
            }
        };
        facts.add("exec: code", answer.exit_code.to_string());
        facts.add("exec: standard error", String::from_utf8_lossy(&answer.stderr));
        for line in String::from_utf8_lossy(&answer.stdout).lines() {
            let (name, text) = line.split_once('\t').with_context(|| format!("no fact: {line}"))?;
            facts.add(format!("inside: {name}"), text);
        }
        Ok(())
    }

    /// The status, and the additions of a verbose one.
    async fn status(&self, id: &str) -> anyhow::Result<(ContainerStatus, String)> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = self.calls.runtime.clone().container_status(request).await.context("ContainerStatus")?;
        let mut answer = answer.into_inner();
        let info = answer.info.remove("info").unwrap_or_default();
        Ok((answer.status.context("a container without a status")?, info))
    }

    async fn info(&self, id: &str) -> anyhow::Result<serde_json::Value> {
        let (_, info) = self.status(id).await?;
        serde_json::from_str(&info).context("the verbose status")
    }

    /// The pid of the first process, once it has become the container's program.
    async fn pid(&self, id: &str) -> anyhow::Result<u32> {
        let info = self.info(id).await?;
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a pid")?;
        let start = Instant::now();
        while fs::read_to_string(format!("/proc/{pid}/comm"))?.starts_with("runc:") {
            anyhow::ensure!(start.elapsed() < PATIENCE, "the program of the container does not begin");
            sleep(Duration::from_millis(5)).await;
        }
        Ok(pid)
    }

    async fn container_status(&self, id: &str, asked: &Asked, facts: &mut Facts) -> anyhow::Result<()> {
        let start = Instant::now();
        let status = loop {
            let (status, _) = self.status(id).await?;
            let is_over = status.state() == ContainerState::ContainerExited;
            if is_over || asked.until == Until::Runs || status.state() == ContainerState::ContainerCreated {
                break status;
            }
            anyhow::ensure!(start.elapsed() < PATIENCE, "the program does not end");
            sleep(Duration::from_millis(20)).await;
        };
        let times = [status.created_at, status.started_at, status.finished_at].map(|time| time != 0);
        for (what, text) in [
            ("status: state", format!("{:?}", status.state())),
            ("status: created, started, finished", format!("{times:?}")),
            ("status: end", format!("{} {}: {}", status.exit_code, status.reason, status.message)),
            ("status: image", format!("{:?} {} {}", status.image, status.image_ref, status.image_id)),
            ("status: labels", format!("{:?} {:?}", status.labels, status.annotations)),
            ("status: log path", status.log_path.clone()),
            ("status: resources", format!("{:?}", status.resources)),
            ("status: user", format!("{:?}", status.user)),
            ("status: stop signal", format!("{:?}", status.stop_signal())),
        ] {
            facts.add(what, text);
        }
        for mount in &status.mounts {
            facts.add(format!("status: mount {}", mount.container_path), format!("{mount:?}"));
        }
        Ok(())
    }

    /// The container's log, each stream on its own and without times.
    fn log(&self, asked: &Asked, facts: &mut Facts) {
        let name = &asked.container.log_path;
        if name.is_empty() || asked.until == Until::Runs {
            return;
        }
        let Ok(text) = fs::read_to_string(self.logs.join(name)) else {
            facts.add("log", "no file");
            return;
        };
        for stream in ["stdout", "stderr"] {
            let of_stream = |line: &str| {
                let rest = line.split_once(' ')?.1.strip_prefix(stream)?;
                // A long line is represented by its length.
                let rest = rest.trim_start();
                Some(if rest.len() > 200 {
                    format!("{}… ({} bytes)", &rest[..20], rest.len())
                } else {
                    rest.to_owned()
                })
            };
            facts.add(
                format!("log: {stream}"),
                text.lines().filter_map(of_stream).collect::<Vec<_>>().join("; "),
            );
        }
    }
}

/// Notes that a call failed. The message is the runtime's own and is only for the person who watches.
fn outcome(call: &str, refused: &Status, facts: &mut Facts) {
    facts.add(OUTCOME, format!("{call} is refused"));
    let _unseen = writeln!(std::io::stderr(), "    {call}: {}", refused.message());
}
