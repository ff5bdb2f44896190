//! CNI: the plugin chain in the node's configuration attaches pods.
//!
//! A pod's record holds the configuration and, once the pod is added, the result. It is written before the first plugin
//! runs and removed when DEL has succeeded, so that whatever happens, DEL gets what ADD got.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wharf_state::record::Durability;
use wharf_state::records::Records;
use wharf_types::PodId;
use wharf_types::lock::lock;

use crate::netlink::{Family, Socket};
use crate::store::{self, Json, StoreError};
use crate::{Attachment, Config, INTERFACE, PodAddresses, PortMapping, Readiness, link, netns};

mod adopt;
mod capabilities;
mod config;
mod error;
mod garbage;
mod input;
mod plugins;
mod result;
mod status;

pub(crate) use config::NetworkConfig;
pub use error::CniError;
use plugins::{Execution, Plugins};

/// A pod's record on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    network: NetworkConfig,
    netns: PathBuf,
    arguments: String,
    ports: Vec<PortMapping>,
    /// The values for plugins that ask for capabilities.
    #[serde(default)]
    capabilities: Map<String, Value>,
    /// `None` while plugins are adding the pod.
    result: Option<Value>,
}

impl Record {
    /// The record of a pod that no plugin has added yet.
    fn of(network: &NetworkConfig, pod: &Attachment<'_>) -> Result<Self, CniError> {
        Ok(Self {
            network: network.clone(),
            netns: pod.pin.to_owned(),
            arguments: arguments(pod)?,
            ports: pod.ports.iter().filter(|port| port.host_port != 0).cloned().collect(),
            capabilities: capabilities::of(pod)?,
            result: None,
        })
    }
}

impl store::Kind for Record {
    const NAME: &'static str = "cni";
}

/// The command for the plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Add,
    Delete,
    Status,
    Gc,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

/// One call of the chain for a pod.
struct Call<'a> {
    id: &'a PodId,
    record: &'a Record,
    action: Action,
    /// Empty if the namespace is gone.
    netns: &'a Path,
    deadline: Instant,
}

/// The plugins of the node.
#[derive(Debug)]
pub(crate) struct Cni {
    directory: config::Directory,
    plugins: Arc<Plugins>,
    status: status::Status,
    garbage: garbage::Garbage,
    add_deadline: Duration,
    delete_deadline: Duration,
    store: Records<Json<Record>>,
    /// What the DEL of each pod needs. Locked for moments, never while a plugin runs.
    records: Mutex<HashMap<PodId, Arc<Record>>>,
}

impl Cni {
    /// Loads the records; damaged ones are moved to the quarantine.
    pub(crate) fn open(config: Config) -> Result<Self, StoreError> {
        let store = store::open(config.state_dir.join("cni"))?;
        let plugins = Arc::new(Plugins::open(config.cni_bin_dirs, config.state_dir.join("cni-input"))?);
        let loaded = store::load(&store, |name| name.strip_suffix(".json").unwrap_or(name))?;
        let records = loaded.into_iter().map(|(_name, id, record)| (id, Arc::new(record))).collect();
        Ok(Self {
            directory: config::Directory::new(config.cni_conf_dir),
            status: status::Status::new(Arc::clone(&plugins), config.cni_add_deadline),
            garbage: garbage::Garbage::default(),
            plugins,
            add_deadline: config.cni_add_deadline,
            delete_deadline: config.cni_delete_deadline,
            store,
            records: Mutex::new(records),
        })
    }

    /// The network for new pods; `None` if there is no configuration.
    pub(crate) fn current(&self) -> Result<Option<Arc<NetworkConfig>>, CniError> {
        self.directory.current()
    }

    /// The error for a node that needs a configuration and has none.
    pub(crate) fn none(&self) -> CniError {
        CniError::None { path: self.directory().to_owned() }
    }

    /// The directory of configurations.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whether any pod is attached by plugins.
    pub(crate) fn has_pods(&self) -> bool {
        !lock(&self.records).is_empty()
    }

    /// Whether all plugins of a network exist, and report that they can add pods if they support STATUS.
    pub(crate) fn readiness(&self, network: &Arc<NetworkConfig>) -> Readiness {
        let kinds = network.plugins.iter().map(NetworkConfig::kind);
        match kinds.map(|kind| self.plugins.program(kind)).collect::<Result<Vec<PathBuf>, _>>() {
            Err(error) => Readiness::not(error.reason(), error.to_string()),
            Ok(_) if network.has_status() => self.status.readiness(network),
            Ok(_) => Readiness::yes(),
        }
    }

    pub(crate) fn addresses(&self, id: &PodId) -> Option<PodAddresses> {
        let record = self.record(id)?;
        match result::addresses(record.result.as_ref()?) {
            Ok(ips) => Some(PodAddresses { ips }),
            Err(reason) => {
                tracing::warn!(pod = %id, reason, "the kept result of a CNI plugin cannot be used");
                None
            }
        }
    }

