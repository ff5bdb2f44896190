//! A profile: rules in order, and the action if none applies.

use std::borrow::Cow;

use super::default_profile as policy;
use super::syscalls::Abi;
use super::{Arch, Error, Target, artifact, json};
use crate::capabilities;

/// The largest errno that the kernel returns; larger ones would be reduced to it.
pub(super) const MAX_ERRNO: u16 = 4095;
/// The errno of a refused call.
pub(super) const EPERM: u16 = 1;
/// The errno of a call that the kernel does not have.
pub(super) const ENOSYS: u16 = 38;

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Run it.
    Allow,
    /// Run it, and log it.
    Log,
    /// Do not run it; the caller gets this errno (at most 4095).
    Errno(u16),
    /// Stop for a tracer, which gets this value; without one the call fails with ENOSYS.
    Trace(u16),
    /// Send the thread SIGSYS.
    Trap,
    /// Kill the thread.
    KillThread,
    /// Kill the process.
    KillProcess,
}

impl Action {
    /// The value that a filter returns for it (`SECCOMP_RET_…`).
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Log => 0x7ffc_0000,
            Self::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Trap => 0x0003_0000,
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
        }
    }

    /// Whether it lets a call run, or has a tracer decide about it.
    pub(super) fn passes(self) -> bool {
        match self {
            Self::Allow | Self::Log | Self::Trace(_) => true,
            Self::Errno(_) | Self::Trap | Self::KillThread | Self::KillProcess => false,
        }
    }

    /// The action for calls without a name in wharf, if this is the default action. A program that probes for a new
    /// call must get the response of a kernel without it, or it will not fall back. Defaults that pass calls stay as
    /// they are.
    pub(super) fn of_unnamed(self) -> Self {
        if self.passes() { self } else { Self::Errno(ENOSYS) }
    }
}

/// How an argument is compared with a condition's value, both as unsigned 64-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument ANDed with this mask equals the value.
    MaskedEqual(u64),
}

/// A comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    /// The argument's number, 0 to 5.
    pub(super) index: u8,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

/// What a container must have for a rule to be included or excluded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    /// One mask each, in the profile's order.
    pub(super) capabilities: Vec<u64>,
    /// Native architectures, with moby's names.
    pub(super) arches: Vec<Cow<'static, str>>,
    pub(super) min_kernel: Option<(u32, u32)>,
}

impl Scope {
    fn includes(&self, target: &Target) -> bool {
        self.capabilities.iter().all(|mask| target.capabilities & mask != 0)
            && (self.arches.is_empty() || self.arches.iter().any(|arch| arch == target.arch.moby_name()))
            && self.min_kernel.is_none_or(|min| target.kernel >= min)
    }

    fn excludes(&self, target: &Target) -> bool {
        self.capabilities.iter().any(|mask| target.capabilities & mask != 0)
            || self.arches.iter().any(|arch| arch == target.arch.moby_name())
            || self.min_kernel.is_some_and(|min| target.kernel >= min)
    }
}

/// An action for some calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    pub(super) names: Vec<Cow<'static, str>>,
    pub(super) action: Action,
    /// The rule applies if every condition of any alternative holds; without alternatives it always applies.
    pub(super) alternatives: Vec<Vec<Condition>>,
    pub(super) includes: Scope,
    pub(super) excludes: Scope,
}

impl Rule {
    fn allow(names: &'static str) -> Self {
        Self {
            names: names.split_ascii_whitespace().map(Cow::Borrowed).collect(),
            action: Action::Allow,
            alternatives: Vec::new(),
            includes: Scope::default(),
            excludes: Scope::default(),
        }
    }

    /// Whether the rule applies to containers of this kind.
    pub(super) fn applies(&self, target: &Target) -> bool {
        self.includes.includes(target) && !self.excludes.excludes(target)
    }
}

/// The architectures that a profile covers besides the native one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Architectures {
    /// These, wherever the profile is used.
    Listed(Vec<Abi>),
    /// By native architecture.
    Mapped(Vec<(Abi, Vec<Abi>)>),
}

impl Architectures {
    /// The ABIs that a filter for this machine must cover, the native one first.
    pub(super) fn abis(&self, arch: Arch) -> Vec<Abi> {
        let (native, compatible) = match arch {
            Arch::X86_64 => (Abi::X86_64, [Abi::X86, Abi::X32].as_slice()),
            Arch::Aarch64 => (Abi::Aarch64, [Abi::Arm].as_slice()),
        };
        let wanted = match self {
            Self::Listed(abis) => Some(abis),
            Self::Mapped(map) => map.iter().find(|(key, _)| *key == native).map(|(_, abis)| abis),
        };
        let others = compatible.iter().filter(|abi| wanted.is_some_and(|wanted| wanted.contains(abi)));
        std::iter::once(native).chain(others.copied()).collect()
    }
}

