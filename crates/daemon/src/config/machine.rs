//! The checks of a configuration that need the machine. They change nothing.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};
use wharf_images::Store;
use wharf_network::{Builtin, Mode};
use wharf_state::Layout;
use wharf_sys::fs::is_program;

use super::{Config, listening, pods};
use crate::claims;
use crate::listener::Listener;

impl Config {
    /// Finds what would keep wharfd from starting on this machine. Returns what it would start without.
    #[expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]
    pub(crate) fn check_machine(&self) -> anyhow::Result<Vec<String>> {
        let supervisor = self.supervisor()?;
        let shown = supervisor.display();
        let is_program = is_program(&supervisor).with_context(|| format!("supervisor: {shown}"))?;
        ensure!(is_program, "supervisor: {shown} is not a program that can be executed");
        if let Err(problem) = wharf_pods::check_supervisor(&supervisor) {
            bail!(
                "supervisor: {shown} {problem}: name a wharf-shim, or leave it out if one is beside wharfd"
            );
        }
        self.cgroups()?;
        wharf_pods::Labelled::look(&self.defaults()?)?;
        pods::check(self)?;
        let layout = Layout::new(self.state.clone(), self.root.clone());
        // The first start makes these.
        directory("root", &self.root.join("content"))?;
        Store::check(&self.root).context("root")?;
        directory("state", &layout.pods())?;
        claims::check(&layout)?;
        let nri = self.nri.enabled.then_some(("nri.socket", self.nri.socket.as_path()));
        for (key, path) in self.sockets().chain(nri) {
            let is_other = std::fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket());
            ensure!(!is_other, "{key}: {} exists and is not a socket", path.display());
        }
        let mut without = self.check_sockets()?;
        self.check_bridge()?;
        listening::check("streaming.address", self.streaming.address)?;
        if let Some(address) = self.metrics.address()? {
            listening::check("metrics.address", address)?;
        }
        let handlers = wharf_pods::Handlers::ask(self.handlers()?);
        let unusable: Vec<&str> = handlers.problems().collect();
        ensure!(unusable.is_empty(), "{}", unusable.join("; "));
        without.extend(handlers.remarks().map(str::to_owned));
        let files = self.registry_files();
        let problems = files.problems();
        ensure!(problems.is_empty(), "{}", problems.join("; "));
        without.extend(files.missing());
        self.registry().map(|_config| without)
    }

    /// No pod could be made in the built-in network otherwise.
    fn check_bridge(&self) -> anyhow::Result<()> {
        let network = &self.network;
        if network.builtin == Builtin::Off || network.mode != Mode::Bridge {
            return Ok(());
        }
        wharf_network::check_bridge(&network.bridge).context("network.bridge")
    }

    /// Each start makes new ones. Who holds one of `extra_sockets` keeps wharfd from that one alone.
    fn check_sockets(&self) -> anyhow::Result<Vec<String>> {
        let (mut seen, mut without) = (BTreeSet::new(), Vec::new());
        let of_pods = resolved(&Layout::new(self.state.clone(), self.root.clone()).pods());
        let root = resolved(&self.root);
        for (key, path) in self.sockets() {
            let parent = path.parent().unwrap_or(path);
            directory(key, parent)?;
            writable(key, parent)?;
            let (shown, place) = (path.display(), resolved(path));
            // Everything there is wharf's own, and what is not is put aside, or refused.
            for own in [&of_pods, &root] {
                ensure!(
                    !place.starts_with(own),
                    "{key}: it must not be in {}: choose another path",
                    own.display()
                );
            }
            ensure!(seen.insert(place), "{key}: {shown} leads to the same file as another socket");
            if let Some(other) = Listener::at(path)? {
                without.extend(self.check_free(key, path, &other)?);
            }
        }
        Ok(without)
    }

    /// Refuses the socket that somebody else serves, and warns of another one.
    fn check_free(&self, key: &str, path: &Path, other: &Listener) -> anyhow::Result<Option<String>> {
        if other.may_be_wharfd() {
            return Ok(None);
        }
        let shown = path.display();
        let held = format!("{key}: {other} is serving {shown}: stop that, or choose another path");
        ensure!(path != self.socket, held);
        Ok(Some(format!("{held}; wharfd starts without this socket")))
    }

    /// Finds a directory whose disk does not respond: whatever else is done there would wait for it, too.
    pub(crate) fn check_disks(&self, responds: impl Fn(&Path) -> bool) -> anyhow::Result<()> {
        let own = [("root", self.root.as_path()), ("state", &self.state)];
        let of_sockets = self.sockets().map(|(key, path)| (key, path.parent().unwrap_or(path)));
        let mut seen = BTreeSet::new();
        for (key, directory) in own.into_iter().chain(of_sockets) {
            ensure!(
                !seen.insert(directory) || responds(directory),
                "{key}: {} does not respond: check its disk, or the server that it is on",
                directory.display()
            );
        }
        Ok(())
    }

    /// Refuses a directory for one kind of files where everything is of the other kind, whatever it is called. Their
    /// disks may not respond: `look` does what is done on each.
    pub(crate) fn check_apart(
        &self,
        look: impl Fn(&Path, &dyn Fn() -> PathBuf) -> PathBuf,
    ) -> anyhow::Result<()> {
        let [root, state] = [&self.root, &self.state].map(|path| look(path, &|| resolved(path)));
        ensure!(
            !state.starts_with(&root),
            "state: it must be neither `root` nor in it: give each a directory of its own"
        );
        let pods = Layout::new(state, root.clone()).pods();
        ensure!(!root.starts_with(&pods), "root: it must not be in {}, where only pods are", pods.display());
        Ok(())
    }
}

