//! From a profile to a filter.
//!
//! For each architecture, every number first gets its verdict: the rules that name it, in order. Adjacent numbers with
//! the same verdict become one range, and a balanced tree finds the range of a call. A verdict without conditions is
//! reached without loading an argument, so the kernel can cache that the call is always allowed.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::assemble::{Assembler, Label, Test};
use super::profile::{Action, Condition, ENOSYS, Operator, Profile, Rule};
use super::syscalls::{Abi, X32_BIT, is_known};
use super::{Error, Instruction, Target};

// Offsets in the kernel's `seccomp_data`. All supported architectures are little-endian, so the low half comes first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What happens to a call: the first test that holds decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Verdict<'a> {
    /// Alternatives as in [`Rule`], with the action if one of them holds.
    tests: Vec<(&'a [Vec<Condition>], Action)>,
    otherwise: Action,
}

impl<'a> Verdict<'a> {
    fn always(action: Action) -> Self {
        Self { tests: Vec::new(), otherwise: action }
    }

    fn of(rules: &[&'a Rule], default: Action) -> Self {
        let mut verdict = Self::always(default);
        for rule in rules {
            if rule.alternatives.is_empty() {
                verdict.otherwise = rule.action;
                break;
            }
            verdict.tests.push((&rule.alternatives, rule.action));
        }
        while verdict.tests.last().is_some_and(|(_, action)| *action == verdict.otherwise) {
            verdict.tests.pop();
        }
        verdict
    }
}

/// The numbers from this one to the next range, with their verdict.
type Range<'a> = (u32, Verdict<'a>);

/// The instructions for a profile and this kind of container.
pub(super) fn compile(profile: &Profile, target: &Target) -> Result<Vec<Instruction>, Error> {
    let abis = profile.architectures.abis(target.arch);
    let rules: Vec<&Rule> = profile.rules.iter().filter(|rule| rule.applies(target)).collect();
    // x32 has no tree of its own: the kernel distinguishes it from x86_64 by the number alone.
    let machines: Vec<Abi> = abis.iter().copied().filter(|abi| *abi != Abi::X32).collect();

    let mut writer = Writer { assembler: Assembler::default(), blocks: HashMap::new() };
    let mut dispatch = writer.assembler.ret(Action::KillProcess.code());
    let mut trees = Vec::new();
    for machine in machines.iter().rev() {
        let numbered: Vec<Abi> = abis.iter().copied().filter(|abi| abi.audit() == machine.audit()).collect();
        let tree = writer.tree(&ranges(&numbered, profile, &rules))?;
        trees.push((machine.audit(), writer.assembler.load(NUMBER, tree)));
    }
    for (audit, tree) in trees {
        dispatch = writer.assembler.branch(Test::Equal, audit, (tree, dispatch));
    }
    writer.assembler.load(ARCHITECTURE, dispatch);
    writer.assembler.finish()
}

/// All numbers of one architecture with these ABIs, from 0 up.
fn ranges<'a>(abis: &[Abi], profile: &Profile, rules: &[&'a Rule]) -> Vec<Range<'a>> {
    let default = profile.default_action;
    let unnamed = Verdict::always(of_unnamed(default, rules));
    let mut starts: BTreeMap<u32, Verdict<'a>> = BTreeMap::from([(0, unnamed.clone())]);
    if abis.contains(&Abi::X86_64) && !abis.contains(&Abi::X32) {
        // These calls are of an architecture that the profile does not list, not unnamed. Above them is -1, which a
        // tracer may set.
        starts.insert(X32_BIT, Verdict::always(Action::KillProcess));
        starts.insert(X32_BIT << 1, unnamed.clone());
    }
    for abi in abis {
        let mut named: BTreeMap<u32, Vec<&Rule>> =
            abi.table().known().iter().map(|nr| (*nr, Vec::new())).collect();
        let newest = newest(*abi, profile);
        for rule in rules {
            for number in rule.names.iter().filter_map(|name| abi.table().number(name)) {
                named.entry(number).or_default().push(rule);
            }
        }
        let is_newer = |number| generic(number).zip(newest).is_some_and(|(number, newest)| number > newest);
        // A call newer than all that the profile names was unknown to its author, who may have passed even those.
        let is_newer = |number| !default.passes() && is_newer(number);
        for (number, rules) in named.into_iter().filter(|(number, _)| !is_newer(*number)) {
            starts.insert(number, Verdict::of(&rules, default));
            starts.entry(number + 1).or_insert_with(|| unnamed.clone());
        }
    }
    let mut ranges: Vec<Range<'a>> = starts.into_iter().collect();
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    ranges
}

