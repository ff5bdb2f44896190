//! What only one wharfd may have at a time, besides the store of images: the pods of its state directory, and the
//! network of a network namespace. Another one would take what belongs to the first one's pods for what a crash has
//! left, and remove it.
//!
//! The kernel releases a claim when its process ends, however it ends. One that was killed and waits for a disk does
//! not end: only a clean by force passes over its claims. And the file of the claim to a network still says whose it
//! was: as long as there are pods in that state directory, a wharfd with another one does not take it over.
#![expect(clippy::disallowed_methods, reason = "no task exists yet, or nobody else waits")]

use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use wharf_state::Layout;
use wharf_types::PodId;

mod socket;

use socket::Socket;

use crate::killed::Killed;

/// Where the claims to networks are: only root may write there, so that nobody else can keep wharfd from its network.
const RUN: &str = "/run";
/// The longest text in the file of a claim, in bytes.
const TEXT_LIMIT_BYTES: u64 = 4096;
/// A FIFO in the place of that file is not waited for: it has no text.
const WITHOUT_WAITING: i32 = OFlag::O_NONBLOCK.bits();
/// What precedes the state directory in that text.
const STATE: &str = ", state ";

/// The claims of this process.
#[derive(Debug)]
pub(crate) struct Claims {
    _pods: File,
    network: Option<Network>,
    pub(crate) of_killed: OfKilled,
}

/// The claim to the network of this process's network namespace.
#[derive(Debug)]
struct Network {
    /// The file that says whose it is, and its path.
    file: Option<(PathBuf, File)>,
    socket: Socket,
}

/// What becomes of the claims of a wharfd that was killed and does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OfKilled {
    Respected,
    PassedOver,
}

/// Why there is no claim.
#[derive(Debug)]
pub(crate) enum Unclaimed {
    /// Somebody else has it.
    Taken(anyhow::Error),
    /// Waiting would not help.
    Refused(anyhow::Error),
    Failed(anyhow::Error),
}

impl From<Unclaimed> for anyhow::Error {
    fn from(unclaimed: Unclaimed) -> Self {
        let (Unclaimed::Taken(error) | Unclaimed::Refused(error) | Unclaimed::Failed(error)) = unclaimed;
        error
    }
}

impl Claims {
    /// Claims the pods of a state directory, and the network of this process's network namespace. A machine on which
    /// the latter cannot be written down has nobody's claim either, and must not be without its runtime for that.
    pub(crate) fn make(layout: &Layout, of_killed: OfKilled) -> Result<Self, Unclaimed> {
        // Who is refused makes nothing.
        check_network(Path::new(RUN), layout.state())?;
        let pods = pods(layout, of_killed)?;
        let network = match network(Path::new(RUN), layout.state(), of_killed) {
            Ok(network) => Some(network),
            Err(others @ (Unclaimed::Taken(_) | Unclaimed::Refused(_))) => return Err(others),
            Err(Unclaimed::Failed(error)) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot claim this machine's network: do not start another wharfd beside this one"
                );
                None
            }
        };
        Ok(Self { _pods: pods, network, of_killed })
    }

    /// Keeps them until this process ends: what it has begun on other threads goes on until then.
    pub(crate) fn keep(self) -> &'static Self {
        static KEPT: OnceLock<Claims> = OnceLock::new();
        KEPT.get_or_init(|| self)
    }

    /// Those of a test, which must not have the machine's network.
    #[cfg(test)]
    pub(crate) fn to_pods(layout: &Layout) -> anyhow::Result<Self> {
        let of_killed = OfKilled::Respected;
        Ok(Self { _pods: pods(layout, of_killed)?, network: None, of_killed })
    }

    /// Lets others find out who has the network, as long as this process lives.
    pub(crate) async fn show(&self) {
        let Some(Network { socket, .. }) = &self.network else { return };
        if let Err(error) = socket.clear_queue().await {
            tracing::debug!(%error, "nobody is shown by a socket who has this machine's network");
        }
    }

    /// Removes the file that says whose the network is.
    pub(crate) fn withdraw(&self) -> anyhow::Result<()> {
        let Some(Network { file: Some((path, _)), .. }) = &self.network else { return Ok(()) };
        std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
    }
}

/// Finds what would keep a wharfd from claiming these directories and this network. Nothing is changed, and a wharfd
/// that has the same ones is no obstacle, because it ends before the next one starts.
pub(crate) fn check(layout: &Layout) -> anyhow::Result<()> {
    check_own(layout)?;
    Ok(check_network(Path::new(RUN), layout.state())?)
}

