//! `wharfd clean`: restores the machine to its state before wharf.
//!
//! It takes over pods and removes them as the daemon would, so that what they left in the kernel is removed as well.
//! Then it removes the network, the cgroups and the files, as far as it can. Images stay unless `--images` is given.
//! Logs stay, and so does IP forwarding, because other programs may rely on it by now. A machine without anything of
//! wharf is left as it is.
#![expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]

use std::collections::{BTreeSet, HashSet};
use std::fs::DirBuilder;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use nix::mount::{MntFlags, umount2};
use wharf_cgroup::{CgroupPath, Cgroups, Driver, Placement};
use wharf_images::StoreError;
use wharf_state::Layout;
use wharf_state::records::ids;
use wharf_types::{ContainerId, Failure, PodId, chain};

use crate::Node;
use crate::claims::{Claims, OfKilled, is_network_claimed, unusable};
use crate::config::Config;
use crate::killed::Killed;
use crate::listener::{Listener, program};
use crate::slow::responds;

mod logs;

/// The directory in the state directory that takes the place of a data root that cannot be used.
const IN_PLACE_OF_ROOT: &str = "in-place-of-root";
/// A file system in memory that every machine has.
const SHARED_MEMORY: &str = "/dev/shm";
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

/// What could not be removed. The rest is removed all the same.
#[derive(Debug, Default)]
struct Left(Vec<String>);

impl Left {
    fn note(&mut self, step: anyhow::Result<()>) {
        self.0.extend(step.err().map(|error| format!("{error:#}")));
    }
}

/// Removes everything; a second call finds nothing to remove.
pub(crate) async fn clean(config: &Config, mut arguments: Arguments) -> anyhow::Result<()> {
    let layout = Layout::new(config.state.clone(), config.root.clone());
    ensure!(responds(&config.state), unusable(&layout, "does not respond"));
    check_unserved(config)?;
    let root = if responds(&config.root) { Root::Responds } else { Root::IsSilent };
    if root == Root::Responds && !is_anything_left(config)? {
        tell("there is nothing of wharf on this machine to remove\n")?;
        return logs::clean();
    }
    // A store that this call itself makes goes with it.
    arguments.images |= root == Root::Responds && !has_store(&config.root);
    let (mut partly, mut left) = (Vec::new(), Left::default());
    let node = open(config, root, &mut arguments, &mut left).await?;
    let arguments = &arguments;
    // First, because recovery forgets containers whose records it cannot use.
    let containers = containers(&node.layout).context("listing the containers")?;
    node.engine.recover().await.context("cannot take over the pods")?;
    node.engine.tidy().await;
    let unlisted = unlisted(&node)?;
    let pods = node.engine.pods();
    let running = pods.iter().filter(|pod| pod.is_ready()).map(|pod| name(pod));
    let running: Vec<_> = running.chain(unlisted.iter().map(shown)).collect();
    if !running.is_empty() && !arguments.force {
        bail!(
            "pods are running: {}; stop them (wharf stop, with the release that made them), or use --force, which ends \
             them with their containers",
            running.join(", ")
        );
    }
    for pod in &unlisted {
        let ended = node.engine.program().end_with_containers(&node.layout.pods(), pod);
        left.note(ended.with_context(|| format!("ending the pod {}", pod.short())));
        partly.push(shown(pod));
    }
    for pod in &pods {
        match node.engine.remove_pod(pod.id().as_str()).await {
            // Its processes and files go with those of all others.
            Err(error) if arguments.force => partly.push(format!("{}: {}", name(pod), chain(&error))),
            removed => removed.with_context(|| format!("removing the pod {}", name(pod)))?,
        }
    }
    let ended = node.engine.program().end_containers(&containers);
    left.note(ended.context("ending containers that no pod knows of"));
    let (network, cgroups, placement) =
        (Arc::clone(&node.network), node.cgroups.clone(), config.placement()?);
    let [demolished, removed] = tokio::task::spawn_blocking(move || {
        network.reconcile(&HashSet::new());
        let demolished = network.demolish().context("removing the built-in network");
        [demolished, remove_cgroups(&cgroups, &placement)]
    })
    .await?;
    left.note(demolished);
    left.note(removed);
    remove_files(&node, config, arguments, &mut left);
    left.note(node.claims.withdraw());
    let reported = report(&partly, &left);
    // Last, because wharf needs no disk of logs: if it does not respond, everything else is done.
    match (reported, logs::clean()) {
        (Err(reported), Err(told)) => bail!("{reported:#}\n  {told:#}"),
        (reported, told) => reported.and(told),
    }
}

