//! The JSON form of profiles: that of the runtime specification, with Docker's additions.

use std::borrow::Cow;

use serde::Deserialize;

use super::Error;
use super::profile::{Action, Architectures, Condition, EPERM, MAX_ERRNO, Operator, Profile, Rule, Scope};
use super::syscalls::Abi;
use crate::capabilities;

/// The longest profile, in bytes; real ones are below 32 KiB.
const MAX_BYTES: usize = 1 << 20;
/// The most names in all rules together, and the most rules; no kernel has a thousand calls.
const MAX_NAMES: usize = 4096;
const MAX_RULES: usize = 4096;
/// The most conditions in all rules together: more do not fit a filter anyway.
pub(super) const MAX_CONDITIONS: usize = 4096;
/// The longest name of a call, in bytes; no kernel has one half as long.
const MAX_NAME_BYTES: usize = 64;
/// The most pairs of a name and an alternative in all rules together: in the runtime spec each alternative repeats all
/// names of its rule.
pub(super) const MAX_PAIRS: usize = 16_384;
/// The arguments of a call are numbered 0 to 5.
pub(super) const MAX_INDEX: u8 = 5;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonProfile {
    default_action: String,
    default_errno_ret: Option<u64>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<JsonArchitecture>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<JsonRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArchitecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    /// Docker's form before 1.13.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u64>,
    args: Option<Vec<JsonCondition>>,
    includes: Option<JsonScope>,
    excludes: Option<JsonScope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonCondition {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonScope {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Parses a profile and checks every word of it.
pub(super) fn parse(text: &[u8]) -> Result<Profile, Error> {
    within("bytes", text.len(), MAX_BYTES)?;
    let json: JsonProfile = serde_json::from_slice(text).map_err(|source| Error::Json { source })?;
    if json.listener_path.is_some_and(|path| !path.is_empty()) {
        return Err(Error::Notify { what: "listenerPath" });
    }
    let rules = json.syscalls.unwrap_or_default();
    within("rules", rules.len(), MAX_RULES)?;
    within("names", rules.iter().map(|rule| rule.names.as_ref().map_or(1, Vec::len)).sum(), MAX_NAMES)?;
    within(
        "conditions",
        rules.iter().map(|rule| rule.args.as_ref().map_or(0, Vec::len)).sum(),
        MAX_CONDITIONS,
    )?;
    let rules = rules.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    let longest = rules.iter().flat_map(|rule| &rule.names).map(|name| name.len()).max();
    within("bytes in the name of a call", longest.unwrap_or(0), MAX_NAME_BYTES)?;
    within("pairs of a name and an alternative", rules.iter().map(pairs).sum(), MAX_PAIRS)?;
    Ok(Profile {
        default_action: action(&json.default_action, json.default_errno_ret)?,
        architectures: architectures(json.architectures, json.arch_map)?,
        flags: json.flags.map(|flags| flags_mask(&flags)).transpose()?,
        rules,
    })
}

/// Whether it is an object that has neither an action nor rules.
pub(super) fn is_empty(text: &[u8]) -> bool {
    let Ok(serde_json::Value::Object(json)) = serde_json::from_slice(text) else { return false };
    let rules = json.get("syscalls").and_then(serde_json::Value::as_array);
    !json.contains_key("defaultAction") && rules.is_none_or(Vec::is_empty)
}

pub(super) fn within(what: &'static str, count: usize, limit: usize) -> Result<(), Error> {
    if count > limit { Err(Error::TooLarge { what, count, limit }) } else { Ok(()) }
}

pub(super) fn unknown(what: &'static str, name: impl Into<String>) -> Error {
    Error::Unknown { what, name: name.into() }
}

/// How many names a rule takes up in the runtime spec.
fn pairs(rule: &Rule) -> usize {
    rule.names.len() * rule.alternatives.len().max(1)
}

fn rule(json: JsonRule) -> Result<Rule, Error> {
    let names = match (json.name, json.names) {
        (Some(_), Some(names)) if !names.is_empty() => {
            return Err(Error::Conflict { one: "name", other: "names" });
        }
        (Some(name), _) => vec![name],
        (None, names) => names.unwrap_or_default(),
    };
    let conditions = json.args.unwrap_or_default().iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    Ok(Rule {
        names: names.into_iter().map(Cow::Owned).collect(),
        action: action(&json.action, json.errno_ret)?,
        alternatives: alternatives(conditions),
        includes: json.includes.map(scope).transpose()?.unwrap_or_default(),
        excludes: json.excludes.map(scope).transpose()?.unwrap_or_default(),
    })
}

/// Splits conditions into alternatives. All conditions of a rule must hold, but libseccomp accepts each argument only
/// once per rule, so runtimes that use it split such a rule into one rule per condition, and existing profiles rely on
/// that.
pub(super) fn alternatives(conditions: Vec<Condition>) -> Vec<Vec<Condition>> {
    let repeated = |index: u8| conditions.iter().filter(|condition| condition.index == index).count() > 1;
    if (0..=MAX_INDEX).any(repeated) {
        conditions.into_iter().map(|condition| vec![condition]).collect()
    } else if conditions.is_empty() {
        Vec::new()
    } else {
        vec![conditions]
    }
}

fn condition(json: &JsonCondition) -> Result<Condition, Error> {
    let index = index(json.index)?;
    let (operator, value) = match json.op.as_str() {
        "SCMP_CMP_EQ" => (Operator::Equal, json.value),
        "SCMP_CMP_NE" => (Operator::NotEqual, json.value),
        "SCMP_CMP_LT" => (Operator::Less, json.value),
        "SCMP_CMP_LE" => (Operator::LessOrEqual, json.value),
        "SCMP_CMP_GT" => (Operator::Greater, json.value),
        "SCMP_CMP_GE" => (Operator::GreaterOrEqual, json.value),
        "SCMP_CMP_MASKED_EQ" => (Operator::MaskedEqual(json.value), json.value_two),
        other => return Err(unknown("operator", other)),
    };
    Ok(Condition { index, operator, value })
}

/// The number of an argument.
pub(super) fn index(value: u64) -> Result<u8, Error> {
    u8::try_from(value).ok().filter(|index| *index <= MAX_INDEX).ok_or(Error::OutOfRange {
        what: "an argument index",
        value,
        limit: u64::from(MAX_INDEX),
    })
}

fn action(name: &str, errno: Option<u64>) -> Result<Action, Error> {
    let data = |limit: u16| {
        let value = errno.unwrap_or(u64::from(EPERM));
        u16::try_from(value).ok().filter(|data| *data <= limit).ok_or(Error::OutOfRange {
            what: "a return value",
            value,
            limit: u64::from(limit),
        })
    };
    match name {
        "SCMP_ACT_ALLOW" => Ok(Action::Allow),
        "SCMP_ACT_LOG" => Ok(Action::Log),
        "SCMP_ACT_ERRNO" => data(MAX_ERRNO).map(Action::Errno),
        "SCMP_ACT_TRACE" => data(u16::MAX).map(Action::Trace),
        "SCMP_ACT_TRAP" => Ok(Action::Trap),
        // An older name than the other two; in every libseccomp it kills the thread.
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Action::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(Action::KillProcess),
        "SCMP_ACT_NOTIFY" => Err(Error::Notify { what: "SCMP_ACT_NOTIFY" }),
        other => Err(unknown("action", other)),
    }
}

fn architectures(
    listed: Option<Vec<String>>,
    mapped: Option<Vec<JsonArchitecture>>,
) -> Result<Architectures, Error> {
    let (listed, mapped) = (listed.unwrap_or_default(), mapped.unwrap_or_default());
    match (listed.is_empty(), mapped.is_empty()) {
        (false, false) => Err(Error::Conflict { one: "architectures", other: "archMap" }),
        (_, true) => abis(&listed).map(Architectures::Listed),
        (true, false) => {
            let mut map = Vec::new();
            for entry in mapped {
                let others = abis(&entry.sub_architectures.unwrap_or_default())?;
                map.extend(abi(&entry.architecture)?.map(|native| (native, others)));
            }
            Ok(Architectures::Mapped(map))
        }
    }
}

fn abis(names: &[String]) -> Result<Vec<Abi>, Error> {
    names.iter().filter_map(|name| abi(name).transpose()).collect()
}

/// `None` stands for architectures that no supported machine can run: their calls cannot happen.
fn abi(name: &str) -> Result<Option<Abi>, Error> {
    match name {
        "SCMP_ARCH_X86_64" => Ok(Some(Abi::X86_64)),
        "SCMP_ARCH_X86" => Ok(Some(Abi::X86)),
        "SCMP_ARCH_X32" => Ok(Some(Abi::X32)),
        "SCMP_ARCH_AARCH64" => Ok(Some(Abi::Aarch64)),
        "SCMP_ARCH_ARM" => Ok(Some(Abi::Arm)),
        "SCMP_ARCH_MIPS"
        | "SCMP_ARCH_MIPS64"
        | "SCMP_ARCH_MIPS64N32"
        | "SCMP_ARCH_MIPSEL"
        | "SCMP_ARCH_MIPSEL64"
        | "SCMP_ARCH_MIPSEL64N32"
        | "SCMP_ARCH_PPC"
        | "SCMP_ARCH_PPC64"
        | "SCMP_ARCH_PPC64LE"
        | "SCMP_ARCH_S390"
        | "SCMP_ARCH_S390X"
        | "SCMP_ARCH_PARISC"
        | "SCMP_ARCH_PARISC64"
        | "SCMP_ARCH_RISCV64"
        | "SCMP_ARCH_LOONGARCH64"
        | "SCMP_ARCH_M68K"
        | "SCMP_ARCH_SH"
        | "SCMP_ARCH_SHEB" => Ok(None),
        other => Err(unknown("architecture", other)),
    }
}

fn flags_mask(names: &[String]) -> Result<u32, Error> {
    names.iter().try_fold(0, |mask, name| match name.as_str() {
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(mask | 1),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(mask | 1 << 1),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(mask | super::SPEC_ALLOW),
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {
            Err(Error::Notify { what: "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" })
        }
        other => Err(unknown("flag", other)),
    })
}

fn scope(json: JsonScope) -> Result<Scope, Error> {
    // A misspelt capability under `excludes` would silently widen the profile, so unlike a misspelt call it is an
    // error.
    let mask = |name: &String| capabilities::mask(name).ok_or_else(|| unknown("capability", name));
    Ok(Scope {
        capabilities: json.caps.unwrap_or_default().iter().map(mask).collect::<Result<_, _>>()?,
        arches: json.arches.unwrap_or_default().into_iter().map(Cow::Owned).collect(),
        min_kernel: json.min_kernel.map(|version| kernel(&version)).transpose()?,
    })
}

fn kernel(version: &str) -> Result<(u32, u32), Error> {
    let parts =
        version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts.ok_or_else(|| unknown("kernel version", version))
}
