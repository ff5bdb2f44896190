//! Random profiles and calls: the compiled filter must agree with the profile.

use std::borrow::Cow;
use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::{Call, machine, reference};
use crate::seccomp::profile::{Action, Architectures, Condition, Operator, Profile, Rule, Scope};
use crate::seccomp::spec::{compile_spec, resolve};
use crate::seccomp::syscalls::Abi;
use crate::seccomp::{Arch, Error, Target, compile};

const ABIS: [Abi; 5] = [Abi::X86_64, Abi::X86, Abi::X32, Abi::Aarch64, Abi::Arm];

/// A few names, so that rules overlap; adjacent ones among them, and calls that not every ABI has.
const NAMES: [&str; 14] = [
    "read",
    "write",
    "open",
    "close",
    "socket",
    "clone",
    "clone3",
    "socketcall",
    "file_setattr",
    "rt_sigaction",
    "mmap2",
    "sync_file_range2",
    "set_tls",
    "no_such_call",
];

/// Values around which comparisons in halves go wrong.
const VALUES: [u64; 12] = [
    0,
    1,
    5,
    6,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    (1 << 32) + 5,
    5 << 32,
    (5 << 32) + 5,
    u64::MAX - 1,
    u64::MAX,
];

fn action() -> impl Strategy<Value = Action> {
    select(vec![
        Action::Allow,
        Action::Log,
        Action::Errno(1),
        Action::Errno(4095),
        Action::Trace(7),
        Action::Trap,
        Action::KillThread,
        Action::KillProcess,
    ])
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => select(VALUES.as_slice()), 1 => any::<u64>()]
}

fn condition() -> impl Strategy<Value = Condition> {
    let operator = prop_oneof![
        Just(Operator::Equal),
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Greater),
        Just(Operator::GreaterOrEqual),
        value().prop_map(Operator::MaskedEqual),
    ];
    (0_u8..6, operator, value()).prop_map(|(index, operator, value)| Condition { index, operator, value })
}

fn scope() -> impl Strategy<Value = Scope> {
    let arches = subsequence(vec![Cow::Borrowed("amd64"), Cow::Borrowed("arm64")], 0..=1);
    let capabilities = subsequence(vec![1_u64, 2, 4], 0..=2);
    let some = (capabilities, arches, proptest::option::of((4_u32..7, 0_u32..3)))
        .prop_map(|(capabilities, arches, min_kernel)| Scope { capabilities, arches, min_kernel });
    prop_oneof![3 => Just(Scope::default()), 1 => some]
}

fn rule() -> impl Strategy<Value = Rule> {
    let names =
        subsequence(NAMES.to_vec(), 1..5).prop_map(|names| names.into_iter().map(Cow::Borrowed).collect());
    (names, action(), vec(vec(condition(), 1..4), 0..3), scope(), scope()).prop_map(
        |(names, action, alternatives, includes, excludes)| Rule {
            names,
            action,
            alternatives,
            includes,
            excludes,
        },
    )
}

pub(super) fn profile() -> impl Strategy<Value = Profile> {
    let abis = || subsequence(ABIS.to_vec(), 0..=5);
    let architectures = prop_oneof![
        abis().prop_map(Architectures::Listed),
        vec((select(ABIS.as_slice()), abis()), 0..3).prop_map(Architectures::Mapped),
    ];
    (action(), architectures, vec(rule(), 0..12)).prop_map(|(default_action, architectures, rules)| Profile {
        default_action,
        architectures,
        flags: None,
        rules,
    })
}

pub(super) fn target() -> impl Strategy<Value = Target> {
    let arch = select(vec![Arch::X86_64, Arch::Aarch64]);
    (arch, 0_u64..8, (4_u32..7, 0_u32..3)).prop_map(|(arch, capabilities, kernel)| Target {
        arch,
        capabilities,
        kernel,
    })
}

