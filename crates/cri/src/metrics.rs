//! Metrics of pods and containers under the names that cAdvisor gave them, for ListPodSandboxMetrics.
//!
//! Each family of the table has a descriptor and a rule that turns a reading of a container or an interface into
//! samples. A family without data on this node has no descriptor.

mod interfaces;
mod reading;
mod table;

use std::time::Duration;

use wharf_cgroup::{Cgroups, Controller, Version};
use wharf_cri_api::v1::{
    ContainerMetrics, DoubleValue, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value,
};
use wharf_pods::{Container, Engine, Pod, Traffic};

use reading::{Allowance, Disk, Reading};

/// The labels that every sample has, before those of its family.
const BASE_KEYS: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

/// What a node must have for a family to have samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Pressure,
    HugePages,
    /// Also what there was of them.
    PastHugePages,
}

/// One metric: its name, its meaning, and how it is computed from `R`.
struct Family<R: 'static> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    keys: &'static [&'static str],
    needs: Needs,
    samples: fn(&R) -> Vec<Sample>,
}

/// A value, with the labels of its family.
#[derive(Debug, PartialEq, Eq)]
struct Sample {
    labels: Vec<String>,
    value: Value,
}

/// A sample's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// A count.
    Whole(u64),
    /// A time, told in seconds.
    Nanoseconds(u64),
}

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

impl Value {
    /// The number as kubelets before 1.38 read it, without its fraction.
    fn whole(self) -> u64 {
        match self {
            Self::Whole(count) => count,
            Self::Nanoseconds(time) => time / NANOSECONDS_PER_SECOND,
        }
    }

    /// The number with its fraction, for what can have one. Whole seconds stay exact for centuries.
    fn exact(self) -> Option<f64> {
        let Self::Nanoseconds(time) = self else { return None };
        Some(Duration::from_nanos(time).as_secs_f64())
    }
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
            value: Some(UInt64Value { value: sample.value.whole() }),
            double_value: sample.value.exact().map(|value| DoubleValue { value }),
        };
        samples.map(metric).collect()
    }
}

/// The container families for which this node has samples.
#[expect(clippy::disallowed_methods, reason = "procfs has no disk to wait for")]
fn of_containers(cgroups: &Cgroups) -> Vec<&'static Family<Reading>> {
    let pressure = cgroups.version() != Version::V1 && std::path::Path::new("/proc/pressure").exists();
    let huge_pages = cgroups.controllers().contains(&Controller::Hugetlb);
    let is_met = |family: &&Family<Reading>| match family.needs {
        Needs::Nothing => true,
        Needs::Pressure => pressure,
        Needs::HugePages => huge_pages,
        Needs::PastHugePages => cgroups.remembers_hugepages(),
    };
    table::FAMILIES.iter().filter(is_met).collect()
}

/// The descriptors of all samples that this node can have.
pub(crate) fn descriptors(engine: &Engine) -> Vec<MetricDescriptor> {
    let containers = of_containers(engine.cgroups());
    let of_containers = containers.into_iter().map(Family::descriptor);
    of_containers.chain(interfaces::FAMILIES.iter().map(Family::descriptor)).collect()
}

/// The samples of every pod and of its running containers, gathered now. Blocking, because it reads about processes: as
/// many as it is allowed to, whatever containers do.
pub(crate) fn gather(engine: &Engine) -> Vec<PodSandboxMetrics> {
    let gathering = Gathering {
        engine,
        families: of_containers(engine.cgroups()),
        disk: Disk::of(engine.root()),
        traffic: engine.traffic(),
        now_ns: wharf_sys::clock::now_ns(),
        allowance: Allowance::new(),
    };
    engine.pods().iter().map(|pod| gathering.pod(pod)).collect()
}

/// What all pods of one response share.
struct Gathering<'a> {
    engine: &'a Engine,
    families: Vec<&'static Family<Reading>>,
    disk: Option<Disk>,
    traffic: Traffic,
    now_ns: i64,
    allowance: Allowance,
}

impl Gathering<'_> {
    fn pod(&self, pod: &Pod) -> PodSandboxMetrics {
        let base = labels(pod, "", pod.id().as_str(), "");
        let interfaces = self.traffic.of(pod);
        let metrics = interfaces.iter().flat_map(|interface| {
            interfaces::FAMILIES.iter().flat_map(|family| family.metrics(&base, self.now_ns, interface))
        });
        let containers = pod.containers();
        PodSandboxMetrics {
            pod_sandbox_id: pod.id().to_string(),
            metrics: metrics.collect(),
            container_metrics: containers
                .iter()
                .filter_map(|container| self.container(pod, container))
                .collect(),
        }
    }

    fn container(&self, pod: &Pod, container: &Container) -> Option<ContainerMetrics> {
        let reading = Reading::take(self.engine, container, self.disk.clone(), self.now_ns, &self.allowance)?;
        let name = container.with_config(|config| config.metadata.clone()).unwrap_or_default().name;
        let base = labels(pod, &name, container.id().as_str(), &container.image_ref());
        let metrics = self.families.iter().flat_map(|family| family.metrics(&base, self.now_ns, &reading));
        Some(ContainerMetrics { container_id: container.id().to_string(), metrics: metrics.collect() })
    }
}

fn labels(pod: &Pod, container: &str, id: &str, image: &str) -> [String; 5] {
    let metadata = pod.config().metadata.clone().unwrap_or_default();
    [metadata.name, metadata.namespace, container.into(), id.into(), image.into()]
}
