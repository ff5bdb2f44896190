//! CNI: pods are attached by the chain of plugins that the node's configuration names.
//!
//! A pod's record has the configuration and, once added, the result; it is written before the first plugin runs and
//! removed when DEL has succeeded, so that whatever happens DEL is called with what ADD was called with.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wharf_types::PodId;

use crate::netlink::{Family, Socket};
use crate::store::{Store, StoreError, failed, gone_is_fine};
use crate::{Attachment, Config, INTERFACE, PodAddresses, PortMapping, Readiness, link, lock, netns};

mod capabilities;
mod config;
mod error;
mod exec;
mod input;
mod result;

pub(crate) use config::NetworkConfig;
pub use error::CniError;
use input::Input;

const VERSION: u32 = 1;
/// As much of a plugin's complaints as belongs into a message.
const STDERR_LEN: usize = 1000;

/// A pod's record on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    version: u32,
    network: NetworkConfig,
    netns: PathBuf,
    arguments: String,
    ports: Vec<PortMapping>,
    /// What else plugins may ask for.
    #[serde(default)]
    capabilities: Map<String, Value>,
    /// `None` while plugins are adding the pod.
    result: Option<Value>,
}

/// What plugins are asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Add,
    Delete,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
        }
    }
}

/// One call of a chain.
struct Call<'a> {
    id: &'a PodId,
    record: &'a Record,
    action: Action,
    /// Empty for a namespace that is gone.
    netns: &'a Path,
    deadline: Instant,
}

/// The plugins of the node.
#[derive(Debug)]
pub(crate) struct Cni {
    directory: config::Directory,
    bin_dirs: Vec<PathBuf>,
    add_deadline: Duration,
    delete_deadline: Duration,
    /// What the plugins of each pod read in the last call.
    inputs: PathBuf,
    store: Store,
    records: Mutex<HashMap<PodId, Arc<Record>>>,
}

impl Cni {
    /// Loads the records; what is damaged is set aside.
    pub(crate) fn open(config: Config) -> Result<Self, StoreError> {
        let store = Store::open(config.state_dir.join("cni"))?;
        let inputs = config.state_dir.join("cni-input");
        std::fs::create_dir_all(&inputs).map_err(failed("create", &inputs))?;
        let mut records = HashMap::new();
        for (name, record) in store.load::<Record>()? {
            match name.strip_suffix(".json").unwrap_or(&name).parse() {
                Ok(id) if record.version == VERSION => {
                    records.insert(id, Arc::new(record));
                }
                Ok(_id) => store.quarantine(&name, &format!("version {}", record.version)),
                Err(error) => store.quarantine(&name, &error),
            }
        }
        Ok(Self {
            directory: config::Directory::new(config.cni_conf_dir),
            bin_dirs: config.cni_bin_dirs,
            add_deadline: config.cni_add_deadline,
            delete_deadline: config.cni_delete_deadline,
            inputs,
            store,
            records: Mutex::new(records),
        })
    }

    /// The network that new pods get; `None` if there is no configuration.
    pub(crate) fn current(&self) -> Result<Option<Arc<NetworkConfig>>, CniError> {
        self.directory.current()
    }

    /// The error for a node that must have a configuration and has none.
    pub(crate) fn none(&self) -> CniError {
        CniError::None { path: self.directory().to_owned() }
    }

    /// Where configurations are looked for.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whether a pod is attached by plugins.
    pub(crate) fn has_pods(&self) -> bool {
        !lock(&self.records).is_empty()
    }

    /// Whether all plugins of a network are there.
    pub(crate) fn readiness(&self, network: &NetworkConfig) -> Readiness {
        match network
            .plugins
            .iter()
            .try_for_each(|plugin| self.program(NetworkConfig::kind(plugin)).map(drop))
        {
            Ok(()) => Readiness::yes(),
            Err(error) => Readiness::not("CniPluginMissing", error.to_string()),
        }
    }

    pub(crate) fn addresses(&self, id: &PodId) -> Option<PodAddresses> {
        let record = self.record(id)?;
        let ips = result::addresses(record.result.as_ref()?).ok()?;
        Some(PodAddresses { ips, interface: INTERFACE.to_owned() })
    }

