//! Device rules on cgroup v1, where the kernel has a default and an unordered list of exceptions.
//!
//! Ordered rules, as the runtime spec and v2's programs have them, say more than such a list can. What it cannot say
//! is refused, because any approximation would allow a device or deny one. It does no I/O: the result is a list of
//! writes.

use std::collections::BTreeMap;

use super::{Access, DeviceRule, DeviceType};
use crate::error::Error;

type Device = (DeviceType, Option<u32>, Option<u32>);

/// The kernel's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Default {
    Allow,
    Deny,
}

/// Rules in the kernel's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceList {
    default: Default,
    exceptions: BTreeMap<Device, Access>,
}

/// A write to `devices.allow` or `devices.deny`: the file's name and the value.
pub(crate) type ListWrite = (&'static str, String);

impl DeviceList {
    /// Folds rules over "deny everything"; the last rule that matches wins.
    ///
    /// A rule that denies a part of what an earlier, wider rule allowed cannot be expressed and is refused: dropping it
    /// would allow a device, and dropping the wider rule would deny others.
    pub(crate) fn of_rules(rules: &[DeviceRule]) -> Result<Self, Error> {
        let mut list = Self { default: Default::Deny, exceptions: BTreeMap::new() };
        for rule in rules {
            list.add(rule)?;
        }
        Ok(list)
    }

    fn add(&mut self, rule: &DeviceRule) -> Result<(), Error> {
        let device = (rule.kind, rule.major, rule.minor);
        if device == (DeviceType::All, None, None) && rule.access == Access::ALL {
            self.default = if rule.allow { Default::Allow } else { Default::Deny };
            self.exceptions.clear();
            return Ok(());
        }
        for kind in kinds(rule.kind) {
            let device = (kind, rule.major, rule.minor);
            if rule.allow == (self.default == Default::Deny) {
                let access = self.exceptions.entry(device).or_insert(rule.access);
                *access = access.and(rule.access);
            } else {
                self.take_back(device, rule)?;
            }
        }
        Ok(())
    }

    /// Removes the exceptions that `device` covers.
    fn take_back(&mut self, device: Device, rule: &DeviceRule) -> Result<(), Error> {
        if self.exceptions.iter().any(|(held, access)| {
            covers(*held, device) && *held != device && access.bits() & rule.access.bits() != 0
        }) {
            return Err(Error::InvalidLimit {
                limit: format!("devices {}", line(&device, rule.access)),
                reason: "cgroup v1 cannot except a part of what an earlier rule covers as a whole",
            });
        }
        self.exceptions = std::mem::take(&mut self.exceptions)
            .into_iter()
            .filter_map(|(held, access)| {
                let left = if covers(device, held) { access.without(rule.access) } else { Some(access) };
                Some((held, left?))
            })
            .collect();
        Ok(())
    }

    /// The list that allows every device.
    pub(crate) fn everything() -> Self {
        Self { default: Default::Allow, exceptions: BTreeMap::new() }
    }

    /// Parses a `devices.list`; `None` if a line is not understood. If the default is Allow, the kernel does not show
    /// the exceptions.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut list = Self { default: Default::Deny, exceptions: BTreeMap::new() };
        for text in text.lines() {
            let (kind, rest) = text.split_once(' ')?;
            let (numbers, letters) = rest.split_once(' ')?;
            let (major, minor) = numbers.split_once(':')?;
            let kind = match kind {
                "a" => return Some(Self::everything()),
                "b" => DeviceType::Block,
                "c" => DeviceType::Char,
                _ => return None,
            };
            let access = Access::parse(letters)?;
            let held = list.exceptions.entry((kind, number(major)?, number(minor)?)).or_insert(access);
            *held = held.and(access);
        }
        Some(list)
    }

    /// The writes that change `current` into this list. Between two deny-by-default lists only the differences are
    /// written, additions first, so that a device allowed before and after is never denied in between.
    pub(crate) fn writes_from(&self, current: &Self) -> Vec<ListWrite> {
        match self.default {
            Default::Allow => std::iter::once(("devices.allow", "a".to_owned()))
                .chain(self.exceptions.iter().map(|(device, access)| ("devices.deny", line(device, *access))))
                .collect(),
            Default::Deny if current.default == Default::Allow => {
                std::iter::once(("devices.deny", "a".to_owned()))
                    .chain(self.beyond(None, "devices.allow"))
                    .collect()
            }
            Default::Deny => {
                let mut writes = self.beyond(Some(current), "devices.allow");
                writes.extend(current.beyond(Some(self), "devices.deny"));
                writes
            }
        }
    }

    /// A line for each exception that `other` does not have.
    fn beyond(&self, other: Option<&Self>, file: &'static str) -> Vec<ListWrite> {
        let missing = |(device, access): (&Device, &Access)| {
            let held = other.and_then(|other| other.exceptions.get(device));
            let access = held.map_or(Some(*access), |held| access.without(*held))?;
            Some((file, line(device, access)))
        };
        self.exceptions.iter().filter_map(missing).collect()
    }
}

