//! Metrics of pods and containers under the names that cAdvisor gave them, for ListPodSandboxMetrics.
//!
//! A family of the table is a descriptor and, for each container or interface, a rule that turns a reading into
//! samples. What the node does not tell has no descriptor.

mod interfaces;
mod reading;
mod table;

use wharf_cgroup::{Cgroups, Controller, Version};
use wharf_cri_api::v1::{
    ContainerMetrics, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value,
};

use crate::container::Container;
use crate::engine::Engine;
use crate::pod::Pod;
use reading::Reading;

/// What every sample is labelled with, before the labels of its family.
const BASE_KEYS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// What a node must have for a family to have samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Pressure,
    HugePages,
}

/// One metric: a name, what it means, and how it is read off `R`.
struct Family<R: 'static> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    keys: &'static [&'static str],
    needs: Needs,
    samples: fn(&R) -> Vec<Sample>,
}

/// A value with the labels of its family.
#[derive(Debug, PartialEq, Eq)]
struct Sample {
    labels: Vec<String>,
    value: u64,
}

impl<R> Family<R> {
    fn descriptor(&self) -> MetricDescriptor {
        MetricDescriptor {
            name: self.name.into(),
            help: self.help.into(),
            label_keys: BASE_KEYS.iter().chain(self.keys).map(ToString::to_string).collect(),
        }
    }

    fn metrics(&self, base: &[String; 5], timestamp: i64, of: &R) -> Vec<Metric> {
        let samples = (self.samples)(of).into_iter();
        let metric = |sample: Sample| Metric {
            name: self.name.into(),
            timestamp,
            metric_type: self.kind.into(),
            label_values: base.iter().cloned().chain(sample.labels).collect(),
            value: Some(UInt64Value { value: sample.value }),
        };
        samples.map(metric).collect()
    }
}

fn is_met(needs: Needs, cgroups: &Cgroups) -> bool {
    match needs {
        Needs::Nothing => true,
        Needs::Pressure => {
            cgroups.version() != Version::V1 && std::path::Path::new("/proc/pressure").exists()
        }
        Needs::HugePages => cgroups.controllers().contains(&Controller::Hugetlb),
    }
}

/// What samples there can be on this node.
#[must_use]
pub fn metric_descriptors(engine: &Engine) -> Vec<MetricDescriptor> {
    let cgroups = &engine.parts.cgroups;
    let of_containers = table::FAMILIES.iter().filter(|family| is_met(family.needs, cgroups));
    of_containers.map(Family::descriptor).chain(interfaces::FAMILIES.iter().map(Family::descriptor)).collect()
}

/// The samples of a pod and of its running containers, gathered now; blocking, as it looks at every process.
#[must_use]
pub fn pod_metrics(engine: &Engine, pod: &Pod) -> PodSandboxMetrics {
    let now = wharf_sys::clock::now_ns();
    let base = labels(pod, "", pod.id.as_str(), "");
    let read = pod.network_stats().as_ref().and_then(|socket| socket.read().ok()).unwrap_or_default();
    let metrics = read.iter().flat_map(|interface| {
        interfaces::FAMILIES.iter().flat_map(|family| family.metrics(&base, now, interface))
    });
    PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_string(),
        metrics: metrics.collect(),
        container_metrics: pod
            .containers()
            .iter()
            .filter_map(|container| container_metrics(engine, pod, container, now))
            .collect(),
    }
}

fn container_metrics(
    engine: &Engine,
    pod: &Pod,
    container: &Container,
    now: i64,
) -> Option<ContainerMetrics> {
    let reading = Reading::take(engine, container, now)?;
    let record = container.record();
    let name = record.config.metadata.map(|metadata| metadata.name).unwrap_or_default();
    let base = labels(pod, &name, container.id.as_str(), &record.image_ref);
    let families = table::FAMILIES.iter().filter(|family| is_met(family.needs, &engine.parts.cgroups));
    Some(ContainerMetrics {
        container_id: container.id.to_string(),
        metrics: families.flat_map(|family| family.metrics(&base, now, &reading)).collect(),
    })
}

fn labels(pod: &Pod, container: &str, id: &str, image: &str) -> [String; 5] {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    [metadata.name, metadata.namespace, container.into(), id.into(), image.into()]
}
