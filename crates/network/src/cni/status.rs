//! The readiness that plugins report: STATUS, which chains of version 1.1.0 and later have.
//!
//! A thread asks the chain, and until it has a response the previous one counts. Nobody waits for a plugin, except a
//! moment for the first response: a daemon that has just started must not make its node unready, and the node's pods
//! with it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wharf_types::lock::lock;

use super::plugins::{Execution, Plugins};
use super::{Action, CniError, NetworkConfig};
use crate::Readiness;

/// How old an answer may be. It is less than the kubelet's interval of five seconds, so that each of the kubelet's
/// calls leads to a new answer.
const FRESH: Duration = Duration::from_secs(3);
/// How long a chain may take to answer, unless it has even less time to add a pod.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait for the first answer: less than the CRI waits for the network.
const FIRST_PATIENCE: Duration = Duration::from_millis(1500);
/// The subject's file name; those of pods are longer.
const SUBJECT: &str = "status";

/// The status of the node's plugins.
#[derive(Debug)]
pub(super) struct Status {
    plugins: Arc<Plugins>,
    deadline: Duration,
    /// Held while the first answer is waited for, so that all callers wait for the same one.
    last: Mutex<Last>,
}

/// The last answer, and the question that is being answered.
#[derive(Debug, Default)]
struct Last {
    answer: Option<Answer>,
    asking: Option<Receiver<Answer>>,
}

impl Last {
    /// Takes the answer to the current question, if it arrives within this time.
    fn receive(&mut self, network: &Arc<NetworkConfig>, patience: Duration) {
        let Some(asking) = &self.asking else { return };
        self.answer = match asking.recv_timeout(patience) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Answer::unknown(network, "the thread that asked them panicked"))
            }
        };
        self.asking = None;
    }
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

    /// The last answer, even if it was for another network: a change of the configuration alone must not make a node
    /// unready. An old answer has the plugins asked again.
    pub(super) fn readiness(&self, network: &Arc<NetworkConfig>) -> Readiness {
        let mut last = lock(&self.last);
        last.receive(network, Duration::ZERO);
        if last.asking.is_none() && !last.answer.as_ref().is_some_and(|answer| answer.is_fresh(network)) {
            match self.ask(Arc::clone(network)) {
                Ok(asking) => last.asking = Some(asking),
                Err(error) => last.answer = Some(Answer::unknown(network, &error.to_string())),
            }
        }
        if last.answer.is_none() {
            last.receive(network, FIRST_PATIENCE);
        }
        let waiting = || Answer::unknown(network, "they have not responded yet");
        last.answer.get_or_insert_with(waiting).readiness.clone()
    }

    fn ask(&self, network: Arc<NetworkConfig>) -> std::io::Result<Receiver<Answer>> {
        let (plugins, deadline) = (Arc::clone(&self.plugins), Instant::now() + self.deadline);
        let (sender, answer) = sync_channel(1);
        std::thread::Builder::new().name("cni-status".to_owned()).spawn(move || {
            let readiness = match ask_chain(&plugins, &network, deadline) {
                Ok(()) => Readiness::yes(),
                Err(error) => Readiness::not(error.reason(), wharf_types::chain(&error)),
            };
            // If the daemon is exiting, nobody receives it.
            sender.send(Answer { network, at: Instant::now(), readiness }).unwrap_or_default();
        })?;
        Ok(answer)
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

/// Asks the plugins in order; the first that is not ready decides.
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