fn kinds(kind: DeviceType) -> Vec<DeviceType> {
    match kind {
        DeviceType::All => vec![DeviceType::Char, DeviceType::Block],
        one => vec![one],
    }
}

fn covers(wide: Device, narrow: Device) -> bool {
    let number = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
    wide.0 == narrow.0 && number(wide.1, narrow.1) && number(wide.2, narrow.2)
}

fn line((kind, major, minor): &Device, access: Access) -> String {
    let kind = match kind {
        DeviceType::All => 'a',
        DeviceType::Char => 'c',
        DeviceType::Block => 'b',
    };
    let number = |number: &Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    format!("{kind} {}:{} {}", number(major), number(minor), access.letters())
}

fn number(text: &str) -> Option<Option<u32>> {
    if text == "*" { Some(None) } else { text.parse().ok().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::super::default_devices;
    use super::*;

    const OPEN: &str = "a *:* rwm\n";

    fn writes(rules: &[DeviceRule], current: &str) -> Vec<String> {
        let list = DeviceList::of_rules(rules).unwrap();
        let show = |(file, value): ListWrite| format!("{} {value}", file.trim_start_matches("devices."));
        list.writes_from(&DeviceList::parse(current).unwrap()).into_iter().map(show).collect()
    }

    fn grant(major: u32, minor: Option<u32>, letters: &str) -> DeviceRule {
        DeviceRule::allow(DeviceType::Char, Some(major), minor, Access::parse(letters).unwrap())
    }

    fn take(major: u32, minor: Option<u32>, letters: &str) -> DeviceRule {
        DeviceRule::deny(DeviceType::Char, Some(major), minor, Access::parse(letters).unwrap())
    }

    #[test]
    fn the_defaults_close_all_and_open_some() {
        let expected = [
            "deny a",
            "allow c *:* m",
            "allow c 1:3 rwm",
            "allow c 1:5 rwm",
            "allow c 1:7 rwm",
            "allow c 1:8 rwm",
            "allow c 1:9 rwm",
            "allow c 5:0 rwm",
            "allow c 5:2 rwm",
            "allow c 10:200 rwm",
            "allow c 136:* rwm",
            "allow b *:* m",
        ];
        assert_eq!(writes(&default_devices(), OPEN), expected);
    }

    #[test]
    fn an_update_writes_the_difference() {
        let current = "c 1:3 rwm\nc 1:5 r\nb *:* m\n";
        let rules = [grant(1, Some(3), "r"), grant(1, Some(5), "rw")];
        assert_eq!(writes(&rules, current), ["allow c 1:5 w", "deny c 1:3 wm", "deny b *:* m"]);
        assert!(writes(&[grant(1, Some(3), "rwm")], "c 1:3 rwm\n").is_empty());
    }

    #[test]
    fn a_privileged_container_gets_all() {
        let all = DeviceRule::allow(DeviceType::All, None, None, Access::ALL);
        assert_eq!(writes(&[all], OPEN), ["allow a"]);
        assert_eq!(writes(&[all, take(1, None, "w")], "c 1:3 rwm\n"), ["allow a", "deny c 1:* w"]);
    }

    #[test]
    fn a_later_rule_takes_back_an_earlier_one() {
        let rules =
            [grant(1, Some(3), "rw"), grant(2, Some(4), "rw"), take(1, None, "w"), take(2, Some(4), "rwm")];
        assert_eq!(writes(&rules, ""), ["allow c 1:3 r"]);
    }

    #[test]
    fn a_hole_in_a_wider_rule_is_refused() {
        let rules = [grant(1, None, "rw"), take(1, Some(3), "w")];
        assert!(DeviceList::of_rules(&rules).is_err());
    }

    #[test]
    fn strange_lists_are_not_guessed_at() {
        for text in ["c\n", "c 1:3\n", "x 1:3 r\n", "c 1 r\n", "c a:b r\n", "c 1:3 q\n"] {
            assert_eq!(DeviceList::parse(text), None, "{text:?}");
        }
    }
}