    /// Adds a pod. After an error it is deleted again; if that fails too, its record stays for the next try.
    pub(crate) fn attach(
        &self,
        network: &NetworkConfig,
        pod: &Attachment<'_>,
    ) -> Result<PodAddresses, CniError> {
        // An earlier attempt that was cut short may have left anything.
        self.detach(pod.id, Some(pod.netns))?;
        let mut record = Record {
            version: VERSION,
            network: network.clone(),
            netns: pod.netns.to_owned(),
            arguments: arguments(pod)?,
            ports: pod.ports.iter().filter(|port| port.host_port != 0).cloned().collect(),
            capabilities: capabilities::of(pod)?,
            result: None,
        };
        self.save(pod.id, &record)?;
        let added = self.add(pod.id, &record).and_then(|(ips, result)| {
            record.result = Some(result);
            self.save(pod.id, &record)?;
            Ok(PodAddresses { ips, interface: INTERFACE.to_owned() })
        });
        if added.is_err()
            && let Err(error) = self.detach(pod.id, Some(pod.netns))
        {
            let error = wharf_types::chain(&error);
            tracing::warn!(pod = %pod.id, error, "a failed CNI ADD could not be undone; reconcile will");
        }
        added
    }

    /// Deletes a pod by what it was added with; one without a record is fine.
    pub(crate) fn detach(&self, id: &PodId, netns: Option<&Path>) -> Result<(), CniError> {
        let Some(record) = self.record(id) else { return Ok(()) };
        let pinned = |path: &&Path| netns::open(path).is_ok();
        let netns = netns.filter(pinned).or_else(|| Some(record.netns.as_path()).filter(pinned));
        let call = Call {
            id,
            record: &record,
            action: Action::Delete,
            netns: netns.unwrap_or(Path::new("")),
            deadline: Instant::now() + self.delete_deadline,
        };
        for plugin in record.network.plugins.iter().rev() {
            match self.run(&call, plugin, record.result.as_ref()) {
                // The node has another network by now, and of the pod nothing is left in the kernel: nobody can do more.
                Err(error @ CniError::Missing { .. }) if netns.is_none() => {
                    tracing::warn!(pod = %id, %error, "what this plugin kept of a pod that is gone stays");
                }
                other => drop(other?),
            }
        }
        let path = self.inputs.join(id.as_str());
        gone_is_fine(std::fs::remove_file(&path)).map_err(failed("remove", &path))?;
        self.store.remove(&file_name(id))?;
        lock(&self.records).remove(id);
        Ok(())
    }

    /// Deletes the pods that `keep` does not know; gives those that were deleted.
    pub(crate) fn reconcile(&self, keep: &dyn Fn(&PodId) -> bool) -> HashSet<PodId> {
        let ids: Vec<PodId> = lock(&self.records).keys().cloned().collect();
        let mut removed = HashSet::new();
        for id in ids.into_iter().filter(|id| !keep(id)) {
            match self.detach(&id, None) {
                Ok(()) => {
                    removed.insert(id);
                }
                Err(error) => {
                    let error = wharf_types::chain(&error);
                    tracing::warn!(pod = %id, error, "a dead pod could not be removed from its CNI network");
                }
            }
        }
        removed
    }

    fn add(&self, id: &PodId, record: &Record) -> Result<(Vec<std::net::IpAddr>, Value), CniError> {
        let namespace = netns::open(&record.netns)?;
        let inside = netns::inside(&namespace, || Socket::open(Family::Route))??;
        link::set_up(&inside, link::LOOPBACK)?;
        let deadline = Instant::now() + self.add_deadline;
        let call = Call { id, record, action: Action::Add, netns: &record.netns, deadline };
        let mut last = (String::new(), Value::Null);
        for plugin in &record.network.plugins {
            let name = NetworkConfig::kind(plugin).to_owned();
            let previous = Some(&last.1).filter(|value| !value.is_null());
            let stdout = self.run(&call, plugin, previous)?;
            match result::parse(&stdout, &record.network.version) {
                Ok(value) => last = (name, value),
                Err(reason) => return Err(CniError::Output { plugin: name, reason }),
            }
        }
        let (plugin, value) = last;
        let ips = result::addresses(&value).map_err(|reason| CniError::Output { plugin, reason })?;
        Ok((ips, value))
    }

