//! What the runtime spec can express and this build does not support. No request leads to any of it; it is for code
//! that changes a description on the way and would otherwise believe that the change took effect.

use oci_spec::runtime::{Linux, LinuxResources, Process, Spec};

use crate::Refusal;

/// Refuses what a plan cannot express.
pub(crate) fn refuse(spec: &Spec) -> Result<(), Refusal> {
    let fields = of_spec(spec)
        .into_iter()
        .chain(spec.process().iter().flat_map(of_process))
        .chain(spec.linux().iter().flat_map(of_linux));
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let fields = fields.chain(resources.into_iter().flat_map(of_resources));
    match fields.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Refusal::spec(field, "it is not supported yet: leave it out")),
        None => Ok(()),
    }
}

/// A field, and whether it is set.
type Field = (&'static str, bool);

fn of_spec(spec: &Spec) -> [Field; 6] {
    [
        // Names belong to the pod and are set when the pod is made.
        ("hostname", spec.hostname().is_some()),
        ("domainname", spec.domainname().is_some()),
        ("hooks", spec.hooks().is_some()),
        ("vm", spec.vm().is_some()),
        ("uidMappings", spec.uid_mappings().is_some()),
        ("gidMappings", spec.gid_mappings().is_some()),
    ]
}

fn of_process(process: &Process) -> [Field; 5] {
    [
        ("process.consoleSize", process.console_size().is_some()),
        ("process.apparmorProfile", process.apparmor_profile().is_some()),
        ("process.selinuxLabel", process.selinux_label().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("process.commandLine", process.command_line().is_some()),
    ]
}

fn of_linux(linux: &Linux) -> [Field; 6] {
    [
        ("linux.netDevices", linux.net_devices().is_some()),
        // They belong to the pod's namespaces and are set when those are made.
        ("linux.sysctl", linux.sysctl().is_some()),
        ("linux.mountLabel", linux.mount_label().is_some()),
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
