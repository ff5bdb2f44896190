//! Profiles in the runtime spec's form: for one container on one machine, and so without Docker's conditions on
//! capabilities, kernels and architectures.
//!
//! The conditions of a rule in the spec must all hold, and each argument may occur only once: runtimes that use
//! libseccomp interpret two conditions on one argument as alternatives.

use std::borrow::Cow;

use oci_spec::runtime::{
    self as oci, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use super::compile::generic;
use super::profile::{Action, Architectures, Condition, EPERM, MAX_ERRNO, Operator, Profile, Rule, Scope};
use super::syscalls::{Abi, is_known};
use super::{Arch, Error, Program, SPEC_ALLOW, Target, compile, json};

/// The profile as it is for this target, without names that are those of no call if these decide nothing. Where calls
/// pass by default, the number of a forbidden one may be among those without a name.
///
/// # Errors
/// Never; the errors of the spec's own checks are passed on.
pub(crate) fn resolve(profile: &Profile, target: &Target) -> Result<LinuxSeccomp, Error> {
    let mut rules = Vec::new();
    for rule in profile.rules.iter().filter(|rule| rule.applies(target)) {
        let passes = profile.default_action.passes();
        let rule = Rule {
            names: rule.names.iter().filter(|name| passes || is_known(name)).cloned().collect(),
            ..rule.clone()
        };
        rules.extend(syscalls(&rule)?.into_iter().filter(|syscall| !syscall.names().is_empty()));
    }
    rules.extend(newest(profile, target));
    let (action, errno) = action_of_spec(profile.default_action);
    let architectures = profile.architectures.abis(target.arch).into_iter().map(architecture_of_spec);
    let mut spec = LinuxSeccomp::default();
    spec.set_default_action(action)
        .set_default_errno_ret(errno)
        .set_architectures(Some(architectures.collect()))
        .set_flags(Some(flags_of_spec(profile.flags.unwrap_or_else(|| target.usual_flags()))))
        .set_syscalls(Some(rules));
    Ok(spec)
}

/// One rule for each alternative.
fn syscalls(rule: &Rule) -> Result<Vec<LinuxSyscall>, Error> {
    if rule.alternatives.is_empty() {
        return Ok(vec![syscall(rule)]);
    }
    let one = |conditions: &Vec<Condition>| {
        let mut syscall = syscall(rule);
        syscall.set_args(Some(conditions.iter().map(argument).collect::<Result<_, _>>()?));
        Ok(syscall)
    };
    rule.alternatives.iter().map(one).collect()
}

fn syscall(rule: &Rule) -> LinuxSyscall {
    let (action, errno) = action_of_spec(rule.action);
    let names = rule.names.iter().map(|name| name.clone().into_owned());
    let mut syscall = LinuxSyscall::default();
    syscall.set_names(names.collect()).set_action(action).set_errno_ret(errno);
    syscall
}

/// A rule that does not apply here still shows, by the calls that it names, how new a kernel its author knew: calls up
/// to that one have the default action, and only newer ones count as unknown. A rule with the default action expresses
/// that and changes nothing else.
fn newest(profile: &Profile, target: &Target) -> Option<LinuxSyscall> {
    let (applying, others): (Vec<&Rule>, Vec<&Rule>) =
        profile.rules.iter().partition(|rule| rule.applies(target));
    let number = |abi: Abi, name: &str| abi.table().number(name).and_then(generic);
    let missing = profile.architectures.abis(target.arch).into_iter().filter_map(|abi| {
        let others = others.iter().flat_map(|rule| &rule.names);
        let (newest, name) = others.filter_map(|name| Some((number(abi, name)?, name))).max()?;
        let mut names = applying.iter().flat_map(|rule| &rule.names);
        let is_known = names.any(|name| number(abi, name).is_some_and(|number| number >= newest));
        (!is_known).then(|| name.clone().into_owned())
    });
    let names: Vec<String> = missing.collect();
    let (action, errno) = action_of_spec(profile.default_action);
    let mut syscall = LinuxSyscall::default();
    syscall.set_action(action).set_errno_ret(errno).set_names(names);
    (!syscall.names().is_empty()).then_some(syscall)
}

fn action_of_spec(action: Action) -> (LinuxSeccompAction, Option<u32>) {
    match action {
        Action::Allow => (LinuxSeccompAction::ScmpActAllow, None),
        Action::Log => (LinuxSeccompAction::ScmpActLog, None),
        Action::Errno(errno) => (LinuxSeccompAction::ScmpActErrno, Some(errno.into())),
        Action::Trace(data) => (LinuxSeccompAction::ScmpActTrace, Some(data.into())),
        Action::Trap => (LinuxSeccompAction::ScmpActTrap, None),
        Action::KillThread => (LinuxSeccompAction::ScmpActKillThread, None),
        Action::KillProcess => (LinuxSeccompAction::ScmpActKillProcess, None),
    }
}

pub(super) fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, Error> {
    let data = |limit: u16| {
        let value = errno.unwrap_or(EPERM.into());
        u16::try_from(value).ok().filter(|data| *data <= limit).ok_or(Error::OutOfRange {
            what: "a return value",
            value: value.into(),
            limit: limit.into(),
        })
    };
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(Action::Allow),
        LinuxSeccompAction::ScmpActLog => Ok(Action::Log),
        LinuxSeccompAction::ScmpActErrno => data(MAX_ERRNO).map(Action::Errno),
        LinuxSeccompAction::ScmpActTrace => data(u16::MAX).map(Action::Trace),
        LinuxSeccompAction::ScmpActTrap => Ok(Action::Trap),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Ok(Action::KillThread),
        LinuxSeccompAction::ScmpActKillProcess => Ok(Action::KillProcess),
        LinuxSeccompAction::ScmpActNotify => Err(Error::Notify { what: "SCMP_ACT_NOTIFY" }),
    }
}