    /// Runs one plugin of a chain; gives what it printed.
    fn run(
        &self,
        call: &Call<'_>,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, CniError> {
        let name = NetworkConfig::kind(plugin);
        let (owned, command) = (|| name.to_owned(), call.action.name());
        let program = self.program(name)?;
        let input = input(call.record, plugin, previous).to_string();
        let path = self.inputs.join(call.id.as_str());
        let ran = Input::write(&path, input.as_bytes(), call.deadline)
            .and_then(|input| Ok((input.stream()?, input)))
            .map_err(exec::ExecError::Io)
            .and_then(|(stream, _until_its_end)| {
                exec::run(&program, &self.environment(call), stream, call.deadline)
            });
        let output = ran.map_err(|error| match error {
            exec::ExecError::Io(source) => CniError::Run { plugin: owned(), command, source },
            exec::ExecError::Deadline => CniError::Deadline { plugin: owned(), command },
            exec::ExecError::TooLong => CniError::TooLong { plugin: owned(), command },
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failure(owned(), command, &output))
    }

    fn environment(&self, call: &Call<'_>) -> Vec<(&'static str, String)> {
        let dirs: Vec<String> = self.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        vec![
            ("CNI_COMMAND", call.action.name().to_owned()),
            ("CNI_CONTAINERID", call.id.to_string()),
            ("CNI_NETNS", call.netns.display().to_string()),
            ("CNI_IFNAME", INTERFACE.to_owned()),
            ("CNI_ARGS", call.record.arguments.clone()),
            ("CNI_PATH", dirs.join(":")),
        ]
    }

    /// The program of a plugin: the first that can be executed.
    fn program(&self, plugin: &str) -> Result<PathBuf, CniError> {
        use std::os::unix::fs::PermissionsExt;
        let executable = |path: &PathBuf| {
            std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let found = self.bin_dirs.iter().map(|dir| dir.join(plugin)).find(executable);
        found.ok_or_else(|| CniError::Missing { plugin: plugin.to_owned(), dirs: self.bin_dirs.clone() })
    }

    fn record(&self, id: &PodId) -> Option<Arc<Record>> {
        lock(&self.records).get(id).cloned()
    }

    fn save(&self, id: &PodId, record: &Record) -> Result<(), StoreError> {
        // Plugins' own records of addresses outlive a power cut, and only DEL, by this one, removes them.
        self.store.save_durably(&file_name(id), record)?;
        lock(&self.records).insert(id.clone(), Arc::new(record.clone()));
        Ok(())
    }
}

fn file_name(id: &PodId) -> String {
    format!("{id}.json")
}

/// `CNI_ARGS`: a list that has no quoting, so values that would break out of it are refused.
fn arguments(pod: &Attachment<'_>) -> Result<String, CniError> {
    for value in [pod.namespace, pod.name, pod.uid] {
        if value.contains(|c: char| c == ';' || c == '=' || c.is_control()) {
            return Err(CniError::Argument { value: value.chars().take(200).collect() });
        }
    }
    Ok(format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        pod.namespace, pod.name, pod.id, pod.uid
    ))
}

/// What a plugin reads: its own object with the network's name and version, the capabilities that it asks for, and the
/// result of the plugin before it.
fn input(record: &Record, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
    let mut input = plugin.clone();
    let wanted = input.remove("capabilities").unwrap_or_default();
    input.insert("cniVersion".to_owned(), record.network.version.as_str().into());
    input.insert("name".to_owned(), record.network.name.as_str().into());
    let mut told = record.capabilities.clone();
    if !record.ports.is_empty() {
        told.insert("portMappings".to_owned(), record.ports.iter().map(port).collect());
    }
    told.retain(|name, _value| wanted.get(name) == Some(&Value::Bool(true)));
    if !told.is_empty() {
        input.insert("runtimeConfig".to_owned(), told.into());
    }
    if let Some(previous) = previous {
        input.insert("prevResult".to_owned(), previous.clone());
    }
    input.into()
}

fn port(port: &PortMapping) -> Value {
    let mut value = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.name(),
    });
    if let Some(ip) = port.host_ip {
        value["hostIP"] = ip.to_string().into();
    }
    value
}

/// A plugin that fails should print an error as JSON; if not, its complaints must do.
fn failure(plugin: String, command: &'static str, output: &exec::Output) -> CniError {
    if let Ok(failure) = serde_json::from_slice::<result::Failure>(&output.stdout) {
        let details =
            if failure.details.is_empty() { String::new() } else { format!(": {}", failure.details) };
        return CniError::Plugin { plugin, command, code: failure.code, message: failure.msg, details };
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().chars().take(STDERR_LEN).collect();
    CniError::Exit { plugin, command, status: output.status, stderr }
}
