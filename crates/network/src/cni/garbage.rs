//! GC, which chains of version 1.1.0 and later have: plugins are told which pods exist, and free what they keep of any
//! other, such as an address whose DEL was never run because a damaged record named it.
//!
//! The specification forbids GC while an ADD or a DEL runs. GC waits for neither: it is put off until nothing runs.
//! What comes in the meantime waits for GC, so that has a short deadline.

use std::sync::{Mutex, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wharf_types::PodId;
use wharf_types::lock::{lock, read};

use super::plugins::{Execution, Plugins};
use super::{Action, CniError, NetworkConfig};
use crate::INTERFACE;

/// How often plugins are told. Garbage is rare, and costs only an address.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How long all plugins together may take, while pods wait.
const DEADLINE: Duration = Duration::from_secs(20);
/// The subject's file name; those of pods are longer.
const SUBJECT: &str = "gc";
/// The key of the pods in a plugin's input, as in the specification, and as plugins read it that were written before
/// the specification was corrected.
const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// When GC runs.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    /// Held for reading by each ADD and DEL, and for writing by GC, which runs while there is none of them.
    calls: RwLock<()>,
    /// When it ran last. Held while it runs, so that there is one at a time.
    last: Mutex<Option<Instant>>,
}

impl Garbage {
    /// Keeps GC from running, and waits for one that runs.
    pub(super) fn hold_off(&self) -> RwLockReadGuard<'_, ()> {
        read(&self.calls)
    }

    /// Tells the plugins which pods exist if it is time and no ADD or DEL runs. `pods` is called when none can begin.
    pub(super) fn collect(
        &self,
        plugins: &Plugins,
        network: &NetworkConfig,
        pods: impl FnOnce() -> Vec<PodId>,
    ) {
        let mut last = lock(&self.last);
        if !network.has_gc() || last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        let _alone = match self.calls.try_write() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        *last = Some(Instant::now());
        let pods = pods()
            .into_iter()
            .map(|id| json!({ "containerID": id.to_string(), "ifname": INTERFACE }))
            .collect();
        for error in tell(plugins, network, &pods) {
            let error = wharf_types::chain(&error);
            tracing::warn!(
                error,
                "a CNI plugin could not free what it keeps of removed pods; the next attempt is in an hour"
            );
        }
    }
}

/// Tells each plugin, whatever the others return.
fn tell(plugins: &Plugins, network: &NetworkConfig, pods: &Value) -> Vec<CniError> {
    let deadline = Instant::now() + DEADLINE;
    let told = network.plugins.iter().map(|plugin| {
        let mut input = network.input(plugin);
        input.extend(KEYS.map(|key| (key.to_owned(), pods.clone())));
        plugins.run(&Execution {
            plugin: NetworkConfig::kind(plugin),
            action: Action::Gc,
            subject: SUBJECT,
            input: input.into(),
            environment: ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
                .map(|name| (name, String::new())),
            deadline,
        })
    });
    told.filter_map(Result::err).collect()
}
