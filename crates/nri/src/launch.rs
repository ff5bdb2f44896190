//! Plugins that wharfd starts: the programs `NN-NAME` of a directory, with their configurations from another one.
#![expect(clippy::disallowed_methods, reason = "its callers are on the thread pool for what may wait")]

use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use wharf_sys::fs::read_regular;
use wharf_sys::process::kill_group;
use wharf_types::program::DEFAULT_PATH;

/// Where a plugin finds its socket.
const DESCRIPTOR: i32 = 3;
/// The longest configuration of a plugin, in bytes: it travels in one message.
const CONFIG_LIMIT_BYTES: usize = 1 << 20;
/// How a program for WebAssembly begins.
const WASM: [u8; 4] = *b"\0asm";

/// A plugin of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) program: PathBuf,
    pub(crate) index: String,
    pub(crate) base: String,
    pub(crate) config: String,
}

/// The process of a plugin. It ends with this value, as do those that it has started in its process group.
#[derive(Debug)]
pub(crate) struct Process(Option<Child>);

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let mut end = move || {
            kill_group(child.id()).map_err(|error| io::Error::from(error.errno))?;
            child.wait().map(drop)
        };
        let ended = match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn_blocking(move || end().inspect_err(warn));
                Ok(())
            }
            Err(_no_runtime) => end(),
        };
        if let Err(error) = ended {
            warn(&error);
        }
    }
}

fn warn(error: &std::io::Error) {
    tracing::warn!(%error, "the process of an NRI plugin may be left");
}

/// The plugins of a directory, in the order of their names. A missing directory has none, and a file that is no plugin
/// is left out with a warning.
///
/// # Errors
/// The directory cannot be read.
pub(crate) fn installed(directory: &Path, configs: &Path) -> std::io::Result<Vec<Installed>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let program = entry?.path();
        let is_program = wharf_sys::fs::is_program(&program).map_err(|error| error.to_string());
        if let Ok(false) = is_program {
            continue;
        }
        match is_program.and_then(|_yes| plugin(&program, configs)) {
            Ok(plugin) => found.push(plugin),
            Err(problem) => tracing::warn!(program = %program.display(), problem, "not an NRI plugin"),
        }
    }
    found.sort_by(|one, other| one.program.cmp(&other.program));
    Ok(found)
}

fn plugin(program: &Path, configs: &Path) -> Result<Installed, String> {
    let name = program.file_name().and_then(|name| name.to_str()).ok_or("its name is not UTF-8")?;
    let (index, base) = name.split_once('-').ok_or("its name is not NN-NAME")?;
    check_index(index)?;
    check_name(base)?;
    let mut magic = [0; WASM.len()];
    let read = fs::File::open(program).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_ok() && magic == WASM {
        return Err("plugins in WebAssembly are not supported: build it as a program".to_owned());
    }
    let paths = [format!("{name}.conf"), format!("{base}.conf")].map(|name| configs.join(name));
    let config = config(&paths)?;
    Ok(Installed { program: program.to_owned(), index: index.to_owned(), base: base.to_owned(), config })
}

/// The first of these files that exists.
fn config(paths: &[PathBuf]) -> Result<String, String> {
    for path in paths {
        let problem = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        match read_regular(path, CONFIG_LIMIT_BYTES) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(problem(&error)),
            Ok(bytes) => return String::from_utf8(bytes).map_err(|error| problem(&error)),
        }
    }
    Ok(String::new())
}

/// Checks the index of a plugin.
pub(crate) fn check_index(index: &str) -> Result<(), String> {
    match index.as_bytes() {
        [b'0'..=b'9', b'0'..=b'9'] => Ok(()),
        _ => Err(format!("the index {index:?} is not two digits")),
    }
}

/// Checks the name of a plugin.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    match !name.is_empty() && name.len() <= 255 && name.bytes().all(is_fine) {
        true => Ok(()),
        false => Err(format!("the name {name:?} is not of letters, digits and -_.+")),
    }
}

/// Starts a plugin, and returns the socket to it.
///
/// # Errors
/// The kernel's error.
pub(crate) fn start(plugin: &Installed) -> std::io::Result<(Process, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(&plugin.program);
    command
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("NRI_PLUGIN_NAME", &plugin.base)
        .env("NRI_PLUGIN_IDX", &plugin.index)
        .env("NRI_PLUGIN_SOCKET", DESCRIPTOR.to_string())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    wharf_sys::launch::hand_on(&mut command, OwnedFd::from(theirs), DESCRIPTOR);
    let child = command.spawn()?;
    ours.set_nonblocking(true)?;
    Ok((Process(Some(child)), ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_programs_with_an_index_are_plugins() {
        let directory = tempfile::tempdir().unwrap();
        let (programs, configs) = (directory.path().join("plugins"), directory.path().join("conf.d"));
        assert_eq!(installed(&programs, &configs).unwrap(), []);
        fs::create_dir(&programs).unwrap();
        fs::create_dir(&configs).unwrap();
        for (name, mode) in [
            ("20-b", 0o755),
            ("10-a", 0o755),
            ("05-text", 0o644),
            ("x-y", 0o755),
            ("30-", 0o755),
            ("plain", 0o755),
        ] {
            write(&programs.join(name), "#!/bin/sh\n", mode);
        }
        write(&programs.join("40-wasm"), "\0asm\x01\0\0\0", 0o755);
        fs::create_dir(programs.join("50-directory")).unwrap();
        std::os::unix::fs::symlink("nowhere", programs.join("60-link")).unwrap();
        write(&configs.join("a.conf"), "general", 0o644);
        write(&configs.join("10-a.conf"), "exact", 0o644);
        let found = installed(&programs, &configs).unwrap();
        let found: Vec<(&str, &str)> =
            found.iter().map(|plugin| (plugin.base.as_str(), plugin.config.as_str())).collect();
        assert_eq!(found, [("a", "exact"), ("b", "")]);
        fs::remove_file(configs.join("10-a.conf")).unwrap();
        assert_eq!(installed(&programs, &configs).unwrap()[0].config, "general");
        let long = "x".repeat(CONFIG_LIMIT_BYTES + 1);
        write(&configs.join("a.conf"), &long, 0o644);
        assert_eq!(installed(&programs, &configs).unwrap().len(), 1);
        fs::remove_file(configs.join("a.conf")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(configs.join("a.conf")).status();
        assert!(fifo.unwrap().success());
        assert_eq!(installed(&programs, &configs).unwrap().len(), 1, "and nobody waits for its writer");
    }

    #[test]
    fn a_plugin_finds_its_socket_and_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("10-a");
        let script = "#!/bin/sh\necho $NRI_PLUGIN_IDX $NRI_PLUGIN_NAME >&$NRI_PLUGIN_SOCKET\nsleep 1000 & read line <&3\n";
        write(&program, script, 0o755);
        let plugin = installed(directory.path(), directory.path()).unwrap().remove(0);
        let (process, mut socket) = start(&plugin).unwrap();
        socket.set_nonblocking(false).unwrap();
        let mut said = [0; 5];
        socket.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"10 a\n");
        drop(process);
        // With the process and what it has started, the other end of the socket is gone.
        assert_eq!(socket.read(&mut said).unwrap(), 0);
    }
}
