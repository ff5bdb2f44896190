//! One plugin: what it wants to be asked, and how it is asked.
//!
//! Requests wait in the plugin's own queue. What follows if a plugin does not respond in time is its failure policy's
//! to say; by default it is disconnected, and the request continues without it.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use crate::Error;
use crate::api::{Container, Empty, Event, FailurePolicy, PluginInstance, PodSandbox, StateChangeEvent};
use crate::launch::Process;
use crate::wire::{CallError, Connection, PLUGIN_SERVICE, code};

/// A plugin that has registered.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) index: String,
    pub(crate) base: String,
    /// Index and name: `10-logger`.
    pub(crate) name: String,
    connection: Connection,
    events: i32,
    policy: FailurePolicy,
    patience: Duration,
    /// Held during a request: plugins rely on getting one at a time.
    lane: Mutex<()>,
    /// Its process, if wharfd started it.
    _process: Option<Process>,
}

/// A plugin's name, and what it said when it registered.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) index: String,
    pub(crate) base: String,
    pub(crate) events: i32,
    pub(crate) policy: FailurePolicy,
    pub(crate) process: Option<Process>,
}

/// All known events.
pub(crate) const ALL_EVENTS: i32 = (1 << (Event::ValidateContainerAdjustment as i32)) - 1;

/// The bit of an event.
pub(crate) fn bit(event: Event) -> i32 {
    1 << (event as i32 - 1)
}

/// A request to a plugin.
pub(crate) struct Question<'a, M> {
    pub(crate) event: Event,
    pub(crate) method: &'static str,
    pub(crate) message: &'a M,
}

impl Plugin {
    pub(crate) fn new(connection: Connection, registration: Registration, patience: Duration) -> Self {
        let Registration { index, base, events, policy, process } = registration;
        Self {
            name: format!("{index}-{base}"),
            index,
            base,
            connection,
            events,
            policy,
            patience,
            lane: Mutex::default(),
            _process: process,
        }
    }

    pub(crate) fn events(&self) -> i32 {
        self.events
    }

    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & bit(event) != 0
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn instance(&self) -> PluginInstance {
        PluginInstance { name: self.base.clone(), index: self.index.clone() }
    }

    /// Keeps other requests waiting until the plugin is synchronised.
    pub(crate) async fn occupy(&self) -> MutexGuard<'_, ()> {
        self.lane.lock().await
    }

    /// Sends it a request, if it subscribes to that. `None` if it does not, or if it does not respond and the request
    /// continues without it.
    pub(crate) async fn ask<R: prost::Message + Default>(
        &self,
        question: Question<'_, impl prost::Message>,
    ) -> Result<Option<R>, Error> {
        if !self.wants(question.event) {
            return Ok(None);
        }
        let _turn = self.lane.lock().await;
        if self.connection.is_ended() {
            return Ok(None);
        }
        let asked = self.call(question.method, question.message).await;
        self.judge(question.method, asked)
    }

    /// Sends it an event. Older plugins have one method for all events without a result.
    pub(crate) async fn tell(
        &self,
        question: Question<'_, impl prost::Message>,
        (pod, container): (&PodSandbox, Option<&Container>),
    ) -> Result<(), Error> {
        if !self.wants(question.event) {
            return Ok(());
        }
        let _turn = self.lane.lock().await;
        if self.connection.is_ended() {
            return Ok(());
        }
        let mut told: Result<Empty, Failed> = self.call(question.method, question.message).await;
        if let Err(Failed::Call(CallError::Failed(status))) = &told
            && status.code == code::UNIMPLEMENTED
        {
            let event = question.event.into();
            let message = StateChangeEvent { event, pod: Some(pod.clone()), container: container.cloned() };
            told = self.call("StateChange", &message).await;
        }
        self.judge(question.method, told).map(drop)
    }

    async fn call<R: prost::Message + Default>(
        &self,
        method: &'static str,
        message: &impl prost::Message,
    ) -> Result<R, Failed> {
        let call = self.connection.call((PLUGIN_SERVICE, method), message, self.patience);
        match timeout(self.patience, call).await {
            Ok(called) => called.map_err(Failed::Call),
            Err(_elapsed) => Err(Failed::Late(self.patience)),
        }
    }

    /// An error in a response is the plugin's decision. Without a response the plugin is disconnected, and the request
    /// continues without it, unless its failure policy says otherwise.
    fn judge<R>(&self, method: &'static str, asked: Result<R, Failed>) -> Result<Option<R>, Error> {
        let plugin = self.name.clone();
        let failed = match asked {
            Ok(response) => return Ok(Some(response)),
            Err(Failed::Call(CallError::Failed(status))) => {
                return Err(Error::Refused { plugin, call: method, message: status.message });
            }
            Err(failed) => failed,
        };
        let problem = failed.to_string();
        if !(matches!(failed, Failed::Late(_)) && self.policy.keep_connected) {
            tracing::warn!(plugin, method, problem, "an NRI plugin was disconnected");
            self.connection.close();
        }
        if self.policy.fail_request {
            return Err(Error::Silent { plugin, call: method, problem });
        }
        tracing::warn!(plugin, method, problem, "continuing without an NRI plugin");
        Ok(None)
    }
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Call(CallError),
    #[error("no response within {0:?}")]
    Late(Duration),
}