/// A path without links and `..`, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|there| Some((there, there.canonicalize().ok()?)));
    let (there, mut resolved) = there.unwrap_or((Path::new(""), PathBuf::new()));
    for component in path.strip_prefix(there).unwrap_or(path).components() {
        match component {
            Component::ParentDir => {
                resolved.pop();
            }
            other => resolved.push(other),
        }
    }
    resolved
}

/// What is there of a path.
#[expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(path)
}

/// Checks that something can be made in a directory, or that it can be made.
fn writable(key: &str, path: &Path) -> anyhow::Result<()> {
    let there = existing(path);
    access(there, AccessFlags::W_OK)
        .with_context(|| format!("{key}: nothing can be made in {}", there.display()))
}

/// Checks that a directory is there, or can be made.
#[expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]
fn directory(key: &str, path: &Path) -> anyhow::Result<()> {
    let there = existing(path);
    let shown = there.display();
    let is_directory = std::fs::metadata(there).with_context(|| format!("{key}: {shown}"))?.is_dir();
    ensure!(is_directory, "{key}: {shown} is not a directory");
    let kind = statfs(there).with_context(|| format!("{key}: {shown}"))?.filesystem_type();
    ensure!(kind != PROC_SUPER_MAGIC && kind != SYSFS_MAGIC, "{key}: no file can be made in {shown}");
    if there == path { Ok(()) } else { writable(key, there) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::super::nri::Nri;
    use super::*;

    type Field = fn(&mut Config) -> &mut std::path::PathBuf;

    #[test]
    fn what_keeps_wharfd_from_starting_is_named_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let in_dir = |name: &str| dir.path().join(name);
        std::fs::write(in_dir("file"), "").unwrap();
        let shim = in_dir("shim");
        std::fs::write(&shim, "#!/bin/sh\necho wharf-shim 1\n").unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(in_dir("read-only")).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("ro"), &in_dir("read-only"), Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
        let good = Config {
            supervisor: shim,
            root: in_dir("new/root"),
            state: in_dir("new/state"),
            socket: in_dir("new/socket"),
            extra_sockets: vec![in_dir("new/other/socket")],
            nri: Nri { socket: in_dir("new/nri"), ..Nri::default() },
            ..Config::default()
        };
        good.check_machine().unwrap();
        let others = in_dir("others");
        std::fs::create_dir_all(others.join("pods/of the kubelet")).unwrap();
        let rows: [(Field, &str, &str); 19] = [
            (|config| &mut config.supervisor, "missing", "supervisor: "),
            (|config| &mut config.supervisor, "file", "supervisor: "),
            (|config| &mut config.supervisor, "/bin/true", "supervisor: /bin/true is not a wharf-shim"),
            (|config| &mut config.root, "file", "root: "),
            (|config| &mut config.root, "/proc/wharf", "root: no file can be made in /proc"),
            (|config| &mut config.root, "others", "root: "),
            (|config| &mut config.root, "read-only/new", "root: nothing can be made in "),
            (|config| &mut config.state, "file/state", "state: "),
            (|config| &mut config.state, "others", "state: "),
            (|config| &mut config.state, "read-only/new", "state: nothing can be made in "),
            (|config| &mut config.socket, "file/socket", "socket: "),
            (|config| &mut config.socket, "/proc/wharf.sock", "socket: no file can be made in /proc"),
            (|config| &mut config.socket, "read-only/socket", "socket: nothing can be made in "),
            (|config| &mut config.socket, "", "socket: "),
            (|config| &mut config.socket, "new/state/pods/socket", "socket: it must not be in "),
            (|config| &mut config.socket, "new/root/layers/socket", "socket: it must not be in "),
            (|config| &mut config.extra_sockets[0], "file", "extra_sockets: "),
            (
                |config| &mut config.extra_sockets[0],
                "read-only/socket",
                "extra_sockets: nothing can be made in ",
            ),
            (|config| &mut config.nri.socket, "file", "nri.socket: "),
        ];
        for (field, path, words) in rows {
            let mut config = good.clone();
            *field(&mut config) = in_dir(path);
            let refused = format!("{:#}", config.check_machine().unwrap_err());
            assert!(refused.starts_with(words), "{words}{path}: {refused}");
        }
        let mut without = good.clone();
        (without.nri.enabled, without.nri.socket) = (false, in_dir("file"));
        assert_eq!(without.check_machine().unwrap(), [""; 0]);
        without.registry.auth_files = vec![in_dir("none")];
        let told = without.check_machine().unwrap();
        assert!(told[0].ends_with("none does not exist: pulls go on without it"), "{told:?}");
        let mut bridged = good.clone();
        (bridged.network.mode, bridged.network.bridge) = (Mode::Bridge, "lo".to_owned());
        let refused = format!("{:#}", bridged.check_machine().unwrap_err());
        assert!(refused.starts_with("network.bridge: "), "{refused}");
        umount2(&in_dir("read-only"), MntFlags::MNT_DETACH).unwrap();
    }

    #[test]
    fn a_disk_that_does_not_respond_is_named_with_the_key_that_leads_to_it() {
        let extra_sockets = vec!["/run/other/socket".into(), "/run/other/third".into()];
        let config = Config { extra_sockets, ..Config::default() };
        let tried = std::cell::RefCell::new(Vec::new());
        let refused = |silent: &str| {
            tried.borrow_mut().clear();
            let responds = |directory: &Path| {
                tried.borrow_mut().push(directory.to_owned());
                directory != Path::new(silent)
            };
            config.check_disks(responds).map_err(|error| error.to_string())
        };
        for (silent, words) in [
            ("/var/lib/wharf", "root: /var/lib/wharf does not respond: "),
            ("/run/wharf", "state: /run/wharf does not respond: "),
            ("/run/other", "extra_sockets: /run/other does not respond: "),
        ] {
            let refused = refused(silent).unwrap_err();
            assert!(refused.starts_with(words), "{refused}");
        }
        assert_eq!(refused("/elsewhere"), Ok(()));
        assert_eq!(
            *tried.borrow(),
            ["/var/lib/wharf", "/run/wharf", "/run/other"].map(Path::new),
            "each once"
        );
    }

    #[test]
    fn a_socket_of_others_is_refused_only_if_it_is_the_first() {
        let config = Config::default();
        let init = Listener::of(Some(1));
        let refused = config.check_free("socket", &config.socket, &init).unwrap_err().to_string();
        assert!(refused.starts_with("socket: ") && refused.contains("(pid 1) is serving"), "{refused}");
        let extra = |other| config.check_free("extra_sockets", Path::new("/run/other"), other).unwrap();
        assert!(extra(&init).unwrap().ends_with("wharfd starts without this socket"));
        assert_eq!(extra(&Listener::of(None)), None);
    }

    #[test]
    fn one_directory_in_the_place_of_another_is_refused_by_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let in_dir = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(in_dir("srv")).unwrap();
        std::os::unix::fs::symlink("srv", in_dir("link")).unwrap();
        for (root, state, is_apart) in [
            ("srv/../lib/w", "lib/w", false),
            ("missing/../lib/w", "lib/w", false),
            ("link/w", "srv/w", false),
            ("link", "srv", false),
            ("lib/w/./", "lib//w", false),
            ("lib/w", "lib/w/state", false),
            ("lib/w", "link/../lib/w/state", false),
            ("lib/w", "lib/w2", true),
            ("lib/w/pods/x", "lib/w", false),
            ("lib/w/root", "lib/w", true),
            ("link/../w", "srv/w", true),
        ] {
            let config = Config { root: in_dir(root), state: in_dir(state), ..Config::default() };
            assert_eq!(config.check_apart(|_path, resolve| resolve()).is_ok(), is_apart, "{root} {state}");
        }
    }
}
