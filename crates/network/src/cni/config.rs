//! CNI configurations: which file is used, and how it is parsed.
//!
//! The first valid file in the order of names is the node's network, as for other runtimes. A pod keeps the
//! configuration with which it was added, so a changed file never decides how an old pod is removed.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wharf_sys::fs::read_regular;
use wharf_types::lock::lock;
use wharf_types::{ErrorKind, Failure};

use super::CniError;

const CONFIG_LIMIT_BYTES: usize = 1 << 20;
/// The longest chain; more plugins are a mistake.
const CHAIN_LIMIT: usize = 32;
/// All versions of the specification, oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const FIRST_WITH_STATUS: &str = "1.1.0";

/// A network: a chain of plugins with their configurations. A pod's record has a copy, so that the pod is deleted with
/// the configuration with which it was added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkConfig {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) plugins: Vec<Map<String, Value>>,
    /// Whether the author of the list forbids GC, as where two runtimes share a network.
    #[serde(default)]
    pub(crate) gc: Gc,
}

/// Whether a network may have its garbage collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Gc {
    #[default]
    Allowed,
    Forbidden,
}

/// The part of a file that wharf uses; plugins get their objects unchanged.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    cni_version: Option<String>,
    /// Since 1.1.0: all versions that the file supports.
    #[serde(default)]
    cni_versions: Vec<String>,
    name: String,
    plugins: Option<Vec<Map<String, Value>>>,
    #[serde(default, rename = "disableGC")]
    disable_gc: bool,
}

impl NetworkConfig {
    /// The name of a plugin's program; the parser has checked that it is a plain file name.
    pub(crate) fn kind(plugin: &Map<String, Value>) -> &str {
        plugin.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    /// What a plugin reads in every call: its own object, with the network's name and version.
    pub(crate) fn input(&self, plugin: &Map<String, Value>) -> Map<String, Value> {
        let mut input = plugin.clone();
        input.remove("capabilities");
        input.insert("cniVersion".to_owned(), self.version.as_str().into());
        input.insert("name".to_owned(), self.name.as_str().into());
        input
    }

    /// Whether the version has STATUS.
    pub(crate) fn has_status(&self) -> bool {
        VERSIONS
            .iter()
            .skip_while(|version| **version != FIRST_WITH_STATUS)
            .any(|version| *version == self.version)
    }

    /// Whether plugins may be told to free what they keep of pods that do not exist.
    pub(crate) fn has_gc(&self) -> bool {
        // It came with STATUS.
        self.has_status() && self.gc == Gc::Allowed
    }
}

/// Whether wharf supports this version of the specification.
pub(crate) fn is_version(version: &str) -> bool {
    VERSIONS.contains(&version)
}

/// Parses a `.conflist`, or a `.conf` with a single plugin.
fn parse(bytes: &[u8]) -> Result<NetworkConfig, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let plugins = match file.plugins {
        Some(plugins) => plugins,
        None => vec![serde_json::from_slice(bytes).map_err(|error| error.to_string())?],
    };
    let version = version(file.cni_version, &file.cni_versions)?;
    if !is_name(&file.name) {
        return Err(format!("its name {:?} may have letters, digits, and . _ - after the first", file.name));
    }
    if plugins.is_empty() || plugins.len() > CHAIN_LIMIT {
        return Err(format!("it has {} plugins; 1 to {CHAIN_LIMIT} can be run", plugins.len()));
    }
    for plugin in &plugins {
        // CVE-2021-20206: a type with a slash could run any program on the host.
        let kind = plugin.get("type").and_then(Value::as_str).ok_or("a plugin has no type")?;
        if !is_name(kind) {
            return Err(format!("the type {kind:?} is not the name of a plugin"));
        }
        if plugin.get("capabilities").is_some_and(|value| !value.is_object()) {
            return Err(format!("the capabilities of plugin {kind} are not an object"));
        }
    }
    let gc = if file.disable_gc { Gc::Forbidden } else { Gc::Allowed };
    Ok(NetworkConfig { name: file.name, version, plugins, gc })
}