/// Finds whose the network is, if it belongs to another state directory.
fn check_network(run: &Path, state: &Path) -> Result<(), Unclaimed> {
    let open = |path| OpenOptions::new().read(true).custom_flags(WITHOUT_WAITING).open(path);
    let Ok(file) = network_file(run).and_then(open) else { return Ok(()) };
    let other = text_in(&file);
    let Some(left) = state_in(&other).filter(|left| *left != state) else { return Ok(()) };
    let pods = identity(left);
    if pods.is_some() && pods == identity(state) {
        return Ok(());
    }
    if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return Err(taken(&file, || has_network(&other)));
    }
    check_left(left, state)
}

/// Refuses a state directory in which somebody else has pods, such as a kubelet's: what is there would be taken for
/// what wharf's have left.
fn check_own(layout: &Layout) -> anyhow::Result<()> {
    let directory = layout.pods();
    let shown = directory.display();
    let unread = || unusable(layout, "cannot be read");
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(unread)?,
    };
    for entry in entries {
        let name = entry.with_context(unread)?.file_name();
        ensure!(
            name == "lost+found" || name.to_str().is_some_and(|name| name.parse::<PodId>().is_ok()),
            "state: {shown} has {name:?} in it, which is not wharf's: give wharf a `state` of its own, which may be a \
             directory in this one"
        );
    }
    Ok(())
}

/// That nothing says what pods there are, and what to do about it.
pub(crate) fn unusable(layout: &Layout, how: &str) -> String {
    format!(
        "state: {}, which says what pods there are, {how}: check its disk, and see the kernel's log (dmesg); if it has \
         failed, a restart of the machine ends the pods",
        layout.pods().display()
    )
}

/// The directory of pods itself is locked: a full disk has no room for one more file.
fn pods(layout: &Layout, of_killed: OfKilled) -> Result<File, Unclaimed> {
    check_own(layout).map_err(Unclaimed::Failed)?;
    let path = layout.pods();
    let open = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        File::open(&path)
    };
    let file = open().with_context(|| format!("opening {}", path.display())).map_err(Unclaimed::Failed)?;
    let state = layout.state().display();
    lock(&file, of_killed, || {
        format!(
            "another wharfd{} has the pods of {state}: stop that one first, or give this one a `state` of its own",
            holder(&path)
        )
    })?;
    Ok(file)
}

/// The name of the file is that of the network namespace.
fn network(run: &Path, state: &Path, of_killed: OfKilled) -> Result<Network, Unclaimed> {
    // Before the file: the kernel closes a process's descriptors in order, so who gets the lock can have the socket.
    let socket = Socket::new().context("opening a socket").map_err(Unclaimed::Failed)?;
    let open = || {
        let path = network_file(run)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(WITHOUT_WAITING).open(&path)?;
        std::io::Result::Ok((path, file))
    };
    let (path, file) = match open() {
        Ok(opened) => opened,
        Err(error) => {
            // Whoever has it may be about to end, as with the lock.
            socket.claim().map_err(|unclaimed| Unclaimed::Taken(unclaimed.into()))?;
            tracing::warn!(
                %error,
                "cannot write down in {} who owns this machine's network: do not start a wharfd with another `state`",
                run.display()
            );
            return Ok(Network { file: None, socket });
        }
    };
    let other = text_in(&file);
    lock(&file, of_killed, || has_network(&other))?;
    if let Some(left) = state_in(&other) {
        check_left(left, state)?;
    }
    socket.claim()?;
    let own = format!("pid {}{STATE}{}\n", std::process::id(), state.display());
    let written = file.set_len(0).and_then(|()| file.write_all_at(own.as_bytes(), 0));
    if let Err(error) = written {
        tracing::debug!(%error, "nobody is told who has this machine's network");
    }
    Ok(Network { file: Some((path, file)), socket })
}

/// The text of a claim's file.
fn text_in(file: &File) -> String {
    let mut text = String::new();
    let read = file.take(TEXT_LIMIT_BYTES).read_to_string(&mut text);
    read.map_or_else(|_no_text| String::new(), |_bytes| text.trim().to_owned())
}

/// The state directory in that text.
fn state_in(text: &str) -> Option<&Path> {
    text.split_once(STATE).map(|(_pid, left)| Path::new(left))
}