/// Refuses to clean under a wharfd that serves.
fn check_unserved(config: &Config) -> anyhow::Result<()> {
    for (_, socket) in config.sockets() {
        // Who serves one of `extra_sockets` cannot always be told, and is another runtime more likely than not: what
        // only one wharfd may have is claimed later.
        let is_in_use = |listener: &Listener| socket == config.socket || listener.is_wharfd();
        if let Some(listener) = Listener::at(socket)?.filter(is_in_use) {
            bail!("{listener} is serving {}: stop it first", socket.display());
        }
    }
    Ok(())
}

/// The data root, as far as it is known before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Responds,
    /// Whatever is done there is waited for in vain.
    IsSilent,
}

/// Opens what is there of wharf's. Pods can be ended without the data root, as on a disk that has failed: by force, an
/// empty directory takes its place.
async fn open(
    config: &Config,
    root: Root,
    arguments: &mut Arguments,
    left: &mut Left,
) -> anyhow::Result<Node> {
    let mut config = config.clone();
    // Nothing is labelled, so that the policy need not have anything for containers.
    config.containers.selinux = false;
    let (error, claims) = match root {
        Root::IsSilent => (anyhow!("it does not respond: check its disk, or the server that it is on"), None),
        Root::Responds => {
            let claims = claim(&config, arguments).await?;
            match Node::open(&config, claims).await {
                Err(error) => (error, Some(claims)),
                opened => return opened,
            }
        }
    };
    if let Some(StoreError::Foreign { .. } | StoreError::InUse { .. }) = error.downcast_ref() {
        return Err(error);
    }
    let killed = error.downcast_ref::<Killed>().copied();
    let unusable = format!("the data root {}, which cannot be used", config.root.display());
    if !arguments.force {
        let is_of_root = root == Root::IsSilent || killed.is_some() || error.is::<StoreError>();
        let advice = match root {
            Root::IsSilent => {
                "wait until its disk responds, or use --force, which removes the rest without the data root"
            }
            Root::Responds => "only --force removes the rest without the data root",
        };
        return Err(if is_of_root { error.context(unusable).context(advice) } else { error });
    }
    arguments.images = true;
    match open_without_root(config, arguments, claims, left).await {
        Err(problem) => Err(error.context(unusable).context(format!("{problem:#}"))),
        opened => {
            // Its pods are ended without it.
            let told = killed.map_or(error, |killed| anyhow!(killed.words()));
            left.note(Err(told.context(unusable)));
            opened
        }
    }
}

/// Claims what there is of wharf's. By force, what a wharfd has that was killed and does not end is taken over.
async fn claim(config: &Config, arguments: &Arguments) -> anyhow::Result<&'static Claims> {
    Node::claim(config, if arguments.force { OfKilled::PassedOver } else { OfKilled::Respected }).await
}

/// Opens the rest, with an empty directory in place of the data root: in the state directory, or where there may be
/// room if there is none.
async fn open_without_root(
    mut config: Config,
    arguments: &Arguments,
    mut claims: Option<&'static Claims>,
    left: &mut Left,
) -> anyhow::Result<Node> {
    let in_state = config.state.join(IN_PLACE_OF_ROOT);
    // What a call that was interrupted has left.
    left.note(remove(&in_state, std::fs::remove_dir_all(&in_state)));
    let elsewhere = format!("{SHARED_MEMORY}/wharf-{IN_PLACE_OF_ROOT}-{}", std::process::id());
    let mut problems = Vec::new();
    for place in [in_state, elsewhere.into()] {
        config.root.clone_from(&place);
        let claimed = match claims {
            Some(claims) => claims,
            None => *claims.insert(claim(&config, arguments).await?),
        };
        if let Err(error) = make_private(&place) {
            problems.push(format!("making {}: {error}", place.display()));
            continue;
        }
        match Node::open(&config, claimed).await {
            Err(error) => problems.push(format!("{error:#}")),
            opened => return opened,
        }
        left.note(remove(&place, std::fs::remove_dir_all(&place)));
    }
    bail!("nothing can take the place of the data root ({})", problems.join("; "))
}

/// Makes a directory that nobody else can have made, or can enter.
fn make_private(directory: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)
}

