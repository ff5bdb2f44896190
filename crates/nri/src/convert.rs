//! Resources between the three forms that they have: NRI's, the CRI's and the OCI's.
//!
//! The OCI's form is the one that is applied; the other two say less. What cannot be set is refused by its name.

use oci_spec::runtime as oci;
use wharf_cri_api::v1::{self, LinuxContainerResources};
use wharf_types::ErrorKind;

use crate::Error;
use crate::api::{
    HugepageLimit, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources, OptionalBool,
    OptionalInt, OptionalInt64, OptionalUInt32, OptionalUInt64,
};

/// An update of a container's resources.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// As the CRI would ask for it, without what the CRI cannot express.
    pub asked: LinuxContainerResources,
    /// All of it.
    pub resources: oci::LinuxResources,
}

/// A field that cannot be set, and why.
pub(crate) struct Problem {
    pub(crate) field: &'static str,
    pub(crate) problem: String,
}

impl Problem {
    pub(crate) fn new(field: &'static str, problem: impl ToString) -> Self {
        Self { field, problem: problem.to_string() }
    }

    pub(crate) fn by(self, plugins: &str) -> Error {
        let Self { field, problem } = self;
        Error::Impossible { kind: ErrorKind::FailedPrecondition, plugins: plugins.to_owned(), field, problem }
    }
}

/// What a request of the CRI asks for; zeros and empty texts ask for nothing.
pub(crate) fn of_cri(asked: &LinuxContainerResources) -> LinuxResources {
    let signed = |value: i64| (value != 0).then_some(OptionalInt64 { value });
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let unsigned = |value: i64| positive(value).map(|value| OptionalUInt64 { value });
    let memory = LinuxMemory {
        limit: signed(asked.memory_limit_in_bytes),
        swap: signed(asked.memory_swap_limit_in_bytes),
        ..LinuxMemory::default()
    };
    let cpu = LinuxCpu {
        shares: unsigned(asked.cpu_shares),
        quota: signed(asked.cpu_quota),
        period: unsigned(asked.cpu_period),
        cpus: asked.cpuset_cpus.clone(),
        mems: asked.cpuset_mems.clone(),
        ..LinuxCpu::default()
    };
    let limits = asked.hugepage_limits.iter();
    LinuxResources {
        memory: Some(memory),
        cpu: Some(cpu),
        hugepage_limits: limits
            .map(|limit| HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: asked.unified.clone(),
        ..LinuxResources::default()
    }
}

/// What a container's runtime spec says.
pub(crate) fn of_oci(resources: &oci::LinuxResources) -> LinuxResources {
    let memory = resources.memory().unwrap_or_default();
    let cpu = resources.cpu().clone().unwrap_or_default();
    let rules = resources.devices().iter().flatten();
    let limits = resources.hugepage_limits().iter().flatten();
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: memory.limit().map(int64),
            reservation: memory.reservation().map(int64),
            swap: memory.swap().map(int64),
            swappiness: memory.swappiness().map(uint64),
            disable_oom_killer: memory.disable_oom_killer().map(|value| OptionalBool { value }),
            use_hierarchy: memory.use_hierarchy().map(|value| OptionalBool { value }),
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            shares: cpu.shares().map(uint64),
            quota: cpu.quota().map(int64),
            period: cpu.period().map(uint64),
            realtime_runtime: cpu.realtime_runtime().map(int64),
            realtime_period: cpu.realtime_period().map(uint64),
            cpus: cpu.cpus().clone().unwrap_or_default(),
            mems: cpu.mems().clone().unwrap_or_default(),
        }),
        hugepage_limits: limits
            .map(|limit| HugepageLimit {
                page_size: limit.page_size().clone(),
                limit: u64::try_from(limit.limit()).unwrap_or_default(),
            })
            .collect(),
        unified: resources.unified().clone().into_iter().flatten().collect(),
        devices: rules.map(rule_of_oci).collect(),
        pids: resources.pids().map(|pids| LinuxPids { limit: pids.limit() }),
        ..LinuxResources::default()
    }
}

fn rule_of_oci(rule: &oci::LinuxDeviceCgroup) -> LinuxDeviceCgroup {
    LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().unwrap_or_default().as_str().to_owned(),
        major: rule.major().map(int64),
        minor: rule.minor().map(int64),
        access: rule.access().clone().unwrap_or_default(),
    }
}