fn has_network(other: &str) -> String {
    format!(
        "another wharfd ({other}) has the network of this machine: stop that one first, or run this one in a network \
         namespace of its own"
    )
}

/// Refuses the network as long as it belongs to the pods in another state directory.
fn check_left(left: &Path, state: &Path) -> Result<(), Unclaimed> {
    if !has_other_pods(left, state) {
        return Ok(());
    }
    Err(Unclaimed::Refused(anyhow::anyhow!(
        "this machine's network belongs to the pods in {}: set `state` to that again, or run `wharfd clean` with that \
         configuration first",
        left.display()
    )))
}

/// The file that says whose the network of this process's network namespace is.
fn network_file(run: &Path) -> std::io::Result<PathBuf> {
    let namespace = std::fs::metadata("/proc/self/ns/net")?.ino();
    Ok(run.join(format!("wharf-network-{namespace}.lock")))
}

/// Whether it is written down whose the network of this process's network namespace is.
pub(crate) fn is_network_claimed() -> bool {
    network_file(Path::new(RUN)).is_ok_and(|file| file.exists())
}

/// Which process has the lock on a file, for people, if the kernel shows it here.
pub(crate) fn holder(file: &Path) -> String {
    let pid = std::fs::metadata(file).ok().and_then(|data| pid_of_holder(&data));
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// Whoever has the lock on a file, if it was killed and does not end.
pub(crate) fn killed_holder(file: &Path) -> Option<Killed> {
    killed_holder_of(std::fs::metadata(file))
}

fn killed_holder_of(file: std::io::Result<Metadata>) -> Option<Killed> {
    pid_of_holder(&file.ok()?).and_then(Killed::find)
}

fn pid_of_holder(data: &Metadata) -> Option<i32> {
    let table = wharf_sys::fs::kernel_text("/proc/locks").ok()?;
    let (device, inode) = (data.dev(), data.ino());
    let place = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    table.lines().find_map(|line| match line.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        [_number, "FLOCK", _kind, _access, pid, found, ..] if found == place => pid.parse().ok(),
        _ => None,
    })
}

/// Whether there are pods in a state directory, and it is not the own one under another path.
fn has_other_pods(left: &Path, own: &Path) -> bool {
    let has_pods = std::fs::read_dir(pods_in(left)).is_ok_and(|mut entries| entries.next().is_some());
    has_pods && identity(left) != identity(own)
}

fn pods_in(state: &Path) -> PathBuf {
    Layout::new(state.to_owned(), PathBuf::new()).pods()
}

/// The directory of the pods of a state directory, whatever it is called.
fn identity(state: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(pods_in(state)).map(|data| (data.dev(), data.ino())).ok()
}

fn lock(file: &File, of_killed: OfKilled, words: impl Fn() -> String) -> Result<(), Unclaimed> {
    match file.try_lock() {
        Err(TryLockError::Error(error)) => {
            Err(Unclaimed::Failed(anyhow::Error::new(error).context("locking a file")))
        }
        Err(TryLockError::WouldBlock) => match taken(file, words) {
            Unclaimed::Taken(error) if of_killed == OfKilled::PassedOver && error.is::<Killed>() => Ok(()),
            unclaimed => Err(unclaimed),
        },
        Ok(()) => Ok(()),
    }
}

