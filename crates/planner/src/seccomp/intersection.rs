//! The intersection of two profiles: for each call the stricter of their actions, so that only what both allow is
//! allowed. The kernel would give the same answer if it had both filters loaded; as one profile it can be shown and
//! given to any runtime, and the first filter need not allow that the second is loaded.
//!
//! Each call that has a name on this machine or in a profile gets its verdict in each: the tests of its arguments in
//! order, and what happens if none holds. The verdict in the intersection has a test for each pair of theirs. Two
//! conditions on one argument become conditions of which one alone must hold, because a rule of the runtime spec may
//! look at each argument only once. Nothing is approximated.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::compile::{generic, newest};
use super::json::{MAX_CONDITIONS, MAX_INDEX, MAX_PAIRS, within};
use super::profile::{Action, Architectures, Condition, Operator, Profile, Rule, Scope};
use super::syscalls::{Abi, is_known};
use super::{Error, SPEC_ALLOW, Target};

/// `SECCOMP_FILTER_FLAG_LOG`.
const LOG: u32 = 1 << 1;

/// The most conditions that are made for one call. Some of them turn out to make no difference, so it is more than a
/// profile may have.
const MAX_MADE: usize = 4 * MAX_CONDITIONS;

/// Conditions that must all hold, at most one for each argument.
type Conditions = Vec<Condition>;

/// What happens to a call: the first test that holds decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Verdict {
    tests: Vec<(Conditions, Action)>,
    otherwise: Action,
}

/// The conditions that may still be made for one call.
struct Budget {
    made: usize,
}

impl Budget {
    /// Counts conditions before they are made: a few can multiply to millions.
    fn spend(&mut self, conditions: usize) -> Result<(), Error> {
        self.made = self.made.saturating_add(conditions);
        if self.made > MAX_MADE { within("conditions", self.made, MAX_CONDITIONS) } else { Ok(()) }
    }
}

/// A profile, with the rules that apply to the target by the names of their calls.
struct Side<'a> {
    profile: &'a Profile,
    rules: HashMap<&'a str, Vec<&'a Rule>>,
}

/// The intersection of a profile with a base for this target. Where both forbid a call equally strictly, the base
/// chooses the error.
///
/// # Errors
/// More conditions, or more pairs of a name and an alternative, than a profile may have.
pub(super) fn intersect(profile: &Profile, base: &Profile, target: &Target) -> Result<Profile, Error> {
    let (base_abis, own_abis) =
        (base.architectures.abis(target.arch), profile.architectures.abis(target.arch));
    let abis: Vec<Abi> = own_abis.into_iter().filter(|abi| base_abis.contains(abi)).collect();
    let (own, base) = (Side::of(profile, target), Side::of(base, target));
    let default_action = stricter(own.profile.default_action, base.profile.default_action);
    let counts = |name: &&str| default_action.passes() || is_known(name);
    let mentioned: BTreeSet<&str> = own.names().chain(base.names()).filter(counts).collect();
    let mut names = mentioned.clone();
    for name in abis.iter().flat_map(|abi| abi.table().names()) {
        names.insert(name);
    }
    let mut rules = Rules::default();
    let mut left_out = Vec::new();
    for name in names {
        let verdict = both(&own.verdict(name, &abis), &base.verdict(name, &abis))?;
        if verdict == Verdict::always(default_action) && !mentioned.contains(name) {
            left_out.push(name);
        } else {
            rules.add(name, verdict)?;
        }
    }
    for name in newer(&abis, &rules, &left_out) {
        rules.add(name, Verdict::always(default_action))?;
    }
    let rules = rules.all.into_iter().flat_map(|(verdict, names)| verdict.rules(&names)).collect();
    let flags = flags(own.flags(target), base.flags(target));
    Ok(Profile { default_action, architectures: Architectures::Listed(abis), flags: Some(flags), rules })
}

