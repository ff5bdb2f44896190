//! What the runtime spec can express and this build does not support. No request leads to any of it by itself; it is
//! for what changes a description on the way and would otherwise believe that the change took effect.

use oci_spec::runtime::{Linux, LinuxResources, Process, Spec};

use crate::Refusal;

/// Refuses what a plan cannot express.
pub(crate) fn refuse(spec: &Spec) -> Result<(), Refusal> {
    let fields = of_spec(spec)
        .into_iter()
        .chain(spec.process().iter().flat_map(of_process))
        .chain(spec.linux().iter().flat_map(of_linux));
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    first(fields.chain(resources.into_iter().flat_map(of_resources)))
}

/// Refuses resources that no cgroup can be given.
///
/// # Errors
/// The first such field.
pub fn refuse_resources(resources: &LinuxResources) -> Result<(), Refusal> {
    first(of_resources(resources).into_iter())
}

fn first(mut fields: impl Iterator<Item = Field>) -> Result<(), Refusal> {
    match fields.find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Refusal::spec(field, reason(field))),
        None => Ok(()),
    }
}

/// Why a field is refused, and what does the same.
fn reason(field: &str) -> &'static str {
    match field {
        "hostname" | "domainname" => "the hostname belongs to the whole pod: set it there",
        "vm" => "wharf runs no virtual machines: use another runtime",
        "uidMappings" | "gidMappings" => "the spec has them below linux: put them there",
        "process.consoleSize" => "the size of a terminal comes from its client: leave it out",
        "process.execCPUAffinity" => {
            "commands run on the CPUs of the container: set linux.resources.cpu.cpus"
        }
        "process.commandLine" => "it is for Windows: set args",
        "linux.netDevices" => "the network is the pod's: have a CNI plugin move the device",
        "linux.sysctl" => "sysctls belong to the whole pod: set them there",
        "linux.intelRdt" => "wharf does not manage resctrl: assign the processes of the cgroup to a class",
        "linux.memoryPolicy" => "set linux.resources.cpu.mems, which holds for all processes",
        "linux.timeOffsets" => "containers have the machine's clocks: leave it out",
        "linux.resources.network" => "cgroup v2 has no such controller: use a network policy",
        "linux.resources.rdma" => "set rdma.max in unified",
        "linux.resources.cpu.realtimeRuntime" | "linux.resources.cpu.realtimePeriod" => {
            "real time must be granted by every parent cgroup, and these have none: leave it out"
        }
        "linux.resources.memory.kernel" | "linux.resources.memory.kernelTCP" => {
            "the kernel's memory is part of the limit since Linux 5.4: set memory.limit"
        }
        "linux.resources.memory.disableOOMKiller" => {
            "a container at its limit would hang forever: raise memory.limit"
        }
        "linux.resources.memory.useHierarchy" => "it is always on since Linux 5.11: leave it out",
        "linux.resources.memory.checkBeforeUpdate" => {
            "an update that the kernel refuses changes nothing anyway: leave it out"
        }
        _ => "it is not supported yet: leave it out",
    }
}

/// A field, and whether it is set.
type Field = (&'static str, bool);

fn of_spec(spec: &Spec) -> [Field; 5] {
    [
        // Names belong to the pod and are set when the pod is made.
        ("hostname", spec.hostname().is_some()),
        ("domainname", spec.domainname().is_some()),
        ("vm", spec.vm().is_some()),
        ("uidMappings", spec.uid_mappings().is_some()),
        ("gidMappings", spec.gid_mappings().is_some()),
    ]
}

fn of_process(process: &Process) -> [Field; 3] {
    [
        ("process.consoleSize", process.console_size().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("process.commandLine", process.command_line().is_some()),
    ]
}

fn of_linux(linux: &Linux) -> [Field; 5] {
    [
        ("linux.netDevices", linux.net_devices().is_some()),
        // They belong to the pod's namespaces and are set when those are made.
        ("linux.sysctl", linux.sysctl().is_some()),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.timeOffsets", linux.time_offsets().is_some()),
    ]
}

fn of_resources(resources: &LinuxResources) -> Vec<Field> {
    let cpu = resources.cpu().clone().unwrap_or_default();
    let memory = resources.memory().unwrap_or_default();
    vec![
        ("linux.resources.network", resources.network().is_some()),
        ("linux.resources.rdma", resources.rdma().is_some()),
        ("linux.resources.cpu.realtimeRuntime", cpu.realtime_runtime().is_some()),
        ("linux.resources.cpu.realtimePeriod", cpu.realtime_period().is_some()),
        ("linux.resources.memory.kernel", memory.kernel().is_some()),
        ("linux.resources.memory.kernelTCP", memory.kernel_tcp().is_some()),
        ("linux.resources.memory.disableOOMKiller", memory.disable_oom_killer().is_some()),
        ("linux.resources.memory.useHierarchy", memory.use_hierarchy().is_some()),
        ("linux.resources.memory.checkBeforeUpdate", memory.check_before_update().is_some()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do_instead() {
        let (spec, process, linux) = (Spec::default(), Process::default(), Linux::default());
        let fields = of_spec(&spec).into_iter().chain(of_process(&process)).chain(of_linux(&linux));
        let fields = fields.chain(of_resources(&LinuxResources::default()));
        let (names, general): (Vec<_>, _) = (fields.map(|(name, _)| name).collect(), reason("no such field"));
        let unsaid = names.iter().filter(|name| reason(name) == general);
        assert_eq!(unsaid.collect::<Vec<_>>(), Vec::<&&str>::new());
        assert!(names.len() > 15);
    }
}
