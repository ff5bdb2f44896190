//! `wharfd clean`: restores the machine to its state before wharf.
//!
//! It takes over pods and removes them as the daemon would, so that what they left in the kernel is removed as well.
//! Then it removes the network, the cgroups and the files. Images stay unless `--images` is given. IP forwarding stays
//! enabled, because other programs may rely on it by now.
#![expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use wharf_cgroup::{CgroupPath, Cgroups};
use wharf_types::{Failure, chain};

use crate::Node;
use crate::config::Config;

/// How long the last processes may take to leave their cgroups.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to remove beyond what is unused.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Arguments {
    /// Also remove running pods
    #[arg(long)]
    force: bool,
    /// Also remove images
    #[arg(long)]
    images: bool,
}

/// Removes everything; a second call finds nothing to remove.
pub(crate) async fn clean(config: &Config, arguments: &Arguments) -> anyhow::Result<()> {
    if UnixStream::connect(&config.socket).is_ok() {
        bail!("a wharfd is serving {}: stop it first", config.socket.display());
    }
    let node = Node::open(config).await?;
    node.engine.recover().await.context("cannot take over the pods")?;
    node.engine.tidy().await;
    let pods = node.engine.pods();
    let running: Vec<_> = pods.iter().filter(|pod| pod.is_ready()).map(|pod| name(pod)).collect();
    if !running.is_empty() && !arguments.force {
        bail!("pods are running: {}; stop them (wharf stop), or use --force", running.join(", "));
    }
    let mut partly = Vec::new();
    for pod in &pods {
        match node.engine.remove_pod(pod.id().as_str()).await {
            // Its processes and files go with those of all others.
            Err(error) if arguments.force => partly.push(format!("{}: {}", name(pod), chain(&error))),
            removed => removed.with_context(|| format!("removing the pod {}", name(pod)))?,
        }
    }
    let (network, cgroups, parent) = (node.network, node.cgroups, config.cgroup_parent.clone());
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        network.reconcile(&HashSet::new());
        network.demolish().context("removing the built-in network")?;
        remove_cgroups(&cgroups, &parent)
    })
    .await??;
    let root = node.layout.root();
    let of_images = if arguments.images { &wharf_images::Store::ENTRIES[..] } else { &[] };
    remove_entries(root, ["network", "snapshots"].iter().chain(of_images))?;
    unmount_below(&node.layout.pods())?;
    remove_entries(node.layout.state(), &["pods", "leases", "quarantine"])?;
    remove(&config.socket, wharf_sys::socket::remove(&config.socket))?;
    for directory in [config.socket.parent().unwrap_or(root), node.layout.state(), root] {
        remove_empty(directory)?;
    }
    node.claims.withdraw()?;
    let mut result = "removed everything that wharf left on this machine\n".to_owned();
    if !partly.is_empty() {
        result += "\nother programs, such as CNI plugins, may have left something of these pods:\n  ";
        result = result + &partly.join("\n  ") + "\n";
    }
    std::io::stdout().write_all(result.as_bytes()).context("writing the result")
}

/// Detaches the mounts below a directory: namespaces that are pinned there for plugins.
fn unmount_below(directory: &Path) -> anyhow::Result<()> {
    const MOUNTS: &str = "/proc/thread-self/mountinfo";
    let mounts = std::fs::read(MOUNTS).with_context(|| format!("reading {MOUNTS}"))?;
    let points =
        mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let mut points: Vec<PathBuf> = points.map(unescaped).collect();
    points.retain(|point| point != directory && point.starts_with(directory));
    // The last mount of several at one place is the uppermost.
    points.iter().rev().try_for_each(|point| {
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("unmounting {}", point.display()))
    })
}

/// A path as it was before the kernel wrote its spaces, tabs, newlines and backslashes as three octal digits.
fn unescaped(shown: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = shown;
    while let [first, left @ ..] = rest {
        let digits = left.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &left[3..] } else { left };
    }
    OsString::from_vec(bytes).into()
}

fn name(pod: &wharf_pods::Pod) -> String {
    pod.config().metadata.clone().unwrap_or_default().name
}

fn remove_cgroups(cgroups: &Cgroups, parent: &str) -> anyhow::Result<()> {
    let path = CgroupPath::new(parent).context("cgroup_parent")?;
    match cgroups.open(&path) {
        Err(error) if error.kind() == wharf_types::ErrorKind::NotFound => Ok(()),
        Ok(cgroup) => cgroup.remove(PATIENCE).with_context(|| format!("removing the cgroup {path}")),
        Err(error) => Err(error).with_context(|| format!("opening the cgroup {path}")),
    }
}

/// Removes wharf's entries in a directory. Other entries stay, because the directory might be shared by mistake.
fn remove_entries<'a>(directory: &Path, names: impl IntoIterator<Item = &'a &'a str>) -> anyhow::Result<()> {
    for name in names {
        let path = directory.join(name);
        let removed = match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() == ErrorKind::NotADirectory => std::fs::remove_file(&path),
            other => other,
        };
        remove(&path, removed)?;
    }
    Ok(())
}

fn remove_empty(directory: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir(directory) {
        // It has images or other entries in it.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        // The directory itself is a mount point.
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(()),
        // It is a link to the directory, which its administrator has made.
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(()),
        other => remove(directory, other),
    }
}

/// Accepts the removal of a file that does not exist.
fn remove(path: &Path, removed: std::io::Result<()>) -> anyhow::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("removing {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::{MsFlags, mount};

    use super::*;

    #[test]
    fn mounts_below_a_directory_do_not_keep_it() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("a state\\040").join("pods");
        let [pin, other] = [pods.join("0123/ns"), dir.path().join("other")];
        for place in [&pin, &pin, &other] {
            std::fs::create_dir_all(place).unwrap();
            mount(Some("pin"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        unmount_below(&pods).unwrap();
        std::fs::remove_dir_all(&pods).unwrap();
        assert_eq!(std::fs::remove_dir(&other).unwrap_err().kind(), ErrorKind::ResourceBusy);
        umount2(&other, MntFlags::MNT_DETACH).unwrap();
    }

    #[test]
    fn what_belongs_to_others_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("network/leases")).unwrap();
        std::fs::write(root.join("lock"), "").unwrap();
        std::fs::write(root.join("letter"), "").unwrap();
        for _ in 0..2 {
            remove_entries(&root, &["network", "lock", "missing"]).unwrap();
            remove_empty(&root).unwrap();
        }
        let left: Vec<_> =
            std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["letter"]);
        std::fs::remove_file(root.join("letter")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        remove_empty(&link).unwrap();
        assert!(link.exists());
        remove_empty(&root).unwrap();
        remove_empty(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn what_cannot_be_removed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = remove_entries(dir.path(), &["no\0name"]).unwrap_err();
        assert!(error.to_string().contains("name"), "{error}");
    }

    #[tokio::test]
    async fn a_daemon_that_serves_is_not_cleaned_under() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { socket: dir.path().join("s"), ..Config::default() };
        let _daemon = std::os::unix::net::UnixListener::bind(&config.socket).unwrap();
        let refused = clean(&config, &Arguments { force: true, images: true }).await.unwrap_err();
        assert!(refused.to_string().contains("stop it first"), "{refused}");
    }
}
