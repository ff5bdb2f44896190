//! A profile's action for a call, derived directly from its text without any of the compiler's steps.

use super::Call;
use crate::seccomp::profile::{Action, Architectures, Condition, Operator, Profile, Scope};
use crate::seccomp::syscalls::Abi;
use crate::seccomp::{Arch, Target};

/// The action for a call.
pub(super) fn evaluate(profile: &Profile, target: &Target, call: &Call) -> Action {
    let Some(abi) = abi_of(call).filter(|abi| listed(profile, target.arch, *abi)) else {
        return Action::KillProcess;
    };
    let names: Vec<&str> =
        abi.table().entries().filter(|(_, number)| *number == call.number).map(|(name, _)| name).collect();
    let passes = |action: Action| matches!(action, Action::Allow | Action::Log | Action::Trace(_));
    let passes_default = passes(profile.default_action);
    if names.is_empty() {
        let forbids = misspelt(profile, target).into_iter().any(|action| !passes(action));
        return if passes_default && !forbids { profile.default_action } else { Action::Errno(38) };
    }
    for rule in &profile.rules {
        let named = rule.names.iter().any(|name| names.contains(&name.as_ref()));
        let fits = |conditions: &Vec<Condition>| conditions.iter().all(|condition| holds(condition, call));
        let argued = rule.alternatives.is_empty() || rule.alternatives.iter().any(fits);
        if named && argued && includes(&rule.includes, target) && !excludes(&rule.excludes, target) {
            return rule.action;
        }
    }
    let is_unknown = is_newer(profile, abi, call.number) && !passes_default;
    if is_unknown { Action::Errno(38) } else { profile.default_action }
}

/// What can happen to the only name in these tests that no call has.
fn misspelt(profile: &Profile, target: &Target) -> Vec<Action> {
    let mut actions = Vec::new();
    for rule in &profile.rules {
        let applies = includes(&rule.includes, target) && !excludes(&rule.excludes, target);
        if applies && rule.names.iter().any(|name| name == "no_such_call") {
            actions.push(rule.action);
            if rule.alternatives.is_empty() {
                break;
            }
        }
    }
    actions
}

/// Whether the profile names calls, none of them as new as this one. From 512 on, x32 and Arm have old calls of their
/// own.
fn is_newer(profile: &Profile, abi: Abi, number: u32) -> bool {
    let generic = |number: u32| number & !0x4000_0000 < 512;
    let named = |name: &str| profile.rules.iter().any(|rule| rule.names.iter().any(|known| known == name));
    let mut known = abi.table().entries().filter(|(name, number)| generic(*number) && named(name)).peekable();
    generic(number) && known.peek().is_some() && known.all(|(_, known)| known < number)
}

fn abi_of(call: &Call) -> Option<Abi> {
    match call.audit {
        0xc000_003e if (0x4000_0000..0x8000_0000).contains(&call.number) => Some(Abi::X32),
        0xc000_003e => Some(Abi::X86_64),
        0x4000_0003 => Some(Abi::X86),
        0xc000_00b7 => Some(Abi::Aarch64),
        0x4000_0028 => Some(Abi::Arm),
        _ => None,
    }
}

fn listed(profile: &Profile, arch: Arch, abi: Abi) -> bool {
    let (native, family): (_, &[Abi]) = match arch {
        Arch::X86_64 => (Abi::X86_64, &[Abi::X86, Abi::X32]),
        Arch::Aarch64 => (Abi::Aarch64, &[Abi::Arm]),
    };
    let named = match &profile.architectures {
        Architectures::Listed(abis) => abis.contains(&abi),
        Architectures::Mapped(map) => {
            map.iter().find(|(key, _)| *key == native).is_some_and(|(_, abis)| abis.contains(&abi))
        }
    };
    abi == native || (family.contains(&abi) && named)
}

fn holds(condition: &Condition, call: &Call) -> bool {
    let (argument, value) = (call.arguments[usize::from(condition.index)], condition.value);
    match condition.operator {
        Operator::Equal => argument == value,
        Operator::NotEqual => argument != value,
        Operator::Less => argument < value,
        Operator::LessOrEqual => argument <= value,
        Operator::Greater => argument > value,
        Operator::GreaterOrEqual => argument >= value,
        Operator::MaskedEqual(mask) => argument & mask == value,
    }
}

fn name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

fn includes(scope: &Scope, target: &Target) -> bool {
    let held = scope.capabilities.iter().filter(|mask| target.capabilities & **mask == **mask).count();
    let arch = scope.arches.is_empty() || scope.arches.iter().any(|arch| arch == name(target.arch));
    held == scope.capabilities.len() && arch && scope.min_kernel.is_none_or(|kernel| kernel <= target.kernel)
}

fn excludes(scope: &Scope, target: &Target) -> bool {
    scope.capabilities.iter().any(|mask| target.capabilities & mask == *mask)
        || scope.arches.iter().any(|arch| arch == name(target.arch))
        || scope.min_kernel.is_some_and(|kernel| kernel <= target.kernel)
}