/// Why a file is not used.
enum Unused {
    /// The machine does not say what it means.
    Unread {
        path: PathBuf,
        source: io::Error,
    },
    Invalid(String),
}

impl From<String> for Unused {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

/// Refuses a list with plugins in files of their own, in the directory of its name. Without them it would be another
/// network.
fn check_inlined(path: &Path, bytes: &[u8], name: &str) -> Result<(), Unused> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        #[serde(default)]
        load_only_inlined_plugins: bool,
    }
    let list: List = serde_json::from_slice(bytes).map_err(|error| Unused::Invalid(error.to_string()))?;
    let directory = path.with_file_name(name);
    let is_list = path.extension().is_some_and(|extension| extension == "conflist");
    if !is_list || list.load_only_inlined_plugins {
        return Ok(());
    }
    match plugins_in(&directory) {
        Err(source) => Err(Unused::Unread { path: directory, source }),
        Ok(plugins) if plugins.is_empty() => Ok(()),
        Ok(_) => Err(Unused::Invalid(format!(
            "it has further plugins in {}, which is not supported: move them into its list of plugins",
            directory.display()
        ))),
    }
}

/// The files of plugins in a directory; none if there is none, or something else in its place.
fn plugins_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match files(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        files => {
            let is_plugin = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "conf");
            Ok(files?.into_iter().filter(is_plugin).collect())
        }
    }
}

/// What is in a directory; nothing if there is none.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

/// The latest version that a file supports; a file without a version predates the key.
fn version(one: Option<String>, several: &[String]) -> Result<String, String> {
    let named = |version: &&str| several.iter().any(|other| other == version);
    if let Some(latest) = VERSIONS.iter().copied().rfind(named) {
        return Ok(latest.to_owned());
    }
    let version = one.unwrap_or_else(|| VERSIONS[0].to_owned());
    if is_version(&version) {
        return Ok(version);
    }
    Err(format!("its cniVersion {version:?} is not one of {}", VERSIONS.join(", ")))
}

fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The directory of configurations. The first valid file is used. The files are read again only when one has changed.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// The files as they were, and what was selected. Held while they are read, so that they are read once.
    cache: Mutex<Option<(Vec<Candidate>, Selected)>>,
}

/// A file as listed in the directory; another file or changed content compares as different.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    path: PathBuf,
    modified: Option<SystemTime>,
    len: u64,
    /// The files of plugins in all directories beside it: which of them are its own, its content says.
    beside: Arc<BTreeSet<PathBuf>>,
}

/// The result of reading the files: a network, none at all, or what is wrong with the first file.
type Selected = Result<Option<Arc<NetworkConfig>>, (PathBuf, String)>;

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, cache: Mutex::new(None) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The network to use; `None` if there is no configuration at all.
    pub(crate) fn current(&self) -> Result<Option<Arc<NetworkConfig>>, CniError> {
        let candidates = candidates(&self.path)?;
        let mut cache = lock(&self.cache);
        let selected = match &*cache {
            Some((seen, selected)) if *seen == candidates => selected.clone(),
            _ => {
                let selected = select(&candidates, read_regular)?;
                *cache = Some((candidates, selected.clone()));
                selected
            }
        };
        selected.map_err(|(path, reason)| CniError::Config { path, reason })
    }
}

fn candidates(dir: &Path) -> Result<Vec<Candidate>, CniError> {
    let files = files(dir).map_err(|source| CniError::Directory { path: dir.to_owned(), source })?;
    // One that cannot be listed counts as empty: whoever reads the list that has its name finds that out.
    let beside = files.iter().flat_map(|path| plugins_in(path).unwrap_or_default());
    let beside = Arc::new(beside.collect::<BTreeSet<_>>());
    let mut found = Vec::new();
    for path in files {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) {
            let (modified, len) =
                std::fs::metadata(&path).map_or((None, 0), |meta| (meta.modified().ok(), meta.len()));
            found.push(Candidate { path, modified, len, beside: Arc::clone(&beside) });
        }
    }
    found.sort();
    Ok(found)
}