pub(super) fn call() -> impl Strategy<Value = Call> {
    let named =
        (select(ABIS.as_slice()), select(NAMES.as_slice()), -1_i32..2).prop_map(|(abi, name, shift)| {
            let number = abi.table().number(name).unwrap_or(0);
            (abi.audit(), number.wrapping_add_signed(shift))
        });
    let anywhere = (select(ABIS.as_slice()), any::<u32>()).prop_map(|(abi, number)| (abi.audit(), number));
    let small = (select(ABIS.as_slice()), 0_u32..600, any::<bool>())
        .prop_map(|(abi, number, x32)| (abi.audit(), if x32 { number | 0x4000_0000 } else { number }));
    let place = prop_oneof![6 => named, 1 => anywhere, 3 => small, 1 => any::<(u32, u32)>()];
    (place, [value(), value(), value(), value(), value(), value()])
        .prop_map(|((audit, number), arguments)| Call { audit, number, arguments })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn filters_say_what_their_profile_says(profile in profile(), target in target(), calls in vec(call(), 60)) {
        let program = compile(&profile, &target).unwrap().instructions;
        machine::verify(&program);
        for call in calls {
            let expected = reference::evaluate(&profile, &target, &call);
            prop_assert_eq!(machine::run(&program, &call).value, expected.code(), "{:?} {:x?}", expected, call);
        }
    }

    #[test]
    fn a_profile_says_the_same_in_the_words_of_the_spec(
        mut profile in profile(),
        target in target(),
        calls in vec(call(), 60),
    ) {
        // The spec cannot have two conditions on one argument that must both hold.
        for alternative in profile.rules.iter_mut().flat_map(|rule| &mut rule.alternatives) {
            let mut seen = BTreeSet::new();
            alternative.retain(|condition| seen.insert(condition.index));
        }
        let spec = resolve(&profile, &target).unwrap();
        let program = compile_spec(&spec, target.arch).unwrap();
        prop_assert_eq!(program.flags, target.usual_flags());
        for call in calls {
            let (expected, run) = (reference::evaluate(&profile, &target, &call), machine::run(&program.instructions, &call));
            prop_assert_eq!(run.value, expected.code(), "{:?} {:x?}", expected, call);
        }
    }

    #[test]
    fn the_default_says_what_its_table_says(
        capabilities: u64,
        target in target(),
        calls in vec(call(), 200),
    ) {
        let (profile, target) = (Profile::runtime_default(), Target { capabilities, ..target });
        let program = compile(&profile, &target).unwrap().instructions;
        machine::verify(&program);
        for call in calls {
            let expected = reference::evaluate(&profile, &target, &call);
            prop_assert_eq!(machine::run(&program, &call).value, expected.code(), "{:?} {:x?}", expected, call);
        }
    }
}

/// Every call has conditions of its own: blocks are long, and jumps to them are far longer than 255 instructions.
fn long_profile(conditions: u64) -> Profile {
    let mut names: Vec<&str> = Abi::X86_64.table().entries().map(|(name, _)| name).collect();
    names.sort_unstable();
    let rule = |(name, salt): (&&'static str, u64)| Rule {
        names: vec![Cow::Borrowed(*name)],
        action: Action::Errno(1 + u16::try_from(salt % 7).unwrap()),
        alternatives: vec![
            (0..conditions)
                .map(|index| Condition {
                    index: u8::try_from(index % 6).unwrap(),
                    operator: Operator::GreaterOrEqual,
                    value: (salt << 32) + index,
                })
                .collect(),
        ],
        includes: Scope::default(),
        excludes: Scope::default(),
    };
    let rules = names.iter().zip(0..).map(rule).collect();
    let architectures = Architectures::Listed(vec![Abi::X86_64]);
    Profile { default_action: Action::Allow, architectures, flags: None, rules }
}

#[test]
fn far_jumps_arrive() {
    let (profile, target) = (long_profile(1), super::target(&[]));
    let program = compile(&profile, &target).unwrap().instructions;
    machine::verify(&program);
    assert!(program.len() > 1500, "{} instructions: no jump is far", program.len());
    for number in 0..480 {
        for high in [0, 3, number / 2, number, 400] {
            let arguments = [u64::from(high) << 32, 0, 0, 0, 0, 0];
            let call = Call { audit: Abi::X86_64.audit(), number, arguments };
            let expected = reference::evaluate(&profile, &target, &call);
            assert_eq!(machine::run(&program, &call).value, expected.code(), "{expected:?} {call:x?}");
        }
    }
}

#[test]
fn too_long_a_program_is_an_error() {
    let error = compile(&long_profile(4), &super::target(&[])).unwrap_err();
    assert!(matches!(error, Error::ProgramTooLong { limit: 4096 }), "{error}");
}
