//! The checks of a configuration that need the machine. They change nothing.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, statfs};

use super::Config;

impl Config {
    /// Finds what would keep wharfd from starting on this machine.
    #[expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]
    pub(crate) fn check_machine(&self) -> anyhow::Result<()> {
        let supervisor = self.supervisor()?;
        let shown = supervisor.display();
        let file = std::fs::metadata(&supervisor).with_context(|| format!("supervisor: {shown}"))?;
        let is_program = file.is_file() && file.permissions().mode() & 0o111 != 0;
        ensure!(is_program, "supervisor: {shown} is not a program that can be executed");
        directory("root", &self.root)?;
        directory("state", &self.state)?;
        let nri = self.nri.enabled.then_some(("nri.socket", &self.nri.socket));
        for (key, path) in [("socket", &self.socket)].into_iter().chain(nri) {
            let is_other = std::fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket());
            ensure!(!is_other, "{key}: {} exists and is not a socket", path.display());
        }
        Ok(())
    }
}

/// Checks that a directory is there, or can be made.
#[expect(clippy::disallowed_methods, reason = "a command that nobody else waits for")]
fn directory(key: &str, path: &Path) -> anyhow::Result<()> {
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(path);
    let shown = there.display();
    let is_directory = std::fs::metadata(there).with_context(|| format!("{key}: {shown}"))?.is_dir();
    ensure!(is_directory, "{key}: {shown} is not a directory");
    let kind = statfs(there).with_context(|| format!("{key}: {shown}"))?.filesystem_type();
    ensure!(kind != PROC_SUPER_MAGIC && kind != SYSFS_MAGIC, "{key}: no file can be made in {shown}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::nri::Nri;
    use super::*;

    type Field = fn(&mut Config) -> &mut std::path::PathBuf;

    #[test]
    fn what_keeps_wharfd_from_starting_is_named_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let in_dir = |name: &str| dir.path().join(name);
        std::fs::write(in_dir("file"), "").unwrap();
        let good = Config {
            supervisor: "/bin/sh".into(),
            root: in_dir("new/root"),
            state: in_dir("new/state"),
            socket: in_dir("new/socket"),
            nri: Nri { socket: in_dir("new/nri"), ..Nri::default() },
            ..Config::default()
        };
        good.check_machine().unwrap();
        let rows: [(Field, &str, &str); 7] = [
            (|config| &mut config.supervisor, "missing", "supervisor: "),
            (|config| &mut config.supervisor, "file", "supervisor: "),
            (|config| &mut config.root, "file", "root: "),
            (|config| &mut config.root, "/proc/wharf", "root: no file can be made in /proc"),
            (|config| &mut config.state, "file/state", "state: "),
            (|config| &mut config.socket, "", "socket: "),
            (|config| &mut config.nri.socket, "file", "nri.socket: "),
        ];
        for (field, path, words) in rows {
            let mut config = good.clone();
            *field(&mut config) = in_dir(path);
            let refused = config.check_machine().unwrap_err().to_string();
            assert!(refused.starts_with(words), "{words}{path}: {refused}");
        }
        let mut without = good.clone();
        (without.nri.enabled, without.nri.socket) = (false, in_dir("file"));
        without.check_machine().unwrap();
    }
}