pub(crate) fn int64(value: i64) -> OptionalInt64 {
    OptionalInt64 { value }
}

pub(crate) fn int(value: i64) -> OptionalInt {
    OptionalInt { value }
}

pub(crate) fn uint32(value: u32) -> OptionalUInt32 {
    OptionalUInt32 { value }
}

fn uint64(value: u64) -> OptionalUInt64 {
    OptionalUInt64 { value }
}

/// Sets in the runtime spec's resources what a plugin sets. A limit of memory alone also limits swap, as in requests.
pub(crate) fn apply(new: &LinuxResources, all: &mut oci::LinuxResources) -> Result<(), Problem> {
    if let Some(new) = &new.memory {
        let mut memory = all.memory().unwrap_or_default();
        set_memory(new, &mut memory);
        all.set_memory(Some(memory));
    }
    if let Some(new) = &new.cpu {
        let mut cpu = all.cpu().clone().unwrap_or_default();
        set_cpu(new, &mut cpu);
        all.set_cpu(Some(cpu));
    }
    if !new.hugepage_limits.is_empty() {
        let mut limits = all.hugepage_limits().clone().unwrap_or_default();
        for HugepageLimit { page_size, limit } in &new.hugepage_limits {
            limits.retain(|known| known.page_size() != page_size);
            let mut added = oci::LinuxHugepageLimit::default();
            // To the kernel, all larger numbers mean the same: no limit.
            added.set_page_size(page_size.clone()).set_limit(i64::try_from(*limit).unwrap_or(i64::MAX));
            limits.push(added);
        }
        all.set_hugepage_limits(Some(limits));
    }
    if !new.unified.is_empty() {
        let mut unified = all.unified().clone().unwrap_or_default();
        unified.extend(new.unified.clone());
        all.set_unified(Some(unified));
    }
    if let Some(pids) = &new.pids {
        let mut limit = oci::LinuxPids::default();
        limit.set_limit(pids.limit);
        all.set_pids(Some(limit));
    }
    if !new.devices.is_empty() {
        let mut rules = all.devices().clone().unwrap_or_default();
        for rule in &new.devices {
            rules.push(device_rule(rule)?);
        }
        all.set_devices(Some(rules));
    }
    match &new.blockio_class {
        Some(class) if !class.value.is_empty() => {
            let problem = format!("no class {:?} is configured: wharf has none", class.value);
            Err(Problem::new("blockio_class", problem))
        }
        _ => Ok(()),
    }
}

fn set_memory(new: &LinuxMemory, memory: &mut oci::LinuxMemory) {
    let signed = |value: &Option<OptionalInt64>| value.as_ref().map(|value| value.value);
    if let Some(limit) = signed(&new.limit).filter(|limit| *limit != 0) {
        memory.set_limit(Some(limit)).set_swap(Some(limit));
    }
    if let Some(swap) = signed(&new.swap).filter(|swap| *swap != 0) {
        memory.set_swap(Some(swap));
    }
    if let Some(reservation) = signed(&new.reservation) {
        memory.set_reservation(Some(reservation));
    }
    if let Some(kernel) = signed(&new.kernel) {
        memory.set_kernel(Some(kernel));
    }
    if let Some(kernel_tcp) = signed(&new.kernel_tcp) {
        memory.set_kernel_tcp(Some(kernel_tcp));
    }
    if let Some(swappiness) = &new.swappiness {
        memory.set_swappiness(Some(swappiness.value));
    }
    if let Some(disable) = &new.disable_oom_killer {
        memory.set_disable_oom_killer(Some(disable.value));
    }
    if let Some(hierarchy) = &new.use_hierarchy {
        memory.set_use_hierarchy(Some(hierarchy.value));
    }
}

