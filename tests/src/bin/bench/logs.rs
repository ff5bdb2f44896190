//! How fast a container's output becomes its log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::Options;
use crate::client::Runtime;
use crate::results::{Results, Stopwatch, Unit};

/// How often to look at the end of the log: far less time than a flood takes.
const LOOK: Duration = Duration::from_millis(2);

/// A flood that takes longer than this has failed.
const DEADLINE: Duration = Duration::from_secs(300);

/// A container counts as fast as it can. The time ends when the last number is in the log.
pub(crate) async fn floods(
    options: &Options,
    runtimes: &[Runtime],
    results: &mut Results,
) -> anyhow::Result<()> {
    for _ in 0..options.floods {
        for runtime in runtimes {
            let duration = flood(options.lines, runtime).await?;
            let rate = options.lines as f64 / 1000.0 / duration.as_secs_f64();
            results.add("log lines", Unit::KLines, &runtime.name, rate);
        }
    }
    Ok(())
}

async fn flood(lines: u64, runtime: &Runtime) -> anyhow::Result<Duration> {
    let config = runtime.pod_config();
    let sandbox = runtime.calls.run(&config).await.context("RunPodSandbox")?;
    let container = runtime.create(&sandbox, &config, &["seq", "1", &lines.to_string()]).await?;
    let log = Path::new(&config.log_directory).join("bench.log");
    let mut watch = Stopwatch::start();
    runtime.calls.start(&container).await.context("StartContainer")?;
    wait_for_end(&log, &format!(" {lines}\n")).await?;
    let duration = watch.lap();
    runtime.calls.stop(&sandbox).await.context("StopPodSandbox")?;
    runtime.calls.remove(&sandbox).await.context("RemovePodSandbox")?;
    std::fs::remove_file(&log).with_context(|| format!("remove {}", log.display()))?;
    Ok(duration)
}

/// Waits until the file ends with this text.
async fn wait_for_end(log: &Path, end: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !ends_with(log, end)? {
        anyhow::ensure!(Instant::now() < deadline, "{} lacks its last line", log.display());
        looks.tick().await;
    }
    Ok(())
}

fn ends_with(log: &Path, end: &str) -> anyhow::Result<bool> {
    let mut file = File::open(log).with_context(|| format!("open {}", log.display()))?;
    let length = file.metadata().with_context(|| format!("look at {}", log.display()))?.len();
    let Some(from) = length.checked_sub(end.len() as u64) else { return Ok(false) };
    let mut tail = String::new();
    file.seek(SeekFrom::Start(from)).context("seek in the log")?;
    file.take(end.len() as u64).read_to_string(&mut tail).context("read the log")?;
    Ok(tail == end)
}

#[cfg(test)]
mod tests {
    use super::ends_with;

    #[test]
    fn the_last_line_is_found_only_at_the_end() {
        let log = std::env::temp_dir().join(format!("wharf-bench-test-{}", std::process::id()));
        std::fs::write(&log, "a 12\nb 123\n").unwrap();
        assert!(ends_with(&log, " 123\n").unwrap());
        assert!(!ends_with(&log, " 12\n").unwrap());
        assert!(!ends_with(&log, &"x".repeat(50)).unwrap());
        std::fs::remove_file(&log).unwrap();
        ends_with(&log, "").unwrap_err();
    }
}