/// The verdicts, each with its calls.
#[derive(Default)]
struct Rules<'a> {
    all: Vec<(Verdict, Vec<&'a str>)>,
    places: HashMap<Verdict, usize>,
    conditions: usize,
    pairs: usize,
}

impl<'a> Rules<'a> {
    fn add(&mut self, name: &'a str, verdict: Verdict) -> Result<(), Error> {
        self.pairs += verdict.cases().count();
        within("pairs of a name and an alternative", self.pairs, MAX_PAIRS)?;
        let place = match self.places.get(&verdict) {
            Some(place) => *place,
            None => {
                self.conditions +=
                    verdict.tests.iter().map(|(conditions, _)| conditions.len()).sum::<usize>();
                within("conditions", self.conditions, MAX_CONDITIONS)?;
                self.places.insert(verdict.clone(), self.all.len());
                self.all.push((verdict, Vec::new()));
                self.all.len() - 1
            }
        };
        self.all[place].1.push(name);
        Ok(())
    }
}

/// The newest of the calls without a rule, for each architecture where it is newer than all with one. A call that is
/// newer than all that a profile names counts as unknown to its author, and these are not: so the newest must be
/// named.
fn newer<'a>(abis: &[Abi], rules: &Rules<'a>, left_out: &[&'a str]) -> BTreeSet<&'a str> {
    let newest = |abi: &Abi| {
        let number = |name: &str| abi.table().number(name).and_then(generic);
        let known = rules.all.iter().flat_map(|(_, names)| names).filter_map(|name| number(name)).max()?;
        let left_out = left_out.iter().filter_map(|name| Some((number(name)?, *name)));
        left_out.filter(|(number, _)| *number > known).max().map(|(_, name)| name)
    };
    abis.iter().filter_map(newest).collect()
}

impl<'a> Side<'a> {
    fn of(profile: &'a Profile, target: &Target) -> Self {
        let mut rules: HashMap<&str, Vec<&Rule>> = HashMap::new();
        for rule in profile.rules.iter().filter(|rule| rule.applies(target)) {
            for name in &rule.names {
                rules.entry(name).or_default().push(rule);
            }
        }
        Self { profile, rules }
    }

    /// The calls that any rule names, whether or not it applies.
    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.profile.rules.iter().flat_map(|rule| &rule.names).map(|name| &**name)
    }

    fn verdict(&self, name: &str, abis: &[Abi]) -> Verdict {
        let mut verdict = Verdict::always(self.default_for(name, abis));
        for rule in self.rules.get(name).into_iter().flatten() {
            if rule.alternatives.is_empty() {
                verdict.otherwise = rule.action;
                break;
            }
            verdict.tests.extend(rule.alternatives.iter().map(|all| (all.clone(), rule.action)));
        }
        verdict
    }

    /// The action for a call that no rule decides. One that is newer than all that the profile names was unknown to
    /// its author.
    fn default_for(&self, name: &str, abis: &[Abi]) -> Action {
        let default = self.profile.default_action;
        let number = abis.iter().find_map(|abi| Some((*abi, abi.table().number(name)?)));
        let is_newer = number.is_some_and(|(abi, number)| {
            generic(number).zip(newest(abi, self.profile)).is_some_and(|(number, newest)| number > newest)
        });
        if is_newer { default.of_unnamed() } else { default }
    }

    fn flags(&self, target: &Target) -> u32 {
        self.profile.flags.unwrap_or_else(|| target.usual_flags())
    }
}

/// Speculation is left alone only if both want that, and calls are logged if either does. How many threads a filter is
/// loaded for has no meaning here.
fn flags(own: u32, base: u32) -> u32 {
    (own & base & SPEC_ALLOW) | ((own | base) & LOG)
}

/// The stricter action; the base's of two equally strict ones.
fn stricter(own: Action, base: Action) -> Action {
    if rank(own) > rank(base) { own } else { base }
}

