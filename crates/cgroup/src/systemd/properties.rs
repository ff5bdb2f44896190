//! What systemd is told of a scope.
//!
//! A limit holds from wherever it is above a process, so a container's limits are below its scope, where systemd
//! changes nothing. But a share of CPU time or of a disk is one beside the scope's siblings, and memory is protected
//! only as far as every ancestor has the protection. Those have to be the scope's own, and systemd has to know them:
//! when it is loaded anew, it sets what it knows.

use std::collections::BTreeMap;

use cgroups_rs::systemd::props::PropertiesBuilder;
use cgroups_rs::systemd::{CPU_SHARES, CPU_WEIGHT, MEMORY_LOW, Property, TASKS_MAX};
use zvariant::Value;

use super::units::Scope;
use crate::detect::{Controller, Kind};
use crate::error::Error;
use crate::limits::{BlockDevice, Limits};
use crate::plan::io::scaled_for_unified;
use crate::weight::weight_of_shares;

/// systemd's names that are not in `cgroups-rs`.
const DELEGATE_CONTROLLERS: &str = "DelegateControllers";
const COLLECT_MODE: &str = "CollectMode";
const MEMORY_MIN: &str = "MemoryMin";
const IO_WEIGHT: &str = "IOWeight";
const IO_DEVICE_WEIGHT: &str = "IODeviceWeight";
const BLOCK_IO_WEIGHT: &str = "BlockIOWeight";
const BLOCK_IO_DEVICE_WEIGHT: &str = "BlockIODeviceWeight";

/// How systemd writes that there is no limit, and that a weight is the usual one.
const INFINITY: u64 = u64::MAX;
/// The weight that stands for CPU time that nobody else wants.
const IDLE: u64 = 0;
/// How long processes may take to exit once systemd itself stops a scope, before it kills them.
const STOP_US: u64 = 10_000_000;

/// Files of `unified` that have their effect beside siblings, or below ancestors, and for which systemd has no
/// property.
const UNTOLD: [&str; 5] =
    ["cpu.weight.nice", "cpu.uclamp.min", "io.bfq.weight", "io.latency", "memory.zswap.writeback"];

/// What a new scope is, by the hierarchy of devices.
pub(super) fn of_scope(scope: &Scope, holder: u32, devices: Option<Kind>) -> Vec<Property<'static>> {
    let mut properties = PropertiesBuilder::default_cgroup(&scope.slice(), scope.name())
        .description(format!("wharf: {}", scope.name()))
        .pids(vec![holder])
        .timeout_stop_usec(STOP_US)
        .build();
    // A scope gets a limit that nobody has asked for. And one that has failed would stay until somebody resets it.
    properties.push((TASKS_MAX, Value::from(INFINITY)));
    properties.push((COLLECT_MODE, Value::from("inactive-or-failed")));
    if devices == Some(Kind::V1) {
        // This is not among what is delegated without being named. In the hierarchy of a controller that a scope does
        // not have, systemd removes all cgroups below it that are still empty, whenever it sets or loads a property.
        properties.push((DELEGATE_CONTROLLERS, Value::new(vec!["devices"])));
    }
    properties
}

/// What a scope has to be told of its container's limits, which are valid.
pub(super) fn of_limits(
    limits: &Limits,
    home: &dyn Fn(Controller) -> Option<Kind>,
) -> Result<Vec<Property<'static>>, Error> {
    let mut properties = BTreeMap::new();
    cpu(limits, home(Controller::Cpu), &mut properties)?;
    io(limits, home(Controller::Io), &mut properties);
    if let (Some(bytes), Some(Kind::Unified)) = (limits.memory_reservation_bytes, home(Controller::Memory))
        && bytes != 0
    {
        properties.insert(MEMORY_LOW, Value::from(u64::try_from(bytes).unwrap_or(INFINITY)));
    }
    for (file, value) in &limits.unified {
        unified(file, value, &mut properties)?;
    }
    Ok(properties.into_iter().collect())
}

type Properties = BTreeMap<&'static str, Value<'static>>;