fn set_cpu(new: &LinuxCpu, cpu: &mut oci::LinuxCpu) {
    if let Some(shares) = &new.shares {
        cpu.set_shares(Some(shares.value));
    }
    if let Some(quota) = &new.quota {
        cpu.set_quota(Some(quota.value));
    }
    if let Some(period) = &new.period {
        cpu.set_period(Some(period.value));
    }
    if let Some(runtime) = &new.realtime_runtime {
        cpu.set_realtime_runtime(Some(runtime.value));
    }
    if let Some(period) = &new.realtime_period {
        cpu.set_realtime_period(Some(period.value));
    }
    if !new.cpus.is_empty() {
        cpu.set_cpus(Some(new.cpus.clone()));
    }
    if !new.mems.is_empty() {
        cpu.set_mems(Some(new.mems.clone()));
    }
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Result<oci::LinuxDeviceCgroup, Problem> {
    let mut spec = oci::LinuxDeviceCgroup::default();
    spec.set_allow(rule.allow)
        .set_typ(Some(word("resources.devices", &rule.r#type)?))
        .set_major(rule.major.as_ref().map(|major| major.value))
        .set_minor(rule.minor.as_ref().map(|minor| minor.value))
        .set_access(Some(rule.access.clone()));
    Ok(spec)
}

/// One of the words that the runtime spec has for something.
pub(crate) fn word<T: serde::de::DeserializeOwned>(field: &'static str, word: &str) -> Result<T, Problem> {
    let value = serde_json::Value::String(word.to_owned());
    serde_json::from_value(value).map_err(|_unknown| Problem::new(field, format!("{word:?} is not known")))
}

/// A plugin's update of a container that exists.
///
/// # Errors
/// [`Error::Impossible`] for what cannot be changed any more.
pub(crate) fn to_update(new: &LinuxResources, plugins: &str) -> Result<Update, Error> {
    let problem = |field| Err(Problem::new(field, "it is fixed when the container is created").by(plugins));
    if !new.devices.is_empty() {
        return problem("resources.devices");
    }
    if new.rdt_class.as_ref().is_some_and(|class| !class.value.is_empty()) {
        return problem("rdt_class");
    }
    let mut resources = oci::LinuxResources::default();
    apply(new, &mut resources).map_err(|problem| problem.by(plugins))?;
    Ok(Update { asked: in_cri(&resources), resources })
}

/// What the CRI can express of resources.
pub(crate) fn in_cri(resources: &oci::LinuxResources) -> LinuxContainerResources {
    let memory = resources.memory().unwrap_or_default();
    let cpu = resources.cpu().clone().unwrap_or_default();
    let signed = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or_default();
    let limits = resources.hugepage_limits().iter().flatten();
    LinuxContainerResources {
        cpu_period: signed(cpu.period()),
        cpu_quota: cpu.quota().unwrap_or_default(),
        cpu_shares: signed(cpu.shares()),
        memory_limit_in_bytes: memory.limit().unwrap_or_default(),
        oom_score_adj: 0,
        cpuset_cpus: cpu.cpus().clone().unwrap_or_default(),
        cpuset_mems: cpu.mems().clone().unwrap_or_default(),
        hugepage_limits: limits
            .map(|limit| v1::HugepageLimit {
                page_size: limit.page_size().clone(),
                limit: u64::try_from(limit.limit()).unwrap_or_default(),
            })
            .collect(),
        unified: resources.unified().clone().into_iter().flatten().collect(),
        memory_swap_limit_in_bytes: memory.swap().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::OptionalString;

    fn asked() -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 30,
            cpuset_cpus: "0-1".to_owned(),
            cpuset_mems: "0".to_owned(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 }],
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            memory_swap_limit_in_bytes: 2 << 30,
            ..LinuxContainerResources::default()
        }
    }

    #[test]
    fn what_is_asked_for_comes_back() {
        let update = to_update(&of_cri(&asked()), "10-a").unwrap();
        assert_eq!(update.asked, asked());
        let shown = of_oci(&update.resources);
        assert_eq!(to_update(&shown, "10-a").unwrap(), update);
    }

    #[test]
    fn memory_alone_limits_swap() {
        let alone = LinuxContainerResources { memory_swap_limit_in_bytes: 0, ..asked() };
        let update = to_update(&of_cri(&alone), "10-a").unwrap();
        assert_eq!(update.resources.memory().unwrap().swap(), Some(1 << 30));
    }

    #[test]
    fn what_an_update_cannot_change_is_refused_by_name() {
        let class = || Some(OptionalString { value: "gold".to_owned() });
        let cases = [
            LinuxResources { blockio_class: class(), ..LinuxResources::default() },
            LinuxResources { rdt_class: class(), ..LinuxResources::default() },
            LinuxResources { devices: vec![LinuxDeviceCgroup::default()], ..LinuxResources::default() },
        ];
        for (resources, field) in cases.iter().zip(["blockio_class", "rdt_class", "resources.devices"]) {
            let refused = to_update(resources, "10-a").unwrap_err().to_string();
            assert!(refused.contains("10-a") && refused.contains(field), "{refused}");
        }
    }
}
