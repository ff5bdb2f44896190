//! The intersection of two profiles, held against the kernel's answer to both of their filters.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::properties::{call, profile, target};
use super::{Call, machine};
use crate::seccomp::intersection::intersect;
use crate::seccomp::profile::Profile;
use crate::seccomp::spec::{compile_spec, resolve};
use crate::seccomp::syscalls::Abi;
use crate::seccomp::{Action, Arch, Error, Instruction, Target, compile};

/// The answers of a filter, from the strictest to the mildest, without their data.
const ORDER: [u32; 7] = [0x8000_0000, 0, 0x0003_0000, 0x0005_0000, 0x7ff0_0000, 0x7ffc_0000, 0x7fff_0000];

fn strictness(answer: u32) -> usize {
    ORDER.iter().position(|code| *code == answer & 0xffff_0000).unwrap()
}

/// What the kernel does with a call for which two filters are loaded: of equally strict answers, that of the filter
/// that was loaded last counts.
fn stacked(first: u32, last: u32) -> u32 {
    if strictness(first) < strictness(last) { first } else { last }
}

/// The filter of the intersection, by way of the runtime spec.
fn intersection(own: &Profile, base: &Profile, target: &Target) -> Vec<Instruction> {
    let both = intersect(own, base, target).unwrap();
    let program = compile_spec(&resolve(&both, target).unwrap(), target.arch).unwrap().instructions;
    machine::verify(&program);
    program
}

fn is_native(call: &Call, target: &Target) -> bool {
    match target.arch {
        Arch::X86_64 => call.audit == Abi::X86_64.audit() && call.number < 0x4000_0000,
        Arch::Aarch64 => call.audit == Abi::Aarch64.audit(),
    }
}

