//! The files of the Container Device Interface on this machine. They are checked whenever a container requests a
//! device, because vendors' services write them at any time. A file that has not changed is not read again.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::stat::{SFlag, major, minor};
use wharf_planner::cdi::{Addition, DeviceName, Edits, File, Node};
use wharf_planner::{Refusal, Switch};

use crate::read::{Files, Kind, Look, class_of};
use crate::yaml;

/// The longest file, in bytes.
const FILE_LIMIT_BYTES: usize = 4 << 20;

/// The files, as they were at the last look.
#[derive(Debug)]
pub(crate) struct Cdi {
    /// Whether containers can have devices in this way.
    switch: Switch,
    files: Files<File>,
}

impl Cdi {
    /// Files in these directories; a device in a later one overrides one in an earlier.
    pub(crate) fn new(switch: Switch, directories: Vec<PathBuf>) -> Self {
        let kind = Kind { extensions: &["json", "yaml"], limit_bytes: FILE_LIMIT_BYTES, parse };
        Self { switch, files: Files::new(kind, directories) }
    }

    /// The edits for these devices, in the order in which they are applied: the common part of a file comes before the
    /// first of its devices.
    pub(crate) fn additions(&self, names: &[DeviceName]) -> Result<Vec<Addition>, Refusal> {
        let Some(first) = names.first() else { return Ok(Vec::new()) };
        if self.switch == Switch::Off {
            return Err(
                first.refusal("this node has no such devices: set `cdi.enabled` in its configuration")
            );
        }
        let look = self.files.look()?;
        let (mut additions, mut used) = (Vec::new(), Vec::new());
        for name in names {
            let (path, file) = find(&look, name).map_err(|problem| self.refusal(&look, name, problem))?;
            if !used.contains(&path) {
                used.push(path);
                additions.push(file.common(name));
            }
            additions.extend(file.addition(name));
        }
        additions.iter_mut().try_for_each(complete)?;
        Ok(additions)
    }

    /// Names the directories, and the files that cannot be used: the device may have been in one of them.
    fn refusal(&self, look: &Look<File>, name: &DeviceName, problem: Option<String>) -> Refusal {
        let directories: Vec<_> =
            self.files.directories.iter().map(|path| path.display().to_string()).collect();
        let mut problem =
            problem.unwrap_or_else(|| format!("no file in {} defines it", directories.join(", ")));
        for damaged in look.damaged() {
            let _never_fails = write!(problem, "; cannot use {damaged}");
        }
        name.refusal(problem)
    }

    /// Problems in the files, as text.
    pub(crate) fn problems(&self) -> Vec<String> {
        if self.switch == Switch::Off {
            return Vec::new();
        }
        let look = match self.files.look() {
            Ok(look) => look,
            Err(short) => return vec![short.to_string()],
        };
        let mut problems = look.damaged();
        for files in &look.directories {
            let usable = files.iter().filter_map(|(_, file)| file.as_ref().as_ref().ok());
            let mut names: Vec<DeviceName> = usable.flat_map(File::devices).collect();
            names.sort();
            let twice = names.windows(2).filter(|pair| pair[0] == pair[1]);
            problems.extend(
                twice.map(|pair| format!("{} is defined in several files of one directory", pair[0])),
            );
        }
        problems.dedup();
        problems
    }
}

/// The file that counts for a device: of the last directory in which one has it. Without one there is a problem to name
/// only if there are two.
fn find<'a>(look: &'a Look<File>, name: &DeviceName) -> Result<(&'a Path, &'a File), Option<String>> {
    for files in look.directories.iter().rev() {
        let usable =
            files.iter().filter_map(|(path, file)| Some((path.as_path(), file.as_ref().as_ref().ok()?)));
        let mut with = usable.filter(|(_, file)| file.devices().any(|device| device == *name));
        let Some(found) = with.next() else { continue };
        let Some((other, _)) = with.next() else { return Ok(found) };
        return Err(Some(format!(
            "both {} and {} define it: remove one",
            found.0.display(),
            other.display()
        )));
    }
    Err(None)
}

fn parse(path: &Path, content: Vec<u8>) -> Result<File, String> {
    if path.extension().is_some_and(|extension| extension == "json") {
        let mut json = serde_json::Deserializer::from_slice(&content);
        let file = File::parse(&mut json)?;
        json.end().map_err(|error| error.to_string())?;
        return Ok(file);
    }
    let text = String::from_utf8(content).map_err(|error| error.to_string())?;
    let tree = yaml::parse(&text)?;
    // The parser of fields would show the whole of something else.
    if !tree.is_object() {
        return Err("it is not a map".to_owned());
    }
    File::parse(tree)
}

/// Adds what only the host tells: types and numbers of devices. What is to be mounted must be there by now.
fn complete(addition: &mut Addition) -> Result<(), Refusal> {
    let Addition { device, edits: Edits { device_nodes, mounts, .. } } = addition;
    device_nodes.iter_mut().try_for_each(|node| complete_node(device, node))?;
    let is_bind = |kind: &str| matches!(kind, "" | "bind" | "none");
    mounts.iter().filter(|mount| is_bind(&mount.kind)).try_for_each(|mount| {
        let path = &mount.host_path;
        std::fs::metadata(path).map(drop).map_err(|error| unread(device, "mount of", path, &error))
    })
}

fn unread(device: &DeviceName, what: &str, path: &str, error: &io::Error) -> Refusal {
    device.unread(class_of(error), format!("its {what} {path}: {error}"))
}

/// A node whose type and major number are said need not be on the host; its minor number is then 0 unless it is said.
fn complete_node(device: &DeviceName, node: &mut Node) -> Result<(), Refusal> {
    let path = node.host_path.as_deref().unwrap_or(&node.path);
    let refuse = |problem: &str| device.refusal(format!("its node {path}{problem}"));
    let is_said = node.kind == "p" || !node.kind.is_empty() && node.major.is_some_and(|major| major > 0);
    let stat = match std::fs::metadata(path) {
        Ok(stat) => stat,
        Err(_missing) if is_said => {
            node.minor.get_or_insert(0);
            return Ok(());
        }
        Err(error) => return Err(unread(device, "node", path, &error)),
    };
    node.file_mode.get_or_insert(stat.mode() & 0o7777);
    if is_said {
        node.minor.get_or_insert(0);
        return Ok(());
    }
    let kind = match SFlag::from_bits_truncate(stat.mode() & SFlag::S_IFMT.bits()) {
        SFlag::S_IFBLK => "b",
        SFlag::S_IFCHR => "c",
        _ => return Err(refuse(" is not a device on the host")),
    };
    let said = if node.kind == "u" { "c" } else { &node.kind };
    if !said.is_empty() && said != kind {
        return Err(refuse(" is of another type on the host"));
    }
    kind.clone_into(&mut node.kind);
    let number = |number: u64| u32::try_from(number).map_err(|error| refuse(&format!(": {error}")));
    (node.major, node.minor) = (Some(number(major(stat.rdev()))?), Some(number(minor(stat.rdev()))?));
    Ok(())
}

#[cfg(test)]
mod tests;