/// Whether anything of wharf is on this machine. Whatever it made in the kernel's network, it had claimed that before.
fn is_anything_left(config: &Config) -> anyhow::Result<bool> {
    let pods = Layout::new(config.state.clone(), config.root.clone()).pods();
    let is_there = |path: &Path| path.symlink_metadata().is_ok();
    if has_store(&config.root) || is_there(&pods) || is_network_claimed() {
        return Ok(true);
    }
    for (_, socket) in config.sockets().filter(|(_, socket)| is_there(socket)) {
        if Listener::at(socket)?.is_none() {
            return Ok(true);
        }
    }
    let (cgroups, placement) = (config.cgroups()?, config.placement()?);
    let has_cgroup = parents(&cgroups, &placement)?.any(|path| cgroups.open(&path).is_ok());
    // Last, because their disk may be another one, and may not respond.
    Ok(has_cgroup || logs::are_any_unused())
}

/// Whether a data root has been wharf's, as far as it can be read.
fn has_store(root: &Path) -> bool {
    let [.., lock] = &wharf_images::Store::ENTRIES;
    let found = root.join(lock).symlink_metadata();
    !found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// The containers that have a record or a writable layer.
fn containers(layout: &Layout) -> anyhow::Result<HashSet<ContainerId>> {
    let mut all: HashSet<_> = ids(&layout.snapshots())?.into_iter().collect();
    for pod in ids(&layout.pods())? {
        all.extend(ids::<ContainerId>(&layout.container_records(&pod))?);
    }
    Ok(all)
}

/// The pods that are not listed and may run: their records cannot be read, or not by this release, or their directory
/// is elsewhere.
fn unlisted(node: &Node) -> anyhow::Result<BTreeSet<PodId>> {
    let mut unlisted: BTreeSet<_> = node.engine.owners().into_iter().collect();
    unlisted.extend(node.engine.program().supervised(&node.layout.pods())?);
    for pod in node.engine.pods() {
        unlisted.remove(pod.id());
    }
    Ok(unlisted)
}

/// A pod of which only the id is known.
fn shown(pod: &PodId) -> String {
    format!("{} (its records cannot be used: wharfd's log says why)", pod.short())
}

fn remove_files(node: &Node, config: &Config, arguments: &Arguments, left: &mut Left) {
    let (root, state, pods) = (node.layout.root(), node.layout.state(), node.layout.pods());
    remove_root(root, arguments, left);
    left.note(unmount_below(&pods));
    match ids::<PodId>(&pods) {
        Ok(ids) => remove_entries(&pods, ids.iter().map(PodId::as_str), left),
        Err(error) => left.note(Err(error).context("listing the pods")),
    }
    left.note(remove_empty(&pods));
    remove_entries(state, ["leases", "quarantine", IN_PLACE_OF_ROOT], left);
    // One of `extra_sockets`, and that for plugins, may be another runtime's by now.
    let for_plugins =
        config.nri.settings().filter(|settings| settings.external).map(|settings| settings.socket);
    for socket in config.sockets().map(|(_, socket)| socket).chain(for_plugins.as_deref()) {
        match Listener::at(socket) {
            Ok(None) => left.note(remove(socket, wharf_sys::socket::remove(socket))),
            Ok(Some(_others)) => continue,
            Err(error) => left.note(Err(error).with_context(|| format!("removing {}", socket.display()))),
        }
        left.note(remove_empty(socket.parent().unwrap_or(root)));
    }
    for directory in [root, state] {
        left.note(remove_empty(directory));
    }
}

/// Removes wharf's entries in the data root. As long as any is left, so is the lock, by which wharf knows its
/// directory.
fn remove_root(root: &Path, Arguments { images, .. }: &Arguments, left: &mut Left) {
    let [of_store @ .., lock] = &wharf_images::Store::ENTRIES;
    let (mut entries, before) = (vec!["network", "snapshots"], left.0.len());
    entries.extend(of_store.iter().filter(|_| *images));
    remove_entries(root, entries, left);
    if *images && left.0.len() == before {
        remove_entries(root, [lock], left);
    }
}

fn report(partly: &[String], Left(left): &Left) -> anyhow::Result<()> {
    let mut result = String::new();
    if left.is_empty() {
        result += "removed everything that wharf left on this machine\n";
    }
    if !partly.is_empty() {
        result += "\nother programs, such as CNI plugins, may have left something of these pods:\n  ";
        result = result + &partly.join("\n  ") + "\n";
    }
    tell(&result)?;
    ensure!(left.is_empty(), "everything else is removed, but this is left:\n  {}", left.join("\n  "));
    Ok(())
}

fn tell(result: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(result.as_bytes()).context("writing the result")
}

/// Detaches the mounts below pods' directories: namespaces that are pinned there for plugins.
fn unmount_below(pods: &Path) -> anyhow::Result<()> {
    const MOUNTS: &str = "/proc/thread-self/mountinfo";
    let mounts = std::fs::read(MOUNTS).with_context(|| format!("reading {MOUNTS}"))?;
    let points =
        mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let mut points: Vec<PathBuf> = points.map(wharf_sys::mount::unescaped).collect();
    points.retain(|point| is_in_a_pod(point, pods));
    // The last mount of several at one place is the uppermost.
    points.iter().rev().try_for_each(|point| {
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("unmounting {}", point.display()))
    })
}