/// One condition for each argument, as a profile of the runtime spec has them.
fn expressible(mut profile: Profile) -> Profile {
    for alternative in profile.rules.iter_mut().flat_map(|rule| &mut rule.alternatives) {
        let mut seen = BTreeSet::new();
        alternative.retain(|condition| seen.insert(condition.index));
    }
    profile
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_intersection_says_what_both_filters_say(
        own in profile().prop_map(expressible),
        base in profile().prop_map(expressible),
        target in target(),
        calls in vec(call(), 60),
    ) {
        // Many conditions on many arguments do not fit a filter.
        let Ok(both) = intersect(&own, &base, &target) else { return Ok(()) };
        let Ok(program) = compile_spec(&resolve(&both, &target).unwrap(), target.arch) else { return Ok(()) };
        machine::verify(&program.instructions);
        let filters = [&own, &base].map(|profile| compile(profile, &target).unwrap().instructions);
        for call in calls {
            let [first, last] = filters.each_ref().map(|filter| machine::run(filter, &call).value);
            let (value, expected) = (machine::run(&program.instructions, &call).value, stacked(first, last));
            if is_native(&call, &target) {
                prop_assert_eq!(value, expected, "{:x?}: {:x} {:x}", call, first, last);
            } else {
                // How new a call is differs between architectures, so that another error may be returned.
                let runs = |answer| strictness(answer) >= strictness(Action::Trace(0).code());
                prop_assert_eq!(runs(value), runs(expected), "{:x?}: {:x} {:x}", call, first, last);
            }
        }
    }

    #[test]
    fn a_profile_that_allows_all_changes_nothing(profile in profile().prop_map(expressible), calls in vec(call(), 60)) {
        let target = super::target(&[]);
        let all = Profile::parse(br#"{"defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]}"#).unwrap();
        let alone = compile(&profile, &target).unwrap().instructions;
        for program in [intersection(&profile, &all, &target), intersection(&all, &profile, &target)] {
            for call in calls.iter().filter(|call| is_native(call, &target)) {
                prop_assert_eq!(machine::run(&program, call).value, machine::run(&alone, call).value, "{:x?}", call);
            }
        }
    }
}

fn parse(json: &str) -> Profile {
    Profile::parse_artifact(json.as_bytes()).unwrap()
}

#[test]
fn a_mild_profile_lifts_nothing_of_the_default() {
    let target = super::target(&[]);
    let mild = parse(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
    let program = intersection(&mild, &Profile::runtime_default(), &target);
    let answer = |name, argument| machine::run(&program, &Call::named(Abi::X86_64, name, &[argument])).value;
    assert_eq!(answer("chmod", 0), Action::Allow.code());
    assert_eq!(answer("unshare", 0), Action::Errno(1).code());
    assert_eq!(answer("clone3", 0), Action::Errno(38).code());
    assert_eq!(answer("socket", 38), Action::Errno(1).code(), "AF_ALG");
    assert_eq!(answer("socket", 2), Action::Allow.code());
    assert_eq!(answer("file_getattr", 0), Action::Errno(38).code(), "newer than the default");
    let x86 = machine::run(&program, &Call::named(Abi::X86, "read", &[])).value;
    assert_eq!(x86, Action::KillProcess.code(), "an architecture that one of them does not list");
}

#[test]
fn a_strict_profile_forbids_what_the_default_allows() {
    let target = super::target(&["CAP_SYS_ADMIN"]);
    let strict = parse(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
             "args": [{"index": 0, "value": 38, "op": "SCMP_CMP_GE"}, {"index": 1, "value": 3, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    let program = intersection(&strict, &Profile::runtime_default(), &target);
    let answer =
        |name, arguments: &[u64]| machine::run(&program, &Call::named(Abi::X86_64, name, arguments)).value;
    assert_eq!(answer("chmod", &[]), Action::Errno(1).code());
    assert_eq!(answer("chown", &[]), Action::Allow.code());
    assert_eq!(answer("mount", &[]), Action::KillProcess.code());
    assert_eq!(answer("unshare", &[]), Action::Allow.code(), "as the base for this container");
    assert_eq!(answer("socket", &[38, 1]), Action::Errno(1).code(), "the base's alone");
    assert_eq!(answer("socket", &[38, 3]), Action::Errno(1).code(), "the base's of two errors");
    assert_eq!(answer("socket", &[41, 3]), Action::Errno(97).code(), "its own alone");
    assert_eq!(answer("socket", &[41, 1]), Action::Allow.code());
}

#[test]
fn flags_are_those_of_the_more_careful() {
    let profile =
        |flags: &str| parse(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "flags": [{flags}]}}"#));
    let (log, leave) = (r#""SECCOMP_FILTER_FLAG_LOG""#, r#""SECCOMP_FILTER_FLAG_SPEC_ALLOW""#);
    for (own, base, expected) in [
        (log, leave, 2),
        (leave, leave, 4),
        (r#""SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW""#, leave, 6),
        (r#""SECCOMP_FILTER_FLAG_TSYNC""#, "", 0),
    ] {
        let both = intersect(&profile(own), &profile(base), &super::target(&[])).unwrap();
        assert_eq!(both.flags, Some(expected), "{own} and {base}");
    }
    let unset = parse(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
    let both = intersect(&unset, &Profile::runtime_default(), &super::target(&[])).unwrap();
    assert_eq!(both.flags, Some(4), "what a profile without flags asks for");
}

#[test]
fn too_many_pairs_of_conditions_are_an_error() {
    let profile = |index: u8| {
        let entry = |value| {
            format!(
                r#"{{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": {value},
                    "args": [{{"index": {index}, "value": {value}, "op": "SCMP_CMP_GT"}}]}}"#
            )
        };
        let entries: Vec<String> = (1..128).map(entry).collect();
        parse(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{}]}}"#, entries.join(",")))
    };
    let error = intersect(&profile(0), &profile(1), &super::target(&[])).unwrap_err();
    assert!(matches!(error, Error::TooLarge { what: "conditions", .. }), "{error}");
}

#[test]
fn a_few_conditions_do_not_multiply_to_millions() {
    // Each argument's mask and comparison meet in eight conditions.
    let profile = |op: &str, value: u64, value_two: u64| {
        let argument = |index: u8| {
            format!(r#"{{"index": {index}, "value": {value}, "valueTwo": {value_two}, "op": "{op}"}}"#)
        };
        let arguments: Vec<String> = (0..6).map(argument).collect();
        let entry = format!(
            r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{}]}}"#,
            arguments.join(",")
        );
        parse(&format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{entry}]}}"#))
    };
    let (own, base) = (profile("SCMP_CMP_MASKED_EQ", 1, 0), profile("SCMP_CMP_GT", (1 << 56) - 1, 0));
    let error = intersect(&own, &base, &super::target(&[])).unwrap_err();
    let Error::TooLarge { what: "conditions", count, .. } = error else { panic!("{error}") };
    assert!(count < 100_000, "{count}");
}