fn cpu(limits: &Limits, kind: Option<Kind>, properties: &mut Properties) -> Result<(), Error> {
    let shares = limits.cpu_shares.filter(|shares| *shares != 0);
    match (kind, limits.cpu_idle) {
        (Some(Kind::V1), Some(true)) => return Err(untold("cpu.idle")),
        (Some(Kind::V1), _) => properties.extend(shares.map(|shares| (CPU_SHARES, Value::from(shares)))),
        (_, Some(true)) => properties.extend([(CPU_WEIGHT, Value::from(IDLE))]),
        (_, Some(false)) => {
            let weight = shares.map_or(INFINITY, weight_of_shares);
            properties.extend([(CPU_WEIGHT, Value::from(weight))]);
        }
        (_, None) => {
            properties.extend(shares.map(|shares| (CPU_WEIGHT, Value::from(weight_of_shares(shares)))));
        }
    }
    Ok(())
}

fn io(limits: &Limits, kind: Option<Kind>, properties: &mut Properties) {
    let scaled = |weight: u16| match kind {
        Some(Kind::V1) => u64::from(weight),
        _ => scaled_for_unified(weight).into(),
    };
    let (all, each) = match kind {
        Some(Kind::V1) => (BLOCK_IO_WEIGHT, BLOCK_IO_DEVICE_WEIGHT),
        _ => (IO_WEIGHT, IO_DEVICE_WEIGHT),
    };
    properties.extend(limits.io.weight.map(|weight| (all, Value::from(scaled(weight)))));
    let weights = limits.io.weights.iter().map(|(device, weight)| (node(*device), scaled(*weight)));
    let weights: Vec<(String, u64)> = weights.collect();
    if !weights.is_empty() {
        properties.insert(each, Value::new(weights));
    }
}

/// A device's node by its numbers, which udev makes for each.
fn node(BlockDevice { major, minor }: BlockDevice) -> String {
    format!("/dev/block/{major}:{minor}")
}

/// A file of v2 that has its effect at the scope.
fn unified(file: &str, value: &str, properties: &mut Properties) -> Result<(), Error> {
    let invalid = || Error::InvalidLimit {
        limit: format!("unified {file:?} {value:?}"),
        reason: "systemd, which makes the cgroups here, takes one number for it",
    };
    let value = value.trim();
    let (property, number) = match file {
        "cpu.weight" => (CPU_WEIGHT, value.parse().ok()),
        "cpu.idle" => {
            (CPU_WEIGHT, Some(IDLE).filter(|_| value == "1").or(Some(INFINITY).filter(|_| value == "0")))
        }
        "memory.low" => (MEMORY_LOW, bytes(value)),
        "memory.min" => (MEMORY_MIN, bytes(value)),
        "io.weight" => (IO_WEIGHT, value.strip_prefix("default").unwrap_or(value).trim().parse().ok()),
        file if UNTOLD.contains(&file) => return Err(untold(file)),
        _ => return Ok(()),
    };
    properties.insert(property, Value::from(number.ok_or_else(invalid)?));
    Ok(())
}

fn untold(file: &str) -> Error {
    Error::InvalidLimit {
        limit: file.to_owned(),
        reason: "it would have to be set in a scope, and systemd, which makes the cgroups here, has no property for it",
    }
}