fn architecture_of_spec(abi: Abi) -> oci::Arch {
    match abi {
        Abi::X86_64 => oci::Arch::ScmpArchX86_64,
        Abi::X86 => oci::Arch::ScmpArchX86,
        Abi::X32 => oci::Arch::ScmpArchX32,
        Abi::Aarch64 => oci::Arch::ScmpArchAarch64,
        Abi::Arm => oci::Arch::ScmpArchArm,
    }
}

/// `None` stands for architectures that no supported machine can run: their calls cannot happen.
fn architecture(arch: oci::Arch) -> Option<Abi> {
    let all = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Aarch64, Abi::Arm];
    all.into_iter().find(|abi| architecture_of_spec(*abi) == arch)
}

/// The spec's names for `SECCOMP_FILTER_FLAG_…`.
const FLAGS: [(u32, LinuxSeccompFilterFlag); 3] = [
    (1, LinuxSeccompFilterFlag::SeccompFilterFlagTsync),
    (1 << 1, LinuxSeccompFilterFlag::SeccompFilterFlagLog),
    (SPEC_ALLOW, LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow),
];

fn flags_of_spec(flags: u32) -> Vec<LinuxSeccompFilterFlag> {
    FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, flag)| *flag).collect()
}

fn flags(list: &[LinuxSeccompFilterFlag]) -> Result<u32, Error> {
    list.iter().try_fold(0, |all, flag| match FLAGS.iter().find(|(_, known)| known == flag) {
        Some((bit, _)) => Ok(all | bit),
        None => Err(Error::Notify { what: "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" }),
    })
}

fn argument(condition: &Condition) -> Result<LinuxSeccompArg, Error> {
    use LinuxSeccompOperator as Word;
    let (op, value, value_two) = match condition.operator {
        Operator::Equal => (Word::ScmpCmpEq, condition.value, None),
        Operator::NotEqual => (Word::ScmpCmpNe, condition.value, None),
        Operator::Less => (Word::ScmpCmpLt, condition.value, None),
        Operator::LessOrEqual => (Word::ScmpCmpLe, condition.value, None),
        Operator::Greater => (Word::ScmpCmpGt, condition.value, None),
        Operator::GreaterOrEqual => (Word::ScmpCmpGe, condition.value, None),
        Operator::MaskedEqual(mask) => (Word::ScmpCmpMaskedEq, mask, Some(condition.value)),
    };
    let argument = LinuxSeccompArgBuilder::default().index(condition.index).op(op).value(value);
    let argument = match value_two {
        Some(value) => argument.value_two(value),
        None => argument,
    };
    argument.build().map_err(|source| Error::Spec { source: Box::new(source) })
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, Error> {
    use LinuxSeccompOperator as Word;
    let (operator, value) = match argument.op() {
        Word::ScmpCmpEq => (Operator::Equal, argument.value()),
        Word::ScmpCmpNe => (Operator::NotEqual, argument.value()),
        Word::ScmpCmpLt => (Operator::Less, argument.value()),
        Word::ScmpCmpLe => (Operator::LessOrEqual, argument.value()),
        Word::ScmpCmpGt => (Operator::Greater, argument.value()),
        Word::ScmpCmpGe => (Operator::GreaterOrEqual, argument.value()),
        Word::ScmpCmpMaskedEq => (Operator::MaskedEqual(argument.value()), argument.value_two().unwrap_or(0)),
    };
    Ok(Condition { index: json::index(argument.index().try_into().unwrap_or(u64::MAX))?, operator, value })
}

/// Compiles a profile in the spec's form. One without flags has the usual ones, as in other runtimes: NRI plugins
/// cannot say that they want none.
///
/// # Errors
/// Exceeded limits, and everything that would need a listener.
pub(crate) fn compile_spec(spec: &LinuxSeccomp, arch: Arch) -> Result<Program, Error> {
    if spec.listener_path().is_some() || spec.listener_metadata().is_some() {
        return Err(Error::Notify { what: "listenerPath" });
    }
    let listed = spec.architectures().iter().flatten().filter_map(|arch| architecture(*arch));
    let rules = spec.syscalls().iter().flatten().map(rule).collect::<Result<Vec<_>, _>>()?;
    let profile = Profile {
        default_action: action(spec.default_action(), spec.default_errno_ret())?,
        architectures: Architectures::Listed(listed.collect()),
        flags: Some(spec.flags().as_deref().map_or(Ok(SPEC_ALLOW), flags)?),
        rules,
    };
    // No rule depends on either any more.
    compile(&profile, &Target { arch, capabilities: 0, kernel: (0, 0) })
}

fn rule(syscall: &LinuxSyscall) -> Result<Rule, Error> {
    let conditions = syscall.args().iter().flatten().map(condition).collect::<Result<_, _>>()?;
    Ok(Rule {
        names: syscall.names().iter().map(|name| Cow::Owned(name.clone())).collect(),
        action: action(syscall.action(), syscall.errno_ret())?,
        alternatives: json::alternatives(conditions),
        includes: Scope::default(),
        excludes: Scope::default(),
    })
}
