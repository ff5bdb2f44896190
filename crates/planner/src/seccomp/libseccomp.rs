//! What other runtimes make of a profile: they take the calls' numbers from libseccomp, and leave out names that theirs
//! does not have, without a word.

use oci_spec::runtime::LinuxSeccomp;

use super::compile::generic;
use super::spec::action;
use super::syscalls::{Abi, is_known};
use super::{Action, Error};

/// The newest calls that releases of libseccomp have, by their number in the series that all architectures share: those
/// of Linux 5.8, 5.14, 5.15, 5.17, 6.7 and 6.13.
const NEWEST: [((u32, u32, u32), u32); 6] = [
    ((2, 5, 0), 439),
    ((2, 5, 2), 447),
    ((2, 5, 3), 448),
    ((2, 5, 4), 450),
    ((2, 5, 5), 456),
    ((2, 5, 6), 466),
];
/// Calls that have got numbers which were left free long before.
const LATE: [(&str, u32); 2] = [("uretprobe", 466), ("uprobe", u32::MAX)];

/// A call that a profile forbids and that a runtime with this libseccomp would allow, because it does not know the
/// call. A runtime that does not say which libseccomp it has counts as having one of 2020, the oldest in use.
///
/// # Errors
/// Exceeded limits, and everything that would need a listener.
pub(crate) fn overlooked<'a>(
    profile: &'a LinuxSeccomp,
    version: Option<&str>,
) -> Result<Option<&'a str>, Error> {
    if !action(profile.default_action(), profile.default_errno_ret())?.passes() {
        return Ok(None);
    }
    let newest = newest(version);
    for rule in profile.syscalls().iter().flatten() {
        let forbids = !matches!(action(rule.action(), rule.errno_ret())?, Action::Allow | Action::Log);
        let overlooked = rule.names().iter().find(|name| !is_known(name) || number(name) > newest);
        if let (true, Some(name)) = (forbids, overlooked) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The number of the newest call that a libseccomp has; 0 for one that is older than all in the list.
fn newest(version: Option<&str>) -> u32 {
    let Some(version) = version else { return NEWEST[0].1 };
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let version = (next(), next(), next());
    NEWEST.iter().rev().find(|(first, _)| version >= *first).map_or(0, |(_, newest)| *newest)
}

fn number(name: &str) -> u32 {
    let late = LATE.iter().find(|(late, _)| *late == name);
    let numbers = Abi::ALL.iter().filter_map(|abi| abi.table().number(name).and_then(generic));
    late.map_or_else(|| numbers.max().unwrap_or(0), |(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::spec::resolve;
    use crate::seccomp::{Arch, Profile, Target};

    #[test]
    fn a_forbidden_call_must_be_one_that_the_library_has() {
        let target = Target { arch: Arch::X86_64, capabilities: 0, kernel: (6, 18) };
        let forbidding = |default: &str, action: &str, name: &str| {
            let json = format!(
                r#"{{"defaultAction": "SCMP_ACT_{default}", "syscalls": [
                    {{"names": ["mount", "{name}"], "action": "SCMP_ACT_{action}"}}]}}"#
            );
            resolve(&Profile::parse(json.as_bytes()).unwrap(), &target).unwrap()
        };
        for (default, action, name, version, is_overlooked) in [
            ("ALLOW", "ERRNO", "faccessat2", None, false),
            ("ALLOW", "ERRNO", "futex_waitv", None, true),
            ("ALLOW", "ERRNO", "futex_waitv", Some("2.5.4"), false),
            ("ALLOW", "ERRNO", "cachestat", Some("2.5.4"), true),
            ("LOG", "KILL", "cachestat", Some("2.5.4"), true),
            ("ALLOW", "TRACE", "cachestat", Some("2.5.4"), true),
            ("ALLOW", "LOG", "cachestat", Some("2.5.4"), false),
            ("ERRNO", "KILL", "cachestat", Some("2.5.4"), false),
            ("ALLOW", "ERRNO", "mseal", Some("2.6.0"), false),
            ("ALLOW", "ERRNO", "uretprobe", Some("2.5.5"), true),
            ("ALLOW", "ERRNO", "uretprobe", Some("2.6.0"), false),
            ("ALLOW", "ERRNO", "umount2", Some("2.4.4"), true),
            ("ALLOW", "ERRNO", "no_such_call", Some("9.9.9"), true),
            ("ALLOW", "ALLOW", "no_such_call", Some("2.5.4"), false),
        ] {
            let profile = forbidding(default, action, name);
            let found = overlooked(&profile, version).unwrap();
            assert_eq!(found.is_some(), is_overlooked, "{default}, {action} {name}, {version:?}");
        }
    }
}