/// Somebody else has the lock on a file: these words say who, unless it was killed and does not end.
fn taken(file: &File, words: impl Fn() -> String) -> Unclaimed {
    let killed = killed_holder_of(file.metadata());
    Unclaimed::Taken(killed.map_or_else(|| anyhow::Error::msg(words()), anyhow::Error::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The claims as a daemon makes them.
    fn pods(layout: &Layout) -> Result<File, Unclaimed> {
        super::pods(layout, OfKilled::Respected)
    }

    fn network(run: &Path, state: &Path) -> Result<Network, Unclaimed> {
        super::network(run, state, OfKilled::Respected)
    }

    fn taken<T: std::fmt::Debug>(claim: Result<T, Unclaimed>) -> String {
        match claim {
            Err(Unclaimed::Taken(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_state_directory_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("state"), dir.path().join("root"));
        let first = pods(&layout).unwrap();
        let words = format!("another wharfd (pid {}) has the pods of ", std::process::id());
        assert!(taken(pods(&layout)).starts_with(&words));
        drop(first);
        pods(&layout).unwrap();
    }

    #[test]
    fn a_network_namespace_has_one_daemon_and_the_other_is_told_which() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let first = network(dir.path(), Path::new("/run/first")).unwrap();
        for refused in [
            network(dir.path(), Path::new("/run/second")).map(drop),
            check_network(dir.path(), Path::new("/2")),
        ] {
            let refused = taken(refused);
            assert!(refused.contains("state /run/first"), "{refused}");
        }
        check_network(dir.path(), Path::new("/run/first")).unwrap();
        drop(first);
        let second = network(dir.path(), Path::new("/2")).unwrap();
        let refused = taken(network(dir.path(), Path::new("/run/first")));
        assert!(refused.contains("state /2)"), "{refused}");
        let layout = Layout::new(dir.path().join("state"), dir.path().join("root"));
        let of_killed = OfKilled::Respected;
        Claims { _pods: pods(&layout).unwrap(), network: Some(second), of_killed }.withdraw().unwrap();
        let left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["state"]);
    }

    #[test]
    fn a_network_is_not_taken_from_the_pods_of_another_state_directory() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let [state, wrong, run] = ["state", "wrong", "run"].map(|name| dir.path().join(name));
        std::fs::create_dir(&run).unwrap();
        let claim = |state: &Path| network(&run, state);
        drop(claim(&state).unwrap());
        drop(claim(&wrong).unwrap());
        drop(claim(&state).unwrap());
        std::fs::create_dir_all(state.join("pods/0123")).unwrap();
        for refused in [claim(&wrong).map(drop), check_network(&run, &wrong)] {
            match refused {
                Err(Unclaimed::Refused(error)) => {
                    let words = format!("belongs to the pods in {}: set `state` to that", state.display());
                    assert!(error.to_string().contains(&words), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        check_network(&run, &state).unwrap();
        std::os::unix::fs::symlink(&state, &wrong).unwrap();
        check_network(&run, &wrong).unwrap();
        drop(claim(&wrong).unwrap());
        std::fs::remove_file(&wrong).unwrap();
        drop(claim(&state).unwrap());
        std::fs::remove_dir_all(&state).unwrap();
        drop(claim(&wrong).unwrap());
    }

    #[test]
    fn a_fifo_in_place_of_a_claims_file_is_not_waited_for() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let dir = tempfile::tempdir().unwrap();
        // The namespace is this thread's, and a process's is that of its first thread.
        let fifo = network_file(dir.path()).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            check_network(dir.path(), Path::new("/s")).unwrap();
            tell.send(network(dir.path(), Path::new("/s")).is_ok())
        });
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok(true));
    }

    #[test]
    fn a_claim_that_cannot_be_written_down_is_a_claim() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let (nowhere, dir) = (Path::new("/proc/nowhere"), tempfile::tempdir().unwrap());
        let first = network(nowhere, Path::new("/s")).unwrap();
        let words = format!("another wharfd (pid {}", std::process::id());
        assert!(taken(network(nowhere, Path::new("/s"))).starts_with(&words));
        let refused = anyhow::Error::from(network(dir.path(), Path::new("/s")).unwrap_err());
        assert!(refused.to_string().starts_with(&words), "{refused}");
        drop(first);
        network(nowhere, Path::new("/s")).unwrap();
    }

    #[test]
    fn a_state_directory_in_which_others_have_pods_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("kubelet"), dir.path().join("root"));
        check_own(&layout).unwrap();
        let own = "0123456789abcdef".repeat(4);
        for (name, is_ours) in
            [(own.as_str(), true), ("lost+found", true), ("3e1f0c3a-6b1e-4f5e-9d8c-1c1d0a0f7b3a", false)]
        {
            let path = layout.pods().join(name);
            std::fs::create_dir_all(&path).unwrap();
            let claimed = pods(&layout);
            assert_eq!(claimed.is_ok(), is_ours, "{}", path.display());
            if let Err(unclaimed) = claimed {
                let refused = anyhow::Error::from(unclaimed).to_string();
                assert!(refused.starts_with("state: ") && path.is_dir(), "{refused}");
                std::fs::remove_dir(path).unwrap();
            }
        }
    }

    #[test]
    fn a_state_directory_that_cannot_be_read_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned(), dir.path().join("root"));
        std::fs::write(layout.pods(), "no directory").unwrap();
        let refused = check_own(&layout).unwrap_err().to_string();
        assert!(refused.starts_with("state: ") && refused.contains("a restart of the machine"), "{refused}");
    }
}
