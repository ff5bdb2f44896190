//! A description and its plan as lines of text, each of which can be read on its own.

use serde_json::Value;
use wharf_cgroup::Limits;
use wharf_isolation::{Ids, MountPlan, Plan, Source};
use wharf_sys::mount::Attributes;
use wharf_types::{Failure, ProfileName};

use super::Asked;
use crate::{Description, Filters, cdi, describe, is_enclosed, limits, plan};

/// The result of a request: its description, limits and plan, or the reason for its refusal.
pub(super) fn lines(asked: &Asked) -> Vec<String> {
    let decide = || {
        let mut description = describe(&asked.request(), &asked.facts, &asked.places)?;
        cdi::apply(&mut description, &asked.additions)?;
        let plan = plan(&description, &Filters::default())?;
        let limits = limits(&description.resources())?;
        let mut lines = of_spec(&description);
        lines.extend(of_limits(&limits));
        lines.extend(of_plan(&plan));
        let relabelled = &description.extra.relabelled;
        lines.extend(relabelled.iter().map(|path| format!("relabelled: {path}")));
        lines.push(format!("stop signal: {}", description.extra.stop_signal));
        lines.push(format!("delegation of the cgroup: {:?}", description.extra.delegation));
        lines.push(format!("enclosed: {}", is_enclosed(&description, &limits)));
        Ok::<_, crate::Refusal>(lines)
    };
    decide().unwrap_or_else(|refusal| vec![format!("{:?}: {refusal}", refusal.kind())])
}

fn of_spec(description: &Description) -> Vec<String> {
    let mut lines = Vec::new();
    flatten("spec", &crate::saved_spec::to_json(&description.spec).unwrap(), &mut lines);
    lines
}

/// A line for each value; a list of words is one value, and so is each object in a list.
fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| flatten(&format!("{path}.{name}"), value, lines));
        }
        Value::Array(all) if all.iter().any(Value::is_object) => {
            lines.extend(all.iter().map(|value| format!("{path}: {value}")));
        }
        other => lines.push(format!("{path}: {other}")),
    }
}

fn of_limits(limits: &Limits) -> Vec<String> {
    let Limits { hugepages, unified, devices, .. } = limits;
    let numbers = Limits { hugepages: Vec::new(), unified: [].into(), devices: None, ..limits.clone() };
    let mut lines = vec![
        format!("limits: {numbers:?}"),
        format!("limits of huge pages: {hugepages:?}"),
        format!("limits of v2: {unified:?}"),
    ];
    lines.extend(devices.iter().flatten().map(|rule| {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let (major, minor) = (number(rule.major), number(rule.minor));
        let word = if rule.allow { "allow" } else { "deny" };
        format!("limits: {word} {:?} {major}:{minor} {}", rule.kind, rule.access.letters())
    }));
    lines
}

fn of_plan(plan: &Plan) -> Vec<String> {
    let texts = |all: &[Vec<u8>]| {
        let texts: Vec<_> = all.iter().map(|bytes| bytes.escape_ascii().to_string()).collect();
        texts.join(" ")
    };
    let process = &plan.process;
    let mut lines = vec![
        format!("plan: {:?}", plan.rootfs),
        format!("plan: {:?}", plan.namespaces),
        format!("plan: {:?}", plan.cgroup),
        format!("plan, masked: {:?}", plan.masked_paths),
        format!("plan, read-only: {:?}", plan.readonly_paths),
        format!("plan: {:?}", plan.stdio),
        format!("plan, arguments: {}", texts(&process.args)),
        format!("plan, environment: {}", texts(&process.env)),
        format!("plan, directory: {}", process.cwd),
        format!("plan: {:?}", process.user),
        format!("plan, capabilities: {}", capabilities(plan)),
        format!("plan, no new privileges: {}", process.no_new_privileges),
        format!("plan, limits of the process: {:?}", process.limits),
        format!("plan, score: {:?}", process.oom_score_adj),
        format!("plan: {:?}", process.traits),
        format!("plan, AppArmor: {:?}", process.apparmor.as_ref().map(ProfileName::as_str)),
        format!("plan, filter: {} instructions, flags {}", process.seccomp.len() / 8, process.seccomp_flags),
    ];
    let labels = [("program", &process.selinux), ("files", &plan.mount_label)];
    let labels = labels.into_iter().filter_map(|(of, label)| Some((of, label.as_ref()?)));
    lines.extend(labels.map(|(of, label)| format!("plan, label of the {of}: {label}")));
    lines.extend(plan.mounts.iter().map(of_mount));
    lines.extend(plan.devices.iter().map(|node| {
        let kind = if node.kind == 0o060_000 { 'b' } else { 'c' };
        let (major, minor, mode) = (node.major, node.minor, node.mode);
        format!("plan, node: {} {kind} {major}:{minor} {mode:o} {}:{}", node.path, node.uid, node.gid)
    }));
    lines
}

fn capabilities(plan: &Plan) -> String {
    let sets = plan.process.capabilities;
    format!(
        "bounding {:x}, effective {:x}, permitted {:x}, inheritable {:x}, ambient {:x}",
        sets.bounding, sets.effective, sets.permitted, sets.inheritable, sets.ambient
    )
}

fn of_mount(mount: &MountPlan) -> String {
    let source = match &mount.source {
        Source::Tree(path) => format!("tree {path}"),
        Source::Single(path) => format!("single {path}"),
        Source::OfPod(path) => format!("of the pod {path}"),
        Source::Volume(path) => format!("volume {path}"),
        Source::Image { layers, sub_path } => format!("{sub_path} of the image {layers:?}"),
        Source::Filesystem { kind, options } => {
            let options: Vec<_> = options.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("new {kind} {}", options.join(","))
        }
    };
    let words = [
        (Attributes::READ_ONLY, "read-only"),
        (Attributes::NO_SUID, "nosuid"),
        (Attributes::NO_DEV, "nodev"),
        (Attributes::NO_EXEC, "noexec"),
    ];
    let words = words.iter().filter(|(bit, _)| mount.attributes.has(*bit)).map(|(_, word)| *word);
    let mut words: Vec<_> = words.collect();
    if mount.recursive_read_only {
        words.push("with all below");
    }
    if mount.ids == Ids::Containers {
        words.push("mapped");
    }
    format!("plan, mount: {} = {source} [{}] {:?}", mount.target, words.join(" "), mount.propagation)
}