    /// Adds a pod. After an error it is deleted again; if that fails as well, its record stays for the next attempt.
    pub(crate) fn attach(
        &self,
        network: &NetworkConfig,
        pod: &Attachment<'_>,
    ) -> Result<PodAddresses, CniError> {
        let _no_gc = self.garbage.hold_off();
        // An earlier, interrupted attempt may have left anything.
        self.delete(pod.id, Some(pod.pin))?;
        // Without one of them none is run: the chain's DEL could not be completed.
        network
            .plugins
            .iter()
            .try_for_each(|plugin| self.plugins.program(NetworkConfig::kind(plugin)).map(drop))?;
        let mut record = Record::of(network, pod)?;
        self.save(pod.id, &record)?;
        let pinned = netns::pin(pod.netns, pod.pin).map_err(CniError::from);
        let added = pinned.and_then(|()| self.add(pod.id, &record)).and_then(|(ips, result)| {
            record.result = Some(result);
            self.save(pod.id, &record)?;
            Ok(PodAddresses { ips })
        });
        if added.is_err()
            && let Err(error) = self.delete(pod.id, Some(pod.pin))
        {
            let error = wharf_types::chain(&error);
            tracing::warn!(pod = %pod.id, error, "a failed CNI ADD could not be undone; the next reconcile retries");
        }
        added
    }

    /// Deletes a pod with the configuration with which it was added. A pod without a record is success.
    pub(crate) fn detach(&self, id: &PodId, netns: Option<&Path>) -> Result<(), CniError> {
        let _no_gc = self.garbage.hold_off();
        self.delete(id, netns)
    }

    fn delete(&self, id: &PodId, netns: Option<&Path>) -> Result<(), CniError> {
        let Some(record) = self.record(id) else { return Ok(()) };
        // A namespace that cannot be opened now is not taken for one that is gone: a plugin would leave in it what it
        // made there.
        let mut pinned = None;
        for path in netns.into_iter().chain([record.netns.as_path()]) {
            if pinned.is_none() && netns::is_pinned(path)? {
                pinned = Some(path);
            }
        }
        let netns = pinned;
        let call = Call {
            id,
            record: &record,
            action: Action::Delete,
            netns: netns.unwrap_or(Path::new("")),
            deadline: Instant::now() + self.delete_deadline,
        };
        for plugin in record.network.plugins.iter().rev() {
            match self.run(&call, plugin, record.result.as_ref()) {
                // The node has another network by now, and nothing of the pod is left in the kernel: nobody can do
                // more.
                Err(error @ CniError::Missing { .. }) if netns.is_none() => {
                    tracing::warn!(pod = %id, %error, "a CNI plugin could not delete what it keeps of a removed pod");
                }
                other => drop(other?),
            }
        }
        netns::unpin(&record.netns)?;
        self.plugins.forget(id.as_str())?;
        self.store.remove(&file_name(id)).map_err(StoreError::from)?;
        lock(&self.records).remove(id);
        Ok(())
    }

    /// Deletes the pods that `keep` does not know, and returns those that were deleted.
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
                    tracing::warn!(pod = %id, error, "cannot remove a dead pod from its CNI network");
                }
            }
        }
        removed
    }

    /// Has the plugins free what they keep of pods that do not exist, at the first call and then once an hour.
    pub(crate) fn collect_garbage(&self, network: &NetworkConfig, live: &HashSet<PodId>) {
        let pods = || lock(&self.records).keys().chain(live).cloned().collect();
        self.garbage.collect(&self.plugins, network, pods);
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

    /// Runs one plugin of a chain and returns its output.
    fn run(
        &self,
        call: &Call<'_>,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Result<Vec<u8>, CniError> {
        self.plugins.run(&Execution {
            plugin: NetworkConfig::kind(plugin),
            action: call.action,
            subject: call.id.as_str(),
            input: input(call.record, plugin, previous),
            environment: [
                ("CNI_CONTAINERID", call.id.to_string()),
                ("CNI_NETNS", call.netns.display().to_string()),
                ("CNI_IFNAME", INTERFACE.to_owned()),
                ("CNI_ARGS", call.record.arguments.clone()),
            ],
            deadline: call.deadline,
        })
    }

    fn record(&self, id: &PodId) -> Option<Arc<Record>> {
        lock(&self.records).get(id).cloned()
    }

    fn save(&self, id: &PodId, record: &Record) -> Result<(), StoreError> {
        // Plugins' own records of addresses outlive a power cut, and only a DEL with this record removes them.
        let content = Json(record.clone());
        self.store.save(&file_name(id), &content, Durability::Durable)?;
        lock(&self.records).insert(id.clone(), Arc::new(content.0));
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

/// The input of a plugin for a pod: its own object, the capabilities that it asks for, and the result of the plugin
/// before it.
fn input(record: &Record, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
    let mut input = record.network.input(plugin);
    let wanted = |name: &String| plugin.get("capabilities")?.get(name)?.as_bool();
    let mut told = record.capabilities.clone();
    if !record.ports.is_empty() {
        told.insert("portMappings".to_owned(), record.ports.iter().map(port).collect());
    }
    told.retain(|name, _value| wanted(name) == Some(true));
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
