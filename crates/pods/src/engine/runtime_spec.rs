//! The runtime spec of a container, which is saved beside its record, as tools expect it.
//!
//! It is for people and tools alone: nothing in wharf reads it to decide something. What became known after it was
//! saved, users' numbers and present limits, is filled in.

use std::sync::Arc;

use serde_json::{Value, json};
use wharf_planner as planner;
use wharf_records::load_spec;
use wharf_types::chain;

use super::Engine;
use crate::container::Container;
use crate::error::{Error, blocking};
use crate::places;
use crate::pod::Pod;

impl Engine {
    /// The runtime spec of a container; for a container of an older build, the little that is known.
    pub async fn runtime_spec(self: &Arc<Self>, pod: &Pod, container: &Arc<Container>) -> Value {
        let (engine, shown) = (Arc::clone(self), Arc::clone(container));
        let saved = blocking(move || engine.saved_spec(&shown)).await.unwrap_or_else(|error| {
            let (container, error) = (container.id().short(), chain(&error));
            tracing::warn!(container, error, "the saved runtime spec cannot be read");
            None
        });
        let of_older_build = || {
            let cgroup = container.with_record(|record| record.cgroup.clone());
            json!({ "linux": { "cgroupsPath": cgroup, "namespaces": self.namespaces(pod) } })
        };
        saved.unwrap_or_else(of_older_build)
    }

    fn saved_spec(&self, container: &Container) -> Result<Option<Value>, Error> {
        let path = self.parts.layout.container_spec(container.pod_id(), container.id());
        let Some(text) = load_spec(&path)? else { return Ok(None) };
        let record = container.record();
        let identity = planner::Identity { uid: record.uid, gid: record.gid, groups: &record.groups };
        Ok(Some(planner::from_saved(&text, &record.config, identity, self.machine.kernel)?))
    }

    /// The pod's own namespaces, with paths that stay valid as long as the namespaces exist.
    #[must_use]
    pub fn namespaces(&self, pod: &Pod) -> Vec<Value> {
        // Only the supervisor knows where they are.
        let Ok(supervisor) = pod.connection() else { return Vec::new() };
        match places::pins(&self.parts.layout, pod.id(), &supervisor.held()) {
            Ok(pins) if pod.is_ready() => planner::shown_namespaces(&pod.namespaces(), &pins),
            _ => Vec::new(),
        }
    }
}