/// How strict an action is, in the kernel's order.
fn rank(action: Action) -> u8 {
    match action {
        Action::Allow => 0,
        Action::Log => 1,
        Action::Trace(_) => 2,
        Action::Errno(_) => 3,
        Action::Trap => 4,
        Action::KillThread => 5,
        Action::KillProcess => 6,
    }
}

impl Verdict {
    fn always(action: Action) -> Self {
        Self { tests: Vec::new(), otherwise: action }
    }

    /// All tests, and last the one that always holds.
    fn cases(&self) -> impl Iterator<Item = (&[Condition], Action)> {
        let tests = self.tests.iter().map(|(conditions, action)| (conditions.as_slice(), *action));
        tests.chain(std::iter::once((&[][..], self.otherwise)))
    }

    /// The rules for these calls, in the order in which they decide.
    fn rules(self, names: &[&str]) -> Vec<Rule> {
        let names: Vec<Cow<'static, str>> = names.iter().map(|name| Cow::Owned((*name).to_owned())).collect();
        let rule = |action, alternatives| Rule {
            names: names.clone(),
            action,
            alternatives,
            includes: Scope::default(),
            excludes: Scope::default(),
        };
        let mut rules: Vec<Rule> = Vec::new();
        for (conditions, action) in self.tests {
            match rules.last_mut().filter(|rule| rule.action == action) {
                Some(rule) => rule.alternatives.push(conditions),
                None => rules.push(rule(action, vec![conditions])),
            }
        }
        rules.push(rule(self.otherwise, Vec::new()));
        rules
    }
}

/// The verdict that is as strict as both.
fn both(own: &Verdict, base: &Verdict) -> Result<Verdict, Error> {
    let mut budget = Budget { made: 0 };
    let mut tests = Vec::new();
    for (conditions, action) in own.cases() {
        let row: Vec<_> = base.cases().map(|(theirs, other)| (theirs, stricter(action, other))).collect();
        // If the base makes no difference, its conditions need not be looked at.
        if row.iter().all(|(_, result)| *result == row[0].1) {
            tests.push((conditions.to_vec(), row[0].1));
            continue;
        }
        for (theirs, result) in row {
            let alternatives = all_of(conditions, theirs, &mut budget)?;
            tests.extend(alternatives.into_iter().map(|conditions| (conditions, result)));
        }
    }
    // The last pair always holds.
    let otherwise = stricter(own.otherwise, base.otherwise);
    while tests.last().is_some_and(|(_, action)| *action == otherwise) {
        tests.pop();
    }
    Ok(Verdict { tests, otherwise })
}

/// Alternatives of which one holds exactly if all these conditions do.
fn all_of(own: &[Condition], theirs: &[Condition], budget: &mut Budget) -> Result<Vec<Conditions>, Error> {
    let mut all = vec![Vec::new()];
    for index in 0..=MAX_INDEX {
        let mut here = own.iter().chain(theirs).filter(|condition| condition.index == index);
        let Some(first) = here.next() else { continue };
        let mut alternatives = vec![*first];
        for condition in here {
            let mut met = Vec::new();
            for one in alternatives {
                met.extend(meet(one, *condition));
                budget.spend(met.len())?;
            }
            alternatives = met;
        }
        let length = all.first().map_or(0, Vec::len) + 1;
        budget.spend(all.len().saturating_mul(alternatives.len()).saturating_mul(length))?;
        all = all
            .iter()
            .flat_map(|before| alternatives.iter().map(|one| [&before[..], &[*one]].concat()))
            .collect();
    }
    Ok(all)
}