/// The first valid file. If the machine is too short of something to read one, that says nothing about the file, and no
/// other may take its place.
fn select(
    candidates: &[Candidate],
    read: impl Fn(&Path, usize) -> io::Result<Vec<u8>>,
) -> Result<Selected, CniError> {
    let mut complaint = None;
    for Candidate { path, .. } in candidates {
        match load(path, read(path, CONFIG_LIMIT_BYTES)) {
            Ok(config) => return Ok(Ok(Some(Arc::new(config)))),
            Err(Unused::Unread { path, source }) => return Err(CniError::Directory { path, source }),
            Err(Unused::Invalid(reason)) => {
                tracing::warn!(file = %path.display(), reason, "a CNI configuration is invalid and was skipped");
                complaint.get_or_insert((path.clone(), reason));
            }
        }
    }
    Ok(complaint.map_or(Ok(None), Err))
}

fn load(path: &Path, content: io::Result<Vec<u8>>) -> Result<NetworkConfig, Unused> {
    let bytes = content.map_err(|source| match Failure::kind(&source) {
        ErrorKind::ResourceExhausted => Unused::Unread { path: path.to_owned(), source },
        _ => Unused::Invalid(source.to_string()),
    })?;
    let config = parse(&bytes)?;
    check_inlined(path, &bytes, &config.name)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use wharf_sys::seccomp::{self, Call};

    use super::*;

    const GOOD: &str =
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","x":{"y":[1]}},{"type":"b-c.d"}]}"#;

    #[test]
    fn a_list_and_a_single_plugin_are_understood() {
        let list = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(list.plugins.len(), 2);
        assert_eq!(list.plugins[0]["x"]["y"][0], 1, "unknown keys pass");
        let single = parse(br#"{"cniVersion":"0.3.1","name":"n","type":"a","k":1}"#).unwrap();
        assert_eq!(
            (NetworkConfig::kind(&single.plugins[0]), &single.plugins[0]["k"]),
            ("a", &Value::from(1))
        );
    }

    #[test]
    fn the_latest_version_counts_and_none_is_the_first() {
        let version = |text: &str| parse(text.as_bytes()).unwrap().version;
        assert_eq!(version(r#"{"name":"n","type":"a"}"#), "0.1.0");
        let several =
            r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.0.0","0.4.0"],"name":"n","type":"a"}"#;
        assert_eq!(version(several), "1.0.0");
    }

    #[test]
    fn lists_of_new_versions_have_their_garbage_collected_unless_they_forbid_it() {
        let has_gc = |text: &str| parse(text.as_bytes()).unwrap().has_gc();
        assert!(has_gc(r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}"#));
        assert!(!has_gc(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#));
        assert!(!has_gc(r#"{"cniVersion":"1.1.0","disableGC":true,"name":"n","plugins":[{"type":"a"}]}"#));
    }

    #[test]
    fn a_list_with_plugins_in_files_of_their_own_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("10-n.conflist");
        let directory = Directory::new(dir.path().to_owned());
        std::fs::write(&list, GOOD).unwrap();
        std::fs::create_dir(dir.path().join("n")).unwrap();
        assert!(directory.current().unwrap().is_some(), "an empty directory has no plugin");
        std::fs::write(dir.path().join("n/more.conf"), r#"{"type":"c"}"#).unwrap();
        let error = directory.current().unwrap_err();
        assert!(error.to_string().contains("10-n.conflist"), "{error}");
        std::fs::remove_file(dir.path().join("n/more.conf")).unwrap();
        assert!(directory.current().unwrap().is_some());
        std::fs::write(dir.path().join("n/more.conf"), r#"{"type":"c"}"#).unwrap();
        std::fs::write(&list, GOOD.replacen('{', r#"{"loadOnlyInlinedPlugins":true,"#, 1)).unwrap();
        assert_eq!(directory.current().unwrap().unwrap().plugins.len(), 2);
    }

    /// Without its plugins it would be another network.
    #[test]
    fn a_list_whose_further_plugins_cannot_be_listed_is_not_invalid_and_no_other_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("10-n.conflist"), GOOD).unwrap();
        std::fs::write(dir.path().join("20-other.conflist"), GOOD.replace("\"n\"", "\"other\"")).unwrap();
        let further = dir.path().join("n");
        std::fs::write(&further, "a file").unwrap();
        let candidates = candidates(dir.path()).unwrap();
        let select = || select(&candidates, read_regular);
        assert_eq!(select().unwrap().unwrap().unwrap().name, "n", "a file has no plugins in it");
        std::fs::remove_file(&further).unwrap();
        std::fs::create_dir(&further).unwrap();
        for (errno, kind) in
            [(Errno::EMFILE, ErrorKind::ResourceExhausted), (Errno::EIO, ErrorKind::FailedPrecondition)]
        {
            let unlisted = || {
                seccomp::refuse(Call::GETDENTS64, errno).expect("these tests need root");
                select().unwrap_err()
            };
            let error = std::thread::scope(|scope| scope.spawn(unlisted).join()).unwrap();
            assert!(matches!(&error, CniError::Directory { path, .. } if *path == further), "{error}");
            assert_eq!(crate::Error::from(error).kind(), kind);
        }
    }

    #[test]
    fn what_is_not_a_configuration_is_refused() {
        for bad in [
            "",
            "[]",
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../../bin/sh"}]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":".."}]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":7}]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":{"type":"a"}}"#,
            r#"{"cniVersion":"1.0.0","name":"n","type":"a","capabilities":[]}"#,
            r#"{"cniVersion":"1.0.0","name":"../n","type":"a"}"#,
            r#"{"cniVersion":"1.0.0","name":"","type":"a"}"#,
            r#"{"cniVersion":"2.0.0","name":"n","type":"a"}"#,
            r#"{"cniVersion":"2.0.0","cniVersions":["3.0.0"],"name":"n","type":"a"}"#,
            r#"{"cniVersion":"1.0.0","type":"a"}"#,
            r#"{"cniVersion":"1.0.0","name":"n","name":"m","type":"a"}"#,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_valid_file_counts_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().join("net.d"));
        assert_eq!(directory.current().unwrap(), None, "no directory, no configuration");
        std::fs::create_dir(dir.path().join("net.d")).unwrap();
        let file = |name: &str, content: &[u8]| {
            std::fs::write(dir.path().join("net.d").join(name), content).unwrap()
        };
        file("10-first.txt", b"not looked at");
        assert_eq!(directory.current().unwrap(), None);
        file("20-bad.conf", b"{");
        let error = directory.current().unwrap_err();
        assert!(error.to_string().contains("20-bad.conf"), "{error}");
        file("30-big.json", &vec![b' '; (1 << 20) + 1]);
        file("40-good.conflist", GOOD.as_bytes());
        file("50-other.conflist", GOOD.replace("\"n\"", "\"other\"").as_bytes());
        assert_eq!(directory.current().unwrap().unwrap().name, "n");
        file("20-bad.conf", GOOD.replace("\"n\"", "\"mended\"").as_bytes());
        assert_eq!(directory.current().unwrap().unwrap().name, "mended");
        let candidates = candidates(directory.path()).unwrap();
        let failing = |errno: Errno| {
            select(&candidates, |path, limit| {
                if path.ends_with("20-bad.conf") { Err(errno.into()) } else { read_regular(path, limit) }
            })
        };
        let unread = failing(Errno::EMFILE);
        assert!(matches!(unread, Err(CniError::Directory { .. })), "no other takes its place: {unread:?}");
        assert_eq!(failing(Errno::EACCES).unwrap().unwrap().unwrap().name, "n");
        std::fs::remove_file(dir.path().join("net.d/20-bad.conf")).unwrap();
        assert_eq!(directory.current().unwrap().unwrap().name, "n");
    }
}