/// What happens to a number for which wharf has no name. If a profile passes calls by default, it may be that of a call
/// which the profile forbids, and of which wharf has never heard.
fn of_unnamed(default: Action, rules: &[&Rule]) -> Action {
    let forbids = |name: &Cow<'_, str>| {
        let naming: Vec<&Rule> = rules.iter().copied().filter(|rule| rule.names.contains(name)).collect();
        let Verdict { tests, otherwise } = Verdict::of(&naming, default);
        !tests.iter().map(|(_, action)| *action).chain([otherwise]).all(Action::passes)
    };
    let mut names = rules.iter().flat_map(|rule| &rule.names).filter(|name| !is_known(name));
    if default.passes() && names.any(forbids) { Action::Errno(ENOSYS) } else { default.of_unnamed() }
}

/// The newest call that any rule of the profile names, whether or not the rule applies.
pub(super) fn newest(abi: Abi, profile: &Profile) -> Option<u32> {
    let names = profile.rules.iter().flat_map(|rule| &rule.names);
    names.filter_map(|name| abi.table().number(name)).filter_map(generic).max()
}

/// A number of the generic series, which grows with time. From 512 on, x32 and Arm have calls of their own, old ones
/// included.
pub(super) fn generic(number: u32) -> Option<u32> {
    Some(number & !X32_BIT).filter(|number| *number < 512)
}

/// Writes trees, and each verdict with conditions once for all trees.
struct Writer<'a> {
    assembler: Assembler,
    blocks: HashMap<Verdict<'a>, Label>,
}

impl<'a> Writer<'a> {
    /// Finds the range of the number in the accumulator.
    fn tree(&mut self, ranges: &[Range<'a>]) -> Result<Label, Error> {
        let [(_, first), rest @ ..] = ranges else {
            return Ok(self.assembler.ret(Action::KillProcess.code()));
        };
        if rest.is_empty() {
            return self.verdict(first);
        }
        // x32 is rare: one test separates it, so that x86_64 pays for no more.
        let native = ranges.partition_point(|(start, _)| *start < X32_BIT);
        let middle = if (1..ranges.len()).contains(&native) { native } else { ranges.len() / 2 };
        let above = self.tree(&ranges[middle..])?;
        let below = self.tree(&ranges[..middle])?;
        self.assembler.check_length()?;
        Ok(self.assembler.branch(Test::GreaterOrEqual, ranges[middle].0, (above, below)))
    }

    fn verdict(&mut self, verdict: &Verdict<'a>) -> Result<Label, Error> {
        if let Some(block) = self.blocks.get(verdict) {
            return Ok(*block);
        }
        let mut next = self.assembler.ret(verdict.otherwise.code());
        for (alternatives, action) in verdict.tests.iter().rev() {
            for conditions in alternatives.iter().rev() {
                let mut holds = self.assembler.ret(action.code());
                for condition in conditions.iter().rev() {
                    holds = self.condition(*condition, (holds, next));
                }
                next = holds;
                self.assembler.check_length()?;
            }
        }
        if !verdict.tests.is_empty() {
            self.blocks.insert(verdict.clone(), next);
        }
        Ok(next)
    }

    fn condition(&mut self, condition: Condition, (yes, no): (Label, Label)) -> Label {
        match condition.operator {
            Operator::Equal => self.equal(condition, u64::MAX, (yes, no)),
            Operator::NotEqual => self.equal(condition, u64::MAX, (no, yes)),
            Operator::MaskedEqual(mask) => self.equal(condition, mask, (yes, no)),
            Operator::Greater => self.order(condition, Test::Greater, (yes, no)),
            Operator::GreaterOrEqual => self.order(condition, Test::GreaterOrEqual, (yes, no)),
            Operator::Less => self.order(condition, Test::GreaterOrEqual, (no, yes)),
            Operator::LessOrEqual => self.order(condition, Test::Greater, (no, yes)),
        }
    }

    fn equal(&mut self, condition: Condition, mask: u64, (yes, no): (Label, Label)) -> Label {
        let (low_offset, high_offset) = offsets(condition.index);
        let ((low, high), (low_mask, high_mask)) = (halves(condition.value), halves(mask));
        let mut next = yes;
        for (offset, value, mask) in [(low_offset, low, low_mask), (high_offset, high, high_mask)] {
            if mask == 0 && value == 0 {
                continue;
            }
            next = self.assembler.branch(Test::Equal, value, (next, no));
            if mask != u32::MAX {
                next = self.assembler.and(mask, next);
            }
            next = self.assembler.load(offset, next);
        }
        next
    }

    fn order(&mut self, condition: Condition, test: Test, (yes, no): (Label, Label)) -> Label {
        let (low_offset, high_offset) = offsets(condition.index);
        let (low, high) = halves(condition.value);
        let low = self.assembler.branch(test, low, (yes, no));
        let low = self.assembler.load(low_offset, low);
        let below = if high == 0 { low } else { self.assembler.branch(Test::Equal, high, (low, no)) };
        let above = self.assembler.branch(Test::Greater, high, (yes, below));
        self.assembler.load(high_offset, above)
    }
}

/// The offsets of the low and the high half of an argument.
fn offsets(index: u8) -> (u32, u32) {
    let low = ARGUMENTS + 8 * u32::from(index);
    (low, low + 4)
}

/// The low and the high half of a value.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}