/// Conditions on one argument, of which one holds exactly if both of these do.
fn meet(one: Condition, two: Condition) -> Vec<Condition> {
    match (one.operator, two.operator) {
        (Operator::Equal, _) => Some(one).filter(|_| holds(two, one.value)).into_iter().collect(),
        (_, Operator::Equal) => Some(two).filter(|_| holds(one, two.value)).into_iter().collect(),
        (Operator::MaskedEqual(_), _) | (_, Operator::MaskedEqual(_)) => {
            let pairs =
                blocks(one).into_iter().flat_map(|one| blocks(two).into_iter().map(move |two| (one, two)));
            let masks = pairs.filter_map(|(one, two)| one.and(two));
            masks.map(|mask| mask.condition(one.index)).collect()
        }
        _ => {
            let pairs =
                ranges(one).into_iter().flat_map(|one| ranges(two).into_iter().map(move |two| (one, two)));
            let ranges = pairs.map(|(one, two)| (one.0.max(two.0), one.1.min(two.1)));
            ranges
                .filter(|(low, high)| low <= high)
                .flat_map(|range| within_range(one.index, range))
                .collect()
        }
    }
}

fn holds(condition: Condition, argument: u64) -> bool {
    let value = condition.value;
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

/// The numbers of which some bits have a certain value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    mask: u64,
    value: u64,
}

impl Block {
    /// The numbers that are in both.
    fn and(self, other: Self) -> Option<Self> {
        let common = self.mask & other.mask;
        let agree = self.value & common == other.value & common;
        // A value with a bit beyond its mask is that of no number.
        let possible = self.value & !self.mask == 0 && other.value & !other.mask == 0;
        (agree && possible).then_some(Self { mask: self.mask | other.mask, value: self.value | other.value })
    }

    fn condition(self, index: u8) -> Condition {
        let operator = if self.mask == u64::MAX { Operator::Equal } else { Operator::MaskedEqual(self.mask) };
        Condition { index, operator, value: self.value }
    }
}

/// The first and the last of the numbers in a row for which a comparison holds.
type Range = (u64, u64);

/// The ranges of a condition that compares; a masked one has none.
fn ranges(condition: Condition) -> Vec<Range> {
    let value = condition.value;
    let (below, above) = (value.checked_sub(1), value.checked_add(1));
    let (to_below, from_above) = (below.map(|last| (0, last)), above.map(|first| (first, u64::MAX)));
    match condition.operator {
        Operator::Equal => vec![(value, value)],
        Operator::NotEqual => to_below.into_iter().chain(from_above).collect(),
        Operator::Less => to_below.into_iter().collect(),
        Operator::LessOrEqual => vec![(0, value)],
        Operator::Greater => from_above.into_iter().collect(),
        Operator::GreaterOrEqual => vec![(value, u64::MAX)],
        Operator::MaskedEqual(_) => Vec::new(),
    }
}

/// The blocks that a condition consists of.
fn blocks(condition: Condition) -> Vec<Block> {
    match condition.operator {
        Operator::MaskedEqual(mask) => vec![Block { mask, value: condition.value }],
        _ => ranges(condition).into_iter().flat_map(blocks_of).collect(),
    }
}

/// A range as blocks, at most 126 of them: each time the largest that begins here and does not go beyond the end.
fn blocks_of((mut low, high): Range) -> Vec<Block> {
    let mut blocks = Vec::new();
    loop {
        let aligned = low.trailing_zeros().min(63);
        let fitting = (0..=aligned).rev().find(|bits| (1_u64 << bits) - 1 <= high - low).unwrap_or(0);
        let mask = !((1_u64 << fitting) - 1);
        blocks.push(Block { mask, value: low });
        let last = low | !mask;
        if last >= high {
            return blocks;
        }
        low = last + 1;
    }
}

/// Conditions of which one holds exactly for the numbers in a range.
fn within_range(index: u8, (low, high): Range) -> Vec<Condition> {
    let one = |operator, value| vec![Condition { index, operator, value }];
    match (low, high) {
        (low, high) if low == high => one(Operator::Equal, low),
        (low, u64::MAX) => one(Operator::GreaterOrEqual, low),
        (0, high) => one(Operator::LessOrEqual, high),
        range => blocks_of(range).into_iter().map(|block| block.condition(index)).collect(),
    }
}