fn is_in_a_pod(path: &Path, pods: &Path) -> bool {
    let pod = path.strip_prefix(pods).ok().and_then(|below| below.iter().next()?.to_str());
    pod.is_some_and(|name| name.parse::<PodId>().is_ok())
}

fn name(pod: &wharf_pods::Pod) -> String {
    pod.config().metadata.clone().unwrap_or_default().name
}

/// Removes the cgroups of the supervisors, and then everything else below the parents.
fn remove_cgroups(cgroups: &Cgroups, placement: &Placement) -> anyhow::Result<()> {
    parents(cgroups, placement)?.try_for_each(|path| remove_cgroup(cgroups, &path))
}

/// The cgroups that are wharf's to remove, in this order; they need not exist. Which of the last ones are is found out
/// once the first ones have been dealt with.
fn parents(cgroups: &Cgroups, placement: &Placement) -> anyhow::Result<impl Iterator<Item = CgroupPath>> {
    let both = |placement: &Placement| {
        anyhow::Ok([placement.supervisors().context("cgroup_parent")?, placement.parent().clone()])
    };
    // An earlier configuration may have had the default. Another wharfd's is not empty as long as it has pods.
    let default = Placement::new(Driver::Cgroupfs, Placement::default_parent(Driver::Cgroupfs));
    let is_empty = |path: &CgroupPath| {
        cgroups.open(path).is_ok_and(|cgroup| cgroup.pids_in_all().is_ok_and(|pids| pids.is_empty()))
    };
    let default = both(&default.context("cgroup_parent")?)?.into_iter().filter(is_empty);
    Ok(both(placement)?.into_iter().chain(default))
}

fn remove_cgroup(cgroups: &Cgroups, path: &CgroupPath) -> anyhow::Result<()> {
    let cgroup = match cgroups.open(path) {
        Err(error) if error.kind() == wharf_types::ErrorKind::NotFound => return Ok(()),
        opened => opened.with_context(|| format!("opening the cgroup {path}"))?,
    };
    cgroup.remove_unused(PATIENCE).with_context(|| {
        let pids = cgroup.pids_in_all().unwrap_or_default();
        let of_whom =
            if pids.is_empty() { String::new() } else { format!(", in which there are {}", people(&pids)) };
        format!("removing the cgroup {path}{of_whom}")
    })
}

/// Some of these processes, for people.
fn people(pids: &[i32]) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<String> =
        pids.iter().take(SHOWN).map(|pid| format!("{pid} ({})", program(*pid))).collect();
    let more = pids.len().saturating_sub(SHOWN);
    shown.extend((more > 0).then(|| format!("{more} more")));
    shown.join(", ")
}