/// A seccomp profile, independent of machine and container; [`super::compile`] makes a filter from it.
///
/// The first rule whose names, scope and conditions match a call decides; the default action, if none does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Profile {
    pub(super) default_action: Action,
    pub(super) architectures: Architectures,
    /// The `SECCOMP_FILTER_FLAG_…` flags; `None` if the profile sets none.
    pub(super) flags: Option<u32>,
    pub(super) rules: Vec<Rule>,
}

impl Profile {
    /// Parses a profile in the JSON form of the runtime specification or of Docker (which adds `archMap`, `includes`
    /// and `excludes`). Unknown keys are ignored, and so are unknown names of calls where calls are forbidden by
    /// default.
    ///
    /// # Errors
    /// Exceeded limits, invalid JSON, unknown words, and everything that would need a listener.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        json::parse(json)
    }

    /// Parses a profile that one from a registry is intersected with. `None` stands for a file without an action and
    /// without rules, which restricts nothing.
    ///
    /// # Errors
    /// Those of [`Profile::parse`].
    pub fn parse_base(json: &[u8]) -> Result<Option<Self>, Error> {
        if json::is_empty(json) { Ok(None) } else { json::parse(json).map(Some) }
    }

    /// Parses a profile from a registry: the JSON form of the runtime specification alone, with nothing in it that this
    /// build does not know.
    ///
    /// # Errors
    /// Those of [`Profile::parse`]; unknown keys, errors above 4095, and more than 128 entries for one call.
    pub fn parse_artifact(json: &[u8]) -> Result<Self, Error> {
        artifact::parse(json)
    }

    /// The profile for containers that request the runtime's own (`RuntimeDefault`).
    #[must_use]
    pub fn runtime_default() -> Self {
        let architectures = vec![(Abi::X86_64, vec![Abi::X86, Abi::X32]), (Abi::Aarch64, vec![Abi::Arm])];
        let mut rules: Vec<Rule> = policy::ALWAYS.iter().map(|names| Rule::allow(names)).collect();
        let includes = Scope { min_kernel: Some((4, 8)), ..Scope::default() };
        rules.push(Rule { includes, ..Rule::allow(policy::FROM_KERNEL_4_8) });
        rules.extend(policy::BY_CAPABILITY.iter().map(|(capability, names)| {
            let capabilities = capabilities::mask(capability).into_iter().collect();
            Rule { includes: Scope { capabilities, ..Scope::default() }, ..Rule::allow(names) }
        }));
        rules.extend(policy::BY_ARCHITECTURE.iter().map(|(arches, names)| {
            let arches = arches.iter().map(|arch| Cow::Borrowed(*arch)).collect();
            Rule { includes: Scope { arches, ..Scope::default() }, ..Rule::allow(names) }
        }));
        rules.extend(rules_by_argument());
        Self {
            default_action: Action::Errno(EPERM),
            architectures: Architectures::Mapped(architectures),
            flags: None,
            rules,
        }
    }
}

/// The rules of the runtime's own profile that check arguments.
fn rules_by_argument() -> [Rule; 4] {
    let first = |operator, value| Condition { index: 0, operator, value };
    let without_admin =
        Scope { capabilities: capabilities::mask("CAP_SYS_ADMIN").into_iter().collect(), ..Scope::default() };
    let mut families =
        vec![vec![first(Operator::Less, policy::AF_ALG)], vec![first(Operator::Equal, policy::AF_NFC)]];
    families.extend(policy::AFTER_AF_VSOCK.iter().map(|(mask, value)| {
        // The kernel reads the family as an int: all bits are checked, because a high bit would let AF_ALG slip
        // through.
        vec![first(Operator::MaskedEqual(*mask), *value)]
    }));
    let personalities =
        policy::PERSONALITIES.iter().map(|value| vec![first(Operator::Equal, *value)]).collect();
    let no_namespaces = vec![vec![first(Operator::MaskedEqual(policy::CLONE_NAMESPACES), 0)]];
    [
        Rule { alternatives: families, ..Rule::allow("socket") },
        Rule { alternatives: personalities, ..Rule::allow("personality") },
        Rule { alternatives: no_namespaces, excludes: without_admin.clone(), ..Rule::allow("clone") },
        // The flags of clone3 are in memory, where no filter can look: libc must fall back to clone.
        Rule { action: Action::Errno(ENOSYS), excludes: without_admin, ..Rule::allow("clone3") },
    ]
}