/// A number of bytes as the kernel reads it.
fn bytes(value: &str) -> Option<u64> {
    if value == "max" {
        return Some(INFINITY);
    }
    let digits = value.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let shift = match value.strip_prefix(digits)?.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Io;
    use crate::path::CgroupPath;

    fn told(limits: &Limits, kind: Kind) -> Result<String, String> {
        let properties = of_limits(limits, &|_| Some(kind)).map_err(|error| error.to_string())?;
        let text = |(name, value): &Property<'_>| format!("{name}={value}");
        Ok(properties.iter().map(text).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_scope_says_what_it_is() {
        let payload = Scope::payload(&CgroupPath::new("/a.slice").unwrap(), "wharf-1.scope").unwrap();
        let scope = Scope::around(&payload).unwrap();
        let controllers = |devices| {
            let of_scope = of_scope(&scope, 42, devices);
            let at = |name| of_scope.iter().position(|(property, _)| *property == name);
            // What is named after it is added to what it stands for.
            at(DELEGATE_CONTROLLERS).inspect(|named| assert!(at("Delegate").unwrap() < *named)).is_some()
        };
        assert!(controllers(Some(Kind::V1)));
        assert!(!controllers(Some(Kind::Unified)) && !controllers(None));
        let scope = of_scope(&scope, 42, None);
        let value = |name| scope.iter().find(|(property, _)| *property == name).unwrap().1.to_string();
        assert_eq!((value("Slice").as_str(), value("Delegate").as_str()), ("\"a.slice\"", "true"));
        assert_eq!(value("PIDs"), "[uint32 42]");
        assert_eq!(value("TasksMax"), format!("uint64 {}", u64::MAX));
        assert_eq!(value("CollectMode"), "\"inactive-or-failed\"");
    }

    #[test]
    fn only_what_has_its_effect_at_the_scope_is_told() {
        let limits = Limits {
            cpu_shares: Some(512),
            cpu_quota_us: Some(1000),
            memory_limit_bytes: Some(1 << 20),
            memory_reservation_bytes: Some(4096),
            pids_limit: Some(7),
            io: Io {
                weight: Some(1000),
                weights: vec![(BlockDevice { major: 8, minor: 0 }, 10)],
                rates: Vec::new(),
            },
            unified: [("memory.min", "2M"), ("memory.max", "1"), ("pids.max", "max")]
                .map(|(file, value)| (file.to_owned(), value.to_owned()))
                .into(),
            ..Limits::default()
        };
        let v2 = "CPUWeight=uint64 59 IODeviceWeight=[(\"/dev/block/8:0\", uint64 1)] IOWeight=uint64 10000 \
                  MemoryLow=uint64 4096 MemoryMin=uint64 2097152";
        assert_eq!(told(&limits, Kind::Unified).unwrap(), v2);
        let v1 = Limits { unified: BTreeMap::new(), ..limits };
        let v1 = told(&v1, Kind::V1).unwrap();
        assert_eq!(
            v1,
            "BlockIODeviceWeight=[(\"/dev/block/8:0\", uint64 10)] BlockIOWeight=uint64 1000 CPUShares=uint64 512"
        );
        assert_eq!(told(&Limits::default(), Kind::Unified).unwrap(), "");
    }

    #[test]
    fn idle_is_a_weight() {
        let limits = |cpu_idle, cpu_shares| Limits { cpu_idle, cpu_shares, ..Limits::default() };
        for (limits, expected) in [
            (limits(Some(true), Some(512)), "CPUWeight=uint64 0".to_owned()),
            (limits(Some(false), Some(512)), "CPUWeight=uint64 59".to_owned()),
            (limits(Some(false), None), format!("CPUWeight=uint64 {}", u64::MAX)),
        ] {
            assert_eq!(told(&limits, Kind::Unified).unwrap(), expected);
        }
        assert!(told(&limits(Some(true), None), Kind::V1).is_err());
    }

    #[test]
    fn what_systemd_cannot_be_told_is_refused() {
        let unified = |file: &str, value: &str| {
            let unified = [(file.to_owned(), value.to_owned())].into();
            told(&Limits { unified, ..Limits::default() }, Kind::Unified)
        };
        assert_eq!(unified("cpu.idle", "1").unwrap(), "CPUWeight=uint64 0");
        assert_eq!(unified("io.weight", "default 50").unwrap(), "IOWeight=uint64 50");
        assert_eq!(unified("memory.low", "max").unwrap(), format!("MemoryLow=uint64 {}", u64::MAX));
        for (file, value) in [
            ("io.weight", "8:0 50"),
            ("cpu.weight", "many"),
            ("memory.min", "5X"),
            ("memory.min", "99999999999999T"),
            ("cpu.uclamp.min", "50"),
            ("cpu.idle", "2"),
        ] {
            assert!(unified(file, value).unwrap_err().contains(file), "{file} {value}");
        }
    }
}