/// Removes wharf's entries in a directory. Other entries stay, because the directory might be shared by mistake.
fn remove_entries(directory: &Path, names: impl IntoIterator<Item = impl AsRef<Path>>, left: &mut Left) {
    for name in names {
        let path = directory.join(name);
        let removed = match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() == ErrorKind::NotADirectory => std::fs::remove_file(&path),
            other => other,
        };
        left.note(remove(&path, removed));
    }
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
        let own = pods.join("0123456789abcdef".repeat(4));
        let [pin, other, foreign] = [own.join("ns"), dir.path().join("other"), pods.join("0123/volume")];
        for place in [&pin, &pin, &other, &foreign] {
            std::fs::create_dir_all(place).unwrap();
            mount(Some("pin"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        unmount_below(&pods).unwrap();
        std::fs::remove_dir_all(&own).unwrap();
        for others in [other, foreign] {
            assert_eq!(std::fs::remove_dir(&others).unwrap_err().kind(), ErrorKind::ResourceBusy);
            umount2(&others, MntFlags::MNT_DETACH).unwrap();
        }
    }

    #[test]
    fn what_belongs_to_others_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("network/leases")).unwrap();
        std::fs::write(root.join("lock"), "").unwrap();
        std::fs::write(root.join("letter"), "").unwrap();
        let mut left = Left::default();
        for _ in 0..2 {
            remove_entries(&root, ["network", "lock", "missing"], &mut left);
            remove_empty(&root).unwrap();
        }
        report(&[], &left).unwrap();
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
    fn what_cannot_be_removed_is_named_and_keeps_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("last"), "").unwrap();
        let mut left = Left::default();
        remove_entries(dir.path(), ["no\0name", "missing", "last"], &mut left);
        assert!(!dir.path().join("last").exists());
        let error = report(&[], &left).unwrap_err().to_string();
        assert!(error.contains("this is left") && error.contains("name"), "{error}");
    }

    #[test]
    fn a_data_root_is_known_for_wharfs_until_nothing_is_left_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("snapshots")).unwrap();
        std::fs::create_dir(root.join("layers")).unwrap();
        std::fs::write(root.join("lock"), "").unwrap();
        let own = nix::sched::CloneFlags::CLONE_NEWNS;
        nix::sched::unshare(own).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let busy = root.join("snapshots");
        mount(Some("disk"), &busy, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let (mut left, all) = (Left::default(), Arguments { force: true, images: true });
        remove_root(&root, &all, &mut left);
        assert_eq!(left.0.len(), 1, "{left:?}");
        assert!(root.join("lock").exists() && !root.join("layers").exists());
        wharf_images::Store::check(&root).unwrap();
        umount2(&busy, MntFlags::MNT_DETACH).unwrap();
        remove_root(&root, &all, &mut left);
        remove_empty(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn processes_of_others_are_named() {
        let own = i32::try_from(std::process::id()).unwrap();
        let shown = people(&[own; 7]);
        assert!(shown.starts_with(&format!("{own} (")) && shown.ends_with("), 2 more"), "{shown}");
    }

    /// A state directory without room, with what pods have in it.
    fn full(dir: &Path) -> Config {
        let of_thread = nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_NEWNET;
        nix::sched::unshare(of_thread).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let [root, state] = ["root", "state"].map(|name| dir.join(name));
        std::fs::create_dir(&state).unwrap();
        mount(Some("state"), &state, Some("tmpfs"), MsFlags::empty(), Some("nr_inodes=8")).unwrap();
        for kind in ["pods", "leases"] {
            std::fs::create_dir(state.join(kind)).unwrap();
        }
        let full = (0..8).map(|number| std::fs::create_dir(state.join(format!("filler-{number}"))));
        assert!(full.collect::<Vec<_>>().iter().any(Result::is_err), "it has no room");
        let socket = dir.join("s");
        let mut config = Config { root, state, supervisor: "/bin/true".into(), socket, ..Config::default() };
        config.nri.socket = dir.join("nri/nri.sock");
        config
    }

    #[tokio::test]
    async fn without_a_data_root_and_without_room_in_the_state_pods_can_be_ended_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let config = full(dir.path());
        let layout = Layout::new(config.state.clone(), config.root.clone());
        let claims = Claims::to_pods(&layout).unwrap().keep();
        let mut left = Left::default();
        let arguments = Arguments { force: true, images: true };
        let node = open_without_root(config.clone(), &arguments, Some(claims), &mut left).await.unwrap();
        assert!(node.layout.root().starts_with(SHARED_MEMORY), "{:?}", node.layout);
        let for_plugins = config.nri.socket.parent().unwrap();
        std::fs::create_dir(for_plugins).unwrap();
        // As a wharfd leaves it that was killed.
        drop(std::os::unix::net::UnixListener::bind(&config.nri.socket).unwrap());
        remove_files(&node, &config, &arguments, &mut left);
        assert!(left.0.is_empty() && !node.layout.root().exists() && !for_plugins.exists(), "{left:?}");
    }

    #[tokio::test]
    async fn a_daemon_that_serves_is_not_cleaned_under() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { socket: dir.path().join("s"), ..Config::default() };
        let _daemon = std::os::unix::net::UnixListener::bind(&config.socket).unwrap();
        let refused = clean(&config, Arguments { force: true, images: true }).await.unwrap_err();
        assert!(refused.to_string().contains("stop it first"), "{refused}");
    }
}
