//! What plugins say of themselves: STATUS, which lists of version 1.1.0 and later have.
//!
//! Nobody waits for a plugin here: a thread asks the chain, and until it is back the answer before it counts.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::plugins::{Execution, Plugins};
use super::{Action, CniError, NetworkConfig};
use crate::{Readiness, lock};

/// How old an answer may be. Less than the kubelet's five seconds, so that each of its questions leads to a new answer.
const FRESH: Duration = Duration::from_secs(3);
/// How long a chain may take to answer, unless it has even less time to add a pod.
const DEADLINE: Duration = Duration::from_secs(10);
/// The name of what plugins read; pods' are longer.
const SUBJECT: &str = "status";

/// The status of the node's plugins.
#[derive(Debug)]
pub(super) struct Status {
    plugins: Arc<Plugins>,
    deadline: Duration,
    last: Mutex<Last>,
}

/// What was answered last, and the question that is under way.
#[derive(Debug, Default)]
struct Last {
    answer: Option<Answer>,
    asking: Option<JoinHandle<Answer>>,
}

#[derive(Debug)]
struct Answer {
    network: Arc<NetworkConfig>,
    at: Instant,
    readiness: Readiness,
}

impl Status {
    pub(super) fn new(plugins: Arc<Plugins>, add_deadline: Duration) -> Self {
        Self { plugins, deadline: DEADLINE.min(add_deadline), last: Mutex::default() }
    }

    /// What was answered last, if only for another network: a change of the configuration alone makes no node unready.
    /// Has the plugins asked if that is old.
    pub(super) fn readiness(&self, network: &Arc<NetworkConfig>) -> Readiness {
        let mut last = lock(&self.last);
        if let Some(asked) = last.asking.take_if(|asking| asking.is_finished()) {
            last.answer = Some(asked.join().unwrap_or_else(|_panic| Answer::unknown(network, "it panicked")));
        }
        if last.asking.is_none() && !last.answer.as_ref().is_some_and(|answer| answer.is_fresh(network)) {
            match self.ask(Arc::clone(network)) {
                Ok(asking) => last.asking = Some(asking),
                Err(error) => last.answer = Some(Answer::unknown(network, &error.to_string())),
            }
        }
        let waiting = || Answer::unknown(network, "they have not answered yet");
        last.answer.get_or_insert_with(waiting).readiness.clone()
    }

    fn ask(&self, network: Arc<NetworkConfig>) -> std::io::Result<JoinHandle<Answer>> {
        let (plugins, deadline) = (Arc::clone(&self.plugins), Instant::now() + self.deadline);
        std::thread::Builder::new().name("cni-status".to_owned()).spawn(move || {
            let readiness = match ask_chain(&plugins, &network, deadline) {
                Ok(()) => Readiness::yes(),
                Err(error) => Readiness::not(error.reason(), wharf_types::chain(&error)),
            };
            Answer { network, at: Instant::now(), readiness }
        })
    }
}

impl Answer {
    fn unknown(network: &Arc<NetworkConfig>, why: &str) -> Self {
        let message = format!("the CNI plugins of {} cannot be asked for their status: {why}", network.name);
        let readiness = Readiness::not("CniStatusUnknown", message);
        Self { network: Arc::clone(network), at: Instant::now(), readiness }
    }

    fn is_fresh(&self, network: &Arc<NetworkConfig>) -> bool {
        self.network == *network && self.at.elapsed() < FRESH
    }
}

/// Asks the plugins in their order; the first that is not ready speaks for all.
fn ask_chain(plugins: &Plugins, network: &NetworkConfig, deadline: Instant) -> Result<(), CniError> {
    for plugin in &network.plugins {
        plugins.run(&Execution {
            plugin: NetworkConfig::kind(plugin),
            action: Action::Status,
            subject: SUBJECT,
            input: network.input(plugin).into(),
            environment: ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
                .map(|name| (name, String::new())),
            deadline,
        })?;
    }
    Ok(())
}
